/* The int8 kernels for AVX2: 4 channels x 3 vectors fill 12 of the 16 registers. Dot products are those of pairs of
 * 16 bits, added up by another instruction. */
#include "int8_simd_avx2.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(words, weight));
}

#include "int8_pairs.h"
#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(avx2)
INT8_DEFINE_PEAK(avx2)

INT8_DEFINE_BLOCK(4, 3)
INT8_DEFINE_BLOCK(4, 2)
INT8_DEFINE_BLOCK(4, 1)
INT8_DEFINE_REST(4)
INT8_DEFINE_BLOCK(2, 4)
INT8_DEFINE_BLOCK(2, 2)
INT8_DEFINE_BLOCK(2, 1)
INT8_DEFINE_REST(2)
INT8_DEFINE_BLOCK(1, 8)
INT8_DEFINE_BLOCK(1, 4)
INT8_DEFINE_BLOCK(1, 1)
INT8_DEFINE_REST(1)

void u8s8_ubsconv_4x24__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(4, 3)
    INT8_RUN_BLOCKS(4, 2)
    INT8_RUN_BLOCKS(4, 1)
    INT8_RUN_REST(4, u8s8_interleave__avx2)
}

void u8s8_ubsconv_2x32__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(2, 4)
    INT8_RUN_BLOCKS(2, 2)
    INT8_RUN_BLOCKS(2, 1)
    INT8_RUN_REST(2, u8s8_interleave__avx2)
}

void u8s8_ubsconv_1x64__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(1, 8)
    INT8_RUN_BLOCKS(1, 4)
    INT8_RUN_BLOCKS(1, 1)
    INT8_RUN_REST(1, u8s8_interleave__avx2)
}
