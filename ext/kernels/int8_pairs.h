/* Words of two numbers of 16 bits, for instruction sets without dot products of bytes: those of 16 bits cannot
 * overflow, while sums of two products of bytes can. Included before int8_vector.h. */
#ifndef SUBP_INT8_PAIRS_H
#define SUBP_INT8_PAIRS_H

enum { INT8_INTERLEAVE = 2, INTERLEAVE_PIXELS = VI32_LANES };

INLINE void interleave_block(const uint8_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const int n = count < VI32_LANES ? (int)count : VI32_LANES;
    vi32_store_first(out, vi32_pair(vi32_bytes(x + offsets[0], n), vi32_bytes(x + offsets[1], n)), n);
}

#endif
