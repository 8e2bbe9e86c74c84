/* Random numbers, guarded buffers, failures and the comparison. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bfloat16.h"
#include "harness.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static uint64_t state;
static unsigned long long current_seed;
static char current_case[1024];

void seed_case(uint64_t seed) {
    state = current_seed = seed;
    current_case[0] = 0;
}

/* splitmix64: any seed will do, neighbouring ones too. */
static uint64_t next(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int64_t between(int64_t low, int64_t high) { return low + (int64_t)(next() % (uint64_t)(high - low + 1)); }

int one_in(int n) { return between(1, n) == 1; }

float normal_like(void) {
    double total = 0;
    for (int i = 0; i < 4; i++) total += (double)(next() >> 11) / 9007199254740992.0 - 0.5;
    return (float)(total * 1.7320508);
}

/* --- buffers --- */

enum { MAX_BUFFERS = 64 };
static struct {
    void *at;
    size_t mapped; /* 0: from malloc */
} buffers[MAX_BUFFERS];
static int buffer_count;

void *exact(size_t size) {
    if (buffer_count == MAX_BUFFERS) fail("more than %d buffers", MAX_BUFFERS);
    /* The sanitizer watches malloc's memory, but not what masked loads and stores touch: pages do. */
    if (SANITIZED && one_in(2)) {
        void *start = buffers[buffer_count].at = malloc(size);
        buffers[buffer_count++].mapped = 0;
        return start ? start : (fail("out of memory"), NULL);
    }
    /* The buffer touches a page without access with its end, or in some cases with its start. */
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (size + page - 1) / page * page, mapped = room + 2 * page;
    char *whole = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED || mprotect(whole + page, room, PROT_READ | PROT_WRITE)) fail("out of memory");
    buffers[buffer_count].at = whole;
    buffers[buffer_count++].mapped = mapped;
    return one_in(4) ? whole + page : whole + page + room - size;
}

float *exact_floats(size_t count, float value) {
    float *floats = exact(count * sizeof(float));
    for (size_t i = 0; i < count; i++) floats[i] = value;
    return floats;
}

float *random_floats(size_t count) {
    float *floats = exact(count * sizeof(float));
    for (size_t i = 0; i < count; i++) floats[i] = normal_like();
    return floats;
}

void free_buffers(void) {
    while (buffer_count) {
        buffer_count--;
        if (buffers[buffer_count].mapped)
            munmap(buffers[buffer_count].at, buffers[buffer_count].mapped);
        else
            free(buffers[buffer_count].at);
    }
}

/* --- planes of an output --- */

ptrdiff_t *multiples(ptrdiff_t count, ptrdiff_t size) {
    ptrdiff_t *places = exact((size_t)count * sizeof(ptrdiff_t));
    for (ptrdiff_t p = 0; p < count; p++) places[p] = p * size;
    return places;
}

const ptrdiff_t *random_places(ptrdiff_t groups, ptrdiff_t of_group, ptrdiff_t size) {
    ptrdiff_t *places = multiples(groups * of_group, size);
    const int shuffled = !one_in(3);
    for (ptrdiff_t p = 0; shuffled && p < groups * of_group; p++) {
        const ptrdiff_t other = p - between(0, p % of_group), place = places[p];
        places[p] = places[other];
        places[other] = place;
    }
    return places;
}

ptrdiff_t place_at(const ptrdiff_t *places, ptrdiff_t offset) {
    ptrdiff_t p = 0;
    while (places[p] != offset) p++;
    return p;
}

/* --- elements --- */

#define SUBP_DTYPE(name, type, letter, to_double, from_double) \
    case SUBP_DTYPE_##name:                                    \
        return sizeof(type);
size_t element_size(enum subp_dtype dtype) {
    switch (dtype) {
#include "dtypes.inc"
    default: fail("data type %d is not known", dtype);
    }
}

#define SUBP_DTYPE(name, type, letter, to_double, from_double) \
    case SUBP_DTYPE_##name: {                                  \
        const type x = ((const type *)array)[i];               \
        return to_double;                                      \
    }
double element(enum subp_dtype dtype, const void *array, ptrdiff_t i) {
    switch (dtype) {
#include "dtypes.inc"
    default: fail("data type %d is not known", dtype);
    }
}

#define SUBP_DTYPE(name, type, letter, to_double, from_double) \
    case SUBP_DTYPE_##name:                                    \
        ((type *)array)[i] = from_double;                      \
        break;
void set_element(enum subp_dtype dtype, void *array, ptrdiff_t i, double x) {
    switch (dtype) {
#include "dtypes.inc"
    default: fail("data type %d is not known", dtype);
    }
}

void *exact_elements(enum subp_dtype dtype, size_t count, double value) {
    void *array = exact(count * element_size(dtype));
    for (size_t i = 0; i < count; i++) set_element(dtype, array, (ptrdiff_t)i, value);
    return array;
}

