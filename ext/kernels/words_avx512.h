/* Words in memory, for AVX-512. */
#ifndef SUBP_WORDS_AVX512_H
#define SUBP_WORDS_AVX512_H

#include "kernels.h"
#include "simd_avx512.h"

/* The first of 16 words: all for a count of 16 or more, none for one below 1. */
INLINE void store_words(uint8_t *out, __m512i words, ptrdiff_t count) {
    if (count >= 16)
        _mm512_storeu_si512(out, words);
    else if (count == 1)
        _mm_storeu_si32(out, _mm512_castsi512_si128(words));
    else if (count > 0)
        _mm512_mask_storeu_epi32(out, (__mmask16)((1u << count) - 1), words);
}

#endif
