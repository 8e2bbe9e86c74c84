/* Planes of uint8 of a depthwise convolution, to the bit: the kernel that a window gets, and the one for any window. */
#include <math.h>
#include <string.h>

#include "harness.h"

static uint8_t *random_bytes(size_t count) {
    uint8_t *bytes = exact(count);
    const int extreme = one_in(4);
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)(extreme ? 255 * between(0, 1) : between(0, 255));
    return bytes;
}

/* The definition in kernels.h, with the fused product and sum in long double: exact before it is rounded. */
static int expected(const subp_depthwise *d, ptrdiff_t n, int64_t sum, const uint8_t *residual) {
    const subp_requantize *q = d->requantize;
    float real = (float)(int32_t)sum * d->factor[n];
    if (residual)
        real = (float)((long double)(*residual - q->residual_zero) * q->residual_factor + (long double)real);
    const long stored = (long)rint((double)real) + q->zero;
    return (int)(stored < q->low ? q->low : stored > q->high ? q->high : stored);
}

/* A plane, and that nothing was written in the `gap` behind it. */
static void check_plane(const subp_depthwise *d, ptrdiff_t n, ptrdiff_t gap, const uint8_t *residual) {
    const subp_window *w = d->window;
    const uint8_t *in = (const uint8_t *)d->in + n * d->in_stride, *out = (const uint8_t *)d->out + d->out_offsets[n];
    const int8_t *values = (const int8_t *)d->values + n * w->kernel_h * w->kernel_w;
    for (ptrdiff_t at = 0; at < w->out_h * w->out_w; at++) {
        int64_t sum = d->start[n];
        for (ptrdiff_t i = 0; i < w->kernel_h; i++)
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                ptrdiff_t y = at / w->out_w * w->stride_h + i * w->dilation_h - w->pad_top;
                ptrdiff_t x = at % w->out_w * w->stride_w + j * w->dilation_w - w->pad_left;
                const int inside = y >= 0 && y < w->height && x >= 0 && x < w->width;
                sum += values[i * w->kernel_w + j] * (inside ? in[y * w->width + x] : *(const uint8_t *)d->padding);
            }
        const int want = expected(d, n, sum, residual ? residual + d->out_offsets[n] + at : NULL);
        if (out[at] != want) fail("output %td of plane %td is %d; expected %d", at, n, out[at], want);
    }
    for (ptrdiff_t at = w->out_h * w->out_w; at < w->out_h * w->out_w + gap; at++)
        if (out[at] != (d->residual == d->out ? residual[d->out_offsets[n] + at] : 99))
            fail("byte %td, behind plane %td, was written: %d", at, n, out[at]);
}

void check_int8_depthwise(int set) {
    const subp_window w = random_depthwise_window();
    const subp_row *kernel = choose_window(set, SUBP_DTYPE_uint8, &w);
    for (int i = 0; i < subp_row_count && one_in(3); i++)
        if (subp_row_table[i].op == SUBP_OP_depthwise && subp_row_table[i].set == (enum subp_set)set &&
            subp_row_table[i].dtype == SUBP_DTYPE_uint8 && !subp_row_table[i].size)
            kernel = &subp_row_table[i];
    const int has_residual = one_in(2), in_place = has_residual && one_in(3);
    const ptrdiff_t count = one_in(2) ? 1 : between(2, 20);
    const ptrdiff_t in_stride = w.height * w.width + (one_in(2) ? between(0, 40) : 0);
    const ptrdiff_t out_stride = w.out_h * w.out_w + (one_in(2) ? between(0, 40) : 0);
    subp_requantize q = {(int32_t)between(0, 255), 0, 255, (int32_t)between(0, 255), 0.7f + normal_like() / 8};
    if (one_in(2)) q.low = (int32_t)between(0, 255), q.high = (int32_t)between(q.low, 255);
    describe("set %d %s: planes %td every %td to %td size %tdx%td kernel %tdx%td stride %tdx%td dilation %tdx%td pad "
             "%td,%td out %tdx%td zero %d bounds %d to %d residual %d in place %d",
             set, kernel->name, count, in_stride, out_stride, w.height, w.width, w.kernel_h, w.kernel_w, w.stride_h,
             w.stride_w, w.dilation_h, w.dilation_w, w.pad_top, w.pad_left, w.out_h, w.out_w, q.zero, q.low, q.high,
             has_residual, in_place);
    const size_t outputs = (size_t)((count - 1) * out_stride + w.out_h * w.out_w);
    const size_t weights = (size_t)(count * w.kernel_h * w.kernel_w);
    uint8_t *residual = has_residual ? random_bytes(outputs) : NULL, *out = exact(outputs);
    memset(out, 99, outputs);
    if (in_place) memcpy(out, residual, outputs);
    int8_t *values = exact(weights);
    for (size_t i = 0; i < weights; i++)
        values[i] = (int8_t)(one_in(4) ? (one_in(2) ? 127 : -127) : between(-127, 127));
    uint8_t *padding = exact((size_t)w.width);
    memset(padding, (int)between(0, 255), (size_t)w.width);
    int32_t *start = exact((size_t)count * sizeof(int32_t));
    float *factor = exact_floats((size_t)count, 0);
    for (ptrdiff_t n = 0; n < count; n++) {
        start[n] = (int32_t)between(-20000, 20000);
        factor[n] = one_in(4) ? 0.5f : (float)between(1, 1000) * 1e-5f;
    }
    subp_depthwise call = {
        .window = &w,
        .count = count,
        .in_stride = in_stride,
        .out_offsets = random_places(1, count, out_stride),
        .in = random_bytes((size_t)((count - 1) * in_stride + w.height * w.width)),
        .padding = padding,
        .values = values,
        .residual = in_place ? out : residual,
        .out = out,
        .requantize = &q,
        .start = start,
        .factor = factor,
    };
    kernel->run.depthwise(&call);
    for (ptrdiff_t n = 0; n < count; n++) {
        const int last = call.out_offsets[n] == (count - 1) * out_stride;
        check_plane(&call, n, last ? 0 : out_stride - w.out_h * w.out_w, residual);
    }
}
