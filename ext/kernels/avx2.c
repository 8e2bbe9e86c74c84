/* The kernels for AVX2 with FMA: 4 channels x 3 vectors of pixels fill 12 of the 16 registers; the pixels and one
 * broadcast value take the other four. */
#include "simd_avx2.h"

#include "planes.h"
#include "transforms.h"
#include "vector.h"
#include "window.h"

DEFINE_BLOCK(4, 3)
DEFINE_BLOCK(4, 2)
DEFINE_BLOCK(4, 1)
DEFINE_REST(4)
DEFINE_BLOCK(2, 6)
DEFINE_BLOCK(2, 3)
DEFINE_BLOCK(2, 1)
DEFINE_REST(2)
DEFINE_BLOCK(1, 8)
DEFINE_BLOCK(1, 4)
DEFINE_BLOCK(1, 1)
DEFINE_REST(1)

void f32_ubsconv_4x24__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(4, 3)
    RUN_BLOCKS(4, 2)
    RUN_BLOCKS(4, 1)
    if (t->count > at && t->count - at <= TAIL_PIXELS) run_tail(t, at, t->count - at), at = t->count;
    RUN_REST(4)
}
void f32_ubsconv_2x48__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(2, 6)
    RUN_BLOCKS(2, 3)
    RUN_BLOCKS(2, 1)
    RUN_REST(2)
}
void f32_ubsconv_1x64__avx2(const subp_tile *t) {
    ptrdiff_t at = 0;
    RUN_BLOCKS(1, 8)
    RUN_BLOCKS(1, 4)
    RUN_BLOCKS(1, 1)
    RUN_REST(1)
}

DEFINE_DEPTHWISE(avx2, 3, 1, 4)
DEFINE_DEPTHWISE(avx2, 3, 2, 4)
DEFINE_DEPTHWISE(avx2, 5, 1, 4)
DEFINE_DEPTHWISE(avx2, 5, 2, 4)
DEFINE_DEPTHWISE(avx2, 7, 1, 4)
DEFINE_DEPTHWISE(avx2, 7, 2, 4)

DEFINE_TRANSFORMS(f32, avx2, 2)
DEFINE_TRANSFORMS(f32, avx2, 4)

SUBP_DEFINE_PLANES(avx2)
DEFINE_POOL(avx2)
DEFINE_HALVE(avx2)
DEFINE_PEAK(avx2)
