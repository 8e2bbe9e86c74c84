/* Winograd's transforms for 3x3 convolutions, for every vector ISA: a tile of size x size outputs follows from size + 2
 * inputs a side, by sums alone, and (size + 2)^2 positions then have a product each where the outputs would have nine.
 *
 * A vector holds a tile in each lane. Its tiles come from one tile row, or from two where rows are short: each
 * such piece takes an equal share of the lanes, and one lane less than that of tiles, because the last two columns
 * of a tile are the first two of the lane after it. */
#ifndef SUBP_TRANSFORMS_H
#define SUBP_TRANSFORMS_H

#include "kernels.h"
#include "shared.h"
#include "vector_activation.h"

enum { MAX_TILE = 4, MAX_SIDE = MAX_TILE + 2 };

/* Numbers of planes, which are computed with in float32; an includer that has others defines these before. */
#ifndef PLANE_NUMBER
#define PLANE_NUMBER float
#include "vector.h"
INLINE vf32 plane_load(const float *p) { return vf32_load(p); }
INLINE vf32 plane_load_span(const float *p, vf32_span inside) { return vf32_load_span(p, inside, vf32_splat(0.0f)); }
INLINE vf32 plane_load_part(const float *p, int count) {
    return load_part(p, count < VF32_LANES, vf32_first(count));
}
INLINE void plane_store_part(float *p, vf32 x, int count) { store_part(p, x, count < VF32_LANES, vf32_first(count)); }
#endif
typedef PLANE_NUMBER plane_number;

/* Of rows, that a vector may hold. */
enum { MAX_PIECES = 1 + VF32_HAS_ORDER };

typedef struct {
    ptrdiff_t row, column; /* of its first tile, in tiles */
    int tiles;
} piece;

INLINE piece piece_at(const subp_tiles *t, ptrdiff_t tile, ptrdiff_t end, int most) {
    piece p = {.row = tile / t->across, .column = tile % t->across};
    ptrdiff_t left = end - tile < t->across - p.column ? end - tile : t->across - p.column;
    p.tiles = left < most ? (int)left : most;
    return p;
}

/* The pieces of a vector from tile `done` of a run on; the ones beyond its end are empty. Returns their tiles. */
INLINE int find_pieces(piece found[MAX_PIECES], const subp_tiles *t, ptrdiff_t done, int pieces) {
    int tiles = 0;
    UNROLL for (int p = 0; p < pieces; p++) {
        found[p] = piece_at(t, t->first + done + tiles, t->first + t->count, VF32_LANES / pieces - 1);
        tiles += found[p].tiles;
    }
    return tiles;
}

INLINE int clipped(ptrdiff_t x) { return (int)subp_clip(x, 0, VF32_LANES); }

/* One dimension of the input's transform: 0, 1, -1, and for tiles of four 2 and -2, are the points. */
INLINE void transform_inputs(vf32 d[MAX_SIDE], int size) {
    if (size == 2) {
        vf32 first = vf32_sub(d[0], d[2]), last = vf32_sub(d[1], d[3]), middle = vf32_sub(d[2], d[1]);
        d[1] = vf32_add(d[1], d[2]);
        d[0] = first, d[2] = middle, d[3] = last;
    } else {
        const vf32 four = vf32_splat(4.0f), two = vf32_splat(2.0f);
        const vf32 minus_four = vf32_splat(-4.0f), minus_five = vf32_splat(-5.0f);
        vf32 even = vf32_madd(minus_four, d[2], d[4]), odd = vf32_madd(minus_four, d[1], d[3]);
        vf32 far_even = vf32_sub(d[4], d[2]), far_odd = vf32_sub(d[3], d[1]);
        d[0] = vf32_madd(four, d[0], vf32_madd(minus_five, d[2], d[4]));
        d[5] = vf32_madd(four, d[1], vf32_madd(minus_five, d[3], d[5]));
        d[1] = vf32_add(even, odd), d[2] = vf32_sub(even, odd);
        d[3] = vf32_madd(two, far_odd, far_even), d[4] = vf32_madd(vf32_splat(-2.0f), far_odd, far_even);
    }
}

