/* Planes of bytes as words: what is the same for every instruction set. */
#ifndef SUBP_INT8_WORDS_H
#define SUBP_INT8_WORDS_H

#include "kernels.h"

/* Where the channels of a word are; one more than there are is any of them. */
static inline void subp_word_planes(const subp_interleave *s, ptrdiff_t word, int interleave, const uint8_t **planes) {
    for (int i = 0; i < interleave; i++) {
        const ptrdiff_t k = word * interleave + i;
        planes[i] = s->x + s->channel_offsets[k < s->kept ? k : s->kept - 1];
    }
}

static inline ptrdiff_t subp_words(ptrdiff_t kept, int interleave) { return (kept + interleave - 1) / interleave; }

#endif
