/* The convolution kernels of uint8 activations for every vector instruction set; included by a kernel set's file after
 * its int8_simd_<set>.h, which defines, beside the words of simd.h that it needs:
 *   vi32, VI32_LANES sums of int32, a pixel each: vi32_splat(number); vi32_load(p), the words of as many pixels;
 *     vi32_weight(p), one word in every lane; vi32_dot(sums, words, weight), the products of each word added to its
 *     sum;
 *   vf32_of(sums), vf32_mul(a, b), vf32_madd(a, b, c), rounded once, vi32_round(x), to the nearest, ties to even;
 *   vi32_bytes(p, n), of which the first n <= VI32_LANES are read, vf32_store_first(p, x, n);
 *   store_bytes(out, numbers, vectors, count, requantize), the first count numbers of so many vectors, with the zero
 *     point added and within the bounds;
 *   interleave_block(x, offsets, count, out), the words of the first count <= INTERLEAVE_PIXELS pixels, no other bytes
 *     read or written, and faster if all; INT8_INTERLEAVE are the channels of a word.
 * Where an odd pixel is worth it, INT8_HAS_ODD is 1 and there are also
 *   ci32, sums of int32 of CI32_LANES output channels of one pixel: ci32_load(p), ci32_dot(sums, word, weights), the
 *     products of one word with the weights of each channel, ci32_floats(sums, factors, out), the products with
 *     factors, and ci32_bytes(sums, factors, residual, requantize, out), the stored numbers, of a residual that may be
 *     NULL. */
#ifndef SUBP_INT8_VECTOR_H
#define SUBP_INT8_VECTOR_H

#include <string.h>

#include "int8_words.h"
#include "kernels.h"

enum { INT8_MAX_CHANNELS = 8, INT8_MAX_VECTORS = 8 };

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

/* Weights to fetch in advance, in bytes: as VALUES_AHEAD of vector.h. */
enum { WEIGHTS_AHEAD = 1024 };

/* How a block is computed; constants at every call. */
typedef struct {
    int channels, vectors;
    int partial; /* the last of its vectors is not full */
    int one_tap; /* for convolutions with a single tap */
    int ahead;   /* makes the words of a later tile, as many at a time as it reads */
    int extra;   /* a pixel more, behind the whole block: it costs one product, a vector over the CI32_LANES channels */
} int8_block;

INLINE int pixels_of(const int8_block o, int v, int count) {
    int left = count - v * VI32_LANES;
    return o.partial && left < VI32_LANES ? left : VI32_LANES;
}

