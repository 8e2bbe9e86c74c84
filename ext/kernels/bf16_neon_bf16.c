/* The bfloat16 kernels for NEON with dot products of it: 8 channels x 3 vectors fill 24 of the 32 registers. What is
 * not a whole vector goes through a copy. */
#include <string.h>

#include "kernels.h"
#include "simd_neon.h"

typedef bfloat16x8_t vword;

INLINE vword vword_load(const uint8_t *p) { return vreinterpretq_bf16_u8(vld1q_u8(p)); }
INLINE vword vword_weight(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof(word));
    return vreinterpretq_bf16_u32(vdupq_n_u32(word));
}
INLINE vf32 vsum_dot(vf32 sums, vword words, vword weight) { return vbfdotq_f32(sums, words, weight); }
INLINE cf32 csum_dot(cf32 sums, const uint8_t *word, const uint8_t *weights) {
    const vword x = vword_weight(word);
    return (cf32){{vbfdotq_f32(sums.val[0], x, vword_load(weights)),
                   vbfdotq_f32(sums.val[1], x, vword_load(weights + 16))}};
}

/* The words of up to 16 pixels from two planes. */
enum { WORD_CHANNELS = 2, INTERLEAVE_PIXELS = 16 };

INLINE void interleave_block(const uint16_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    uint16_t a[INTERLEAVE_PIXELS] = {0}, b[INTERLEAVE_PIXELS] = {0}, part[2 * INTERLEAVE_PIXELS];
    const uint16_t *from_a = x + offsets[0], *from_b = x + offsets[1];
    const size_t most = (size_t)(count < INTERLEAVE_PIXELS ? count : INTERLEAVE_PIXELS);
    if (count < INTERLEAVE_PIXELS) {
        from_a = memcpy(a, from_a, most * sizeof(uint16_t));
        from_b = memcpy(b, from_b, most * sizeof(uint16_t));
    }
    UNROLL for (int h = 0; h < 2; h++) {
        const uint16x8x2_t planes = {{vld1q_u16(from_a + 8 * h), vld1q_u16(from_b + 8 * h)}};
        vst2q_u16(part + 16 * h, planes);
    }
    memcpy(out, part, most * SUBP_WORD);
}

INLINE vf32 bf16_load(const uint16_t *p, int n) {
    uint16_t copy[VF32_LANES] = {0};
    if (n < VF32_LANES) p = memcpy(copy, p, (size_t)n * sizeof(uint16_t));
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

INLINE void bf16_store(uint16_t *out, const vf32 *x, int vectors, int count) {
    UNROLL for (int v = 0; v < vectors; v += 2) {
        const int both = v + 1 < vectors, left = count - v * VF32_LANES, most = (1 + both) * VF32_LANES;
        uint16_t numbers[2 * VF32_LANES];
        vst1q_u16(numbers, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x[v]), x[v + both])));
        memcpy(out + v * VF32_LANES, numbers, (size_t)(left < most ? left : most) * sizeof(uint16_t));
    }
}

#include "bf16_vector.h"

enum { ROW_NUMBERS = 16 }; /* no fewer than VF32_LANES windows see */

typedef struct {
    int from, to;
} window_span;

INLINE window_span window_between(ptrdiff_t from, ptrdiff_t to, int taps, int stride) {
    (void)taps, (void)stride;
    const int first = from < 0 ? 0 : from > ROW_NUMBERS ? ROW_NUMBERS : (int)from;
    return (window_span){first, to < first ? first : to > ROW_NUMBERS ? ROW_NUMBERS : (int)to};
}

INLINE void window_load(vword *words, const uint16_t *p, const window_span *span, int taps, int stride) {
    uint16_t copy[ROW_NUMBERS] = {0};
    if (span->from > 0 || span->to < ROW_NUMBERS) {
        if (span->to > span->from)
            memcpy(copy + span->from, p + span->from, (size_t)(span->to - span->from) * sizeof(uint16_t));
        p = copy;
    }
    UNROLL for (int j = 0; 2 * j < taps; j++) {
        const int both = 2 * j + 1 < taps;
        uint16x8_t pairs;
        if (stride == 1) {
            const uint16x4_t first = vld1_u16(p + 2 * j), second = both ? vld1_u16(p + 2 * j + 1) : vdup_n_u16(0);
            pairs = vcombine_u16(vzip1_u16(first, second), vzip2_u16(first, second));
        } else {
            pairs = vld1q_u16(p + 2 * j);
            if (!both) pairs = vandq_u16(pairs, vreinterpretq_u16_u32(vdupq_n_u32(0xffff)));
        }
        words[j] = vreinterpretq_bf16_u16(pairs);
    }
}

#include "bf16_window.h"

BF16_DEFINE_INTERLEAVE(neon_bf16)
BF16_DEFINE_PEAK(neon_bf16)

BF16_DEFINE_KERNEL(neon_bf16, 8, 12, 3, 2, )
BF16_DEFINE_KERNEL(neon_bf16, 4, 24, 6, 3, )
BF16_DEFINE_KERNEL(neon_bf16, 1, 32, 8, 4, )

SUBP_DEFINE_BF16_DEPTHWISE(neon_bf16)
BF16_DEFINE_DEPTHWISE(neon_bf16, 3, 1, 7)
BF16_DEFINE_DEPTHWISE(neon_bf16, 3, 2, 7)
BF16_DEFINE_DEPTHWISE(neon_bf16, 5, 1, 7)
BF16_DEFINE_DEPTHWISE(neon_bf16, 5, 2, 4)
BF16_DEFINE_DEPTHWISE(neon_bf16, 7, 1, 7)
BF16_DEFINE_DEPTHWISE(neon_bf16, 7, 2, 4)
