/* Operators on bfloat16 other than convolution, in plain C so that each set's file compiles them with its flags: they
 * widen, compute in float32 as planes.h does, and round once. */
#ifndef SUBP_BF16_PLANES_H
#define SUBP_BF16_PLANES_H

#include "bfloat16.h"
#include "kernels.h"
#include "planes.h"

/* A loop whose result may lie where its operand does, each element in its own place: none depends on another. */
#define SUBP_EACH _Pragma("GCC ivdep") for

/* Numbers at work at a time, where several loops go over them. */
enum { SUBP_PART = 512 };

static inline void subp_widen_run(const uint16_t *in, ptrdiff_t count, float *out) {
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) out[i] = subp_from_bfloat16(in[i]);
}

static inline void subp_narrow_run(const float *in, ptrdiff_t count, uint16_t *out) {
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) out[i] = subp_to_bfloat16(in[i]);
}

static inline void subp_bf16_activate_run(const uint16_t *in, ptrdiff_t count, int activation, uint16_t *out) {
    float part[SUBP_PART];
    for (ptrdiff_t at = 0; at < count; at += SUBP_PART) {
        const ptrdiff_t n = subp_smaller(SUBP_PART, count - at);
        subp_widen_run(in + at, n, part);
        subp_activate(part, n, activation);
        subp_narrow_run(part, n, out + at);
    }
}

/* Sums and products of a part, in float32. */
static inline void subp_bf16_combine(int multiply, const uint16_t *a, const void *with, int one_b, ptrdiff_t count,
                                     float *out) {
    const uint16_t *b = with;
    const float constant = one_b == SUBP_ONE_FLOAT ? *(const float *)with : subp_from_bfloat16(*b);
    if (one_b && multiply)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = subp_from_bfloat16(a[i]) * constant;
    else if (one_b)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = subp_from_bfloat16(a[i]) + constant;
    else if (multiply)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = subp_from_bfloat16(a[i]) * subp_from_bfloat16(b[i]);
    else
        for (ptrdiff_t i = 0; i < count; i++) out[i] = subp_from_bfloat16(a[i]) + subp_from_bfloat16(b[i]);
}

static inline void subp_bf16_binary_run(int multiply, const uint16_t *a, const void *b, int one_b, ptrdiff_t count,
                                        int activation, uint16_t *out) {
    float part[SUBP_PART];
    for (ptrdiff_t at = 0; at < count; at += SUBP_PART) {
        const ptrdiff_t n = subp_smaller(SUBP_PART, count - at);
        subp_bf16_combine(multiply, a + at, subp_at(b, one_b ? 0 : at, sizeof(*a)), one_b, n, part);
        subp_activate(part, n, activation);
        subp_narrow_run(part, n, out + at);
    }
}

static inline uint16_t subp_bf16_mean_run(const uint16_t *in, ptrdiff_t count) {
    float sums[32] = {0}, total = 0.0f; /* what two vectors hold: additions in sequence would not become vectors */
    ptrdiff_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int s = 0; s < 32; s++) sums[s] += subp_from_bfloat16(in[i + s]);
    for (int s = 0; i < count; i++, s++) sums[s] += subp_from_bfloat16(in[i]);
    for (int half = 16; half >= 4; half /= 2)
        for (int s = 0; s < half; s++) sums[s] += sums[s + half];
    for (int s = 0; s < 4; s++) total += sums[s];
    return subp_to_bfloat16(total / (float)count);
}

/* Integers in the order of the numbers that are stored, NaN above all of them, and back. */
static inline int16_t subp_bf16_rank(uint16_t x) {
    const int16_t size = (int16_t)(x & 0x7fff), sign = (int16_t)((int16_t)x >> 15);
    return size > 0x7f80 ? 0x7fff : (int16_t)((int16_t)x ^ (sign & 0x7fff));
}
static inline uint16_t subp_bf16_of_rank(int16_t rank) { return (uint16_t)(rank ^ (int16_t)(rank >> 15 & 0x7fff)); }

/* Loops over rows of ranks are over whole blocks of as many as a vector may hold; what lies behind a row is of any
 * value and has room. */
