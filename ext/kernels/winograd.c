#include "winograd.h"

#include "shared.h"

enum { TRANSFORMED = sizeof(float) };

static ptrdiff_t positions(const subp_winograd *call) {
    ptrdiff_t side = call->transforms->size + 2;
    return side * side;
}

static ptrdiff_t tiles_of_image(const subp_winograd *call) {
    return call->tiles.across * subp_ceil_div(call->tiles.out_h, call->transforms->size);
}

ptrdiff_t subp_winograd_passes(const subp_winograd *call) { return subp_ceil_div(tiles_of_image(call), call->run); }

ptrdiff_t subp_winograd_fills(const subp_winograd *call) { return call->in_channels; }

ptrdiff_t subp_winograd_parts(const subp_winograd *call) { return call->rows * call->tiles_of_row; }

/* From position to position of so many channels: an odd number of cache lines, or all positions of a tile would compete
 * for the same few sets of the L1 cache. */
static ptrdiff_t position_stride(const subp_winograd *call, ptrdiff_t channels) {
    ptrdiff_t lines = channels * call->pitch / SUBP_LINE;
    return (lines | 1) * SUBP_LINE;
}

ptrdiff_t subp_winograd_planes(const subp_winograd *call) {
    return positions(call) * position_stride(call, call->in_channels);
}

/* Of a part, of the widest tile of a row, which comes first. */
static ptrdiff_t sums_of(const subp_winograd *call) {
    return positions(call) * position_stride(call, call->kernels[0]->channels);
}

/* From one position's weights of a tile to the next: where they are made for a part an odd number of cache lines, as of
 * planes. */
static ptrdiff_t weight_stride(const subp_winograd *call, const subp_row *kernel) {
    const ptrdiff_t weights = call->kept * kernel->channels;
    return call->weights ? (subp_ceil_div(weights, SUBP_LINE) | 1) * SUBP_LINE : weights;
}

ptrdiff_t subp_winograd_sums(const subp_winograd *call) {
    return sums_of(call) + (call->weights ? positions(call) * weight_stride(call, call->kernels[0]) : 0);
}

/* The tiles of a pass, in planes of so many channels. */
static subp_tiles run_of(const subp_winograd *call, ptrdiff_t pass, ptrdiff_t channels) {
    subp_tiles run = call->tiles;
    run.first = pass % subp_winograd_passes(call) * call->run;
    run.count = subp_smaller(call->run, tiles_of_image(call) - run.first);
    run.position_stride = position_stride(call, channels);
    return run;
}

void subp_winograd_fill(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t channel,
                        void *planes) {
    const subp_tiles run = run_of(call, pass, call->in_channels);
    const ptrdiff_t image = pass / subp_winograd_passes(call);
    const void *in = subp_at(arrays->x, (image * call->in_channels + channel) * run.height * run.width, call->element);
    call->transforms->run.winograd.in(&run, in, subp_at_out(planes, channel * call->pitch, TRANSFORMED));
}

/* The products of a tile of channels with all tiles of the run, position by position. */
static void multiply(const subp_winograd *call, const subp_tiles *run, const subp_row *kernel, ptrdiff_t row,
                     const void *values, const void *planes, void *sums) {
    static const ptrdiff_t no_offset = 0;
    const ptrdiff_t group = row / (call->rows / call->groups), group_in = call->in_channels / call->groups;
    const void *x = subp_at(planes, group * group_in * call->pitch, TRANSFORMED);
    subp_tile tile = {
        .tap_offsets = &no_offset,
        .taps = 1,
        .channel_offsets = call->channel_offsets + row * call->kept,
        .kept = (int32_t)call->kept,
        .values = values,
        .out_offsets = call->sum_offsets,
        .channels = kernel->channels,
        .activation = SUBP_ACT_none,
    };
    for (ptrdiff_t p = 0; p < positions(call); p++) {
        for (ptrdiff_t at = 0; at < run->count; at += call->call_tiles) {
            tile.x = subp_at(x, at, TRANSFORMED);
            tile.out = subp_at_out(sums, at, TRANSFORMED);
            tile.count = subp_smaller(call->call_tiles, run->count - at);
            kernel->run.conv2d(&tile);
        }
        x = subp_at(x, position_stride(call, call->in_channels), TRANSFORMED);
        sums = subp_at_out(sums, run->position_stride, TRANSFORMED);
        tile.values = subp_at(tile.values, weight_stride(call, kernel), TRANSFORMED);
    }
}

/* The transformed weights of a tile of channels, `before` of its block row before it. */
static const void *weights_of(const subp_winograd *call, const subp_row *kernel, ptrdiff_t row, ptrdiff_t before,
                              void *sums) {
    const ptrdiff_t terms = (call->weights ? 9 : positions(call)) * call->kept;
    const void *values = subp_at(call->values, row * call->block * terms, call->weight_element);
    if (!call->weights) return subp_at(values, before * terms, call->weight_element);
    float *made = subp_at_out(sums, sums_of(call), TRANSFORMED);
    call->weights(subp_at(values, before, call->weight_element), call->kept, call->block, kernel->channels,
                  weight_stride(call, kernel), made);
    return made;
}

void subp_winograd_part(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t part,
                        const void *planes, void *sums) {
    const ptrdiff_t row = part / call->tiles_of_row, number = part % call->tiles_of_row;
    const ptrdiff_t rows_per_group = call->rows / call->groups, group_out = call->out_channels / call->groups;
    const subp_row *kernel = call->kernels[number];
    ptrdiff_t before = 0; /* channels of the block row's earlier tiles */
    for (ptrdiff_t i = 0; i < number; i++) before += call->kernels[i]->channels;
    const ptrdiff_t in_group = row % rows_per_group * call->block + before;
    const ptrdiff_t channels = subp_smaller(kernel->channels, group_out - in_group); /* fewer in a group's last row */
    if (channels <= 0) return;
    const subp_tiles run = run_of(call, pass, kernel->channels);
    multiply(call, &run, kernel, row, weights_of(call, kernel, row, before, sums), planes, sums);
    const ptrdiff_t image = pass / subp_winograd_passes(call), first = row / rows_per_group * group_out + in_group;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const ptrdiff_t at = image * call->out_channels * run.out_h * run.out_w + call->out_offsets[first + c];
        call->outputs->run.winograd.out(&run, subp_at(sums, c * call->pitch, TRANSFORMED),
                                        call->bias ? call->bias + first + c : NULL,
                                        subp_at_if(arrays->residual, at, call->out_element),
                                        subp_at_out(arrays->out, at, call->out_element), call->activation);
    }
}

void subp_winograd_pass(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes,
                        void *sums) {
    for (ptrdiff_t channel = 0; channel < subp_winograd_fills(call); channel++)
        subp_winograd_fill(call, arrays, pass, channel, planes);
    for (ptrdiff_t part = 0; part < subp_winograd_parts(call); part++)
        subp_winograd_part(call, arrays, pass, part, planes, sums);
}
