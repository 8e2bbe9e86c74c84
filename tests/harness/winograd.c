/* A whole convolution after Winograd, of float32 from weights that are transformed here, in double, or of bfloat16 from
 * those that the kernels transform: both sizes of tiles, runs and cuts that are legal but arbitrary, parts in any
 * order. */
#include "winograd.h"

#include <math.h>
#include <string.h>

#include "harness.h"

enum { MAX_KERNELS = 64, MAX_SIDE = 6 };

/* What the additions of the transforms may multiply a rounding error by, at most, beyond that of the plain sum. */
static const double AMPLIFICATION[] = {[2] = 16, [4] = 400};

static const double TRANSFORM_2[][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
static const double TRANSFORM_4[][3] = {
    {1 / 4., 0, 0}, {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
    {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1},
};

static float transformed(const float *values, ptrdiff_t step, ptrdiff_t position, int size) {
    const double(*g)[3] = size == 2 ? TRANSFORM_2 : TRANSFORM_4;
    double total = 0;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            total += g[position / (size + 2)][i] * g[position % (size + 2)][j] * (double)values[(i * 3 + j) * step];
    return (float)total;
}

/* Values of each block row, tile by tile of output channels, from [row][kept][tap][block]. */
static const float *pack(const subp_winograd *call, const float *values, int size) {
    const ptrdiff_t positions = (size + 2) * (size + 2);
    float *packed = exact(sizeof(float) * (size_t)(call->rows * call->kept * positions * call->block)), *to = packed;
    for (ptrdiff_t row = 0; row < call->rows; row++)
        for (ptrdiff_t first = 0, n = 0; first < call->block; first += call->kernels[n++]->channels)
            for (ptrdiff_t position = 0; position < positions; position++)
                for (ptrdiff_t k = 0; k < call->kept; k++)
                    for (ptrdiff_t c = 0; c < call->kernels[n]->channels; c++)
                        *to++ = transformed(values + (row * call->kept + k) * 9 * call->block + first + c, call->block,
                                            position, size);
    return packed;
}

/* What remains of an output after bfloat16 has rounded it. */
static double rounding_of(const subp_winograd *call) {
    return call->outputs->out_dtype == SUBP_DTYPE_float32 ? 0 : 1.0 / 256;
}

static void check_outputs(const subp_winograd *call, ptrdiff_t batch, const float *values, const int32_t *indices,
                          const float *x, const float *residual, const float *out) {
    const subp_tiles *t = &call->tiles;
    const ptrdiff_t size = call->transforms->size, plane = t->out_h * t->out_w, channels = call->out_channels;
    const ptrdiff_t group_out = channels / call->groups, group_in = call->in_channels / call->groups;
    for (ptrdiff_t at = 0; at < batch * channels * plane; at++) {
        const ptrdiff_t image = at / plane / channels, channel = at / plane % channels;
        const ptrdiff_t position = place_at(call->out_offsets, channel * plane), within = position % group_out;
        const ptrdiff_t y = at % plane / t->out_w, z = at % t->out_w;
        const ptrdiff_t row = position / group_out * (call->rows / call->groups) + within / call->block;
        sum total = {0, 0};
        for (ptrdiff_t k = 0; k < call->kept; k++) {
            const ptrdiff_t index = indices[row * call->kept + k];
            const ptrdiff_t input = image * call->in_channels + channel / group_out * group_in + index;
            const float *from = x + input * t->height * t->width;
            const float *w = values + (row * call->kept + k) * 9 * call->block + within % call->block;
            double largest_input = 0, largest_value = 0;
            for (ptrdiff_t i = 0; i < size + 2; i++)
                for (ptrdiff_t j = 0; j < size + 2; j++) {
                    ptrdiff_t from_y = y / size * size + i - t->pad_top, from_x = z / size * size + j - t->pad_left;
                    if (from_y < 0 || from_y >= t->height || from_x < 0 || from_x >= t->width) continue;
                    const float input_value = from[from_y * t->width + from_x];
                    ptrdiff_t tap_y = i - y % size, tap_x = j - z % size;
                    largest_input = fmax(largest_input, fabs((double)input_value));
                    if (tap_y < 0 || tap_y > 2 || tap_x < 0 || tap_x > 2) continue;
                    add_product(&total, w[(tap_y * 3 + tap_x) * call->block], input_value);
                }
            for (ptrdiff_t tap = 0; tap < 9; tap++)
                largest_value = fmax(largest_value, fabs((double)w[tap * call->block]));
            total.size += AMPLIFICATION[size] * largest_input * largest_value;
        }
        if (call->bias) add_term(&total, call->bias[position]);
        if (residual) add_term(&total, residual[at]);
        check_rounded("output", at, out[at], total, call->kept + 40, call->activation, call->transforms->tolerance,
                      rounding_of(call));
    }
}

static void run_passes(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t batch, float *planes,
                       float *sums) {
    for (ptrdiff_t pass = 0; pass < subp_winograd_passes(call) * batch; pass++)
        subp_winograd_pass(call, arrays, pass, planes, sums);
}

/* As threads that share each pass do: fills and parts in any order. */
static void run_parts(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t batch, float *planes,
                      float *sums) {
    for (ptrdiff_t pass = subp_winograd_passes(call) * batch - 1; pass >= 0; pass--) {
        for (ptrdiff_t channel = subp_winograd_fills(call) - 1; channel >= 0; channel--)
            subp_winograd_fill(call, arrays, pass, channel, planes);
        for (ptrdiff_t part = subp_winograd_parts(call) - 1; part >= 0; part--)
            subp_winograd_part(call, arrays, pass, part, planes, sums);
    }
}

void check_winograd(int set) {
    static const ptrdiff_t blocks[] = {1, 2, 4, 8, 16, 32, 64};
    const int size = one_in(2) ? 2 : 4;
    const enum subp_dtype dtype = one_in(2) ? SUBP_DTYPE_bfloat16 : SUBP_DTYPE_float32;
    const subp_row *transforms = choose_winograd(set, SUBP_OP_winograd, dtype, size);
    if (!transforms) return; /* portable C has none */
    const int narrow = dtype == SUBP_DTYPE_bfloat16, to_float = !narrow || one_in(2);
    const ptrdiff_t batch = between(1, 2), groups = one_in(3) ? between(2, 4) : 1;
    const ptrdiff_t group_in = between(1, one_in(4) ? 20 : 9), group_out = between(1, one_in(4) ? 70 : 20);
    const ptrdiff_t block = one_in(4) ? between(1, 70) : blocks[between(0, 6)];
    const ptrdiff_t rows_per_group = (group_out + block - 1) / block;
    const subp_row *kernels[MAX_KERNELS + 8];
    subp_winograd call = {
        .in_channels = groups * group_in, .out_channels = groups * group_out,
        .groups = groups, .rows = groups * rows_per_group, .block = block,
        .kept = one_in(3) ? group_in : between(1, group_in),
        .activation = one_in(2) ? SUBP_ACT_none : (int)between(1, SUBP_ACT_COUNT - 1),
        .kernels = kernels, .transforms = transforms, .element = narrow ? 2 : 4, .weight_element = narrow ? 2 : 4,
        .outputs = choose_winograd(set, SUBP_OP_winograd, to_float ? SUBP_DTYPE_float32 : dtype, size),
        .out_element = to_float ? 4 : 2,
    };
    if (narrow)
        call.weights = choose_winograd(set, SUBP_OP_winograd_weights, dtype, size)->run.winograd_weights;
    for (ptrdiff_t n = 0; n < block; n += kernels[call.tiles_of_row++]->channels)
        kernels[call.tiles_of_row] = choose(set, SUBP_OP_conv2d, block - n);
    subp_tiles *t = &call.tiles;
    t->pad_top = between(0, 3), t->pad_left = between(0, 3);
    const ptrdiff_t after[] = {between(0, 3), between(0, 3)};
    t->height = between(3, one_in(4) ? 40 : 12), t->width = between(3, one_in(2) ? 70 : 16);
    t->out_h = t->height + t->pad_top + after[0] - 2, t->out_w = t->width + t->pad_left + after[1] - 2;
    t->across = (t->out_w + size - 1) / size;
    const ptrdiff_t tiles = t->across * ((t->out_h + size - 1) / size);
    call.run = one_in(3) ? tiles : between(1, tiles);
    call.call_tiles = one_in(3) ? call.run : between(1, call.run);
    call.pitch = (call.run + SUBP_TILE_SLACK + SUBP_LINE - 1) / SUBP_LINE * SUBP_LINE;
    const int has_bias = !one_in(3), has_residual = narrow == !to_float && one_in(2);
    describe("set %d %s to_float %d: batch %td groups %td in %td out %td block %td kept %td size %tdx%td "
             "pad %td,%td %td,%td run %td call_tiles %td pitch %td activation %s bias %d residual %d",
             set, transforms->name, to_float, batch, groups, group_in, group_out, block, call.kept, t->height,
             t->width, t->pad_top, after[0], t->pad_left, after[1], call.run, call.call_tiles, call.pitch,
             subp_activation_names[call.activation], has_bias, has_residual);

    const size_t inputs = (size_t)(batch * call.in_channels * t->height * t->width);
    const size_t outputs = (size_t)(batch * call.out_channels * t->out_h * t->out_w);
    int32_t *indices = exact(sizeof(int32_t) * (size_t)(call.rows * call.kept));
    int32_t *offsets = exact(sizeof(int32_t) * (size_t)(call.rows * call.kept));
    for (ptrdiff_t row = 0, to = 0; row < call.rows; row++)
        for (ptrdiff_t i = 0, left = call.kept; i < group_in; i++) /* an ascending choice */
            if (between(1, group_in - i) <= left) left--, indices[to++] = (int32_t)i;
    for (ptrdiff_t i = 0; i < call.rows * call.kept; i++) offsets[i] = indices[i] * (int32_t)call.pitch;
    const enum subp_dtype of_out = call.outputs->out_dtype;
    const size_t weights = (size_t)(call.rows * call.kept * 9 * block);
    const void *stored = random_elements(dtype, weights);
    const float *values = as_floats(dtype, stored, weights);
    call.values = narrow ? stored : pack(&call, values, size);
    call.channel_offsets = offsets;
    call.bias = has_bias ? random_floats((size_t)call.out_channels) : NULL;
    call.out_offsets = random_places(groups, group_out, t->out_h * t->out_w);
    call.sum_offsets = multiples(kernels[0]->channels, call.pitch);
    const void *x = random_elements(dtype, inputs);
    const void *residual = has_residual ? random_elements(of_out, outputs) : NULL;
    void *out = exact_elements(of_out, outputs, CANARY), *again = exact_elements(of_out, outputs, CANARY);
    float *planes = exact_floats((size_t)subp_winograd_planes(&call), NAN);
    float *sums = exact_floats((size_t)subp_winograd_sums(&call), NAN);
    subp_conv_arrays arrays = {.x = x, .residual = residual, .out = out};
    run_passes(&call, &arrays, batch, planes, sums);
    check_outputs(&call, batch, values, indices, as_floats(dtype, x, inputs),
                  has_residual ? as_floats(of_out, residual, outputs) : NULL, as_floats(of_out, out, outputs));
    arrays.out = again;
    run_parts(&call, &arrays, batch, planes, sums);
    if (memcmp(out, again, outputs * element_size(of_out))) fail("parts in another order gave other bits");
}
