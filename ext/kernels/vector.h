/* The convolution kernels of every vector ISA. The including file defines, for its ISA:
 *   LANES; vec, of so many floats; lanes, a mask of them; first_lanes(n); load, load_lanes (the rest is zero and not
 *   read), store, store_lanes (the rest is not written); splat(float), madd(a, b, c) = a * b + c, add,
 *   relu and relu6 (NaN stays NaN), evens(a, b) the even lanes of both;
 *   TAIL_CHANNELS; cvec, of so many floats; cload, cstore, csplat, cmadd, cadd, crelu, crelu6. */
#include "activation.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")
#ifndef VALUE /* value c of `channels` as a vec, where an ISA has better than a broadcast */
#define VALUE(w, c, channels) splat((w)[c])
#endif

enum { MAX_CHANNELS = 8, MAX_VECTORS = 8, TAIL_PIXELS = 4 };

/* Values to fetch in advance, in floats: weights come from outside the second cache and are read once, and the
 * hardware starts anew on every page. */
enum { VALUES_AHEAD = 512 };

/* The vectors of a block that are stored: all lanes, or for the last block of a run the first ones. */
INLINE vec load_part(const float *from, int partial, lanes part) {
    return partial ? load_lanes(from, part) : load(from);
}

INLINE void store_part(float *to, vec value, int partial, lanes part) {
    if (partial)
        store_lanes(to, value, part);
    else
        store(to, value);
}

/* One input channel, one tap: every value meets every pixel. */
INLINE void add_products(vec acc[MAX_CHANNELS][MAX_VECTORS], const float *x, const float *w, int channels,
                         int vectors, int partial, lanes part) {
    vec pixels[MAX_VECTORS];
    __builtin_prefetch(w + VALUES_AHEAD);
    UNROLL for (int v = 0; v < vectors; v++) pixels[v] = load_part(x + v * LANES, partial, part);
    UNROLL for (int c = 0; c < channels; c++) {
        vec value = VALUE(w, c, channels);
        UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = madd(value, pixels[v], acc[c][v]);
    }
}

/* Not inlined: the code of all activations would be in every kernel. */
static NOINLINE void activate(float *x, ptrdiff_t count, int activation) { subp_activate(x, count, activation); }

/* The activations that take more than an instruction or two, on all accumulators at once: they are loops, which are
 * slow on a few numbers. */
INLINE void activate_block(vec acc[MAX_CHANNELS][MAX_VECTORS], int channels, int vectors, int activation) {
    float sums[MAX_CHANNELS * MAX_VECTORS * LANES];
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int v = 0; v < vectors; v++) store(sums + (c * vectors + v) * LANES, acc[c][v]);
    activate(sums, channels * vectors * LANES, activation);
    UNROLL for (int c = 0; c < channels; c++)
        UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = load(sums + (c * vectors + v) * LANES);
}

/* Several passes over the registers, each a decision taken once: read per vector, the fields would have to be loaded again
 * after every store, which might alias them. */
INLINE void store_block(const subp_tile *t, vec acc[MAX_CHANNELS][MAX_VECTORS], ptrdiff_t at, int channels,
                        int vectors, int partial, lanes part) {
    const ptrdiff_t stride = t->out_stride;
    const int32_t stored = t->channels, activation = t->activation;
    float *out = t->out + at;
    if (t->bias) {
        const float *bias = t->bias;
        UNROLL for (int c = 0; c < channels; c++)
            if (c < stored) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = add(acc[c][v], splat(bias[c]));
    }
    if (t->residual) {
        const float *residual = t->residual + at;
        UNROLL for (int c = 0; c < channels; c++)
            if (c < stored)
                UNROLL for (int v = 0; v < vectors; v++)
                    acc[c][v] = add(acc[c][v], load_part(residual + c * stride + v * LANES, partial, part));
    }
    if (activation == SUBP_ACT_relu)
        UNROLL for (int c = 0; c < channels; c++) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = relu(acc[c][v]);
    else if (activation == SUBP_ACT_relu6)
        UNROLL for (int c = 0; c < channels; c++) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = relu6(acc[c][v]);
    else if (activation != SUBP_ACT_none)
        activate_block(acc, channels, vectors, activation);
    UNROLL for (int c = 0; c < channels; c++)
        if (c < stored)
            UNROLL for (int v = 0; v < vectors; v++) store_part(out + c * stride + v * LANES, acc[c][v], partial, part);
}

