#include "conv.h"

#include <string.h>

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

static ptrdiff_t clip(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) { return x < low ? low : x > high ? high : x; }

static subp_rows rows_of(const subp_conv *call, ptrdiff_t pass) {
    ptrdiff_t bands = ceil_div(call->out_h, call->band), band = pass % bands;
    subp_rows s = {.image = pass / bands, .first_row = band * call->band};
    s.rows = smaller(call->band, call->out_h - s.first_row);
    return s;
}

ptrdiff_t subp_conv_passes(const subp_conv *call) {
    return ceil_div(call->out_h, call->band);
}

ptrdiff_t subp_conv_fills(const subp_conv *call) {
    return call->copies ? call->in_channels : 0;
}

/* Columns [begin, end) of a copy with this shift hold input, the others padding. */
static void columns_inside(const subp_conv *call, ptrdiff_t shift, ptrdiff_t *begin, ptrdiff_t *end) {
    *begin = shift < 0 ? smaller(ceil_div(-shift, call->stride_w), call->out_w) : 0;
    *end = shift < call->width ? smaller(ceil_div(call->width - shift, call->stride_w), call->out_w) : *begin;
    if (*end < *begin) *end = *begin;
}

/* Rows of a copy whose width and stride are those of the input: one shifted run, then zeros over what came from the
 * neighbouring rows. `source` is the input row of the first, all rows are inside the input. */
static void copy_shifted(const subp_conv *call, const float *in, ptrdiff_t source, ptrdiff_t rows, ptrdiff_t shift,
                         float *out) {
    ptrdiff_t width = call->width, count = rows * width, begin, end;
    ptrdiff_t first = clip(-shift, 0, count), last = clip(count - shift, first, count);
    columns_inside(call, shift, &begin, &end);
    /* Only the run's own rows are read: what a shift takes from beyond them is padding. */
    memcpy(out + first, in + source * width + first + shift, (size_t)(last - first) * sizeof(float));
    for (ptrdiff_t x = 0; x < begin; x++)
        for (ptrdiff_t y = 0; y < rows; y++) out[y * width + x] = 0.0f;
    for (ptrdiff_t x = end; x < width; x++)
        for (ptrdiff_t y = 0; y < rows; y++) out[y * width + x] = 0.0f;
}

static void copy_strided(const subp_conv *call, const float *in, ptrdiff_t source, ptrdiff_t rows, ptrdiff_t shift,
                         float *out) {
    ptrdiff_t width = call->out_w, stride = call->stride_w, begin, end;
    columns_inside(call, shift, &begin, &end);
    int halve = stride == 2 && begin < end;
    if (halve)
        call->halve(in + source * call->width + 2 * begin + shift, call->stride_h * call->width, rows, end - begin,
                    out + begin, width);
    for (ptrdiff_t y = 0; y < rows; y++, out += width) {
        const float *from = in + (source + y * call->stride_h) * call->width + shift;
        for (ptrdiff_t x = 0; x < begin; x++) out[x] = 0.0f;
        for (ptrdiff_t x = begin; x < end && !halve; x++) out[x] = from[x * stride];
        for (ptrdiff_t x = end; x < width; x++) out[x] = 0.0f;
    }
}

void subp_conv_fill_rows(const subp_conv *call, const float *x, subp_rows s, ptrdiff_t channel, float *planes) {
    const float *in = x + (s.image * call->in_channels + channel) * call->height * call->width;
    /* Fewer rows than a copy has room for may be wanted. */
    ptrdiff_t wanted = s.rows + call->plane_rows - call->band, width = call->out_w;
    int whole = call->stride_w == 1 && call->stride_h == 1 && width == call->width;
    for (ptrdiff_t p = 0; p < call->copies; p++) {
        float *out = planes + channel * call->channel_stride + p * call->plane_rows * width;
        ptrdiff_t shift = call->copy_cols[p] - call->pad_left;
        ptrdiff_t source = s.first_row * call->stride_h + call->copy_rows[p] - call->pad_top;
        ptrdiff_t above = source < 0 ? smaller(ceil_div(-source, call->stride_h), wanted) : 0;
        ptrdiff_t below = source < call->height ? ceil_div(call->height - source, call->stride_h) : 0;
        below = clip(below, above, wanted);
        memset(out, 0, (size_t)(above * width) * sizeof(float));
        if (below > above)
            (whole ? copy_shifted : copy_strided)(call, in, source + above * call->stride_h, below - above, shift,
                                                  out + above * width);
        memset(out + below * width, 0, (size_t)((wanted - below) * width) * sizeof(float));
    }
}

void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t channel,
                    float *planes) {
    subp_conv_fill_rows(call, arrays->x, rows_of(call, pass), channel, planes);
}

/* Products per float read from beyond the first cache that take a core as long: what weighs them against each other. */
enum { PRODUCTS_PER_FLOAT = 64 };

