/* A convolution and the depthwise one that alone reads it, as one piece of work: what is between them stays in the
 * cache.
 *
 * A pass is a band of the last output's rows of one image. It fills planes as the first convolution does, then each
 * part computes a few block rows of the first on the rows that its windows see, into memory of its own, and the second
 * from there. Rows that two bands see are computed for both. Who does which piece changes no bit of the result. */
#ifndef SUBP_FUSED_DEPTHWISE_H
#define SUBP_FUSED_DEPTHWISE_H

#include "conv.h"

typedef struct {
    subp_conv first;    /* its band is the most rows that a pass sees */
    subp_window window; /* of the second, over whole planes */
    const subp_row *kernel;
    const void *values; /* IN [out_channels][kernel_h][kernel_w] of the second, by the block rows of the first */
    const float *bias;    /* IN likewise, or NULL */
    const ptrdiff_t *out_offsets; /* IN likewise: where each channel's plane is in an image of the output */
    const void *padding;  /* IN [width] of what stands for zero */
    int activation;       /* of the second */
    const subp_requantize *requantize; /* of the second, with the two below; for uint8 alone */
    const int32_t *start;              /* IN as bias */
    const float *factor;               /* IN as bias */
    ptrdiff_t band;       /* output rows of a pass */
    ptrdiff_t step;       /* block rows of a part */
    ptrdiff_t pitch;      /* elements from channel to channel between the two */
    const ptrdiff_t *between_offsets; /* IN [step * block] those multiples of it */
} subp_fused_depthwise;

/* Passes of one image, and parts of a pass. Channels to fill are those of the first. */
ptrdiff_t subp_fused_depthwise_passes(const subp_fused_depthwise *call);
ptrdiff_t subp_fused_depthwise_parts(const subp_fused_depthwise *call);

void subp_fused_depthwise_fill(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, ptrdiff_t channel, void *planes);
/* `words` is the thread's own, for the first; `between` has room for a part's channels, `pitch` elements each. */
void subp_fused_depthwise_part(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, ptrdiff_t part, const void *planes, void *words, void *between);
/* A whole pass. */
void subp_fused_depthwise_pass(const subp_fused_depthwise *call, const subp_conv_arrays *arrays,
                               ptrdiff_t pass, void *planes, void *words, void *between);

#endif
