/* Depthwise convolution of uint8 planes for the usual windows, in the words of simd_bytes.h.
 *
 * A band of a plane is copied with its padding, rows in turns to as many copies as a block of `rows` output rows moves down
 * the input. Then every tap of every output is at a constant distance, and a band is a run of pixels without gaps: no
 * edges, and no lanes left empty at the end of a row, however narrow the plane is. What is computed between rows is not
 * stored. A vector of input bytes becomes one of four neighbours in every 32-bit lane, which one dot product multiplies
 * with four weights of a row, for all output rows that see it. */
#ifndef SUBP_INT8_WINDOW_H
#define SUBP_INT8_WINDOW_H

#include "int8_depthwise.h"
#include "shared.h"

enum {
    MAX_SIDE = 7,
    ROOM = 20 * 1024,                 /* bytes for copies: they stay in the L1 cache with what becomes of them */
    OUT_ROOM = 10 * 1024,
    SLACK = 2 * VU8_BYTES + 64, /* behind a copy, which whole vectors reach */
};

/* A band at work. Block row k of it holds output rows rows * k and on. */
typedef struct {
    ptrdiff_t blocks;     /* block rows of the plane */
    ptrdiff_t band;       /* of a band */
    ptrdiff_t pitch;      /* outputs from a block row to the next in a run; those of the input are stride times as many */
    ptrdiff_t copy_rows, copy, out_copy; /* rows and bytes of a copy; outputs of each row of a block */
    ptrdiff_t before, inside;            /* columns of an input row that are padding, then those that are input */
} band_plan;

/* Room for one band. */
typedef struct {
    _Alignas(64) uint8_t in[ROOM], out[OUT_ROOM], residual[OUT_ROOM];
} band_room;

INLINE ptrdiff_t round_up(ptrdiff_t x, ptrdiff_t unit) { return (x + unit - 1) / unit * unit; }

/* Returns 0 where not even one block row fits. */
INLINE int plan_bands(band_plan *p, const subp_window *g, int kernel, int stride, int rows) {
    const ptrdiff_t copies = rows * stride, below = ((rows - 1) * stride + kernel - 1) / copies;
    const ptrdiff_t seen = (g->out_w - 1) * stride + kernel, held = subp_smaller(seen, g->pad_left + g->width);
    /* What lies right of a row may be the padding left of the next. */
    ptrdiff_t row = seen - g->pad_left > held ? seen - g->pad_left : held;
    row = round_up(row > stride * g->out_w ? row : stride * g->out_w, stride);
    p->pitch = row / stride;
    p->before = subp_smaller(g->pad_left, row);
    p->inside = subp_smaller(g->width, row - p->before);
    p->blocks = subp_ceil_div(g->out_h, rows);
    const ptrdiff_t of_copy = ROOM / copies - SLACK - VU8_BYTES, of_out = OUT_ROOM / rows - VU8_BYTES;
    p->band = subp_smaller(of_copy / row - below, of_out / p->pitch);
    if (p->band < 1) return 0;
    p->band = subp_ceil_div(p->blocks, subp_ceil_div(p->blocks, p->band));
    p->copy_rows = p->band + below;
    p->copy = ROOM / copies / 64 * 64;
    p->out_copy = OUT_ROOM / rows / 64 * 64;
    return 1;
}

INLINE void copy_band(const band_plan *p, const subp_window *g, const uint8_t *in, vu8 fill, ptrdiff_t first, int stride,
                      int rows, uint8_t *to) {
    const ptrdiff_t copies = rows * stride, row = p->pitch * stride;
    for (ptrdiff_t c = 0; c < copies; c++, to += p->copy) {
        ptrdiff_t source = copies * first + c - g->pad_top;
        for (ptrdiff_t y = 0; y < p->copy_rows; y++, source += copies) {
            const int outside = source < 0 || source >= g->height;
            vu8_copy_row(to + y * row, in + (outside ? 0 : source * g->width), p->before, outside ? 0 : p->inside, row, fill);
        }
        vu8_store(to + p->copy_rows * row, fill);
    }
}

/* The output rows of a band, from runs or to them. */
INLINE void store_band(const band_plan *p, const subp_window *g, const uint8_t *from, ptrdiff_t first, int rows,
                       uint8_t *out) {
    const ptrdiff_t end = subp_smaller(g->out_h, (first + p->band) * rows);
    for (ptrdiff_t y = first * rows, r = 0, k = 0; y < end; y++) {
        vu8_write(out + y * g->out_w, from + r * p->out_copy + k * p->pitch, g->out_w);
        if (++r == rows) r = 0, k++;
    }
}

INLINE void copy_residual(const band_plan *p, const subp_window *g, const uint8_t *residual, vu8 fill, ptrdiff_t first,
                          int rows, uint8_t *to) {
    const ptrdiff_t end = subp_smaller(g->out_h, (first + p->band) * rows);
    for (ptrdiff_t y = first * rows, r = 0, k = 0; y < end; y++) {
        vu8_copy_row(to + r * p->out_copy + k * p->pitch, residual + y * g->out_w, 0, g->out_w, g->out_w, fill);
        if (++r == rows) r = 0, k++;
    }
}

enum { MAX_GROUPS = 2 };

INLINE int groups_of(int kernel) { return (kernel + 3) / 4; }

/* The bytes at x for as many groups of four taps as the kernel has; of one more vector than four where they are those of
 * the next vector. */
