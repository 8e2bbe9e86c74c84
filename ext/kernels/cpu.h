/* What this CPU and operating system support, asked at run time. */
#ifndef SUBP_CPU_H
#define SUBP_CPU_H

#include <stdint.h>

#define SUBP_FEATURE(name, architecture) SUBP_FEATURE_##name,
enum subp_feature {
#include "features.inc"
    SUBP_FEATURE_COUNT
};

/* A set of features is a mask of them. */
#define SUBP_HAS(feature) (1ull << SUBP_FEATURE_##feature)

extern const char *const subp_feature_names[SUBP_FEATURE_COUNT];

/* Those of the architecture that this was compiled for. */
uint64_t subp_cpu_known(void);

/* Those that can be used here. */
uint64_t subp_cpu_features(void);

#endif
