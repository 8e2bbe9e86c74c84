/* The store of a tile of accumulators: bias, residual, activation. */
#ifndef SUBP_STORE_H
#define SUBP_STORE_H

#include "activation.h"
#include "kernels.h"

/* acc is [channels][acc_step]; its column i is pixel at + i of the tile's run, for i < count. */
static inline void subp_store_block(const subp_tile *t, const float *acc, ptrdiff_t acc_step, ptrdiff_t at,
                                    ptrdiff_t count) {
    for (int32_t c = 0; c < t->channels; c++, acc += acc_step) {
        const ptrdiff_t from = t->out_offsets[c] + at;
        float *out = (float *)t->out + from, bias = t->bias ? t->bias[c] : 0.0f;
        if (t->residual) {
            const float *residual = (const float *)t->residual + from;
            for (ptrdiff_t i = 0; i < count; i++) out[i] = acc[i] + bias + residual[i];
        } else {
            for (ptrdiff_t i = 0; i < count; i++) out[i] = acc[i] + bias;
        }
        subp_activate(out, count, t->activation);
    }
}

#endif
