/* The kernels of uint8 activations for any CPU. */
#include "int8_depthwise.h"

SUBP_DEFINE_INT8_DEPTHWISE(generic)
