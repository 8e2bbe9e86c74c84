/* The kernels for AVX-512: 8 channels x 3 vectors of pixels fill 24 of the 32 registers, and 24 products need 3 loads
 * of pixels and 8 broadcasts, which is half of what the load ports give. */
#include "simd_avx512.h"

#include "planes.h"
#include "transforms.h"
#include "vector.h"
#include "window.h"

DEFINE_BLOCK(8, 3)
DEFINE_BLOCK(8, 2)
DEFINE_BLOCK(8, 1)
DEFINE_REST(8)
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

/* Planes of 7x7 and its doubles, 14x14 to 112x112, divide into runs of 49: the odd pixel rides along. */
static NOINLINE void block_49(const subp_tile *t, ptrdiff_t at) {
    block(t, at, 3 * VF32_LANES, (block_options){.channels = 8, .vectors = 3, .extra = 1});
}
static NOINLINE void block_49_1tap(const subp_tile *t, ptrdiff_t at) {
    block(t, at, 3 * VF32_LANES, (block_options){.channels = 8, .vectors = 3, .one_tap = 1, .extra = 1});
}

void f32_ubsconv_8x48__avx512(const subp_tile *t) {
    ptrdiff_t at = 0;
    if (t->count == 3 * VF32_LANES + 1) {
        (t->taps == 1 ? block_49_1tap : block_49)(t, 0);
        return;
    }
    RUN_BLOCKS(8, 3)
    RUN_BLOCKS(8, 2)
    RUN_BLOCKS(8, 1)
    if (t->count > at && t->count - at <= TAIL_PIXELS) run_tail(t, at, t->count - at), at = t->count;
    RUN_REST(8)
}
void f32_ubsconv_4x96__avx512(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(4, 6)
    RUN_BLOCKS(4, 3)
    RUN_BLOCKS(4, 1)
    RUN_REST(4)
}
void f32_ubsconv_2x128__avx512(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(2, 8)
    RUN_BLOCKS(2, 4)
    RUN_BLOCKS(2, 1)
    RUN_REST(2)
}
void f32_ubsconv_1x128__avx512(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(1, 8)
    RUN_BLOCKS(1, 4)
    RUN_BLOCKS(1, 1)
    RUN_REST(1)
}

/* Seven rows divide the planes of networks for 224x224 images. */
DEFINE_DEPTHWISE(avx512, 3, 1, 7)
DEFINE_DEPTHWISE(avx512, 3, 2, 7)
DEFINE_DEPTHWISE(avx512, 5, 1, 7)
DEFINE_DEPTHWISE(avx512, 5, 2, 4)
DEFINE_DEPTHWISE(avx512, 7, 1, 7)
DEFINE_DEPTHWISE(avx512, 7, 2, 4)

DEFINE_TRANSFORMS(f32, avx512, 2)
DEFINE_TRANSFORMS(f32, avx512, 4)

SUBP_DEFINE_PLANES(avx512)
DEFINE_POOL(avx512)
DEFINE_HALVE(avx512)
DEFINE_PEAK(avx512)
