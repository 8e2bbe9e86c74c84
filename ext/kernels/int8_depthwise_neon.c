/* Depthwise convolutions of uint8 for NEON. */
#include "simd_bytes_neon.h"

#include "int8_depthwise.h"
#include "int8_window.h"

SUBP_DEFINE_INT8_DEPTHWISE(neon)
DEFINE_INT8_DEPTHWISE(neon, 3, 1, 1)
DEFINE_INT8_DEPTHWISE(neon, 3, 2, 1)
DEFINE_INT8_DEPTHWISE(neon, 5, 1, 1)
DEFINE_INT8_DEPTHWISE(neon, 5, 2, 1)
DEFINE_INT8_DEPTHWISE(neon, 7, 1, 1)
DEFINE_INT8_DEPTHWISE(neon, 7, 2, 1)