INLINE cvec gather(const float *from, ptrdiff_t stride, int32_t count) {
    float found[TAIL_CHANNELS] = {0};
    for (int32_t c = 0; c < count; c++) found[c] = from[c * stride];
    return cload(found);
}

/* One pixel of TAIL_CHANNELS channels. What is done to the sums is done to all at once: per channel, calls and branches
 * that no CPU can predict would take longer than the products. */
INLINE void store_pixel(const subp_tile *t, cvec acc, ptrdiff_t at) {
    const ptrdiff_t stride = t->out_stride;
    const int32_t stored = t->channels, activation = t->activation;
    float sums[TAIL_CHANNELS];
    if (t->bias) acc = cadd(acc, gather(t->bias, 1, stored));
    if (t->residual) acc = cadd(acc, gather(t->residual + at, stride, stored));
    if (activation == SUBP_ACT_relu)
        acc = crelu(acc);
    else if (activation == SUBP_ACT_relu6)
        acc = crelu6(acc);
    cstore(sums, acc);
    if (activation != SUBP_ACT_none && activation != SUBP_ACT_relu && activation != SUBP_ACT_relu6)
        activate(sums, TAIL_CHANNELS, activation);
    for (int32_t c = 0; c < stored; c++) t->out[c * stride + at] = sums[c];
}

/* The block of `vectors` at pixel `at`. A partial block is one vector of which the first `count` lanes are pixels.
 * An `extra` pixel after a whole block costs one product, with a vector over the TAIL_CHANNELS channels.
 * With `ahead` the pixels wanted next are fetched, as far as these channels go: too many streams for the hardware.
 * `channels`, `vectors` and all the flags are constants at every call: the accumulators then are registers, as
 * long as one loop alone leads to the store. */
INLINE void block(const subp_tile *t, ptrdiff_t at, int channels, int vectors, int partial, int one_tap, int extra,
                  int ahead, ptrdiff_t count) {
    lanes part = first_lanes(partial ? (int)count : LANES);
    vec acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int c = 0; c < channels; c++) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = splat(0.0f);
    const float *w = t->values, *x = t->x + at;
    cvec last = csplat(0.0f);
    if (one_tap) {
        x += t->tap_offsets[0];
        for (int32_t k = 0; k < t->kept; k++, w += channels) {
            const float *from = x + t->channel_offsets[k];
            if (ahead) UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(from + t->ahead + v * LANES);
            add_products(acc, from, w, channels, vectors, partial, part);
            if (extra) last = cmadd(cload(w), csplat(from[vectors * LANES]), last);
        }
    } else {
        for (int32_t k = 0; k < t->kept; k++) {
            const float *plane = x + t->channel_offsets[k];
            for (int32_t tap = 0; tap < t->taps; tap++, w += channels) {
                const float *from = plane + t->tap_offsets[tap];
                add_products(acc, from, w, channels, vectors, partial, part);
                if (extra) last = cmadd(cload(w), csplat(from[vectors * LANES]), last);
            }
        }
    }
    if (extra) store_pixel(t, last, at + vectors * LANES);
    store_block(t, acc, at, channels, vectors, partial, part);
}

/* The last few pixels, with a vector over the channels: a vector over pixels would be mostly empty. There are too few
 * chains of additions here to hide their latency, so each sum is split four ways over the kept channels. */
INLINE void tail(const subp_tile *t, ptrdiff_t at, int pixels) {
    cvec acc[4][TAIL_PIXELS];
    UNROLL for (int s = 0; s < 4; s++) UNROLL for (int p = 0; p < pixels; p++) acc[s][p] = csplat(0.0f);
    const ptrdiff_t step = (ptrdiff_t)t->taps * TAIL_CHANNELS;
    const float *w = t->values, *x = t->x + at;
    int32_t k = 0;
    for (; k + 4 <= t->kept; k += 4, w += 4 * step)
        for (int32_t tap = 0; tap < t->taps; tap++)
            UNROLL for (int s = 0; s < 4; s++) {
                const float *from = x + t->channel_offsets[k + s] + t->tap_offsets[tap];
                cvec values = cload(w + s * step + tap * TAIL_CHANNELS);
                __builtin_prefetch(w + s * step + tap * TAIL_CHANNELS + 4 * VALUES_AHEAD);
                UNROLL for (int p = 0; p < pixels; p++) acc[s][p] = cmadd(values, csplat(from[p]), acc[s][p]);
            }
    for (; k < t->kept; k++)
        for (int32_t tap = 0; tap < t->taps; tap++, w += TAIL_CHANNELS) {
            const float *from = x + t->channel_offsets[k] + t->tap_offsets[tap];
            UNROLL for (int p = 0; p < pixels; p++) acc[0][p] = cmadd(cload(w), csplat(from[p]), acc[0][p]);
        }
    UNROLL for (int p = 0; p < pixels; p++)
        store_pixel(t, cadd(cadd(acc[0][p], acc[1][p]), cadd(acc[2][p], acc[3][p])), at + p);
}