INLINE void transform_outputs(vf32 y[MAX_TILE], const vf32 m[MAX_SIDE], int size) {
    vf32 even = vf32_add(m[1], m[2]), odd = vf32_sub(m[1], m[2]);
    if (size == 2) {
        y[0] = vf32_add(m[0], even), y[1] = vf32_sub(odd, m[3]);
    } else {
        vf32 far_even = vf32_add(m[3], m[4]), far_odd = vf32_sub(m[3], m[4]);
        y[0] = vf32_add(m[0], vf32_add(even, far_even));
        y[1] = vf32_madd(vf32_splat(2.0f), far_odd, odd);
        y[2] = vf32_madd(vf32_splat(4.0f), far_even, even);
        y[3] = vf32_add(vf32_madd(vf32_splat(8.0f), far_odd, odd), m[5]);
    }
}

/* The columns of tiles from `size` vectors of one row, which hold the tiles of a piece one after the other. */
INLINE void unzip_columns(vf32 d[MAX_SIDE], const vf32 raw[MAX_TILE], int size) {
    if (size == 2) {
        d[0] = vf32_unzip_even(raw[0], raw[1]), d[1] = vf32_unzip_odd(raw[0], raw[1]);
    } else {
        vf32 even[2] = {vf32_unzip_even(raw[0], raw[1]), vf32_unzip_even(raw[2], raw[3])};
        vf32 odd[2] = {vf32_unzip_odd(raw[0], raw[1]), vf32_unzip_odd(raw[2], raw[3])};
        d[0] = vf32_unzip_even(even[0], even[1]), d[2] = vf32_unzip_odd(even[0], even[1]);
        d[1] = vf32_unzip_even(odd[0], odd[1]), d[3] = vf32_unzip_odd(odd[0], odd[1]);
    }
    d[size] = vf32_next(d[0], d[0]), d[size + 1] = vf32_next(d[1], d[1]);
}

INLINE void zip_columns(vf32 raw[MAX_TILE], const vf32 y[MAX_TILE], int size) {
    if (size == 2) {
        raw[0] = vf32_zip_low(y[0], y[1]), raw[1] = vf32_zip_high(y[0], y[1]);
    } else {
        vf32 even[2] = {vf32_zip_low(y[0], y[2]), vf32_zip_high(y[0], y[2])};
        vf32 odd[2] = {vf32_zip_low(y[1], y[3]), vf32_zip_high(y[1], y[3])};
        raw[0] = vf32_zip_low(even[0], odd[0]), raw[1] = vf32_zip_high(even[0], odd[0]);
        raw[2] = vf32_zip_low(even[1], odd[1]), raw[3] = vf32_zip_high(even[1], odd[1]);
    }
}

INLINE void tiles_in(const subp_tiles *t, const plane_number *in, float *out, int size, int pieces) {
    const int side = size + 2, each = size / pieces; /* vectors of a row of a piece */
    for (ptrdiff_t done = 0; done < t->count;) {
        piece found[MAX_PIECES];
        const int tiles = find_pieces(found, t, done, pieces);
        vf32_span inside[MAX_TILE];
        int whole = 1;
        UNROLL for (int v = 0; v < size; v++) {
            const piece *p = &found[v / each];
            ptrdiff_t from = p->column * size - t->pad_left + v % each * VF32_LANES, end = from + VF32_LANES;
            inside[v] = p->tiles ? vf32_between(clipped(-from), clipped(t->width - from)) : vf32_between(0, 0);
            whole &= p->tiles && from >= 0 && end <= t->width;
        }
        vf32 d[MAX_SIDE][MAX_SIDE];
        UNROLL for (int i = 0; i < side; i++) {
            vf32 raw[MAX_TILE];
            UNROLL for (int v = 0; v < size; v++) {
                const piece *p = &found[v / each];
                ptrdiff_t y = p->row * size - t->pad_top + i;
                ptrdiff_t x = p->column * size - t->pad_left + v % each * VF32_LANES;
                if (y < 0 || y >= t->height)
                    raw[v] = vf32_splat(0.0f);
                else
                    raw[v] = whole ? plane_load(in + y * t->width + x)
                                   : plane_load_span(in + y * t->width + x, inside[v]);
            }
            unzip_columns(d[i], raw, size);
            transform_inputs(d[i], size);
        }
        const vf32_order order = vf32_compress(found[0].tiles);
        UNROLL for (int j = 0; j < side; j++) {
            vf32 column[MAX_SIDE];
            UNROLL for (int i = 0; i < side; i++) column[i] = d[i][j];
            transform_inputs(column, size);
            UNROLL for (int i = 0; i < side; i++) {
                if (pieces > 1) column[i] = vf32_permute(column[i], order);
                vf32_store(out + (i * side + j) * t->position_stride + done, column[i]);
            }
        }
        done += tiles;
    }
}

