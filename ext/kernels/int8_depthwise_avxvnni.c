/* Depthwise convolutions of uint8 for AVX2 with AVX-VNNI. */
#define SUBP_VNNI
#include "simd_bytes_avx2.h"

#include "int8_depthwise.h"
#include "int8_window.h"

SUBP_DEFINE_INT8_DEPTHWISE(avxvnni)
DEFINE_INT8_DEPTHWISE(avxvnni, 3, 1, 1)
DEFINE_INT8_DEPTHWISE(avxvnni, 3, 2, 1)
DEFINE_INT8_DEPTHWISE(avxvnni, 5, 1, 1)
DEFINE_INT8_DEPTHWISE(avxvnni, 5, 2, 1)
DEFINE_INT8_DEPTHWISE(avxvnni, 7, 1, 1)
DEFINE_INT8_DEPTHWISE(avxvnni, 7, 2, 1)
