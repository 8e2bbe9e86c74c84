/* Planes as words: what is the same for every instruction set and element. */
#ifndef SUBP_WORDS_H
#define SUBP_WORDS_H

#include "kernels.h"

/* Where the channels of a word are, as offsets, and where the word goes. */
static inline const int32_t *subp_word_channels(const subp_interleave *s, ptrdiff_t word, int interleave) {
    return s->channel_offsets + word * interleave;
}

static inline uint8_t *subp_word_at(const subp_interleave *s, ptrdiff_t word, ptrdiff_t copy) {
    return s->out + (word * s->word_stride + copy * s->out_copy) * SUBP_WORD;
}

#endif
