/* The convolution kernels of uint8 activations for every vector instruction set; included by a kernel set's file after its
 * int8_simd_<set>.h, which defines, beside the words of simd.h that it needs:
 *   vi32, VI32_LANES sums of int32, a pixel each: vi32_splat(number); vi32_load(p), the words of as many pixels;
 *     vi32_weight(p), one word in every lane; vi32_dot(sums, words, weight), the products of each word added to its sum;
 *   vf32_of(sums), vf32_mul(a, b), vf32_madd(a, b, c), rounded once, vi32_round(x), to the nearest, ties to even;
 *   vi32_bytes(p, n), of which the first n <= VI32_LANES are read, vf32_store_first(p, x, n);
 *   store_bytes(out, numbers, vectors, count, requantize), the first count numbers of so many vectors, with the zero point
 *     added and within the bounds. */
#ifndef SUBP_INT8_VECTOR_H
#define SUBP_INT8_VECTOR_H

#include "kernels.h"

enum { INT8_MAX_CHANNELS = 8, INT8_MAX_VECTORS = 8 };

/* Weights to fetch in advance, in bytes: as VALUES_AHEAD of vector.h. */
enum { WEIGHTS_AHEAD = 1024 };

/* How a block is computed; constants at every call. */
typedef struct {
    int channels, vectors;
    int partial; /* the last of its vectors is not full */
} int8_block;

INLINE int pixels_of(const int8_block o, int v, int count) {
    int left = count - v * VI32_LANES;
    return o.partial && left < VI32_LANES ? left : VI32_LANES;
}

/* One channel's sums as float32 outputs. */
INLINE void store_floats(const subp_tile *t, const vi32 *acc, ptrdiff_t at, int count, int c, const int8_block o) {
    float *out = (float *)t->out + c * t->out_stride + at;
    UNROLL for (int v = 0; v < o.vectors; v++)
        vf32_store_first(out + v * VI32_LANES, vf32_mul(vf32_of(acc[v]), vf32_splat(t->factor[c])), pixels_of(o, v, count));
}

/* One channel's sums as uint8 outputs. */
INLINE void store_channel(const subp_tile *t, const vi32 *acc, ptrdiff_t at, int count, int c, int has_residual,
                          const int8_block o) {
    const subp_requantize *q = t->requantize;
    const vf32 factor = vf32_splat(t->factor[c]);
    const ptrdiff_t to = c * t->out_stride + at;
    vi32 rounded[INT8_MAX_VECTORS];
    UNROLL for (int v = 0; v < o.vectors; v++) {
        vf32 x = vf32_mul(vf32_of(acc[v]), factor);
        if (has_residual) {
            const uint8_t *from = (const uint8_t *)t->residual + to + v * VI32_LANES;
            vi32 residual = vi32_sub(vi32_bytes(from, pixels_of(o, v, count)), vi32_splat(q->residual_zero));
            x = vf32_madd(vf32_of(residual), vf32_splat(q->residual_factor), x);
        }
        rounded[v] = vi32_round(x);
    }
    store_bytes((uint8_t *)t->out + to, rounded, o.vectors, o.partial ? count : o.vectors * VI32_LANES, q);
}

INLINE void store_sums(const subp_tile *t, vi32 acc[INT8_MAX_CHANNELS][INT8_MAX_VECTORS], ptrdiff_t at, int count,
                       const int8_block o) {
    const int32_t stored = t->channels;
    if (t->requantize->to_float) {
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

/* The block at pixel `at`; `count` of its pixels are stored. */
INLINE void int8_block_at(const subp_tile *t, ptrdiff_t at, int count, const int8_block o) {
    vi32 acc[INT8_MAX_CHANNELS][INT8_MAX_VECTORS];
    UNROLL for (int c = 0; c < o.channels; c++) {
        const vi32 start = vi32_splat(c < t->channels ? t->start[c] : 0);
        UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = start;
    }
    const uint8_t *w = t->values, *words = (const uint8_t *)t->x + at * SUBP_WORD;
    const ptrdiff_t stride = t->word_stride * SUBP_WORD;
    for (int32_t k = 0; k < t->words; k++, words += stride)
        for (int32_t tap = 0; tap < t->taps; tap++, w += o.channels * SUBP_WORD) {
            const uint8_t *from = words + t->tap_offsets[tap] * SUBP_WORD;
            vi32 x[INT8_MAX_VECTORS];
            __builtin_prefetch(w + WEIGHTS_AHEAD);
            UNROLL for (int v = 0; v < o.vectors; v++) x[v] = vi32_load(from + v * VI32_LANES * SUBP_WORD);
            UNROLL for (int c = 0; c < o.channels; c++) {
                const vi32 weight = vi32_weight(w + c * SUBP_WORD);
                UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = vi32_dot(acc[c][v], x[v], weight);
            }
        }
    store_sums(t, acc, at, count, o);
}

#define INT8_DEFINE_BLOCK(C, V)                                                                                  \
    static NOINLINE void int8_block_##C##x##V(const subp_tile *t, ptrdiff_t at) {                                \
        int8_block_at(t, at, V * VI32_LANES, (int8_block){.channels = C, .vectors = V});                         \
    }

#define INT8_DEFINE_REST(C)                                                                                      \
    static NOINLINE void int8_rest_##C(const subp_tile *t, ptrdiff_t at, int count) {                            \
        int8_block_at(t, at, count, (int8_block){.channels = C, .vectors = 1, .partial = 1});                    \
    }

#define INT8_RUN_BLOCKS(C, V)                                                    \
    for (; at + V * VI32_LANES <= t->count; at += V * VI32_LANES) int8_block_##C##x##V(t, at);

#define INT8_RUN_REST(C) \
    if (at < t->count) int8_rest_##C(t, at, (int)(t->count - at));

#endif
