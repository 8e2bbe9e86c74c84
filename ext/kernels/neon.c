/* The kernels for NEON of 64-bit Arm: 8 channels x 3 vectors of pixels fill 24 of the 32 registers, and 24 products need
 * 3 loads of pixels and 2 of values, which the products take lane by lane. */
#include <arm_neon.h>

enum { LANES = 4, TAIL_CHANNELS = 8 };
typedef float32x4_t vec;
typedef int lanes; /* how many, from the first on: NEON has no masks, so parts are built from halves and single lanes */
typedef struct {
    int from, to;
} span;
typedef float32x4x2_t cvec;

static inline lanes first_lanes(int n) { return n; }
static inline vec load(const float *p) { return vld1q_f32(p); }
static inline vec load_lanes(const float *p, lanes n) {
    if (n >= LANES) return vld1q_f32(p);
    float32x2_t low = vdup_n_f32(0.0f), high = low;
    if (n >= 2) low = vld1_f32(p);
    if (n == 1) low = vld1_lane_f32(p, low, 0);
    if (n == 3) high = vld1_lane_f32(p + 2, high, 0);
    return vcombine_f32(low, high);
}
static inline void store(float *p, vec x) { vst1q_f32(p, x); }
static inline void store_lanes(float *p, vec x, lanes n) {
    if (n >= LANES) {
        vst1q_f32(p, x);
        return;
    }
    if (n >= 2) vst1_f32(p, vget_low_f32(x));
    if (n == 1) vst1q_lane_f32(p, x, 0);
    if (n == 3) vst1q_lane_f32(p + 2, x, 2);
}
static inline vec splat(float x) { return vdupq_n_f32(x); }
static inline vec madd(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec relu(vec x) { return vmaxq_f32(x, vdupq_n_f32(0.0f)); }
static inline vec relu6(vec x) { return vminq_f32(relu(x), vdupq_n_f32(6.0f)); }
static inline vec maximum(vec a, vec b) { return vmaxq_f32(a, b); }
static inline vec evens(vec a, vec b) { return vuzp1q_f32(a, b); }
static inline vec odds(vec a, vec b) { return vuzp2q_f32(a, b); }
static inline vec sub(vec a, vec b) { return vsubq_f32(a, b); }
static inline vec next_lanes(vec a, vec b) { return vextq_f32(a, b, 1); }
static inline vec low_pairs(vec a, vec b) { return vzip1q_f32(a, b); }
static inline vec high_pairs(vec a, vec b) { return vzip2q_f32(a, b); }
static inline span between(int from, int to) { return (span){from, to}; }
static inline vec load_span(const float *p, span s, vec fill) {
    float lane[LANES];
    vst1q_f32(lane, fill);
    for (int i = s.from; i < s.to; i++) lane[i] = p[i];
    return vld1q_f32(lane);
}
static inline cvec cload(const float *p) { return (cvec){{vld1q_f32(p), vld1q_f32(p + 4)}}; }
static inline void cstore(float *p, cvec x) { vst1q_f32(p, x.val[0]), vst1q_f32(p + 4, x.val[1]); }
static inline cvec csplat(float x) { return (cvec){{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
static inline cvec cmadd(cvec a, cvec b, cvec c) {
    return (cvec){{madd(a.val[0], b.val[0], c.val[0]), madd(a.val[1], b.val[1], c.val[1])}};
}
static inline cvec cadd(cvec a, cvec b) { return (cvec){{add(a.val[0], b.val[0]), add(a.val[1], b.val[1])}}; }
static inline cvec crelu(cvec x) { return (cvec){{relu(x.val[0]), relu(x.val[1])}}; }
static inline cvec crelu6(cvec x) { return (cvec){{relu6(x.val[0]), relu6(x.val[1])}}; }

/* A lane of a vector of values: a product takes it as an operand, where a broadcast would be an instruction more. */
#define VALUE(w, c, channels) value_lane(w, c, channels)
static inline __attribute__((always_inline)) vec value_lane(const float *w, int c, int channels) {
    if (channels < 4) return vdupq_n_f32(w[c]);
    const vec four = vld1q_f32(w + (c & ~3));
    switch (c & 3) {
    case 0: return vdupq_laneq_f32(four, 0);
    case 1: return vdupq_laneq_f32(four, 1);
    case 2: return vdupq_laneq_f32(four, 2);
    default: return vdupq_laneq_f32(four, 3);
    }
}

#include "planes.h"
#include "vector.h"
#include "window.h"
#include "transforms.h"

DEFINE_BLOCK(8, 3)
DEFINE_BLOCK(8, 2)
DEFINE_BLOCK(8, 1)
DEFINE_BLOCK(4, 6)
DEFINE_BLOCK(4, 3)
DEFINE_BLOCK(4, 1)
DEFINE_REST(4)
DEFINE_BLOCK(2, 8)
DEFINE_BLOCK(2, 4)
DEFINE_BLOCK(2, 1)
DEFINE_REST(2)
DEFINE_BLOCK(1, 8)
DEFINE_BLOCK(1, 4)
DEFINE_BLOCK(1, 1)
DEFINE_REST(1)

void f32_ubsconv_8x12__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(8, 3)
    RUN_BLOCKS(8, 2)
    RUN_BLOCKS(8, 1)
    if (at < t->count) run_tail(t, at, t->count - at);
}
void f32_ubsconv_4x24__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(4, 6)
    RUN_BLOCKS(4, 3)
    RUN_BLOCKS(4, 1)
    RUN_REST(4)
}
void f32_ubsconv_2x32__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(2, 8)
    RUN_BLOCKS(2, 4)
    RUN_BLOCKS(2, 1)
    RUN_REST(2)
}
void f32_ubsconv_1x32__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(1, 8)
    RUN_BLOCKS(1, 4)
    RUN_BLOCKS(1, 1)
    RUN_REST(1)
}

/* Seven rows divide the planes of networks for 224x224 images. */
DEFINE_DEPTHWISE(neon, 3, 1, 7)
DEFINE_DEPTHWISE(neon, 3, 2, 7)
DEFINE_DEPTHWISE(neon, 5, 1, 4)
DEFINE_DEPTHWISE(neon, 5, 2, 4)
DEFINE_DEPTHWISE(neon, 7, 1, 4)
DEFINE_DEPTHWISE(neon, 7, 2, 4)

DEFINE_TRANSFORMS(neon, 2)
DEFINE_TRANSFORMS(neon, 4)

float subp_peak_neon(ptrdiff_t rounds, float factor) { return peak(rounds, factor); }
const int subp_peak_flops_neon = 2 * PEAK_CHAINS * LANES;

SUBP_DEFINE_PLANES(neon)
DEFINE_POOL(neon)

void subp_halve_neon(const float *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, float *out,
                     ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++) halve_row(in + y * in_step, count, out + y * out_step);
}
