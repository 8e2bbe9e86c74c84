/* The kernels for AVX2 with FMA: 4 channels x 3 vectors of pixels fill 12 of the 16 registers; the pixels and one
 * broadcast value take the other four. */
#include <immintrin.h>

enum { LANES = 8, TAIL_CHANNELS = 4 };
typedef __m256 vec;
typedef __m256i lanes;
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
static inline cvec cload(const float *p) { return _mm_loadu_ps(p); }
static inline void cstore(float *p, cvec x) { _mm_storeu_ps(p, x); }
static inline cvec csplat(float x) { return _mm_set1_ps(x); }
static inline cvec cmadd(cvec a, cvec b, cvec c) { return _mm_fmadd_ps(a, b, c); }
static inline cvec cadd(cvec a, cvec b) { return _mm_add_ps(a, b); }

#include "vector.h"

void f32_ubsconv_4x24__avx2(const subp_tile *t) { run(t, 4, 3); }
void f32_ubsconv_2x48__avx2(const subp_tile *t) { run(t, 2, 6); }
void f32_ubsconv_1x64__avx2(const subp_tile *t) { run(t, 1, 8); }
void f32_dwconv_1x64__avx2(const subp_tile *t) { run(t, 1, 8); }
