/* Winograd's transforms for 3x3 convolutions, for every vector ISA: a tile of size x size outputs follows from size + 2
 * inputs a side, by sums alone, and (size + 2)^2 positions then have a product each where the outputs would have nine.
 *
 * A vector holds a tile in each lane. Its tiles come from one tile row, or from two where rows are short: each such piece
 * takes an equal share of the lanes, and one lane less than that of tiles, because the last two columns of a tile are
 * the first two of the lane after it. Included after vector.h; the file defines for its ISA, beside what vector.h and
 * window.h ask for: sub; next_lanes of window.h; low_pairs(a, b) and
 * high_pairs(a, b), the lanes of both in turns, from the first half and the second. If its vectors are worth two pieces
 * it defines LANE_ORDER, the type of an order of lanes; close_gap(n) and open_gap(n), the orders in which the second
 * piece follows the first n lanes, and starts at the middle; reorder(a, order). */

enum { MAX_TILE = 4, MAX_SIDE = MAX_TILE + 2 };

#ifdef LANE_ORDER
enum { MOST_PIECES = 2 };
#else
enum { MOST_PIECES = 1 };
#define LANE_ORDER int
INLINE int close_gap(int n) { return n; }
INLINE int open_gap(int n) { return n; }
INLINE vec reorder(vec a, int order) { return (void)order, a; }
#endif

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
INLINE int find_pieces(piece found[MOST_PIECES], const subp_tiles *t, ptrdiff_t done, int pieces) {
    int tiles = 0;
    UNROLL for (int p = 0; p < pieces; p++) {
        found[p] = piece_at(t, t->first + done + tiles, t->first + t->count, LANES / pieces - 1);
        tiles += found[p].tiles;
    }
    return tiles;
}

INLINE int clipped(ptrdiff_t x) { return (int)(x < 0 ? 0 : x > LANES ? LANES : x); }

/* One dimension of the input's transform: 0, 1, -1, and for tiles of four 2 and -2, are the points. */
INLINE void transform_inputs(vec d[MAX_SIDE], int size) {
    if (size == 2) {
        vec first = sub(d[0], d[2]), last = sub(d[1], d[3]), middle = sub(d[2], d[1]);
        d[1] = add(d[1], d[2]);
        d[0] = first, d[2] = middle, d[3] = last;
    } else {
        const vec four = splat(4.0f), two = splat(2.0f), minus_four = splat(-4.0f), minus_five = splat(-5.0f);
        vec even = madd(minus_four, d[2], d[4]), odd = madd(minus_four, d[1], d[3]);
        vec far_even = sub(d[4], d[2]), far_odd = sub(d[3], d[1]);
        d[0] = madd(four, d[0], madd(minus_five, d[2], d[4]));
        d[5] = madd(four, d[1], madd(minus_five, d[3], d[5]));
        d[1] = add(even, odd), d[2] = sub(even, odd);
        d[3] = madd(two, far_odd, far_even), d[4] = madd(splat(-2.0f), far_odd, far_even);
    }
}

INLINE void transform_outputs(vec y[MAX_TILE], const vec m[MAX_SIDE], int size) {
    vec even = add(m[1], m[2]), odd = sub(m[1], m[2]);
    if (size == 2) {
        y[0] = add(m[0], even), y[1] = sub(odd, m[3]);
    } else {
        vec far_even = add(m[3], m[4]), far_odd = sub(m[3], m[4]);
        y[0] = add(m[0], add(even, far_even));
        y[1] = madd(splat(2.0f), far_odd, odd);
        y[2] = madd(splat(4.0f), far_even, even);
        y[3] = add(madd(splat(8.0f), far_odd, odd), m[5]);
    }
}

/* The columns of tiles from `size` vectors of one row, which hold the tiles of a piece one after the other. */
INLINE void split_columns(vec d[MAX_SIDE], const vec raw[MAX_TILE], int size) {
    if (size == 2) {
        d[0] = evens(raw[0], raw[1]), d[1] = odds(raw[0], raw[1]);
    } else {
        vec even[2] = {evens(raw[0], raw[1]), evens(raw[2], raw[3])};
        vec odd[2] = {odds(raw[0], raw[1]), odds(raw[2], raw[3])};
        d[0] = evens(even[0], even[1]), d[2] = odds(even[0], even[1]);
        d[1] = evens(odd[0], odd[1]), d[3] = odds(odd[0], odd[1]);
    }
    d[size] = next_lanes(d[0], d[0]), d[size + 1] = next_lanes(d[1], d[1]);
}

INLINE void join_columns(vec raw[MAX_TILE], const vec y[MAX_TILE], int size) {
    if (size == 2) {
        raw[0] = low_pairs(y[0], y[1]), raw[1] = high_pairs(y[0], y[1]);
    } else {
        vec even[2] = {low_pairs(y[0], y[2]), high_pairs(y[0], y[2])};
        vec odd[2] = {low_pairs(y[1], y[3]), high_pairs(y[1], y[3])};
        raw[0] = low_pairs(even[0], odd[0]), raw[1] = high_pairs(even[0], odd[0]);
        raw[2] = low_pairs(even[1], odd[1]), raw[3] = high_pairs(even[1], odd[1]);
    }
}

