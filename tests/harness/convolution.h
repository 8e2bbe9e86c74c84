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
/* Room for the planes of a pass, or NULL if it needs none. */
float *exact_planes(const subp_conv *call);

#endif
