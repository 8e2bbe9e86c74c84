/* What every file of the kernels shares: the tile a kernel computes, and the list of kernels.
 *
 * A convolution is flat for a kernel: output pixel p and tap t meet at x[tap_offsets[t] + p] of each kept channel,
 * and pixels are one run without gaps. A 1x1 convolution reads its input that way; any other reads planes in which
 * padding, stride and the row ends have been resolved (conv.h). */
#ifndef SUBP_KERNELS_H
#define SUBP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum subp_activation {
    SUBP_ACT_none,
#define SUBP_ACTIVATION(name) SUBP_ACT_##name,
#include "activations.inc"
#undef SUBP_ACTIVATION
    SUBP_ACT_COUNT
};

enum subp_isa {
#define SUBP_ISA(name, needs, usable) SUBP_ISA_##name,
#include "isas.inc"
#undef SUBP_ISA
    SUBP_ISA_COUNT
};

/* One call of a kernel: a run of pixels of one channel tile, out = activation(sum + bias + residual).
 * Nothing needs room to spare: a kernel reads x[channel_offsets[k] + tap_offsets[t] .. + count), the arrays below in
 * the sizes given and residual where it writes out, and writes nothing but the run. Fetching in advance is no read. */
typedef struct {
    const float *x; /* IN first channel of the group, at the run's first pixel */
    const ptrdiff_t *tap_offsets; /* IN [taps] */
    int32_t taps;
    const int32_t *channel_offsets; /* IN [kept], of the kept channels from x */
    int32_t kept;
    const float *values; /* IN [kept][taps][channels of the kernel's tile] */
    const float *bias;     /* IN [channels] to store, or NULL */
    const float *residual; /* IN laid out as out and possibly the same memory, or NULL */
    float *out;            /* OUT first channel, at the run's first pixel */
    ptrdiff_t out_stride;  /* from one channel to the next */
    ptrdiff_t count;       /* pixels */
    ptrdiff_t ahead;       /* pixels from here to those wanted next, to be fetched in advance; 0 for none */
    int32_t channels;      /* to store: at most those of the kernel's tile */
    int activation;        /* enum subp_activation */
} subp_tile;

typedef void (*subp_tile_fn)(const subp_tile *);

typedef struct {
    const char *name;
    enum subp_isa isa;
    int32_t channels, pixels;
    subp_tile_fn run;
} subp_kernel;

/* Windows over a plane; they may hang over any edge. */
typedef struct {
    ptrdiff_t height, width, out_h, out_w;
    ptrdiff_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
} subp_window;

/* Planes of a depthwise convolution: out = activation(sum + bias + residual). */
typedef struct {
    const subp_window *window;
    ptrdiff_t count;                 /* of planes */
    ptrdiff_t in_stride, out_stride; /* from one plane to the next */
    const float *in;       /* IN planes [height][width] */
    const float *padding;  /* IN [width] zeros */
    const float *values;   /* IN [count][kernel_h][kernel_w] */
    const float *bias;     /* IN [count], or NULL */
    const float *residual; /* IN as out and possibly the same memory, or NULL */
    float *out;            /* OUT planes [out_h][out_w] */
    int activation;        /* enum subp_activation */
} subp_depthwise;

typedef void (*subp_depthwise_fn)(const subp_depthwise *);

typedef struct {
    const char *name;
    enum subp_isa isa;
    int32_t size, stride; /* of square windows that are not dilated; 0 for any window */
    subp_depthwise_fn run;
} subp_depthwise_kernel;

/* Winograd's transforms of one channel of a 3x3 convolution with stride 1: a run of its tiles of size x size outputs,
 * counted along the rows. Position p of tile first + i is number p * position_stride + i of the transformed side. Vectors are
 * loaded and stored there as a whole: behind the run it needs room for another SUBP_TILE_SLACK floats, of any content. */
enum { SUBP_TILE_SLACK = 15 };

typedef struct {
    ptrdiff_t height, width, out_h, out_w, pad_top, pad_left;
    ptrdiff_t across;       /* tiles in a row */
    ptrdiff_t first, count; /* of the run */
    ptrdiff_t position_stride;
} subp_tiles;

typedef void (*subp_tiles_in_fn)(const subp_tiles *, const float *in, float *out);
typedef void (*subp_tiles_out_fn)(const subp_tiles *, const float *sums, const float *bias, const float *residual,
                                  float *out, int activation);

typedef struct {
    const char *name;
    enum subp_isa isa;
    int32_t size;          /* outputs of a tile along a side */
    subp_tiles_in_fn in;   /* from a plane [height][width] */
    subp_tiles_out_fn out; /* to a plane [out_h][out_w]: activation(outputs + bias + residual); bias is one or NULL */
} subp_winograd_kernel;

/* Pooling of a plane. Parts of a window outside of the input count for nothing; an average divides by
 * row_counts[y] * column_counts[x]. */
typedef struct {
    subp_window window;
    int average; /* else the maximum */
    const float *row_counts, *column_counts; /* IN [out_h], [out_w]; not read for the maximum */
} subp_pool;

typedef void (*subp_halve_fn)(const float *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, float *out,
                              ptrdiff_t out_step);

/* The operators beside convolution that each set has. `row` is room for one input row; binary is a + b or a * b with
 * b one number or as many as a; norm_pixels makes each of up to SUBP_NORM_PIXELS pixels mean 0 and variance 1 over
 * channels that are `stride` apart, norm_run one run of channels * pixels numbers, both times weight[c] plus bias[c];
 * halve takes every second number of each row and reads nothing beyond the last it takes. */
enum { SUBP_NORM_PIXELS = 64 };
#define SUBP_ISA(name, needs, usable)                                                                           \
    void subp_pool_##name(const subp_pool *p, const float *in, float *out, float *row);                         \
    float subp_mean_##name(const float *in, ptrdiff_t count);                                                   \
    void subp_binary_##name(int multiply, const float *a, const float *b, int one_b, ptrdiff_t count,           \
                            int activation, float *out);                                                        \
    void subp_activate_##name(const float *in, ptrdiff_t count, int activation, float *out);                    \
    void subp_norm_pixels_##name(const float *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count,        \
                                 const float *weight, const float *bias, float eps, float *out);                \
    void subp_norm_run_##name(const float *in, ptrdiff_t channels, ptrdiff_t pixels, const float *weight,       \
                              const float *bias, float eps, float *out);                                        \
    void subp_halve_##name(const float *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, float *out,      \
                           ptrdiff_t out_step);
#include "isas.inc"
#undef SUBP_ISA

/* Per set a loop of nothing but products, subp_peak_flops_* of them in a round: the speed that kernels are measured
 * against. The result has no meaning; |factor| < 1 keeps it finite. */
#define SUBP_ISA(name, needs, usable)                       \
    float subp_peak_##name(ptrdiff_t rounds, float factor); \
    extern const int subp_peak_flops_##name;
#include "isas.inc"
#undef SUBP_ISA

#define SUBP_CONVOLUTION(name, isa, channels, pixels) void name(const subp_tile *);
#define SUBP_DEPTHWISE(name, isa, size, stride) void name(const subp_depthwise *);
#define SUBP_WINOGRAD(name, isa, size)                                                                      \
    void name##_in(const subp_tiles *, const float *in, float *out);                                        \
    void name##_out(const subp_tiles *, const float *sums, const float *bias, const float *residual, float *out, \
                    int activation);
#include "kernels.inc"

#endif
