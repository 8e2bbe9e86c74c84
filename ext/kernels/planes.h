/* Pooling and element-wise operators, in plain C so that each kernel file compiles them with its own flags. */
#ifndef SUBP_PLANES_H
#define SUBP_PLANES_H

#include <string.h>

#include "activation.h"
#include "kernels.h"
#include "shared.h"

/* As NumPy and PyTorch: a NaN in either wins. */
static inline float subp_max(float a, float b) { return b > a || b != b ? b : a; }

static inline void subp_merge(float *restrict row, const float *restrict with, ptrdiff_t count, int average) {
    if (average)
        for (ptrdiff_t i = 0; i < count; i++) row[i] += with[i];
    else
        for (ptrdiff_t i = 0; i < count; i++) row[i] = subp_max(row[i], with[i]);
}

/* As subp_merge, from every stride-th element; the usual strides are constants, which compilers turn into vectors. */
static inline void subp_merge_strided(float *restrict to, const float *restrict from, ptrdiff_t count,
                                      ptrdiff_t stride, int average) {
    if (stride == 1) {
        subp_merge(to, from, count, average);
    } else if (average) {
        if (stride == 2)
            for (ptrdiff_t i = 0; i < count; i++) to[i] += from[2 * i];
        else
            for (ptrdiff_t i = 0; i < count; i++) to[i] += from[stride * i];
    } else {
        if (stride == 2)
            for (ptrdiff_t i = 0; i < count; i++) to[i] = subp_max(to[i], from[2 * i]);
        else
            for (ptrdiff_t i = 0; i < count; i++) to[i] = subp_max(to[i], from[stride * i]);
    }
}

/* Output columns [begin, end) find column j of their windows inside the input, at x * stride_w + the result. */
static inline ptrdiff_t subp_columns_inside(const subp_window *w, ptrdiff_t j, ptrdiff_t *begin, ptrdiff_t *end) {
    ptrdiff_t shift = j * w->dilation_w - w->pad_left, stride = w->stride_w;
    *begin = shift < 0 ? (-shift + stride - 1) / stride : 0;
    *end = shift < w->width ? (w->width - shift + stride - 1) / stride : 0;
    if (*end > w->out_w) *end = w->out_w;
    return shift;
}

static inline void subp_add_strided(float *restrict to, const float *restrict from, ptrdiff_t count, ptrdiff_t stride,
                                    float factor) {
    if (stride == 1)
        for (ptrdiff_t i = 0; i < count; i++) to[i] += factor * from[i];
    else
        for (ptrdiff_t i = 0; i < count; i++) to[i] += factor * from[stride * i];
}

/* One plane of a depthwise convolution with any window. The residual, which may be in the place of the output, comes
 * first. */
static inline void subp_depthwise_plane(const subp_window *w, const float *in, const float *values, float bias,
                                        const float *residual, float *out, int activation) {
    for (ptrdiff_t y = 0; y < w->out_h; y++, out += w->out_w) {
        for (ptrdiff_t x = 0; x < w->out_w; x++) out[x] = bias + (residual ? residual[y * w->out_w + x] : 0.0f);
        for (ptrdiff_t i = 0; i < w->kernel_h; i++) {
            ptrdiff_t source = y * w->stride_h - w->pad_top + i * w->dilation_h;
            if (source < 0 || source >= w->height) continue;
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                ptrdiff_t begin, end, shift = subp_columns_inside(w, j, &begin, &end);
                const float *from = in + source * w->width;
                subp_add_strided(out + begin, from + begin * w->stride_w + shift, end - begin, w->stride_w,
                                 values[i * w->kernel_w + j]);
            }
        }
        subp_activate(out, w->out_w, activation);
    }
}

