/* The kernels of bfloat16 planes for NEON. */
#include "bf16_planes.h"

SUBP_DEFINE_BF16_PLANES(neon)
