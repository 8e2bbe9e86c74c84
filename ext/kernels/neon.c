/* The kernels for NEON of 64-bit Arm: 8 channels x 3 vectors of pixels fill 24 of the 32 registers, and 24
 * products need 3 loads of pixels and 2 of values, which the products take lane by lane. */
#include "simd_neon.h"

#include "planes.h"
#include "transforms.h"
#include "vector.h"
#include "window.h"

DEFINE_BLOCK(8, 3)
DEFINE_BLOCK(8, 2)
DEFINE_BLOCK(8, 1)
DEFINE_BLOCK(4, 6)
DEFINE_BLOCK(4, 3)
DEFINE_BLOCK(4, 1)
DEFINE_REST(4)
DEFINE_BLOCK(2, 8)
DEFINE_BLOCK(2, 4)
DEFINE_BLOCK(2, 1)
DEFINE_REST(2)
DEFINE_BLOCK(1, 8)
DEFINE_BLOCK(1, 4)
DEFINE_BLOCK(1, 1)
DEFINE_REST(1)

void f32_ubsconv_8x12__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(8, 3)
    RUN_BLOCKS(8, 2)
    RUN_BLOCKS(8, 1)
    if (at < t->count) run_tail(t, at, t->count - at);
}
void f32_ubsconv_4x24__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(4, 6)
    RUN_BLOCKS(4, 3)
    RUN_BLOCKS(4, 1)
    RUN_REST(4)
}
void f32_ubsconv_2x32__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(2, 8)
    RUN_BLOCKS(2, 4)
    RUN_BLOCKS(2, 1)
    RUN_REST(2)
}
void f32_ubsconv_1x32__neon(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(1, 8)
    RUN_BLOCKS(1, 4)
    RUN_BLOCKS(1, 1)
    RUN_REST(1)
}

/* Seven rows divide the planes of networks for 224x224 images. */
DEFINE_DEPTHWISE(neon, 3, 1, 7)
DEFINE_DEPTHWISE(neon, 3, 2, 7)
DEFINE_DEPTHWISE(neon, 5, 1, 4)
DEFINE_DEPTHWISE(neon, 5, 2, 4)
DEFINE_DEPTHWISE(neon, 7, 1, 4)
DEFINE_DEPTHWISE(neon, 7, 2, 4)

DEFINE_TRANSFORMS(f32, neon, 2)
DEFINE_TRANSFORMS(f32, neon, 4)

SUBP_DEFINE_PLANES(neon)
DEFINE_POOL(neon)
DEFINE_HALVE(neon)
DEFINE_PEAK(neon)
