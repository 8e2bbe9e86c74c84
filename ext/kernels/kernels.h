/* What every file of the kernels shares: what a kernel of each operator is handed, and the rows of kernels.
 *
 * Arrays are of the data type that the kernel's row names; distances are in elements. Biases are float32.
 *
 * A convolution is flat for a kernel: output pixel p and tap t meet at x[tap_offsets[t] + p] of each kept channel,
 * and pixels are one run without gaps. A 1x1 convolution reads its input that way; any other reads planes in which
 * padding, stride and the row ends have been resolved (conv.h). */
#ifndef SUBP_KERNELS_H
#define SUBP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "activation.h"
#include "bfloat16.h"

#define SUBP_DTYPE(name, type, letter, to_double, from_double) SUBP_DTYPE_##name,
enum subp_dtype {
#include "dtypes.inc"
    SUBP_DTYPE_COUNT
};

#define SUBP_SET(name, needs, features) SUBP_SET_##name,
enum subp_set {
#include "sets.inc"
    SUBP_SET_COUNT
};

#define SUBP_OPERATORS(OPERATOR)                                                                             \
    OPERATOR(conv2d) OPERATOR(interleave) OPERATOR(depthwise) OPERATOR(winograd) OPERATOR(pool)              \
    OPERATOR(mean) OPERATOR(binary) OPERATOR(activate) OPERATOR(norm_pixels) OPERATOR(norm_run)              \
    OPERATOR(halve) OPERATOR(peak) OPERATOR(quantize) OPERATOR(dequantize) OPERATOR(lookup)                  \
    OPERATOR(quantized_binary) OPERATOR(quantized_pool) OPERATOR(quantized_mean) OPERATOR(cast)              \
    OPERATOR(thread_state) OPERATOR(winograd_weights)

#define SUBP_OPERATOR(name) SUBP_OP_##name,
enum subp_operator { SUBP_OPERATORS(SUBP_OPERATOR) SUBP_OP_COUNT };
#undef SUBP_OPERATOR

/* From int32 sums to outputs, with the constants of requantize.py:
 *   uint8:   clamp(rne(fma(float32(residual - residual_zero), residual_factor, float32(sum) * factor[o])) + zero, low,
 *            high), without a residual clamp(rne(float32(sum) * factor[o]) + zero, low, high)
 *   float32: float32(sum) * factor[o]; there is no residual
 * rne rounds to the nearest integer, ties to even, and its argument is below 2**30 in magnitude. */
typedef struct {
    int32_t zero, low, high;
    int32_t residual_zero;
    float residual_factor;
} subp_requantize;

/* uint8 and bfloat16 activations come as words of SUBP_WORD bytes, each some kept channels of a pixel:
 * x[word][plane][pixel], and weights as well, [word][taps][channels of the tile]. A word has as many channels as the
 * row says: 4 bytes or 2 numbers of 16 bits. Tap t of a pixel is tap_offsets[t] pixels further. Words are loaded as
 * whole vectors: behind the last there are SUBP_TILE_SLACK of any content.
 *
 * This tells how they are made, from planes: word w of pixel p of copy c goes to
 * out[(w * word_stride + c * out_copy + p) * SUBP_WORD]. Nothing else is written, and no more than `count` elements
 * of each channel's copies are read. */
enum { SUBP_WORD = 4, SUBP_TILE_SLACK = 15 };

typedef struct {
    const void *x;                  /* IN first channel of the group, at the first pixel */
    const int32_t *channel_offsets; /* IN those of each word, from x */
    ptrdiff_t words, count;
    ptrdiff_t copies, in_copy, out_copy; /* from one copy to the next, in elements of x and in pixels of out */
    ptrdiff_t word_stride;               /* pixels */
    uint8_t *out;                        /* OUT */
} subp_interleave;

/* One call of a kernel: a run of pixels of one channel tile, out = activation(sum + bias + residual).
 * Nothing needs room to spare: a kernel reads x[channel_offsets[k] + tap_offsets[t] .. + count), the arrays below in
 * the sizes given and residual where it writes out, and writes nothing but the run. Fetching in advance is no read. */
