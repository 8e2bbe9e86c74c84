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

const char *const subp_cpu_features[] = {"neon", 0}; /* part of the architecture */

int subp_cpu_has(const char *feature) { return !strcmp(feature, "neon"); }

#else

const char *const subp_cpu_features[] = {0};

int subp_cpu_has(const char *feature) {
    (void)feature;
    return 0;
}

#endif
