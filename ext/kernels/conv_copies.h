/* The planes of conv.h, for elements of one size: the includer defines ELEMENT, an unsigned integer of that size, and
 * NAMED(function), what its functions are called. */
#define element NAMED(element)
typedef ELEMENT __attribute__((may_alias)) element;

static void NAMED(pad)(const subp_conv *call, ptrdiff_t count, element *out) {
    const element padding = (element)call->padding;
    for (ptrdiff_t i = 0; i < count; i++) out[i] = padding;
}

/* Rows of a copy whose width and stride are those of the input: one shifted run, then padding over what came from the
 * neighbouring rows. `source` is the input row of the first, all rows are inside the input. */
static void NAMED(copy_shifted)(const subp_conv *call, const element *in, ptrdiff_t source, ptrdiff_t rows,
                                ptrdiff_t shift, element *out) {
    const element padding = (element)call->padding;
    ptrdiff_t width = call->width, count = rows * width, begin, end;
    ptrdiff_t first = subp_clip(-shift, 0, count), last = subp_clip(count - shift, first, count);
    columns_inside(call, shift, &begin, &end);
    /* Only the run's own rows are read: what a shift takes from beyond them is padding. */
    memcpy(out + first, in + source * width + first + shift, (size_t)(last - first) * sizeof(element));
    for (ptrdiff_t x = 0; x < begin; x++)
        for (ptrdiff_t y = 0; y < rows; y++) out[y * width + x] = padding;
    for (ptrdiff_t x = end; x < width; x++)
        for (ptrdiff_t y = 0; y < rows; y++) out[y * width + x] = padding;
}

static void NAMED(copy_strided)(const subp_conv *call, const element *in, ptrdiff_t source, ptrdiff_t rows,
                                ptrdiff_t shift, element *out) {
    const element padding = (element)call->padding;
    ptrdiff_t width = call->out_w, stride = call->stride_w, begin, end;
    columns_inside(call, shift, &begin, &end);
    int halve = call->halve && stride == 2 && begin < end;
    if (halve)
        call->halve(in + source * call->width + 2 * begin + shift, call->stride_h * call->width, rows, end - begin,
                    out + begin, width);
    if (halve && begin == 0 && end == width) return;
    for (ptrdiff_t y = 0; y < rows; y++, out += width) {
        const element *from = in + (source + y * call->stride_h) * call->width + shift;
        for (ptrdiff_t x = 0; x < begin; x++) out[x] = padding;
        for (ptrdiff_t x = begin; x < end && !halve; x++) out[x] = from[x * stride];
        for (ptrdiff_t x = end; x < width; x++) out[x] = padding;
    }
}

static void NAMED(fill_rows)(const subp_conv *call, const void *x, subp_rows s, ptrdiff_t channel, ptrdiff_t first,
                             ptrdiff_t last, void *planes) {
    const element *in = (const element *)x + (s.image * call->in_channels + channel) * call->height * call->width;
    /* Fewer rows than a copy has room for may be wanted. */
    ptrdiff_t wanted = s.rows + call->plane_rows - call->band, width = call->out_w;
    int whole = call->stride_w == 1 && call->stride_h == 1 && width == call->width;
    for (ptrdiff_t p = first; p < last; p++) {
        element *out = (element *)planes + channel * call->channel_stride + p * call->plane_rows * width;
        ptrdiff_t shift = call->copy_cols[p] - call->pad_left;
        ptrdiff_t source = s.first_row * call->stride_h + call->copy_rows[p] - call->pad_top;
        ptrdiff_t above = source < 0 ? subp_smaller(subp_ceil_div(-source, call->stride_h), wanted) : 0;
        ptrdiff_t below = source < call->height ? subp_ceil_div(call->height - source, call->stride_h) : 0;
        below = subp_clip(below, above, wanted);
        NAMED(pad)(call, above * width, out);
        if (below > above)
            (whole ? NAMED(copy_shifted) : NAMED(copy_strided))(call, in, source + above * call->stride_h,
                                                                below - above, shift, out + above * width);
        NAMED(pad)(call, (wanted - below) * width, out + below * width);
    }
}

#undef element
#undef ELEMENT
#undef NAMED
