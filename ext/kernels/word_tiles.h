/* The convolution kernels that read words, for every vector instruction set and every arithmetic: how a run of pixels
 * is cut into blocks of registers, and their loops. Included by the header of an arithmetic, which has defined
 *   vsum, VSUM_LANES sums, a pixel each; vsum_start(tile, channel), what they start from, 0 for channels that are not
 *     stored; vsum_dot(sums, words, weight), the products of each word added to its sum;
 *   vword, the words of as many pixels: vword_load(p); vword_weight(p), one word in every lane;
 *   csum, sums of CSUM_LANES output channels of one pixel: csum_start(tile), csum_dot(sums, word, weights), the
 *     products of one word with the weights of each channel; of use where kernels are defined with WORDS_ODD or
 *     WORDS_AHEAD;
 *   word_element, what planes hold, and WORD_CHANNELS of them in a word; interleave_block(x, offsets, count, out), the
 *     words of the first count <= INTERLEAVE_PIXELS pixels, nothing else read or written, and faster if all;
 * and after word_block.h: store_sums(tile, sums, at, count, block), the outputs of a block at pixel `at`, of which
 * `count` are stored; store_pixel(tile, sums, at), those of one pixel. */
#ifndef SUBP_WORD_TILES_H
#define SUBP_WORD_TILES_H

#include <string.h>

#include "word_block.h"
#include "words.h"

/* Weights to fetch in advance, in bytes: as VALUES_AHEAD of vector.h. */
enum { WEIGHTS_AHEAD = 1024 };

/* One word of a later tile, of as many pixels as this block has. */
INLINE void make_word(const subp_interleave *s, ptrdiff_t word, ptrdiff_t copy, const word_block o) {
    interleave_block((const word_element *)s->x + copy * s->in_copy, subp_word_channels(s, word, WORD_CHANNELS),
                     o.vectors * VSUM_LANES + o.extra, subp_word_at(s, word, copy));
}

/* One word of every pixel, one tap: every weight meets every pixel. */
INLINE void add_words(vsum acc[MAX_CHANNELS][MAX_VECTORS], csum *last, const uint8_t *from,
                      const uint8_t *w, const word_block o) {
    vword x[MAX_VECTORS];
    __builtin_prefetch(w + WEIGHTS_AHEAD);
    UNROLL for (int v = 0; v < o.vectors; v++) x[v] = vword_load(from + v * VSUM_LANES * SUBP_WORD);
    UNROLL for (int c = 0; c < o.channels; c++) {
        const vword weight = vword_weight(w + c * SUBP_WORD);
        UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = vsum_dot(acc[c][v], x[v], weight);
    }
    if (o.extra) *last = csum_dot(*last, from + o.vectors * VSUM_LANES * SUBP_WORD, w);
}

/* The block at pixel `at`; `count` of its pixels are stored, and the extra one. */
INLINE void word_block_at(const subp_tile *t, ptrdiff_t at, int count, const word_block o) {
    vsum acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int c = 0; c < o.channels; c++) {
        const vsum start = vsum_start(t, c);
        UNROLL for (int v = 0; v < o.vectors; v++) acc[c][v] = start;
    }
    csum last = {0};
    if (o.extra) last = csum_start(t);
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
    if (o.extra) store_pixel(t, last, at + o.vectors * VSUM_LANES);
}

/* A function for each kind of block, for the registers, and one of a single tap. */
#define DEFINE_WORD_FUNCTIONS(name, C, V, ...)                                                                   \
    static NOINLINE void name(const subp_tile *t, ptrdiff_t at) {                                                \
        word_block_at(t, at, V * VSUM_LANES, (word_block){.channels = C, .vectors = V, __VA_ARGS__});            \
    }                                                                                                            \
    static NOINLINE void name##_1tap(const subp_tile *t, ptrdiff_t at) {                                         \
        word_block_at(t, at, V * VSUM_LANES, (word_block){.channels = C, .vectors = V, .one_tap = 1, __VA_ARGS__}); \
    }

#define DEFINE_WORD_BLOCK(C, V) DEFINE_WORD_FUNCTIONS(word_block_##C##x##V, C, V, .extra = 0)

/* Runs of so many vectors and a pixel, CSUM_LANES channels at once. */
#define DEFINE_WORDS_ODD(C, V) DEFINE_WORD_FUNCTIONS(words_odd_##C##x##V, C, V, .extra = 1)