enum { SUBP_BLOCK = 32 };

static inline ptrdiff_t subp_blocks(ptrdiff_t count) { return subp_ceil_div(count, SUBP_BLOCK) * SUBP_BLOCK; }

static inline void subp_bf16_largest(int16_t *restrict best, const int16_t *restrict with, ptrdiff_t count,
                                     ptrdiff_t stride) {
    for (ptrdiff_t at = 0; at < count; at += SUBP_BLOCK, best += SUBP_BLOCK, with += stride * SUBP_BLOCK)
        if (stride == 1)
            for (int i = 0; i < SUBP_BLOCK; i++) best[i] = with[i] > best[i] ? with[i] : best[i];
        else if (stride == 2)
            for (int i = 0; i < SUBP_BLOCK; i++) best[i] = with[2 * i] > best[i] ? with[2 * i] : best[i];
        else
            for (int i = 0; i < SUBP_BLOCK; i++) best[i] = with[i * stride] > best[i] ? with[i * stride] : best[i];
}

static inline void subp_bf16_largest_ranks(int16_t *restrict best, const int16_t *restrict numbers, ptrdiff_t count) {
    for (ptrdiff_t at = 0; at < count; at += SUBP_BLOCK, best += SUBP_BLOCK, numbers += SUBP_BLOCK)
        for (int i = 0; i < SUBP_BLOCK; i++) {
            const int16_t rank = subp_bf16_rank((uint16_t)numbers[i]);
            best[i] = rank > best[i] ? rank : best[i];
        }
}

/* One output row of maxima: down the columns first, so that one row alone is taken apart for the stride. The row of
 * ranks has as many columns as the windows reach over, those outside of the input included. */
static inline void subp_bf16_maxima(const subp_window *p, const uint16_t *in, ptrdiff_t y, int16_t *ranks,
                                    uint16_t *out) {
    const int16_t least = subp_bf16_rank(0xff80); /* minus infinity */
    const ptrdiff_t columns = p->stride_w * subp_blocks(p->out_w) + (p->kernel_w - 1) * p->dilation_w;
    const ptrdiff_t seen = subp_smaller(p->width, columns - p->pad_left);
    int16_t *numbers = ranks + subp_blocks(columns + SUBP_BLOCK), *best = numbers + subp_blocks(p->width);
    for (ptrdiff_t x = 0; x < columns; x++) ranks[x] = least;
    for (ptrdiff_t i = 0; i < p->kernel_h && seen > 0; i++) {
        const ptrdiff_t source = y * p->stride_h - p->pad_top + i * p->dilation_h;
        if (source < 0 || source >= p->height) continue;
        memcpy(numbers, in + source * p->width, (size_t)seen * sizeof(uint16_t));
        for (ptrdiff_t x = seen; x < subp_blocks(seen); x++) numbers[x] = (int16_t)0xff80;
        subp_bf16_largest_ranks(ranks + p->pad_left, numbers, seen);
    }
    for (ptrdiff_t x = 0; x < subp_blocks(p->out_w); x++) best[x] = least;
    for (ptrdiff_t j = 0; j < p->kernel_w; j++)
        subp_bf16_largest(best, ranks + j * p->dilation_w, p->out_w, p->stride_w);
    for (ptrdiff_t x = 0; x < subp_blocks(p->out_w); x++) best[x] = (int16_t)subp_bf16_of_rank(best[x]);
    memcpy(out, best, (size_t)p->out_w * sizeof(uint16_t));
}

