/* Operators of quantized integers for any CPU. */
#include "int8_planes.h"

SUBP_DEFINE_INT8_PLANES(generic)
SUBP_DEFINE_LOOKUP(generic)
