/* Small functions that several files need. */
#ifndef SUBP_SHARED_H
#define SUBP_SHARED_H

#include <stddef.h>

static inline ptrdiff_t subp_smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Of a number of at least 0. */
static inline ptrdiff_t subp_ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

static inline ptrdiff_t subp_clip(ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Element `count` of an array whose elements have `size` bytes. */
static inline const void *subp_at(const void *array, ptrdiff_t count, ptrdiff_t size) {
    return (const char *)array + count * size;
}

static inline void *subp_at_out(void *array, ptrdiff_t count, ptrdiff_t size) { return (char *)array + count * size; }

/* As subp_at; NULL stays NULL. */
static inline const void *subp_at_if(const void *array, ptrdiff_t count, ptrdiff_t size) {
    return array ? subp_at(array, count, size) : NULL;
}

#endif
