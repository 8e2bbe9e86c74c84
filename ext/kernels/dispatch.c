#include "dispatch.h"

#include "cpu.h"

const subp_kernel subp_kernel_table[] = {
#define SUBP_KERNEL(name, op, isa, channels, pixels) {#name, SUBP_OP_##op, SUBP_ISA_##isa, channels, pixels, name},
#include "kernels.inc"
#undef SUBP_KERNEL
};

const int subp_kernel_count = sizeof(subp_kernel_table) / sizeof(subp_kernel_table[0]);

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

const subp_kernel *subp_find_kernel(enum subp_operator op, enum subp_isa isa, ptrdiff_t channels) {
    const subp_kernel *best = NULL;
    for (int i = 0; i < subp_kernel_count; i++) {
        const subp_kernel *k = &subp_kernel_table[i];
        if (k->op != op || k->isa > isa || k->channels > channels) continue;
        if (k->isa != isa && !subp_kernel_set_at(k->isa).usable) continue;
        if (!best || k->isa > best->isa || (k->isa == best->isa && k->channels > best->channels)) best = k;
    }
    return best; /* never NULL: the generic set has tiles of one channel */
}
