/* A whole convolution of uint8 activations with int8 weights, against sums of integers: equal to the bit. */
#include <math.h>
#include <string.h>

#include "convolution.h"

static uint8_t *random_bytes(size_t count) {
    uint8_t *bytes = exact(count);
    const int extreme = one_in(3);
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)(extreme ? 255 * between(0, 1) : between(0, 255));
    return bytes;
}

/* The sum of products of one output, `start` not included. */
static int64_t sum_of(const subp_conv *call, const shape *s, const int8_t *values, const int32_t *indices,
                      const uint8_t *x, ptrdiff_t at) {
    const ptrdiff_t channels = s->groups * s->group_out, plane = s->out[0] * s->out[1];
    const ptrdiff_t image = at / plane / channels, y = at % plane / s->out[1], z = at % s->out[1];
    const ptrdiff_t position = place_at(call->out_offsets, at / plane % channels * plane);
    const ptrdiff_t group = position / s->group_out, within = position % s->group_out;
    const ptrdiff_t row = group * s->rows_per_group + within / s->block;
    int64_t sum = 0;
    for (ptrdiff_t k = 0; k < call->kept; k++)
        for (ptrdiff_t i = 0; i < s->kernel[0]; i++)
            for (ptrdiff_t j = 0; j < s->kernel[1]; j++) {
                const ptrdiff_t from_y = y * s->stride[0] + i * s->dilation[0] - s->pad[0][0];
                const ptrdiff_t from_x = z * s->stride[1] + j * s->dilation[1] - s->pad[1][0];
                const ptrdiff_t input = (image * s->groups + group) * s->group_in + indices[row * call->kept + k];
                const ptrdiff_t term = (row * call->kept + k) * call->taps + i * s->kernel[1] + j;
                const int outside = from_y < 0 || from_y >= s->size[0] || from_x < 0 || from_x >= s->size[1];
                const int64_t padding = (int64_t)call->padding;
                const int64_t stored = outside ? padding : x[(input * s->size[0] + from_y) * s->size[1] + from_x];
                sum += stored * values[term * s->block + within % s->block];
            }
    return sum;
}

static void check_outputs(const subp_conv *call, const shape *s, const int8_t *values, const int32_t *indices,
                          const int32_t *start, const subp_conv_arrays *arrays) {
    const subp_requantize *q = call->requantize;
    const ptrdiff_t channels = s->groups * s->group_out, plane = s->out[0] * s->out[1];
    const uint8_t *residual = arrays->residual;
    for (ptrdiff_t at = 0; at < s->batch * channels * plane; at++) {
        const ptrdiff_t position = place_at(call->out_offsets, at / plane % channels * plane);
        float want = (float)(int32_t)(start[position] + sum_of(call, s, values, indices, arrays->x, at));
        want *= call->factor[position];
        if (!call->to_float) {
            if (residual) want = fmaf((float)(residual[at] - q->residual_zero), q->residual_factor, want);
            const int32_t whole = (int32_t)lrintf(want) + q->zero;
            want = (float)(whole < q->low ? q->low : whole > q->high ? q->high : whole);
        }
        const float got = (float)element(call->to_float ? SUBP_DTYPE_float32 : SUBP_DTYPE_uint8, arrays->out, at);
        if (got != want) fail("output %td is %.9g; expected %.9g", at, (double)got, (double)want);
    }
}

