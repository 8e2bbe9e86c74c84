/* Operators on quantized integers other than convolution, in plain C so that each set's file compiles them with its
 * flags. The arithmetic is defined to the bit (docs/format.md): a product is fused with a sum where fmaf says so. */
#ifndef SUBP_INT8_PLANES_H
#define SUBP_INT8_PLANES_H

#include <string.h>

#include "kernels.h"
#include "planes.h"

/* The usual loop over elements whose result may be in the place of an operand: no element depends on another. */
#define SUBP_EACH _Pragma("GCC ivdep") for

/* The bounds of a result less its zero point. They are integers, so that it does not matter that rounding comes after
 * them. */
typedef struct {
    float low, high;
    uint32_t zero;
} subp_bounds;

static inline subp_bounds subp_bounds_of(int32_t zero, int32_t low, int32_t high) {
    return (subp_bounds){(float)(low - zero), (float)(high - zero), (uint32_t)zero};
}

/* clamp(rne(x) + zero, low, high); the lower bound if x is NaN. */
static inline uint8_t subp_byte(float x, subp_bounds b) {
    x = x > b.low ? x : b.low;
    x = x < b.high ? x : b.high;
    /* Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits. */
    const float shifted = x + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof(bits));
    return (uint8_t)(bits + b.zero);
}

static inline void subp_quantize_run(const float *in, ptrdiff_t count, float inverse, int32_t zero, uint8_t *out) {
    const subp_bounds bounds = subp_bounds_of(zero, 0, 255);
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) out[i] = subp_byte(in[i] * inverse, bounds);
}

static inline void subp_dequantize_run(const uint8_t *in, ptrdiff_t count, int32_t zero, float scale, float *out) {
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) out[i] = (float)(in[i] - zero) * scale;
}

static inline void subp_lookup_run(const uint8_t *in, ptrdiff_t count, const void *table, int to_float, void *out) {
    if (to_float)
        for (ptrdiff_t i = 0; i < count; i++) ((float *)out)[i] = ((const float *)table)[in[i]];
    else
        for (ptrdiff_t i = 0; i < count; i++) ((uint8_t *)out)[i] = ((const uint8_t *)table)[in[i]];
}

static inline void subp_rescaled_sum(const subp_rescale *r, const uint8_t *a, const uint8_t *b, ptrdiff_t count,
                                     uint8_t *out) {
    const subp_bounds bounds = subp_bounds_of(r->zero, r->low, r->high);
    const int32_t a_zero = r->a_zero, b_zero = r->b_zero;
    const float a_factor = r->a_factor, b_factor = r->b_factor;
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) {
        const float other = (float)(b[i] - b_zero) * b_factor;
        out[i] = subp_byte(__builtin_fmaf((float)(a[i] - a_zero), a_factor, other), bounds);
    }
}

static inline void subp_rescaled_product(const subp_rescale *r, const uint8_t *a, const uint8_t *b, int one_b,
                                         ptrdiff_t count, uint8_t *out) {
    const subp_bounds bounds = subp_bounds_of(r->zero, r->low, r->high);
    const int32_t a_zero = r->a_zero, b_zero = r->b_zero, constant = *b - b_zero;
    const float factor = r->a_factor;
    if (one_b)
        SUBP_EACH (ptrdiff_t i = 0; i < count; i++)
            out[i] = subp_byte((float)((a[i] - a_zero) * constant) * factor, bounds);
    else
        SUBP_EACH (ptrdiff_t i = 0; i < count; i++)
            out[i] = subp_byte((float)((a[i] - a_zero) * (b[i] - b_zero)) * factor, bounds);
}

static inline void subp_rescaled_mean(const subp_rescale *r, const uint8_t *in, ptrdiff_t count, uint8_t *out) {
    uint32_t sum = 0;
    for (ptrdiff_t i = 0; i < count; i++) sum += in[i];
    const int32_t centred = (int32_t)((int64_t)sum - (int64_t)count * r->a_zero);
    *out = subp_byte((float)centred * r->a_factor, subp_bounds_of(r->zero, r->low, r->high));
}

/* to[i] = max(to[i], from[i * stride]); the usual strides are constants, which compilers turn into vectors. */
static inline void subp_merge_largest(uint8_t *restrict to, const uint8_t *restrict from, ptrdiff_t count,
                                      ptrdiff_t stride) {
    if (stride == 1)
        for (ptrdiff_t i = 0; i < count; i++) to[i] = from[i] > to[i] ? from[i] : to[i];
    else if (stride == 2)
        for (ptrdiff_t i = 0; i < count; i++) to[i] = from[2 * i] > to[i] ? from[2 * i] : to[i];
    else
        for (ptrdiff_t i = 0; i < count; i++) to[i] = from[stride * i] > to[i] ? from[stride * i] : to[i];
}

