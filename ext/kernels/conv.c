#include "conv.h"

#include <string.h>

#include "shared.h"

static subp_rows rows_of(const subp_conv *call, ptrdiff_t pass) {
    ptrdiff_t bands = subp_ceil_div(call->out_h, call->band), band = pass % bands;
    subp_rows s = {.image = pass / bands, .first_row = band * call->band};
    s.rows = subp_smaller(call->band, call->out_h - s.first_row);
    return s;
}

ptrdiff_t subp_conv_passes(const subp_conv *call) {
    return subp_ceil_div(call->out_h, call->band);
}

ptrdiff_t subp_conv_fills(const subp_conv *call) {
    return call->copies ? call->in_channels : 0;
}

/* Columns [begin, end) of a copy with this shift hold input, the others padding. */
static void columns_inside(const subp_conv *call, ptrdiff_t shift, ptrdiff_t *begin, ptrdiff_t *end) {
    *begin = shift < 0 ? subp_smaller(subp_ceil_div(-shift, call->stride_w), call->out_w) : 0;
    *end = shift < call->width ? subp_smaller(subp_ceil_div(call->width - shift, call->stride_w), call->out_w) : *begin;
    if (*end < *begin) *end = *begin;
}

/* The copies by size of an element. Their bits are all that counts here, of whatever type they are. */
#define ELEMENT uint8_t
#define NAMED(function) function##_1
#include "conv_copies.h"
#define ELEMENT uint16_t
#define NAMED(function) function##_2
#include "conv_copies.h"
#define ELEMENT uint32_t
#define NAMED(function) function##_4
#include "conv_copies.h"

void subp_conv_fill_rows(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t channel, void *planes) {
    (call->element == 4 ? fill_rows_4 : call->element == 2 ? fill_rows_2 : fill_rows_1)(call, x, rows, channel, planes);
}

void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t channel,
                    void *planes) {
    subp_conv_fill_rows(call, arrays->x, rows_of(call, pass), channel, planes);
}

/* Products per element read from beyond the L1 cache that take a core as long: what weighs them against each other. */
enum { PRODUCTS_PER_ELEMENT = 64 };

subp_conv_parts subp_conv_divide(const subp_conv *call, ptrdiff_t threads) {
    subp_conv_parts best = {0};
    ptrdiff_t pixels = call->band * call->out_w, tiles = subp_ceil_div(pixels, call->tile_pixels), least = PTRDIFF_MAX;
    for (ptrdiff_t chunks = 1; chunks <= subp_smaller(threads, tiles); chunks++) {
        ptrdiff_t row_step = subp_ceil_div(call->rows, subp_smaller(threads / chunks, call->rows));
        ptrdiff_t pixel_step = subp_ceil_div(tiles, chunks) * call->tile_pixels;
        ptrdiff_t values = row_step * call->block * call->kept * call->taps;
        ptrdiff_t cost = values * pixel_step + PRODUCTS_PER_ELEMENT * (values + call->in_channels * pixel_step);
        if (cost >= least) continue;
        least = cost;
        best.row_step = row_step;
        best.pixel_step = pixel_step;
        best.parts = subp_ceil_div(call->rows, row_step) * subp_ceil_div(pixels, pixel_step);
    }
    return best;
}

ptrdiff_t subp_conv_first_channel(const subp_conv *call, ptrdiff_t row, ptrdiff_t *width) {
    ptrdiff_t rows_per_group = call->rows / call->groups, group_out = call->out_channels / call->groups;
    ptrdiff_t in_group = row % rows_per_group * call->block;
    *width = subp_smaller(call->block, group_out - in_group); /* a group's last row may be narrower */
    return row / rows_per_group * group_out + in_group;
}

/* Where the channels of a block row go: the first channel at the first pixel of the rows, and from one to the next. */
typedef struct {
    void *out;
    const void *residual;
    ptrdiff_t stride;
} target;

