#include "conv.h"

#include <string.h>

#include "dispatch.h"

/* Flat pixels of a work item: a multiple of every tile, small enough that the rows of one chunk stay in L2. */
enum { CHUNK = 768 };

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* One row of a phase: zeros, then every stride-th pixel, then zeros. */
static void fill_row(const subp_planes *p, const float *in, ptrdiff_t phase_col, float *out) {
    ptrdiff_t shift = phase_col - p->pad_left; /* input column of out[0] */
    ptrdiff_t begin = shift < 0 ? smaller(ceil_div(-shift, p->stride_w), p->plane_w) : 0;
    ptrdiff_t end = shift < p->width ? smaller(ceil_div(p->width - shift, p->stride_w), p->plane_w) : begin;
    if (end < begin) end = begin;
    memset(out, 0, (size_t)begin * sizeof(float));
    if (p->stride_w == 1)
        memcpy(out + begin, in + begin + shift, (size_t)(end - begin) * sizeof(float));
    else
        for (ptrdiff_t x = begin; x < end; x++) out[x] = in[x * p->stride_w + shift];
    memset(out + end, 0, (size_t)(p->plane_w - end) * sizeof(float));
}

void subp_fill_planes(const subp_planes *p, const float *in, float *out) {
    for (ptrdiff_t phase = 0; phase < p->phases; phase++)
        for (ptrdiff_t y = 0; y < p->plane_h; y++, out += p->plane_w) {
            ptrdiff_t source = y * p->stride_h + p->phase_rows[phase] - p->pad_top;
            if (source < 0 || source >= p->height)
                memset(out, 0, (size_t)p->plane_w * sizeof(float));
            else
                fill_row(p, in + source * p->width, p->phase_cols[phase], out);
        }
}

static ptrdiff_t run_length(const subp_conv *call) { return (call->out_h - 1) * call->pitch + call->out_w; }

ptrdiff_t subp_conv_items(const subp_conv *call) {
    return call->batch * call->rows * ceil_div(run_length(call), CHUNK);
}

void subp_conv_item(const subp_conv *call, ptrdiff_t item) {
    ptrdiff_t chunks = ceil_div(run_length(call), CHUNK), plane = call->out_h * call->out_w;
    ptrdiff_t row = item / chunks % call->rows, image = item / chunks / call->rows;
    ptrdiff_t rows_per_group = call->rows / call->groups, group = row / rows_per_group;
    ptrdiff_t group_out = call->out_channels / call->groups, group_in = call->in_channels / call->groups;
    ptrdiff_t in_group = row % rows_per_group * call->block;          /* first output channel, within the group */
    ptrdiff_t width = smaller(call->block, group_out - in_group);      /* a group's last row may be narrower */
    ptrdiff_t channel = group * group_out + in_group;
    subp_tile tile = {
        .planes = call->planes + (image * call->in_channels + group * group_in) * call->plane_stride,
        .plane_stride = call->plane_stride,
        .tap_offsets = call->tap_offsets,
        .taps = call->taps,
        .value_step = call->block,
        .indices = call->indices ? call->indices + row * call->kept : NULL,
        .kept = (int32_t)call->kept,
        .first = item % chunks * CHUNK,
        .store = {.channel_stride = plane,
                  .pitch = call->pitch,
                  .width = call->out_w,
                  .activation = call->activation},
    };
    tile.count = smaller(CHUNK, run_length(call) - tile.first);
    for (ptrdiff_t n = 0; n < width;) {
        const subp_kernel *kernel = subp_find_kernel(call->op, call->isa, call->block - n);
        ptrdiff_t at = (image * call->out_channels + channel + n) * plane;
        tile.values = call->values + row * call->kept * call->taps * call->block + n;
        tile.channels = (int32_t)smaller(kernel->channels, width - n);
        tile.store.out = call->out + at;
        tile.store.residual = call->residual ? call->residual + at : NULL;
        tile.store.bias = call->bias ? call->bias + channel + n : NULL;
        kernel->run(&tile);
        n += kernel->channels;
    }
}