typedef struct {
    const void *x; /* IN first channel of the group, at the run's first pixel */
    const ptrdiff_t *tap_offsets; /* IN [taps] */
    int32_t taps;
    const int32_t *channel_offsets; /* IN [kept], of the kept channels from x */
    int32_t kept;
    const void *values; /* IN as the row's packing lays them out: "tiles" is [kept][taps][channels of the tile] */
    const float *bias;     /* IN [channels] to store, or NULL */
    const void *residual; /* IN laid out as out and possibly the same memory, or NULL */
    void *out;             /* OUT where the offsets count from, at the run's first pixel */
    const ptrdiff_t *out_offsets; /* IN [channels] to store, elements from out and residual to each channel */
    ptrdiff_t count;       /* pixels */
    ptrdiff_t ahead;       /* pixels from here to those wanted next, to be fetched in advance; 0 for none */
    int32_t channels;      /* to store: at most those of the kernel's tile */
    int activation;        /* enum subp_activation */
    /* Of words alone. */
    int to_float;          /* outputs are float32 instead of the row's, and there is no residual */
    int32_t words;         /* of a pixel */
    ptrdiff_t word_stride; /* pixels from one word to the next */
    /* Of uint8 activations, in place of bias and activation. */
    const subp_requantize *requantize;
    const int32_t *start; /* IN [channels] to store, what sums start from */
    const float *factor;  /* IN [channels] to store */
    /* As many words that a later tile wants, or NULL: to make them in the same call costs less, for it waits for memory
     * and takes other units than products. They may take the place of this tile's, word by word. */
    const subp_interleave *next;
} subp_tile;

/* Windows over a plane; they may hang over any edge. */
typedef struct {
    ptrdiff_t height, width, out_h, out_w;
    ptrdiff_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
} subp_window;

/* Planes of a depthwise convolution: out = activation(sum + bias + residual), or for uint8 what `requantize` makes of
 * start + sum and the residual. */
typedef struct {
    const subp_window *window;
    ptrdiff_t count;              /* of planes */
    ptrdiff_t in_stride;          /* from one plane to the next */
    const ptrdiff_t *out_offsets; /* IN [count], elements from out and residual to each plane */
    const void *in;       /* IN planes [height][width] */
    const void *padding;  /* IN [width] of what stands for zero */
    const void *values;   /* IN [count][kernel_h][kernel_w] */
    const float *bias;    /* IN [count], or NULL */
    const void *residual; /* IN as out and possibly the same memory, or NULL */
    void *out;            /* OUT planes [out_h][out_w], where the offsets lead */
    int activation;        /* enum subp_activation */
    int to_float;          /* as of subp_tile */
    const subp_requantize *requantize; /* IN for uint8, in place of bias and activation */
    const int32_t *start;              /* IN [count], likewise */
    const float *factor;               /* IN [count], likewise */
} subp_depthwise;

/* Winograd's transforms of one channel of a 3x3 convolution with stride 1, to float32 and from it: a run of its tiles
 * of size x size outputs, counted along the rows. Position p of tile first + i is number p * position_stride + i of
 * the transformed side. Vectors are loaded and stored there as a whole: behind the run it needs room for another
 * SUBP_TILE_SLACK elements, of any content. */

typedef struct {
    ptrdiff_t height, width, out_h, out_w, pad_top, pad_left;
    ptrdiff_t across;       /* tiles in a row */
    ptrdiff_t first, count; /* of the run */
    ptrdiff_t position_stride;
} subp_tiles;

/* Pooling of a plane. Parts of a window outside of the input count for nothing; an average divides by
 * row_counts[y] * column_counts[x]. */
typedef struct {
    subp_window window;
    int average; /* else the maximum */
    const float *row_counts, *column_counts; /* IN [out_h], [out_w]; not read for the maximum */
} subp_pool;

/* Enough for sums of an input row and an output row, or for the columns that a row of windows reaches over, in blocks
 * of whole vectors. */
static inline ptrdiff_t subp_pool_row(const subp_window *w) {
    return w->width + (w->stride_w + 1) * (w->out_w + 32) + w->kernel_w * w->dilation_w + w->pad_left + 128;
}

/* From quantized operands to a quantized result, with the constants of requantize.py: zero points, factors that have
 * the result's scale in them, and bounds from 0 to 255. A product or mean has one factor, a_factor. */
typedef struct {
    int32_t a_zero, b_zero;
    float a_factor, b_factor;
    int32_t zero, low, high; /* of the result */
} subp_rescale;

