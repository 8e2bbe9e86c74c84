/* AVX2 behind the interface of simd_bytes.h; with SUBP_VNNI the dot products are instructions, those of AVX-VNNI. */
#ifndef SUBP_SIMD_BYTES_AVX2_H
#define SUBP_SIMD_BYTES_AVX2_H

#include <immintrin.h>

#include "kernels.h"
#include "simd_bytes.h"

enum { VU8_BYTES = 32 };
typedef __m256i vu8, vu8_order, vi32;

INLINE vu8 vu8_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void vu8_store(uint8_t *p, vu8 x) { _mm256_storeu_si256((__m256i *)p, x); }
INLINE vu8 vu8_splat(uint8_t x) { return _mm256_set1_epi8((char)x); }
INLINE vi32 vi32_splat(int32_t x) { return _mm256_set1_epi32(x); }

#define VU8_HAS_QUADS 1
INLINE vu8_order vu8_quad_order(int first, int step) {
    const int s = step * 0x01010101, a = 0x03020100 + first * 0x01010101;
    return _mm256_broadcastsi128_si256(_mm_setr_epi32(a, a + s, a + 2 * s, a + 3 * s));
}
INLINE vu8 vu8_quads(vu8 x, vu8_order order) { return _mm256_shuffle_epi8(x, order); }

#ifdef SUBP_VNNI
typedef __m256i quad_weights;
INLINE quad_weights quad_weights_of(const int8_t *p, int count) { return _mm256_set1_epi32(quad_bytes(p, count)); }
/* The compiler's own function for the instruction makes it move the sums to and fro. */
INLINE vi32 vi32_dot(vi32 sums, vu8 quads, quad_weights w, int count) {
    (void)count;
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(quads), "x"(w));
    return sums;
}
#else
/* The even and the odd ones of the four, as 16 bits: sums of two products in 16 bits each would saturate. */
typedef struct {
    __m256i even, odd;
} quad_weights;
INLINE quad_weights quad_weights_of(const int8_t *p, int count) {
    const __m256i four = _mm256_set1_epi32(quad_bytes(p, count));
    return (quad_weights){_mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), _mm256_srai_epi16(four, 8)};
}
INLINE vi32 vi32_dot(vi32 sums, vu8 quads, quad_weights w, int count) {
    const __m256i even = _mm256_and_si256(quads, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(quads, 8);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even, w.even));
    return count == 1 ? sums : _mm256_add_epi32(sums, _mm256_madd_epi16(odd, w.odd));
}
#endif

typedef struct {
    __m256 factor, residual_factor;
    __m256i zero, low, high, residual_zero;
} stored_constants;

INLINE stored_constants stored_constants_of(const subp_requantize *q, float factor) {
    return (stored_constants){
        .factor = _mm256_set1_ps(factor),
        .residual_factor = _mm256_set1_ps(q->residual_factor),
        .zero = _mm256_set1_epi16((short)q->zero),
        .low = _mm256_set1_epi8((char)q->low),
        .high = _mm256_set1_epi8((char)q->high),
        .residual_zero = _mm256_set1_epi32(q->residual_zero),
    };
}

/* Bytes 4 * v to 4 * v + 3 of every part as integers. */
INLINE __m256i widened(vu8 x, int v) {
    const int none = (int)0x80808000;
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(_mm_setr_epi32(none + 4 * v, none + 4 * v + 1,
                                                                             none + 4 * v + 2, none + 4 * v + 3)));
}

INLINE vu8 vu8_stored(const vi32 sums[4], const vu8 *residual, const stored_constants *c, int plain) {
    __m256i whole[4];
    UNROLL for (int v = 0; v < 4; v++) {
        __m256 real = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), c->factor);
        if (residual) {
            const __m256i offset = _mm256_sub_epi32(widened(*residual, v), c->residual_zero);
            real = _mm256_fmadd_ps(_mm256_cvtepi32_ps(offset), c->residual_factor, real);
        }
        whole[v] = _mm256_cvtps_epi32(real);
    }
    if (plain)
        return _mm256_packus_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    /* Sums of saturated numbers saturate again, on the same side. */
    const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(whole[0], whole[1]), c->zero);
    const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(whole[2], whole[3]), c->zero);
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(first, second), c->low), c->high);
}

INLINE vu8 vu8_halves_joined(vu8 x) { return _mm256_permute4x64_epi64(x, 0xd8); }
INLINE vu8 vu8_halves_parted(vu8 x) { return _mm256_permute4x64_epi64(x, 0xd8); }

#include "simd_bytes_copy.h"

#endif
