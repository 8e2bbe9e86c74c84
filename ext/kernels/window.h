/* Depthwise convolution and maximum pooling of planes, for every vector ISA: a vector of output columns, several output
 * rows in registers, and of each input row no more than `stride` vectors loaded: the other columns of the windows
 * are those moved by a lane, with one number more. The input is read in place: where a vector hangs over the left
 * or right edge only its lanes inside are loaded, and rows above and below are read from a row of padding. */
#ifndef SUBP_WINDOW_H
#define SUBP_WINDOW_H

#include "planes.h"
#include "vector.h"

enum { MAX_WINDOW = 7, MAX_ROWS = 8, MAX_EDGES = 8 };

/* Output columns of a vector whose windows may lie partly outside of the input, or that are fewer than a vector's. */
typedef struct {
    ptrdiff_t column; /* the first */
    int count;
    vf32_span inside[2];        /* of each vector that load_row loads */
    int after[MAX_WINDOW]; /* whether the number for column j of the windows is */
    int all_after, none_after;
} window_edge;

/* What load_row finds behind the vectors: numbers, what `after` of the edge says, or nothing. */
enum { INSIDE, PARTLY, OUTSIDE };

/* The columns of a plane: edges on the left, whole vectors in [begin, end), edges on the right. */
typedef struct {
    ptrdiff_t begin, end;
    int left, edges;
    window_edge edge[MAX_EDGES];
} window_columns;

/* Planes at work. `rows` are the input rows of the current block, padding where they lie outside. */
typedef struct {
    const float *rows[(MAX_ROWS - 1) * 2 + MAX_WINDOW];
    const float *values;
    float bias;
    ptrdiff_t row_offsets[MAX_ROWS];
    subp_tile out; /* its rows stand where a convolution has channels */
} window_block;

INLINE int clip_lane(ptrdiff_t lane) { return (int)subp_clip(lane, 0, VF32_LANES); }

INLINE void find_edge(window_edge *e, const subp_window *g, ptrdiff_t column, int kernel, int stride) {
    const ptrdiff_t first = column * stride - g->pad_left, behind = first + stride * VF32_LANES;
    e->column = column;
    e->count = clip_lane(g->out_w - column);
    for (int h = 0; h < stride; h++)
        e->inside[h] = vf32_between(clip_lane(-first - h * VF32_LANES), clip_lane(g->width - first - h * VF32_LANES));
    e->all_after = e->none_after = 1;
    for (int j = stride; j < kernel; j++) {
        ptrdiff_t at = behind + j - stride;
        e->after[j] = at >= 0 && at < g->width;
        e->all_after &= e->after[j];
        e->none_after &= !e->after[j];
    }
}

/* Returns 0 where there are more edges than room for them: in planes with more padding than a window reaches. */
INLINE int find_columns(window_columns *c, const subp_window *g, int kernel, int stride) {
    /* First column, times the stride, of the last whole vector. */
    ptrdiff_t last = g->width + g->pad_left - kernel + stride - stride * VF32_LANES;
    c->begin = c->edges = 0;
    while (c->begin < g->out_w && c->begin * stride < g->pad_left) {
        if (c->edges == MAX_EDGES) return 0;
        find_edge(&c->edge[c->edges++], g, c->begin, kernel, stride);
        c->begin += VF32_LANES;
    }
    c->left = c->edges;
    c->end = c->begin;
    while (c->end + VF32_LANES <= g->out_w && c->end * stride <= last) c->end += VF32_LANES;
    for (ptrdiff_t column = c->end; column < g->out_w; column += VF32_LANES) {
        if (c->edges == MAX_EDGES) return 0;
        find_edge(&c->edge[c->edges++], g, column, kernel, stride);
    }
    return 1;
}

/* The vectors of a row from the first window's first column on, and the numbers behind them. */
INLINE void load_row(vf32 raw[MAX_WINDOW], const float *row, const window_edge *edge, int after, int kernel, int stride,
                     vf32 fill) {
    UNROLL for (int h = 0; h < stride; h++)
        raw[h] = edge ? vf32_load_span(row + h * VF32_LANES, edge->inside[h], fill) : vf32_load(row + h * VF32_LANES);
    UNROLL for (int j = stride; j < kernel; j++)
        raw[j] = after == INSIDE || (after == PARTLY && edge->after[j])
                     ? vf32_splat(row[stride * VF32_LANES + j - stride])
                     : fill;
}

