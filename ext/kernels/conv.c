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

/* Of a kept channel. */
static ptrdiff_t copies_of(const subp_conv *call) { return call->copies ? call->copies / call->columns : 1; }

/* Pixels from one word to the next: its copies' planes. */
static ptrdiff_t word_stride(const subp_conv *call) { return copies_of(call) * call->word_plane; }

/* Bytes of so many words, and of what is loaded behind the last. */
static ptrdiff_t room_for(const subp_conv *call, ptrdiff_t words) {
    return lines((words * word_stride(call) + SUBP_TILE_SLACK) * SUBP_WORD);
}

/* Whether words of a run take the place of those of the run before. */
static int in_place(const subp_conv *call) { return call->taps == 1 && call->run_pixels <= call->tile_pixels; }

ptrdiff_t subp_conv_shared_words(const subp_conv *call) {
    return call->shared ? room_for(call, shared_words(call)) : 0;
}

ptrdiff_t subp_conv_own_words(const subp_conv *call) {
    return call->words && !call->shared ? (in_place(call) ? 1 : 2) * room_for(call, call->words) : 0;
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

/* Copies [first, end) of a channel. */
static void fill_copies(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t channel, ptrdiff_t first,
                        ptrdiff_t end, void *planes) {
    (call->element == 4   ? fill_rows_4
     : call->element == 2 ? fill_rows_2
                          : fill_rows_1)(call, x, rows, channel, first, end, planes);
}

static void fill_channel(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t channel, void *planes) {
    fill_copies(call, x, rows, channel, 0, call->copies, planes);
}

/* Where a group's first channel is, at a pixel of the rows: in planes, or in the input itself. */
static const void *channels_at(const subp_conv *call, const void *x, const void *planes, const subp_rows *s,
                               ptrdiff_t group, ptrdiff_t pixel) {
    const ptrdiff_t first = group * (call->in_channels / call->groups);
    if (call->copies) return subp_at(planes, first * call->channel_stride + pixel, call->element);
    const ptrdiff_t channel = (s->image * call->in_channels + first) * call->channel_stride;
    return subp_at(x, channel + s->first_row * call->out_w + pixel, call->element);
}

/* How words of a group's channels are made, at `count` pixels and their halo. */
static subp_interleave words_of(const subp_conv *call, const void *from, const int32_t *channel_offsets,
                                ptrdiff_t words, ptrdiff_t count, void *out) {
    return (subp_interleave){
        .x = from,
        .channel_offsets = channel_offsets,
        .words = words,
        .count = count + call->halo,
        .copies = copies_of(call),
        .in_copy = call->plane_rows * call->out_w,
        .out_copy = call->word_plane,
        .word_stride = word_stride(call),
        .out = out,
    };
}

/* One of the shared words, of all pixels of the rows. */
static void fill_word(const subp_conv *call, const void *x, subp_rows s, ptrdiff_t word, void *planes) {
    const ptrdiff_t group = word / call->words, per_word = call->kernels[0]->interleave, group_in = call->kept;
    const ptrdiff_t first = word % call->words * per_word, kept = subp_smaller(per_word, group_in - first);
    for (ptrdiff_t k = group * group_in + first; call->copies && k < group * group_in + first + kept; k++) {
        const ptrdiff_t column = k % call->columns * copies_of(call);
        fill_copies(call, x, s, k / call->columns, column, column + copies_of(call), planes);
    }
    void *out = subp_at_out(planes, subp_conv_planes(call) + word * word_stride(call) * SUBP_WORD, 1);
    const void *from = channels_at(call, x, planes, &s, group, 0);
    const subp_interleave made = words_of(call, from, call->channel_offsets + first, 1, s.rows * call->out_w, out);
    call->interleave(&made);
}

void subp_conv_fill_rows(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t fill, void *planes) {
    (call->shared ? fill_word : fill_channel)(call, x, rows, fill, planes);
}

void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t fill,
                    void *planes) {
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

static ptrdiff_t group_of(const subp_conv *call, ptrdiff_t row) {
    return call->groups == 1 ? 0 : row / (call->rows / call->groups); /* divisions take as long as many products */
}

ptrdiff_t subp_conv_first_channel(const subp_conv *call, ptrdiff_t row, ptrdiff_t *width) {
    const ptrdiff_t group = group_of(call, row);
    ptrdiff_t group_out = call->groups == 1 ? call->out_channels : call->out_channels / call->groups;
    ptrdiff_t in_group = (call->groups == 1 ? row : row - group * (call->rows / call->groups)) * call->block;
    *width = subp_smaller(call->block, group_out - in_group); /* a group's last row may be narrower */
    return group * group_out + in_group;
}

/* Where channels go: the rows' first pixel in a plane at 0, and where the planes are of the channels from `channel`
 * on, counted over the block rows. */
typedef struct {
    void *out;
    const void *residual;
    const ptrdiff_t *offsets;
    ptrdiff_t channel;
} target;

/* One block row on the pixels that `tile` tells of, from `first` of the rows on, tile by tile of its channels. The last
 * makes the words that are wanted next, as nothing reads the present ones after it. */
static void run_tiles(const subp_conv *call, ptrdiff_t row, ptrdiff_t first, subp_tile *tile, const target *to) {
    const ptrdiff_t terms = call->packed * call->taps;
    const subp_interleave *next = tile->next;
    const subp_row *const *kernels = call->kernels;
    ptrdiff_t width, channel = subp_conv_first_channel(call, row, &width);
    tile->taps = call->taps;
    tile->out = subp_at_out(to->out, first, call->out_element);
    tile->residual = subp_at_if(to->residual, first, call->out_element);
    for (ptrdiff_t n = 0; n < width;) {
        const subp_row *kernel = *kernels++;
        tile->values = subp_at(call->values, (row * call->block + n) * terms, call->weight_element);
        tile->channels = (int32_t)subp_smaller(kernel->channels, width - n);
        tile->out_offsets = to->offsets + (channel - to->channel + n);
        tile->bias = call->bias ? call->bias + channel + n : NULL;
        tile->start = call->start ? call->start + channel + n : NULL;
        tile->factor = call->factor ? call->factor + channel + n : NULL;
        n += kernel->channels;
        tile->next = n < width ? NULL : next;
        kernel->run.conv2d(tile);
    }
}

/* `count` pixels from `first` on of one block row, straight from planes. */
static void run_planes(const subp_conv *call, const void *x, const void *planes, const subp_rows *s, ptrdiff_t row,
                       ptrdiff_t first, ptrdiff_t count, const target *to) {
    ptrdiff_t plane = call->out_h * call->out_w, pixel = s->first_row * call->out_w + first;
    subp_tile tile = {
        .x = channels_at(call, x, planes, s, group_of(call, row), first),
        .tap_offsets = call->tap_offsets,
        .channel_offsets = call->channel_offsets + row * call->kept,
        .kept = (int32_t)call->kept,
        .count = count,
        /* Rows within a tile leave no time in between: what comes next is in the cache already, or at the next tile. */
        .ahead = call->pixels_outside && pixel + 2 * count <= plane ? count : 0,
        .activation = call->activation,
    };
    run_tiles(call, row, first, &tile, to);
}

/* A run of pixels of one block row, and its words. */
typedef struct {
    ptrdiff_t row, first, count;
    uint8_t *words;
} run;

/* A run whose words are there, with the fields of a tile that are the same for all of them filled in. The words of the
 * next run, or none for NULL, are made along with it. */
static void run_words(const subp_conv *call, const run *r, subp_interleave *next, subp_tile *tile, const target *to) {
    ptrdiff_t left = next ? next->count : 0;
    for (ptrdiff_t p = 0; p < r->count; p += call->tile_pixels) {
        tile->x = r->words + p * SUBP_WORD;
        tile->count = subp_smaller(call->tile_pixels, r->count - p);
        tile->next = NULL;
        const ptrdiff_t size = left < tile->count ? 0 : tile->count;
        if (size) {
            next->count = size;
            tile->next = next;
        }
        run_tiles(call, r->row, r->first + p, tile, to);
        if (size) {
            next->x = subp_at(next->x, size, call->element);
            next->out += size * SUBP_WORD;
            left -= size;
        }
    }
    if (left) {
        next->count = left;
        call->interleave(next);
    }
}

/* Where the channels of all block rows go in a pass. */
static target target_of(const subp_conv *call, const subp_conv_arrays *arrays, const subp_rows *s) {
    const ptrdiff_t out = (s->image * call->out_channels * call->out_h + s->first_row) * call->out_w;
    return (target){.out = subp_at_out(arrays->out, out, call->out_element),
                    .residual = subp_at_if(arrays->residual, out, call->out_element),
                    .offsets = call->out_offsets};
}

/* Block rows [row, row_end) on pixels [first, end). */
typedef struct {
    const subp_conv *call;
    const subp_conv_arrays *arrays;
    const void *planes;
    const subp_rows *s;
    ptrdiff_t row, row_end, first, end;
    const target *to;
    uint8_t *words;
} job;

static void run_from_planes(const job *j) {
    const subp_conv *call = j->call;
    ptrdiff_t step = call->pixels_outside ? call->tile_pixels : j->end - j->first;
    for (ptrdiff_t at = j->first; at < j->end; at += step)
        for (ptrdiff_t r = j->row; r < j->row_end; r++) {
            const ptrdiff_t end = subp_smaller(at + step, j->end);
            for (ptrdiff_t p = at; p < end; p += call->tile_pixels)
                run_planes(call, j->arrays->x, j->planes, j->s, r, p, subp_smaller(call->tile_pixels, end - p), j->to);
        }
}

/* Field by field, here and below: a structure that is copied soon after it was written waits for that. */
static void place_run(const job *j, ptrdiff_t row, ptrdiff_t first, int place, run *r) {
    const subp_conv *call = j->call;
    r->row = row;
    r->first = first;
    r->count = subp_smaller(call->run_pixels, j->end - first);
    r->words = j->words + (place && !in_place(call) ? room_for(call, call->words) : 0);
    if (call->shared)
        r->words = subp_at_out((void *)j->planes, subp_conv_planes(call) +
                               (group_of(call, row) * call->words * word_stride(call) + first) * SUBP_WORD, 1);
}

/* The words of a run, in what words_of returned for any other. */
static void aim_words(const job *j, const run *r, subp_interleave *words) {
    const subp_conv *call = j->call;
    words->x = channels_at(call, j->arrays->x, j->planes, j->s, group_of(call, r->row), r->first);
    words->channel_offsets = call->channel_offsets + r->row * call->words * call->kernels[0]->interleave;
    words->count = r->count + call->halo;
    words->out = r->words;
}

/* Runs of pixels are the outer loop: the words of one run of all block rows come from the same part of the planes.
 * Those of the next run are made along with the products of this one: in their place where a run is one tile of one
 * tap, and its words are read once and for all; else in one of two places in turns. */
static void run_all_words(const job *j) {
    const subp_conv *call = j->call;
    subp_interleave words = words_of(call, NULL, NULL, call->words, 0, NULL);
    subp_tile tile = {
        .tap_offsets = call->word_offsets,
        .activation = call->activation,
        .to_float = call->to_float,
        .words = (int32_t)call->words,
        .word_stride = words.word_stride,
        .requantize = call->requantize,
    };
    run runs[2];
    int now = 0;
    place_run(j, j->row, j->first, now, &runs[now]);
    aim_words(j, &runs[now], &words);
    if (!call->shared) call->interleave(&words);
    for (;; now = !now) {
        const int below = runs[now].row + 1 < j->row_end;
        const ptrdiff_t first = below ? runs[now].first : runs[now].first + call->run_pixels;
        const int ends = first >= j->end, makes = !ends && !call->shared;
        place_run(j, below ? runs[now].row + 1 : j->row, first, !now, &runs[!now]);
        if (makes) aim_words(j, &runs[!now], &words);
        run_words(call, &runs[now], makes ? &words : NULL, &tile, j->to);
        if (ends) return;
    }
}

static void run_from_words(const job *j) {
    const subp_thread_state_fn *state = &j->call->state;
    if (state->begin) state->begin((int32_t)j->call->words);
    run_all_words(j);
    if (state->end) state->end();
}

/* The last band may be lower than the parts of a pass were cut for, and leave none for some. */
static void run_job(const job *j) {
    if (j->first < j->end) (j->call->words ? run_from_words : run_from_planes)(j);
}

void subp_conv_rows(const subp_conv *call, const void *x, const void *planes, subp_rows s, ptrdiff_t row,
                    ptrdiff_t row_end, void *out, const ptrdiff_t *out_offsets, void *words) {
    ptrdiff_t width;
    const target to = {.out = out, .offsets = out_offsets, .channel = subp_conv_first_channel(call, row, &width)};
    const subp_conv_arrays arrays = {.x = x};
    run_job(&(job){call, &arrays, planes, &s, row, row_end, 0, s.rows * call->out_w, &to, words});
}

void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass,
                    const subp_conv_parts *parts, ptrdiff_t part, const void *planes, void *words) {
    subp_rows s = rows_of(call, pass);
    ptrdiff_t chunks = subp_ceil_div(call->band * call->out_w, parts->pixel_step);
    ptrdiff_t row = part / chunks * parts->row_step, first = part % chunks * parts->pixel_step;
    ptrdiff_t end = subp_smaller(first + parts->pixel_step, s.rows * call->out_w);
    const ptrdiff_t row_end = subp_smaller(row + parts->row_step, call->rows);
    const target to = target_of(call, arrays, &s);
    run_job(&(job){call, arrays, planes, &s, row, row_end, first, end, &to, words});
}

void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes, void *words) {
    subp_rows s = rows_of(call, pass);
    for (ptrdiff_t fill = 0; fill < subp_conv_fills(call); fill++) subp_conv_fill(call, arrays, pass, fill, planes);
    const target to = target_of(call, arrays, &s);
    run_job(&(job){call, arrays, planes, &s, 0, call->rows, 0, s.rows * call->out_w, &to, words});
}