subp_conv_parts subp_conv_divide(const subp_conv *call, ptrdiff_t threads) {
    subp_conv_parts best = {0};
    ptrdiff_t pixels = call->band * call->out_w, tiles = ceil_div(pixels, call->tile_pixels), least = PTRDIFF_MAX;
    for (ptrdiff_t chunks = 1; chunks <= smaller(threads, tiles); chunks++) {
        ptrdiff_t row_step = ceil_div(call->rows, smaller(threads / chunks, call->rows));
        ptrdiff_t pixel_step = ceil_div(tiles, chunks) * call->tile_pixels;
        ptrdiff_t values = row_step * call->block * call->kept * call->taps;
        ptrdiff_t cost = values * pixel_step + PRODUCTS_PER_FLOAT * (values + call->in_channels * pixel_step);
        if (cost >= least) continue;
        least = cost;
        best.row_step = row_step;
        best.pixel_step = pixel_step;
        best.parts = ceil_div(call->rows, row_step) * ceil_div(pixels, pixel_step);
    }
    return best;
}

ptrdiff_t subp_conv_first_channel(const subp_conv *call, ptrdiff_t row, ptrdiff_t *width) {
    ptrdiff_t rows_per_group = call->rows / call->groups, group_out = call->out_channels / call->groups;
    ptrdiff_t in_group = row % rows_per_group * call->block;
    *width = smaller(call->block, group_out - in_group); /* a group's last row may be narrower */
    return row / rows_per_group * group_out + in_group;
}

/* Where the channels of a block row go: the first channel at the first pixel of the rows, and from one to the next. */
typedef struct {
    float *out;
    const float *residual;
    ptrdiff_t stride;
} target;

/* `count` pixels from `first` on of one block row, tile by tile. */
static void run_row(const subp_conv *call, const float *x, const float *planes, const subp_rows *s, ptrdiff_t row,
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
        tile.x = planes + group * group_in * call->channel_stride + first;
    else
        tile.x = x + (s->image * call->in_channels + group * group_in) * call->channel_stride + pixel;
    const float *values = call->values + row * call->kept * call->taps * call->block;
    const subp_kernel *const *kernels = call->kernels;
    for (ptrdiff_t n = 0; n < width;) {
        const subp_kernel *kernel = *kernels++;
        ptrdiff_t at = n * to.stride + first;
        tile.values = values + n * call->kept * call->taps;
        tile.channels = (int32_t)smaller(kernel->channels, width - n);
        tile.out = to.out + at;
        tile.residual = to.residual ? to.residual + at : NULL;
        tile.bias = call->bias ? call->bias + channel + n : NULL;
        kernel->run(&tile);
        n += kernel->channels;
    }
}

void subp_conv_row(const subp_conv *call, const float *x, const float *planes, subp_rows s, ptrdiff_t row, float *out,
                   ptrdiff_t out_stride) {
    const target to = {.out = out, .stride = out_stride};
    for (ptrdiff_t p = 0; p < s.rows * call->out_w; p += call->tile_pixels)
        run_row(call, x, planes, &s, row, p, smaller(call->tile_pixels, s.rows * call->out_w - p), to);
}

/* Block rows [row, row_end) on pixels [first, end) of a pass, `first` a multiple of the tile: whoever runs it, a pixel
 * is at the same place of a tile. */
static void run_rows(const subp_conv *call, const subp_conv_arrays *arrays, const float *planes, const subp_rows *s,
                     ptrdiff_t row, ptrdiff_t row_end, ptrdiff_t first, ptrdiff_t end) {
    ptrdiff_t step = call->pixels_outside ? call->tile_pixels : end - first, plane = call->out_h * call->out_w, width;
    for (ptrdiff_t at = first; at < end; at += step)
        for (ptrdiff_t r = row; r < row_end; r++) {
            ptrdiff_t channel = s->image * call->out_channels + subp_conv_first_channel(call, r, &width);
            ptrdiff_t out = channel * plane + s->first_row * call->out_w;
            const float *residual = arrays->residual ? arrays->residual + out : NULL;
            const target to = {.out = arrays->out + out, .residual = residual, .stride = plane};
            for (ptrdiff_t p = at; p < smaller(at + step, end); p += call->tile_pixels)
                run_row(call, arrays->x, planes, s, r, p, smaller(call->tile_pixels, smaller(at + step, end) - p), to);
        }
}

void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass,
                    const subp_conv_parts *parts, ptrdiff_t part, const float *planes) {
    subp_rows s = rows_of(call, pass);
    ptrdiff_t chunks = ceil_div(call->band * call->out_w, parts->pixel_step);
    ptrdiff_t row = part / chunks * parts->row_step, first = part % chunks * parts->pixel_step;
    ptrdiff_t end = smaller(first + parts->pixel_step, s.rows * call->out_w);
    run_rows(call, arrays, planes, &s, row, smaller(row + parts->row_step, call->rows), first, end);
}

void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, float *planes) {
    subp_rows s = rows_of(call, pass);
    for (ptrdiff_t channel = 0; channel < subp_conv_fills(call); channel++)
        subp_conv_fill(call, arrays, pass, channel, planes);
    run_rows(call, arrays, planes, &s, 0, call->rows, 0, s.rows * call->out_w);
}
