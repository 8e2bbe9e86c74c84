/* The int8 kernels for NEON without dot products. Two products of signed bytes still fit 16 bits: 2 * 128 * 127. */
#define INT8_FLIP 0x80
#include "int8_simd_neon.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    const int8x16_t x = vreinterpretq_s8_s32(words), w = vreinterpretq_s8_s32(weight);
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w)), high = vmull_high_s8(x, w);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(neon)
INT8_DEFINE_PEAK(neon)

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

void u8s8_ubsconv_8x12__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(8, 3)
    INT8_RUN_BLOCKS(8, 2)
    INT8_RUN_BLOCKS(8, 1)
    INT8_RUN_REST(8, u8s8_interleave__neon)
}

void u8s8_ubsconv_4x24__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(4, 6)
    INT8_RUN_BLOCKS(4, 3)
    INT8_RUN_BLOCKS(4, 1)
    INT8_RUN_REST(4, u8s8_interleave__neon)
}

void u8s8_ubsconv_1x32__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    INT8_RUN_BLOCKS(1, 8)
    INT8_RUN_BLOCKS(1, 4)
    INT8_RUN_BLOCKS(1, 1)
    INT8_RUN_REST(1, u8s8_interleave__neon)
}
