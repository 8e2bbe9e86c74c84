/* A 3x3 convolution with stride 1 as independent pieces of work after Winograd: blocks are whole kernels, so their
 * zeros survive the transform, and every position of a tile has a product with the block rows of the weight.
 *
 * A pass is a run of tiles of one image. It fills planes with the transformed channels, then each part multiplies
 * one channel tile of a block row into sums of its own and transforms them back. Who does which piece changes no
 * bit of the result. */
#ifndef SUBP_WINOGRAD_H
#define SUBP_WINOGRAD_H

#include "conv.h"

typedef struct {
    ptrdiff_t in_channels, out_channels;
    ptrdiff_t groups, rows, kept, block;
    int activation;
    ptrdiff_t element, weight_element, out_element; /* bytes; transformed numbers are float32 */
    const subp_row *const *kernels; /* IN those a block row takes, one after the other, of float32 */
    ptrdiff_t tiles_of_row;            /* and how many */
    const subp_row *transforms, *outputs; /* from inputs, and to outputs, which may be of another type */
    subp_winograd_weights_fn weights; /* or NULL: they are transformed */
    subp_tiles tiles;       /* of an image; a run is set for each pass */
    ptrdiff_t run;          /* tiles of a pass */
    ptrdiff_t call_tiles;   /* of one call of a kernel */
    ptrdiff_t pitch;        /* elements from channel to channel at one position: a run and its slack, in whole lines */
    const void *values;     /* IN per block row and tile of it [positions][kept][channels of the tile]; of weights that
                               are not transformed, per block row [kept][9][block] */
    const int32_t *channel_offsets; /* IN [rows][kept], each index within the group times pitch */
    const float *bias;      /* IN [out_channels] of the block rows, one after the other, or NULL */
    const ptrdiff_t *out_offsets; /* IN likewise: where each channel's plane is in an image of the output */
    const ptrdiff_t *sum_offsets; /* IN [channels of the widest tile] multiples of pitch */
} subp_winograd;

/* Passes of one image, and channels to fill and parts of a pass. */
ptrdiff_t subp_winograd_passes(const subp_winograd *call);
ptrdiff_t subp_winograd_fills(const subp_winograd *call);
ptrdiff_t subp_winograd_parts(const subp_winograd *call);

/* Floats of the planes of a pass, and of the sums of a part with its weights where they are transformed. */
ptrdiff_t subp_winograd_planes(const subp_winograd *call);
ptrdiff_t subp_winograd_sums(const subp_winograd *call);

void subp_winograd_fill(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t channel,
                        void *planes);
void subp_winograd_part(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t part,
                        const void *planes, void *sums);
/* A whole pass. */
void subp_winograd_pass(const subp_winograd *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes,
                        void *sums);

#endif