void check_int8(int set) {
    const shape s = random_shape();
    const subp_row *kernels[MAX_KERNELS + 8], *halve = choose_of(set, SUBP_OP_halve, SUBP_DTYPE_uint8);
    const subp_requantize requantize = {
        .zero = (int32_t)between(0, 255), .low = one_in(2) ? 0 : (int32_t)between(0, 128),
        .high = one_in(2) ? 255 : (int32_t)between(128, 255), .residual_zero = (int32_t)between(0, 255),
        .residual_factor = 0.37f,
    };
    subp_conv call = {
        .in_channels = s.groups * s.group_in, .height = s.size[0], .width = s.size[1],
        .out_channels = s.groups * s.group_out, .out_h = s.out[0], .out_w = s.out[1],
        .groups = s.groups, .rows = s.groups * s.rows_per_group, .block = s.block,
        .kept = one_in(3) ? s.group_in : one_in(3) ? 1 : between(1, s.group_in),
        .taps = (int32_t)(s.kernel[0] * s.kernel[1]), .element = 1, .weight_element = 1, .to_float = one_in(4),
        .padding = (uint64_t)between(0, 255),
        .halve = halve ? halve->run.halve : NULL, .kernels = kernels, .requantize = &requantize,
        .interleave = choose_of(set, SUBP_OP_interleave, SUBP_DTYPE_uint8)->run.interleave,
        .pad_top = s.pad[0][0], .pad_left = s.pad[1][0], .stride_h = s.stride[0], .stride_w = s.stride[1],
    };
    for (ptrdiff_t n = 0, k = 0; n < s.block; n += kernels[k++]->channels)
        kernels[k] = choose_tile(set, SUBP_DTYPE_uint8, s.block - n);
    call.out_element = call.to_float ? 4 : 1;
    plan_words(&call, &s);
    const subp_conv_parts parts = subp_conv_divide(&call, between(1, 20));
    const int has_residual = !call.to_float && one_in(2);
    describe("set %d int8 convolution by %s: batch %td groups %td in %td out %td block %td kept %td size %tdx%td "
             "kernel %tdx%td stride %tdx%td dilation %tdx%td pad %td,%td %td,%td band %td tile_pixels %td "
             "run_pixels %td columns %td shared %d residual %d to_float %d",
             set, kernels[0]->name, s.batch, s.groups, s.group_in, s.group_out, s.block, call.kept, s.size[0],
             s.size[1], s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.dilation[0], s.dilation[1],
             s.pad[0][0], s.pad[0][1], s.pad[1][0], s.pad[1][1], call.band, call.tile_pixels, call.run_pixels,
             call.columns, call.shared, has_residual, call.to_float);

    const size_t outputs = (size_t)(s.batch * call.out_channels * call.out_h * call.out_w);
    const int32_t *indices = choose_word_channels(&call);
    const size_t weights = (size_t)(call.rows * call.kept * call.taps * call.block);
    int8_t *values = exact(weights);
    const int extreme = one_in(3);
    for (size_t i = 0; i < weights; i++) values[i] = (int8_t)(extreme ? 127 - 254 * between(0, 1) : between(-127, 127));
    call.values = pack_words(&call, values, sizeof(int8_t));
    const size_t channels = (size_t)call.out_channels;
    int32_t *start = exact(sizeof(int32_t) * channels), *moved = exact(sizeof(int32_t) * channels);
    float *factor = exact(sizeof(float) * channels);
    for (ptrdiff_t o = 0; o < call.out_channels; o++) {
        int64_t sum = 0;
        const ptrdiff_t row = o / s.group_out * s.rows_per_group + o % s.group_out / s.block;
        for (ptrdiff_t term = 0; term < call.kept * call.taps; term++)
            sum += values[(row * call.kept * call.taps + term) * s.block + o % s.group_out % s.block];
        start[o] = (int32_t)between(-100000, 100000);
        moved[o] = start[o] + (strcmp(kernels[0]->packing, "signed_quads") ? 0 : (int32_t)(128 * sum));
        factor[o] = (float)between(1, 1000) * 1e-5f;
    }
    call.start = moved;
    call.out_offsets = random_places(s.groups, s.group_out, call.out_h * call.out_w);
    call.factor = factor;
    const enum subp_dtype of_out = call.to_float ? SUBP_DTYPE_float32 : SUBP_DTYPE_uint8;
    subp_conv_arrays arrays = {
        .x = random_bytes((size_t)(s.batch * call.in_channels * call.height * call.width)),
        .residual = has_residual ? random_bytes(outputs) : NULL,
        .out = exact_elements(of_out, outputs, 77),
    };
    run_words(&call, &arrays, s.batch, NULL);
    check_outputs(&call, &s, values, indices, start, &arrays);
    const void *once = arrays.out;
    arrays.out = exact_elements(of_out, outputs, 78);
    run_words(&call, &arrays, s.batch, &parts);
    if (memcmp(once, arrays.out, outputs * element_size(of_out))) fail("parts in another order gave other bits");
}
