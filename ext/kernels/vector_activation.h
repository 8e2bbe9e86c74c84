/* Activations on the accumulators of a kernel, in the words of simd.h. */
#ifndef SUBP_VECTOR_ACTIVATION_H
#define SUBP_VECTOR_ACTIVATION_H

#include "activation.h"

/* Whether it is an instruction or two of a vector, or none. */
INLINE int in_vectors(int activation) {
    return activation == SUBP_ACT_none || activation == SUBP_ACT_relu || activation == SUBP_ACT_relu6;
}

/* Not inlined: the code of all activations would be in every kernel. */
static NOINLINE void activate(float *x, ptrdiff_t count, int activation) { subp_activate(x, count, activation); }

/* Those that take more than an instruction or two are loops, which are slow on a few numbers: on all accumulators at
 * once. */
INLINE void activate_block(vf32 acc[MAX_CHANNELS][MAX_VECTORS], int channels, int vectors, int activation) {
    if (activation == SUBP_ACT_none) return;
    if (activation == SUBP_ACT_relu) {
        UNROLL for (int c = 0; c < channels; c++)
            UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_relu(acc[c][v]);
        return;
    }
    if (activation == SUBP_ACT_relu6) {
        UNROLL for (int c = 0; c < channels; c++)
            UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_relu6(acc[c][v]);
        return;
    }
    float sums[MAX_CHANNELS * MAX_VECTORS * VF32_LANES];
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int v = 0; v < vectors; v++) vf32_store(sums + (c * vectors + v) * VF32_LANES, acc[c][v]);
    activate(sums, channels * vectors * VF32_LANES, activation);
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_load(sums + (c * vectors + v) * VF32_LANES);
}

/* Of one pixel of CF32_LANES channels, to memory. */
INLINE void activate_pixel(cf32 acc, int activation, float sums[CF32_LANES]) {
    if (activation == SUBP_ACT_relu)
        acc = cf32_relu(acc);
    else if (activation == SUBP_ACT_relu6)
        acc = cf32_relu6(acc);
    cf32_store(sums, acc);
    if (!in_vectors(activation)) activate(sums, CF32_LANES, activation);
}

#endif
