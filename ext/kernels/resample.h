/* Planes of other sizes, for any kernel set: bilinear interpolation, and copies in which every element is one of the
 * input's, whatever its type. */
#ifndef SUBP_RESAMPLE_H
#define SUBP_RESAMPLE_H

#include <stddef.h>
#include <stdint.h>

/* What an output row or column is made of along its axis: low_weight * in[low] + high_weight * in[high]. */
typedef struct {
    const int32_t *low, *high;
    const float *low_weight, *high_weight;
} subp_pairs;

typedef struct {
    ptrdiff_t width, out_h, out_w;
    subp_pairs rows, columns;
    int doubles; /* the output is twice as wide: but for its first and its last column, each is three quarters of the
                    nearer column of the input and a quarter of the other */
} subp_bilinear;

/* One plane; `rows` is room for 2 * out_w numbers. */
void subp_bilinear_plane(const subp_bilinear *call, const float *in, float *out, float *rows);

/* out[y][x] = in[rows[y]][columns[x]]; between columns `first` and `last` the indices are consecutive. */
typedef struct {
    ptrdiff_t element; /* bytes: 1, 2, 4 or 8 */
    ptrdiff_t width, out_h, out_w;
    const int32_t *rows, *columns;
    ptrdiff_t first, last;
} subp_gather;

void subp_gather_plane(const subp_gather *call, const void *in, void *out);

/* Phases woven into one plane: out[y][x] = phase (y % step_h, x % step_w)[y / step_h][x / step_w]. Plane p of phase n
 * starts p * strides[n] elements behind sources[n]. */
typedef struct {
    ptrdiff_t element; /* as above */
    ptrdiff_t out_h, out_w, step_h, step_w;
    const void *const *sources;
    const ptrdiff_t *strides;
} subp_weave;

void subp_weave_plane(const subp_weave *call, ptrdiff_t plane, void *out);

#endif
