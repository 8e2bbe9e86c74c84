/* AVX-512 behind the interface of simd_bytes.h; with SUBP_VNNI the dot products are instructions. */
#ifndef SUBP_SIMD_BYTES_AVX512_H
#define SUBP_SIMD_BYTES_AVX512_H

#include <immintrin.h>

#include "kernels.h"
#include "simd_bytes.h"

enum { VU8_BYTES = 64 };
typedef __m512i vu8, vu8_order, vi32;

INLINE vu8 vu8_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE void vu8_store(uint8_t *p, vu8 x) { _mm512_storeu_si512(p, x); }
INLINE vu8 vu8_splat(uint8_t x) { return _mm512_set1_epi8((char)x); }
INLINE vi32 vi32_splat(int32_t x) { return _mm512_set1_epi32(x); }

INLINE __m512i four_parts(__m128i x) { return _mm512_broadcast_i32x4(x); }

#define VU8_HAS_QUADS 1
INLINE vu8_order vu8_quad_order(int first, int step) {
    const int s = step * 0x01010101, a = 0x03020100 + first * 0x01010101;
    return four_parts(_mm_setr_epi32(a, a + s, a + 2 * s, a + 3 * s));
}
INLINE vu8 vu8_quads(vu8 x, vu8_order order) { return _mm512_shuffle_epi8(x, order); }

#ifdef SUBP_VNNI
typedef __m512i quad_weights;
INLINE quad_weights quad_weights_of(const int8_t *p, int count) { return _mm512_set1_epi32(quad_bytes(p, count)); }
/* The compiler's own function for the instruction makes it move the sums to and fro. */
INLINE vi32 vi32_dot(vi32 sums, vu8 quads, quad_weights w, int count) {
    (void)count;
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(quads), "v"(w));
    return sums;
}
#else
/* The even and the odd ones of the four, as 16 bits: sums of two products in 16 bits each would saturate. */
typedef struct {
    __m512i even, odd;
} quad_weights;
INLINE quad_weights quad_weights_of(const int8_t *p, int count) {
    const __m512i four = _mm512_set1_epi32(quad_bytes(p, count));
    return (quad_weights){_mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), _mm512_srai_epi16(four, 8)};
}
INLINE vi32 vi32_dot(vi32 sums, vu8 quads, quad_weights w, int count) {
    const __m512i even = _mm512_and_si512(quads, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(quads, 8);
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(even, w.even));
    return count == 1 ? sums : _mm512_add_epi32(sums, _mm512_madd_epi16(odd, w.odd));
}
#endif

typedef struct {
    __m512 factor, residual_factor;
    __m512i zero, low, high, residual_zero;
} stored_constants;

INLINE stored_constants stored_constants_of(const subp_requantize *q, float factor) {
    return (stored_constants){
        .factor = _mm512_set1_ps(factor),
        .residual_factor = _mm512_set1_ps(q->residual_factor),
        .zero = _mm512_set1_epi16((short)q->zero),
        .low = _mm512_set1_epi8((char)q->low),
        .high = _mm512_set1_epi8((char)q->high),
        .residual_zero = _mm512_set1_epi32(q->residual_zero),
    };
}

/* Bytes 4 * v to 4 * v + 3 of every part as integers. */
INLINE __m512i widened(vu8 x, int v) {
    const int none = (int)0x80808000;
    return _mm512_shuffle_epi8(
        x, four_parts(_mm_setr_epi32(none + 4 * v, none + 4 * v + 1, none + 4 * v + 2, none + 4 * v + 3)));
}

INLINE vu8 vu8_stored(const vi32 sums[4], const vu8 *residual, const stored_constants *c, int plain) {
    __m512i whole[4];
    UNROLL for (int v = 0; v < 4; v++) {
        __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[v]), c->factor);
        if (residual) {
            const __m512i offset = _mm512_sub_epi32(widened(*residual, v), c->residual_zero);
            real = _mm512_fmadd_ps(_mm512_cvtepi32_ps(offset), c->residual_factor, real);
        }
        whole[v] = _mm512_cvt_roundps_epi32(real, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    if (plain)
        return _mm512_packus_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
    /* Sums of saturated numbers saturate again, on the same side. */
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(whole[0], whole[1]), c->zero);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(whole[2], whole[3]), c->zero);
    return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, second), c->low), c->high);
}

INLINE vu8 vu8_halves_joined(vu8 x) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x);
}
INLINE vu8 vu8_halves_parted(vu8 x) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), x);
}

#define VU8_HAS_SPANS 1
typedef __mmask64 vu8_span;
INLINE uint64_t lanes_below(ptrdiff_t to) { return to >= 64 ? ~0ull : to <= 0 ? 0 : (1ull << to) - 1; }
INLINE vu8_span vu8_between(ptrdiff_t from, ptrdiff_t to) { return lanes_below(to) & ~lanes_below(from); }
INLINE vu8 vu8_load_span(const uint8_t *p, vu8_span span, vu8 fill) { return _mm512_mask_loadu_epi8(fill, span, p); }
INLINE void vu8_store_span(uint8_t *p, vu8 x, vu8_span span) { _mm512_mask_storeu_epi8(p, span, x); }

/* Narrow rows in narrow vectors: those that cross from one cache line to the next take longer. */
INLINE void vu8_copy_rows(uint8_t *to, const uint8_t *from, ptrdiff_t rows, ptrdiff_t step, ptrdiff_t before,
                          ptrdiff_t count, ptrdiff_t end, vu8 fill) {
    const uint64_t inside = vu8_between(before, before + count);
    from -= before;
    if (end <= 16) {
        for (; rows > 0; rows--, to += end, from += step)
            _mm_storeu_si128((__m128i *)to, _mm_mask_loadu_epi8(_mm512_castsi512_si128(fill), (__mmask16)inside, from));
    } else if (end <= 32) {
        for (; rows > 0; rows--, to += end, from += step)
            _mm256_storeu_si256((__m256i *)to,
                                _mm256_mask_loadu_epi8(_mm512_castsi512_si256(fill), (__mmask32)inside, from));
    } else if (end <= 64) {
        for (; rows > 0; rows--, to += end, from += step) vu8_store(to, vu8_load_span(from, inside, fill));
    } else {
        for (; rows > 0; rows--, to += end, from += step)
            for (ptrdiff_t at = 0; at < end; at += VU8_BYTES)
                vu8_store(to + at, vu8_load_span(from + at, vu8_between(before - at, before + count - at), fill));
    }
}

INLINE void vu8_write_rows(uint8_t *to, const uint8_t *from, ptrdiff_t rows, ptrdiff_t step, ptrdiff_t count) {
    const uint64_t stored = lanes_below(count);
    if (count <= 16) {
        for (; rows > 0; rows--, to += count, from += step)
            _mm_mask_storeu_epi8(to, (__mmask16)stored, _mm_loadu_si128((const __m128i *)from));
    } else if (count <= 32) {
        for (; rows > 0; rows--, to += count, from += step)
            _mm256_mask_storeu_epi8(to, (__mmask32)stored, _mm256_loadu_si256((const __m256i *)from));
    } else if (count <= 64) {
        for (; rows > 0; rows--, to += count, from += step) vu8_store_span(to, vu8_load(from), stored);
    } else {
        for (; rows > 0; rows--, to += count, from += step)
            for (ptrdiff_t at = 0; at < count; at += VU8_BYTES)
                vu8_store_span(to + at, vu8_load(from + at), lanes_below(count - at));
    }
}

#endif