static inline void subp_depthwise_planes(const subp_depthwise *d) {
    subp_window w = *d->window;
    if (w.kernel_h * w.kernel_w * w.stride_h * w.stride_w == 1 && w.out_h == w.height && w.out_w == w.width) {
        w.width = w.out_w = w.width * w.height; /* a factor and a summand, as of a batch norm: one long row */
        w.height = w.out_h = 1;
    }
    for (ptrdiff_t n = 0; n < d->count; n++)
        subp_depthwise_plane(&w, (const float *)d->in + n * d->in_stride,
                             (const float *)d->values + n * w.kernel_h * w.kernel_w, d->bias ? d->bias[n] : 0.0f,
                             d->residual ? (const float *)d->residual + d->out_offsets[n] : NULL,
                             (float *)d->out + d->out_offsets[n], d->activation);
}

static inline void subp_pool_plane(const subp_pool *pool, const float *in, float *out, float *row) {
    const subp_window *p = &pool->window;
    const float start = pool->average ? 0.0f : -INFINITY;
    for (ptrdiff_t y = 0; y < p->out_h; y++, out += p->out_w) {
        for (ptrdiff_t x = 0; x < p->width; x++) row[x] = start;
        for (ptrdiff_t i = 0; i < p->kernel_h; i++) {
            ptrdiff_t source = y * p->stride_h - p->pad_top + i * p->dilation_h;
            if (source >= 0 && source < p->height)
                subp_merge(row, in + source * p->width, p->width, pool->average);
        }
        for (ptrdiff_t x = 0; x < p->out_w; x++) out[x] = start;
        for (ptrdiff_t j = 0; j < p->kernel_w; j++) {
            ptrdiff_t begin, end, s = p->stride_w, shift = subp_columns_inside(p, j, &begin, &end);
            if (begin < end) subp_merge_strided(out + begin, row + begin * s + shift, end - begin, s, pool->average);
        }
        if (pool->average)
            for (ptrdiff_t x = 0; x < p->out_w; x++) out[x] /= pool->row_counts[y] * pool->column_counts[x];
    }
}

static inline float subp_mean_run(const float *in, ptrdiff_t count) {
    float sums[16] = {0}, rest = 0.0f; /* what a vector holds: float additions in sequence would not become vectors */
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int s = 0; s < 16; s++) sums[s] += in[i + s];
    for (; i < count; i++) rest += in[i];
    for (int s = 0; s < 8; s++) sums[s] += sums[s + 8];
    for (int s = 0; s < 4; s++) sums[s] += sums[s + 4];
    return (sums[0] + sums[2] + (sums[1] + sums[3]) + rest) / (float)count;
}

/* The sum of in - centre, or of its square. Long sums are added up in double precision. */
static inline double subp_moment(const float *in, ptrdiff_t count, float centre, int square) {
    enum { LANES = 64, LONG = 4096 };
    double total = 0.0;
    for (ptrdiff_t start = 0; start < count; start += LONG) {
        const float *from = in + start;
        const ptrdiff_t n = count - start < LONG ? count - start : LONG;
        float sums[LANES] = {0};
        ptrdiff_t i = 0;
        for (; i + LANES <= n; i += LANES)
            for (int s = 0; s < LANES; s++) {
                const float d = from[i + s] - centre;
                sums[s] += square ? d * d : d;
            }
        for (int s = 0; i < n; i++, s++) {
            const float d = from[i] - centre;
            sums[s] += square ? d * d : d;
        }
        for (int half = LANES / 2; half; half /= 2)
            for (int s = 0; s < half; s++) sums[s] += sums[s + half];
        total += sums[0];
    }
    return total;
}

/* Every pixel over its channels; `in` may be `out`. Called with constants for the widths that matter. */
static inline void subp_norm_columns(const float *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,
                                     const float *weight, const float *bias, float eps, float *out) {
    float mean[SUBP_NORM_PIXELS] = {0}, scale[SUBP_NORM_PIXELS] = {0};
    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < count; i++) mean[i] += in[c * stride + i];
    for (ptrdiff_t i = 0; i < count; i++) mean[i] /= (float)channels;
    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < count; i++) {
            const float d = in[c * stride + i] - mean[i];
            scale[i] += d * d;
        }
    for (ptrdiff_t i = 0; i < count; i++) scale[i] = 1.0f / sqrtf(scale[i] / (float)channels + eps);
    for (ptrdiff_t c = 0; c < channels; c++)
        for (ptrdiff_t i = 0; i < count; i++)
            out[c * stride + i] = (in[c * stride + i] - mean[i]) * scale[i] * weight[c] + bias[c];
}

