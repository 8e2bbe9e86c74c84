#define _GNU_SOURCE

#include "team.h"

#include <ctype.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    pthread_t thread;
    pthread_mutex_t *gate;
    long id;
} probe;

/* Of the calling thread: threads that OpenMP keeps for it, itself among them; and the least team that was refused, with
 * the largest that was there in its place. */
static _Thread_local int kept = 1, refused = 0, most = 0;

static void *wait_at_gate(void *argument) {
    probe *p = argument;
#ifdef __linux__
    p->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(p->gate);
    pthread_mutex_unlock(p->gate);
    return NULL;
}

/* Reads a size as OpenMP writes it, "64M"; without a unit it is in KiB. Returns 0 where it is none. */
static size_t stack_size(const char *name) {
    static const char units[] = "bkmg";
    const char *value = getenv(name);
    char *end = NULL;
    const unsigned long count = value ? strtoul(value, &end, 10) : 0;
    if (!value || end == value) return 0;
    end += strspn(end, " \t");
    const char *unit = strchr(units, *end ? tolower((unsigned char)*end) : 'k');
    return unit ? (size_t)count << 10 * (unit - units) : 0;
}

/* Threads of OpenMP may have larger stacks than others, for which there may be no room. */
static void set_stack_size(pthread_attr_t *attributes) {
    const size_t size = stack_size("OMP_STACKSIZE");
    pthread_attr_setstacksize(attributes, size ? size : stack_size("GOMP_STACKSIZE")); /* leaves it where it is 0 */
}

enum { PATIENCE = 1000, TRIES = 10, BETWEEN_TRIES_NS = 1000 * 1000 };

/* A thread that was joined counts against the limits until the system has let go of it. */
static void wait_until_gone(const probe *p) {
#ifdef __linux__
    for (int i = 0; i < PATIENCE && syscall(SYS_tgkill, getpid(), p->id, 0) == 0; i++) sched_yield();
#else
    (void)p;
#endif
}

/* How many of `count` threads can be there at once. */
static int creatable(int count) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    probe *probes = malloc((size_t)count * sizeof(probe));
    if (!probes) return 0;
    int made = 0;
    pthread_attr_init(&attributes);
    set_stack_size(&attributes);
    pthread_mutex_lock(&gate);
    for (; made < count; made++) {
        probes[made].gate = &gate;
        if (pthread_create(&probes[made].thread, &attributes, wait_at_gate, &probes[made])) break;
    }
    pthread_mutex_unlock(&gate);
    pthread_attr_destroy(&attributes);
    for (int i = 0; i < made; i++) pthread_join(probes[i].thread, NULL);
    for (int i = 0; i < made; i++) wait_until_gone(&probes[i]);
    free(probes);
    return made;
}

/* The same, with some patience: threads of a team that has shrunk end when they come to it, and count until then. */
static int creatable_soon(int count) {
    int made = creatable(count);
    for (int i = 0; made < count && i < TRIES; i++) {
        nanosleep(&(struct timespec){.tv_nsec = BETWEEN_TRIES_NS}, NULL);
        made = creatable(count);
    }
    return made;
}

/* Has OpenMP create the threads of a team, which it keeps for the calling thread. Returns how many there are, itself
 * among them: OMP_THREAD_LIMIT may allow fewer. */
static int start(int threads) {
    int found = 1;
    omp_set_dynamic(0); /* or OpenMP would end some of them under load, and create them again where nobody looks */
#pragma omp parallel num_threads(threads)
#pragma omp master
    found = omp_get_num_threads();
    return found;
}

int subp_team(int wanted) {
    if (refused && wanted >= refused) wanted = most;
    if (wanted <= kept) return kept = wanted; /* OpenMP ends the others */
    kept = start(kept + creatable_soon(wanted - kept));
    if (kept < wanted) {
        refused = wanted;
        most = kept;
    }
    return kept;
}

void subp_team_released(void) {
    kept = 1;
    refused = most = 0;
}
