/* AVX2 and FMA behind the interface of int8_vector.h, but for vi32_dot. There are no masks for bytes: what is not a
 * whole vector goes through a copy. */
#ifndef SUBP_INT8_SIMD_AVX2_H
#define SUBP_INT8_SIMD_AVX2_H

#include <string.h>

#include "kernels.h"
#include "simd_avx2.h"

enum { VI32_LANES = 8 };
typedef __m256i vi32;

INLINE vi32 vi32_splat(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vi32 vi32_sub(vi32 a, vi32 b) { return _mm256_sub_epi32(a, b); }
INLINE vi32 vi32_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vi32 vi32_weight(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
}
INLINE vf32 vf32_of(vi32 x) { return _mm256_cvtepi32_ps(x); }
INLINE vf32 vf32_mul(vf32 a, vf32 b) { return _mm256_mul_ps(a, b); }
INLINE vi32 vi32_round(vf32 x) { return _mm256_cvtps_epi32(x); } /* in the mode that every process starts with */
INLINE vi32 vi32_bytes(const uint8_t *p, int n) {
    uint8_t copy[VI32_LANES] = {0};
    if (n < VI32_LANES) p = memcpy(copy, p, (size_t)n);
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
INLINE void vf32_store_first(float *p, vf32 x, int n) {
    if (n == VI32_LANES)
        vf32_store(p, x);
    else
        vf32_store_mask(p, x, vf32_first(n));
}
INLINE void store_bytes(uint8_t *out, const vi32 *x, int vectors, int count, const subp_requantize *q) {
    const __m256i zero = _mm256_set1_epi16((short)q->zero);
    const __m128i low = _mm_set1_epi8((char)q->low), high = _mm_set1_epi8((char)q->high);
    UNROLL for (int v = 0; v < vectors; v++) {
        const __m256i halves = _mm256_adds_epi16(_mm256_packs_epi32(x[v], x[v]), zero);
        const __m256i four = _mm256_packus_epi16(halves, halves); /* the same four numbers again and again */
        const __m128i ordered = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
        const __m128i bytes = _mm_min_epu8(_mm_max_epu8(ordered, low), high);
        const int left = count - v * VI32_LANES;
        if (left >= VI32_LANES)
            _mm_storel_epi64((__m128i *)(out + v * VI32_LANES), bytes);
        else
            memcpy(out + v * VI32_LANES, &bytes, (size_t)left);
    }
}

/* Up to 16 bytes. */
INLINE __m128i load_plane(const uint8_t *p, ptrdiff_t count) {
    uint8_t copy[16] = {0};
    if (count < 16) p = memcpy(copy, p, (size_t)count);
    return _mm_loadu_si128((const __m128i *)p);
}

#endif
