/* A convolution and a depthwise one fused, against one after the other. All numbers are small and whole, so that
 * no sum is rounded and the results must be the same bits. */
#include <math.h>
#include <string.h>

#include "fused_depthwise.h"
#include "convolution.h"

static float *whole_floats(size_t count) {
    float *numbers = exact_floats(count, 0.0f);
    for (size_t i = 0; i < count; i++) numbers[i] = (float)between(-3, 3);
    return numbers;
}

static int exact_activation(void) {
    static const int activations[] = {SUBP_ACT_none, SUBP_ACT_relu, SUBP_ACT_relu6};
    return activations[between(0, 2)];
}

static subp_window random_window(const ptrdiff_t size[2]) {
    const int usual = !one_in(3);
    ptrdiff_t kernel[2], stride[2], dilation[2], pad[2], out[2], side = 3 + 2 * between(0, 2), step = between(1, 2);
    for (int d = 0; d < 2; d++) {
        kernel[d] = usual ? side : between(1, 6);
        stride[d] = usual ? step : between(1, 3);
        dilation[d] = usual ? 1 : between(1, 3);
        ptrdiff_t reach = (kernel[d] - 1) * dilation[d], least = reach + 1 - size[d];
        pad[d] = one_in(2) ? reach / 2 : between(0, reach + 2);
        ptrdiff_t after = one_in(2) ? reach / 2 : between(0, reach + 2);
        if (pad[d] + after < least) after = least - pad[d];
        out[d] = (size[d] + pad[d] + after - reach - 1) / stride[d] + 1;
    }
    return (subp_window){size[0],   size[1],   out[0],      out[1],      kernel[0], kernel[1],
                         stride[0], stride[1], dilation[0], dilation[1], pad[0],    pad[1]};
}

/* One after the other, over `between` as a whole. */
static void run_apart(const subp_fused_depthwise *call, const subp_conv_arrays *arrays, ptrdiff_t batch,
                      float *planes) {
    const subp_conv *first = &call->first;
    const ptrdiff_t channels = first->out_channels, plane = first->out_h * first->out_w;
    const ptrdiff_t taps = call->window.kernel_h * call->window.kernel_w;
    float *between = exact_floats((size_t)(batch * channels * plane), CANARY);
    const subp_conv_arrays to = {.x = arrays->x, .out = between};
    for (ptrdiff_t pass = 0; pass < subp_conv_passes(first) * batch; pass++)
        subp_conv_pass(first, &to, pass, planes, NULL);
    for (ptrdiff_t n = 0; n < batch * channels; n++) {
        const ptrdiff_t image = n / channels, position = n % channels;
        const ptrdiff_t at = image * channels * call->window.out_h * call->window.out_w;
        call->kernel->run.depthwise(&(subp_depthwise){
            .window = &call->window,
            .count = 1,
            .out_offsets = call->out_offsets + position,
            .in = between + image * channels * plane + first->out_offsets[position],
            .padding = call->padding,
            .values = (const float *)call->values + position * taps,
            .bias = call->bias ? call->bias + position : NULL,
            .residual = arrays->residual ? (const float *)arrays->residual + at : NULL,
            .out = (float *)arrays->out + at,
            .activation = call->activation,
        });
    }
}

/* As threads that share each pass do: fills and parts in any order. */
static void run_parts(const subp_fused_depthwise *call, const subp_conv_arrays *arrays, ptrdiff_t batch, float *planes,
                      float *between) {
    for (ptrdiff_t pass = subp_fused_depthwise_passes(call) * batch - 1; pass >= 0; pass--) {
        for (ptrdiff_t channel = subp_conv_fills(&call->first) - 1; channel >= 0; channel--)
            subp_fused_depthwise_fill(call, arrays, pass, channel, planes);
        for (ptrdiff_t part = subp_fused_depthwise_parts(call) - 1; part >= 0; part--)
            subp_fused_depthwise_part(call, arrays, pass, part, planes, NULL, between);
    }
}

