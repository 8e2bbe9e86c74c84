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

#ifdef SUBP_EMULATED_TILES
int subp_tiles_configured(void);
#else
static int subp_tiles_configured(void) { return 0; }
#endif

/* Ends a case. */
static void clean_up(void) {
    if (subp_tiles_configured()) fail("the tile registers were not released");
    free_buffers();
}

/* One case of each kernel of a set that computes a tile of a convolution, of the types that have such a check. */
static void check_tiles(int set, unsigned long long seed) {
    for (int k = 0; k < subp_row_count; k++) {
        const subp_row *row = &subp_row_table[k];
        if (row->set != (enum subp_set)set || row->op != SUBP_OP_conv2d) continue;
        seed_case(seed);
        if (row->dtype == SUBP_DTYPE_float32) check_tile(set, row);
        if (row->dtype == SUBP_DTYPE_bfloat16) check_word_tile(row);
        clean_up();
    }
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: harness COUNT SEED\n");
        return 2;
    }
    const unsigned long long count = number(argv[1]), seed = number(argv[2]);
    catch_faults();
    static void (*const checks[])(int) = {check_convolution, check_int8, check_bfloat16, check_winograd,
                                         check_fused_depthwise, check_depthwise, check_bfloat16_depthwise,
                                         check_int8_depthwise, check_pool, check_elements, check_norm, check_halve,
                                         check_bfloat16_halve, check_quantized_pool, check_quantized_elements,
                                         check_bfloat16_pool, check_bfloat16_elements, check_bfloat16_norm};
    for (int set = 0; set < SUBP_SET_COUNT; set++) {
        const char *name = subp_kernel_sets[set].name;
        if (subp_kernel_sets[set].features & ~subp_cpu_features()) {
            printf("%s: not run, this CPU lacks %s\n", name, subp_kernel_sets[set].needs);
            continue;
        }
        for (unsigned long long i = 0; i < count; i++) {
            check_tiles(set, seed + i);
            for (size_t c = 0; c < sizeof(checks) / sizeof(checks[0]); c++) {
                seed_case(seed + i);
                checks[c](set);
                clean_up();
            }
        }
        printf("%s: %llu cases of each kernel and operator, seeds %llu to %llu\n", name, count, seed, seed + count - 1);
    }
    return 0;
}