INLINE void tiles_in(const subp_tiles *t, const float *in, float *out, int size, int pieces) {
    const int side = size + 2, each = size / pieces; /* vectors of a row of a piece */
    for (ptrdiff_t done = 0; done < t->count;) {
        piece found[MOST_PIECES];
        const int tiles = find_pieces(found, t, done, pieces);
        span inside[MAX_TILE];
        int whole = 1;
        UNROLL for (int v = 0; v < size; v++) {
            const piece *p = &found[v / each];
            ptrdiff_t from = p->column * size - t->pad_left + v % each * LANES, end = from + LANES;
            inside[v] = p->tiles ? between(clipped(-from), clipped(t->width - from)) : between(0, 0);
            whole &= p->tiles && from >= 0 && end <= t->width;
        }
        vec d[MAX_SIDE][MAX_SIDE];
        UNROLL for (int i = 0; i < side; i++) {
            vec raw[MAX_TILE];
            UNROLL for (int v = 0; v < size; v++) {
                const piece *p = &found[v / each];
                ptrdiff_t y = p->row * size - t->pad_top + i, x = p->column * size - t->pad_left + v % each * LANES;
                if (y < 0 || y >= t->height)
                    raw[v] = splat(0.0f);
                else
                    raw[v] = whole ? load(in + y * t->width + x) : load_span(in + y * t->width + x, inside[v], splat(0.0f));
            }
            split_columns(d[i], raw, size);
            transform_inputs(d[i], size);
        }
        const LANE_ORDER order = close_gap(found[0].tiles);
        UNROLL for (int j = 0; j < side; j++) {
            vec column[MAX_SIDE];
            UNROLL for (int i = 0; i < side; i++) column[i] = d[i][j];
            transform_inputs(column, size);
            UNROLL for (int i = 0; i < side; i++) {
                if (pieces > 1) column[i] = reorder(column[i], order);
                store(out + (i * side + j) * t->position_stride + done, column[i]);
            }
        }
        done += tiles;
    }
}

INLINE void tiles_out(const subp_tiles *t, const float *sums, const float *bias, const float *residual, float *out,
                      int activation, int size, int pieces) {
    const int side = size + 2, each = size / pieces;
    const vec addend = splat(bias ? *bias : 0.0f);
    for (ptrdiff_t done = 0; done < t->count;) {
        piece found[MOST_PIECES];
        const int tiles = find_pieces(found, t, done, pieces);
        const LANE_ORDER order = open_gap(found[0].tiles);
        vec m[MAX_SIDE][MAX_TILE], y[MAX_TILE][MAX_TILE];
        UNROLL for (int i = 0; i < side; i++) {
            vec row[MAX_SIDE];
            UNROLL for (int j = 0; j < side; j++) {
                row[j] = load(sums + (i * side + j) * t->position_stride + done);
                if (pieces > 1) row[j] = reorder(row[j], order);
            }
            transform_outputs(m[i], row, size);
        }
        UNROLL for (int j = 0; j < size; j++) {
            vec column[MAX_SIDE], results[MAX_TILE];
            UNROLL for (int i = 0; i < side; i++) column[i] = m[i][j];
            transform_outputs(results, column, size);
            UNROLL for (int i = 0; i < size; i++) y[i][j] = results[i];
        }
        UNROLL for (int i = 0; i < size; i++) {
            vec raw[MAX_TILE];
            join_columns(raw, y[i], size);
            UNROLL for (int v = 0; v < size; v++) {
                const piece *p = &found[v / each];
                ptrdiff_t row = p->row * size + i, column = p->column * size + v % each * LANES;
                ptrdiff_t end = (p->column + p->tiles) * size, at = row * t->out_w + column;
                const int count = clipped((end < t->out_w ? end : t->out_w) - column);
                if (row >= t->out_h || !count) continue;
                const lanes part = first_lanes(count);
                vec result = add(raw[v], addend);
                if (residual) result = add(result, load_part(residual + at, count < LANES, part));
                if (activation == SUBP_ACT_relu) result = relu(result);
                if (activation == SUBP_ACT_relu6) result = relu6(result);
                store_part(out + at, result, count < LANES, part);
                if (activation > SUBP_ACT_relu6) activate(out + at, count, activation);
            }
        }
        done += tiles;
    }
}

#define DEFINE_TRANSFORMS(isa, size)                                                                               \
    static NOINLINE void tiles_in_##size(const subp_tiles *t, const float *in, float *out) {                       \
        tiles_in(t, in, out, size, 1);                                                                             \
    }                                                                                                              \
    static NOINLINE void tiles_out_##size(const subp_tiles *t, const float *sums, const float *bias,               \
                                          const float *residual, float *out, int activation) {                     \
        tiles_out(t, sums, bias, residual, out, activation, size, 1);                                              \
    }                                                                                                              \
    static NOINLINE void short_tiles_in_##size(const subp_tiles *t, const float *in, float *out) {                 \
        tiles_in(t, in, out, size, MOST_PIECES);                                                                   \
    }                                                                                                              \
    static NOINLINE void short_tiles_out_##size(const subp_tiles *t, const float *sums, const float *bias,         \
                                                const float *residual, float *out, int activation) {               \
        tiles_out(t, sums, bias, residual, out, activation, size, MOST_PIECES);                                    \
    }                                                                                                              \
    void f32_winograd_##size##x##size##__##isa##_in(const subp_tiles *t, const float *in, float *out) {            \
        (t->across < LANES / MOST_PIECES ? short_tiles_in_##size : tiles_in_##size)(t, in, out);                   \
    }                                                                                                              \
    void f32_winograd_##size##x##size##__##isa##_out(const subp_tiles *t, const float *sums, const float *bias,    \
                                                     const float *residual, float *out, int activation) {          \
        (t->across < LANES / MOST_PIECES ? short_tiles_out_##size : tiles_out_##size)(t, sums, bias, residual, out, \
                                                                                      activation);                 \
    }