/* One output row of averages, likewise. */
static inline void subp_bf16_averages(const subp_pool *pool, const uint16_t *in, ptrdiff_t y, float *row,
                                      uint16_t *out) {
    const subp_window *p = &pool->window;
    float *sums = row + p->width;
    for (ptrdiff_t x = 0; x < p->width + p->out_w; x++) row[x] = 0.0f;
    for (ptrdiff_t i = 0; i < p->kernel_h; i++) {
        const ptrdiff_t source = y * p->stride_h - p->pad_top + i * p->dilation_h;
        if (source < 0 || source >= p->height) continue;
        const uint16_t *from = in + source * p->width;
        for (ptrdiff_t x = 0; x < p->width; x++) row[x] += subp_from_bfloat16(from[x]);
    }
    for (ptrdiff_t j = 0; j < p->kernel_w; j++) {
        ptrdiff_t begin, end, s = p->stride_w, shift = subp_columns_inside(p, j, &begin, &end);
        if (begin < end) subp_merge_strided(sums + begin, row + begin * s + shift, end - begin, s, 1);
    }
    for (ptrdiff_t x = 0; x < p->out_w; x++)
        out[x] = subp_to_bfloat16(sums[x] / (pool->row_counts[y] * pool->column_counts[x]));
}

static inline void subp_bf16_pool_plane(const subp_pool *pool, const uint16_t *in, uint16_t *out, void *row) {
    for (ptrdiff_t y = 0; y < pool->window.out_h; y++, out += pool->window.out_w)
        if (pool->average)
            subp_bf16_averages(pool, in, y, row, out);
        else
            subp_bf16_maxima(&pool->window, in, y, row, out);
}

/* Every pixel over its channels; `in` may be `out`. Called with a constant for the width that matters. */
static inline void subp_bf16_norm_columns(const uint16_t *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,
                                          const float *weight, const float *bias, float eps, uint16_t *out) {
    float mean[SUBP_NORM_PIXELS] = {0}, scale[SUBP_NORM_PIXELS] = {0};
    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < count; i++) mean[i] += subp_from_bfloat16(in[c * stride + i]);
    for (ptrdiff_t i = 0; i < count; i++) mean[i] /= (float)channels;
    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < count; i++) {
            const float d = subp_from_bfloat16(in[c * stride + i]) - mean[i];
            scale[i] += d * d;
        }
    for (ptrdiff_t i = 0; i < count; i++) scale[i] = 1.0f / sqrtf(scale[i] / (float)channels + eps);
    for (ptrdiff_t c = 0; c < channels; c++)
        SUBP_EACH (ptrdiff_t i = 0; i < count; i++)
            out[c * stride + i] =
                subp_to_bfloat16((subp_from_bfloat16(in[c * stride + i]) - mean[i]) * scale[i] * weight[c] + bias[c]);
}

static inline void subp_bf16_norm_tile(const uint16_t *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,
                                       const float *weight, const float *bias, float eps, uint16_t *out) {
    if (count == SUBP_NORM_PIXELS)
        subp_bf16_norm_columns(in, channels, stride, SUBP_NORM_PIXELS, weight, bias, eps, out);
    else
        subp_bf16_norm_columns(in, channels, stride, count, weight, bias, eps, out);
}

#define SUBP_DEFINE_BF16_PLANES(set)                                                                                \
    void bf16_cast__##set(const void *in, ptrdiff_t count, void *out) { subp_widen_run(in, count, out); }           \
    void f32_cast__##set(const void *in, ptrdiff_t count, void *out) { subp_narrow_run(in, count, out); }           \
    void bf16_mean__##set(const void *in, ptrdiff_t count, void *out) {                                             \
        *(uint16_t *)out = subp_bf16_mean_run(in, count);                                                           \
    }                                                                                                               \
    void bf16_activate__##set(const void *in, ptrdiff_t count, int activation, void *out) {                         \
        subp_bf16_activate_run(in, count, activation, out);                                                         \
    }                                                                                                               \
    void bf16_binary__##set(int multiply, const void *a, const void *b, int one_b, ptrdiff_t count, int activation, \
                            void *out) {                                                                            \
        subp_bf16_binary_run(multiply, a, b, one_b, count, activation, out);                                        \
    }                                                                                                               \
    void bf16_pool__##set(const subp_pool *p, const void *in, void *out, void *row) {                               \
        subp_bf16_pool_plane(p, in, out, row);                                                                      \
    }                                                                                                               \
    void bf16_norm_pixels__##set(const void *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,             \
                                 const float *weight, const float *bias, float eps, void *out) {                    \
        subp_bf16_norm_tile(in, channels, stride, count, weight, bias, eps, out);                                   \
    }

#endif
