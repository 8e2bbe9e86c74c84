/* Random convolutions, for the checks of what is built on them too. */
#ifndef HARNESS_CONVOLUTION_H
#define HARNESS_CONVOLUTION_H

#include "conv.h"
#include "harness.h"

enum { MAX_TAPS = 49, MAX_KERNELS = 64 };

typedef struct {
    ptrdiff_t batch, groups, group_in, group_out, block, rows_per_group; /* block rows */
    ptrdiff_t size[2], kernel[2], stride[2], dilation[2], pad[2][2], out[2]; /* height, width; pad before, after */
} shape;

shape random_shape(void);
/* Fills the fields about planes but the band: a copy of a channel for every (row within the stride, column) that a tap
 * needs. */
void plan_planes(subp_conv *call, const shape *s);
/* An ascending choice for each block row, and the field of their offsets. Returns [rows][kept]. */
const int32_t *choose_channels(subp_conv *call);
/* Values of each block row, tile by tile of output channels, from [row][kept][tap][block]. */
const float *pack(const subp_conv *call, const float *values);
/* Fails unless `out` is the convolution, up to rounding: of sums, and of results to `rounding` of their size. */
void check_convolved(const subp_conv *call, const shape *s, const float *values, const int32_t *indices, const float *x,
                     const float *residual, const float *out, double rounding);
/* Room for the planes of a pass, or NULL if it needs none. */
float *exact_planes(const subp_conv *call);

/* Of convolutions whose kernels read words: the fields about bands, planes and words; as choose_channels; values of
 * each block row in words, from [row][kept][tap][block] of elements of so many bytes; all passes, cut in parts if there
 * are such. */
void plan_words(subp_conv *call, const shape *s);
const int32_t *choose_word_channels(subp_conv *call);
const void *pack_words(const subp_conv *call, const void *values, size_t element);
/* Where the word of a channel and a tap is among those of a kernel's tile. */
ptrdiff_t word_place(const subp_row *kernel, ptrdiff_t words, ptrdiff_t taps, ptrdiff_t word, ptrdiff_t tap,
                     ptrdiff_t c);
void run_words(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t batch, const subp_conv_parts *parts);

#endif
