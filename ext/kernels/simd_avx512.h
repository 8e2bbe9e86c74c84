/* AVX-512 behind the interface of simd.h. */
#ifndef SUBP_SIMD_AVX512_H
#define SUBP_SIMD_AVX512_H

#include <immintrin.h>

enum { VF32_LANES = 16, CF32_LANES = 8 };
typedef __m512 vf32;
typedef __mmask16 vf32_mask, vf32_span;
typedef __m256 cf32;

static inline vf32_mask vf32_first(int n) { return (vf32_mask)((1u << n) - 1); }
static inline vf32 vf32_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf32 vf32_load_mask(const float *p, vf32_mask m) { return _mm512_maskz_loadu_ps(m, p); }
static inline void vf32_store(float *p, vf32 x) { _mm512_storeu_ps(p, x); }
static inline void vf32_store_mask(float *p, vf32 x, vf32_mask m) { _mm512_mask_storeu_ps(p, m, x); }
static inline vf32 vf32_splat(float x) { return _mm512_set1_ps(x); }
static inline vf32 vf32_madd(vf32 a, vf32 b, vf32 c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf32 vf32_add(vf32 a, vf32 b) { return _mm512_add_ps(a, b); }
static inline vf32 vf32_relu(vf32 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }
static inline vf32 vf32_relu6(vf32 x) { return _mm512_min_ps(_mm512_set1_ps(6.0f), vf32_relu(x)); }
static inline vf32 vf32_unzip_even(vf32 a, vf32 b) {
    const __m512i lane = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vf32 vf32_unzip_odd(vf32 a, vf32 b) {
    const __m512i lane = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vf32 vf32_sub(vf32 a, vf32 b) { return _mm512_sub_ps(a, b); }
static inline vf32 vf32_next(vf32 a, vf32 b) {
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(b), _mm512_castps_si512(a), 1));
}
static inline vf32 vf32_zip_low(vf32 a, vf32 b) {
    const __m512i lane = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vf32 vf32_zip_high(vf32 a, vf32 b) {
    const __m512i lane = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, lane, b);
}
#define VF32_HAS_ORDER 1
typedef __m512i vf32_order;
static inline vf32_order vf32_compress(int n) { /* n lanes, then those from the middle on */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mask_add_epi32(lane, (__mmask16)(0xffffu << n), lane, _mm512_set1_epi32(8 - n));
}
static inline vf32_order vf32_expand(int n) { /* from the middle on what follows n lanes */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mask_sub_epi32(lane, 0xff00, lane, _mm512_set1_epi32(8 - n));
}
static inline vf32 vf32_permute(vf32 a, vf32_order order) { return _mm512_permutexvar_ps(order, a); }
static inline vf32_span vf32_between(int from, int to) { return (vf32_span)(((1u << to) - 1) & ~((1u << from) - 1)); }
static inline vf32 vf32_load_span(const float *p, vf32_span s, vf32 fill) { return _mm512_mask_loadu_ps(fill, s, p); }
static inline vf32 vf32_max(vf32 a, vf32 b) { /* max alone gives b if a is NaN */
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
static inline cf32 cf32_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void cf32_store(float *p, cf32 x) { _mm256_storeu_ps(p, x); }
static inline cf32 cf32_splat(float x) { return _mm256_set1_ps(x); }
static inline cf32 cf32_madd(cf32 a, cf32 b, cf32 c) { return _mm256_fmadd_ps(a, b, c); }
static inline cf32 cf32_add(cf32 a, cf32 b) { return _mm256_add_ps(a, b); }
static inline cf32 cf32_relu(cf32 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
static inline cf32 cf32_relu6(cf32 x) { return _mm256_min_ps(_mm256_set1_ps(6.0f), cf32_relu(x)); }

#include "simd.h"

#endif
