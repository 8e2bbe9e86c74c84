/* Tables of bytes with AVX512-VBMI, which looks up 64 bytes in 128 with one instruction. */
#include <immintrin.h>

#include "int8_planes.h"

static inline __m512i look_up(const __m512i table[4], __m512i x) {
    const __m512i low = _mm512_permutex2var_epi8(table[0], x, table[1]);
    const __m512i high = _mm512_permutex2var_epi8(table[2], x, table[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(x), high);
}

void u8_lookup__avx512vbmi(const void *in, ptrdiff_t count, const void *table, int to_float, void *out) {
    if (to_float) {
        subp_lookup_run(in, count, table, to_float, out);
        return;
    }
    __m512i parts[4];
    for (int i = 0; i < 4; i++) parts[i] = _mm512_loadu_si512((const uint8_t *)table + 64 * i);
    const uint8_t *from = in;
    uint8_t *to = out;
    for (; count >= 64; count -= 64, from += 64, to += 64)
        _mm512_storeu_si512(to, look_up(parts, _mm512_loadu_si512(from)));
    if (count) {
        const __mmask64 rest = ((__mmask64)1 << count) - 1;
        _mm512_mask_storeu_epi8(to, rest, look_up(parts, _mm512_maskz_loadu_epi8(rest, from)));
    }
}
