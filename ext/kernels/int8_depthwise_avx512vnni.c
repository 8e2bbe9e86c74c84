/* Depthwise convolutions of uint8 for AVX-512 with VNNI. */
#define SUBP_VNNI
#include "simd_bytes_avx512.h"

#include "int8_depthwise.h"
#include "int8_window.h"

SUBP_DEFINE_INT8_DEPTHWISE(avx512vnni)
DEFINE_INT8_DEPTHWISE(avx512vnni, 3, 1, 4)
DEFINE_INT8_DEPTHWISE(avx512vnni, 3, 2, 2)
DEFINE_INT8_DEPTHWISE(avx512vnni, 5, 1, 2)
DEFINE_INT8_DEPTHWISE(avx512vnni, 5, 2, 2)
DEFINE_INT8_DEPTHWISE(avx512vnni, 7, 1, 2)
DEFINE_INT8_DEPTHWISE(avx512vnni, 7, 2, 2)
