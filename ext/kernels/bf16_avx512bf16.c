/* The bfloat16 kernels for AVX-512 with dot products of it: 8 channels x 3 vectors of words fill 24 of the 32
 * registers. */
#include <string.h>

#include "kernels.h"
#include "simd_avx512.h"
#include "words_avx512.h"

typedef __m512i vword;

INLINE vword vword_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vword vword_weight(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
}

/* Not the intrinsic, with which GCC 12 copies and spills the sums. */
INLINE vf32 vsum_dot(vf32 sums, vword words, vword weight) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words), "v"(weight));
    return sums;
}

INLINE cf32 csum_dot(cf32 sums, const uint8_t *word, const uint8_t *weights) {
    int32_t x;
    memcpy(&x, word, sizeof(x));
    const __m256i words = _mm256_set1_epi32(x), w = _mm256_loadu_si256((const __m256i *)weights);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(words), "v"(w));
    return sums;
}

INLINE __m512i load_halves(const uint16_t *p, ptrdiff_t count) {
    if (count >= 32) return _mm512_loadu_si512(p);
    if (count == 16) return _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_maskz_loadu_epi16((__mmask32)(((uint64_t)1 << count) - 1), p);
}

/* The words of up to 64 pixels from two planes. */
enum { WORD_CHANNELS = 2, INTERLEAVE_PIXELS = 64 };

INLINE void interleave_block(const uint16_t *x, const int32_t *offsets, ptrdiff_t count, uint8_t *out) {
    const __m512i first = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005, 0x260006,
                                            0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b, 0x2c000c, 0x2d000d,
                                            0x2e000e, 0x2f000f); /* lanes 0, 32, 1, 33, ... of two vectors */
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const uint16_t *a = x + offsets[0], *b = x + offsets[1];
    UNROLL for (ptrdiff_t at = 0; at < INTERLEAVE_PIXELS; at += 32) {
        if (at >= count) break;
        const __m512i from_a = load_halves(a + at, count - at), from_b = load_halves(b + at, count - at);
        store_words(out + at * SUBP_WORD, _mm512_permutex2var_epi16(from_a, first, from_b), count - at);
        store_words(out + (at + 16) * SUBP_WORD, _mm512_permutex2var_epi16(from_a, second, from_b), count - at - 16);
    }
}

