/* What depthwise convolutions of bytes are written in; simd_bytes_<set>.h implements it. A vector consists of parts of
 * 16 bytes, and nothing crosses from one to another but where that is said.
 *
 *   vu8, VU8_BYTES of them: vu8_load(p), vu8_store(p, x), vu8_splat(number); vi32, a quarter as many integers.
 *   quad_weights: quad_weights_of(p, count), 1 to 4 weights at p, of which no other is read, and zeros.
 * Where dot products of bytes are worth it, VU8_HAS_QUADS is 1, and there are
 *   vu8_quads(x, order): 32-bit lane i of each part is bytes first + step * i and the next three of the part, for
 *     vu8_quad_order(first, step); those beyond the part are of any value;
 *   vi32_dot(sums, quads, weights, count): adds to every lane its four bytes times the weights, exactly;
 * elsewhere vi32_add_taps(sums, from, weights, kernel, step), which adds to output i of a vector the bytes from
 * step * i on, of those at `from`, times the weights of a row of a window.
 *   stored_constants: stored_constants_of(requantize, factor).
 *   vu8_stored(sums, residual, constants, plain): what four vectors of sums become; plain says that the zero point is 0
 *     and the bounds are those of uint8. 32-bit lane i of part p of vector v is byte 16 * p + 4 * v + i of the result,
 *     and of the residual, which may be NULL.
 *   vu8_halves_joined(x), of a vector whose parts are 8 bytes of its first half, then 8 of its second: in their order;
 *     vu8_halves_parted(x), the inverse.
 *   vu8_copy_rows(to, from, rows, step, before, count, end, fill): rows of `end` bytes from those every `step`:
 *     `before` times the fill, `count` bytes, the fill; and whatever for up to VU8_BYTES after the last.
 *   vu8_write_rows(to, from, rows, step, count): exactly rows of so many bytes, from those every `step`, behind which
 *     there are VU8_BYTES to spare.
 * Where vectors of which any consecutive lanes are loaded and stored are cheap, VU8_HAS_SPANS is 1, and there are
 *   vu8_span: vu8_between(from, to) are the lanes from <= lane < to, which may lie beyond the vector;
 *   vu8_load_span(p, span, fill), whose other lanes are those of fill and not read; vu8_store_span(p, x, span). */
#ifndef SUBP_SIMD_BYTES_H
#define SUBP_SIMD_BYTES_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define UNROLL _Pragma("GCC unroll 16")

/* In registers: bytes stored one by one would be slow to load as a whole. */
INLINE int32_t quad_bytes(const int8_t *p, int count) {
    uint32_t four = 0;
    for (int i = 0; i < count; i++) four |= (uint32_t)(uint8_t)p[i] << 8 * i;
    return (int32_t)four;
}

#endif
