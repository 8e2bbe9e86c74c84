/* A whole convolution: planes, bands, parts in any order, with cuts that are legal but arbitrary. */
#include <math.h>
#include <string.h>

#include "convolution.h"

shape random_shape(void) {
    static const ptrdiff_t kernels[] = {1, 1, 3, 3, 5, 7}, blocks[] = {1, 2, 4, 8, 16, 32, 64};
    shape s = {.batch = between(1, 2), .groups = one_in(3) ? between(2, 4) : 1};
    s.group_in = between(1, one_in(4) ? 20 : 9);
    s.group_out = between(1, one_in(4) ? 70 : 20);
    s.block = one_in(4) ? between(1, 70) : blocks[between(0, 6)];
    s.rows_per_group = (s.group_out + s.block - 1) / s.block;
    const ptrdiff_t usual = kernels[between(0, 5)];
    const int in_place = one_in(3); /* 1x1 without padding or stride reads the input itself */
    for (int d = 0; d < 2; d++) {
        s.kernel[d] = in_place ? 1 : one_in(4) ? between(1, 7) : usual;
        s.stride[d] = in_place ? 1 : one_in(2) ? 1 : between(1, 3);
        s.dilation[d] = one_in(4) ? between(1, 3) : 1;
        ptrdiff_t reach = (s.kernel[d] - 1) * s.dilation[d];
        for (int side = 0; side < 2; side++)
            s.pad[d][side] = in_place ? 0 : one_in(2) ? reach / 2 : between(0, reach + 1);
        ptrdiff_t least = reach + 1 - s.pad[d][0] - s.pad[d][1];
        s.size[d] = (least > 1 ? least : 1) + between(0, one_in(5) ? 40 : 15);
        s.out[d] = (s.size[d] + s.pad[d][0] + s.pad[d][1] - reach - 1) / s.stride[d] + 1;
    }
    return s;
}

void plan_planes(subp_conv *call, const shape *s) {
    ptrdiff_t *rows = exact(sizeof(ptrdiff_t) * MAX_TAPS), *columns = exact(sizeof(ptrdiff_t) * MAX_TAPS);
    ptrdiff_t *taps = exact(sizeof(ptrdiff_t) * (size_t)call->taps), copy[MAX_TAPS], down[MAX_TAPS], halo = 0;
    call->copies = 0;
    call->tap_offsets = taps;
    if (call->taps == 1 && s->stride[0] * s->stride[1] == 1 && !s->pad[0][0] && !s->pad[0][1] && !s->pad[1][0] &&
        !s->pad[1][1]) {
        call->channel_stride = call->height * call->width;
        call->plane_rows = call->band;
        taps[0] = 0;
        return;
    }
    for (ptrdiff_t n = 0; n < call->taps; n++) { /* column by column, as the copies are to be */
        const ptrdiff_t t = n % s->kernel[0] * s->kernel[1] + n / s->kernel[0];
        ptrdiff_t row = t / s->kernel[1] * s->dilation[0], column = t % s->kernel[1] * s->dilation[1], c = 0;
        while (c < call->copies && (rows[c] != row % s->stride[0] || columns[c] != column)) c++;
        if (c == call->copies) {
            rows[c] = row % s->stride[0];
            columns[c] = column;
            call->copies++;
        }
        copy[t] = c;
        down[t] = row / s->stride[0];
        halo = down[t] > halo ? down[t] : halo;
    }
    call->plane_rows = call->band + halo + (one_in(4) ? 1 : 0);
    for (ptrdiff_t t = 0; t < call->taps; t++) taps[t] = (copy[t] * call->plane_rows + down[t]) * call->out_w;
    call->copy_rows = rows;
    call->copy_cols = columns;
    call->channel_stride = call->copies * call->plane_rows * call->out_w + (one_in(2) ? 0 : between(0, 33));
}

