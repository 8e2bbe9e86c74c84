/* Depthwise convolution of uint8 planes for the usual windows, in the words of simd_bytes.h.
 *
 * A vector of input bytes becomes one of four neighbours in every 32-bit lane, which one dot product multiplies with
 * four weights of a row. Planes of a width that fills vectors are read and written in place, several output rows at a
 * time, so that a row serves all the windows that see it. Others are copied first, with their padding, several planes
 * at a time: then every tap of every output is at a constant distance, and a plane is one run of pixels without edges
 * or gaps, however narrow it is; what is computed between its rows is not stored.
 */
#ifndef SUBP_INT8_WINDOW_H
#define SUBP_INT8_WINDOW_H

#include "int8_depthwise.h"
#include "shared.h"

enum { MAX_SIDE = 7, MAX_GROUPS = 2, MAX_PARTS = 4, MAX_ROWS = 4 };

/* Groups of up to four taps in a row of a window, and the taps of each. */
INLINE int groups_of(int kernel) { return (kernel + 3) / 4; }
INLINE int taps_of(int kernel, int group) { return kernel - 4 * group > 4 ? 4 : kernel - 4 * group; }

/* What a plane has of its own, and what all have in common; then the same in vectors. */
typedef struct {
    const int8_t *values;
    const subp_requantize *requantize;
    float factor;
    int32_t start;
} plane_numbers;

typedef struct {
    quad_weights weights[MAX_SIDE * MAX_GROUPS];
    stored_constants constants;
    int32_t start;
} plane_constants;

INLINE plane_numbers numbers_of(const subp_depthwise *d, ptrdiff_t n, int kernel) {
    return (plane_numbers){(const int8_t *)d->values + n * kernel * kernel, d->requantize, d->factor[n], d->start[n]};
}

INLINE void find_constants(plane_constants *c, const plane_numbers *n, int kernel) {
    const int groups = groups_of(kernel);
    c->constants = stored_constants_of(n->requantize, n->factor);
    c->start = n->start;
    UNROLL for (int i = 0; i < kernel; i++)
        UNROLL for (int g = 0; g < groups; g++)
            c->weights[i * groups + g] = quad_weights_of(n->values + i * kernel + 4 * g, taps_of(kernel, g));
}

INLINE void start_sums(vi32 sums[MAX_ROWS][4], int rows, int32_t start) {
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < 4; v++) sums[r][v] = vi32_splat(start);
}

#if VU8_HAS_QUADS
/* Parts of a row that are loaded for one vector of outputs. */
INLINE int parts_of(int stride) { return stride == 1 ? 2 : 4; }

/* Where a part is read, from the first window's first byte. */
INLINE ptrdiff_t part_offset(int part, int stride) {
    return stride == 1 ? 12 * part : part / 2 * VU8_BYTES + part % 2 * 8;
}

/* The bytes for each group of taps; with stride 2 the two halves of the outputs are parted. */
INLINE void pick_quads(vu8 quads[MAX_GROUPS][4], const vu8 parts[MAX_PARTS], int kernel, int stride) {
    if (stride == 1) {
        UNROLL for (int v = 0; v < 3; v++) quads[0][v] = vu8_quads(parts[0], vu8_quad_order(4 * v, 1));
        quads[0][3] = vu8_quads(parts[1], vu8_quad_order(0, 1));
        if (kernel <= 4) return;
        UNROLL for (int v = 0; v < 3; v++) quads[1][v] = quads[0][v + 1];
        quads[1][3] = vu8_quads(parts[1], vu8_quad_order(4, 1));
    } else {
        UNROLL for (int g = 0; g < groups_of(kernel); g++)
            UNROLL for (int v = 0; v < 4; v++) quads[g][v] = vu8_quads(parts[v], vu8_quad_order(4 * g, 2));
    }
}

