/* The arithmetic of bfloat16 for word_tiles.h, for every vector instruction set; included by a kernel set's file after
 * its simd_<set>.h, and after it has defined
 *   vword, vword_load, vword_weight and vsum_dot of word_tiles.h, with vf32 for sums;
 *   csum_dot(sums, word, weights), with cf32 for sums;
 *   interleave_block, INTERLEAVE_PIXELS and WORD_CHANNELS, of elements of uint16;
 *   bf16_load(p, n), the first n <= VF32_LANES numbers as float32, no others read;
 *   bf16_store(out, x, vectors, count), the first count numbers of so many vectors, to the nearest, ties to even. */
#ifndef SUBP_BF16_VECTOR_H
#define SUBP_BF16_VECTOR_H

#include "bfloat16.h"
#include "kernels.h"
#include "vector_activation.h"
#include "word_block.h"

typedef uint16_t word_element;
typedef vf32 vsum;
typedef cf32 csum;
enum { VSUM_LANES = VF32_LANES, CSUM_LANES = CF32_LANES };

INLINE vsum vsum_start(const subp_tile *t, int c) {
    return vf32_splat(t->bias && c < t->channels ? t->bias[c] : 0.0f);
}

INLINE csum csum_start(const subp_tile *t) {
    float start[CF32_LANES] = {0};
    for (int32_t c = 0; t->bias && c < t->channels; c++) start[c] = t->bias[c];
    return cf32_load(start);
}

INLINE void store_floats(float *out, const vf32 *x, int count, const word_block o) {
    UNROLL for (int v = 0; v < o.vectors; v++) {
        const int n = pixels_of(o, v, count, VF32_LANES);
        if (n == VF32_LANES)
            vf32_store(out + v * VF32_LANES, x[v]);
        else
            vf32_store_mask(out + v * VF32_LANES, x[v], vf32_first(n));
    }
}

/* Several passes over the registers, as in vector.h. */
INLINE void store_sums(const subp_tile *t, vf32 acc[MAX_CHANNELS][MAX_VECTORS], ptrdiff_t at, int count,
                       const word_block o) {
    const ptrdiff_t *offsets = t->out_offsets;
    const int32_t stored = t->channels;
    if (t->residual) {
        const uint16_t *residual = (const uint16_t *)t->residual + at;
        UNROLL for (int c = 0; c < o.channels; c++)
            if (c < stored)
                UNROLL for (int v = 0; v < o.vectors; v++) {
                    const uint16_t *from = residual + offsets[c] + v * VF32_LANES;
                    acc[c][v] = vf32_add(acc[c][v], bf16_load(from, pixels_of(o, v, count, VF32_LANES)));
                }
    }
    activate_block(acc, o.channels, o.vectors, t->activation);
    if (t->to_float) {
        float *out = (float *)t->out + at;
        UNROLL for (int c = 0; c < o.channels; c++)
            if (c < stored) store_floats(out + offsets[c], acc[c], count, o);
        return;
    }
    uint16_t *out = (uint16_t *)t->out + at;
    UNROLL for (int c = 0; c < o.channels; c++)
        if (c < stored)
            bf16_store(out + offsets[c], acc[c], o.vectors, o.partial ? count : o.vectors * VF32_LANES);
}

/* One pixel of CF32_LANES channels. What is beyond the channels to store is not read. */
INLINE void store_pixel(const subp_tile *t, csum acc, ptrdiff_t at) {
    const ptrdiff_t *offsets = t->out_offsets;
    const int32_t stored = t->channels;
    float sums[CF32_LANES] = {0};
    if (t->residual) {
        const uint16_t *residual = (const uint16_t *)t->residual + at;
        for (int32_t c = 0; c < stored; c++) sums[c] = subp_from_bfloat16(residual[offsets[c]]);
        acc = cf32_add(acc, cf32_load(sums));
    }
    activate_pixel(acc, t->activation, sums);
    if (t->to_float)
        for (int32_t c = 0; c < stored; c++) ((float *)t->out)[offsets[c] + at] = sums[c];
    else
        for (int32_t c = 0; c < stored; c++) ((uint16_t *)t->out)[offsets[c] + at] = subp_to_bfloat16(sums[c]);
}

#include "word_tiles.h"

#define BF16_DEFINE_INTERLEAVE(set) DEFINE_INTERLEAVE(bf16_interleave__##set)
#define BF16_DEFINE_PEAK(set) DEFINE_WORD_PEAK(bf16_peak__##set)
/* As DEFINE_WORD_KERNEL. */
#define BF16_DEFINE_KERNEL(set, channels, pixels, MANY, FEW, ...)                                                \
    DEFINE_WORD_KERNEL(bf16_ubsconv_##channels##x##pixels##__##set, bf16_interleave__##set, channels, MANY, FEW, \
                       __VA_ARGS__)

#endif
