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

/* Words of all groups: of `interleave` channels each. */
static ptrdiff_t shared_words(const subp_conv *call) { return call->groups * call->words; }

ptrdiff_t subp_conv_fills(const subp_conv *call) {
    return call->shared ? shared_words(call) : call->copies ? call->in_channels : 0;
}

/* A multiple of a cache line. */
static ptrdiff_t lines(ptrdiff_t bytes) { return subp_ceil_div(bytes, 4 * SUBP_LINE) * 4 * SUBP_LINE; }

ptrdiff_t subp_conv_planes(const subp_conv *call) {
    return call->copies ? lines(call->channel_stride * call->in_channels * call->element) : 0;
}

/* Pixels from one word to the next: its copies' planes. */
static ptrdiff_t word_stride(const subp_conv *call) { return (call->copies ? call->copies : 1) * call->word_plane; }

/* Bytes of so many words, and of what is loaded behind the last. */
static ptrdiff_t room_for(const subp_conv *call, ptrdiff_t words) {
    return lines((words * word_stride(call) + SUBP_TILE_SLACK) * SUBP_WORD);
}

ptrdiff_t subp_conv_shared_words(const subp_conv *call) {
    return call->shared ? room_for(call, shared_words(call)) : 0;
}

ptrdiff_t subp_conv_own_words(const subp_conv *call) {
    return call->requantize && !call->shared ? room_for(call, call->words) : 0;
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

static void fill_channel(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t channel, void *planes) {
    (call->element == 4 ? fill_rows_4 : call->element == 2 ? fill_rows_2 : fill_rows_1)(call, x, rows, channel, planes);
}

/* Where a group's first channel is, at a pixel of the rows: in planes, or in the input itself. */
static const void *channels_at(const subp_conv *call, const void *x, const void *planes, const subp_rows *s,
                               ptrdiff_t group, ptrdiff_t pixel) {
    const ptrdiff_t first = group * (call->in_channels / call->groups);
    if (call->copies) return subp_at(planes, first * call->channel_stride + pixel, call->element);
    return subp_at(x, (s->image * call->in_channels + first) * call->channel_stride + s->first_row * call->out_w + pixel,
                   call->element);
}

/* The words of some channels of a group at `count` pixels and their halo, copy by copy. */
static void make_words(const subp_conv *call, const uint8_t *from, const int32_t *channel_offsets, ptrdiff_t kept,
                       ptrdiff_t count, void *words) {
    for (ptrdiff_t copy = 0; copy < (call->copies ? call->copies : 1); copy++) {
        const subp_interleave planes = {
            .x = from + copy * call->plane_rows * call->out_w,
            .channel_offsets = channel_offsets,
            .kept = kept,
            .count = count + call->halo,
            .word_stride = word_stride(call),
            .out = (uint8_t *)words + copy * call->word_plane * SUBP_WORD,
        };
        call->interleave(&planes);
    }
}

/* One of the shared words, of all pixels of the rows. */
static void fill_word(const subp_conv *call, const void *x, subp_rows s, ptrdiff_t word, void *planes) {
    const ptrdiff_t group = word / call->words, per_word = call->kernels[0]->interleave, group_in = call->kept;
    const ptrdiff_t first = word % call->words * per_word, kept = subp_smaller(per_word, group_in - first);
    for (ptrdiff_t k = 0; call->copies && k < kept; k++) fill_channel(call, x, s, group * group_in + first + k, planes);
    make_words(call, channels_at(call, x, planes, &s, group, 0), call->channel_offsets + first, kept,
               s.rows * call->out_w, subp_at_out(planes, subp_conv_planes(call) + word * word_stride(call) * SUBP_WORD, 1));
}

void subp_conv_fill_rows(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t fill, void *planes) {
    (call->shared ? fill_word : fill_channel)(call, x, rows, fill, planes);
}

void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t fill, void *planes) {
    subp_conv_fill_rows(call, arrays->x, rows_of(call, pass), fill, planes);
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

/* One block row on the pixels that `tile` tells of, from `first` of the rows on, tile by tile of its channels. */
static void run_tiles(const subp_conv *call, ptrdiff_t row, ptrdiff_t first, subp_tile tile, target to) {
    const ptrdiff_t terms = call->packed * call->taps;
    const subp_row *const *kernels = call->kernels;
    ptrdiff_t width, channel = subp_conv_first_channel(call, row, &width);
    tile.taps = call->taps;
    tile.out_stride = to.stride;
    for (ptrdiff_t n = 0; n < width;) {
        const subp_row *kernel = *kernels++;
        ptrdiff_t at = n * to.stride + first;
        tile.values = subp_at(call->values, (row * call->block + n) * terms, call->weight_element);
        tile.channels = (int32_t)subp_smaller(kernel->channels, width - n);
        tile.out = subp_at_out(to.out, at, call->out_element);
        tile.residual = subp_at_if(to.residual, at, call->out_element);
        tile.bias = call->bias ? call->bias + channel + n : NULL;
        tile.start = call->start ? call->start + channel + n : NULL;
        tile.factor = call->factor ? call->factor + channel + n : NULL;
        kernel->run.conv2d(&tile);
        n += kernel->channels;
    }
}

static ptrdiff_t group_of(const subp_conv *call, ptrdiff_t row) { return row / (call->rows / call->groups); }

/* `count` pixels from `first` on of one block row, straight from planes. */
static void run_planes(const subp_conv *call, const void *x, const void *planes, const subp_rows *s, ptrdiff_t row,
                       ptrdiff_t first, ptrdiff_t count, target to) {
    ptrdiff_t plane = call->out_h * call->out_w, pixel = s->first_row * call->out_w + first;
    const subp_tile tile = {
        .x = channels_at(call, x, planes, s, group_of(call, row), first),
        .tap_offsets = call->tap_offsets,
        .channel_offsets = call->channel_offsets + row * call->kept,
        .kept = (int32_t)call->kept,
        .count = count,
        /* Rows within a tile leave no time in between: what comes next is in the cache already, or at the next tile. */
        .ahead = call->pixels_outside && pixel + 2 * count <= plane ? count : 0,
        .activation = call->activation,
    };
    run_tiles(call, row, first, tile, to);
}

/* A run of one block row, its words made before where they are not shared. */
static void run_words(const subp_conv *call, const void *x, const void *planes, const subp_rows *s, ptrdiff_t row,
                      ptrdiff_t first, ptrdiff_t count, void *own, target to) {
    const ptrdiff_t group = group_of(call, row);
    const uint8_t *words = own;
    if (call->shared)
        words = (const uint8_t *)planes + subp_conv_planes(call) +
                (group * call->words * word_stride(call) + first) * SUBP_WORD;
    else
        make_words(call, channels_at(call, x, planes, s, group, first), call->channel_offsets + row * call->kept,
                   call->kept, count, own);
    for (ptrdiff_t p = 0; p < count; p += call->tile_pixels) {
        const subp_tile tile = {
            .x = words + p * SUBP_WORD,
            .tap_offsets = call->word_offsets,
            .count = subp_smaller(call->tile_pixels, count - p),
            .words = (int32_t)call->words,
            .word_stride = word_stride(call),
            .requantize = call->requantize,
        };
        run_tiles(call, row, first + p, tile, to);
    }
}

/* Pixels [first, end) of one block row. */
static void run_row(const subp_conv *call, const void *x, const void *planes, const subp_rows *s, ptrdiff_t row,
                    ptrdiff_t first, ptrdiff_t end, void *words, target to) {
    const ptrdiff_t step = call->requantize ? call->run_pixels : call->tile_pixels;
    for (ptrdiff_t p = first; p < end; p += step)
        if (call->requantize)
            run_words(call, x, planes, s, row, p, subp_smaller(step, end - p), words, to);
        else
            run_planes(call, x, planes, s, row, p, subp_smaller(step, end - p), to);
}

void subp_conv_row(const subp_conv *call, const void *x, const void *planes, subp_rows s, ptrdiff_t row, void *out,
                   ptrdiff_t out_stride, void *words) {
    const target to = {.out = out, .stride = out_stride};
    run_row(call, x, planes, &s, row, 0, s.rows * call->out_w, words, to);
}

/* Block rows [row, row_end) on pixels [first, end) of a pass, `first` a multiple of the tile: whoever runs it, a pixel
 * is at the same place of a tile. */
static void run_rows(const subp_conv *call, const subp_conv_arrays *arrays, const void *planes, const subp_rows *s,
                     ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t first, ptrdiff_t end, void *words) {
    ptrdiff_t tile = call->requantize ? call->run_pixels : call->tile_pixels;
    ptrdiff_t step = call->pixels_outside ? tile : end - first, plane = call->out_h * call->out_w, width;
    for (ptrdiff_t at = first; at < end; at += step)
        for (ptrdiff_t r = row; r < row_end; r++) {
            ptrdiff_t channel = s->image * call->out_channels + subp_conv_first_channel(call, r, &width);
            ptrdiff_t out = channel * plane + s->first_row * call->out_w;
            const target to = {.out = subp_at_out(arrays->out, out, call->out_element),
                               .residual = subp_at_if(arrays->residual, out, call->out_element),
                               .stride = plane};
            run_row(call, arrays->x, planes, s, r, at, subp_smaller(at + step, end), words, to);
        }
}

void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass,
                    const subp_conv_parts *parts, ptrdiff_t part, const void *planes, void *words) {
    subp_rows s = rows_of(call, pass);
    ptrdiff_t chunks = subp_ceil_div(call->band * call->out_w, parts->pixel_step);
    ptrdiff_t row = part / chunks * parts->row_step, first = part % chunks * parts->pixel_step;
    ptrdiff_t end = subp_smaller(first + parts->pixel_step, s.rows * call->out_w);
    run_rows(call, arrays, planes, &s, row, subp_smaller(row + parts->row_step, call->rows), first, end, words);
}

void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes, void *words) {
    subp_rows s = rows_of(call, pass);
    for (ptrdiff_t fill = 0; fill < subp_conv_fills(call); fill++) subp_conv_fill(call, arrays, pass, fill, planes);
    run_rows(call, arrays, planes, &s, 0, call->rows, 0, s.rows * call->out_w, words);
}
