/* The int8 kernels for NEON with dot products of signed bytes: 8 channels x 3 vectors fill 24 of the 32 registers. */
#define INT8_FLIP 0x80
#include "int8_simd_neon.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return vdotq_s32(sums, vreinterpretq_s8_s32(words), vreinterpretq_s8_s32(weight));
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(neon_dotprod)
INT8_DEFINE_PEAK(neon_dotprod)

INT8_DEFINE_KERNEL(neon_dotprod, 8, 12, 3, 2, )
INT8_DEFINE_KERNEL(neon_dotprod, 4, 24, 6, 3, )
INT8_DEFINE_KERNEL(neon_dotprod, 1, 32, 8, 4, )
