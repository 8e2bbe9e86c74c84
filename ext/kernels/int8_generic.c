/* The int8 kernels of any CPU: plain loops. */
#include <math.h>
#include <string.h>

#include "words.h"

static inline int32_t clip(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

static void store_sums(const subp_tile *t, const int32_t *sums, ptrdiff_t step, ptrdiff_t at, ptrdiff_t count) {
    const subp_requantize *q = t->requantize;
    for (int32_t c = 0; c < t->channels; c++, sums += step) {
        const ptrdiff_t to = t->out_offsets[c] + at;
        const float factor = t->factor[c];
        if (t->to_float) {
            for (ptrdiff_t i = 0; i < count; i++) ((float *)t->out)[to + i] = (float)sums[i] * factor;
            continue;
        }
        const uint8_t *residual = t->residual ? (const uint8_t *)t->residual + to : NULL;
        for (ptrdiff_t i = 0; i < count; i++) {
            float x = (float)sums[i] * factor;
            if (residual) x = fmaf((float)(residual[i] - q->residual_zero), q->residual_factor, x);
            ((uint8_t *)t->out)[to + i] = (uint8_t)clip((int32_t)lrintf(x) + q->zero, q->low, q->high);
        }
    }
}

#define DEFINE_UBSCONV(name, CHANNELS, PIXELS)                                                                \
    void name(const subp_tile *t) {                                                                           \
        for (ptrdiff_t at = 0; at < t->count; at += PIXELS) {                                                 \
            ptrdiff_t count = t->count - at < PIXELS ? t->count - at : PIXELS;                                \
            int32_t sums[CHANNELS][PIXELS];                                                                   \
            const int8_t *w = t->values;                                                                      \
            for (int c = 0; c < CHANNELS; c++)                                                                \
                for (int i = 0; i < PIXELS; i++) sums[c][i] = c < t->channels ? t->start[c] : 0;              \
            for (int32_t k = 0; k < t->words; k++)                                                            \
                for (int32_t tap = 0; tap < t->taps; tap++, w += CHANNELS * SUBP_WORD) {                      \
                    const ptrdiff_t pixel = k * t->word_stride + t->tap_offsets[tap] + at;                    \
                    const uint8_t *x = (const uint8_t *)t->x + pixel * SUBP_WORD;                             \
                    uint8_t words[PIXELS * SUBP_WORD] = {0};                                                  \
                    memcpy(words, x, (size_t)(count * SUBP_WORD));                                            \
                    for (int c = 0; c < CHANNELS; c++)                                                        \
                        for (int i = 0; i < PIXELS; i++)                                                      \
                            for (int b = 0; b < SUBP_WORD; b++)                                               \
                                sums[c][i] += w[c * SUBP_WORD + b] * words[i * SUBP_WORD + b];                \
                }                                                                                             \
            store_sums(t, sums[0], PIXELS, at, count);                                                        \
        }                                                                                                     \
        if (t->next) u8s8_interleave__generic(t->next);                                                       \
    }

DEFINE_UBSCONV(u8s8_ubsconv_1x16__generic, 1, 16)
DEFINE_UBSCONV(u8s8_ubsconv_4x16__generic, 4, 16)

void u8s8_interleave__generic(const subp_interleave *s) {
    for (ptrdiff_t w = 0; w < s->words; w++)
        for (ptrdiff_t c = 0; c < s->copies; c++) {
            const int32_t *offsets = subp_word_channels(s, w, SUBP_WORD);
            const uint8_t *in = (const uint8_t *)s->x + c * s->in_copy;
            uint8_t *out = subp_word_at(s, w, c);
            for (ptrdiff_t p = 0; p < s->count; p++)
                for (int b = 0; b < SUBP_WORD; b++) out[p * SUBP_WORD + b] = in[offsets[b] + p];
        }
}

void u8s8_halve__generic(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                         ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        for (ptrdiff_t x = 0; x < count; x++)
            ((uint8_t *)out)[y * out_step + x] = ((const uint8_t *)in)[y * in_step + 2 * x];
}

/* As that of float32, in products of integers. */
enum { PEAK_CHAINS = 32 };

ptrdiff_t u8s8_peak__generic(ptrdiff_t rounds, float factor) {
    uint32_t chains[PEAK_CHAINS], scale = factor < 1.0f ? 3 : 5;
    for (uint32_t i = 0; i < PEAK_CHAINS; i++) chains[i] = i;
    for (ptrdiff_t r = 0; r < rounds; r++)
        for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = chains[i] * scale + scale;
    for (int i = 1; i < PEAK_CHAINS; i++) chains[0] += chains[i];
    return chains[0] == 1 ? 0 : 2 * PEAK_CHAINS;
}
