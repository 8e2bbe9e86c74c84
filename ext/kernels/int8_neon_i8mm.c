/* The int8 kernels for NEON with dot products of unsigned and signed bytes. */
#define INT8_FLIP 0
#include "int8_simd_neon.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return vusdotq_s32(sums, vreinterpretq_u8_s32(words), vreinterpretq_s8_s32(weight));
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(neon_i8mm)
INT8_DEFINE_PEAK(neon_i8mm)

INT8_DEFINE_BLOCK(8, 3)
INT8_DEFINE_BLOCK(8, 2)
INT8_DEFINE_BLOCK(8, 1)
INT8_DEFINE_REST(8)
INT8_DEFINE_BLOCK(4, 6)
INT8_DEFINE_BLOCK(4, 3)
INT8_DEFINE_BLOCK(4, 1)
INT8_DEFINE_REST(4)
INT8_DEFINE_BLOCK(1, 8)
INT8_DEFINE_BLOCK(1, 4)
INT8_DEFINE_BLOCK(1, 1)
INT8_DEFINE_REST(1)

void u8s8_ubsconv_8x12__neon_i8mm(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(8, 3)
    INT8_RUN_BLOCKS(8, 2)
    INT8_RUN_BLOCKS(8, 1)
    INT8_RUN_REST(8, u8s8_interleave__neon_i8mm)
}

void u8s8_ubsconv_4x24__neon_i8mm(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(4, 6)
    INT8_RUN_BLOCKS(4, 3)
    INT8_RUN_BLOCKS(4, 1)
    INT8_RUN_REST(4, u8s8_interleave__neon_i8mm)
}

void u8s8_ubsconv_1x32__neon_i8mm(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(1, 8)
    INT8_RUN_BLOCKS(1, 4)
    INT8_RUN_BLOCKS(1, 1)
    INT8_RUN_REST(1, u8s8_interleave__neon_i8mm)
}
