/* AVX2 with FMA behind the interface of simd.h. */
#ifndef SUBP_SIMD_AVX2_H
#define SUBP_SIMD_AVX2_H

#include <immintrin.h>

enum { VF32_LANES = 8, CF32_LANES = 4 };
typedef __m256 vf32;
typedef __m256i vf32_mask, vf32_span;
typedef __m128 cf32;

static inline vf32_mask vf32_first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf32 vf32_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf32 vf32_load_mask(const float *p, vf32_mask m) { return _mm256_maskload_ps(p, m); }
static inline void vf32_store(float *p, vf32 x) { _mm256_storeu_ps(p, x); }
static inline void vf32_store_mask(float *p, vf32 x, vf32_mask m) { _mm256_maskstore_ps(p, m, x); }
static inline vf32 vf32_splat(float x) { return _mm256_set1_ps(x); }
static inline vf32 vf32_madd(vf32 a, vf32 b, vf32 c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf32 vf32_add(vf32 a, vf32 b) { return _mm256_add_ps(a, b); }
static inline vf32 vf32_relu(vf32 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
static inline vf32 vf32_relu6(vf32 x) { return _mm256_min_ps(_mm256_set1_ps(6.0f), vf32_relu(x)); }
static inline vf32 vf32_unzip_even(vf32 a, vf32 b) {
    __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)); /* a, b, a, b */
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
static inline vf32 vf32_unzip_odd(vf32 a, vf32 b) {
    __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)); /* a, b, a, b */
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
static inline vf32 vf32_sub(vf32 a, vf32 b) { return _mm256_sub_ps(a, b); }
static inline vf32 vf32_next(vf32 a, vf32 b) { /* what moves is one circle: the first of b, the others of a */
    return _mm256_permutevar8x32_ps(_mm256_blend_ps(a, b, 1), _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
}
static inline vf32 vf32_zip_low(vf32 a, vf32 b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
static inline vf32 vf32_zip_high(vf32 a, vf32 b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
static inline vf32_span vf32_between(int from, int to) { return _mm256_andnot_si256(vf32_first(from), vf32_first(to)); }
static inline vf32 vf32_load_span(const float *p, vf32_span s, vf32 fill) {
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, s), _mm256_castsi256_ps(s));
}
static inline vf32 vf32_max(vf32 a, vf32 b) { /* max alone gives b if a is NaN */
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
static inline cf32 cf32_load(const float *p) { return _mm_loadu_ps(p); }
static inline void cf32_store(float *p, cf32 x) { _mm_storeu_ps(p, x); }
static inline cf32 cf32_splat(float x) { return _mm_set1_ps(x); }
static inline cf32 cf32_madd(cf32 a, cf32 b, cf32 c) { return _mm_fmadd_ps(a, b, c); }
static inline cf32 cf32_add(cf32 a, cf32 b) { return _mm_add_ps(a, b); }
static inline cf32 cf32_relu(cf32 x) { return _mm_max_ps(_mm_setzero_ps(), x); }
static inline cf32 cf32_relu6(cf32 x) { return _mm_min_ps(_mm_set1_ps(6.0f), cf32_relu(x)); }

#include "simd.h"

#endif
