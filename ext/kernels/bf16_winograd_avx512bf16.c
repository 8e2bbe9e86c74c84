/* Winograd's transforms of bfloat16 planes for AVX-512, with its narrowing to bfloat16. */
#include <stdint.h>

#include "simd_avx512.h"

#define PLANE_NUMBER uint16_t

INLINE vf32 plane_load_span(const uint16_t *p, vf32_span inside) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
INLINE vf32 plane_load(const uint16_t *p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
INLINE vf32 plane_load_part(const uint16_t *p, int count) { return plane_load_span(p, vf32_first(count)); }
INLINE void plane_store_part(uint16_t *p, vf32 x, int count) {
    _mm256_mask_storeu_epi16(p, vf32_first(count), (__m256i)_mm512_cvtneps_pbh(x));
}

#include "bf16_winograd.h"

DEFINE_TRANSFORMS(bf16, avx512bf16, 2)
DEFINE_TRANSFORMS(bf16, avx512bf16, 4)
DEFINE_WINOGRAD_WEIGHTS(avx512bf16, 2)
DEFINE_WINOGRAD_WEIGHTS(avx512bf16, 4)
