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

/* --- planes of an output --- */
ptrdiff_t *multiples(ptrdiff_t count, ptrdiff_t size); /* where planes are that follow each other */
/* Where `of_group` planes of each group are: as they follow each other, or in any order within the group. */
const ptrdiff_t *random_places(ptrdiff_t groups, ptrdiff_t of_group, ptrdiff_t size);
ptrdiff_t place_at(const ptrdiff_t *places, ptrdiff_t offset); /* the number of the plane that is there */

/* --- elements of any data type --- */
size_t element_size(enum subp_dtype dtype);
double element(enum subp_dtype dtype, const void *array, ptrdiff_t i);
void set_element(enum subp_dtype dtype, void *array, ptrdiff_t i, double value);
void *exact_elements(enum subp_dtype dtype, size_t count, double value); /* all `value` */
void *random_elements(enum subp_dtype dtype, size_t count);
const float *as_floats(enum subp_dtype dtype, const void *array, size_t count);

/* --- failures --- */
void describe(const char *format, ...) __attribute__((format(printf, 1, 2))); /* the case, told if it fails */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void catch_faults(void); /* lets them tell the case too */

/* --- the oracle's side --- */
/* A value, and the sum of the magnitudes that were added for it: what rounding errors are measured in. */
typedef struct {
    double value, size;
} sum;

void add_product(sum *s, double a, double b);
void add_term(sum *s, double a);
double activation_oracle(int activation, double x);
/* Fails unless `got` is activation(s) up to the rounding of `terms` additions, times the tolerance of a row. */
void check_sum(const char *what, ptrdiff_t at, double got, sum s, ptrdiff_t terms, int activation, double tolerance);
/* Likewise where the result is rounded once more, to `rounding` of its size. */
void check_rounded(const char *what, ptrdiff_t at, double got, sum s, ptrdiff_t terms, int activation, double tolerance,
                   double rounding);
/* What a kernel must leave alone: in outputs CANARY, in inputs NaN, which shows in every result it reaches. */
#define CANARY (-7.25e20f)

/* --- rows --- */
/* The row of float32 that forcing a kernel set would choose: `size` is a tile's channels, or its outputs along a
 * side. */
const subp_row *choose(int set, enum subp_operator op, ptrdiff_t size);
const subp_row *choose_of(int set, enum subp_operator op, enum subp_dtype dtype); /* as choose, of any type */
const subp_row *choose_winograd(int set, enum subp_operator op, enum subp_dtype dtype, ptrdiff_t size);
const subp_row *choose_tile(int set, enum subp_dtype dtype, ptrdiff_t channels);
/* Likewise for planes of a type. */
const subp_row *choose_window(int set, enum subp_dtype dtype, const subp_window *window);
subp_window random_depthwise_window(void);

/* --- the checks: one case each, of a kernel set --- */
void check_tile(int set, const subp_row *kernel);
void check_word_tile(const subp_row *kernel); /* of bfloat16 */
void check_convolution(int set);
void check_int8(int set);
void check_bfloat16(int set);
void check_winograd(int set);
void check_fused_depthwise(int set);
void check_depthwise(int set);
void check_bfloat16_depthwise(int set);
void check_int8_depthwise(int set);
void check_pool(int set);
void check_elements(int set);
void check_norm(int set);
void check_halve(int set);
void check_bfloat16_halve(int set);
void check_quantized_pool(int set);
void check_quantized_elements(int set);
void check_bfloat16_pool(int set);
void check_bfloat16_elements(int set);
void check_bfloat16_norm(int set);

#endif
