/* AVX-512 behind the interface of int8_vector.h, but for vi32_dot. */
#ifndef SUBP_INT8_SIMD_AVX512_H
#define SUBP_INT8_SIMD_AVX512_H

#include <string.h>

#include "kernels.h"
#include "simd_avx512.h"

enum { VI32_LANES = 16 };
typedef __m512i vi32;

INLINE vi32 vi32_splat(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vi32 vi32_sub(vi32 a, vi32 b) { return _mm512_sub_epi32(a, b); }
INLINE vi32 vi32_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vi32 vi32_weight(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
}
INLINE vf32 vf32_of(vi32 x) { return _mm512_cvtepi32_ps(x); }
INLINE vf32 vf32_mul(vf32 a, vf32 b) { return _mm512_mul_ps(a, b); }
INLINE vi32 vi32_round(vf32 x) {
    return _mm512_cvtps_epi32(x); /* in the rounding mode that every process starts with */
}
INLINE vi32 vi32_bytes(const uint8_t *p, int n) {
    return _mm512_cvtepu8_epi32(n == VI32_LANES ? _mm_loadu_si128((const __m128i *)p)
                                                : _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p));
}
INLINE void vf32_store_first(float *p, vf32 x, int n) {
    if (n == VI32_LANES)
        vf32_store(p, x);
    else
        vf32_store_mask(p, x, vf32_first(n));
}

/* The first n of 64 bytes. */
INLINE void store_first(uint8_t *out, __m512i x, int n) {
    if (n == 64) {
        _mm512_storeu_si512(out, x);
    } else if (n == 48) {
        _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(x));
        _mm_storeu_si128((__m128i *)(out + 32), _mm512_extracti32x4_epi32(x, 2));
    } else if (n == 32) {
        _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(x));
    } else if (n == 16) {
        _mm_storeu_si128((__m128i *)out, _mm512_castsi512_si128(x));
    } else {
        _mm512_mask_storeu_epi8(out, ((__mmask64)1 << n) - 1, x);
    }
}

/* Packs work within quarters of a vector: each ends with four numbers of every vector, which are put in order at the
 * end. */
INLINE void store_bytes(uint8_t *out, const vi32 *x, int vectors, int count, const subp_requantize *q) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i zero = _mm512_set1_epi16((short)q->zero);
    const __m512i low = _mm512_set1_epi8((char)q->low), high = _mm512_set1_epi8((char)q->high);
    const int plain = !q->zero && !q->low && q->high == 255; /* as after most ReLUs: packing does it all */
    UNROLL for (int v = 0; v < vectors; v += 4) {
        const int left = vectors - v, pixels = count - v * VI32_LANES;
        __m512i a = _mm512_packs_epi32(x[v], x[left > 1 ? v + 1 : v]);
        __m512i b = left > 2 ? _mm512_packs_epi32(x[v + 2], x[left > 3 ? v + 3 : v + 2]) : a;
        if (!plain) a = _mm512_adds_epi16(a, zero), b = _mm512_adds_epi16(b, zero);
        __m512i bytes = _mm512_packus_epi16(a, b);
        if (!plain) bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, low), high);
        store_first(out + v * VI32_LANES, _mm512_permutexvar_epi32(order, bytes), pixels < 64 ? pixels : 64);
    }
}

#define INT8_HAS_ODD 1
enum { CI32_LANES = 8 };
typedef __m256i ci32;

INLINE ci32 ci32_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void ci32_floats(ci32 sums, const float *factors, float *out) {
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(factors)));
}
INLINE void ci32_bytes(ci32 sums, const float *factors, const uint8_t *residual, const subp_requantize *q,
                       uint8_t *out) {
    __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(factors));
    if (residual) {
        const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)residual));
        const __m256i offset = _mm256_sub_epi32(wide, _mm256_set1_epi32(q->residual_zero));
        x = _mm256_fmadd_ps(_mm256_cvtepi32_ps(offset), _mm256_set1_ps(q->residual_factor), x);
    }
    __m256i y = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(q->zero));
    y = _mm256_min_epi32(_mm256_max_epi32(y, _mm256_set1_epi32(q->low)), _mm256_set1_epi32(q->high));
    _mm_storel_epi64((__m128i *)out, _mm256_cvtepi32_epi8(y));
}
INLINE ci32 ci32_word(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
}
INLINE ci32 ci32_weights(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

#endif
