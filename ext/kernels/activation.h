/* The activations that the store can fuse: their list and their functions, in plain C so that each kernel file compiles
 * them with its own flags. A new one is a name in the list and a function here; its record in ext/operators names
 * it. */
#ifndef SUBP_ACTIVATION_H
#define SUBP_ACTIVATION_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SUBP_ACTIVATIONS(ACTIVATION)                                                                              \
    ACTIVATION(relu) ACTIVATION(relu6) ACTIVATION(silu) ACTIVATION(hardswish) ACTIVATION(hardsigmoid)             \
    ACTIVATION(sigmoid) ACTIVATION(tanh) ACTIVATION(gelu) ACTIVATION(gelu_tanh) ACTIVATION(mish) ACTIVATION(leaky_relu)

#define SUBP_ACTIVATION(name) SUBP_ACT_##name,
enum subp_activation { SUBP_ACT_none, SUBP_ACTIVATIONS(SUBP_ACTIVATION) SUBP_ACT_COUNT };
#undef SUBP_ACTIVATION

/* e^x to about 1 ulp without a branch, so that loops over it vectorise; NaN stays NaN. */
static inline float subp_exp(float x) {
    const float round_bias = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float shifted = x * 1.44269504f + round_bias;
    uint32_t bits, bias_bits;
    memcpy(&bits, &shifted, 4);
    memcpy(&bias_bits, &round_bias, 4);
    int32_t n = (int32_t)(bits - bias_bits);
    float whole = shifted - round_bias;
    /* ln 2 in two parts: the first has trailing zeros, so whole * part is exact. */
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* 2^n in two factors: n reaches past the exponent range at both ends. */
    int32_t half = n >> 1;
    uint32_t low = (uint32_t)(half + 127) << 23, high = (uint32_t)(n - half + 127) << 23;
    float scale_low, scale_high;
    memcpy(&scale_low, &low, 4);
    memcpy(&scale_high, &high, 4);
    return p * scale_low * scale_high;
}

static inline float subp_act_sigmoid(float x) { return 1.0f / (1.0f + subp_exp(-x)); }
static inline float subp_act_silu(float x) { return x / (1.0f + subp_exp(-x)); }
static inline float subp_act_relu(float x) { return x < 0.0f ? 0.0f : x; }
static inline float subp_act_relu6(float x) { return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x; }
static inline float subp_act_hardsigmoid(float x) { return subp_act_relu6(x + 3.0f) / 6.0f; }
static inline float subp_act_hardswish(float x) { return x * subp_act_relu6(x + 3.0f) / 6.0f; }
static inline float subp_act_tanh(float x) { return tanhf(x); }
static inline float subp_act_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106781f)); }
static inline float subp_act_gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
}
/* Above 20, log(1 + e^x) is x in float32, and e^x would overflow. */
static inline float subp_act_mish(float x) { return x * tanhf(x > 20.0f ? x : log1pf(subp_exp(x))); }
static inline float subp_act_leaky_relu(float x) { return x < 0.0f ? 0.01f * x : x; }

static inline void subp_activate(float *x, ptrdiff_t count, int activation) {
#define SUBP_ACTIVATION(name)                                                \
    case SUBP_ACT_##name:                                                    \
        for (ptrdiff_t i = 0; i < count; i++) x[i] = subp_act_##name(x[i]); \
        break;
    switch (activation) {
        SUBP_ACTIVATIONS(SUBP_ACTIVATION)
    default:
        break;
    }
#undef SUBP_ACTIVATION
}

#endif
