/* Words of bfloat16 in AVX-512 with dot products of it, for the sets that have them: what bf16_vector.h asks for, and
 * it. */
#ifndef SUBP_BF16_SIMD_AVX512BF16_H
#define SUBP_BF16_SIMD_AVX512BF16_H

#include <string.h>

#include "kernels.h"
#include "simd_avx512.h"
#include "words_avx512.h"

typedef __m512i vword;

INLINE vword vword_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vword vword_weight(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
}

/* Not the intrinsic, with which GCC 12 copies and spills the sums. */
INLINE vf32 vsum_dot(vf32 sums, vword words, vword weight) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words), "v"(weight));
    return sums;
}

INLINE cf32 csum_dot(cf32 sums, const uint8_t *word, const uint8_t *weights) {
    int32_t x;
    memcpy(&x, word, sizeof(x));
    const __m256i words = _mm256_set1_epi32(x), w = _mm256_loadu_si256((const __m256i *)weights);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words), "v"(w));
    return sums;
}

INLINE __m512i load_halves(const uint16_t *p, ptrdiff_t count) {
    if (count >= 32) return _mm512_loadu_si512(p);
    if (count == 16) return _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_maskz_loadu_epi16((__mmask32)(((uint64_t)1 << count) - 1), p);
}

/* The words of up to 64 pixels from two planes. */
enum { WORD_CHANNELS = 2, INTERLEAVE_PIXELS = 64 };

INLINE void interleave_block(const uint16_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const __m512i first = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006,
                                            0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d,
                                            0x2e000e, 0x2f000f); /* lanes 0, 32, 1, 33, ... of two vectors */
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const uint16_t *a = x + offsets[0], *b = x + offsets[1];
    UNROLL for (ptrdiff_t at = 0; at < INTERLEAVE_PIXELS; at += 32) {
        if (at >= count) break;
        const __m512i from_a = load_halves(a + at, count - at), from_b = load_halves(b + at, count - at);
        store_words(out + at * SUBP_WORD, _mm512_permutex2var_epi16(from_a, first, from_b), count - at);
        store_words(out + (at + 16) * SUBP_WORD, _mm512_permutex2var_epi16(from_a, second, from_b), count - at - 16);
    }
}

INLINE vf32 bf16_load(const uint16_t *p, int n) {
    const __m256i x = n == VF32_LANES ? _mm256_loadu_si256((const __m256i *)p)
                                      : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE void bf16_store(uint16_t *out, const vf32 *x, int vectors, int count) {
    UNROLL for (int v = 0; v < vectors; v += 2) {
        const int left = count - v * VF32_LANES;
        uint16_t *to = out + v * VF32_LANES;
        if (v + 1 < vectors) {
            const __m512i two = (__m512i)_mm512_cvtne2ps_pbh(x[v + 1], x[v]);
            if (left >= 2 * VF32_LANES)
                _mm512_storeu_si512(to, two);
            else
                _mm512_mask_storeu_epi16(to, (__mmask32)((1u << left) - 1), two);
        } else {
            const __m256i one = (__m256i)_mm512_cvtneps_pbh(x[v]);
            if (left >= VF32_LANES)
                _mm256_storeu_si256((__m256i *)to, one);
            else
                _mm256_mask_storeu_epi16(to, (__mmask16)((1u << left) - 1), one);
        }
    }
}

#include "bf16_vector.h"

#endif
