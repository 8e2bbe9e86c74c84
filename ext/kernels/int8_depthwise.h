/* Depthwise convolution of uint8 planes in plain C, for any window; its outputs are float32 if the constants say so. */
#ifndef SUBP_INT8_DEPTHWISE_H
#define SUBP_INT8_DEPTHWISE_H

#include "int8_requantize.h"
#include "planes.h"

/* Columns that are summed up at a time. */
enum { SUBP_DEPTHWISE_COLUMNS = 256 };

static inline void subp_add_bytes(int32_t *restrict sums, const uint8_t *restrict from, ptrdiff_t count,
                                  ptrdiff_t stride, int32_t weight) {
    if (stride == 1)
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * from[i];
    else if (stride == 2)
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * from[2 * i];
    else
        for (ptrdiff_t i = 0; i < count; i++) sums[i] += weight * from[stride * i];
}

static inline void subp_add_constant(int32_t *sums, ptrdiff_t count, int32_t summand) {
    for (ptrdiff_t i = 0; i < count; i++) sums[i] += summand;
}

/* Output columns [first, first + count) of one row of windows; `source` is the input row of the first tap. */
static inline void subp_depthwise_sums(const subp_window *w, const uint8_t *in, int32_t zero, const int8_t *values,
                                       ptrdiff_t source, ptrdiff_t first, ptrdiff_t count, int32_t *sums) {
    for (ptrdiff_t i = 0; i < w->kernel_h; i++, source += w->dilation_h)
        for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
            const int32_t weight = values[i * w->kernel_w + j];
            ptrdiff_t begin, end, shift = subp_columns_inside(w, j, &begin, &end);
            begin = subp_clip(begin, first, first + count);
            end = source < 0 || source >= w->height ? begin : subp_clip(end, begin, first + count);
            subp_add_constant(sums, begin - first, weight * zero);
            if (begin < end)
                subp_add_bytes(sums + begin - first, in + source * w->width + begin * w->stride_w + shift, end - begin,
                               w->stride_w, weight);
            subp_add_constant(sums + end - first, first + count - end, weight * zero);
        }
}

static inline void subp_depthwise_bytes(const subp_depthwise *d) {
    const subp_window *w = d->window;
    const int32_t zero = *(const uint8_t *)d->padding;
    int32_t sums[SUBP_DEPTHWISE_COLUMNS];
    for (ptrdiff_t n = 0; n < d->count; n++)
        for (ptrdiff_t y = 0; y < w->out_h; y++)
            for (ptrdiff_t x = 0; x < w->out_w; x += SUBP_DEPTHWISE_COLUMNS) {
                const ptrdiff_t count = subp_smaller(SUBP_DEPTHWISE_COLUMNS, w->out_w - x);
                const ptrdiff_t to = d->out_offsets[n] + y * w->out_w + x;
                for (ptrdiff_t i = 0; i < count; i++) sums[i] = d->start[n];
                subp_depthwise_sums(w, (const uint8_t *)d->in + n * d->in_stride, zero,
                                    (const int8_t *)d->values + n * w->kernel_h * w->kernel_w,
                                    y * w->stride_h - w->pad_top, x, count, sums);
                if (d->to_float)
                    for (ptrdiff_t i = 0; i < count; i++) ((float *)d->out)[to + i] = (float)sums[i] * d->factor[n];
                else
                    subp_requantize_run(d->requantize, sums, d->factor[n], subp_at_if(d->residual, to, 1),
                                        (uint8_t *)d->out + to, count);
            }
}

#define SUBP_DEFINE_INT8_DEPTHWISE(set) \
    void u8s8_dwconv_any__##set(const subp_depthwise *d) { subp_depthwise_bytes(d); }

#endif
