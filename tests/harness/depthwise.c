/* Planes of a depthwise convolution: the kernel that a window gets, and the one for any window. */
#include <math.h>
#include <string.h>

#include "harness.h"

subp_window random_depthwise_window(void) {
    const int usual = !one_in(3); /* square and not dilated, as the kernels for one window want it */
    const ptrdiff_t size = 3 + 2 * between(0, 2), stride = between(1, 2);
    ptrdiff_t kernel[2], step[2], dilation[2], pad[2], in[2], out[2];
    for (int d = 0; d < 2; d++) {
        kernel[d] = usual ? size : between(1, 8);
        step[d] = usual ? stride : between(1, 3);
        dilation[d] = usual ? 1 : between(1, 3);
        ptrdiff_t reach = (kernel[d] - 1) * dilation[d], after = one_in(2) ? reach / 2 : between(0, reach + 3);
        pad[d] = one_in(2) ? reach / 2 : between(0, reach + 3);
        ptrdiff_t least = reach + 1 - pad[d] - after;
        in[d] = (least > 1 ? least : 1) + between(0, one_in(4) ? 120 : 20);
        out[d] = (in[d] + pad[d] + after - reach - 1) / step[d] + 1;
    }
    return (subp_window){in[0],   in[1],   out[0],      out[1],      kernel[0], kernel[1],
                         step[0], step[1], dilation[0], dilation[1], pad[0],    pad[1]};
}

/* A plane, and that nothing was written in the `gap` behind it. */
static void check_plane(const subp_depthwise *d, ptrdiff_t n, ptrdiff_t gap, const void *residual,
                        const subp_row *kernel) {
    const subp_window *w = d->window;
    const enum subp_dtype of_out = d->to_float ? SUBP_DTYPE_float32 : kernel->out_dtype;
    const double rounding = of_out == SUBP_DTYPE_float32 ? 0 : 1.0 / 256;
    const ptrdiff_t first = n * w->kernel_h * w->kernel_w;
    for (ptrdiff_t at = 0; at < w->out_h * w->out_w; at++) {
        sum s = {0, 0};
        for (ptrdiff_t i = 0; i < w->kernel_h; i++)
            for (ptrdiff_t j = 0; j < w->kernel_w; j++) {
                ptrdiff_t y = at / w->out_w * w->stride_h + i * w->dilation_h - w->pad_top;
                ptrdiff_t x = at % w->out_w * w->stride_w + j * w->dilation_w - w->pad_left;
                if (y >= 0 && y < w->height && x >= 0 && x < w->width)
                    add_product(&s, element(kernel->weight_dtype, d->values, first + i * w->kernel_w + j),
                                element(kernel->dtype, d->in, n * d->in_stride + y * w->width + x));
            }
        if (d->bias) add_term(&s, d->bias[n]);
        const ptrdiff_t to = d->out_offsets[n] + at;
        if (residual) add_term(&s, element(kernel->out_dtype, residual, to));
        check_rounded("output", to, element(of_out, d->out, to), s, w->kernel_h * w->kernel_w, d->activation,
                      kernel->tolerance, rounding);
    }
    const void *canary = exact_elements(of_out, 1, CANARY);
    for (ptrdiff_t at = 0; at < gap; at++) {
        const ptrdiff_t to = d->out_offsets[n] + w->out_h * w->out_w + at;
        const int kept = residual && d->residual == d->out;
        if (element(of_out, d->out, to) != element(of_out, kept ? residual : canary, kept ? to : 0))
            fail("output %td, behind plane %td, was written: %g", at, n, element(of_out, d->out, to));
    }
}

static void check_planes(int set, enum subp_dtype dtype) {
    const subp_window w = random_depthwise_window();
    const subp_row *kernel = choose_window(set, dtype, &w);
    for (int i = 0; i < subp_row_count && one_in(3); i++)
        if (subp_row_table[i].op == SUBP_OP_depthwise && subp_row_table[i].set == (enum subp_set)set &&
            subp_row_table[i].dtype == dtype && !subp_row_table[i].size)
            kernel = &subp_row_table[i];
    const int has_bias = !one_in(3), to_float = dtype != SUBP_DTYPE_float32 && one_in(3);
    const int has_residual = !to_float && one_in(2), in_place = has_residual && one_in(3);
    const int activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1);
    const ptrdiff_t count = one_in(2) ? 1 : between(2, 5);
    const ptrdiff_t in_stride = w.height * w.width + (one_in(2) ? between(0, 40) : 0);
    const ptrdiff_t out_stride = w.out_h * w.out_w + (one_in(2) ? between(0, 40) : 0);
    describe("set %d %s: planes %td every %td to %td size %tdx%td kernel %tdx%td stride %tdx%td dilation %tdx%td pad "
             "%td,%td out %tdx%td activation %s bias %d residual %d in place %d to_float %d",
             set, kernel->name, count, in_stride, out_stride, w.height, w.width, w.kernel_h, w.kernel_w, w.stride_h,
             w.stride_w, w.dilation_h, w.dilation_w, w.pad_top, w.pad_left, w.out_h, w.out_w,
             subp_activation_names[activation], has_bias, has_residual, in_place, to_float);
    const size_t outputs = (size_t)((count - 1) * out_stride + w.out_h * w.out_w);
    const void *residual = has_residual ? random_elements(dtype, outputs) : NULL;
    void *out = exact_elements(to_float ? SUBP_DTYPE_float32 : dtype, outputs, CANARY);
    if (in_place) memcpy(out, residual, outputs * element_size(dtype));
    subp_depthwise call = {
        .window = &w,
        .count = count,
        .in_stride = in_stride,
        .out_offsets = random_places(1, count, out_stride),
        .in = random_elements(dtype, (size_t)((count - 1) * in_stride + w.height * w.width)),
        .padding = exact_elements(dtype, (size_t)w.width, 0),
        .values = random_elements(dtype, (size_t)(count * w.kernel_h * w.kernel_w)),
        .bias = has_bias ? random_floats((size_t)count) : NULL,
        .residual = in_place ? out : residual,
        .out = out,
        .activation = activation,
        .to_float = to_float,
    };
    kernel->run.depthwise(&call);
    for (ptrdiff_t n = 0; n < count; n++) {
        const int last = call.out_offsets[n] == (count - 1) * out_stride;
        check_plane(&call, n, last ? 0 : out_stride - w.out_h * w.out_w, residual, kernel);
    }
}

void check_depthwise(int set) { check_planes(set, SUBP_DTYPE_float32); }

void check_bfloat16_depthwise(int set) { check_planes(set, SUBP_DTYPE_bfloat16); }
