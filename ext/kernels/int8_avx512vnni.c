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

#include "int8_vector.h"

INT8_DEFINE_ODD(8, 3)
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
    INT8_RUN_ODD(8, 3)
    INT8_RUN_BLOCKS(8, 3)
    INT8_RUN_BLOCKS(8, 2)
    INT8_RUN_BLOCKS(8, 1)
    INT8_RUN_REST(8)
}
void u8s8_ubsconv_4x96__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(4, 6)
    INT8_RUN_BLOCKS(4, 3)
    INT8_RUN_BLOCKS(4, 1)
    INT8_RUN_REST(4)
}
void u8s8_ubsconv_2x128__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(2, 8)
    INT8_RUN_BLOCKS(2, 4)
    INT8_RUN_BLOCKS(2, 1)
    INT8_RUN_REST(2)
}
void u8s8_ubsconv_1x128__avx512vnni(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(1, 8)
    INT8_RUN_BLOCKS(1, 4)
    INT8_RUN_BLOCKS(1, 1)
    INT8_RUN_REST(1)
}

void u8s8_interleave__avx512vnni(const subp_interleave *s) {
    const ptrdiff_t words = subp_words(s->kept, 4);
    for (ptrdiff_t w = 0; w < words; w++) {
        const uint8_t *planes[4];
        uint8_t *out = s->out + w * s->word_stride * SUBP_WORD;
        subp_word_planes(s, w, 4, planes);
        for (ptrdiff_t at = 0; at < s->count; at += 64) {
            const uint8_t *const from[4] = {planes[0] + at, planes[1] + at, planes[2] + at, planes[3] + at};
            interleave_quads(from, s->count - at, out + at * SUBP_WORD);
        }
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

/* The even bytes of what is read of the next ones. */
static void halve_row(const uint8_t *in, ptrdiff_t count, uint8_t *out) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), low = _mm512_set1_epi16(0xff);
    for (; count > 0; count -= 64, in += 128, out += 64) {
        const ptrdiff_t wanted = 2 * count - 1;
        const __mmask64 a = wanted >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << wanted) - 1;
        const __mmask64 b = wanted >= 128 ? ~(__mmask64)0 : wanted > 64 ? ((__mmask64)1 << (wanted - 64)) - 1 : 0;
        const __m512i even_a = _mm512_and_si512(_mm512_maskz_loadu_epi8(a, in), low);
        const __m512i even_b = _mm512_and_si512(_mm512_maskz_loadu_epi8(b, in + 64), low);
        const __m512i bytes = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(even_a, even_b));
        store_first(out, bytes, count < 64 ? (int)count : 64);
    }
}

void u8s8_halve__avx512vnni(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                            ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++)
        halve_row((const uint8_t *)in + y * in_step, count, (uint8_t *)out + y * out_step);
}
