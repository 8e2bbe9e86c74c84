#define _GNU_SOURCE

#include "cpu.h"

#define SUBP_FEATURE(name, architecture) #name,
const char *const subp_feature_names[SUBP_FEATURE_COUNT] = {
#include "features.inc"
};

/* Architectures, and which this is compiled for. */
enum { x86, arm, other };

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define HERE x86

/* The parts of the register file that the operating system saves. */
static uint64_t saved_state(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

/* Whether a bit of cpuid's leaf 7 is set: of eax (register 0), ebx, ecx or edx. */
static int leaf_7(unsigned part, int number, int bit) {
    unsigned r[4];
    return __get_cpuid_count(7, part, &r[0], &r[1], &r[2], &r[3]) && r[number] >> bit & 1;
}

/* Whether this process may use AMX, now that it asks. Linux wants to be asked, once for all threads there will be,
 * because the state is large; it refuses where somebody's stack for signals is too small for it. */
static int amx_is_permitted(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return 1;
#endif
}

static uint64_t found(void) {
    uint64_t mask = 0;
    __builtin_cpu_init();
    /* This also asks the operating system whether it saves the registers. */
#define TEST(name) \
    if (__builtin_cpu_supports(#name)) mask |= SUBP_HAS(name);
    TEST(sse2) TEST(avx) TEST(avx2) TEST(fma) TEST(avx512f) TEST(avx512bw) TEST(avx512dq) TEST(avx512vl)
    TEST(avx512vbmi) TEST(avx512vnni) TEST(avx512bf16)
    /* Older compilers do not know the names of these. */
    if (mask & SUBP_HAS(avx2) && leaf_7(1, 0, 4)) mask |= SUBP_HAS(avxvnni);
    if ((saved_state() >> 17 & 3) == 3 && leaf_7(0, 3, 24) && amx_is_permitted()) {
        mask |= SUBP_HAS(amx_tile);
        if (leaf_7(0, 3, 25)) mask |= SUBP_HAS(amx_int8);
        if (leaf_7(0, 3, 22)) mask |= SUBP_HAS(amx_bf16);
    }
#ifdef SUBP_EMULATED_TILES /* of the tests' builds alone: tile_registers.h */
    mask |= SUBP_HAS(amx_tile) | SUBP_HAS(amx_bf16);
#endif
    return mask;
}

#elif defined(__aarch64__)

#ifdef __linux__
#include <sys/auxv.h>
#endif

#define HERE arm

/* NEON is part of the architecture; for the rest Linux has one bit each, in words that it hands to every process. */
static uint64_t found(void) {
    uint64_t mask = SUBP_HAS(neon);
#ifdef __linux__
#define TEST(name, word, bit) \
    if (getauxval(word) >> bit & 1) mask |= SUBP_HAS(name);
    TEST(fp16, AT_HWCAP, 10)
    TEST(dotprod, AT_HWCAP, 20)
    TEST(sve, AT_HWCAP, 22)
    TEST(sve2, AT_HWCAP2, 1)
    TEST(i8mm, AT_HWCAP2, 13)
    TEST(bf16, AT_HWCAP2, 14)
#endif
    return mask;
}

#else

#define HERE other

static uint64_t found(void) { return 0; }

#endif

uint64_t subp_cpu_known(void) {
    uint64_t mask = 0;
#define SUBP_FEATURE(name, architecture) mask |= architecture == HERE ? SUBP_HAS(name) : 0;
#include "features.inc"
    return mask;
}

uint64_t subp_cpu_features(void) { return found(); }