/* `count` pixels from `first` on of one block row, tile by tile. */
static void run_row(const subp_conv *call, const void *x, const void *planes, const subp_rows *s, ptrdiff_t row,
                    ptrdiff_t first, ptrdiff_t count, target to) {
    ptrdiff_t group = row / (call->rows / call->groups), group_in = call->in_channels / call->groups, width;
    ptrdiff_t channel = subp_conv_first_channel(call, row, &width), plane = call->out_h * call->out_w;
    ptrdiff_t pixel = s->first_row * call->out_w + first;
    subp_tile tile = {
        .tap_offsets = call->tap_offsets,
        .taps = call->taps,
        .channel_offsets = call->channel_offsets + row * call->kept,
        .kept = (int32_t)call->kept,
        .out_stride = to.stride,
        .count = count,
        /* Rows within a tile leave no time in between: what comes next is in the cache already, or at the next tile. */
        .ahead = call->pixels_outside && pixel + 2 * count <= plane ? count : 0,
        .activation = call->activation,
    };
    if (call->copies)
        tile.x = subp_at(planes, group * group_in * call->channel_stride + first, call->element);
    else
        tile.x = subp_at(x, (s->image * call->in_channels + group * group_in) * call->channel_stride + pixel,
                         call->element);
    const ptrdiff_t terms = call->packed * call->taps;
    const subp_row *const *kernels = call->kernels;
    for (ptrdiff_t n = 0; n < width;) {
        const subp_row *kernel = *kernels++;
        ptrdiff_t at = n * to.stride + first;
        tile.values = subp_at(call->values, (row * call->block + n) * terms, call->weight_element);
        tile.channels = (int32_t)subp_smaller(kernel->channels, width - n);
        tile.out = subp_at_out(to.out, at, call->out_element);
        tile.residual = subp_at_if(to.residual, at, call->out_element);
        tile.bias = call->bias ? call->bias + channel + n : NULL;
        kernel->run.conv2d(&tile);
        n += kernel->channels;
    }
}

void subp_conv_row(const subp_conv *call, const void *x, const void *planes, subp_rows s, ptrdiff_t row, void *out,
                   ptrdiff_t out_stride) {
    const target to = {.out = out, .stride = out_stride};
    for (ptrdiff_t p = 0; p < s.rows * call->out_w; p += call->tile_pixels)
        run_row(call, x, planes, &s, row, p, subp_smaller(call->tile_pixels, s.rows * call->out_w - p), to);
}

/* Block rows [row, row_end) on pixels [first, end) of a pass, `first` a multiple of the tile: whoever runs it, a pixel
 * is at the same place of a tile. */
static void run_rows(const subp_conv *call, const subp_conv_arrays *arrays, const void *planes, const subp_rows *s,
                     ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t first, ptrdiff_t end) {
    ptrdiff_t step = call->pixels_outside ? call->tile_pixels : end - first, plane = call->out_h * call->out_w, width;
    for (ptrdiff_t at = first; at < end; at += step)
        for (ptrdiff_t r = row; r < row_end; r++) {
            ptrdiff_t channel = s->image * call->out_channels + subp_conv_first_channel(call, r, &width);
            ptrdiff_t out = channel * plane + s->first_row * call->out_w;
            const target to = {.out = subp_at_out(arrays->out, out, call->out_element),
                               .residual = subp_at_if(arrays->residual, out, call->out_element),
                               .stride = plane};
            for (ptrdiff_t p = at; p < subp_smaller(at + step, end); p += call->tile_pixels)
                run_row(call, arrays->x, planes, s, r, p,
                        subp_smaller(call->tile_pixels, subp_smaller(at + step, end) - p), to);
        }
}

void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass,
                    const subp_conv_parts *parts, ptrdiff_t part, const void *planes) {
    subp_rows s = rows_of(call, pass);
    ptrdiff_t chunks = subp_ceil_div(call->band * call->out_w, parts->pixel_step);
    ptrdiff_t row = part / chunks * parts->row_step, first = part % chunks * parts->pixel_step;
    ptrdiff_t end = subp_smaller(first + parts->pixel_step, s.rows * call->out_w);
    run_rows(call, arrays, planes, &s, row, subp_smaller(row + parts->row_step, call->rows), first, end);
}

void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes) {
    subp_rows s = rows_of(call, pass);
    for (ptrdiff_t channel = 0; channel < subp_conv_fills(call); channel++)
        subp_conv_fill(call, arrays, pass, channel, planes);
    run_rows(call, arrays, planes, &s, 0, call->rows, 0, s.rows * call->out_w);
}
