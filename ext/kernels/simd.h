/* What the kernels of every vector instruction set are written in; simd_<set>.h implements it for one.
 *
 * Words of float32 are prefixed by what their lanes hold. `vf32` holds VF32_LANES pixels:
 *   vf32_load(p), vf32_store(p, x); vf32_splat(number); vf32_add(a, b), vf32_sub(a, b), vf32_madd(a, b, c) = a * b + c;
 *   vf32_max(a, b), of which a NaN wins; vf32_relu(x), vf32_relu6(x), whose NaN stays NaN;
 *   vf32_mask, the first lanes: vf32_first(n), of vf32_load_mask(p, mask) the other lanes are zero and not read, by
 *     vf32_store_mask(p, x, mask) they are not written;
 *   vf32_span, any consecutive lanes: vf32_between(from, to) are those from <= lane < to, which may be none; the other
 *     lanes of vf32_load_span(p, span, fill) are those of fill and not read;
 *   vf32_unzip_even(a, b), vf32_unzip_odd(a, b), the even and the odd lanes of both, and the inverse:
 *     vf32_zip_low(a, b), vf32_zip_high(a, b), the lanes of both in turns, from the first and the second half of each;
 *   vf32_next(a, b), the lanes of a from the second on, then the first of b.
 * Where two pieces of rows in a vector are worth it, VF32_HAS_ORDER is 1 and there are also
 *   vf32_order, an order of lanes, and vf32_permute(x, order); vf32_compress(n), the first n lanes and then those
 *     from the middle on, and vf32_expand(n), where what follows n lanes starts at the middle.
 * `cf32` holds CF32_LANES output channels of one pixel: cf32_load, cf32_store, cf32_splat, cf32_madd, cf32_add,
 * cf32_relu, cf32_relu6 as above.
 * VF32_VALUE(w, c, channels) is w[c] in every lane of a vf32, where `channels` values may be read. */
#ifndef SUBP_SIMD_H
#define SUBP_SIMD_H

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")

/* No kernel's block of registers has more. */
enum { MAX_CHANNELS = 8, MAX_VECTORS = 8 };

#ifndef VF32_VALUE
#define VF32_VALUE(w, c, channels) vf32_splat((w)[c])
#endif

#ifndef VF32_HAS_ORDER
#define VF32_HAS_ORDER 0
typedef int vf32_order;
INLINE vf32_order vf32_compress(int n) { return n; }
INLINE vf32_order vf32_expand(int n) { return n; }
INLINE vf32 vf32_permute(vf32 x, vf32_order order) { return (void)order, x; }
#endif

#endif