/* One function per shape: together in one, their accumulators would compete for registers. */
#define DEFINE_BLOCK(channels, vectors)                                                                            \
    static NOINLINE void block_##channels##x##vectors(const subp_tile *t, ptrdiff_t at) {                          \
        block(t, at, channels, vectors, 0, 0, 0, 0, vectors * LANES);                                                    \
    }                                                                                                              \
    static NOINLINE void block_##channels##x##vectors##_ahead(const subp_tile *t, ptrdiff_t at) {                  \
        block(t, at, channels, vectors, 0, 1, 0, 1, vectors * LANES);                                              \
    }                                                                                                              \
    static NOINLINE void block_##channels##x##vectors##_1tap(const subp_tile *t, ptrdiff_t at) {                   \
        block(t, at, channels, vectors, 0, 1, 0, 0, vectors * LANES);                                                    \
    }

#define DEFINE_REST(channels)                                                                                      \
    static NOINLINE void rest_##channels(const subp_tile *t, ptrdiff_t at, ptrdiff_t count) {                      \
        block(t, at, channels, 1, 1, 0, 0, 0, count);                                                                    \
    }

static NOINLINE void tail_1(const subp_tile *t, ptrdiff_t at) { tail(t, at, 1); }
static NOINLINE void tail_2(const subp_tile *t, ptrdiff_t at) { tail(t, at, 2); }
static NOINLINE void tail_3(const subp_tile *t, ptrdiff_t at) { tail(t, at, 3); }
static NOINLINE void tail_4(const subp_tile *t, ptrdiff_t at) { tail(t, at, 4); }

static void run_tail(const subp_tile *t, ptrdiff_t at, ptrdiff_t count) {
    void (*const tails[TAIL_PIXELS])(const subp_tile *, ptrdiff_t) = {tail_1, tail_2, tail_3, tail_4};
    tails[count - 1](t, at);
}

#define RUN_BLOCKS(channels, vectors)                                                                              \
    for (; at + vectors * LANES <= t->count; at += vectors * LANES)                                                \
        if (t->taps == 1 && t->ahead)                                                                              \
            block_##channels##x##vectors##_ahead(t, at);                                                           \
        else if (t->taps == 1)                                                                                     \
            block_##channels##x##vectors##_1tap(t, at);                                                            \
        else                                                                                                       \
            block_##channels##x##vectors(t, at);

#define RUN_REST(channels)                                                                                         \
    if (at < t->count) rest_##channels(t, at, t->count - at);

/* Every second of the numbers at `in`. */
INLINE void halve_row(const float *in, ptrdiff_t count, float *out) {
    for (; count >= LANES; count -= LANES, in += 2 * LANES, out += LANES)
        store(out, evens(load(in), load_lanes(in + LANES, first_lanes(LANES - 1))));
    if (count == 0) return;
    int wanted = 2 * (int)count - 1, low = wanted < LANES ? wanted : LANES;
    vec high = wanted > LANES ? load_lanes(in + LANES, first_lanes(wanted - LANES)) : splat(0.0f);
    store_lanes(out, evens(load_lanes(in, first_lanes(low)), high), first_lanes((int)count));
}

/* What the FMA units can do: chains of products enough to hide their latency, and nothing to load. */
enum { PEAK_CHAINS = 12 };

INLINE float peak(ptrdiff_t rounds, float factor) {
    vec chains[PEAK_CHAINS], scale = splat(factor);
    UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = splat((float)i);
    for (ptrdiff_t r = 0; r < rounds; r++)
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = madd(chains[i], scale, scale);
    for (int i = 1; i < PEAK_CHAINS; i++) chains[0] = add(chains[0], chains[i]);
    float lane[LANES];
    store(lane, chains[0]);
    return lane[0];
}
