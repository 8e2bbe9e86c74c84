/* Depthwise convolutions of uint8 for AVX-512. */
#include "simd_bytes_avx512.h"

#include "int8_depthwise.h"
#include "int8_window.h"

SUBP_DEFINE_INT8_DEPTHWISE(avx512)
DEFINE_INT8_DEPTHWISE(avx512, 3, 1, 4)
DEFINE_INT8_DEPTHWISE(avx512, 3, 2, 2)
DEFINE_INT8_DEPTHWISE(avx512, 5, 1, 2)
DEFINE_INT8_DEPTHWISE(avx512, 5, 2, 2)
DEFINE_INT8_DEPTHWISE(avx512, 7, 1, 1)
DEFINE_INT8_DEPTHWISE(avx512, 7, 2, 1)
