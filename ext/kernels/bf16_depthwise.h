/* Depthwise convolution of bfloat16 planes in plain C, for any window. */
#ifndef SUBP_BF16_DEPTHWISE_H
#define SUBP_BF16_DEPTHWISE_H

#include "bfloat16.h"
#include "planes.h"

/* Columns that are summed up at a time. */
enum { SUBP_BF16_COLUMNS = 256 };

static inline void subp_bf16_add(float *restrict sums, const uint16_t *restrict from, ptrdiff_t count,
                                 ptrdiff_t stride, float weight) {
    if (stride == 1)
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * subp_from_bfloat16(from[i]);
    else if (stride == 2)
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * subp_from_bfloat16(from[2 * i]);
    else
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * subp_from_bfloat16(from[stride * i]);
}

/* Output columns [first, first + count) of one row of windows; `source` is the input row of the first tap. */
static inline void subp_bf16_sums(const subp_window *w, const uint16_t *in, const uint16_t *values, ptrdiff_t source,
                                  ptrdiff_t first, ptrdiff_t count, float *sums) {
    for (ptrdiff_t i = 0; i < w->kernel_h; i++, source += w->dilation_h)
        for (ptrdiff_t j = 0; j < w->kernel_w && source >= 0 && source < w->height; j++) {
            ptrdiff_t begin, end, shift = subp_columns_inside(w, j, &begin, &end);
            begin = subp_clip(begin, first, first + count);
            end = subp_clip(end, begin, first + count);
            subp_bf16_add(sums + begin - first, in + source * w->width + begin * w->stride_w + shift, end - begin,
                          w->stride_w, subp_from_bfloat16(values[i * w->kernel_w + j]));
        }
}

/* Stores sums as outputs `to` and following, once their residual is added. */
static inline void subp_bf16_store(float *sums, ptrdiff_t count, const void *residual, int activation, int to_float,
                                   void *out, ptrdiff_t to) {
    const uint16_t *addend = subp_at_if(residual, to, sizeof(uint16_t));
    for (ptrdiff_t i = 0; addend && i < count; i++) sums[i] += subp_from_bfloat16(addend[i]);
    subp_activate(sums, count, activation);
    if (to_float)
        memcpy((float *)out + to, sums, (size_t)count * sizeof(float));
    else
        for (ptrdiff_t i = 0; i < count; i++) ((uint16_t *)out)[to + i] = subp_to_bfloat16(sums[i]);
}

static inline void subp_bf16_depthwise(const subp_depthwise *d) {
    const subp_window *w = d->window;
    float sums[SUBP_BF16_COLUMNS];
    for (ptrdiff_t n = 0; n < d->count; n++)
        for (ptrdiff_t y = 0; y < w->out_h; y++)
            for (ptrdiff_t x = 0; x < w->out_w; x += SUBP_BF16_COLUMNS) {
                const ptrdiff_t count = subp_smaller(SUBP_BF16_COLUMNS, w->out_w - x);
                const ptrdiff_t to = d->out_offsets[n] + y * w->out_w + x;
                for (ptrdiff_t i = 0; i < count; i++) sums[i] = d->bias ? d->bias[n] : 0.0f;
                subp_bf16_sums(w, (const uint16_t *)d->in + n * d->in_stride,
                               (const uint16_t *)d->values + n * w->kernel_h * w->kernel_w,
                               y * w->stride_h - w->pad_top, x, count, sums);
                subp_bf16_store(sums, count, d->residual, d->activation, d->to_float, d->out, to);
            }
}

#define SUBP_DEFINE_BF16_DEPTHWISE(set) \
    void bf16_dwconv_any__##set(const subp_depthwise *d) { subp_bf16_depthwise(d); }

#endif
