/* Depthwise convolutions of uint8 for any CPU. */
#include "int8_depthwise.h"

SUBP_DEFINE_INT8_DEPTHWISE(generic)
