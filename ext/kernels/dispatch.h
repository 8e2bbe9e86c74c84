/* The kernels and kernel sets of this build, and what this CPU can run. */
#ifndef SUBP_DISPATCH_H
#define SUBP_DISPATCH_H

#include "kernels.h"

typedef struct {
    const char *name, *needs;
    int usable; /* on this CPU */
    float (*peak)(ptrdiff_t rounds, float factor);
    int peak_flops; /* of one round */
    void (*pool)(const subp_pool *p, const float *in, float *out, float *row);
    float (*mean)(const float *in, ptrdiff_t count);
    void (*binary)(int multiply, const float *a, const float *b, int one_b, ptrdiff_t count, int activation,
                   float *out);
    void (*activate)(const float *in, ptrdiff_t count, int activation, float *out);
    void (*norm_pixels)(const float *in, ptrdiff_t channels, ptrdiff_t stride, ptrdiff_t count, const float *weight,
                        const float *bias, float eps, float *out);
    void (*norm_run)(const float *in, ptrdiff_t channels, ptrdiff_t pixels, const float *weight, const float *bias,
                     float eps, float *out);
    subp_halve_fn halve;
} subp_kernel_set;

extern const subp_kernel subp_kernel_table[];
extern const int subp_kernel_count;
extern const subp_depthwise_kernel subp_depthwise_table[];
extern const int subp_depthwise_count;
extern const subp_winograd_kernel subp_winograd_table[];
extern const int subp_winograd_count;

subp_kernel_set subp_kernel_set_at(int isa);
const char *subp_activation_name(int activation);

/* The widest tile of at most `channels` output channels: from `isa`, else from the best usable set below it. */
const subp_kernel *subp_find_kernel(enum subp_isa isa, ptrdiff_t channels);

/* The kernel made for a window, or else one for any: from `isa`, else from the best usable set below it. */
const subp_depthwise_kernel *subp_find_depthwise(enum subp_isa isa, const subp_window *window);

/* The transforms for tiles of this size, as above; NULL if there are none. */
const subp_winograd_kernel *subp_find_winograd(enum subp_isa isa, int32_t size);

#endif
