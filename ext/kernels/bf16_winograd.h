/* Winograd's transforms of bfloat16 planes: in float32, as the products between them are, for bfloat16 would lose too
 * much there. Weights are transformed when they are wanted, for as transformed float32 they take 4 to 8 times the
 * memory. Included by a kernel set's file after its simd_<set>.h and the numbers of planes that transforms.h wants. */
#ifndef SUBP_BF16_WINOGRAD_H
#define SUBP_BF16_WINOGRAD_H

#include <string.h>

#include "transforms.h"

enum { EIGHT = SUBP_WINOGRAD_CHANNELS, TAPS = 3 };
typedef float eight __attribute__((vector_size(EIGHT * sizeof(float))));
typedef uint32_t eight_bits __attribute__((vector_size(EIGHT * sizeof(uint32_t))));
typedef uint16_t eight_halves __attribute__((vector_size(EIGHT * sizeof(uint16_t))));

INLINE eight weights_load(const uint16_t *p, ptrdiff_t count) {
    eight_halves halves = {0};
    eight x;
    memcpy(&halves, p, (size_t)count * sizeof(uint16_t));
    const eight_bits bits = __builtin_convertvector(halves, eight_bits) << 16;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* One dimension of the kernels' transform, as of KERNEL_TRANSFORMS in winograd.py. */
INLINE void transform_weights(eight y[MAX_SIDE], const eight g[TAPS], int size) {
    if (size == 2) {
        const eight even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
        y[0] = g[0], y[1] = even + odd, y[2] = even - odd, y[3] = g[2];
    } else {
        const eight even = (-1.0f / 6) * (g[0] + g[2]), odd = (1.0f / 6) * g[1];
        const eight far_even = (1.0f / 24) * g[0] + (1.0f / 6) * g[2], far_odd = (1.0f / 12) * g[1];
        y[0] = 0.25f * g[0], y[1] = even - odd, y[2] = even + odd;
        y[3] = far_even + far_odd, y[4] = far_even - far_odd, y[5] = g[2];
    }
}

/* Kernels [kept][9], `block` channels each and `count` of them wanted, to [positions][kept][count]. */
INLINE void weights_in(const uint16_t *values, ptrdiff_t kept, ptrdiff_t block, ptrdiff_t count, ptrdiff_t stride,
                       float *out, int size) {
    const int side = size + 2;
    for (ptrdiff_t k = 0; k < kept; k++, values += TAPS * TAPS * block, out += count) {
        eight rows[TAPS][MAX_SIDE]; /* transformed along j, or the columns of g */
        UNROLL for (int i = 0; i < TAPS; i++) {
            eight g[TAPS];
            UNROLL for (int j = 0; j < TAPS; j++) g[j] = weights_load(values + (i * TAPS + j) * block, count);
            transform_weights(rows[i], g, size);
        }
        UNROLL for (int j = 0; j < side; j++) {
            eight column[TAPS], y[MAX_SIDE];
            UNROLL for (int i = 0; i < TAPS; i++) column[i] = rows[i][j];
            transform_weights(y, column, size);
            UNROLL for (int i = 0; i < side; i++)
                memcpy(out + (i * side + j) * stride, &y[i], (size_t)count * sizeof(float));
        }
    }
}

#define DEFINE_WINOGRAD_WEIGHTS(set, size)                                                                         \
    void bf16_winograd_weights_##size##x##size##__##set(const void *values, ptrdiff_t kept, ptrdiff_t block,       \
                                                        ptrdiff_t count, ptrdiff_t stride, float *out) {           \
        if (count == EIGHT)                                                                                        \
            weights_in(values, kept, block, EIGHT, stride, out, size);                                             \
        else                                                                                                       \
            weights_in(values, kept, block, count, stride, out, size);                                             \
    }

#endif