static inline void subp_norm_tile(const float *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,
                                  const float *weight, const float *bias, float eps, float *out) {
    if (count == SUBP_NORM_PIXELS)
        subp_norm_columns(in, channels, stride, SUBP_NORM_PIXELS, weight, bias, eps, out);
    else
        subp_norm_columns(in, channels, stride, count, weight, bias, eps, out);
}

/* All of `channels` runs of `pixels` numbers together; `in` may be `out`. */
static inline void subp_norm_all(const float *in, ptrdiff_t channels, ptrdiff_t pixels, const float *weight,
                                 const float *bias, float eps, float *out) {
    const ptrdiff_t count = channels * pixels;
    const float mean = (float)(subp_moment(in, count, 0.0f, 0) / (double)count);
    const float scale = 1.0f / sqrtf((float)(subp_moment(in, count, mean, 1) / (double)count) + eps);
    if (pixels == 1) {
        for (ptrdiff_t c = 0; c < channels; c++) out[c] = (in[c] - mean) * scale * weight[c] + bias[c];
        return;
    }
    for (ptrdiff_t c = 0; c < channels; c++, in += pixels, out += pixels) {
        const float factor = scale * weight[c], summand = bias[c];
        for (ptrdiff_t i = 0; i < pixels; i++) out[i] = (in[i] - mean) * factor + summand;
    }
}

static inline void subp_binary_run(int multiply, const float *a, const float *b, int one_b, ptrdiff_t count,
                                   int activation, float *out) {
    const float constant = *b;
    if (one_b && multiply)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = a[i] * constant;
    else if (one_b)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = a[i] + constant;
    else if (multiply)
        for (ptrdiff_t i = 0; i < count; i++) out[i] = a[i] * b[i];
    else
        for (ptrdiff_t i = 0; i < count; i++) out[i] = a[i] + b[i];
    subp_activate(out, count, activation);
}

#define SUBP_DEFINE_POOL(set) \
    void f32_pool__##set(const subp_pool *p, const void *in, void *out, void *row) { subp_pool_plane(p, in, out, row); }

#define SUBP_DEFINE_PLANES(set)                                                                                    \
    void f32_dwconv_any__##set(const subp_depthwise *d) { subp_depthwise_planes(d); }                              \
    void f32_mean__##set(const void *in, ptrdiff_t count, void *out) { *(float *)out = subp_mean_run(in, count); } \
    void f32_binary__##set(int multiply, const void *a, const void *b, int one_b, ptrdiff_t count, int activation, \
                           void *out) {                                                                            \
        subp_binary_run(multiply, a, b, one_b, count, activation, out);                                            \
    }                                                                                                              \
    void f32_norm_pixels__##set(const void *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,             \
                                const float *weight, const float *bias, float eps, void *out) {                    \
        subp_norm_tile(in, channels, stride, count, weight, bias, eps, out);                                       \
    }                                                                                                              \
    void f32_norm_run__##set(const void *in, ptrdiff_t channels, ptrdiff_t pixels, const float *weight,            \
                             const float *bias, float eps, void *out) {                                            \
        subp_norm_all(in, channels, pixels, weight, bias, eps, out);                                               \
    }                                                                                                              \
    void f32_activate__##set(const void *in, ptrdiff_t count, int activation, void *out) {                         \
        memcpy(out, in, (size_t)count * sizeof(float));                                                            \
        subp_activate(out, count, activation);                                                                     \
    }

#endif
