/* The convolution kernels of every vector instruction set, in the words of simd.h; included by a kernel set's file
 * after its simd_<set>.h. Accumulators stay in registers as long as every loop over them has constant bounds:
 * functions are inlined, and their options are constants at each call. */
#ifndef SUBP_VECTOR_H
#define SUBP_VECTOR_H

#include "kernels.h"
#include "vector_activation.h"

enum { TAIL_PIXELS = 4 };

/* Values to fetch in advance, in floats: weights come from outside the L2 cache and are read once, and the
 * hardware starts anew on every page. */
enum { VALUES_AHEAD = 512 };

/* The vectors of a block that are stored: all lanes, or for the last block of a run the first ones. */
INLINE vf32 load_part(const float *from, int partial, vf32_mask part) {
    return partial ? vf32_load_mask(from, part) : vf32_load(from);
}

INLINE void store_part(float *to, vf32 value, int partial, vf32_mask part) {
    if (partial)
        vf32_store_mask(to, value, part);
    else
        vf32_store(to, value);
}

/* One input channel, one tap: every value meets every pixel. */
INLINE void add_products(vf32 acc[MAX_CHANNELS][MAX_VECTORS], const float *x, const float *w, int channels,
                         int vectors, int partial, vf32_mask part) {
    vf32 pixels[MAX_VECTORS];
    __builtin_prefetch(w + VALUES_AHEAD);
    UNROLL for (int v = 0; v < vectors; v++) pixels[v] = load_part(x + v * VF32_LANES, partial, part);
    UNROLL for (int c = 0; c < channels; c++) {
        vf32 value = VF32_VALUE(w, c, channels);
        UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_madd(value, pixels[v], acc[c][v]);
    }
}

/* Several passes over the registers, each a decision taken once: read per vector, the fields would have to be
 * loaded again after every store, which might alias them. */
INLINE void store_block(const subp_tile *t, vf32 acc[MAX_CHANNELS][MAX_VECTORS], ptrdiff_t at, int channels,
                        int vectors, int partial, vf32_mask part) {
    const ptrdiff_t *offsets = t->out_offsets;
    const int32_t stored = t->channels;
    float *out = (float *)t->out + at;
    if (t->bias) {
        const float *bias = t->bias;
        UNROLL for (int c = 0; c < channels; c++)
            if (c < stored)
                UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_add(acc[c][v], vf32_splat(bias[c]));
    }
    if (t->residual) {
        const float *residual = (const float *)t->residual + at;
        UNROLL for (int c = 0; c < channels; c++)
            if (c < stored)
                UNROLL for (int v = 0; v < vectors; v++)
                    acc[c][v] = vf32_add(acc[c][v], load_part(residual + offsets[c] + v * VF32_LANES, partial, part));
    }
    activate_block(acc, channels, vectors, t->activation);
    UNROLL for (int c = 0; c < channels; c++)
        if (c < stored)
            UNROLL for (int v = 0; v < vectors; v++)
                store_part(out + offsets[c] + v * VF32_LANES, acc[c][v], partial, part);
}

/* A number of each channel to store, and 0 for others; the numbers follow each other, or lie at offsets. */
INLINE cf32 gather(const float *from, const ptrdiff_t *offsets, int32_t count) {
    float found[CF32_LANES] = {0};
    for (int32_t c = 0; c < count; c++) found[c] = from[offsets ? offsets[c] : c];
    return cf32_load(found);
}

/* One pixel of CF32_LANES channels. What is done to the sums is done to all at once: per channel, calls and branches
 * that no CPU can predict would take longer than the products. */
INLINE void store_pixel(const subp_tile *t, cf32 acc, ptrdiff_t at) {
    const ptrdiff_t *offsets = t->out_offsets;
    const int32_t stored = t->channels;
    if (t->bias) acc = cf32_add(acc, gather(t->bias, NULL, stored));
    if (t->residual) acc = cf32_add(acc, gather((const float *)t->residual + at, offsets, stored));
    float sums[CF32_LANES];
    activate_pixel(acc, t->activation, sums);
    for (int32_t c = 0; c < stored; c++) ((float *)t->out)[offsets[c] + at] = sums[c];
}

