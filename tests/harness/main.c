#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"
#include "harness.h"

static unsigned long long number(const char *text) {
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (!*text || *end) {
        fprintf(stderr, "'%s' is not a number; usage: harness COUNT SEED\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: harness COUNT SEED\n");
        return 2;
    }
    const unsigned long long count = number(argv[1]), seed = number(argv[2]);
    catch_faults();
    static void (*const checks[])(int) = {check_convolution, check_winograd, check_chain, check_depthwise,
                                         check_pool,        check_elements, check_norm,  check_halve};
    for (int isa = 0; isa < SUBP_ISA_COUNT; isa++) {
        const subp_kernel_set set = subp_kernel_set_at(isa);
        if (!set.usable) {
            printf("%s: not run, this CPU lacks %s\n", set.name, set.needs);
            continue;
        }
        for (unsigned long long i = 0; i < count; i++) {
            for (int k = 0; k < subp_kernel_count; k++) {
                if (subp_kernel_table[k].isa != (enum subp_isa)isa) continue;
                seed_case(seed + i);
                check_tile(isa, &subp_kernel_table[k]);
                free_buffers();
            }
            for (size_t c = 0; c < sizeof(checks) / sizeof(checks[0]); c++) {
                seed_case(seed + i);
                checks[c](isa);
                free_buffers();
            }
        }
        printf("%s: %llu cases of each kernel and operator, seeds %llu to %llu\n", set.name, count, seed, seed + count - 1);
    }
    return 0;
}
