/* NEON of 64-bit Arm behind the interface of int8_vector.h, but for vi32_dot. What is not a whole vector goes through a
 * copy. The includer defines INT8_FLIP before: 0x80 where dot products are of signed bytes, and words are activations
 * minus 128 ("signed_quads" in geometry.py), else 0. */
#ifndef SUBP_INT8_SIMD_NEON_H
#define SUBP_INT8_SIMD_NEON_H

#include <string.h>

#include "kernels.h"
#include "simd_neon.h"

enum { VI32_LANES = 4 };
typedef int32x4_t vi32;

INLINE vi32 vi32_splat(int32_t x) { return vdupq_n_s32(x); }
INLINE vi32 vi32_sub(vi32 a, vi32 b) { return vsubq_s32(a, b); }
INLINE vi32 vi32_load(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
INLINE vi32 vi32_weight(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return vdupq_n_s32(word);
}
INLINE vf32 vf32_of(vi32 x) { return vcvtq_f32_s32(x); }
INLINE vf32 vf32_mul(vf32 a, vf32 b) { return vmulq_f32(a, b); }
INLINE vi32 vi32_round(vf32 x) { return vcvtnq_s32_f32(x); }
INLINE vi32 vi32_bytes(const uint8_t *p, int n) {
    uint8_t copy[8] = {0};
    memcpy(copy, p, n < VI32_LANES ? (size_t)n : VI32_LANES);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(copy)))));
}
INLINE void vf32_store_first(float *p, vf32 x, int n) { vf32_store_mask(p, x, vf32_first(n)); }

INLINE void store_bytes(uint8_t *out, const vi32 *x, int vectors, int count, const subp_requantize *q) {
    const int16x8_t zero = vdupq_n_s16((int16_t)q->zero);
    const uint8x8_t low = vdup_n_u8((uint8_t)q->low), high = vdup_n_u8((uint8_t)q->high);
    UNROLL for (int v = 0; v < vectors; v += 2) {
        const int both = v + 1 < vectors, left = count - v * VI32_LANES, most = (1 + both) * VI32_LANES;
        const int16x8_t halves = vcombine_s16(vqmovn_s32(x[v]), vqmovn_s32(x[v + both]));
        const uint8x8_t bytes = vmin_u8(vmax_u8(vqmovun_s16(vqaddq_s16(halves, zero)), low), high);
        uint8_t numbers[8];
        vst1_u8(numbers, bytes);
        memcpy(out + v * VI32_LANES, numbers, (size_t)(left < most ? left : most));
    }
}

/* The words of up to 16 pixels from four planes. */
enum { WORD_CHANNELS = 4, INTERLEAVE_PIXELS = 16 };

INLINE uint8x16_t load_plane(const uint8_t *p, ptrdiff_t count) {
    uint8_t copy[INTERLEAVE_PIXELS] = {0};
    if (count < INTERLEAVE_PIXELS) p = memcpy(copy, p, (size_t)count);
    return veorq_u8(vld1q_u8(p), vdupq_n_u8(INT8_FLIP));
}

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    uint8_t part[INTERLEAVE_PIXELS * SUBP_WORD];
    uint8x16x4_t planes;
    UNROLL for (int i = 0; i < 4; i++) planes.val[i] = load_plane(x + offsets[i], count);
    vst4q_u8(count < INTERLEAVE_PIXELS ? part : out, planes);
    if (count < INTERLEAVE_PIXELS) memcpy(out, part, (size_t)count * SUBP_WORD);
}

#endif