/* Pooling of a quantized plane. Parts of a window outside of the input count for nothing; every pixel lies in one. */
typedef struct {
    subp_window window;
    int32_t in_zero, zero;
    /* IN [out_h][out_w], what sums are multiplied by, and SUBP_FACTOR_SLACK more of any content; NULL for the
     * maximum. */
    const float *factors;
} subp_quantized_pool;

enum { SUBP_POOL_SLACK = 384, SUBP_FACTOR_SLACK = 31 };

enum { SUBP_NORM_PIXELS = 64 };

/* Values of one_b of `binary` beside 0. */
enum { SUBP_ONE = 1, SUBP_ONE_FLOAT = 2 };

/* The functions of each operator. Of `pool`, row is room for subp_pool_row floats. `binary` is a + b or a * b, with b
 * as many numbers as a, or one: of a's type, or for SUBP_ONE_FLOAT a float32, which is not rounded. `norm_pixels`
 * makes each of up to SUBP_NORM_PIXELS pixels mean 0 and variance 1 over channels that are `stride` apart, `norm_run`
 * one run of channels * pixels numbers, both times weight[c] plus bias[c]. `halve` takes every second element of each
 * row and reads nothing beyond the last it takes. `peak` is a loop of nothing but products, the speed that kernels are
 * measured against: it returns how many operations a round has; |factor| < 1 keeps it finite.
 * Of uint8: `quantize` is clamp(rne(x * inverse) + zero), NaN giving 0, `dequantize` (x - zero) * scale. `lookup` is
 * table[x], 256 results of uint8 or float32. `quantized_binary` is a sum of two operands of one size, or a product,
 * as binary; `quantized_mean` is that of a run. Of `quantized_pool`, row is room for
 * 2 * width + out_w + SUBP_POOL_SLACK sums. `cast` is from the row's type of activations to that of outputs. Where an
 * operand and the result have elements of one size, they may be in the same place.
 * `thread_state` is what a thread does before and after calls of its set's kernels of conv2d, on so many words. */
typedef void (*subp_conv2d_fn)(const subp_tile *tile);
typedef void (*subp_interleave_fn)(const subp_interleave *planes);
typedef void (*subp_depthwise_fn)(const subp_depthwise *planes);
typedef struct {
    void (*in)(const subp_tiles *tiles, const void *in, void *out); /* from a plane [height][width] */
    /* To a plane [out_h][out_w]: activation(outputs + bias + residual); bias is one or NULL. */
    void (*out)(const subp_tiles *tiles, const void *sums, const float *bias, const void *residual, void *out,
                int activation);
} subp_winograd_fn;
typedef void (*subp_pool_fn)(const subp_pool *pool, const void *in, void *out, void *row);
typedef void (*subp_mean_fn)(const void *in, ptrdiff_t count, void *out);
typedef void (*subp_binary_fn)(int multiply, const void *a, const void *b, int one_b, ptrdiff_t count, int activation,
                               void *out);
typedef void (*subp_activate_fn)(const void *in, ptrdiff_t count, int activation, void *out);
typedef void (*subp_norm_pixels_fn)(const void *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,
                                    const float *weight, const float *bias, float eps, void *out);
typedef void (*subp_norm_run_fn)(const void *in, ptrdiff_t channels, ptrdiff_t pixels, const float *weight,
                                 const float *bias, float eps, void *out);
typedef void (*subp_halve_fn)(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                              ptrdiff_t out_step);
typedef ptrdiff_t (*subp_peak_fn)(ptrdiff_t rounds, float factor);
typedef void (*subp_quantize_fn)(const float *in, ptrdiff_t count, float inverse, int32_t zero, void *out);
typedef void (*subp_dequantize_fn)(const void *in, ptrdiff_t count, int32_t zero, float scale, float *out);
typedef void (*subp_lookup_fn)(const void *in, ptrdiff_t count, const void *table, int to_float, void *out);
typedef void (*subp_quantized_binary_fn)(int multiply, const subp_rescale *rescale, const void *a, const void *b,
                                         int one_b, ptrdiff_t count, void *out);
typedef void (*subp_quantized_pool_fn)(const subp_quantized_pool *pool, const void *in, void *out, int32_t *row);
typedef void (*subp_quantized_mean_fn)(const subp_rescale *rescale, const void *in, ptrdiff_t count, void *out);
typedef void (*subp_cast_fn)(const void *in, ptrdiff_t count, void *out);
typedef struct {
    void (*begin)(int32_t words);
    void (*end)(void);
} subp_thread_state_fn;
/* Kernels [kept][9][block], of which the first `count` channels, SUBP_WINOGRAD_CHANNELS at most, become float32 of
 * [positions][kept][count], the positions `stride` apart. */
