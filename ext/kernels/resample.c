#include "resample.h"

#include <string.h>

#include "shared.h"

#define ELEMENT uint8_t
#define NAMED(function) function##_1
#include "resample_copies.h"
#define ELEMENT uint16_t
#define NAMED(function) function##_2
#include "resample_copies.h"
#define ELEMENT uint32_t
#define NAMED(function) function##_4
#include "resample_copies.h"
#define ELEMENT uint64_t
#define NAMED(function) function##_8
#include "resample_copies.h"

static void columns_between(const subp_pairs *at, const float *in, ptrdiff_t begin, ptrdiff_t end, float *out) {
    for (ptrdiff_t x = begin; x < end; x++)
        out[x] = at->low_weight[x] * in[at->low[x]] + at->high_weight[x] * in[at->high[x]];
}

/* Elements 2 * i + 1 and 2 * i + 2 of the output lie between i and i + 1 of the input. */
static void double_columns(const float *restrict in, ptrdiff_t pairs, float *restrict out) {
    for (ptrdiff_t i = 0; i < pairs; i++) {
        out[2 * i] = 0.75f * in[i] + 0.25f * in[i + 1];
        out[2 * i + 1] = 0.25f * in[i] + 0.75f * in[i + 1];
    }
}

static void interpolate_columns(const subp_bilinear *call, const float *in, float *out) {
    if (!call->doubles) {
        columns_between(&call->columns, in, 0, call->out_w, out);
        return;
    }
    columns_between(&call->columns, in, 0, 1, out);
    double_columns(in, call->width - 1, out + 1);
    columns_between(&call->columns, in, call->out_w - 1, call->out_w, out);
}

static void blend_rows(const float *restrict a, const float *restrict b, float wa, float wb, ptrdiff_t count,
                       float *restrict out) {
    for (ptrdiff_t x = 0; x < count; x++) out[x] = wa * a[x] + wb * b[x];
}

void subp_bilinear_plane(const subp_bilinear *call, const float *in, float *out, float *rows) {
    float *row[2] = {rows, rows + call->out_w};
    ptrdiff_t held[2] = {-1, -1}; /* the input rows that they are of */
    for (ptrdiff_t y = 0; y < call->out_h; y++) {
        const ptrdiff_t wanted[2] = {call->rows.low[y], call->rows.high[y]};
        int place[2];
        for (int i = 0; i < 2; i++) {
            place[i] = held[1] == wanted[i];
            if (held[place[i]] == wanted[i]) continue;
            place[i] = held[0] == wanted[!i]; /* not where the other one is */
            held[place[i]] = wanted[i];
            interpolate_columns(call, in + wanted[i] * call->width, row[place[i]]);
        }
        blend_rows(row[place[0]], row[place[1]], call->rows.low_weight[y], call->rows.high_weight[y], call->out_w, out);
        out += call->out_w;
    }
}

void subp_gather_plane(const subp_gather *call, const void *in, void *out) {
    const ptrdiff_t size = call->element, row = call->out_w * size;
    for (ptrdiff_t y = 0; y < call->out_h; y++) {
        const void *from = subp_at(in, call->rows[y] * call->width, size);
        void *to = subp_at_out(out, y, row);
        if (y && call->rows[y] == call->rows[y - 1]) memcpy(to, subp_at(out, y - 1, row), (size_t)row);
        else if (size == 1) gather_row_1(call, from, to);
        else if (size == 2) gather_row_2(call, from, to);
        else (size == 4 ? gather_row_4 : gather_row_8)(call, from, to);
    }
}

void subp_weave_plane(const subp_weave *call, ptrdiff_t plane, void *out) {
    const ptrdiff_t size = call->element;
    for (ptrdiff_t y = 0; y < call->out_h; y++) {
        void *to = subp_at_out(out, y * call->out_w, size);
        if (size == 1) weave_row_1(call, plane, y, to);
        else if (size == 2) weave_row_2(call, plane, y, to);
        else (size == 4 ? weave_row_4 : weave_row_8)(call, plane, y, to);
    }
}
