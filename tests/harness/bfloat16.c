/* A whole convolution of bfloat16, against sums in double precision of the same numbers. */
#include <math.h>
#include <string.h>

#include "convolution.h"

static const enum subp_dtype dtype = SUBP_DTYPE_bfloat16;

void check_bfloat16(int set) {
    const shape s = random_shape();
    const subp_row *kernels[MAX_KERNELS + 8];
    subp_conv call = {
        .in_channels = s.groups * s.group_in, .height = s.size[0], .width = s.size[1],
        .out_channels = s.groups * s.group_out, .out_h = s.out[0], .out_w = s.out[1],
        .groups = s.groups, .rows = s.groups * s.rows_per_group, .block = s.block,
        .kept = one_in(3) ? s.group_in : one_in(3) ? 1 : between(1, s.group_in),
        .taps = (int32_t)(s.kernel[0] * s.kernel[1]), .element = 2, .weight_element = 2, .to_float = one_in(3),
        .activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1),
        .halve = choose_of(set, SUBP_OP_halve, dtype)->run.halve, .kernels = kernels,
        .interleave = choose_of(set, SUBP_OP_interleave, dtype)->run.interleave,
        .pad_top = s.pad[0][0], .pad_left = s.pad[1][0], .stride_h = s.stride[0], .stride_w = s.stride[1],
    };
    for (ptrdiff_t n = 0, k = 0; n < s.block; n += kernels[k++]->channels)
        kernels[k] = choose_tile(set, dtype, s.block - n);
    call.state = subp_thread_state(kernels[0]);
    call.out_element = call.to_float ? 4 : 2;
    plan_words(&call, &s);
    const subp_conv_parts parts = subp_conv_divide(&call, between(1, 20));
    const int has_bias = !one_in(3), has_residual = !call.to_float && one_in(2);
    describe("set %d bfloat16 convolution by %s: batch %td groups %td in %td out %td block %td kept %td size %tdx%td "
             "kernel %tdx%td stride %tdx%td dilation %tdx%td pad %td,%td %td,%td band %td tile_pixels %td "
             "run_pixels %td columns %td shared %d activation %s bias %d residual %d to_float %d",
             set, kernels[0]->name, s.batch, s.groups, s.group_in, s.group_out, s.block, call.kept, s.size[0],
             s.size[1], s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.dilation[0], s.dilation[1],
             s.pad[0][0], s.pad[0][1], s.pad[1][0], s.pad[1][1], call.band, call.tile_pixels, call.run_pixels,
             call.columns, call.shared, subp_activation_names[call.activation], has_bias, has_residual, call.to_float);

    const enum subp_dtype of_out = call.to_float ? SUBP_DTYPE_float32 : dtype;
    const size_t inputs = (size_t)(s.batch * call.in_channels * call.height * call.width);
    const size_t outputs = (size_t)(s.batch * call.out_channels * call.out_h * call.out_w);
    const size_t weights = (size_t)(call.rows * call.kept * call.taps * call.block);
    const int32_t *indices = choose_word_channels(&call);
    const void *values = random_elements(dtype, weights);
    call.values = pack_words(&call, values, sizeof(uint16_t));
    call.bias = has_bias ? random_floats((size_t)call.out_channels) : NULL;
    call.out_offsets = random_places(s.groups, s.group_out, call.out_h * call.out_w);
    subp_conv_arrays arrays = {
        .x = random_elements(dtype, inputs),
        .residual = has_residual ? random_elements(dtype, outputs) : NULL,
        .out = exact_elements(of_out, outputs, CANARY),
    };
    run_words(&call, &arrays, s.batch, NULL);
    check_convolved(&call, &s, as_floats(dtype, values, weights), indices, as_floats(dtype, arrays.x, inputs),
                    has_residual ? as_floats(dtype, arrays.residual, outputs) : NULL,
                    as_floats(of_out, arrays.out, outputs), call.to_float ? 0 : 1.0 / 256);
    const void *once = arrays.out;
    arrays.out = exact_elements(of_out, outputs, CANARY);
    run_words(&call, &arrays, s.batch, &parts);
    if (memcmp(once, arrays.out, outputs * element_size(of_out))) fail("parts in another order gave other bits");
}
