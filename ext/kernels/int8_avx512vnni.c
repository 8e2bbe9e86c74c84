/* The int8 kernels for AVX-512 with dot products: 8 channels x 3 vectors of words fill 24 of the 32 registers. */
#include "int8_simd_avx512.h"
#include "words_avx512.h"

/* Not the intrinsic, with which GCC 12 copies and spills the sums. */
INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(words), "v"(weight));
    return sums;
}

INLINE ci32 ci32_dot(ci32 sums, const uint8_t *word, const uint8_t *weights) {
    const __m256i x = ci32_word(word), w = ci32_weights(weights);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w));
    return sums;
}

/* The words of up to 64 pixels from four planes. */
enum { WORD_CHANNELS = 4, INTERLEAVE_PIXELS = 64 };

INLINE __m512i load_plane(const uint8_t *p, ptrdiff_t count) {
    /* Unpacking works within quarters of a vector: with the 4x4 groups of four bytes transposed, pixels stay in
     * order. */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i x = count >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(((__mmask64)1 << count) - 1, p);
    return _mm512_permutexvar_epi32(order, x);
}

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const __m512i a = load_plane(x + offsets[0], count), b = load_plane(x + offsets[1], count);
    const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    const __m512i c = load_plane(x + offsets[2], count), d = load_plane(x + offsets[3], count);
    const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
    store_words(out, _mm512_unpacklo_epi16(ab_low, cd_low), count);
    store_words(out + 64, _mm512_unpackhi_epi16(ab_low, cd_low), count - 16);
    store_words(out + 128, _mm512_unpacklo_epi16(ab_high, cd_high), count - 32);
    store_words(out + 192, _mm512_unpackhi_epi16(ab_high, cd_high), count - 48);
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(avx512vnni)
INT8_DEFINE_PEAK(avx512vnni)

DEFINE_WORDS_ODD(8, 3)
DEFINE_WORDS_AHEAD(8, 3)
INT8_DEFINE_KERNEL(avx512vnni, 8, 48, 3, 2, WORDS_AHEAD(8, 3) WORDS_ODD(8, 3))
INT8_DEFINE_KERNEL(avx512vnni, 4, 96, 6, 3, )
INT8_DEFINE_KERNEL(avx512vnni, 2, 128, 8, 4, )
INT8_DEFINE_KERNEL(avx512vnni, 1, 128, 8, 4, )

/* Every second byte, and nothing behind the last. */
static void halve_row(const uint8_t *in, ptrdiff_t count, uint8_t *out) {
    for (; count >= 33; count -= 32, in += 64, out += 32)
        _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi16_epi8(_mm512_loadu_si512(in)));
    const __m512i last = _mm512_maskz_loadu_epi8(((__mmask64)1 << (2 * count - 1)) - 1, in);
    _mm256_mask_storeu_epi8(out, (__mmask32)(((uint64_t)1 << count) - 1), _mm512_cvtepi16_epi8(last));
}

void u8s8_halve__avx512vnni(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                            ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        halve_row((const uint8_t *)in + y * in_step, count, (uint8_t *)out + y * out_step);
}
