/* The convolution kernels of every vector ISA. The including file defines, for its ISA:
 *   LANES; vec, of so many floats; lanes, a mask of them; first_lanes(n); load, load_lanes (the rest is zero and not
 *   read), store, store_lanes (the rest is not written); splat(float), madd(a, b, c) = a * b + c, add,
 *   relu (NaN stays NaN);
 *   TAIL_CHANNELS; cvec, of so many floats; cload, cstore, csplat, cmadd, cadd. */
#include "activation.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { MAX_CHANNELS = 8, MAX_VECTORS = 8, TAIL_PIXELS = 4 };

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
    UNROLL for (int v = 0; v < vectors; v++) pixels[v] = load_part(x + v * LANES, partial, part);
    UNROLL for (int c = 0; c < channels; c++) {
        vec value = splat(w[c]);
        UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = madd(value, pixels[v], acc[c][v]);
    }
}

INLINE void store_block(const subp_tile *t, vec acc[MAX_CHANNELS][MAX_VECTORS], ptrdiff_t at, int channels,
                        int vectors, int partial, lanes part, ptrdiff_t count) {
    UNROLL for (int c = 0; c < channels; c++) {
        if (c >= t->channels) break;
        ptrdiff_t from = c * t->out_stride + at;
        vec bias = splat(t->bias ? t->bias[c] : 0.0f);
        UNROLL for (int v = 0; v < vectors; v++) {
            vec sum = add(acc[c][v], bias);
            if (t->residual) sum = add(sum, load_part(t->residual + from + v * LANES, partial, part));
            if (t->activation == SUBP_ACT_relu) sum = relu(sum);
            store_part(t->out + from + v * LANES, sum, partial, part);
        }
        if (t->activation > SUBP_ACT_relu) subp_activate(t->out + from, count, t->activation);
    }
}

/* The block of `vectors` at pixel `at`; `channels`, `vectors` and `partial` are constants at every call, so the
 * accumulators are registers. A partial block is one vector of which the first `count` lanes are pixels. */
INLINE void block(const subp_tile *t, ptrdiff_t at, int channels, int vectors, int partial, ptrdiff_t count) {
    lanes part = first_lanes(partial ? (int)count : LANES);
    vec acc[MAX_CHANNELS][MAX_VECTORS];
    UNROLL for (int c = 0; c < channels; c++) UNROLL for (int v = 0; v < vectors; v++) acc[c][v] = splat(0.0f);
    const float *w = t->values, *x = t->x + at;
    if (t->taps == 1) {
        x += t->tap_offsets[0];
        for (int32_t k = 0; k < t->kept; k++, w += channels)
            add_products(acc, x + t->indices[k] * t->channel_stride, w, channels, vectors, partial, part);
    } else {
        for (int32_t k = 0; k < t->kept; k++) {
            const float *plane = x + t->indices[k] * t->channel_stride;
            for (int32_t tap = 0; tap < t->taps; tap++, w += channels)
                add_products(acc, plane + t->tap_offsets[tap], w, channels, vectors, partial, part);
        }
    }
    store_block(t, acc, at, channels, vectors, partial, part, count);
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
                const float *from = x + t->indices[k + s] * t->channel_stride + t->tap_offsets[tap];
                cvec values = cload(w + s * step + tap * TAIL_CHANNELS);
                UNROLL for (int p = 0; p < pixels; p++) acc[s][p] = cmadd(values, csplat(from[p]), acc[s][p]);
            }
    for (; k < t->kept; k++)
        for (int32_t tap = 0; tap < t->taps; tap++, w += TAIL_CHANNELS) {
            const float *from = x + t->indices[k] * t->channel_stride + t->tap_offsets[tap];
            UNROLL for (int p = 0; p < pixels; p++) acc[0][p] = cmadd(cload(w), csplat(from[p]), acc[0][p]);
        }
    UNROLL for (int p = 0; p < pixels; p++) {
        float sums[TAIL_CHANNELS];
        cstore(sums, cadd(cadd(acc[0][p], acc[1][p]), cadd(acc[2][p], acc[3][p])));
        for (int32_t c = 0; c < t->channels; c++) {
            ptrdiff_t to = c * t->out_stride + at + p;
            float sum = sums[c] + (t->bias ? t->bias[c] : 0.0f) + (t->residual ? t->residual[to] : 0.0f);
            subp_activate(&sum, 1, t->activation);
            t->out[to] = sum;
        }
    }
}

INLINE void run(const subp_tile *t, int channels, int vectors) {
    ptrdiff_t at = 0, rest = t->count % LANES, whole = t->count - rest;
    for (; at + vectors * LANES <= whole; at += vectors * LANES) block(t, at, channels, vectors, 0, vectors * LANES);
    if (vectors > 4 && at + 4 * LANES <= whole) block(t, at, channels, 4, 0, 4 * LANES), at += 4 * LANES;
    if (vectors > 2 && at + 2 * LANES <= whole) block(t, at, channels, 2, 0, 2 * LANES), at += 2 * LANES;
    if (vectors > 1 && at + LANES <= whole) block(t, at, channels, 1, 0, LANES), at += LANES;
    if (channels == TAIL_CHANNELS && rest && rest <= TAIL_PIXELS) {
        switch (rest) {
        case 1: tail(t, at, 1); break;
        case 2: tail(t, at, 2); break;
        case 3: tail(t, at, 3); break;
        default: tail(t, at, 4);
        }
    } else if (rest) {
        block(t, at, channels, 1, 1, rest);
    }
}
