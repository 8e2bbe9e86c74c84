/* A whole convolution as independent work items, for any kernel set. */
#ifndef SUBP_CONV_H
#define SUBP_CONV_H

#include "kernels.h"

/* Where input pixels go: phase p of a plane holds rows y * stride_h + phase_rows[p] and columns likewise. */
typedef struct {
    ptrdiff_t height, width;     /* of the input */
    ptrdiff_t pad_top, pad_left; /* zeros before the input's first row and column */
    ptrdiff_t stride_h, stride_w;
    ptrdiff_t phases;
    const ptrdiff_t *phase_rows, *phase_cols; /* IN [phases] */
    ptrdiff_t plane_h, plane_w;               /* of one phase */
} subp_planes;

/* Writes the [phases][plane_h][plane_w] planes of one channel. */
void subp_fill_planes(const subp_planes *p, const float *in, float *out);

typedef struct {
    enum subp_operator op;
    enum subp_isa isa;
    const float *planes; /* IN [batch][in_channels][plane_stride] */
    ptrdiff_t batch, in_channels, plane_stride;
    const ptrdiff_t *tap_offsets; /* IN [taps] */
    int32_t taps;
    const float *values;    /* IN [rows][kept][taps][block] */
    const int32_t *indices; /* IN [rows][kept]; NULL for dwconv */
    ptrdiff_t rows, kept, block;
    ptrdiff_t groups, out_channels;
    const float *bias;     /* IN [out_channels] or NULL */
    const float *residual; /* IN as out, or NULL */
    float *out;            /* OUT [batch][out_channels][out_h * out_w] */
    ptrdiff_t pitch, out_h, out_w;
    int activation;
} subp_conv;

/* Work items of a call: batch x block rows x chunks of pixels. Each owns its part of the output, and the split does
 * not depend on the number of threads. */
ptrdiff_t subp_conv_items(const subp_conv *call);
void subp_conv_item(const subp_conv *call, ptrdiff_t item);

#endif
