/* The kernels of bfloat16 planes for AVX-512. */
#include "bf16_planes.h"

SUBP_DEFINE_BF16_PLANES(avx512)
