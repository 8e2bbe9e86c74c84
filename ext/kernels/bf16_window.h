/* Depthwise convolution of bfloat16 planes for the usual windows, after bf16_vector.h: words are two neighbours of a
 * row, a tap each. A vector of output columns, several output rows in registers; the input is read in place, of vectors
 * that hang over an edge the numbers inside, and rows above and below are read from a row of padding. A set defines
 *   window_span, which numbers of those that VF32_LANES windows see in a row are inside of it: window_between(from, to,
 *     taps, stride), those from <= i < to;
 *   window_load(words, p, span, taps, stride), the words of taps 2 * j and 2 * j + 1, 0 for what is outside and for a
 *     tap too many. */
#ifndef SUBP_BF16_WINDOW_H
#define SUBP_BF16_WINDOW_H

#include "bf16_depthwise.h"
#include "bf16_vector.h"

enum { MAX_WINDOW = 7, MAX_PAIRS = 4, MAX_ROWS = 8, MAX_TILES = 16 };

INLINE int pairs_of(int kernel) { return (kernel + 1) / 2; }

/* Output columns of a vector. */
typedef struct {
    ptrdiff_t column;
    int count;
    window_span inside;
} window_tile;

/* Planes at work. `rows` are the input rows of the current block, padding where they lie outside. */
typedef struct {
    const uint16_t *rows[(MAX_ROWS - 1) * 2 + MAX_WINDOW];
    uint16_t weights[MAX_WINDOW * MAX_PAIRS * 2];
    ptrdiff_t row_offsets[MAX_ROWS];
    subp_tile out; /* its rows stand where a convolution has channels */
} window_block;

INLINE void find_tile(window_tile *t, const subp_window *g, ptrdiff_t column, int kernel, int stride) {
    const ptrdiff_t first = column * stride - g->pad_left;
    t->column = column;
    t->count = (int)subp_smaller(VF32_LANES, g->out_w - column);
    t->inside = window_between(-first, g->width - first, kernel, stride);
}

/* `height` rows of a vector of output columns. */
INLINE void depthwise_block(const window_block *b, const subp_window *g, const window_tile *tile, int kernel,
                            int stride, int height, int partial) {
    const ptrdiff_t first = tile->column * stride - g->pad_left;
    const int pairs = pairs_of(kernel);
    vf32 acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int r = 0; r < height; r++) acc[r][0] = vf32_splat(*b->out.bias);
    UNROLL for (int i = 0; i < (height - 1) * stride + kernel; i++) {
        vword x[MAX_PAIRS];
        window_load(x, b->rows[i] + first, &tile->inside, kernel, stride);
        UNROLL for (int j = 0; j < pairs; j++)
            UNROLL for (int r = 0; r < height; r++) {
                const int tap = i - r * stride;
                if (tap >= 0 && tap < kernel) {
                    const uint16_t *weights = b->weights + 2 * (tap * pairs + j);
                    acc[r][0] = vsum_dot(acc[r][0], x[j], vword_weight((const uint8_t *)weights));
                }
            }
    }
    store_sums(&b->out, acc, tile->column, tile->count,
               (word_block){.channels = height, .vectors = 1, .partial = partial});
}

INLINE void find_rows(const uint16_t *rows[], const subp_window *g, const uint16_t *in, const uint16_t *padding,
                      ptrdiff_t y, int count) {
    ptrdiff_t source = y * g->stride_h - g->pad_top;
    for (int i = 0; i < count; i++, source++)
        rows[i] = source >= 0 && source < g->height ? in + source * g->width : padding;
}

INLINE void pair_weights(uint16_t *pairs, const uint16_t *values, int kernel) {
    for (int i = 0; i < kernel; i++, pairs += 2 * pairs_of(kernel))
        for (int j = 0; j < 2 * pairs_of(kernel); j++) pairs[j] = j < kernel ? values[i * kernel + j] : 0;
}

typedef void (*window_rows_fn)(const window_block *, const subp_window *, const window_tile *, int partial);

/* Functions of their own, for the registers. */
#define DEFINE_WINDOW_ROWS(kernel, stride, height)                                                                   \
    static NOINLINE void window_##kernel##s##stride##x##height(const window_block *b, const subp_window *g,          \
                                                               const window_tile *tile, int partial) {               \
        if (partial)                                                                                                 \
            depthwise_block(b, g, tile, kernel, stride, height, 1);                                                  \
        else                                                                                                         \
            depthwise_block(b, g, tile, kernel, stride, height, 0);                                                  \
    }

/* The functions for blocks of `many` rows, of 2 and of 1. */
typedef struct {
    int many;
    window_rows_fn run_many, run_2, run_1;
} window_rows;

/* One plane, some of its columns. */
INLINE void depthwise_plane(const subp_depthwise *d, ptrdiff_t n, const window_tile *tiles, int count, int kernel,
                            int stride, const window_rows rows) {
    const subp_window *g = d->window;
    const float none = 0.0f;
    window_block b;
    b.out = (subp_tile){.out_offsets = b.row_offsets, .activation = d->activation, .to_float = d->to_float,
                        .bias = d->bias ? d->bias + n : &none};
    for (int r = 0; r < MAX_ROWS; r++) b.row_offsets[r] = r * g->out_w;
    pair_weights(b.weights, (const uint16_t *)d->values + n * kernel * kernel, kernel);
    for (ptrdiff_t y = 0; y < g->out_h; y += b.out.channels) {
        const ptrdiff_t left = g->out_h - y, to = d->out_offsets[n] + y * g->out_w;
        const window_rows_fn run = left >= rows.many ? rows.run_many : left >= 2 ? rows.run_2 : rows.run_1;
        b.out.channels = left >= rows.many ? rows.many : left >= 2 ? 2 : 1;
        find_rows(b.rows, g, (const uint16_t *)d->in + n * d->in_stride, d->padding, y,
                  (b.out.channels - 1) * stride + kernel);
        b.out.out = subp_at_out(d->out, to, d->to_float ? sizeof(float) : sizeof(uint16_t));
        b.out.residual = subp_at_if(d->residual, to, sizeof(uint16_t));
        for (int i = 0; i < count; i++) run(&b, g, &tiles[i], tiles[i].count < VF32_LANES);
    }
}

INLINE void depthwise_planes(const subp_depthwise *d, int kernel, int stride, const window_rows rows) {
    const subp_window *g = d->window;
    for (ptrdiff_t column = 0; column < g->out_w;) {
        window_tile tiles[MAX_TILES];
        int count = 0;
        for (; count < MAX_TILES && column < g->out_w; column += VF32_LANES)
            find_tile(&tiles[count++], g, column, kernel, stride);
        for (ptrdiff_t n = 0; n < d->count; n++) depthwise_plane(d, n, tiles, count, kernel, stride, rows);
    }
}

#define BF16_DEFINE_DEPTHWISE(set, kernel, stride, many)                                                             \
    DEFINE_WINDOW_ROWS(kernel, stride, many)                                                                         \
    DEFINE_WINDOW_ROWS(kernel, stride, 2)                                                                            \
    DEFINE_WINDOW_ROWS(kernel, stride, 1)                                                                            \
    void bf16_dwconv_##kernel##x##kernel##s##stride##__##set(const subp_depthwise *d) {                              \
        depthwise_planes(d, kernel, stride,                                                                          \
                         (window_rows){many, window_##kernel##s##stride##x##many, window_##kernel##s##stride##x2,    \
                                       window_##kernel##s##stride##x1});                                             \
    }

#endif