/* The columns of the windows from what load_row found. */
INLINE void pick_columns(vf32 x[MAX_WINDOW], const vf32 raw[MAX_WINDOW], int kernel, int stride) {
    x[0] = stride == 1 ? raw[0] : vf32_unzip_even(raw[0], raw[1]);
    if (stride == 2) x[1] = vf32_unzip_odd(raw[0], raw[1]);
    UNROLL for (int j = stride; j < kernel; j++) x[j] = vf32_next(x[j - stride], raw[j]);
}

/* `height` rows of a vector of output columns from `column` on. */
INLINE void depthwise_block(const window_block *b, const subp_window *g, ptrdiff_t column, int kernel, int stride,
                            int height, const window_edge *edge, int after) {
    const ptrdiff_t first = column * stride - g->pad_left;
    vf32 acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int r = 0; r < height; r++) acc[r][0] = vf32_splat(b->bias);
    UNROLL for (int i = 0; i < (height - 1) * stride + kernel; i++) {
        vf32 raw[MAX_WINDOW], x[MAX_WINDOW];
        load_row(raw, b->rows[i] + first, edge, after, kernel, stride, vf32_splat(0.0f));
        pick_columns(x, raw, kernel, stride);
        UNROLL for (int j = 0; j < kernel; j++)
            UNROLL for (int r = 0; r < height; r++) {
                const int tap = i - r * stride;
                if (tap >= 0 && tap < kernel)
                    acc[r][0] = vf32_madd(vf32_splat(b->values[tap * kernel + j]), x[j], acc[r][0]);
            }
    }
    store_block(&b->out, acc, column, height, 1, edge != NULL, vf32_first(edge ? edge->count : VF32_LANES));
}

INLINE void find_rows(const float *rows[], const subp_window *g, const float *in, const float *padding, ptrdiff_t y,
                      int count) {
    ptrdiff_t source = y * g->stride_h - g->pad_top;
    for (int i = 0; i < count; i++, source++)
        rows[i] = source >= 0 && source < g->height ? in + source * g->width : padding;
}

typedef void (*depthwise_rows_fn)(window_block *, const subp_window *, const window_columns *);

/* Functions of their own, for the registers. */
#define DEFINE_DEPTHWISE_EDGE(name, kernel, stride, height, after)                                                  \
    static NOINLINE void name(const window_block *b, const subp_window *g, const window_edge *edge) {               \
        depthwise_block(b, g, edge->column, kernel, stride, height, edge, after);                                   \
    }

