/* Depthwise convolution and maximum pooling of one plane, for every vector ISA: a vector of output columns, several
 * output rows in registers, each input vector loaded once for all of them. The input is read in place: where a vector
 * hangs over the left or right edge only its lanes inside are loaded, and rows above and below are read from a row of
 * padding. Included after vector.h; the file defines for its ISA, beside what vector.h asks for:
 *   span, some lanes of a vec, and between(from, to), those from <= lane < to, which may be none or lie outside;
 *   load_span(p, span, fill), the other lanes are those of fill and not read;
 *   odds(a, b), the odd lanes of both; maximum(a, b), of which a NaN wins. */

enum { MAX_WINDOW = 7, MAX_ROWS = 8 };

/* A plane at work. `rows` are the input rows of the current block, padding where they lie outside. */
typedef struct {
    const float *rows[(MAX_ROWS - 1) * 2 + MAX_WINDOW];
    const float *values;
    float bias;
    subp_tile out; /* its rows stand where a convolution has channels */
} window_block;

/* What a row of windows needs: a vector for each column of a window, or for stride 2 two for every second one. */
INLINE void load_row(vec raw[MAX_WINDOW + 1], const float *row, const span inside[MAX_WINDOW + 1], int kernel,
                     int stride, int edge, vec fill) {
    UNROLL for (int j = 0; j < kernel; j += stride)
        UNROLL for (int half = 0; half < stride; half++) {
            const float *from = row + j + half * LANES;
            raw[j + half] = edge ? load_span(from, inside[j + half], fill) : load(from);
        }
}

/* The columns of the windows from what load_row found. */
INLINE void pick_columns(vec x[MAX_WINDOW], const vec raw[MAX_WINDOW + 1], int kernel, int stride) {
    UNROLL for (int j = 0; j < kernel; j += stride) {
        x[j] = stride == 1 ? raw[j] : evens(raw[j], raw[j + 1]);
        if (stride == 2 && j + 1 < kernel) x[j + 1] = odds(raw[j], raw[j + 1]);
    }
}

/* Which lanes of each load are inside, for the window whose first column is `first`. */
INLINE void find_inside(span inside[MAX_WINDOW + 1], ptrdiff_t first, ptrdiff_t width, int kernel, int stride) {
    for (int j = 0; j < kernel; j += stride)
        for (int half = 0; half < stride; half++) {
            ptrdiff_t at = first + j + half * LANES;
            inside[j + half] = between((int)(at < 0 ? -at < LANES ? -at : LANES : 0),
                                       (int)(width - at < 0 ? 0 : width - at < LANES ? width - at : LANES));
        }
}

/* `height` rows of a vector of output columns from `column` on. An `edge` block may lie partly outside of the input,
 * and partly outside of the output. */
INLINE void depthwise_block(const window_block *b, const subp_window *g, ptrdiff_t column, int kernel, int stride,
                            int height, int edge) {
    const ptrdiff_t first = column * stride - g->pad_left, left = g->out_w - column;
    const int count = left < LANES ? (int)left : LANES;
    span inside[MAX_WINDOW + 1];
    if (edge) find_inside(inside, first, g->width, kernel, stride);
    vec acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int r = 0; r < height; r++) acc[r][0] = splat(b->bias);
    UNROLL for (int i = 0; i < (height - 1) * stride + kernel; i++) {
        vec raw[MAX_WINDOW + 1], x[MAX_WINDOW];
        load_row(raw, b->rows[i] + first, inside, kernel, stride, edge, splat(0.0f));
        pick_columns(x, raw, kernel, stride);
        UNROLL for (int j = 0; j < kernel; j++)
            UNROLL for (int r = 0; r < height; r++) {
                const int tap = i - r * stride;
                if (tap >= 0 && tap < kernel) acc[r][0] = madd(splat(b->values[tap * kernel + j]), x[j], acc[r][0]);
            }
    }
    store_block(&b->out, acc, column, height, 1, edge, first_lanes(count));
}

/* Columns [begin, end) of vectors that lie inside of the input and of the output as a whole. */
INLINE void whole_columns(const subp_window *g, int kernel, int stride, ptrdiff_t *begin, ptrdiff_t *end) {
    ptrdiff_t last = g->width + g->pad_left - kernel + 1 - LANES * stride; /* the last first column, doubled for stride 2 */
    *begin = 0;
    while (*begin < g->out_w && *begin * stride < g->pad_left) *begin += LANES;
    *end = *begin;
    while (*end + LANES <= g->out_w && *end * stride <= last) *end += LANES;
}

INLINE void find_rows(const float *rows[], const subp_window *g, const float *in, const float *padding, ptrdiff_t y,
                      int count) {
    ptrdiff_t source = y * g->stride_h - g->pad_top;
    for (int i = 0; i < count; i++, source++)
        rows[i] = source >= 0 && source < g->height ? in + source * g->width : padding;
}

typedef void (*depthwise_rows_fn)(window_block *, const subp_window *, ptrdiff_t begin, ptrdiff_t end);

