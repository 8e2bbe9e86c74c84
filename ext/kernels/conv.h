/* A whole convolution as independent pieces of work, for any kernel set.
 *
 * Work is cut in passes: a band of output rows of one image. A pass fills planes, then
 * computes tiles from them; a band is small enough that its planes stay in the cache. Who does which piece changes no
 * bit of the result: every output is summed by the same kernel in the same place of its run. */
#ifndef SUBP_CONV_H
#define SUBP_CONV_H

#include "kernels.h"

enum { SUBP_LINE = 16 }; /* float32 of a cache line */

typedef struct {
    ptrdiff_t in_channels, height, width; /* of the input */
    ptrdiff_t out_channels, out_h, out_w;
    ptrdiff_t groups, rows, kept, block;
    int32_t taps;
    int activation;
    ptrdiff_t element, weight_element, out_element; /* bytes of an input, a weight and an output */
    uint64_t padding;                  /* what stands beyond the edges: bits of an input */
    subp_halve_fn halve;               /* or NULL */
    const subp_row *const *kernels; /* IN those a block row takes, one after the other */
    const void *values;     /* IN per block row and tile of it, as the rows' packing lays them out */
    ptrdiff_t packed;       /* kept channels with those that fill the last of the kernels' groups of them */
    const int32_t *channel_offsets; /* IN [rows][kept], each index within the group times channel_stride; of words
                                       [rows][words][their channels], the last again where none is left */
    const float *bias;      /* IN [out_channels] of the block rows, one after the other, or NULL */
    const ptrdiff_t *out_offsets; /* IN likewise: where each channel's plane is in an image of the output */

    /* Planes: copies of a channel in which every tap is a shifted run of pixels. Copy p holds, for y < band_planes
     * and x < out_w, the input at row y * stride_h + copy_rows[p] - pad_top and column x * stride_w + copy_cols[p] -
     * pad_left, or the padding outside of it. Without copies the taps read the input itself. */
    ptrdiff_t copies;
    const ptrdiff_t *copy_rows, *copy_cols; /* IN [copies] */
    ptrdiff_t pad_top, pad_left, stride_h, stride_w;
    ptrdiff_t band, plane_rows;   /* output rows of a pass, and rows of a copy for them */
    ptrdiff_t channel_stride;     /* of the planes, or of the input */
    const ptrdiff_t *tap_offsets; /* IN [taps] within a channel's planes */

    ptrdiff_t tile_pixels; /* of a run */
    int pixels_outside;    /* runs of pixels are the outer loop, block rows the inner one */

    /* Of uint8 activations, in place of bias and activation. */
    const subp_requantize *requantize; /* or NULL */
    const int32_t *start;              /* IN as bias */
    const float *factor;               /* IN as bias */

    /* Words of kept channels, where the kernels read them in place of planes. A thread makes them for a block row and a
     * run of pixels, from which all of its tiles and taps are computed. Where all block rows keep all channels, they
     * are made once for a whole pass, by those who fill planes. */
    ptrdiff_t words;   /* of a pixel; 0: planes are read as they are */
    ptrdiff_t columns; /* that a kept channel counts for: copies come column by column, and each column's are those of a
                          kept channel; 1 if a channel counts for itself */
    subp_interleave_fn interleave;
    subp_thread_state_fn state;    /* around a thread's calls of the kernels, or NULLs */
    int to_float;                  /* as of subp_tile */
    int shared;                    /* all block rows keep all channels of their group */
    ptrdiff_t run_pixels;          /* of a run whose words are made at once; the band if they are shared */
    ptrdiff_t halo;                /* pixels that taps read behind a run */
    ptrdiff_t word_plane;          /* pixels of a copy of a word: a run and its halo, in whole cache lines */
    const ptrdiff_t *word_offsets; /* IN [taps] in pixels */
} subp_conv;

/* A pass in equal parts: row_step block rows x pixel_step pixels each. */
typedef struct {
    ptrdiff_t row_step, pixel_step, parts;
} subp_conv_parts;

typedef struct {
    const void *x;        /* IN [batch][in_channels][height][width] */
    const void *residual; /* IN as out, or NULL */
    void *out;            /* OUT [batch][out_channels][out_h][out_w] */
} subp_conv_arrays;

/* Passes of one image, and what there is to fill in a pass: channels, or shared words of them. */
ptrdiff_t subp_conv_passes(const subp_conv *call);
ptrdiff_t subp_conv_fills(const subp_conv *call);

/* Bytes of the planes, of the shared words behind them, and of a thread's own words. */
ptrdiff_t subp_conv_planes(const subp_conv *call);
ptrdiff_t subp_conv_shared_words(const subp_conv *call);
ptrdiff_t subp_conv_own_words(const subp_conv *call);

/* Cuts a pass for so many threads, a part each. */
subp_conv_parts subp_conv_divide(const subp_conv *call, ptrdiff_t threads);

/* One of what there is to fill. `planes` has room for the planes, channel_stride elements of each channel, and for
 * shared words; what they hold does not matter. */
void subp_conv_fill(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, ptrdiff_t fill,
                    void *planes);
void subp_conv_part(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass,
                    const subp_conv_parts *parts, ptrdiff_t part, const void *planes, void *words);
/* A whole pass. `words` here and above is the thread's own. */
void subp_conv_pass(const subp_conv *call, const subp_conv_arrays *arrays, ptrdiff_t pass, void *planes, void *words);

/* The same for any rows of the output, as many as a band at most, and any place to put them: one of what there is to
 * fill, and block rows [row, row_end) without residual: their channels' planes [rows][out_w], one after the other, are
 * where `out_offsets` says, counted from `out`. */
typedef struct {
    ptrdiff_t image, first_row, rows;
} subp_rows;

void subp_conv_fill_rows(const subp_conv *call, const void *x, subp_rows rows, ptrdiff_t fill, void *planes);
void subp_conv_rows(const subp_conv *call, const void *x, const void *planes, subp_rows rows, ptrdiff_t row,
                    ptrdiff_t row_end, void *out, const ptrdiff_t *out_offsets, void *words);

/* The first channel of a block row, counted over all of them, and how many it has. */
ptrdiff_t subp_conv_first_channel(const subp_conv *call, ptrdiff_t row, ptrdiff_t *width);

#endif