/* One channel's sums as float32 outputs. */
INLINE void store_floats(const subp_tile *t, const vi32 *acc, ptrdiff_t at, int count, int c, const int8_block o) {
    const vf32 factor = vf32_splat(t->factor[c]);
    float *out = (float *)t->out + c * t->out_stride + at;
    UNROLL for (int v = 0; v < o.vectors; v++)
        vf32_store_first(out + v * VI32_LANES, vf32_mul(vf32_of(acc[v]), factor), pixels_of(o, v, count));
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

/* One pixel of CI32_LANES channels. What is beyond the channels to store is not read. */
INLINE void store_pixel(const subp_tile *t, ci32 acc, ptrdiff_t at) {
    const ptrdiff_t stride = t->out_stride;
    const int32_t stored = t->channels;
    float factors[CI32_LANES] = {0};
    for (int32_t c = 0; c < stored; c++) factors[c] = t->factor[c];
    if (t->requantize->to_float) {
        float sums[CI32_LANES];
        ci32_floats(acc, factors, sums);
        for (int32_t c = 0; c < stored; c++) ((float *)t->out)[c * stride + at] = sums[c];
        return;
    }
    const uint8_t *from = t->residual;
    uint8_t residual[CI32_LANES] = {0}, bytes[CI32_LANES];
    for (int32_t c = 0; from && c < stored; c++) residual[c] = from[c * stride + at];
    ci32_bytes(acc, factors, from ? residual : NULL, t->requantize, bytes);
    for (int32_t c = 0; c < stored; c++) ((uint8_t *)t->out)[c * stride + at] = bytes[c];
}

INLINE ci32 start_of_pixel(const subp_tile *t, const int8_block o) {
    int32_t start[CI32_LANES] = {0};
    for (int32_t c = 0; o.extra && c < t->channels; c++) start[c] = t->start[c];
    return ci32_load(start);
}

/* One word of a later tile, of as many pixels as this block has. */
INLINE void make_word(const subp_interleave *s, ptrdiff_t word, ptrdiff_t copy, const int8_block o) {
    interleave_block(s->x + copy * s->in_copy, subp_word_channels(s, word, INT8_INTERLEAVE),
                     o.vectors * VI32_LANES + o.extra, subp_word_at(s, word, copy));
}

/* One word of every pixel, one tap: every weight meets every pixel. */
INLINE void add_words(vi32 acc[INT8_MAX_CHANNELS][INT8_MAX_VECTORS], ci32 *last, const uint8_t *from, const uint8_t *w,
                      const int8_block o) {
    vi32 x[INT8_MAX_VECTORS];
    __builtin_prefetch(w + WEIGHTS_AHEAD);
    UNROLL for (int v = 0; v < o.vectors; v++) x[v] = vi32_load(from + v * VI32_LANES * SUBP_WORD);
    UNROLL for (int c = 0; c < o.channels; c++) {
        const vi32 weight = vi32_weight(w + c * SUBP_WORD);
        UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = vi32_dot(acc[c][v], x[v], weight);
    }
    if (o.extra) *last = ci32_dot(*last, from + o.vectors * VI32_LANES * SUBP_WORD, w);
}

/* The block at pixel `at`; `count` of its pixels are stored, and the extra one. */
INLINE void int8_block_at(const subp_tile *t, ptrdiff_t at, int count, const int8_block o) {
    vi32 acc[INT8_MAX_CHANNELS][INT8_MAX_VECTORS];
    UNROLL for (int c = 0; c < o.channels; c++) {
        const vi32 start = vi32_splat(c < t->channels ? t->start[c] : 0);
        UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = start;
    }
    ci32 last = start_of_pixel(t, o);
    const uint8_t *w = t->values, *words = (const uint8_t *)t->x + at * SUBP_WORD;
    const ptrdiff_t stride = t->word_stride * SUBP_WORD;
    if (o.one_tap) {
        words += t->tap_offsets[0] * SUBP_WORD;
        for (int32_t k = 0; k < t->words; k++, words += stride, w += o.channels * SUBP_WORD) {
            add_words(acc, &last, words, w, o);
            if (o.ahead) make_word(t->next, k, 0, o);
        }
    } else {
        for (int32_t k = 0; k < t->words; k++, words += stride)
            for (int32_t tap = 0; tap < t->taps; tap++, w += o.channels * SUBP_WORD) {
                add_words(acc, &last, words + t->tap_offsets[tap] * SUBP_WORD, w, o);
                if (o.ahead && tap < t->next->copies) make_word(t->next, k, tap, o);
            }
    }
    store_sums(t, acc, at, count, o);
    if (o.extra) store_pixel(t, last, at + o.vectors * VI32_LANES);
}

#define INT8_DEFINE_BLOCK(C, V)                                                                                  \
    static NOINLINE void int8_block_##C##x##V(const subp_tile *t, ptrdiff_t at) {                                \
        int8_block_at(t, at, V * VI32_LANES, (int8_block){.channels = C, .vectors = V});                         \
    }                                                                                                            \
    static NOINLINE void int8_block_##C##x##V##_1tap(const subp_tile *t, ptrdiff_t at) {                         \
        int8_block_at(t, at, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .one_tap = 1});           \
    }

#define INT8_DEFINE_REST(C)                                                                                      \
    static NOINLINE void int8_rest_##C(const subp_tile *t, ptrdiff_t at, int count) {                            \
        int8_block_at(t, at, count, (int8_block){.channels = C, .vectors = 1, .partial = 1});                    \
    }

/* A run of so many vectors, or a pixel more, with the words of a later one. */
#define INT8_DEFINE_AHEAD(C, V)                                                                                  \
    static NOINLINE void int8_ahead_##C##x##V(const subp_tile *t) {                                              \
        int8_block_at(t, 0, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .ahead = 1});              \
    }                                                                                                            \
    static NOINLINE void int8_ahead_##C##x##V##_1tap(const subp_tile *t) {                                       \
        int8_block_at(t, 0, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .one_tap = 1, .ahead = 1}); \
    }                                                                                                            \
    static NOINLINE void int8_ahead_odd_##C##x##V(const subp_tile *t) {                                          \
        int8_block_at(t, 0, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .ahead = 1, .extra = 1});  \
    }                                                                                                            \
    static NOINLINE void int8_ahead_odd_##C##x##V##_1tap(const subp_tile *t) {                                   \
        int8_block_at(t, 0, V * VI32_LANES,                                                                      \
                      (int8_block){.channels = C, .vectors = V, .one_tap = 1, .ahead = 1, .extra = 1});          \
    }

