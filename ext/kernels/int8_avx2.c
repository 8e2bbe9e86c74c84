/* The int8 kernels for AVX2: 4 channels x 3 vectors fill 12 of the 16 registers. Dot products are those of pairs of
 * 16 bits, added up by another instruction. */
#include "int8_simd_avx2.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(words, weight));
}

/* The words of up to 16 pixels from two planes: numbers of 16 bits, for those cannot overflow, while sums of two
 * products of bytes can. */
enum { WORD_CHANNELS = 2, INTERLEAVE_PIXELS = 16 };

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const __m128i a = load_plane(x + offsets[0], count), b = load_plane(x + offsets[1], count);
    const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
    const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
    if (count < INTERLEAVE_PIXELS) {
        const __m256i words[2] = {low, high};
        memcpy(out, words, (size_t)count * SUBP_WORD);
    } else {
        _mm256_storeu_si256((__m256i *)out, low);
        _mm256_storeu_si256((__m256i *)(out + 32), high);
    }
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(avx2)
INT8_DEFINE_PEAK(avx2)

/* With the loop over taps GCC keeps one of 12 sums in memory. */
INT8_DEFINE_KERNEL(avx2, 4, 24, 3, 2, if (t->taps > 1) { RUN_WORD_BLOCKS(4, 2) })
INT8_DEFINE_KERNEL(avx2, 2, 32, 4, 2, )
INT8_DEFINE_KERNEL(avx2, 1, 64, 8, 4, )

/* Every second byte of 32, of which the last is not read. */
INLINE __m128i halved(__m256i bytes) {
    const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(even, even), 0x08);
    return _mm256_castsi256_si128(packed);
}

static void halve_row(const uint8_t *in, ptrdiff_t count, uint8_t *out) {
    for (; count > 16; count -= 16, in += 32, out += 16)
        _mm_storeu_si128((__m128i *)out, halved(_mm256_loadu_si256((const __m256i *)in)));
    uint8_t last[32] = {0}, bytes[16];
    memcpy(last, in, (size_t)(2 * count - 1));
    _mm_storeu_si128((__m128i *)bytes, halved(_mm256_loadu_si256((const __m256i *)last)));
    memcpy(out, bytes, (size_t)count);
}

void u8s8_halve__avx2(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                      ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        halve_row((const uint8_t *)in + y * in_step, count, (uint8_t *)out + y * out_step);
}
