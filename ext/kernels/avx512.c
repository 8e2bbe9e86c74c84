/* The kernels for AVX-512: 8 channels x 3 vectors of pixels fill 24 of the 32 registers, and 24 products need 3 loads
 * of pixels and 8 broadcasts, which is half of what the load ports give. */
#include <immintrin.h>

enum { LANES = 16, TAIL_CHANNELS = 8 };
typedef __m512 vec;
typedef __mmask16 lanes, span;
typedef __m256 cvec;

static inline lanes first_lanes(int n) { return (lanes)((1u << n) - 1); }
static inline vec load(const float *p) { return _mm512_loadu_ps(p); }
static inline vec load_lanes(const float *p, lanes m) { return _mm512_maskz_loadu_ps(m, p); }
static inline void store(float *p, vec x) { _mm512_storeu_ps(p, x); }
static inline void store_lanes(float *p, vec x, lanes m) { _mm512_mask_storeu_ps(p, m, x); }
static inline vec splat(float x) { return _mm512_set1_ps(x); }
static inline vec madd(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec relu(vec x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }
static inline vec relu6(vec x) { return _mm512_min_ps(_mm512_set1_ps(6.0f), relu(x)); }
static inline vec evens(vec a, vec b) {
    const __m512i lane = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vec odds(vec a, vec b) {
    const __m512i lane = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec next_lanes(vec a, vec b) {
    return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(b), _mm512_castps_si512(a), 1));
}
static inline vec low_pairs(vec a, vec b) {
    const __m512i lane = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, lane, b);
}
static inline vec high_pairs(vec a, vec b) {
    const __m512i lane = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, lane, b);
}
#define LANE_ORDER __m512i
static inline LANE_ORDER close_gap(int n) { /* n lanes, then those from the middle on */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mask_add_epi32(lane, (__mmask16)(0xffffu << n), lane, _mm512_set1_epi32(8 - n));
}
static inline LANE_ORDER open_gap(int n) { /* from the middle on what follows n lanes */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mask_sub_epi32(lane, 0xff00, lane, _mm512_set1_epi32(8 - n));
}
static inline vec reorder(vec a, LANE_ORDER order) { return _mm512_permutexvar_ps(order, a); }
static inline span between(int from, int to) { return (span)(((1u << to) - 1) & ~((1u << from) - 1)); }
static inline vec load_span(const float *p, span s, vec fill) { return _mm512_mask_loadu_ps(fill, s, p); }
static inline vec maximum(vec a, vec b) { /* max alone gives b if a is NaN */
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
static inline cvec cload(const float *p) { return _mm256_loadu_ps(p); }
static inline void cstore(float *p, cvec x) { _mm256_storeu_ps(p, x); }
static inline cvec csplat(float x) { return _mm256_set1_ps(x); }
static inline cvec cmadd(cvec a, cvec b, cvec c) { return _mm256_fmadd_ps(a, b, c); }
static inline cvec cadd(cvec a, cvec b) { return _mm256_add_ps(a, b); }
static inline cvec crelu(cvec x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
static inline cvec crelu6(cvec x) { return _mm256_min_ps(_mm256_set1_ps(6.0f), crelu(x)); }

#include "planes.h"
#include "vector.h"
#include "window.h"
#include "transforms.h"

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
static NOINLINE void block_49(const subp_tile *t, ptrdiff_t at) { block(t, at, 8, 3, 0, 0, 1, 0, 3 * LANES); }
static NOINLINE void block_49_1tap(const subp_tile *t, ptrdiff_t at) { block(t, at, 8, 3, 0, 1, 1, 0, 3 * LANES); }

void f32_ubsconv_8x48__avx512(const subp_tile *t) {
    ptrdiff_t at = 0;
    if (t->count == 3 * LANES + 1) {
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

DEFINE_TRANSFORMS(avx512, 2)
DEFINE_TRANSFORMS(avx512, 4)

float subp_peak_avx512(ptrdiff_t rounds, float factor) { return peak(rounds, factor); }
const int subp_peak_flops_avx512 = 2 * PEAK_CHAINS * LANES;

SUBP_DEFINE_PLANES(avx512)
DEFINE_POOL(avx512)

void subp_halve_avx512(const float *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, float *out,
                       ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++) halve_row(in + y * in_step, count, out + y * out_step);
}