/* A vector after an activation that takes more than an instruction or two. */
INLINE vf32 activated(vf32 x, int activation) {
    float lanes[VF32_LANES];
    vf32_store(lanes, x);
    activate(lanes, VF32_LANES, activation);
    return vf32_load(lanes);
}

INLINE void tiles_out(const subp_tiles *t, const float *sums, const float *bias, const plane_number *residual,
                      plane_number *out, int activation, int size, int pieces) {
    const int side = size + 2, each = size / pieces;
    const vf32 addend = vf32_splat(bias ? *bias : 0.0f);
    for (ptrdiff_t done = 0; done < t->count;) {
        piece found[MAX_PIECES];
        const int tiles = find_pieces(found, t, done, pieces);
        const vf32_order order = vf32_expand(found[0].tiles);
        vf32 m[MAX_SIDE][MAX_TILE], y[MAX_TILE][MAX_TILE];
        UNROLL for (int i = 0; i < side; i++) {
            vf32 row[MAX_SIDE];
            UNROLL for (int j = 0; j < side; j++) {
                row[j] = vf32_load(sums + (i * side + j) * t->position_stride + done);
                if (pieces > 1) row[j] = vf32_permute(row[j], order);
            }
            transform_outputs(m[i], row, size);
        }
        UNROLL for (int j = 0; j < size; j++) {
            vf32 column[MAX_SIDE], results[MAX_TILE];
            UNROLL for (int i = 0; i < side; i++) column[i] = m[i][j];
            transform_outputs(results, column, size);
            UNROLL for (int i = 0; i < size; i++) y[i][j] = results[i];
        }
        UNROLL for (int i = 0; i < size; i++) {
            vf32 raw[MAX_TILE];
            zip_columns(raw, y[i], size);
            UNROLL for (int v = 0; v < size; v++) {
                const piece *p = &found[v / each];
                ptrdiff_t row = p->row * size + i, column = p->column * size + v % each * VF32_LANES;
                ptrdiff_t end = (p->column + p->tiles) * size, at = row * t->out_w + column;
                const int count = clipped((end < t->out_w ? end : t->out_w) - column);
                if (row >= t->out_h || !count) continue;
                vf32 result = vf32_add(raw[v], addend);
                if (residual) result = vf32_add(result, plane_load_part(residual + at, count));
                if (activation == SUBP_ACT_relu) result = vf32_relu(result);
                if (activation == SUBP_ACT_relu6) result = vf32_relu6(result);
                if (!in_vectors(activation)) result = activated(result, activation);
                plane_store_part(out + at, result, count);
            }
        }
        done += tiles;
    }
}

/* Of a kind of planes, "f32" or "bf16". */
#define DEFINE_TRANSFORMS(kind, set, size)                                                                         \
    static NOINLINE void tiles_in_##size(const subp_tiles *t, const plane_number *in, float *out) {                \
        tiles_in(t, in, out, size, 1);                                                                             \
    }                                                                                                              \
    static NOINLINE void tiles_out_##size(const subp_tiles *t, const float *sums, const float *bias,               \
                                          const plane_number *residual, plane_number *out, int activation) {       \
        tiles_out(t, sums, bias, residual, out, activation, size, 1);                                              \
    }                                                                                                              \
    static NOINLINE void short_tiles_in_##size(const subp_tiles *t, const plane_number *in, float *out) {          \
        tiles_in(t, in, out, size, MAX_PIECES);                                                                    \
    }                                                                                                              \
    static NOINLINE void short_tiles_out_##size(const subp_tiles *t, const float *sums, const float *bias,         \
                                                const plane_number *residual, plane_number *out, int activation) { \
        tiles_out(t, sums, bias, residual, out, activation, size, MAX_PIECES);                                     \
    }                                                                                                              \
    void kind##_winograd_##size##x##size##__##set##_in(const subp_tiles *t, const void *in, void *out) {           \
        (t->across < VF32_LANES / MAX_PIECES ? short_tiles_in_##size : tiles_in_##size)(t, in, out);               \
    }                                                                                                              \
    void kind##_winograd_##size##x##size##__##set##_out(const subp_tiles *t, const void *sums, const float *bias,  \
                                                        const void *residual, void *out, int activation) {         \
        (t->across < VF32_LANES / MAX_PIECES ? short_tiles_out_##size : tiles_out_##size)(t, sums, bias, residual, \
                                                                                          out, activation);        \
    }

#endif
