/* Operators on quantized integers other than convolution, in plain C so that each set's file compiles them with its
 * flags. The arithmetic is defined to the bit (docs/format.md): a product is fused with a sum where fmaf says so. */
#ifndef SUBP_INT8_PLANES_H
#define SUBP_INT8_PLANES_H

#include <string.h>

#include "kernels.h"
#include "planes.h"

/* The usual loop over elements whose result may be in the place of an operand: no element depends on another. */
#define SUBP_EACH _Pragma("GCC ivdep") for

/* A result before it is rounded: bounds relative to its zero point, which make no difference to what is rounded
 * to an integer after them. */
typedef struct {
    float low, high;
    uint32_t zero;
} subp_bounds;

static inline subp_bounds subp_bounds_of(int32_t zero, int32_t low, int32_t high) {
    return (subp_bounds){(float)(low - zero), (float)(high - zero), (uint32_t)zero};
}

/* clamp(rne(x) + zero, low, high); the lower bound if x is NaN. */
static inline uint8_t subp_stored(float x, subp_bounds b) {
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
    SUBP_EACH (ptrdiff_t i = 0; i < count; i++) out[i] = subp_stored(in[i] * inverse, bounds);
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
        out[i] = subp_stored(__builtin_fmaf((float)(a[i] - a_zero), a_factor, other), bounds);
    }
}

static inline void subp_rescaled_product(const subp_rescale *r, const uint8_t *a, const uint8_t *b, int one_b,
                                         ptrdiff_t count, uint8_t *out) {
    const subp_bounds bounds = subp_bounds_of(r->zero, r->low, r->high);
    const int32_t a_zero = r->a_zero, b_zero = r->b_zero, constant = *b - b_zero;
    const float factor = r->a_factor;
    if (one_b)
        SUBP_EACH (ptrdiff_t i = 0; i < count; i++)
            out[i] = subp_stored((float)((a[i] - a_zero) * constant) * factor, bounds);
    else
        SUBP_EACH (ptrdiff_t i = 0; i < count; i++)
            out[i] = subp_stored((float)((a[i] - a_zero) * (b[i] - b_zero)) * factor, bounds);
}

static inline void subp_rescaled_mean(const subp_rescale *r, const uint8_t *in, ptrdiff_t count, uint8_t *out) {
    uint32_t sum = 0;
    for (ptrdiff_t i = 0; i < count; i++) sum += in[i];
    const int32_t centred = (int32_t)((int64_t)sum - (int64_t)count * r->a_zero);
    *out = subp_stored((float)centred * r->a_factor, subp_bounds_of(r->zero, r->low, r->high));
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
        SUBP_EACH (ptrdiff_t x = 0; x < w->out_w; x++) out[x] = subp_stored((float)sums[x] * factors[x], bounds);
    }
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
        if (p->factors)                                                                                              \
            subp_average_plane(p, in, out, row);                                                                     \
        else                                                                                                         \
            subp_largest_plane(&p->window, in, out, (uint8_t *)row);                                                 \
    }                                                                                                                \
    void u8_quantized_mean__##set(const subp_rescale *r, const void *in, ptrdiff_t count, void *out) {               \
        subp_rescaled_mean(r, in, count, out);                                                                       \
    }

#endif
