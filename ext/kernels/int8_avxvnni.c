/* The int8 kernels for AVX-VNNI, dot products in 16 registers of 256 bits: 4 channels x 3 vectors fill 12 of them. */
#include "int8_simd_avx2.h"

/* Not the intrinsic: see int8_avx512vnni.c. */
INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(words), "x"(weight));
    return sums;
}

/* The words of up to 16 pixels from four planes. */
enum { WORD_CHANNELS = 4, INTERLEAVE_PIXELS = 16 };

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const __m128i a = load_plane(x + offsets[0], count), b = load_plane(x + offsets[1], count);
    const __m128i c = load_plane(x + offsets[2], count), d = load_plane(x + offsets[3], count);
    const __m128i ab_low = _mm_unpacklo_epi8(a, b), ab_high = _mm_unpackhi_epi8(a, b);
    const __m128i cd_low = _mm_unpacklo_epi8(c, d), cd_high = _mm_unpackhi_epi8(c, d);
    const __m128i words[4] = {_mm_unpacklo_epi16(ab_low, cd_low), _mm_unpackhi_epi16(ab_low, cd_low),
                              _mm_unpacklo_epi16(ab_high, cd_high), _mm_unpackhi_epi16(ab_high, cd_high)};
    memcpy(out, words, (size_t)(count < INTERLEAVE_PIXELS ? count : INTERLEAVE_PIXELS) * SUBP_WORD);
}


#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(avxvnni)
INT8_DEFINE_PEAK(avxvnni)

INT8_DEFINE_KERNEL(avxvnni, 4, 24, 3, 2, )
INT8_DEFINE_KERNEL(avxvnni, 2, 32, 4, 2, )
INT8_DEFINE_KERNEL(avxvnni, 1, 64, 8, 4, )
