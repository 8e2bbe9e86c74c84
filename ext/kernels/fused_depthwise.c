#include "fused_depthwise.h"

#include "shared.h"

ptrdiff_t subp_fused_depthwise_passes(const subp_fused_depthwise *call) {
    return subp_ceil_div(call->window.out_h, call->band);
}

ptrdiff_t subp_fused_depthwise_parts(const subp_fused_depthwise *call) {
    return subp_ceil_div(call->first.rows, call->step);
}

/* The output rows of a pass. */
static subp_rows rows_of(const subp_fused_depthwise *call, ptrdiff_t pass) {
    ptrdiff_t passes = subp_fused_depthwise_passes(call), first = pass % passes * call->band;
    return (subp_rows){pass / passes, first, subp_smaller(call->band, call->window.out_h - first)};
}

/* The rows between that they see. */
static subp_rows rows_between(const subp_window *w, subp_rows out) {
    ptrdiff_t first = out.first_row * w->stride_h - w->pad_top;
    ptrdiff_t end = first + (out.rows - 1) * w->stride_h + (w->kernel_h - 1) * w->dilation_h + 1;
    first = subp_clip(first, 0, w->height);
    return (subp_rows){out.image, first, subp_clip(end, first, w->height) - first};
}

void subp_fused_depthwise_fill(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, ptrdiff_t channel, void *planes) {
    subp_conv_fill_rows(&call->first, arrays->x, rows_between(&call->window, rows_of(call, pass)), channel, planes);
}

void subp_fused_depthwise_part(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, ptrdiff_t part, const void *planes, void *words, void *between) {
    const subp_rows rows = rows_of(call, pass), seen = rows_between(&call->window, rows);
    const ptrdiff_t row = part * call->step, last = subp_smaller(row + call->step, call->first.rows) - 1;
    subp_conv_rows(&call->first, arrays->x, planes, seen, row, last + 1, between, call->between_offsets, words);

    subp_window window = call->window; /* as the rows between see it */
    window.pad_top += seen.first_row - rows.first_row * window.stride_h;
    window.height = seen.rows;
    window.out_h = rows.rows;
    ptrdiff_t width, end = subp_conv_first_channel(&call->first, last, &width);
    end += width;
    const ptrdiff_t channel = subp_conv_first_channel(&call->first, row, &width);
    const ptrdiff_t above = rows.image * call->first.out_channels * call->window.out_h + rows.first_row;
    const ptrdiff_t at = above * window.out_w;
    call->kernel->run.depthwise(&(subp_depthwise){
        .window = &window,
        .count = end - channel,
        .in_stride = call->pitch,
        .out_offsets = call->out_offsets + channel,
        .in = between,
        .padding = call->padding,
        .values = subp_at(call->values, channel * window.kernel_h * window.kernel_w, call->first.weight_element),
        .bias = call->bias ? call->bias + channel : NULL,
        .residual = subp_at_if(arrays->residual, at, call->first.out_element),
        .out = subp_at_out(arrays->out, at, call->first.out_element),
        .activation = call->activation,
        .requantize = call->requantize,
        .start = call->start ? call->start + channel : NULL,
        .factor = call->factor ? call->factor + channel : NULL,
    });
}

void subp_fused_depthwise_pass(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, void *planes, void *words, void *between) {
    for (ptrdiff_t channel = 0; channel < subp_conv_fills(&call->first); channel++)
        subp_fused_depthwise_fill(call, arrays, pass, channel, planes);
    for (ptrdiff_t part = 0; part < subp_fused_depthwise_parts(call); part++)
        subp_fused_depthwise_part(call, arrays, pass, part, planes, words, between);
}
