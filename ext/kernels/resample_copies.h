/* The copies of resample.h, for elements of one size: the includer defines ELEMENT, an unsigned integer of that size,
 * and NAMED(function), what its functions are called. */
#define element NAMED(element)
typedef ELEMENT __attribute__((may_alias, aligned(1))) element; /* of any type, and in bytes at any place */

static void NAMED(gather_row)(const subp_gather *call, const void *from, void *to) {
    const element *in = from;
    element *out = to;
    for (ptrdiff_t x = 0; x < call->first; x++) out[x] = in[call->columns[x]];
    if (call->last > call->first)
        memcpy(out + call->first, in + call->columns[call->first],
               (size_t)(call->last - call->first) * sizeof(element));
    for (ptrdiff_t x = call->last; x < call->out_w; x++) out[x] = in[call->columns[x]];
}

/* Two rows are what most networks weave, in a loop that compilers know how to vectorise. */
static void NAMED(weave_two)(const element *restrict a, const element *restrict b, ptrdiff_t pairs,
                             element *restrict out) {
    for (ptrdiff_t i = 0; i < pairs; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

static void NAMED(weave_row)(const subp_weave *call, ptrdiff_t plane, ptrdiff_t y, void *to) {
    const ptrdiff_t step = call->step_w, phase = y % call->step_h * step, row = y / call->step_h;
    element *out = to;
    const element *from[2];
    for (ptrdiff_t x = 0; x < step; x++) {
        const ptrdiff_t count = x < call->out_w ? subp_ceil_div(call->out_w - x, step) : 0;
        const element *in = (const element *)call->sources[phase + x] + plane * call->strides[phase + x] + row * count;
        if (step == 1) memcpy(out, in, (size_t)count * sizeof(element));
        else if (step == 2) from[x] = in;
        else for (ptrdiff_t i = 0; i < count; i++) out[i * step + x] = in[i];
    }
    if (step != 2) return;
    NAMED(weave_two)(from[0], from[1], call->out_w / 2, out);
    if (call->out_w % 2) out[call->out_w - 1] = from[0][call->out_w / 2];
}

#undef element
#undef ELEMENT
#undef NAMED
