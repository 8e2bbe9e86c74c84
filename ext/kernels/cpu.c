#include "cpu.h"

#include <string.h>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))

/* __builtin_cpu_supports also asks the operating system whether it saves the registers. */
#define SUBP_X86_FEATURES(FEATURE)                                                                                \
    FEATURE(sse2) FEATURE(avx) FEATURE(avx2) FEATURE(fma) FEATURE(avx512f) FEATURE(avx512bw) FEATURE(avx512dq)    \
    FEATURE(avx512vl) FEATURE(avx512vnni) FEATURE(avx512bf16)

#define FEATURE_NAME(name) #name,
const char *const subp_cpu_features[] = {SUBP_X86_FEATURES(FEATURE_NAME) 0};

int subp_cpu_has(const char *feature) {
    __builtin_cpu_init();
#define FEATURE_TEST(name) \
    if (!strcmp(feature, #name)) return __builtin_cpu_supports(#name) != 0;
    SUBP_X86_FEATURES(FEATURE_TEST)
    return 0;
}

#elif defined(__aarch64__)

/* NEON is part of the architecture; for the rest Linux has one bit each, in words that it hands to every process. */
#ifdef __linux__
#include <sys/auxv.h>
#define SUBP_ARM_FEATURES(FEATURE)                                                                              \
    FEATURE(fp16, AT_HWCAP, 10) FEATURE(dotprod, AT_HWCAP, 20) FEATURE(sve, AT_HWCAP, 22)                       \
    FEATURE(sve2, AT_HWCAP2, 1) FEATURE(i8mm, AT_HWCAP2, 13) FEATURE(bf16, AT_HWCAP2, 14)
#else
#define SUBP_ARM_FEATURES(FEATURE)
#endif

#define FEATURE_NAME(name, word, bit) #name,
const char *const subp_cpu_features[] = {"neon", SUBP_ARM_FEATURES(FEATURE_NAME) 0};

int subp_cpu_has(const char *feature) {
    if (!strcmp(feature, "neon")) return 1;
#define FEATURE_TEST(name, word, bit) \
    if (!strcmp(feature, #name)) return getauxval(word) >> bit & 1;
    SUBP_ARM_FEATURES(FEATURE_TEST)
    return 0;
}

#else

const char *const subp_cpu_features[] = {0};

int subp_cpu_has(const char *feature) {
    (void)feature;
    return 0;
}

#endif
