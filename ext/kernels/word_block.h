/* A block of registers of the kernels that read words: word_tiles.h. */
#ifndef SUBP_WORD_BLOCK_H
#define SUBP_WORD_BLOCK_H

/* How a block is computed; constants at every call. */
typedef struct {
    int channels, vectors;
    int partial; /* the last of its vectors is not full */
    int one_tap; /* for convolutions with a single tap */
    int ahead;   /* makes the words of a later tile, as many at a time as it reads */
    int extra;   /* a pixel more, behind the whole block: it costs one product, a vector over the CSUM_LANES channels */
} word_block;

/* Pixels of a vector of `lanes` that are stored. */
static inline __attribute__((always_inline)) int pixels_of(const word_block o, int v, int count, int lanes) {
    int left = count - v * lanes;
    return o.partial && left < lanes ? left : lanes;
}

#endif