const float *pack(const subp_conv *call, const float *values) {
    const ptrdiff_t terms = call->kept * call->taps;
    float *packed = exact(sizeof(float) * (size_t)(call->rows * terms * call->block)), *to = packed;
    for (ptrdiff_t row = 0; row < call->rows; row++)
        for (ptrdiff_t first = 0, k = 0; first < call->block; first += call->kernels[k++]->channels)
            for (ptrdiff_t term = 0; term < terms; term++)
                for (ptrdiff_t c = 0; c < call->kernels[k]->channels; c++)
                    *to++ = values[(row * terms + term) * call->block + first + c];
    return packed;
}

const int32_t *choose_channels(subp_conv *call) {
    const ptrdiff_t group_in = call->in_channels / call->groups, count = call->rows * call->kept;
    int32_t *indices = exact(sizeof(int32_t) * (size_t)count), *offsets = exact(sizeof(int32_t) * (size_t)count);
    for (ptrdiff_t row = 0, to = 0; row < call->rows; row++)
        for (ptrdiff_t i = 0, left = call->kept; i < group_in; i++)
            if (between(1, group_in - i) <= left) left--, indices[to++] = (int32_t)i;
    for (ptrdiff_t i = 0; i < count; i++) offsets[i] = indices[i] * (int32_t)call->channel_stride;
    call->channel_offsets = offsets;
    return indices;
}

void check_convolved(const subp_conv *call, const shape *s, const float *values, const int32_t *indices, const float *x,
                     const float *residual, const float *out, double rounding) {
    const ptrdiff_t channels = s->groups * s->group_out, plane = s->out[0] * s->out[1];
    for (ptrdiff_t at = 0; at < s->batch * channels * plane; at++) {
        const ptrdiff_t image = at / plane / channels, channel = at / plane % channels, y = at % plane / s->out[1];
        const ptrdiff_t position = place_at(call->out_offsets, channel * plane);
        const ptrdiff_t z = at % s->out[1], group = position / s->group_out, within = position % s->group_out;
        const ptrdiff_t row = group * s->rows_per_group + within / s->block;
        sum total = {0, 0};
        for (ptrdiff_t k = 0; k < call->kept; k++)
            for (ptrdiff_t i = 0; i < s->kernel[0]; i++)
                for (ptrdiff_t j = 0; j < s->kernel[1]; j++) {
                    ptrdiff_t from_y = y * s->stride[0] + i * s->dilation[0] - s->pad[0][0];
                    ptrdiff_t from_x = z * s->stride[1] + j * s->dilation[1] - s->pad[1][0];
                    if (from_y < 0 || from_y >= s->size[0] || from_x < 0 || from_x >= s->size[1]) continue;
                    const ptrdiff_t kept = row * call->kept + k, tap = i * s->kernel[1] + j;
                    ptrdiff_t input = (image * s->groups + group) * s->group_in + indices[kept];
                    add_product(&total, values[(kept * call->taps + tap) * s->block + within % s->block],
                                x[(input * s->size[0] + from_y) * s->size[1] + from_x]);
                }
        if (call->bias) add_term(&total, call->bias[position]);
        if (residual) add_term(&total, residual[at]);
        check_rounded("output", at, out[at], total, call->kept * call->taps, call->activation,
                      call->kernels[0]->tolerance, rounding);
    }
}

float *exact_planes(const subp_conv *call) {
    if (!call->copies) return NULL;
    const ptrdiff_t last = call->copies * call->plane_rows * call->out_w;
    return exact_floats((size_t)((subp_conv_fills(call) - 1) * call->channel_stride + last), NAN);
}

static void run_passes(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t batch, float *planes) {
    for (ptrdiff_t pass = 0; pass < subp_conv_passes(call) * batch; pass++)
        subp_conv_pass(call, arrays, pass, planes, NULL);
}

/* As threads that share each pass do: fills and parts in any order. */
static void run_parts(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t batch,
                      const subp_conv_parts *parts, float *planes) {
    for (ptrdiff_t pass = subp_conv_passes(call) * batch - 1; pass >= 0; pass--) {
        for (ptrdiff_t channel = subp_conv_fills(call) - 1; channel >= 0; channel--)
            subp_conv_fill(call, arrays, pass, channel, planes);
        for (ptrdiff_t part = parts->parts - 1; part >= 0; part--)
            subp_conv_part(call, arrays, pass, parts, part, planes, NULL);
    }
}