/* How a block is computed; constants at every call. */
typedef struct {
    int channels, vectors;
    int partial; /* it is one vector, of which the first `count` lanes are pixels */
    int one_tap; /* for convolutions with a single tap */
    int extra;   /* a pixel more, behind the whole block: it costs one product, a vector over the CF32_LANES channels */
    int ahead;   /* fetches the pixels wanted next, as far as these channels go: too many streams for the hardware */
} block_options;

/* The block at pixel `at`, of `count` pixels. One loop alone may lead to the store, or the accumulators are no
 * registers. */
INLINE void block(const subp_tile *t, ptrdiff_t at, ptrdiff_t count, const block_options o) {
    const int channels = o.channels, vectors = o.vectors, partial = o.partial;
    vf32_mask part = vf32_first(partial ? (int)count : VF32_LANES);
    vf32 acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int c = 0; c < channels; c++) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = vf32_splat(0.0f);
    const float *w = t->values, *x = (const float *)t->x + at;
    cf32 last = cf32_splat(0.0f);
    if (o.one_tap) {
        x += t->tap_offsets[0];
        for (int32_t k = 0; k < t->kept; k++, w += channels) {
            const float *from = x + t->channel_offsets[k];
            if (o.ahead) UNROLL for (int v = 0; v < vectors; v++) __builtin_prefetch(from + t->ahead + v * VF32_LANES);
            add_products(acc, from, w, channels, vectors, partial, part);
            if (o.extra) last = cf32_madd(cf32_load(w), cf32_splat(from[vectors * VF32_LANES]), last);
        }
    } else {
        for (int32_t k = 0; k < t->kept; k++) {
            const float *plane = x + t->channel_offsets[k];
            for (int32_t tap = 0; tap < t->taps; tap++, w += channels) {
                const float *from = plane + t->tap_offsets[tap];
                add_products(acc, from, w, channels, vectors, partial, part);
                if (o.extra) last = cf32_madd(cf32_load(w), cf32_splat(from[vectors * VF32_LANES]), last);
            }
        }
    }
    if (o.extra) store_pixel(t, last, at + vectors * VF32_LANES);
    store_block(t, acc, at, channels, vectors, partial, part);
}

/* The last few pixels, with a vector over the channels: a vector over pixels would be mostly empty. There are too few
 * chains of additions here to hide their latency, so each sum is split four ways over the kept channels. */
INLINE void tail(const subp_tile *t, ptrdiff_t at, int pixels) {
    cf32 acc[4][TAIL_PIXELS];
    UNROLL for (int s = 0; s < 4; s++) UNROLL for (int p = 0; p < pixels; p++) acc[s][p] = cf32_splat(0.0f);
    const ptrdiff_t step = (ptrdiff_t)t->taps * CF32_LANES;
    const float *w = t->values, *x = (const float *)t->x + at;
    int32_t k = 0;
    for (; k + 4 <= t->kept; k += 4, w += 4 * step)
        for (int32_t tap = 0; tap < t->taps; tap++)
            UNROLL for (int s = 0; s < 4; s++) {
                const float *from = x + t->channel_offsets[k + s] + t->tap_offsets[tap];
                cf32 values = cf32_load(w + s * step + tap * CF32_LANES);
                __builtin_prefetch(w + s * step + tap * CF32_LANES + 4 * VALUES_AHEAD);
                UNROLL for (int p = 0; p < pixels; p++) acc[s][p] = cf32_madd(values, cf32_splat(from[p]), acc[s][p]);
            }
    for (; k < t->kept; k++)
        for (int32_t tap = 0; tap < t->taps; tap++, w += CF32_LANES) {
            const float *from = x + t->channel_offsets[k] + t->tap_offsets[tap];
            UNROLL for (int p = 0; p < pixels; p++) acc[0][p] = cf32_madd(cf32_load(w), cf32_splat(from[p]), acc[0][p]);
        }
    UNROLL for (int p = 0; p < pixels; p++)
        store_pixel(t, cf32_add(cf32_add(acc[0][p], acc[1][p]), cf32_add(acc[2][p], acc[3][p])), at + p);
}