static inline void subp_merge_sums(int32_t *restrict to, const int32_t *restrict from, ptrdiff_t count,
                                   ptrdiff_t stride) {
    if (stride == 1)
        for (ptrdiff_t i = 0; i < count; i++) to[i] += from[i];
    else if (stride == 2)
        for (ptrdiff_t i = 0; i < count; i++) to[i] += from[2 * i];
    else
        for (ptrdiff_t i = 0; i < count; i++) to[i] += from[stride * i];
}

/* The rows [*begin, *end) of the input that the windows of an output row hold, as taps of the window. */
static inline ptrdiff_t subp_rows_inside(const subp_window *w, ptrdiff_t y, ptrdiff_t *begin, ptrdiff_t *end) {
    const ptrdiff_t first = y * w->stride_h - w->pad_top, step = w->dilation_h;
    *begin = first < 0 ? (-first + step - 1) / step : 0;
    *end = first < w->height ? (w->height - first + step - 1) / step : 0;
    if (*end > w->kernel_h) *end = w->kernel_h;
    return first;
}

static inline void subp_largest_plane(const subp_window *w, const uint8_t *in, uint8_t *out, uint8_t *row) {
    for (ptrdiff_t y = 0; y < w->out_h; y++, out += w->out_w) {
        ptrdiff_t from, to, first = subp_rows_inside(w, y, &from, &to);
        memset(row, 0, (size_t)w->width);
        for (ptrdiff_t i = from; i < to; i++)
            subp_merge_largest(row, in + (first + i * w->dilation_h) * w->width, w->width, 1);
        memset(out, 0, (size_t)w->out_w);
        for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
            ptrdiff_t begin, end, s = w->stride_w, shift = subp_columns_inside(w, j, &begin, &end);
            if (begin < end) subp_merge_largest(out + begin, row + begin * s + shift, end - begin, s);
        }
    }
}

/* Sums of in - zero: down the columns into `row`, [width], then along it into the [out_w] behind. */
static inline void subp_average_plane(const subp_quantized_pool *p, const uint8_t *in, uint8_t *out, int32_t *row) {
    const subp_window *w = &p->window;
    const subp_bounds bounds = subp_bounds_of(p->zero, 0, 255);
    const int32_t zero = p->in_zero;
    int32_t *sums = row + w->width;
    for (ptrdiff_t y = 0; y < w->out_h; y++, out += w->out_w) {
        ptrdiff_t from, to, first = subp_rows_inside(w, y, &from, &to);
        memset(row, 0, (size_t)(w->width + w->out_w) * sizeof(*row));
        for (ptrdiff_t i = from; i < to; i++) {
            const uint8_t *with = in + (first + i * w->dilation_h) * w->width;
            SUBP_EACH (ptrdiff_t x = 0; x < w->width; x++) row[x] += with[x] - zero;
        }
        for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
            ptrdiff_t begin, end, s = w->stride_w, shift = subp_columns_inside(w, j, &begin, &end);
            if (begin < end) subp_merge_sums(sums + begin, row + begin * s + shift, end - begin, s);
        }
        const float *factors = p->factors + y * w->out_w;
        SUBP_EACH (ptrdiff_t x = 0; x < w->out_w; x++) out[x] = subp_byte((float)sums[x] * factors[x], bounds);
    }
}

/* --- the usual windows, in blocks of columns ---
 *
 * Loops of constant length become vectors without a rest; those of up to 16 elements compilers would rather unroll.
 * Down the columns first, then along the rows at every column, of which the stride picks some. Rows of the buffers have
 * margins for what lies outside, and room for whole blocks. */

enum { SUBP_BLOCK = 32, SUBP_USUAL_KERNEL = 16, SUBP_USUAL_STRIDE = 4 };

static inline int subp_usual_window(const subp_window *w) {
    return w->dilation_h == 1 && w->dilation_w == 1 && w->kernel_h <= SUBP_USUAL_KERNEL &&
           w->kernel_w <= SUBP_USUAL_KERNEL && w->stride_w <= SUBP_USUAL_STRIDE && w->pad_left < w->kernel_w &&
           (w->out_w - 1) * w->stride_w <= w->width + w->pad_left;
}

/* Elements of a row of the buffers: a window beyond the last column, and whole blocks. */
static inline ptrdiff_t subp_buffer_row(const subp_window *w) { return w->width + SUBP_POOL_SLACK / 2; }

/* The next block of a row, or a copy of what there is of it before `end`. */
static inline const uint8_t *subp_block_of(const uint8_t *from, const uint8_t *end, uint8_t *copy) {
    return end - from >= SUBP_BLOCK ? from : memcpy(copy, from, end > from ? (size_t)(end - from) : 0);
}

