/* What every file of the kernels shares: the tile a kernel computes, and the list of kernels.
 *
 * The input of a convolution is laid out as planes: per channel one flat array in which output pixel
 * p = y * pitch + x and tap t meet at planes[tap_offsets[t] + p]. Padding is in the plane, and a stride splits the
 * plane into phases, so every tap is a shifted contiguous run whatever the geometry. Pixels with
 * x >= width are by-products of the flat run: computed, never stored. */
#ifndef SUBP_KERNELS_H
#define SUBP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum subp_activation {
    SUBP_ACT_none,
#define SUBP_ACTIVATION(name) SUBP_ACT_##name,
#include "activations.inc"
#undef SUBP_ACTIVATION
    SUBP_ACT_COUNT
};

enum subp_isa {
#define SUBP_ISA(name, needs, usable) SUBP_ISA_##name,
#include "isas.inc"
#undef SUBP_ISA
    SUBP_ISA_COUNT
};

enum subp_operator { SUBP_OP_ubsconv, SUBP_OP_dwconv, SUBP_OP_COUNT };

/* Where a tile goes. out = activation(acc + bias + residual). */
typedef struct {
    float *out;             /* OUT first channel of the tile; channel c at out + c * channel_stride, rows of width */
    const float *residual;  /* IN laid out as out, or NULL */
    const float *bias;      /* IN one per channel, or NULL */
    ptrdiff_t channel_stride;
    ptrdiff_t pitch; /* flat pixels per row of the run */
    ptrdiff_t width; /* pixels per row that are stored */
    int activation;  /* enum subp_activation */
} subp_store;

/* One call of a kernel: `channels` output channels of one block row on a flat run of pixels.
 * A kernel reads nothing outside planes[c * plane_stride + tap_offsets[t] + first .. + count). */
typedef struct {
    const float *planes; /* IN first channel of the group */
    ptrdiff_t plane_stride;
    const ptrdiff_t *tap_offsets; /* IN [taps] */
    int32_t taps;
    const float *values;    /* IN [kept][taps][value_step], at the tile's first channel */
    ptrdiff_t value_step;   /* the block size */
    const int32_t *indices; /* IN [kept], channels within the group; not read by dwconv */
    int32_t kept;
    int32_t channels; /* to store; at most what the kernel's tile holds */
    ptrdiff_t first, count;
    subp_store store;
} subp_tile;

typedef void (*subp_tile_fn)(const subp_tile *);

typedef struct {
    const char *name;
    enum subp_operator op;
    enum subp_isa isa;
    int32_t channels, pixels;
    subp_tile_fn run;
} subp_kernel;

#define SUBP_KERNEL(name, op, isa, channels, pixels) void name(const subp_tile *);
#include "kernels.inc"
#undef SUBP_KERNEL

#endif