/* A run of so many vectors and a pixel, CI32_LANES channels at once. */
#define INT8_DEFINE_ODD(C, V)                                                                                    \
    static NOINLINE void int8_odd_##C##x##V(const subp_tile *t) {                                                \
        int8_block_at(t, 0, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .extra = 1});              \
    }                                                                                                            \
    static NOINLINE void int8_odd_##C##x##V##_1tap(const subp_tile *t) {                                         \
        int8_block_at(t, 0, V * VI32_LANES, (int8_block){.channels = C, .vectors = V, .one_tap = 1, .extra = 1}); \
    }

#define INT8_RUN_AHEAD(C, V)                                                            \
    if (t->next && t->count == V * VI32_LANES) {                                                   \
        (t->taps == 1 ? int8_ahead_##C##x##V##_1tap : int8_ahead_##C##x##V)(t);         \
        return;                                                                         \
    }                                                                                   \
    if (t->next && t->count == V * VI32_LANES + 1) {                                    \
        (t->taps == 1 ? int8_ahead_odd_##C##x##V##_1tap : int8_ahead_odd_##C##x##V)(t); \
        return;                                                                         \
    }

#define INT8_RUN_ODD(C, V)                                                        \
    if (t->count == V * VI32_LANES + 1) {                                         \
        (t->taps == 1 ? int8_odd_##C##x##V##_1tap : int8_odd_##C##x##V)(t);       \
        return;                                                                   \
    }

#define INT8_RUN_BLOCKS(C, V)                                                     \
    for (; at + V * VI32_LANES <= t->count; at += V * VI32_LANES)                 \
        (t->taps == 1 ? int8_block_##C##x##V##_1tap : int8_block_##C##x##V)(t, at);

#define INT8_RUN_REST(C, interleave)                                  \
    if (at < t->count) int8_rest_##C(t, at, (int)(t->count - at));    \
    if (t->next) interleave(t->next);

/* A word of one copy. Where pixels are left over, the last ones are made once more, but in a whole block. */
INLINE void interleave_run(const uint8_t *in, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    ptrdiff_t at = 0;
    for (; at + INTERLEAVE_PIXELS <= count; at += INTERLEAVE_PIXELS)
        interleave_block(in + at, offsets, INTERLEAVE_PIXELS, out + at * SUBP_WORD);
    if (at == count) return;
    if (at) {
        at = count - INTERLEAVE_PIXELS;
        interleave_block(in + at, offsets, INTERLEAVE_PIXELS, out + at * SUBP_WORD);
    } else {
        interleave_block(in, offsets, count, out);
    }
}

#define INT8_DEFINE_INTERLEAVE(set)                                                                              \
    void u8s8_interleave__##set(const subp_interleave *s) {                                                      \
        for (ptrdiff_t w = 0; w < s->words; w++)                                                                 \
            for (ptrdiff_t copy = 0; copy < s->copies; copy++)                                                   \
                interleave_run(s->x + copy * s->in_copy, subp_word_channels(s, w, INT8_INTERLEAVE), s->count,    \
                               subp_word_at(s, w, copy));                                                        \
    }

/* What the units for products can do: as `peak` of vector.h. */
enum { PEAK_CHAINS = 12 };

#ifdef __aarch64__
#define KEEP(x) __asm__ volatile("" : "+w"(x))
#else
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#endif

INLINE ptrdiff_t int8_peak(ptrdiff_t rounds, float factor) {
    vi32 chains[PEAK_CHAINS], ones = vi32_splat(factor < 1.0f ? 0x01010101 : 0);
    UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vi32_splat(i);
    for (ptrdiff_t r = 0; r < rounds; r++) {
        KEEP(ones); /* or the products, which do not change, would be taken out of the loop */
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vi32_dot(chains[i], ones, ones);
    }
    int32_t sum = 0, lanes[VI32_LANES];
    for (int i = 0; i < PEAK_CHAINS; i++) {
        memcpy(lanes, &chains[i], sizeof(lanes));
        sum ^= lanes[0];
    }
    return sum == 1 ? 0 : 2 * PEAK_CHAINS * VI32_LANES * INT8_INTERLEAVE; /* never; but the loop is for something */
}

#define INT8_DEFINE_PEAK(set) \
    ptrdiff_t u8s8_peak__##set(ptrdiff_t rounds, float factor) { return int8_peak(rounds, factor); }

#endif
