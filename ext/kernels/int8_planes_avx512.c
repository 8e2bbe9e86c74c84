/* The kernels of integers for AVX-512. */
#include "int8_planes.h"

SUBP_DEFINE_INT8_PLANES(avx512)
SUBP_DEFINE_LOOKUP(avx512)
