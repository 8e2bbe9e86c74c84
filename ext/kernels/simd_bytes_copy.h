/* Copies of rows for sets whose vectors are loaded and stored as a whole alone. */
#ifndef SUBP_SIMD_BYTES_COPY_H
#define SUBP_SIMD_BYTES_COPY_H

#include <string.h>

#define VU8_HAS_SPANS 0

/* Exactly so many bytes: whole pieces, the last of which overlaps the one before. */
INLINE void copy_bytes(uint8_t *to, const uint8_t *from, ptrdiff_t count) {
    if (count >= VU8_BYTES) {
        const vu8 last = vu8_load(from + count - VU8_BYTES);
        for (ptrdiff_t at = 0; at < count - VU8_BYTES; at += VU8_BYTES) vu8_store(to + at, vu8_load(from + at));
        vu8_store(to + count - VU8_BYTES, last);
    } else if (VU8_BYTES > 16 && count >= 16) {
        uint64_t first[2], last[2];
        memcpy(first, from, 16);
        memcpy(last, from + count - 16, 16);
        memcpy(to, first, 16);
        memcpy(to + count - 16, last, 16);
    } else if (count >= 8) {
        uint64_t first, last;
        memcpy(&first, from, 8);
        memcpy(&last, from + count - 8, 8);
        memcpy(to, &first, 8);
        memcpy(to + count - 8, &last, 8);
    } else if (count >= 4) {
        uint32_t first, last;
        memcpy(&first, from, 4);
        memcpy(&last, from + count - 4, 4);
        memcpy(to, &first, 4);
        memcpy(to + count - 4, &last, 4);
    } else {
        for (ptrdiff_t i = 0; i < count; i++) to[i] = from[i];
    }
}

INLINE void fill_bytes(uint8_t *to, ptrdiff_t count, vu8 fill) {
    for (ptrdiff_t at = 0; at < count; at += VU8_BYTES) vu8_store(to + at, fill);
}

INLINE void vu8_copy_rows(uint8_t *to, const uint8_t *from, ptrdiff_t rows, ptrdiff_t step, ptrdiff_t before,
                          ptrdiff_t count, ptrdiff_t end, vu8 fill) {
    for (; rows > 0; rows--, to += end, from += step) {
        fill_bytes(to, before, fill);
        copy_bytes(to + before, from, count);
        fill_bytes(to + before + count, end - before - count, fill);
    }
}

INLINE void vu8_write_rows(uint8_t *to, const uint8_t *from, ptrdiff_t rows, ptrdiff_t step, ptrdiff_t count) {
    for (; rows > 0; rows--, to += count, from += step) copy_bytes(to, from, count);
}

#endif
