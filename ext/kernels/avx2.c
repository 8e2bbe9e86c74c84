/* The kernels for AVX2 with FMA: 4 channels x 3 vectors of pixels fill 12 of the 16 registers; the pixels and one
 * broadcast value take the other four. */
#include <immintrin.h>

enum { LANES = 8, TAIL_CHANNELS = 4 };
typedef __m256 vec;
typedef __m256i lanes, span;
typedef __m128 cvec;

static inline lanes first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec load(const float *p) { return _mm256_loadu_ps(p); }
static inline vec load_lanes(const float *p, lanes m) { return _mm256_maskload_ps(p, m); }
static inline void store(float *p, vec x) { _mm256_storeu_ps(p, x); }
static inline void store_lanes(float *p, vec x, lanes m) { _mm256_maskstore_ps(p, m, x); }
static inline vec splat(float x) { return _mm256_set1_ps(x); }
static inline vec madd(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec relu(vec x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
static inline vec relu6(vec x) { return _mm256_min_ps(_mm256_set1_ps(6.0f), relu(x)); }
static inline vec evens(vec a, vec b) {
    __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)); /* a, b, a, b */
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
static inline vec odds(vec a, vec b) {
    __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)); /* a, b, a, b */
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
static inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec next_lanes(vec a, vec b) { /* what moves is one circle: the first of b, the others of a */
    return _mm256_permutevar8x32_ps(_mm256_blend_ps(a, b, 1), _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
}
static inline vec low_pairs(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
static inline vec high_pairs(vec a, vec b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
static inline span between(int from, int to) { return _mm256_andnot_si256(first_lanes(from), first_lanes(to)); }
static inline vec load_span(const float *p, span s, vec fill) {
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, s), _mm256_castsi256_ps(s));
}
static inline vec maximum(vec a, vec b) { /* max alone gives b if a is NaN */
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
static inline cvec cload(const float *p) { return _mm_loadu_ps(p); }
static inline void cstore(float *p, cvec x) { _mm_storeu_ps(p, x); }
static inline cvec csplat(float x) { return _mm_set1_ps(x); }
static inline cvec cmadd(cvec a, cvec b, cvec c) { return _mm_fmadd_ps(a, b, c); }
static inline cvec cadd(cvec a, cvec b) { return _mm_add_ps(a, b); }
static inline cvec crelu(cvec x) { return _mm_max_ps(_mm_setzero_ps(), x); }
static inline cvec crelu6(cvec x) { return _mm_min_ps(_mm_set1_ps(6.0f), crelu(x)); }

#include "planes.h"
#include "vector.h"
#include "window.h"
#include "transforms.h"

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

DEFINE_TRANSFORMS(avx2, 2)
DEFINE_TRANSFORMS(avx2, 4)

float subp_peak_avx2(ptrdiff_t rounds, float factor) { return peak(rounds, factor); }
const int subp_peak_flops_avx2 = 2 * PEAK_CHAINS * LANES;

SUBP_DEFINE_PLANES(avx2)
DEFINE_POOL(avx2)

void subp_halve_avx2(const float *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, float *out,
                       ptrdiff_t out_step) {
    for (ptrdiff_t y = 0; y < rows; y++) halve_row(in + y * in_step, count, out + y * out_step);
}