/* One function per shape: together in one, their accumulators would compete for registers. */
#define DEFINE_BLOCK(C, V)                                                                                         \
    static NOINLINE void block_##C##x##V(const subp_tile *t, ptrdiff_t at) {                                       \
        block(t, at, V * VF32_LANES, (block_options){.channels = C, .vectors = V});                                \
    }                                                                                                              \
    static NOINLINE void block_##C##x##V##_ahead(const subp_tile *t, ptrdiff_t at) {                               \
        block(t, at, V * VF32_LANES, (block_options){.channels = C, .vectors = V, .one_tap = 1, .ahead = 1});      \
    }                                                                                                              \
    static NOINLINE void block_##C##x##V##_1tap(const subp_tile *t, ptrdiff_t at) {                                \
        block(t, at, V * VF32_LANES, (block_options){.channels = C, .vectors = V, .one_tap = 1});                  \
    }

#define DEFINE_REST(C)                                                                                             \
    static NOINLINE void rest_##C(const subp_tile *t, ptrdiff_t at, ptrdiff_t count) {                             \
        block(t, at, count, (block_options){.channels = C, .vectors = 1, .partial = 1});                           \
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
    for (; at + vectors * VF32_LANES <= t->count; at += vectors * VF32_LANES)                                      \
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
    for (; count >= VF32_LANES; count -= VF32_LANES, in += 2 * VF32_LANES, out += VF32_LANES)
        vf32_store(out, vf32_unzip_even(vf32_load(in), vf32_load_mask(in + VF32_LANES, vf32_first(VF32_LANES - 1))));
    if (count == 0) return;
    int wanted = 2 * (int)count - 1, low = wanted < VF32_LANES ? wanted : VF32_LANES;
    vf32 high = vf32_splat(0.0f);
    if (wanted > VF32_LANES) high = vf32_load_mask(in + VF32_LANES, vf32_first(wanted - VF32_LANES));
    vf32_store_mask(out, vf32_unzip_even(vf32_load_mask(in, vf32_first(low)), high), vf32_first((int)count));
}

/* What the FMA units can do: chains of products enough to hide their latency, and nothing to load. */
enum { PEAK_CHAINS = 12 };

INLINE ptrdiff_t peak(ptrdiff_t rounds, float factor) {
    vf32 chains[PEAK_CHAINS], scale = vf32_splat(factor);
    UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vf32_splat((float)i);
    for (ptrdiff_t r = 0; r < rounds; r++)
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vf32_madd(chains[i], scale, scale);
    for (int i = 1; i < PEAK_CHAINS; i++) chains[0] = vf32_add(chains[0], chains[i]);
    float lane[VF32_LANES];
    vf32_store(lane, chains[0]);
    return lane[0] == 0.5f ? 0 : 2 * PEAK_CHAINS * VF32_LANES; /* never; but the loop is for something */
}

#define DEFINE_HALVE(set)                                                                                          \
    void f32_halve__##set(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,           \
                          ptrdiff_t out_step) {                                                                    \
        for (ptrdiff_t y = 0; y < rows; y++)                                                                       \
            halve_row((const float *)in + y * in_step, count, (float *)out + y * out_step);                        \
    }

#define DEFINE_PEAK(set) \
    ptrdiff_t f32_peak__##set(ptrdiff_t rounds, float factor) { return peak(rounds, factor); }

#endif