/* to = merged over `taps` rows of the input, `width` apart. */
#define SUBP_DEFINE_DOWN(name, to_type, merged)                                                                      \
    static inline void name(const uint8_t *in, const uint8_t *end, ptrdiff_t width, ptrdiff_t taps, to_type start,   \
                            to_type *restrict to) {                                                                  \
        for (ptrdiff_t x = 0; x < width; x += SUBP_BLOCK) {                                                          \
            for (int k = 0; k < SUBP_BLOCK; k++) to[x + k] = start;                                                  \
            for (ptrdiff_t i = 0; i < taps; i++) {                                                                   \
                uint8_t copy[SUBP_BLOCK];                                                                            \
                const uint8_t *restrict from = subp_block_of(in + i * width + x, end, copy);                         \
                for (int k = 0; k < SUBP_BLOCK; k++) {                                                               \
                    const to_type own = to[x + k], other = from[k];                                                  \
                    to[x + k] = (to_type)(merged);                                                                   \
                }                                                                                                    \
            }                                                                                                        \
        }                                                                                                            \
    }

/* to[x] = merged from[x + i] over `taps`, of whole blocks. */
#define SUBP_DEFINE_ALONG(name, type, merged)                                                                        \
    static inline void name(const type *restrict from, ptrdiff_t taps, ptrdiff_t count, type *restrict to) {         \
        for (ptrdiff_t x = 0; x < count; x += SUBP_BLOCK) {                                                          \
            for (int k = 0; k < SUBP_BLOCK; k++) to[x + k] = from[x + k];                                            \
            for (ptrdiff_t i = 1; i < taps; i++)                                                                     \
                for (int k = 0; k < SUBP_BLOCK; k++) {                                                               \
                    const type own = to[x + k], other = from[x + i + k];                                             \
                    to[x + k] = (type)(merged);                                                                      \
                }                                                                                                    \
        }                                                                                                            \
    }

SUBP_DEFINE_DOWN(subp_largest_down, uint8_t, other > own ? other : own)
SUBP_DEFINE_DOWN(subp_sums_down, uint16_t, own + other)
SUBP_DEFINE_ALONG(subp_largest_along, uint8_t, other > own ? other : own)
SUBP_DEFINE_ALONG(subp_sums_along, uint16_t, own + other)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define SUBP_FIRST_OF_PAIR(pair) ((pair) >> 4 * sizeof(pair))
#else
#define SUBP_FIRST_OF_PAIR(pair) (pair)
#endif

/* Every stride-th, in whole blocks; every second as the first of pairs, which leaves no gap behind the last. */
#define SUBP_DEFINE_PICK(name, type, pair_type)                                                                      \
    static inline const type *name(const type *restrict from, ptrdiff_t stride, ptrdiff_t count,                     \
                                   type *restrict to) {                                                              \
        if (stride == 1) return from;                                                                                \
        for (ptrdiff_t x = 0; x < count; x += SUBP_BLOCK)                                                            \
            if (stride == 2)                                                                                         \
                for (int k = 0; k < SUBP_BLOCK; k++) {                                                               \
                    pair_type pair;                                                                                  \
                    memcpy(&pair, from + (x + k) * 2, sizeof(pair));                                                 \
                    to[x + k] = (type)SUBP_FIRST_OF_PAIR(pair);                                                      \
                }                                                                                                    \
            else                                                                                                     \
                for (int k = 0; k < SUBP_BLOCK; k++) to[x + k] = from[(x + k) * stride];                             \
        return to;                                                                                                   \
    }

SUBP_DEFINE_PICK(subp_pick_bytes, uint8_t, uint16_t)
SUBP_DEFINE_PICK(subp_pick_sums, uint16_t, uint32_t)

/* The rows that the windows of output row y have inside the input: the first, and how many. */
static inline ptrdiff_t subp_usual_rows(const subp_window *w, ptrdiff_t y, ptrdiff_t *count) {
    const ptrdiff_t first = y * w->stride_h - w->pad_top, from = first < 0 ? 0 : first;
    const ptrdiff_t end = subp_smaller(first + w->kernel_h, w->height);
    *count = end > from ? end - from : 0;
    return *count ? from : 0;
}

