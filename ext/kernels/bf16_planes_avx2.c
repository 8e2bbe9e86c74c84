/* The kernels of bfloat16 planes for AVX2. */
#include "bf16_planes.h"

SUBP_DEFINE_BF16_PLANES(avx2)
