/* bfloat16, the upper half of a float32, one number at a time. */
#ifndef SUBP_BFLOAT16_H
#define SUBP_BFLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float subp_from_bfloat16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline uint16_t subp_to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    if (x != x) return (uint16_t)(bits >> 16 | 0x40); /* quiet: kept bits that are all zero would be infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
