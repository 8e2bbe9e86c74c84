/* What this CPU and operating system support, asked at run time. */
#ifndef SUBP_CPU_H
#define SUBP_CPU_H

/* 1 if the named feature (one of subp_cpu_features) can be used, else 0. */
int subp_cpu_has(const char *feature);

/* The names subp_cpu_has knows for this architecture, ended by NULL. */
extern const char *const subp_cpu_features[];

#endif