/* Input row i of those that `rows` output rows see. */
INLINE void add_row(vi32 (*sums)[4], const vu8 parts[MAX_PARTS], const plane_constants *c, int i, int kernel,
                    int stride, int rows) {
    const int groups = groups_of(kernel);
    vu8 quads[MAX_GROUPS][4];
    pick_quads(quads, parts, kernel, stride);
    UNROLL for (int r = 0; r < rows; r++) {
        const int tap = i - r * stride;
        if (tap >= 0 && tap < kernel)
            UNROLL for (int g = 0; g < groups; g++)
                UNROLL for (int v = 0; v < 4; v++)
                    sums[r][v] = vi32_dot(sums[r][v], quads[g][v], c->weights[tap * groups + g], taps_of(kernel, g));
    }
}

/* The bytes at `from` and on, for one output row. */
INLINE void add_bytes(vi32 (*sums)[4], const uint8_t *from, const plane_constants *c, int i, int kernel, int stride) {
    vu8 parts[MAX_PARTS];
    UNROLL for (int part = 0; part < parts_of(stride); part++)
        parts[part] = vu8_load(from + part_offset(part, stride));
    add_row(sums, parts, c, i, kernel, stride, 1);
}
#else
INLINE void add_bytes(vi32 (*sums)[4], const uint8_t *from, const plane_constants *c, int i, int kernel, int stride) {
    vi32_add_taps(*sums, from, c->weights + i * groups_of(kernel), kernel, stride);
}
#endif

/* What is left out of the last step where the constants allow it. */
enum { WITH_RESIDUAL, BOUNDED, PLAIN }; /* PLAIN: zero point and bounds are those of uint8, as after most activations */

INLINE int ending_of(const subp_depthwise *d) {
    const subp_requantize *q = d->requantize;
    return d->residual ? WITH_RESIDUAL : q->zero || q->low || q->high != UINT8_MAX ? BOUNDED : PLAIN;
}

INLINE vu8 finished(const vi32 sums[4], vu8 residual, const plane_constants *c, int stride, int ending) {
    if (ending == WITH_RESIDUAL && stride == 2) residual = vu8_halves_parted(residual);
    const vu8 stored = vu8_stored(sums, ending == WITH_RESIDUAL ? &residual : NULL, &c->constants, ending == PLAIN);
    return stride == 2 ? vu8_halves_joined(stored) : stored;
}

/* --- planes that are copied first --- */

enum {
    ROOM = 20 * 1024, OUT_ROOM = 8 * 1024, /* bytes: they stay in the L1 cache */
    SLACK = 4 * VU8_BYTES,                 /* behind all copies, which whole vectors reach */
};

/* Bands of rows at work, in copies: those of every stride-th row, so that all taps are at a constant distance. */
typedef struct {
    ptrdiff_t planes, band;   /* at a time, and output rows of each: a band alone has bands after it */
    ptrdiff_t row, pitch;     /* bytes of a copied row, and outputs that are computed for it */
    ptrdiff_t rows, tail;     /* of a copy, and bytes of padding that follow them */
    ptrdiff_t copy, out;      /* bytes from a copy to the next, and from one plane of outputs to the next */
    ptrdiff_t before, inside; /* columns of an input row that are padding, then those that are input */
} band_plan;

typedef struct {
    _Alignas(64) uint8_t in[ROOM + SLACK], out[OUT_ROOM + SLACK], residual[OUT_ROOM + SLACK];
} band_room;

INLINE ptrdiff_t round_up(ptrdiff_t x, ptrdiff_t unit) { return (x + unit - 1) / unit * unit; }