enum { SUBP_WINOGRAD_CHANNELS = 8 };
typedef void (*subp_winograd_weights_fn)(const void *values, ptrdiff_t kept, ptrdiff_t block, ptrdiff_t count,
                                         ptrdiff_t stride, float *out);

typedef union {
    subp_conv2d_fn conv2d;
    subp_interleave_fn interleave;
    subp_depthwise_fn depthwise;
    subp_winograd_fn winograd;
    subp_pool_fn pool;
    subp_mean_fn mean;
    subp_binary_fn binary;
    subp_activate_fn activate;
    subp_norm_pixels_fn norm_pixels;
    subp_norm_run_fn norm_run;
    subp_halve_fn halve;
    subp_peak_fn peak;
    subp_quantize_fn quantize;
    subp_dequantize_fn dequantize;
    subp_lookup_fn lookup;
    subp_quantized_binary_fn quantized_binary;
    subp_quantized_pool_fn quantized_pool;
    subp_quantized_mean_fn quantized_mean;
    subp_cast_fn cast;
    subp_thread_state_fn thread_state;
    subp_winograd_weights_fn winograd_weights;
} subp_run_functions;

/* A kernel; what the fields mean is told in the lists. */
typedef struct {
    const char *name;
    enum subp_operator op;
    enum subp_dtype dtype, weight_dtype, out_dtype;
    enum subp_set set;
    uint64_t features; /* of its set */
    int32_t channels, pixels, interleave;
    const char *packing;
    double tolerance;
    int32_t size, stride;
    subp_run_functions run; /* the one of its operator */
} subp_row;

/* The declarations of a row's functions. */
#define SUBP_DECLARE_conv2d(name) void name(const subp_tile *);
#define SUBP_DECLARE_interleave(name) void name(const subp_interleave *);
#define SUBP_DECLARE_depthwise(name) void name(const subp_depthwise *);
#define SUBP_DECLARE_winograd(name)                                                                          \
    void name##_in(const subp_tiles *, const void *, void *);                                                \
    void name##_out(const subp_tiles *, const void *, const float *, const void *, void *, int);
#define SUBP_DECLARE_pool(name) void name(const subp_pool *, const void *, void *, void *);
#define SUBP_DECLARE_mean(name) void name(const void *, ptrdiff_t, void *);
#define SUBP_DECLARE_binary(name) void name(int, const void *, const void *, int, ptrdiff_t, int, void *);
#define SUBP_DECLARE_activate(name) void name(const void *, ptrdiff_t, int, void *);
#define SUBP_DECLARE_norm_pixels(name) \
    void name(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, const float *, float, void *);
#define SUBP_DECLARE_norm_run(name) \
    void name(const void *, ptrdiff_t, ptrdiff_t, const float *, const float *, float, void *);
#define SUBP_DECLARE_halve(name) void name(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, void *, ptrdiff_t);
#define SUBP_DECLARE_peak(name) ptrdiff_t name(ptrdiff_t, float);
#define SUBP_DECLARE_quantize(name) void name(const float *, ptrdiff_t, float, int32_t, void *);
#define SUBP_DECLARE_dequantize(name) void name(const void *, ptrdiff_t, int32_t, float, float *);
#define SUBP_DECLARE_lookup(name) void name(const void *, ptrdiff_t, const void *, int, void *);
#define SUBP_DECLARE_quantized_binary(name) \
    void name(int, const subp_rescale *, const void *, const void *, int, ptrdiff_t, void *);
#define SUBP_DECLARE_quantized_pool(name) void name(const subp_quantized_pool *, const void *, void *, int32_t *);
#define SUBP_DECLARE_quantized_mean(name) void name(const subp_rescale *, const void *, ptrdiff_t, void *);
#define SUBP_DECLARE_cast(name) void name(const void *, ptrdiff_t, void *);
#define SUBP_DECLARE_thread_state(name)  \
    void name##_begin(int32_t);          \
    void name##_end(void);
#define SUBP_DECLARE_winograd_weights(name) \
    void name(const void *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, float *);
#define SUBP_ROW(operator, name, ...) SUBP_DECLARE_##operator(name)
#include "dtypes.inc"

#endif
