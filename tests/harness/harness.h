/* Drives the kernels with random shapes against double precision, in buffers of exactly the size they may touch.
 * run.py builds and runs it: COUNT cases of each check for each kernel set of this CPU, of the seeds from SEED on.
 * A case is its seed: a count of 1 repeats one that failed. */
#ifndef HARNESS_H
#define HARNESS_H

#include <stddef.h>
#include <stdint.h>

#include "dispatch.h"

/* --- random numbers: of one case, by its seed --- */
void seed_case(uint64_t seed);
int64_t between(int64_t low, int64_t high); /* both included */
int one_in(int n);
float normal_like(void); /* mean 0, standard deviation 1, within +-3.5 */

/* --- buffers: an access beyond the end, or before the start, meets the sanitizer or a page without access --- */
void *exact(size_t size);                       /* uninitialised */
float *exact_floats(size_t count, float value); /* all `value` */
float *random_floats(size_t count);
void free_buffers(void); /* all of a case */

/* --- failures --- */
void describe(const char *format, ...) __attribute__((format(printf, 1, 2))); /* the case, told if it fails */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void catch_faults(void); /* lets them tell the case too */

/* --- the oracle's side --- */
/* A value, and the sum of the magnitudes that were added for it: what rounding errors are measured in. */
typedef struct {
    double value, size;
} sum;

void add_product(sum *s, float a, float b);
void add_term(sum *s, float a);
double activation_oracle(int activation, double x);
/* Fails unless `got` is activation(s) up to the rounding of `terms` additions. */
void check_sum(const char *what, ptrdiff_t at, float got, sum s, ptrdiff_t terms, int activation);
/* What a kernel must leave alone: in outputs CANARY, in inputs NaN, which shows in every result it reaches. */
#define CANARY (-7.25e20f)

/* --- the checks: one case each, of the kernel set `isa` --- */
void check_tile(int isa, const subp_kernel *kernel);
void check_convolution(int isa);
void check_winograd(int isa);
void check_chain(int isa);
void check_depthwise(int isa);
void check_pool(int isa);
void check_elements(int isa);
void check_norm(int isa);
void check_halve(int isa);

#endif