#define DEFINE_DEPTHWISE_ROWS(kernel, stride, height)                                                               \
    static NOINLINE void depthwise_edge_##kernel##s##stride##x##height(const window_block *b, const subp_window *g, \
                                                                       ptrdiff_t column) {                          \
        depthwise_block(b, g, column, kernel, stride, height, 1);                                                   \
    }                                                                                                               \
    static NOINLINE void depthwise_##kernel##s##stride##x##height(window_block *b, const subp_window *g,            \
                                                                  ptrdiff_t begin, ptrdiff_t end) {                 \
        ptrdiff_t x = 0;                                                                                            \
        b->out.channels = height;                                                                                   \
        for (; x < begin; x += LANES) depthwise_edge_##kernel##s##stride##x##height(b, g, x);                       \
        for (; x < end; x += LANES) depthwise_block(b, g, x, kernel, stride, height, 0);                            \
        for (; x < g->out_w; x += LANES) depthwise_edge_##kernel##s##stride##x##height(b, g, x);                    \
    }

/* Blocks of `many` rows, then of 2 and 1. */
INLINE void depthwise_plane(const subp_depthwise *d, int kernel, int stride, int many, depthwise_rows_fn run_many,
                            depthwise_rows_fn run_2, depthwise_rows_fn run_1) {
    const subp_window *g = d->window;
    window_block b = {.values = d->values, .bias = d->bias ? *d->bias : 0.0f};
    b.out = (subp_tile){.out_stride = g->out_w, .activation = d->activation};
    ptrdiff_t begin, end;
    whole_columns(g, kernel, stride, &begin, &end);
    for (ptrdiff_t y = 0; y < g->out_h;) {
        ptrdiff_t rows = g->out_h - y >= many ? many : g->out_h - y >= 2 ? 2 : 1;
        find_rows(b.rows, g, d->in, d->padding, y, (int)(rows - 1) * stride + kernel);
        b.out.out = d->out + y * g->out_w;
        b.out.residual = d->residual ? d->residual + y * g->out_w : NULL;
        (rows == many ? run_many : rows == 2 ? run_2 : run_1)(&b, g, begin, end);
        y += rows;
    }
}

#define DEFINE_DEPTHWISE(isa, kernel, stride, many)                                                                 \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, many)                                                                     \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, 2)                                                                        \
    DEFINE_DEPTHWISE_ROWS(kernel, stride, 1)                                                                        \
    void f32_dwconv_##kernel##x##kernel##s##stride##__##isa(const subp_depthwise *d) {                              \
        depthwise_plane(d, kernel, stride, many, depthwise_##kernel##s##stride##x##many,                            \
                        depthwise_##kernel##s##stride##x2, depthwise_##kernel##s##stride##x1);                      \
    }

/* One output row of maxima: down the columns first, so that only one row is taken apart for the stride. */
INLINE void maximum_block(const float *const rows[], const subp_window *g, float *out, ptrdiff_t column, int kernel,
                          int stride, int edge) {
    const ptrdiff_t first = column * stride - g->pad_left, left = g->out_w - column;
    span inside[MAX_WINDOW + 1];
    vec best[MAX_WINDOW + 1], raw[MAX_WINDOW + 1], x[MAX_WINDOW];
    if (edge) find_inside(inside, first, g->width, kernel, stride);
    load_row(best, rows[0] + first, inside, kernel, stride, edge, splat(-INFINITY));
    UNROLL for (int i = 1; i < kernel; i++) {
        load_row(raw, rows[i] + first, inside, kernel, stride, edge, splat(-INFINITY));
        UNROLL for (int j = 0; j < kernel; j += stride)
            UNROLL for (int half = 0; half < stride; half++)
                best[j + half] = maximum(best[j + half], raw[j + half]);
    }
    pick_columns(x, best, kernel, stride);
    UNROLL for (int j = 1; j < kernel; j++) x[0] = maximum(x[0], x[j]);
    store_part(out + column, x[0], edge, first_lanes(left < LANES ? (int)left : LANES));
}

INLINE void maximum_plane(const subp_window *g, const float *in, const float *padding, float *out, int kernel,
                          int stride) {
    const float *rows[MAX_WINDOW];
    ptrdiff_t begin, end;
    whole_columns(g, kernel, stride, &begin, &end);
    for (ptrdiff_t y = 0; y < g->out_h; y++, out += g->out_w) {
        ptrdiff_t x = 0;
        find_rows(rows, g, in, padding, y, kernel);
        for (; x < begin; x += LANES) maximum_block(rows, g, out, x, kernel, stride, 1);
        for (; x < end; x += LANES) maximum_block(rows, g, out, x, kernel, stride, 0);
        for (; x < g->out_w; x += LANES) maximum_block(rows, g, out, x, kernel, stride, 1);
    }
}

static NOINLINE void maximum_3s2(const subp_window *g, const float *in, const float *padding, float *out) {
    maximum_plane(g, in, padding, out, 3, 2);
}
static NOINLINE void maximum_2s2(const subp_window *g, const float *in, const float *padding, float *out) {
    maximum_plane(g, in, padding, out, 2, 2);
}

/* The usual maxima with vectors, all else as on any CPU. */
static void pool_plane(const subp_pool *p, const float *in, float *out, float *row) {
    const subp_window *g = &p->window;
    int square = g->kernel_h == g->kernel_w && g->stride_h == 2 && g->stride_w == 2 && g->dilation_h == 1 &&
                 g->dilation_w == 1;
    if (p->average || !square || g->kernel_h < 2 || g->kernel_h > 3) {
        subp_pool_plane(p, in, out, row);
        return;
    }
    for (ptrdiff_t x = 0; x < g->width; x++) row[x] = -INFINITY;
    (g->kernel_h == 3 ? maximum_3s2 : maximum_2s2)(g, in, row, out);
}

#define DEFINE_POOL(isa) \
    void subp_pool_##isa(const subp_pool *p, const float *in, float *out, float *row) { pool_plane(p, in, out, row); }