void check_fused_depthwise(int set) {
    const shape s = random_shape();
    const subp_window w = random_window(s.out);
    const subp_row *kernels[MAX_KERNELS + 8];
    const ptrdiff_t band = one_in(2) ? w.out_h : between(1, w.out_h);
    const ptrdiff_t seen = (band - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1;
    const ptrdiff_t rows = seen < w.height ? seen : w.height, pitch = rows * w.width + (one_in(2) ? 0 : between(0, 33));
    subp_fused_depthwise call = {
        .first = {
            .in_channels = s.groups * s.group_in, .height = s.size[0], .width = s.size[1],
            .out_channels = s.groups * s.group_out, .out_h = s.out[0], .out_w = s.out[1],
            .groups = s.groups, .rows = s.groups * s.rows_per_group, .block = s.block, .band = rows,
            .kept = one_in(3) ? s.group_in : between(1, s.group_in), .taps = (int32_t)(s.kernel[0] * s.kernel[1]),
            .columns = 1, .element = 4, .weight_element = 4, .out_element = 4,
            .activation = exact_activation(), .halve = choose(set, SUBP_OP_halve, 0)->run.halve, .kernels = kernels,
            .pad_top = s.pad[0][0], .pad_left = s.pad[1][0], .stride_h = s.stride[0], .stride_w = s.stride[1],
            .pixels_outside = one_in(2),
        },
        .window = w, .kernel = choose_window(set, SUBP_DTYPE_float32, &w),
        .padding = exact_floats((size_t)w.width, 0.0f),
        .activation = exact_activation(), .band = band, .step = one_in(2) ? 1 : between(1, 4), .pitch = pitch,
    };
    subp_conv *first = &call.first;
    for (ptrdiff_t n = 0, k = 0; n < s.block; n += kernels[k++]->channels)
        kernels[k] = choose(set, SUBP_OP_conv2d, s.block - n);
    first->packed = first->kept;
    plan_planes(first, &s);
    first->tile_pixels = between(1, one_in(2) ? 60 : rows * w.width);
    const int has_bias = !one_in(3), has_residual = one_in(2);
    describe("set %d fused: batch %td groups %td in %td out %td block %td kept %td size %tdx%td kernel %tdx%td stride "
             "%tdx%td pad %td,%td between %tdx%td tile %td, then %s kernel %tdx%td stride %tdx%td dilation %tdx%td pad "
             "%td,%td out %tdx%td band %td step %td pitch %td activations %s, %s bias %d residual %d",
             set, s.batch, s.groups, s.group_in, s.group_out, s.block, first->kept, s.size[0], s.size[1], s.kernel[0],
             s.kernel[1], s.stride[0], s.stride[1], s.pad[0][0], s.pad[1][0], w.height, w.width, first->tile_pixels,
             call.kernel->name, w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w, w.pad_top,
             w.pad_left, w.out_h, w.out_w, band, call.step, pitch, subp_activation_names[first->activation],
             subp_activation_names[call.activation], has_bias, has_residual);

    const size_t channels = (size_t)first->out_channels;
    const size_t outputs = (size_t)s.batch * channels * (size_t)(w.out_h * w.out_w);
    ptrdiff_t *places = exact(channels * sizeof(ptrdiff_t));
    first->out_offsets = random_places(s.groups, s.group_out, first->out_h * first->out_w);
    for (size_t c = 0; c < channels; c++) places[c] = first->out_offsets[c] / (w.height * w.width) * w.out_h * w.out_w;
    call.out_offsets = places;
    call.between_offsets = multiples(call.step * s.block, pitch);
    choose_channels(first);
    first->values = pack(first, whole_floats((size_t)(first->rows * first->kept * first->taps * first->block)));
    first->bias = has_bias ? whole_floats(channels) : NULL;
    call.values = whole_floats(channels * (size_t)(w.kernel_h * w.kernel_w));
    call.bias = one_in(2) ? whole_floats(channels) : NULL;
    float *want = exact_floats(outputs, CANARY), *out = exact_floats(outputs, CANARY);
    float *again = exact_floats(outputs, CANARY), *planes = exact_planes(first);
    float *between = exact_floats((size_t)((call.step * s.block - 1) * pitch + rows * w.width), NAN);
    subp_conv_arrays arrays = {
        .x = whole_floats((size_t)(s.batch * first->in_channels * first->height * first->width)),
        .residual = has_residual ? whole_floats(outputs) : NULL,
        .out = want,
    };
    run_apart(&call, &arrays, s.batch, planes);
    arrays.out = out;
    for (ptrdiff_t pass = 0; pass < subp_fused_depthwise_passes(&call) * s.batch; pass++)
        subp_fused_depthwise_pass(&call, &arrays, pass, planes, NULL, between);
    for (size_t i = 0; i < outputs; i++)
        if (out[i] != want[i]) fail("output %zu is %g; one after the other gives %g", i, out[i], want[i]);
    arrays.out = again;
    run_parts(&call, &arrays, s.batch, planes, between);
    if (memcmp(out, again, outputs * sizeof(float))) fail("parts in another order gave other bits");
}
