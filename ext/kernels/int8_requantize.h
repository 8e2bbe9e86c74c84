/* What becomes of int32 sums, one after the other and on any CPU; kernels.h has the formula. */
#ifndef SUBP_INT8_REQUANTIZE_H
#define SUBP_INT8_REQUANTIZE_H

#include <math.h>

#include "kernels.h"

/* clamp(rne(real) + zero, low, high). Numbers far beyond the bounds are brought near them first, where adding and
 * taking away 1.5 * 2**23 rounds: that is the same on every CPU, and becomes vectors. */
static inline uint8_t subp_stored(float real, const subp_requantize *q) {
    const float limit = 1024.0f, whole = 12582912.0f;
    real = real < -limit ? -limit : real > limit ? limit : real;
    const int32_t stored = (int32_t)(real + whole - whole) + q->zero;
    return (uint8_t)(stored < q->low ? q->low : stored > q->high ? q->high : stored);
}

/* A run of pixels of one channel; `residual` may be `out`, or NULL. */
static inline void subp_requantize_run(const subp_requantize *q, const int32_t *sums, float factor,
                                       const uint8_t *residual, uint8_t *out, ptrdiff_t count) {
    const subp_requantize own = *q; /* which no store can change */
    if (residual)
        for (ptrdiff_t i = 0; i < count; i++)
            out[i] = subp_stored(
                fmaf((float)(residual[i] - own.residual_zero), own.residual_factor, (float)sums[i] * factor), &own);
    else
        for (ptrdiff_t i = 0; i < count; i++) out[i] = subp_stored((float)sums[i] * factor, &own);
}

#endif
