#include "chain.h"

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

static ptrdiff_t clip(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) { return x < low ? low : x > high ? high : x; }

ptrdiff_t subp_chain_passes(const subp_chain *call) { return ceil_div(call->window.out_h, call->band); }

ptrdiff_t subp_chain_parts(const subp_chain *call) { return call->first.rows; }

/* The output rows of a pass. */
static subp_rows rows_of(const subp_chain *call, ptrdiff_t pass) {
    ptrdiff_t passes = subp_chain_passes(call), first = pass % passes * call->band;
    return (subp_rows){pass / passes, first, smaller(call->band, call->window.out_h - first)};
}

/* The rows between that they see. */
static subp_rows rows_between(const subp_window *w, subp_rows out) {
    ptrdiff_t first = out.first_row * w->stride_h - w->pad_top;
    ptrdiff_t end = first + (out.rows - 1) * w->stride_h + (w->kernel_h - 1) * w->dilation_h + 1;
    first = clip(first, 0, w->height);
    return (subp_rows){out.image, first, clip(end, first, w->height) - first};
}

void subp_chain_fill(const subp_chain *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t channel,
                     float *planes) {
    subp_conv_fill_rows(&call->first, arrays->x, rows_between(&call->window, rows_of(call, pass)), channel, planes);
}

void subp_chain_part(const subp_chain *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t part,
                     const float *planes, float *between) {
    const subp_rows rows = rows_of(call, pass), seen = rows_between(&call->window, rows);
    subp_conv_row(&call->first, arrays->x, planes, seen, part, between, call->pitch);

    subp_window window = call->window; /* as the rows between see it */
    window.pad_top += seen.first_row - rows.first_row * window.stride_h;
    window.height = seen.rows;
    window.out_h = rows.rows;
    ptrdiff_t count, channel = subp_conv_first_channel(&call->first, part, &count);
    const ptrdiff_t plane = call->window.out_h * window.out_w;
    const ptrdiff_t at = (rows.image * call->first.out_channels + channel) * plane + rows.first_row * window.out_w;
    call->kernel->run(&(subp_depthwise){
        .window = &window,
        .count = count,
        .in_stride = call->pitch,
        .out_stride = plane,
        .in = between,
        .padding = call->padding,
        .values = call->values + channel * window.kernel_h * window.kernel_w,
        .bias = call->bias ? call->bias + channel : NULL,
        .residual = arrays->residual ? arrays->residual + at : NULL,
        .out = arrays->out + at,
        .activation = call->activation,
    });
}

void subp_chain_pass(const subp_chain *call, const subp_conv_arrays *arrays, ptrdiff_t pass, float *planes,
                     float *between) {
    for (ptrdiff_t channel = 0; channel < subp_conv_fills(&call->first); channel++)
        subp_chain_fill(call, arrays, pass, channel, planes);
    for (ptrdiff_t part = 0; part < subp_chain_parts(call); part++)
        subp_chain_part(call, arrays, pass, part, planes, between);
}