/* Runs of so many vectors, or a pixel more, with the words of a later one. */
#define DEFINE_WORDS_AHEAD(C, V)                                                                                 \
    DEFINE_WORD_FUNCTIONS(words_ahead_##C##x##V, C, V, .ahead = 1)                                               \
    DEFINE_WORD_FUNCTIONS(words_ahead_odd_##C##x##V, C, V, .ahead = 1, .extra = 1)

/* In a kernel: the blocks of so many vectors that there still are, from pixel `at` on. */
#define RUN_WORD_BLOCKS(C, V)                                                   \
    for (; at + V * VSUM_LANES <= t->count; at += V * VSUM_LANES)               \
        (t->taps == 1 ? word_block_##C##x##V##_1tap : word_block_##C##x##V)(t, at);

/* At its beginning: runs of exactly one block, or a block and a pixel, without or with words of a later one. */
#define RUN_IF(condition, name)                   \
    if (condition) {                              \
        (t->taps == 1 ? name##_1tap : name)(t, 0); \
        return;                                   \
    }
#define WORDS_ODD(C, V) RUN_IF(!t->next && t->count == V * VSUM_LANES + 1, words_odd_##C##x##V)
#define WORDS_AHEAD(C, V)                                                               \
    RUN_IF(t->next && t->count == V * VSUM_LANES, words_ahead_##C##x##V)                \
    RUN_IF(t->next && t->count == V * VSUM_LANES + 1, words_ahead_odd_##C##x##V)

/* A kernel of C channels: what is given of the above, then blocks of `MANY` vectors, of `FEW`, of one, and the rest. */
#define DEFINE_WORD_KERNEL(name, interleave, C, MANY, FEW, ...)                                                  \
    DEFINE_WORD_BLOCK(C, MANY)                                                                                   \
    DEFINE_WORD_BLOCK(C, FEW)                                                                                    \
    DEFINE_WORD_BLOCK(C, 1)                                                                                      \
    static NOINLINE void words_rest_##C(const subp_tile *t, ptrdiff_t at, int count) {                           \
        word_block_at(t, at, count, (word_block){.channels = C, .vectors = 1, .partial = 1});                    \
    }                                                                                                            \
    void name(const subp_tile *t) {                                                                              \
        ptrdiff_t at = 0;                                                                                        \
        __VA_ARGS__                                                                                              \
        RUN_WORD_BLOCKS(C, MANY)                                                                                 \
        RUN_WORD_BLOCKS(C, FEW)                                                                                  \
        RUN_WORD_BLOCKS(C, 1)                                                                                    \
        if (at < t->count) words_rest_##C(t, at, (int)(t->count - at));                                          \
        if (t->next) interleave(t->next);                                                                        \
    }

/* A word of one copy. Where pixels are left over, the last ones are made once more, but in a whole block. */
INLINE void interleave_run(const word_element *in, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
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

#define DEFINE_INTERLEAVE(name)                                                                                  \
    void name(const subp_interleave *s) {                                                                        \
        for (ptrdiff_t w = 0; w < s->words; w++)                                                                 \
            for (ptrdiff_t copy = 0; copy < s->copies; copy++)                                                   \
                interleave_run((const word_element *)s->x + copy * s->in_copy,                                   \
                               subp_word_channels(s, w, WORD_CHANNELS), s->count, subp_word_at(s, w, copy));     \
    }

/* What the units for products can do: as `peak` of vector.h. */
enum { WORD_PEAK_CHAINS = 12 };

#ifdef __aarch64__
#define KEEP(x) __asm__ volatile("" : "+w"(x))
#else
#define KEEP(x) __asm__ volatile("" : "+x"(x))
#endif

INLINE ptrdiff_t words_peak(ptrdiff_t rounds, float factor) {
    uint8_t bytes[VSUM_LANES * SUBP_WORD];
    memset(bytes, factor < 1.0f ? 0x3f : 0, sizeof(bytes));
    vword some = vword_load(bytes);
    vsum chains[WORD_PEAK_CHAINS];
    UNROLL for (int i = 0; i < WORD_PEAK_CHAINS; i++) memset(&chains[i], 0, sizeof(vsum));
    for (ptrdiff_t r = 0; r < rounds; r++) {
        KEEP(some); /* or the products, which do not change, would be taken out of the loop */
        UNROLL for (int i = 0; i < WORD_PEAK_CHAINS; i++) chains[i] = vsum_dot(chains[i], some, some);
    }
    int32_t sum = 0, lanes[VSUM_LANES];
    for (int i = 0; i < WORD_PEAK_CHAINS; i++) {
        memcpy(lanes, &chains[i], sizeof(lanes));
        sum ^= lanes[0] + i;
    }
    return sum == 1 ? 0 : 2 * WORD_PEAK_CHAINS * VSUM_LANES * WORD_CHANNELS; /* never; but the loop is for something */
}

#define DEFINE_WORD_PEAK(name) \
    ptrdiff_t name(ptrdiff_t rounds, float factor) { return words_peak(rounds, factor); }

#endif
