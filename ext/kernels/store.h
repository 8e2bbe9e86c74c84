/* The store of a tile of accumulators: bias, residual, activation, and the columns that are no pixels left out. */
#ifndef SUBP_STORE_H
#define SUBP_STORE_H

#include "activation.h"

/* acc is [channels][acc_step]; its column i is flat pixel first + i, for i < count. */
static inline void subp_store_tile(const subp_store *s, const float *acc, ptrdiff_t acc_step, int32_t channels,
                                   ptrdiff_t first, ptrdiff_t count) {
    ptrdiff_t y = first / s->pitch, x = first % s->pitch, done = 0;
    while (done < count) {
        ptrdiff_t run = s->pitch - x < count - done ? s->pitch - x : count - done;
        ptrdiff_t kept = s->width - x < run ? s->width - x : run; /* not positive: padding columns only */
        for (int32_t c = 0; c < channels && kept > 0; c++) {
            ptrdiff_t at = c * s->channel_stride + y * s->width + x;
            const float *in = acc + c * acc_step + done;
            float *out = s->out + at, bias = s->bias ? s->bias[c] : 0.0f;
            if (s->residual) {
                const float *residual = s->residual + at;
                for (ptrdiff_t i = 0; i < kept; i++) out[i] = in[i] + bias + residual[i];
            } else {
                for (ptrdiff_t i = 0; i < kept; i++) out[i] = in[i] + bias;
            }
            subp_activate(out, kept, s->activation);
        }
        done += run;
        x = 0;
        y++;
    }
}

#endif
