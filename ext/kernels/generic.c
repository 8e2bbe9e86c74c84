/* The kernels of any CPU: plain loops with constant bounds, which compilers turn into whatever vectors the target's
 * baseline has. The tile sizes are what 16 registers of 4 lanes hold; the last tile of a run goes through a
 * zero-padded copy of its input, so that every pixel sees the same arithmetic. */
#include <string.h>

#include "kernels.h"
#include "planes.h"
#include "store.h"

#define SUBP_DEFINE_UBSCONV(name, CHANNELS, PIXELS)                                               \
    static inline void name##_taps(const subp_tile *t, ptrdiff_t at, ptrdiff_t count,             \
                                   float acc[CHANNELS][PIXELS]) {                                 \
        float sum[CHANNELS][PIXELS] = {{0}}, copy[PIXELS] = {0};                                  \
        const float *w = t->values;                                                               \
        for (int32_t k = 0; k < t->kept; k++) {                                                   \
            const float *plane = (const float *)t->x + t->channel_offsets[k] + at;                \
            for (int32_t tap = 0; tap < t->taps; tap++, w += CHANNELS) {                          \
                const float *x = plane + t->tap_offsets[tap];                                     \
                if (count < PIXELS) x = memcpy(copy, x, (size_t)count * sizeof(float));           \
                for (int c = 0; c < CHANNELS; c++)                                                \
                    for (int i = 0; i < PIXELS; i++) sum[c][i] += w[c] * x[i];                    \
            }                                                                                     \
        }                                                                                         \
        memcpy(acc, sum, sizeof(sum));                                                            \
    }                                                                                             \
    void name(const subp_tile *t) {                                                               \
        float acc[CHANNELS][PIXELS];                                                              \
        for (ptrdiff_t at = 0; at < t->count; at += PIXELS) {                                     \
            ptrdiff_t count = t->count - at < PIXELS ? t->count - at : PIXELS;                    \
            if (count == PIXELS)                                                                  \
                name##_taps(t, at, PIXELS, acc);                                                  \
            else                                                                                  \
                name##_taps(t, at, count, acc);                                                   \
            subp_store_block(t, acc[0], PIXELS, at, count);                                       \
        }                                                                                         \
    }

SUBP_DEFINE_UBSCONV(f32_ubsconv_4x8__generic, 4, 8)
SUBP_DEFINE_UBSCONV(f32_ubsconv_2x16__generic, 2, 16)
SUBP_DEFINE_UBSCONV(f32_ubsconv_1x32__generic, 1, 32)

enum { PEAK_CHAINS = 32 };

ptrdiff_t f32_peak__generic(ptrdiff_t rounds, float factor) {
    float chains[PEAK_CHAINS];
    for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = (float)i;
    for (ptrdiff_t r = 0; r < rounds; r++)
        for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = chains[i] * factor + factor;
    for (int i = 1; i < PEAK_CHAINS; i++) chains[0] += chains[i];
    return chains[0] == 0.5f ? 0 : 2 * PEAK_CHAINS; /* never; but the loop is for something */
}

SUBP_DEFINE_PLANES(generic)
SUBP_DEFINE_POOL(generic)

void f32_halve__generic(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                        ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        for (ptrdiff_t x = 0; x < count; x++)
            ((float *)out)[y * out_step + x] = ((const float *)in)[y * in_step + 2 * x];
}
