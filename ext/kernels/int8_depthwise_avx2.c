/* Depthwise convolutions of uint8 for AVX2. */
#include "simd_bytes_avx2.h"

#include "int8_depthwise.h"
#include "int8_window.h"

SUBP_DEFINE_INT8_DEPTHWISE(avx2)
DEFINE_INT8_DEPTHWISE(avx2, 3, 1, 1)
DEFINE_INT8_DEPTHWISE(avx2, 3, 2, 1)
DEFINE_INT8_DEPTHWISE(avx2, 5, 1, 1)
DEFINE_INT8_DEPTHWISE(avx2, 5, 2, 1)
DEFINE_INT8_DEPTHWISE(avx2, 7, 1, 1)
DEFINE_INT8_DEPTHWISE(avx2, 7, 2, 1)
