/* The int8 kernels for NEON with dot products of unsigned and signed bytes. */
#define INT8_FLIP 0
#include "int8_simd_neon.h"

INLINE vi32 vi32_dot(vi32 sums, vi32 words, vi32 weight) {
    return vusdotq_s32(sums, vreinterpretq_u8_s32(words), vreinterpretq_s8_s32(weight));
}

#include "int8_vector.h"

INT8_DEFINE_INTERLEAVE(neon_i8mm)
INT8_DEFINE_PEAK(neon_i8mm)

INT8_DEFINE_KERNEL(neon_i8mm, 8, 12, 3, 2, )
INT8_DEFINE_KERNEL(neon_i8mm, 4, 24, 6, 3, )
INT8_DEFINE_KERNEL(neon_i8mm, 1, 32, 8, 4, )