/* Returns 0 where not even one output row fits. */
INLINE int plan_bands(band_plan *p, const subp_window *g, int kernel, int stride) {
    const ptrdiff_t below = (kernel - 1) / stride;
    const ptrdiff_t seen = (g->out_w - 1) * stride + kernel, held = subp_smaller(seen, g->pad_left + g->width);
    /* What lies right of a row may be the padding left of the next. */
    ptrdiff_t row = seen - g->pad_left > held ? seen - g->pad_left : held;
    p->row = round_up(row > stride * g->out_w ? row : stride * g->out_w, stride);
    p->pitch = p->row / stride;
    p->before = subp_smaller(g->pad_left, p->row);
    p->inside = subp_smaller(g->width, p->row - p->before);
    p->tail = seen > p->row ? seen - p->row : 0;
    p->band = subp_smaller((ROOM / stride - p->tail - VU8_BYTES) / p->row - below, OUT_ROOM / p->pitch);
    if (p->band < 1) return 0;
    p->band = subp_ceil_div(g->out_h, subp_ceil_div(g->out_h, p->band));
    p->rows = p->band + below;
    p->copy = round_up(p->rows * p->row + p->tail, VU8_BYTES);
    p->out = round_up(p->band * p->pitch, VU8_BYTES);
    p->planes = p->band < g->out_h ? 1 : subp_smaller(ROOM / (stride * p->copy), OUT_ROOM / p->out);
    if (p->planes < 1) p->planes = 1;
    return 1;
}

INLINE void copy_band(const band_plan *p, const subp_window *g, const uint8_t *in, vu8 fill, ptrdiff_t first,
                      int stride, uint8_t *to) {
    for (ptrdiff_t c = 0; c < stride; c++, to += p->copy) {
        const ptrdiff_t source = stride * first + c - g->pad_top; /* of the first row */
        const ptrdiff_t above = source < 0 ? subp_smaller(subp_ceil_div(-source, stride), p->rows) : 0;
        const ptrdiff_t left = g->height - (source + above * stride); /* input rows from there on */
        const ptrdiff_t inside = left > 0 ? subp_smaller(subp_ceil_div(left, stride), p->rows - above) : 0;
        const ptrdiff_t below = (p->rows - above - inside) * p->row + p->tail;
        for (ptrdiff_t at = 0; at < above * p->row; at += VU8_BYTES) vu8_store(to + at, fill);
        uint8_t *after = to + (above + inside) * p->row;
        if (inside > 0)
            vu8_copy_rows(to + above * p->row, in + (source + above * stride) * g->width, inside, stride * g->width,
                          p->before, p->inside, p->row, fill);
        for (ptrdiff_t at = 0; at < below; at += VU8_BYTES) vu8_store(after + at, fill);
    }
}

/* Outputs and what lies between their rows, up to a whole vector. */
INLINE void run_band(const band_plan *p, const uint8_t *in, const plane_numbers *n, const uint8_t *residual,
                     uint8_t *out, ptrdiff_t count, int kernel, int stride, int ending) {
    const ptrdiff_t copy = p->copy, row = p->row;
    plane_constants c;
    find_constants(&c, n, kernel);
    for (ptrdiff_t at = 0; at < count; at += VU8_BYTES) {
        vi32 sums[MAX_ROWS][4];
        vu8 addend = vu8_splat(0);
        start_sums(sums, 1, c.start);
        UNROLL for (int i = 0; i < kernel; i++)
            add_bytes(sums, in + i % stride * copy + i / stride * row + stride * at, &c, i, kernel, stride);
        if (ending == WITH_RESIDUAL) addend = vu8_load(residual + at);
        vu8_store(out + at, finished(sums[0], addend, &c, stride, ending));
    }
}

typedef void (*run_band_fn)(const band_plan *, const uint8_t *in, const plane_numbers *, const uint8_t *residual,
                            uint8_t *out, ptrdiff_t count, int ending);

