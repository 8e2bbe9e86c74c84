/* The int8 kernels for AVX-512 without dot products of bytes: those of pairs of 16 bits, added up by another
 * instruction. */
#include "int8_simd_avx512.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(words, weight));
}

INLINE ci32 ci32_dot(ci32 sums, const uint8_t *word, const uint8_t *weights) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(ci32_word(word), ci32_weights(weights)));
}

/* The words of up to 16 pixels from two planes: numbers of 16 bits, for those cannot overflow, while sums of two
 * products of bytes can. */
enum { WORD_CHANNELS = 2, INTERLEAVE_PIXELS = 16 };

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const int n = count < VI32_LANES ? (int)count : VI32_LANES;
    const vi32 a = vi32_bytes(x + offsets[0], n), b = vi32_bytes(x + offsets[1], n);
    const vi32 words = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
    if (n == VI32_LANES)
        _mm512_storeu_si512(out, words);
    else
        _mm512_mask_storeu_epi32(out, vf32_first(n), words);
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(avx512)
INT8_DEFINE_PEAK(avx512)

DEFINE_WORDS_ODD(8, 3)
INT8_DEFINE_KERNEL(avx512, 8, 48, 3, 2, WORDS_ODD(8, 3))
INT8_DEFINE_KERNEL(avx512, 4, 96, 6, 3, )
INT8_DEFINE_KERNEL(avx512, 1, 128, 8, 4, )