#define DEFINE_DEPTHWISE_ROWS(kernel, stride, height)                                                               \
    DEFINE_DEPTHWISE_EDGE(depthwise_inside_##kernel##s##stride##x##height, kernel, stride, height, INSIDE)          \
    DEFINE_DEPTHWISE_EDGE(depthwise_partly_##kernel##s##stride##x##height, kernel, stride, height, PARTLY)          \
    DEFINE_DEPTHWISE_EDGE(depthwise_outside_##kernel##s##stride##x##height, kernel, stride, height, OUTSIDE)        \
    static void depthwise_edge_##kernel##s##stride##x##height(const window_block *b, const subp_window *g,          \
                                                              const window_edge *edge) {                            \
        (edge->all_after    ? depthwise_inside_##kernel##s##stride##x##height                                       \
         : edge->none_after ? depthwise_outside_##kernel##s##stride##x##height                                      \
                            : depthwise_partly_##kernel##s##stride##x##height)(b, g, edge);                         \
    }                                                                                                               \
    static NOINLINE void depthwise_##kernel##s##stride##x##height(window_block *b, const subp_window *g,            \
                                                                  const window_columns *c) {                        \
        b->out.channels = height;                                                                                   \
        for (int e = 0; e < c->left; e++) depthwise_edge_##kernel##s##stride##x##height(b, g, &c->edge[e]);         \
        for (ptrdiff_t x = c->begin; x < c->end; x += VF32_LANES)                                                   \
            depthwise_block(b, g, x, kernel, stride, height, NULL, INSIDE);                                         \
        for (int e = c->left; e < c->edges; e++) depthwise_edge_##kernel##s##stride##x##height(b, g, &c->edge[e]);  \
    }

/* Blocks of `many` rows, then of 2 and 1. */
INLINE void depthwise_planes(const subp_depthwise *d, int kernel, int stride, int many, depthwise_rows_fn run_many,
                             depthwise_rows_fn run_2, depthwise_rows_fn run_1) {
    const subp_window *g = d->window;
    window_columns columns;
    if (!find_columns(&columns, g, kernel, stride)) {
        subp_depthwise_planes(d);
        return;
    }
    window_block b;
    b.out = (subp_tile){.out_offsets = b.row_offsets, .activation = d->activation};
    for (int r = 0; r < MAX_ROWS; r++) b.row_offsets[r] = r * g->out_w;
    for (ptrdiff_t n = 0; n < d->count; n++) {
        b.values = (const float *)d->values + n * kernel * kernel;
        b.bias = d->bias ? d->bias[n] : 0.0f;
        for (ptrdiff_t y = 0; y < g->out_h;) {
            ptrdiff_t rows = g->out_h - y >= many ? many : g->out_h - y >= 2 ? 2 : 1;
            find_rows(b.rows, g, (const float *)d->in + n * d->in_stride, d->padding, y,
                      (int)(rows - 1) * stride + kernel);
            const ptrdiff_t to = d->out_offsets[n] + y * g->out_w;
            b.out.out = (float *)d->out + to;
            b.out.residual = d->residual ? (const float *)d->residual + to : NULL;
            (rows == many ? run_many : rows == 2 ? run_2 : run_1)(&b, g, &columns);
            y += rows;
        }
    }
}

#define DEFINE_DEPTHWISE(set, kernel, stride, many)                                                                 \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, many)                                                                     \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, 2)                                                                        \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, 1)                                                                        \
    void f32_dwconv_##kernel##x##kernel##s##stride##__##set(const subp_depthwise *d) {                              \
        depthwise_planes(d, kernel, stride, many, depthwise_##kernel##s##stride##x##many,                           \
                         depthwise_##kernel##s##stride##x2, depthwise_##kernel##s##stride##x1);                     \
    }

/* One output row of maxima: down the columns first, so that only one row is taken apart for the stride. */
INLINE void maximum_block(const float *const rows[], const subp_window *g, float *out, ptrdiff_t column, int kernel,
                          int stride, const window_edge *edge) {
    const ptrdiff_t first = column * stride - g->pad_left;
    const int after = edge ? PARTLY : INSIDE;
    vf32 best[MAX_WINDOW], raw[MAX_WINDOW], x[MAX_WINDOW];
    load_row(best, rows[0] + first, edge, after, kernel, stride, vf32_splat(-INFINITY));
    UNROLL for (int i = 1; i < kernel; i++) {
        load_row(raw, rows[i] + first, edge, after, kernel, stride, vf32_splat(-INFINITY));
        UNROLL for (int j = 0; j < kernel; j++) best[j] = vf32_max(best[j], raw[j]);
    }
    pick_columns(x, best, kernel, stride);
    UNROLL for (int j = 1; j < kernel; j++) x[0] = vf32_max(x[0], x[j]);
    store_part(out + column, x[0], edge != NULL, vf32_first(edge ? edge->count : VF32_LANES));
}

INLINE void maximum_plane(const subp_window *g, const window_columns *c, const float *in, const float *padding,
                          float *out, int kernel, int stride) {
    const float *rows[MAX_WINDOW];
    for (ptrdiff_t y = 0; y < g->out_h; y++, out += g->out_w) {
        find_rows(rows, g, in, padding, y, kernel);
        for (int e = 0; e < c->edges; e++) maximum_block(rows, g, out, c->edge[e].column, kernel, stride, &c->edge[e]);
        for (ptrdiff_t x = c->begin; x < c->end; x += VF32_LANES) maximum_block(rows, g, out, x, kernel, stride, NULL);
    }
}

static NOINLINE void maximum_3s2(const subp_window *g, const window_columns *c, const float *in, const float *padding,
                                 float *out) {
    maximum_plane(g, c, in, padding, out, 3, 2);
}
static NOINLINE void maximum_2s2(const subp_window *g, const window_columns *c, const float *in, const float *padding,
                                 float *out) {
    maximum_plane(g, c, in, padding, out, 2, 2);
}

/* The usual maxima with vectors, all else as on any CPU. */
static void pool_plane(const subp_pool *p, const float *in, float *out, float *row) {
    const subp_window *g = &p->window;
    int square = g->kernel_h == g->kernel_w && g->stride_h == 2 && g->stride_w == 2 && g->dilation_h == 1 &&
                 g->dilation_w == 1;
    window_columns columns;
    if (p->average || !square || g->kernel_h < 2 || g->kernel_h > 3 ||
        !find_columns(&columns, g, (int)g->kernel_h, 2)) {
        subp_pool_plane(p, in, out, row);
        return;
    }
    for (ptrdiff_t x = 0; x < g->width; x++) row[x] = -INFINITY;
    (g->kernel_h == 3 ? maximum_3s2 : maximum_2s2)(g, &columns, in, row, out);
}

#define DEFINE_POOL(set) \
    void f32_pool__##set(const subp_pool *p, const void *in, void *out, void *row) { pool_plane(p, in, out, row); }

#endif
