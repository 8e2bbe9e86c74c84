/* NEON behind the interface of simd_bytes.h, without dot products of bytes. */
#ifndef SUBP_SIMD_BYTES_NEON_H
#define SUBP_SIMD_BYTES_NEON_H

#include <arm_neon.h>

#include "kernels.h"
#include "simd_bytes.h"

enum { VU8_BYTES = 16 };
typedef uint8x16_t vu8;
typedef int32x4_t vi32;

INLINE vu8 vu8_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE void vu8_store(uint8_t *p, vu8 x) { vst1q_u8(p, x); }
INLINE vu8 vu8_splat(uint8_t x) { return vdupq_n_u8(x); }
INLINE vi32 vi32_splat(int32_t x) { return vdupq_n_s32(x); }

#define VU8_HAS_QUADS 0
typedef struct {
    int16_t of[4];
} quad_weights;
INLINE quad_weights quad_weights_of(const int8_t *p, int count) {
    quad_weights w = {{0}};
    for (int i = 0; i < count; i++) w.of[i] = p[i];
    return w;
}

/* The bytes that tap j of 16 outputs meets. */
INLINE vu8 bytes_of_tap(const uint8_t *from, int j, int stride) {
    return stride == 1 ? vld1q_u8(from + j) : vld2q_u8(from + j / 2 * 2).val[j % 2];
}

INLINE void vi32_add_taps(vi32 sums[4], const uint8_t *from, const quad_weights *w, int kernel, int stride) {
    UNROLL for (int j = 0; j < kernel; j++) {
        const vu8 x = bytes_of_tap(from, j, stride);
        const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
        const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(x));
        const int16x8_t weight = vdupq_n_s16(w[j / 4].of[j % 4]);
        sums[0] = vmlal_s16(sums[0], vget_low_s16(low), vget_low_s16(weight));
        sums[1] = vmlal_high_s16(sums[1], low, weight);
        sums[2] = vmlal_s16(sums[2], vget_low_s16(high), vget_low_s16(weight));
        sums[3] = vmlal_high_s16(sums[3], high, weight);
    }
}

typedef struct {
    float32x4_t factor, residual_factor;
    int16x8_t zero, residual_zero;
    uint8x16_t low, high;
} stored_constants;

INLINE stored_constants stored_constants_of(const subp_requantize *q, float factor) {
    return (stored_constants){
        .factor = vdupq_n_f32(factor),
        .residual_factor = vdupq_n_f32(q->residual_factor),
        .zero = vdupq_n_s16((int16_t)q->zero),
        .residual_zero = vdupq_n_s16((int16_t)q->residual_zero),
        .low = vdupq_n_u8((uint8_t)q->low),
        .high = vdupq_n_u8((uint8_t)q->high),
    };
}

/* Bytes 4 * v to 4 * v + 3, without their zero point. */
INLINE float32x4_t offsets_of(vu8 x, int v, const stored_constants *c) {
    const uint16x8_t wide = v < 2 ? vmovl_u8(vget_low_u8(x)) : vmovl_high_u8(x);
    const int16x8_t offset = vsubq_s16(vreinterpretq_s16_u16(wide), c->residual_zero);
    return vcvtq_f32_s32(v % 2 ? vmovl_high_s16(offset) : vmovl_s16(vget_low_s16(offset)));
}

INLINE vu8 vu8_stored(const vi32 sums[4], const vu8 *residual, const stored_constants *c, int plain) {
    int16x4_t narrow[4];
    UNROLL for (int v = 0; v < 4; v++) {
        float32x4_t real = vmulq_f32(vcvtq_f32_s32(sums[v]), c->factor);
        if (residual) real = vfmaq_f32(real, offsets_of(*residual, v, c), c->residual_factor);
        narrow[v] = vqmovn_s32(vcvtnq_s32_f32(real));
    }
    int16x8_t first = vcombine_s16(narrow[0], narrow[1]), second = vcombine_s16(narrow[2], narrow[3]);
    /* Sums of saturated numbers saturate again, on the same side. */
    if (!plain) first = vqaddq_s16(first, c->zero), second = vqaddq_s16(second, c->zero);
    const vu8 stored = vcombine_u8(vqmovun_s16(first), vqmovun_s16(second));
    return plain ? stored : vminq_u8(vmaxq_u8(stored, c->low), c->high);
}

/* One part is in order as it is. */
INLINE vu8 vu8_halves_joined(vu8 x) { return x; }
INLINE vu8 vu8_halves_parted(vu8 x) { return x; }

#include "simd_bytes_copy.h"

#endif
