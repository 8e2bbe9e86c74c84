/* The kernels of integers for AVX2. */
#include "int8_planes.h"

SUBP_DEFINE_INT8_PLANES(avx2)
SUBP_DEFINE_LOOKUP(avx2)
