/* NEON of 64-bit Arm behind the interface of simd.h. */
#ifndef SUBP_SIMD_NEON_H
#define SUBP_SIMD_NEON_H

#include <arm_neon.h>

enum { VF32_LANES = 4, CF32_LANES = 8 };
typedef float32x4_t vf32;
/* How many, from the first on: NEON has no masks, so parts are built from halves and single lanes. */
typedef int vf32_mask;
typedef struct {
    int from, to;
} vf32_span;
typedef float32x4x2_t cf32;

static inline vf32_mask vf32_first(int n) { return n; }
static inline vf32 vf32_load(const float *p) { return vld1q_f32(p); }
static inline vf32 vf32_load_mask(const float *p, vf32_mask n) {
    if (n >= VF32_LANES) return vld1q_f32(p);
    float32x2_t low = vdup_n_f32(0.0f), high = low;
    if (n >= 2) low = vld1_f32(p);
    if (n == 1) low = vld1_lane_f32(p, low, 0);
    if (n == 3) high = vld1_lane_f32(p + 2, high, 0);
    return vcombine_f32(low, high);
}
static inline void vf32_store(float *p, vf32 x) { vst1q_f32(p, x); }
static inline void vf32_store_mask(float *p, vf32 x, vf32_mask n) {
    if (n >= VF32_LANES) {
        vst1q_f32(p, x);
        return;
    }
    if (n >= 2) vst1_f32(p, vget_low_f32(x));
    if (n == 1) vst1q_lane_f32(p, x, 0);
    if (n == 3) vst1q_lane_f32(p + 2, x, 2);
}
static inline vf32 vf32_splat(float x) { return vdupq_n_f32(x); }
static inline vf32 vf32_madd(vf32 a, vf32 b, vf32 c) { return vfmaq_f32(c, a, b); }
static inline vf32 vf32_add(vf32 a, vf32 b) { return vaddq_f32(a, b); }
static inline vf32 vf32_relu(vf32 x) { return vmaxq_f32(x, vdupq_n_f32(0.0f)); }
static inline vf32 vf32_relu6(vf32 x) { return vminq_f32(vf32_relu(x), vdupq_n_f32(6.0f)); }
static inline vf32 vf32_max(vf32 a, vf32 b) { return vmaxq_f32(a, b); }
static inline vf32 vf32_unzip_even(vf32 a, vf32 b) { return vuzp1q_f32(a, b); }
static inline vf32 vf32_unzip_odd(vf32 a, vf32 b) { return vuzp2q_f32(a, b); }
static inline vf32 vf32_sub(vf32 a, vf32 b) { return vsubq_f32(a, b); }
static inline vf32 vf32_next(vf32 a, vf32 b) { return vextq_f32(a, b, 1); }
static inline vf32 vf32_zip_low(vf32 a, vf32 b) { return vzip1q_f32(a, b); }
static inline vf32 vf32_zip_high(vf32 a, vf32 b) { return vzip2q_f32(a, b); }
static inline vf32_span vf32_between(int from, int to) { return (vf32_span){from, to}; }
static inline vf32 vf32_load_span(const float *p, vf32_span s, vf32 fill) {
    float lane[VF32_LANES];
    vst1q_f32(lane, fill);
    for (int i = s.from; i < s.to; i++) lane[i] = p[i];
    return vld1q_f32(lane);
}
static inline cf32 cf32_load(const float *p) { return (cf32){{vld1q_f32(p), vld1q_f32(p + 4)}}; }
static inline void cf32_store(float *p, cf32 x) { vst1q_f32(p, x.val[0]), vst1q_f32(p + 4, x.val[1]); }
static inline cf32 cf32_splat(float x) { return (cf32){{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
static inline cf32 cf32_madd(cf32 a, cf32 b, cf32 c) {
    return (cf32){{vf32_madd(a.val[0], b.val[0], c.val[0]), vf32_madd(a.val[1], b.val[1], c.val[1])}};
}
static inline cf32 cf32_add(cf32 a, cf32 b) {
    return (cf32){{vf32_add(a.val[0], b.val[0]), vf32_add(a.val[1], b.val[1])}};
}
static inline cf32 cf32_relu(cf32 x) { return (cf32){{vf32_relu(x.val[0]), vf32_relu(x.val[1])}}; }
static inline cf32 cf32_relu6(cf32 x) { return (cf32){{vf32_relu6(x.val[0]), vf32_relu6(x.val[1])}}; }

/* A lane of a vector of values: a product takes it as an operand, where a broadcast would be an instruction more. */
#define VF32_VALUE(w, c, channels) vf32_value_lane(w, c, channels)
static inline __attribute__((always_inline)) vf32 vf32_value_lane(const float *w, int c, int channels) {
    if (channels < 4) return vdupq_n_f32(w[c]);
    const vf32 four = vld1q_f32(w + (c & ~3));
    switch (c & 3) {
    case 0: return vdupq_laneq_f32(four, 0);
    case 1: return vdupq_laneq_f32(four, 1);
    case 2: return vdupq_laneq_f32(four, 2);
    default: return vdupq_laneq_f32(four, 3);
    }
}

#include "simd.h"

#endif
