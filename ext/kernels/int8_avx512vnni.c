/* The int8 kernels for AVX-512 with dot products: 8 channels x 3 vectors of words fill 24 of the 32 registers. */
#include "int8_simd_avx512.h"

#include "int8_words.h"

/* Not the intrinsic, with which GCC 12 copies and spills the sums. */
INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(words), "v"(weight));
    return sums;
}

INLINE ci32 ci32_dot(ci32 sums, const uint8_t *word, const uint8_t *weights) {
    int32_t pixel;
    memcpy(&pixel, word, sizeof(pixel));
    const __m256i x = _mm256_set1_epi32(pixel), w = _mm256_loadu_si256((const __m256i *)weights);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(w));
    return sums;
}

enum { INT8_INTERLEAVE = 4 }; /* channels of a word */

#include "int8_vector.h"

INT8_DEFINE_ODD(8, 3)
INT8_DEFINE_AHEAD(8, 3)
INT8_DEFINE_BLOCK(8, 3)
INT8_DEFINE_BLOCK(8, 2)
INT8_DEFINE_BLOCK(8, 1)
INT8_DEFINE_REST(8)
INT8_DEFINE_BLOCK(4, 6)
INT8_DEFINE_BLOCK(4, 3)
INT8_DEFINE_BLOCK(4, 1)
INT8_DEFINE_REST(4)
INT8_DEFINE_BLOCK(2, 8)
INT8_DEFINE_BLOCK(2, 4)
INT8_DEFINE_BLOCK(2, 1)
INT8_DEFINE_REST(2)
INT8_DEFINE_BLOCK(1, 8)
INT8_DEFINE_BLOCK(1, 4)
INT8_DEFINE_BLOCK(1, 1)
INT8_DEFINE_REST(1)

void u8s8_ubsconv_8x48__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_AHEAD(8, 3)
    INT8_RUN_ODD(8, 3)
    INT8_RUN_BLOCKS(8, 3)
    INT8_RUN_BLOCKS(8, 2)
    INT8_RUN_BLOCKS(8, 1)
    INT8_RUN_REST(8, u8s8_interleave__avx512vnni)
}
void u8s8_ubsconv_4x96__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(4, 6)
    INT8_RUN_BLOCKS(4, 3)
    INT8_RUN_BLOCKS(4, 1)
    INT8_RUN_REST(4, u8s8_interleave__avx512vnni)
}
void u8s8_ubsconv_2x128__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(2, 8)
    INT8_RUN_BLOCKS(2, 4)
    INT8_RUN_BLOCKS(2, 1)
    INT8_RUN_REST(2, u8s8_interleave__avx512vnni)
}
void u8s8_ubsconv_1x128__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(1, 8)
    INT8_RUN_BLOCKS(1, 4)
    INT8_RUN_BLOCKS(1, 1)
    INT8_RUN_REST(1, u8s8_interleave__avx512vnni)
}

void u8s8_interleave__avx512vnni(const subp_interleave *s) {
    for (ptrdiff_t w = 0; w < s->words; w++)
        for (ptrdiff_t c = 0; c < s->copies; c++) {
            const int32_t *offsets = subp_word_channels(s, w, 4);
            const uint8_t *in = s->x + c * s->in_copy;
            uint8_t *out = subp_word_at(s, w, c);
            for (ptrdiff_t at = 0; at < s->count; at += 64)
                interleave_block(in + at, offsets, s->count - at, out + at * SUBP_WORD);
        }
}

/* What the units for dot products can do: as `peak` of vector.h. */
enum { PEAK_CHAINS = 12 };

ptrdiff_t u8s8_peak__avx512vnni(ptrdiff_t rounds, float factor) {
    vi32 chains[PEAK_CHAINS], ones = _mm512_set1_epi8(factor < 1.0f);
    UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vi32_splat(i);
    for (ptrdiff_t r = 0; r < rounds; r++)
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chains[i] = vi32_dot(chains[i], ones, ones);
    for (int i = 1; i < PEAK_CHAINS; i++) chains[0] = _mm512_add_epi32(chains[0], chains[i]);
    return _mm512_reduce_add_epi32(chains[0]) == 1 ? 0 : 2 * PEAK_CHAINS * VI32_LANES * SUBP_WORD;
}

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
