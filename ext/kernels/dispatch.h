/* The rows and kernel sets of this build, and which row runs what. */
#ifndef SUBP_DISPATCH_H
#define SUBP_DISPATCH_H

#include "cpu.h"
#include "kernels.h"

typedef struct {
    const char *name, *needs;
    uint64_t features;
} subp_kernel_set;

extern const subp_kernel_set subp_kernel_sets[SUBP_SET_COUNT];

typedef struct {
    const char *name, *letter; /* of Python's buffer protocol */
    ptrdiff_t size;            /* bytes of an element */
} subp_dtype_traits;

extern const subp_dtype_traits subp_dtypes[SUBP_DTYPE_COUNT];
extern const char *const subp_operator_names[SUBP_OP_COUNT];
extern const char *const subp_activation_names[SUBP_ACT_COUNT];

/* All rows, worst first. */
extern const subp_row subp_row_table[];
extern const int subp_row_count;

/* What is to be run. */
typedef struct {
    enum subp_operator op;
    enum subp_dtype dtype;     /* of the activations */
    ptrdiff_t channels;        /* conv2d: those there are for a tile */
    const subp_window *window; /* depthwise */
    ptrdiff_t size;            /* winograd: outputs of a tile along a side */
} subp_request;

/* Whether a row can run it, on a CPU that has the features. */
int subp_row_fits(const subp_row *row, const subp_request *request);

/* The last row that fits and needs none but these features; NULL if there is none. */
const subp_row *subp_choose(const subp_row *rows, int count, uint64_t features, const subp_request *request);

/* What threads do around calls of a kernel; NULLs where it is nothing. */
subp_thread_state_fn subp_thread_state(const subp_row *kernel);

#endif
