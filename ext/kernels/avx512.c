/* The kernels for AVX-512: 8 channels x 3 vectors of pixels fill 24 of the 32 registers, and 24 products need 3 loads
 * of pixels and 8 broadcasts, which is half of what the load ports give. */
#include <immintrin.h>

enum { LANES = 16, TAIL_CHANNELS = 8 };
typedef __m512 vec;
typedef __mmask16 lanes;
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
static inline cvec cload(const float *p) { return _mm256_loadu_ps(p); }
static inline void cstore(float *p, cvec x) { _mm256_storeu_ps(p, x); }
static inline cvec csplat(float x) { return _mm256_set1_ps(x); }
static inline cvec cmadd(cvec a, cvec b, cvec c) { return _mm256_fmadd_ps(a, b, c); }
static inline cvec cadd(cvec a, cvec b) { return _mm256_add_ps(a, b); }

#include "vector.h"

void f32_ubsconv_8x48__avx512(const subp_tile *t) { run(t, 8, 3); }
void f32_ubsconv_4x96__avx512(const subp_tile *t) { run(t, 4, 6); }
void f32_ubsconv_2x128__avx512(const subp_tile *t) { run(t, 2, 8); }
void f32_ubsconv_1x128__avx512(const subp_tile *t) { run(t, 1, 8); }
void f32_dwconv_1x128__avx512(const subp_tile *t) { run(t, 1, 8); }
