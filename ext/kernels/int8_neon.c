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

INT8_DEFINE_KERNEL(neon, 8, 12, 3, 2, )
INT8_DEFINE_KERNEL(neon, 4, 24, 6, 3, )
INT8_DEFINE_KERNEL(neon, 1, 32, 8, 4, )
