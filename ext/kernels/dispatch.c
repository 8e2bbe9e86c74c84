#include "dispatch.h"

#include "cpu.h"

#define SUBP_CONVOLUTION(name, isa, channels, pixels) {#name, SUBP_ISA_##isa, channels, pixels, name},
const subp_kernel subp_kernel_table[] = {
#include "kernels.inc"
};

#define SUBP_DEPTHWISE(name, isa, size, stride) {#name, SUBP_ISA_##isa, size, stride, name},
const subp_depthwise_kernel subp_depthwise_table[] = {
#include "kernels.inc"
};

#define SUBP_WINOGRAD(name, isa, size) {#name, SUBP_ISA_##isa, size, name##_in, name##_out},
const subp_winograd_kernel subp_winograd_table[] = {
#include "kernels.inc"
    {0}, /* a build may have none */
};

const int subp_kernel_count = sizeof(subp_kernel_table) / sizeof(subp_kernel_table[0]);
const int subp_depthwise_count = sizeof(subp_depthwise_table) / sizeof(subp_depthwise_table[0]);
const int subp_winograd_count = sizeof(subp_winograd_table) / sizeof(subp_winograd_table[0]) - 1;

subp_kernel_set subp_kernel_set_at(int isa) {
    switch (isa) {
#define SUBP_ISA(set, need, can_run)           \
    case SUBP_ISA_##set:                       \
        return (subp_kernel_set){              \
            .name = #set,                      \
            .needs = need,                     \
            .usable = can_run,                 \
            .peak = subp_peak_##set,           \
            .peak_flops = subp_peak_flops_##set, \
            .pool = subp_pool_##set,           \
            .mean = subp_mean_##set,           \
            .binary = subp_binary_##set,       \
            .activate = subp_activate_##set,   \
            .norm_pixels = subp_norm_pixels_##set, \
            .norm_run = subp_norm_run_##set,   \
            .halve = subp_halve_##set,         \
        };
#include "isas.inc"
#undef SUBP_ISA
    default:
        return (subp_kernel_set){0};
    }
}

const char *subp_activation_name(int activation) {
    static const char *const names[] = {
        "none",
#define SUBP_ACTIVATION(name) #name,
#include "activations.inc"
#undef SUBP_ACTIVATION
    };
    return names[activation];
}

/* Whether a kernel of one set may stand in for another's. */
static int serves(enum subp_isa own, enum subp_isa isa) {
    return own == isa || (own < isa && subp_kernel_set_at(own).usable);
}

const subp_kernel *subp_find_kernel(enum subp_isa isa, ptrdiff_t channels) {
    const subp_kernel *best = NULL;
    for (int i = 0; i < subp_kernel_count; i++) {
        const subp_kernel *k = &subp_kernel_table[i];
        if (k->channels > channels || !serves(k->isa, isa)) continue;
        if (!best || k->isa > best->isa || (k->isa == best->isa && k->channels > best->channels)) best = k;
    }
    return best; /* never NULL: the generic set has tiles of one channel */
}

static int fits(const subp_depthwise_kernel *k, const subp_window *w) {
    return !k->size || (w->kernel_h == k->size && w->kernel_w == k->size && w->stride_h == k->stride &&
                        w->stride_w == k->stride && w->dilation_h == 1 && w->dilation_w == 1);
}

const subp_depthwise_kernel *subp_find_depthwise(enum subp_isa isa, const subp_window *window) {
    const subp_depthwise_kernel *best = NULL;
    for (int i = 0; i < subp_depthwise_count; i++) {
        const subp_depthwise_kernel *k = &subp_depthwise_table[i];
        if (!fits(k, window) || !serves(k->isa, isa)) continue;
        if (!best || k->isa > best->isa || (k->isa == best->isa && k->size > best->size)) best = k;
    }
    return best; /* never NULL: the generic set has one for any window */
}

const subp_winograd_kernel *subp_find_winograd(enum subp_isa isa, int32_t size) {
    const subp_winograd_kernel *best = NULL;
    for (int i = 0; i < subp_winograd_count; i++) {
        const subp_winograd_kernel *k = &subp_winograd_table[i];
        if (k->size == size && serves(k->isa, isa) && (!best || k->isa > best->isa)) best = k;
    }
    return best;
}
