/* The bfloat16 kernels for AVX-512 with dot products of it: 8 channels x 3 vectors of words fill 24 of the 32
 * registers. */
#include "bf16_simd_avx512bf16.h"

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
