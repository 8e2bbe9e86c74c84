/* The arithmetic of uint8 activations for word_tiles.h, for every vector instruction set; included by a kernel set's
 * file after its int8_simd_<set>.h, which defines, beside the words of simd.h that it needs:
 *   vi32, VI32_LANES sums of int32, a pixel each: vi32_splat(number); vi32_load(p), the words of as many pixels;
 *     vi32_weight(p), one word in every lane; vi32_dot(sums, words, weight), the products of each word added to its
 *     sum;
 *   vf32_of(sums), vf32_mul(a, b), vf32_madd(a, b, c), rounded once, vi32_round(x), to the nearest, ties to even;
 *   vi32_bytes(p, n), of which the first n <= VI32_LANES are read, vf32_store_first(p, x, n);
 *   store_bytes(out, numbers, vectors, count, requantize), the first count numbers of so many vectors, with the zero
 *     point added and within the bounds;
 *   interleave_block, INTERLEAVE_PIXELS and WORD_CHANNELS of word_tiles.h, of elements of uint8.
 * Where an odd pixel is worth it, INT8_HAS_ODD is 1 and there are also
 *   ci32, sums of int32 of CI32_LANES output channels of one pixel: ci32_load(p), ci32_dot(sums, word, weights), the
 *     products of one word with the weights of each channel, ci32_floats(sums, factors, out), the products with
 *     factors, and ci32_bytes(sums, factors, residual, requantize, out), the stored numbers, of a residual that may be
 *     NULL. */
#ifndef SUBP_INT8_VECTOR_H
#define SUBP_INT8_VECTOR_H

#include "kernels.h"
#include "word_block.h"

typedef uint8_t word_element;
typedef vi32 vsum, vword;
enum { VSUM_LANES = VI32_LANES };

INLINE vsum vsum_start(const subp_tile *t, int c) { return vi32_splat(c < t->channels ? t->start[c] : 0); }
INLINE vsum vsum_dot(vsum sums, vword words, vword weight) { return vi32_dot(sums, words, weight); }
INLINE vword vword_load(const uint8_t *p) { return vi32_load(p); }
INLINE vword vword_weight(const uint8_t *p) { return vi32_weight(p); }

#ifndef INT8_HAS_ODD
#define INT8_HAS_ODD 0
enum { CI32_LANES = 1 };
typedef int32_t ci32;
INLINE ci32 ci32_load(const int32_t *p) { return *p; }
INLINE ci32 ci32_dot(ci32 sums, const uint8_t *word, const uint8_t *weights) { return (void)word, (void)weights, sums; }
INLINE void ci32_floats(ci32 sums, const float *factors, float *out) { (void)sums, (void)factors, (void)out; }
INLINE void ci32_bytes(ci32 sums, const float *factors, const uint8_t *residual, const subp_requantize *q,
                       uint8_t *out) {
    (void)sums, (void)factors, (void)residual, (void)q, (void)out;
}
#endif

/* One channel's sums as float32 outputs. */
INLINE void store_floats(const subp_tile *t, const vi32 *acc, ptrdiff_t at, int count, int c, const word_block o) {
    const vf32 factor = vf32_splat(t->factor[c]);
    float *out = (float *)t->out + t->out_offsets[c] + at;
    UNROLL for (int v = 0; v < o.vectors; v++)
        vf32_store_first(out + v * VI32_LANES, vf32_mul(vf32_of(acc[v]), factor), pixels_of(o, v, count, VI32_LANES));
}

/* One channel's sums as uint8 outputs. */
INLINE void store_channel(const subp_tile *t, const vi32 *acc, ptrdiff_t at, int count, int c, int has_residual,
                          const word_block o) {
    const subp_requantize *q = t->requantize;
    const vf32 factor = vf32_splat(t->factor[c]);
    const ptrdiff_t to = t->out_offsets[c] + at;
    vi32 rounded[MAX_VECTORS];
    UNROLL for (int v = 0; v < o.vectors; v++) {
        vf32 x = vf32_mul(vf32_of(acc[v]), factor);
        if (has_residual) {
            const uint8_t *from = (const uint8_t *)t->residual + to + v * VI32_LANES;
            const vi32 stored = vi32_bytes(from, pixels_of(o, v, count, VI32_LANES));
            const vi32 residual = vi32_sub(stored, vi32_splat(q->residual_zero));
            x = vf32_madd(vf32_of(residual), vf32_splat(q->residual_factor), x);
        }
        rounded[v] = vi32_round(x);
    }
    store_bytes((uint8_t *)t->out + to, rounded, o.vectors, o.partial ? count : o.vectors * VI32_LANES, q);
}

INLINE void store_sums(const subp_tile *t, vi32 acc[MAX_CHANNELS][MAX_VECTORS], ptrdiff_t at, int count,
                       const word_block o) {
    const int32_t stored = t->channels;
    if (t->to_float) {
        UNROLL for (int c = 0; c < o.channels; c++)
            if (c < stored) store_floats(t, acc[c], at, count, c, o);
    } else if (t->residual) {
        UNROLL for (int c = 0; c < o.channels; c++)
            if (c < stored) store_channel(t, acc[c], at, count, c, 1, o);
    } else {
        UNROLL for (int c = 0; c < o.channels; c++)
            if (c < stored) store_channel(t, acc[c], at, count, c, 0, o);
    }
}

/* One pixel of CI32_LANES channels. What is beyond the channels to store is not read. */
INLINE void store_pixel(const subp_tile *t, ci32 acc, ptrdiff_t at) {
    const ptrdiff_t *offsets = t->out_offsets;
    const int32_t stored = t->channels;
    float factors[CI32_LANES] = {0};
    for (int32_t c = 0; c < stored; c++) factors[c] = t->factor[c];
    if (t->to_float) {
        float sums[CI32_LANES];
        ci32_floats(acc, factors, sums);
        for (int32_t c = 0; c < stored; c++) ((float *)t->out)[offsets[c] + at] = sums[c];
        return;
    }
    const uint8_t *from = t->residual;
    uint8_t residual[CI32_LANES] = {0}, bytes[CI32_LANES];
    for (int32_t c = 0; from && c < stored; c++) residual[c] = from[offsets[c] + at];
    ci32_bytes(acc, factors, from ? residual : NULL, t->requantize, bytes);
    for (int32_t c = 0; c < stored; c++) ((uint8_t *)t->out)[offsets[c] + at] = bytes[c];
}

typedef ci32 csum;

INLINE csum csum_start(const subp_tile *t) {
    int32_t start[CI32_LANES] = {0};
    for (int32_t c = 0; c < t->channels; c++) start[c] = t->start[c];
    return ci32_load(start);
}
INLINE csum csum_dot(csum sums, const uint8_t *word, const uint8_t *weights) { return ci32_dot(sums, word, weights); }

#include "word_tiles.h"

#define INT8_DEFINE_INTERLEAVE(set) DEFINE_INTERLEAVE(u8s8_interleave__##set)
#define INT8_DEFINE_PEAK(set) DEFINE_WORD_PEAK(u8s8_peak__##set)
/* As DEFINE_WORD_KERNEL: blocks of `channels`, `MANY` vectors and `FEW`. */
#define INT8_DEFINE_KERNEL(set, channels, pixels, MANY, FEW, ...)                                                 \
    DEFINE_WORD_KERNEL(u8s8_ubsconv_##channels##x##pixels##__##set, u8s8_interleave__##set, channels, MANY, FEW, \
                       __VA_ARGS__)

#endif
