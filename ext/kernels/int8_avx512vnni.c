/* The int8 kernels for AVX-512 with dot products: 8 channels x 3 vectors of words fill 24 of the 32 registers. */
#include "int8_simd_avx512.h"

#include "int8_words.h"

/* Not the intrinsic, with which GCC 12 copies and spills the sums. */
INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(words), "v"(weight));
    return sums;
}

#include "int8_vector.h"

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
