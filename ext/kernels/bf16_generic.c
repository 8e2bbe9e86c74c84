/* The bfloat16 kernels of any CPU: plain loops. Products are exact in float32. */
#include <string.h>

#include "bf16_depthwise.h"
#include "bfloat16.h"
#include "words.h"

enum { WORD_CHANNELS = 2 };

/* A word of `count` pixels as a row of numbers for each of its channels. */
static void widen(const uint8_t *from, ptrdiff_t count, ptrdiff_t step, float *x) {
    for (ptrdiff_t i = 0; i < count; i++) {
        uint16_t word[WORD_CHANNELS];
        memcpy(word, from + i * SUBP_WORD, SUBP_WORD);
        for (int b = 0; b < WORD_CHANNELS; b++) x[b * step + i] = subp_from_bfloat16(word[b]);
    }
}

#define DEFINE_UBSCONV(name, CHANNELS, PIXELS)                                                                   \
    void name(const subp_tile *t) {                                                                              \
        for (ptrdiff_t at = 0; at < t->count; at += PIXELS) {                                                    \
            const ptrdiff_t count = t->count - at < PIXELS ? t->count - at : PIXELS;                             \
            float sums[CHANNELS][PIXELS], x[WORD_CHANNELS][PIXELS] = {{0}};                                      \
            const uint16_t *w = t->values;                                                                       \
            for (int c = 0; c < CHANNELS; c++)                                                                   \
                for (int i = 0; i < PIXELS; i++) sums[c][i] = t->bias && c < t->channels ? t->bias[c] : 0.0f;    \
            for (int32_t k = 0; k < t->words; k++)                                                               \
                for (int32_t tap = 0; tap < t->taps; tap++) {                                                    \
                    const ptrdiff_t pixel = k * t->word_stride + t->tap_offsets[tap] + at;                       \
                    widen((const uint8_t *)t->x + pixel * SUBP_WORD, count, PIXELS, x[0]);                       \
                    for (int c = 0; c < CHANNELS; c++)                                                           \
                        for (int b = 0; b < WORD_CHANNELS; b++) {                                                \
                            const float weight = subp_from_bfloat16(*w++);                                       \
                            for (int i = 0; i < PIXELS; i++) sums[c][i] += weight * x[b][i];                     \
                        }                                                                                        \
                }                                                                                                \
            for (int32_t c = 0; c < t->channels; c++)                                                            \
                subp_bf16_store(sums[c], count, t->residual, t->activation, t->to_float, t->out,                 \
                                t->out_offsets[c] + at);                                                        \
        }                                                                                                        \
        if (t->next) bf16_interleave__generic(t->next);                                                          \
    }

DEFINE_UBSCONV(bf16_ubsconv_1x16__generic, 1, 16)
DEFINE_UBSCONV(bf16_ubsconv_4x16__generic, 4, 16)

void bf16_interleave__generic(const subp_interleave *s) {
    for (ptrdiff_t w = 0; w < s->words; w++)
        for (ptrdiff_t c = 0; c < s->copies; c++) {
            const int32_t *offsets = subp_word_channels(s, w, WORD_CHANNELS);
            const uint16_t *in = (const uint16_t *)s->x + c * s->in_copy;
            uint8_t *out = subp_word_at(s, w, c);
            for (ptrdiff_t p = 0; p < s->count; p++) {
                const uint16_t word[WORD_CHANNELS] = {in[offsets[0] + p], in[offsets[1] + p]};
                memcpy(out + p * SUBP_WORD, word, SUBP_WORD);
            }
        }
}

SUBP_DEFINE_BF16_DEPTHWISE(generic)

void bf16_halve__generic(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                         ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        for (ptrdiff_t x = 0; x < count; x++)
            ((uint16_t *)out)[y * out_step + x] = ((const uint16_t *)in)[y * in_step + 2 * x];
}

/* Products are those of float32. */
ptrdiff_t bf16_peak__generic(ptrdiff_t rounds, float factor) { return f32_peak__generic(rounds, factor); }