INLINE vf32 bf16_load(const uint16_t *p, int n) {
    const __m256i x = n == VF32_LANES ? _mm256_loadu_si256((const __m256i *)p)
                                      : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE void bf16_store(uint16_t *out, const vf32 *x, int vectors, int count) {
    UNROLL for (int v = 0; v < vectors; v += 2) {
        const int left = count - v * VF32_LANES;
        uint16_t *to = out + v * VF32_LANES;
        if (v + 1 < vectors) {
            const __m512i two = (__m512i)_mm512_cvtne2ps_pbh(x[v + 1], x[v]);
            if (left >= 2 * VF32_LANES)
                _mm512_storeu_si512(to, two);
            else
                _mm512_mask_storeu_epi16(to, (__mmask32)((1u << left) - 1), two);
        } else {
            const __m256i one = (__m256i)_mm512_cvtneps_pbh(x[v]);
            if (left >= VF32_LANES)
                _mm256_storeu_si256((__m256i *)to, one);
            else
                _mm256_mask_storeu_epi16(to, (__mmask16)((1u << left) - 1), one);
        }
    }
}

#include "bf16_vector.h"

/* For each pair of taps; with stride 1 one for all. */
typedef struct {
    __mmask32 part[4];
} window_span;

INLINE __mmask32 numbers_between(ptrdiff_t from, ptrdiff_t to) {
    from = from < 0 ? 0 : from > 32 ? 32 : from;
    to = to < from ? from : to > 32 ? 32 : to;
    return (__mmask32)(((uint64_t)1 << to) - ((uint64_t)1 << from));
}

enum { EVEN = 0x55555555 };

INLINE window_span window_between(ptrdiff_t from, ptrdiff_t to, int taps, int stride) {
    window_span span = {{0}};
    for (int j = 0; 2 * j < taps; j++) {
        const ptrdiff_t first = stride == 1 ? 0 : 2 * j;
        span.part[j] = numbers_between(from - first, to - first);
        if (stride == 2 && 2 * j + 1 == taps) span.part[j] &= EVEN;
    }
    return span;
}

/* With stride 2 a row's numbers are words of taps as they are. */
INLINE void window_load(vword *words, const uint16_t *p, const window_span *span, int taps, int stride) {
    const __m512i pair = _mm512_setr_epi32(0x10000, 0x20001, 0x30002, 0x40003, 0x50004, 0x60005, 0x70006, 0x80007,
                                           0x90008, 0xa0009, 0xb000a, 0xc000b, 0xd000c, 0xe000d, 0xf000e, 0x10000f);
    const __m512i row = stride == 1 ? _mm512_maskz_loadu_epi16(span->part[0], p) : pair;
    UNROLL for (int j = 0; 2 * j < taps; j++) {
        const __m512i order = _mm512_add_epi16(pair, _mm512_set1_epi16((short)(2 * j)));
        words[j] = stride == 2 ? _mm512_maskz_loadu_epi16(span->part[j], p + 2 * j)
                               : _mm512_maskz_permutexvar_epi16(2 * j + 1 < taps ? ~0u : EVEN, order, row);
    }
}

#include "bf16_window.h"

BF16_DEFINE_INTERLEAVE(avx512bf16)
BF16_DEFINE_PEAK(avx512bf16)

DEFINE_WORDS_ODD(8, 3)
DEFINE_WORDS_AHEAD(8, 3)
BF16_DEFINE_KERNEL(avx512bf16, 8, 48, 3, 2, WORDS_AHEAD(8, 3) WORDS_ODD(8, 3))
BF16_DEFINE_KERNEL(avx512bf16, 4, 96, 6, 3, )
BF16_DEFINE_KERNEL(avx512bf16, 2, 128, 8, 4, )
BF16_DEFINE_KERNEL(avx512bf16, 1, 128, 8, 4, )

/* Seven rows divide the planes of networks for 224x224 images. */
SUBP_DEFINE_BF16_DEPTHWISE(avx512bf16)
BF16_DEFINE_DEPTHWISE(avx512bf16, 3, 1, 7)
BF16_DEFINE_DEPTHWISE(avx512bf16, 3, 2, 7)
BF16_DEFINE_DEPTHWISE(avx512bf16, 5, 1, 7)
BF16_DEFINE_DEPTHWISE(avx512bf16, 5, 2, 4)
BF16_DEFINE_DEPTHWISE(avx512bf16, 7, 1, 7)
BF16_DEFINE_DEPTHWISE(avx512bf16, 7, 2, 4)

/* Every second of up to 63 numbers of each row, and nothing behind the last. */
INLINE void halve_rows(const uint16_t *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, uint16_t *out,
                       ptrdiff_t out_step) {
    const __m512i even = _mm512_setr_epi32(0x20000, 0x60004, 0xa0008, 0xe000c, 0x120010, 0x160014, 0x1a0018, 0x1e001c,
                                           0x220020, 0x260024, 0x2a0028, 0x2e002c, 0x320030, 0x360034, 0x3a0038,
                                           0x3e003c);
    const __mmask32 low = numbers_between(0, 2 * count - 1), high = numbers_between(0, 2 * count - 33);
    const __mmask32 stored = numbers_between(0, count);
    for (ptrdiff_t y = 0; y < rows; y++, in += in_step, out += out_step) {
        const __m512i a = _mm512_maskz_loadu_epi16(low, in);
        const __m512i b = high ? _mm512_maskz_loadu_epi16(high, in + 32) : a;
        _mm512_mask_storeu_epi16(out, stored, _mm512_permutex2var_epi16(a, even, b));
    }
}

void bf16_halve__avx512bf16(const void *in, ptrdiff_t in_step, ptrdiff_t rows, ptrdiff_t count, void *out,
                            ptrdiff_t out_step) {
    for (ptrdiff_t x = 0; x < count; x += 32)
        halve_rows((const uint16_t *)in + 2 * x, in_step, rows, count - x < 32 ? count - x : 32, (uint16_t *)out + x,
                   out_step);
}