/* One thing after the other for all planes: bytes that were just stored in other pieces would be slow to load. */
INLINE void copied_planes(const subp_depthwise *d, const band_plan *p, int kernel, int stride, run_band_fn run) {
    const subp_window *g = d->window;
    const vu8 fill = vu8_splat(*(const uint8_t *)d->padding);
    band_room room;
    for (ptrdiff_t n = 0; n < d->count; n += p->planes)
        for (ptrdiff_t first = 0; first < g->out_h; first += p->band) {
            const ptrdiff_t planes = subp_smaller(p->planes, d->count - n);
            const ptrdiff_t rows = subp_smaller(p->band, g->out_h - first);
            const ptrdiff_t *offsets = d->out_offsets + n, at = first * g->out_w;
            for (ptrdiff_t i = 0; i < planes; i++)
                copy_band(p, g, (const uint8_t *)d->in + (n + i) * d->in_stride, fill, first, stride,
                          room.in + i * stride * p->copy);
            for (ptrdiff_t i = 0; d->residual && i < planes; i++)
                for (ptrdiff_t y = 0; y < rows; y++)
                    vu8_copy_rows(room.residual + i * p->out + y * p->pitch,
                                  (const uint8_t *)d->residual + offsets[i] + at + y * g->out_w, 1, 0, 0,
                                  g->out_w, g->out_w, fill);
            for (ptrdiff_t i = 0; i < planes; i++) {
                const plane_numbers numbers = numbers_of(d, n + i, kernel);
                run(p, room.in + i * stride * p->copy, &numbers, d->residual ? room.residual + i * p->out : NULL,
                    room.out + i * p->out, (rows - 1) * p->pitch + g->out_w, ending_of(d));
            }
            for (ptrdiff_t i = 0; i < planes; i++)
                vu8_write_rows((uint8_t *)d->out + offsets[i] + at, room.out + i * p->out, rows, p->pitch,
                               g->out_w);
        }
}

#if VU8_HAS_SPANS
/* --- planes in place --- */

/* Output columns of a vector, and the bytes inside of the input that they need. */
typedef struct {
    ptrdiff_t column;
    vu8_span parts[MAX_PARTS], stored;
} plane_tile;

typedef struct {
    const uint8_t *in, *padding, *residual; /* a plane, a row, a plane or NULL */
    uint8_t *out;
} plane_arrays;

INLINE void find_tile(plane_tile *t, const subp_window *g, ptrdiff_t column, ptrdiff_t count, int stride) {
    t->column = column;
    t->stored = vu8_between(0, count);
    for (int part = 0; part < parts_of(stride); part++) {
        const ptrdiff_t first = column * stride - g->pad_left + part_offset(part, stride);
        t->parts[part] = vu8_between(-first, g->width - first);
    }
}

/* Output rows from y on, as many as fill the registers and there are. */
INLINE void run_block(const plane_arrays *a, const subp_window *g, const plane_tile *t, const plane_constants *c,
                      vu8 fill, ptrdiff_t y, int kernel, int stride, int rows, int ending) {
    const ptrdiff_t first = t->column * stride - g->pad_left, top = y * stride - g->pad_top;
    vi32 sums[MAX_ROWS][4];
    start_sums(sums, rows, c->start);
    UNROLL for (int i = 0; i < (rows - 1) * stride + kernel; i++) {
        const uint8_t *row = top + i >= 0 && top + i < g->height ? a->in + (top + i) * g->width : a->padding;
        vu8 parts[MAX_PARTS];
        UNROLL for (int part = 0; part < parts_of(stride); part++)
            parts[part] = vu8_load_span(row + first + part_offset(part, stride), t->parts[part], fill);
        add_row(sums, parts, c, i, kernel, stride, rows);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const ptrdiff_t at = (y + r) * g->out_w + t->column;
        vu8 addend = fill;
        if (y + r >= g->out_h) break;
        if (ending == WITH_RESIDUAL) addend = vu8_load_span(a->residual + at, t->stored, fill);
        vu8_store_span(a->out + at, finished(sums[r], addend, c, stride, ending), t->stored);
    }
}

typedef void (*run_tile_fn)(const plane_arrays *, const subp_window *, const plane_tile *, const plane_numbers *,
                            int ending);

INLINE void planes_in_place(const subp_depthwise *d, int kernel, int stride, run_tile_fn run) {
    const subp_window *g = d->window;
    const ptrdiff_t tiles = subp_ceil_div(g->out_w, VU8_BYTES), step = subp_ceil_div(g->out_w, tiles);
    for (ptrdiff_t n = 0; n < d->count; n++) {
        const plane_numbers numbers = numbers_of(d, n, kernel);
        const plane_arrays a = {.in = (const uint8_t *)d->in + n * d->in_stride,
                                .padding = d->padding,
                                .residual = subp_at_if(d->residual, d->out_offsets[n], 1),
                                .out = (uint8_t *)d->out + d->out_offsets[n]};
        for (ptrdiff_t column = 0; column < g->out_w; column += step) {
            plane_tile t;
            find_tile(&t, g, column, subp_smaller(step, g->out_w - column), stride);
            run(&a, g, &t, &numbers, ending_of(d));
        }
    }
}

