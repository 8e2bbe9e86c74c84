/* The kernels of integers for NEON. */
#include "int8_planes.h"

SUBP_DEFINE_INT8_PLANES(neon)
SUBP_DEFINE_LOOKUP(neon)