INLINE void pick_quads(vu8 quads[MAX_GROUPS][4], const uint8_t *x, int kernel, int stride) {
    if (stride == 1) {
        const vu8 low = vu8_load(x), high = vu8_load(x + 12);
        UNROLL for (int v = 0; v < 3; v++) quads[0][v] = vu8_quads(low, 4 * v, 1);
        quads[0][3] = vu8_quads(high, 0, 1);
        if (kernel <= 4) return;
        UNROLL for (int v = 0; v < 3; v++) quads[1][v] = quads[0][v + 1];
        quads[1][3] = vu8_quads(high, 4, 1);
    } else {
        UNROLL for (int v = 0; v < 4; v++) {
            const vu8 part = vu8_load(x + v / 2 * VU8_BYTES + v % 2 * 8);
            UNROLL for (int g = 0; g < groups_of(kernel); g++) quads[g][v] = vu8_quads(part, 4 * g, 2);
        }
    }
}

/* `count` outputs of each row of a block, and what follows up to a whole vector. */
INLINE void run_band(const band_plan *p, const uint8_t *in, const quad_weights *weights, int32_t start,
                     const stored_constants *constants, const uint8_t *residual, uint8_t *out, ptrdiff_t count, int kernel,
                     int stride, int rows) {
    const int groups = groups_of(kernel), copies = rows * stride;
    const ptrdiff_t copy = p->copy, row = p->pitch * stride, out_copy = p->out_copy;
    quad_weights w[MAX_SIDE][MAX_GROUPS];
    UNROLL for (int i = 0; i < kernel; i++) UNROLL for (int g = 0; g < groups; g++) w[i][g] = weights[i * groups + g];
    for (ptrdiff_t at = 0; at < count; at += VU8_BYTES) {
        vi32 sums[2][4];
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < 4; v++) sums[r][v] = vi32_splat(start);
        UNROLL for (int i = 0; i < (rows - 1) * stride + kernel; i++) {
            vu8 quads[MAX_GROUPS][4];
            pick_quads(quads, in + i % copies * copy + i / copies * row + stride * at, kernel, stride);
            UNROLL for (int r = 0; r < rows; r++) {
                const int tap = i - r * stride;
                if (tap >= 0 && tap < kernel)
                    UNROLL for (int g = 0; g < groups; g++)
                        UNROLL for (int v = 0; v < 4; v++) sums[r][v] = vi32_dot(sums[r][v], quads[g][v], w[tap][g]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vu8 addend, stored;
            if (residual) {
                addend = vu8_load(residual + r * out_copy + at);
                if (stride == 2) addend = vu8_halves_parted(addend);
            }
            stored = vu8_stored(sums[r], residual ? &addend : NULL, constants);
            vu8_store(out + r * out_copy + at, stride == 2 ? vu8_halves_joined(stored) : stored);
        }
    }
}

/* Functions of their own, for the registers. */
typedef void (*run_band_fn)(const band_plan *, const uint8_t *in, const quad_weights *, int32_t start,
                            const stored_constants *, const uint8_t *residual, uint8_t *out, ptrdiff_t count);

#define DEFINE_RUN_BAND(kernel, stride, rows)                                                                          \
    static NOINLINE void run_band_##kernel##s##stride##x##rows(                                                        \
        const band_plan *p, const uint8_t *in, const quad_weights *weights, int32_t start,                             \
        const stored_constants *constants, const uint8_t *residual, uint8_t *out, ptrdiff_t count) {                   \
        if (residual)                                                                                                  \
            run_band(p, in, weights, start, constants, residual, out, count, kernel, stride, rows);                    \
        else                                                                                                           \
            run_band(p, in, weights, start, constants, NULL, out, count, kernel, stride, rows);                        \
    }

INLINE void depthwise_bytes(const subp_depthwise *d, int kernel, int stride, int rows, run_band_fn run) {
    const subp_window *g = d->window;
    const vu8 fill = vu8_splat(*(const uint8_t *)d->padding);
    const int groups = groups_of(kernel);
    band_plan p;
    band_room room;
    if (!plan_bands(&p, g, kernel, stride, rows)) {
        subp_depthwise_bytes(d);
        return;
    }
    for (ptrdiff_t n = 0; n < d->count; n++) {
        const int8_t *values = (const int8_t *)d->values + n * kernel * kernel;
        const uint8_t *residual = subp_at_if(d->residual, n * d->out_stride, 1);
        const stored_constants constants = stored_constants_of(d->requantize, d->factor[n]);
        quad_weights weights[MAX_SIDE * MAX_GROUPS];
        for (int i = 0; i < kernel; i++)
            UNROLL for (int v = 0; v < groups; v++)
                weights[i * groups + v] = quad_weights_of(values + i * kernel + 4 * v, kernel - 4 * v > 4 ? 4 : kernel - 4 * v);
        for (ptrdiff_t first = 0; first < p.blocks; first += p.band) {
            const ptrdiff_t blocks = subp_smaller(p.band, p.blocks - first);
            copy_band(&p, g, (const uint8_t *)d->in + n * d->in_stride, fill, first, stride, rows, room.in);
            if (residual) copy_residual(&p, g, residual, fill, first, rows, room.residual);
            run(&p, room.in, weights, d->start[n], &constants, residual ? room.residual : NULL, room.out,
                (blocks - 1) * p.pitch + g->out_w);
            store_band(&p, g, room.out, first, rows, (uint8_t *)d->out + n * d->out_stride);
        }
    }
}

#define DEFINE_INT8_DEPTHWISE(set, kernel, stride, rows)                                                                \
    DEFINE_RUN_BAND(kernel, stride, rows)                                                                              \
    void u8_dwconv_##kernel##x##kernel##s##stride##__##set(const subp_depthwise *d) {                                  \
        depthwise_bytes(d, kernel, stride, rows, run_band_##kernel##s##stride##x##rows);                               \
    }

#endif