INLINE void run_tile(const plane_arrays *a, const subp_window *g, const plane_tile *t, const plane_numbers *n,
                     int kernel, int stride, int rows, int ending) {
    const vu8 fill = vu8_splat(*a->padding);
    plane_constants c;
    find_constants(&c, n, kernel);
    for (ptrdiff_t y = 0; y < g->out_h; y += rows) run_block(a, g, t, &c, fill, y, kernel, stride, rows, ending);
}

/* Functions of their own, for the registers. */
#define DEFINE_IN_PLACE(kernel, stride, rows)                                                                         \
    static NOINLINE void run_tile_##kernel##s##stride(const plane_arrays *a, const subp_window *g,                    \
                                                      const plane_tile *t, const plane_numbers *n, int ending) {      \
        if (ending == WITH_RESIDUAL)                                                                                  \
            run_tile(a, g, t, n, kernel, stride, rows, WITH_RESIDUAL);                                                \
        else if (ending == BOUNDED)                                                                                   \
            run_tile(a, g, t, n, kernel, stride, rows, BOUNDED);                                                      \
        else                                                                                                          \
            run_tile(a, g, t, n, kernel, stride, rows, PLAIN);                                                        \
    }                                                                                                                 \
    static void in_place_##kernel##s##stride(const subp_depthwise *d) {                                               \
        planes_in_place(d, kernel, stride, run_tile_##kernel##s##stride);                                             \
    }

/* Whether vectors would be filled to three quarters. */
INLINE int fills_vectors(const subp_window *g) {
    return 4 * g->out_w >= 3 * VU8_BYTES * subp_ceil_div(g->out_w, VU8_BYTES);
}
#else
#define DEFINE_IN_PLACE(kernel, stride, many)                                                                         \
    static void in_place_##kernel##s##stride(const subp_depthwise *d) { subp_depthwise_bytes(d); }

INLINE int fills_vectors(const subp_window *g) { return (void)g, 0; }
#endif

#define DEFINE_INT8_DEPTHWISE(set, kernel, stride, many)                                                              \
    DEFINE_IN_PLACE(kernel, stride, many)                                                                             \
    static NOINLINE void run_band_##kernel##s##stride(const band_plan *p, const uint8_t *in, const plane_numbers *n,  \
                                                      const uint8_t *residual, uint8_t *out, ptrdiff_t count,         \
                                                      int ending) {                                                   \
        if (ending == WITH_RESIDUAL)                                                                                  \
            run_band(p, in, n, residual, out, count, kernel, stride, WITH_RESIDUAL);                                  \
        else if (ending == BOUNDED)                                                                                   \
            run_band(p, in, n, NULL, out, count, kernel, stride, BOUNDED);                                            \
        else                                                                                                          \
            run_band(p, in, n, NULL, out, count, kernel, stride, PLAIN);                                              \
    }                                                                                                                 \
    static void copied_##kernel##s##stride(const subp_depthwise *d, const band_plan *p) {                             \
        copied_planes(d, p, kernel, stride, run_band_##kernel##s##stride);                                            \
    }                                                                                                                 \
    void u8s8_dwconv_##kernel##x##kernel##s##stride##__##set(const subp_depthwise *d) {                               \
        band_plan p;                                                                                                  \
        if (d->to_float)                                                                                              \
            subp_depthwise_bytes(d);                                                                                  \
        else if (fills_vectors(d->window))                                                                            \
            in_place_##kernel##s##stride(d);                                                                          \
        else if (plan_bands(&p, d->window, kernel, stride))                                                           \
            copied_##kernel##s##stride(d, &p);                                                                        \
        else                                                                                                          \
            subp_depthwise_bytes(d);                                                                                  \
    }

#endif