void check_convolution(int set) {
    const shape s = random_shape();
    const subp_row *kernels[MAX_KERNELS + 8];
    subp_conv call = {
        .in_channels = s.groups * s.group_in, .height = s.size[0], .width = s.size[1],
        .out_channels = s.groups * s.group_out, .out_h = s.out[0], .out_w = s.out[1],
        .groups = s.groups, .rows = s.groups * s.rows_per_group, .block = s.block,
        .kept = one_in(3) ? s.group_in : one_in(3) ? 1 : between(1, s.group_in),
        .taps = (int32_t)(s.kernel[0] * s.kernel[1]), .columns = 1, .element = 4, .weight_element = 4, .out_element = 4,
        .activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1),
        .halve = choose(set, SUBP_OP_halve, 0)->run.halve, .kernels = kernels,
        .pad_top = s.pad[0][0], .pad_left = s.pad[1][0], .stride_h = s.stride[0], .stride_w = s.stride[1],
    };
    for (ptrdiff_t n = 0, k = 0; n < s.block; n += kernels[k++]->channels)
        kernels[k] = choose(set, SUBP_OP_conv2d, s.block - n);
    call.packed = call.kept;
    call.band = one_in(2) ? call.out_h : between(1, call.out_h);
    plan_planes(&call, &s);
    const ptrdiff_t pixels = call.band * call.out_w;
    call.tile_pixels = between(1, one_in(2) ? 60 : pixels);
    subp_conv_parts parts;
    if (one_in(2)) {
        parts = subp_conv_divide(&call, between(1, 20));
    } else {
        parts.row_step = between(1, call.rows);
        parts.pixel_step = call.tile_pixels * between(1, (pixels + call.tile_pixels - 1) / call.tile_pixels);
        parts.parts = (call.rows + parts.row_step - 1) / parts.row_step;
        parts.parts *= (pixels + parts.pixel_step - 1) / parts.pixel_step;
    }
    call.pixels_outside = one_in(2);
    const int has_bias = !one_in(3), has_residual = one_in(2);
    describe("set %d convolution: batch %td groups %td in %td out %td block %td kept %td size %tdx%td kernel %tdx%td "
             "stride %tdx%td dilation %tdx%td pad %td,%td %td,%td band %td plane_rows %td channel_stride %td "
             "row_step %td pixel_step %td tile_pixels %td outside %d activation %s bias %d residual %d",
             set, s.batch, s.groups, s.group_in, s.group_out, s.block, call.kept, s.size[0], s.size[1], s.kernel[0],
             s.kernel[1], s.stride[0], s.stride[1], s.dilation[0], s.dilation[1], s.pad[0][0], s.pad[0][1], s.pad[1][0],
             s.pad[1][1], call.band, call.plane_rows, call.channel_stride, parts.row_step, parts.pixel_step,
             call.tile_pixels, call.pixels_outside, subp_activation_names[call.activation], has_bias, has_residual);

    const size_t inputs = (size_t)(s.batch * call.in_channels * call.height * call.width);
    const size_t outputs = (size_t)(s.batch * call.out_channels * call.out_h * call.out_w);
    const int32_t *indices = choose_channels(&call);
    float *values = random_floats((size_t)(call.rows * call.kept * call.taps * call.block));
    call.values = pack(&call, values);
    call.bias = has_bias ? random_floats((size_t)call.out_channels) : NULL;
    call.out_offsets = random_places(s.groups, s.group_out, call.out_h * call.out_w);
    const float *x = random_floats(inputs), *residual = has_residual ? random_floats(outputs) : NULL;
    float *out = exact_floats(outputs, CANARY), *again = exact_floats(outputs, CANARY), *planes = exact_planes(&call);
    subp_conv_arrays arrays = {.x = x, .residual = residual, .out = out};
    run_passes(&call, &arrays, s.batch, planes);
    check_convolved(&call, &s, values, indices, x, residual, out, 0);
    arrays.out = again;
    run_parts(&call, &arrays, s.batch, &parts, planes);
    if (memcmp(out, again, outputs * sizeof(float))) fail("parts in another order gave other bits");
}