static inline void subp_largest_usual(const subp_window *w, const uint8_t *in, uint8_t *out, uint8_t *row) {
    const ptrdiff_t room = subp_buffer_row(w), span = (w->out_w - 1) * w->stride_w + 1;
    const uint8_t *end = in + w->height * w->width;
    uint8_t *columns = row, *merged = columns + room, *picked = merged + room;
    memset(columns, 0, (size_t)room);
    for (ptrdiff_t y = 0; y < w->out_h; y++, out += w->out_w) {
        ptrdiff_t taps, first = subp_usual_rows(w, y, &taps);
        subp_largest_down(in + first * w->width, end, w->width, taps, 0, columns + w->pad_left);
        memset(columns + w->pad_left + w->width, 0, SUBP_BLOCK);
        subp_largest_along(columns, w->kernel_w, span, merged);
        memcpy(out, subp_pick_bytes(merged, w->stride_w, w->out_w, picked), (size_t)w->out_w);
    }
}

/* Sums of what is stored, with the zero point for what lies outside, less as many zero points: at most 65280. */
static inline void subp_average_usual(const subp_quantized_pool *p, const uint8_t *in, uint8_t *out, uint16_t *row) {
    const subp_window *w = &p->window;
    const ptrdiff_t room = subp_buffer_row(w), span = (w->out_w - 1) * w->stride_w + 1;
    const uint8_t *end = in + w->height * w->width;
    const subp_bounds bounds = subp_bounds_of(p->zero, 0, 255);
    const int32_t column = (int32_t)w->kernel_h * p->in_zero, shift = (int32_t)w->kernel_w * column;
    uint16_t *columns = row, *merged = columns + room, *picked = merged + room;
    const float *factors = p->factors;
    for (ptrdiff_t x = 0; x < w->pad_left; x++) columns[x] = (uint16_t)column;
    for (ptrdiff_t y = 0; y < w->out_h; y++, out += w->out_w, factors += w->out_w) {
        ptrdiff_t taps, first = subp_usual_rows(w, y, &taps);
        const int32_t outside = (int32_t)(w->kernel_h - taps) * p->in_zero;
        subp_sums_down(in + first * w->width, end, w->width, taps, (uint16_t)outside, columns + w->pad_left);
        for (int k = 0; k < SUBP_BLOCK; k++) columns[w->pad_left + w->width + k] = (uint16_t)column;
        subp_sums_along(columns, w->kernel_w, span, merged);
        const uint16_t *sums = subp_pick_sums(merged, w->stride_w, w->out_w, picked);
        uint8_t *bytes = (uint8_t *)columns;
        for (ptrdiff_t x = 0; x < w->out_w; x += SUBP_BLOCK)
            SUBP_EACH (int k = 0; k < SUBP_BLOCK; k++)
                bytes[x + k] = subp_byte((float)(sums[x + k] - shift) * factors[x + k], bounds);
        memcpy(out, bytes, (size_t)w->out_w);
        for (ptrdiff_t x = 0; x < w->pad_left; x++) columns[x] = (uint16_t)column;
    }
}

static inline void subp_quantized_pool_plane(const subp_quantized_pool *p, const uint8_t *in, uint8_t *out,
                                             int32_t *row) {
    const int usual = subp_usual_window(&p->window);
    if (p->factors)
        usual ? subp_average_usual(p, in, out, (uint16_t *)row) : subp_average_plane(p, in, out, row);
    else
        (usual ? subp_largest_usual : subp_largest_plane)(&p->window, in, out, (uint8_t *)row);
}

#define SUBP_DEFINE_LOOKUP(set)                                                                                      \
    void u8_lookup__##set(const void *in, ptrdiff_t count, const void *table, int to_float, void *out) {             \
        subp_lookup_run(in, count, table, to_float, out);                                                            \
    }

#define SUBP_DEFINE_INT8_PLANES(set)                                                                                 \
    void u8_quantize__##set(const float *in, ptrdiff_t count, float inverse, int32_t zero, void *out) {              \
        subp_quantize_run(in, count, inverse, zero, out);                                                            \
    }                                                                                                                \
    void u8_dequantize__##set(const void *in, ptrdiff_t count, int32_t zero, float scale, float *out) {              \
        subp_dequantize_run(in, count, zero, scale, out);                                                            \
    }                                                                                                                \
    void u8_quantized_binary__##set(int multiply, const subp_rescale *r, const void *a, const void *b, int one_b,    \
                                    ptrdiff_t count, void *out) {                                                    \
        if (multiply)                                                                                                \
            subp_rescaled_product(r, a, b, one_b, count, out);                                                       \
        else                                                                                                         \
            subp_rescaled_sum(r, a, b, count, out);                                                                  \
    }                                                                                                                \
    void u8_quantized_pool__##set(const subp_quantized_pool *p, const void *in, void *out, int32_t *row) {           \
        subp_quantized_pool_plane(p, in, out, row);                                                                  \
    }                                                                                                                \
    void u8_quantized_mean__##set(const subp_rescale *r, const void *in, ptrdiff_t count, void *out) {               \
        subp_rescaled_mean(r, in, count, out);                                                                       \
    }

#endif