void *random_elements(enum subp_dtype dtype, size_t count) {
    void *array = exact(count * element_size(dtype));
    for (size_t i = 0; i < count; i++) set_element(dtype, array, (ptrdiff_t)i, normal_like());
    return array;
}

const float *as_floats(enum subp_dtype dtype, const void *array, size_t count) {
    float *floats = exact(count * sizeof(float));
    for (size_t i = 0; i < count; i++) floats[i] = (float)element(dtype, array, (ptrdiff_t)i);
    return floats;
}

/* --- failures --- */

void describe(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(current_case, sizeof(current_case), format, arguments);
    va_end(arguments);
}

static void tell_case(void) { fprintf(stderr, "seed %llu: %s\n  ", current_seed, current_case); }

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    tell_case();
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

#ifdef __SANITIZE_ADDRESS__
void catch_faults(void) { __sanitizer_set_death_callback(tell_case); }
#else
static void on_fault(int number) {
    (void)number;
    /* Nothing to return to, so it matters little that these are not safe in a signal handler. */
    fail("access outside of a buffer, or an instruction this CPU does not have");
}

void catch_faults(void) {
    const int numbers[] = {SIGSEGV, SIGBUS, SIGILL};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) signal(numbers[i], on_fault);
}
#endif

/* --- rows --- */

static const subp_row *choose_row(int set, subp_request request) {
    return subp_choose(subp_row_table, subp_row_count, subp_kernel_sets[set].features, &request);
}

const subp_row *choose(int set, enum subp_operator op, ptrdiff_t size) {
    return choose_row(set, (subp_request){.op = op, .dtype = SUBP_DTYPE_float32, .channels = size, .size = size});
}

const subp_row *choose_of(int set, enum subp_operator op, enum subp_dtype dtype) {
    return choose_row(set, (subp_request){.op = op, .dtype = dtype});
}

const subp_row *choose_winograd(int set, enum subp_operator op, enum subp_dtype dtype, ptrdiff_t size) {
    return choose_row(set, (subp_request){.op = op, .dtype = dtype, .size = size});
}

const subp_row *choose_tile(int set, enum subp_dtype dtype, ptrdiff_t channels) {
    return choose_row(set, (subp_request){.op = SUBP_OP_conv2d, .dtype = dtype, .channels = channels});
}

const subp_row *choose_window(int set, enum subp_dtype dtype, const subp_window *window) {
    return choose_row(set, (subp_request){.op = SUBP_OP_depthwise, .dtype = dtype, .window = window});
}

/* --- oracle --- */

void add_product(sum *s, double a, double b) {
    s->value += a * b;
    s->size += fabs(a * b);
}

void add_term(sum *s, double a) {
    s->value += a;
    s->size += fabs(a);
}

static double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

double activation_oracle(int activation, double x) {
    switch (activation) {
    case SUBP_ACT_none: return x;
    case SUBP_ACT_relu: return x < 0 ? 0 : x;
    case SUBP_ACT_relu6: return clamp(x, 0, 6);
    case SUBP_ACT_silu: return x / (1 + exp(-x));
    case SUBP_ACT_hardswish: return x * clamp(x + 3, 0, 6) / 6;
    case SUBP_ACT_hardsigmoid: return clamp(x + 3, 0, 6) / 6;
    case SUBP_ACT_sigmoid: return 1 / (1 + exp(-x));
    case SUBP_ACT_tanh: return tanh(x);
    case SUBP_ACT_gelu: return x * erfc(-x / sqrt(2)) / 2;
    case SUBP_ACT_gelu_tanh: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case SUBP_ACT_mish: return x * tanh(x > 30 ? x : log1p(exp(x)));
    case SUBP_ACT_leaky_relu: return x < 0 ? 0.01 * x : x;
    default: fail("activation %d has no oracle: add it here", activation);
    }
}

void check_sum(const char *what, ptrdiff_t at, double got, sum s, ptrdiff_t terms, int activation, double tolerance) {
    check_rounded(what, at, got, s, terms, activation, tolerance, 0);
}

void check_rounded(const char *what, ptrdiff_t at, double got, sum s, ptrdiff_t terms, int activation, double tolerance,
                   double rounding) {
    const double eps = 1.1920929e-7 * tolerance, slope = 1.5; /* the steepest activation's, hardswish at 3 */
    double want = activation_oracle(activation, s.value), bound = (double)(terms + 3) * eps * s.size;
    if (activation)
        bound = slope * bound + 8 * eps * fmax(fabs(want), fmin(fabs(s.value), 1)) + 1e-37;
    if (rounding > 0) bound += rounding * (fabs(want) + bound) + 1e-37; /* some take numbers that small for 0 */
    if (isnan(want) ? isnan(got) : fabs(got - want) <= bound) return;
    fail("%s %td is %.9g; expected %.9g within %.3g", what, at, got, want, bound);
}
