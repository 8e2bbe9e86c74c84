#define _GNU_SOURCE

#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
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
    probe *probes = malloc((size_t)count * sizeof(probe));
    if (!probes) return 0;
    int made = 0;
    pthread_mutex_lock(&gate);
    for (; made < count; made++) {
        probes[made].gate = &gate;
        if (pthread_create(&probes[made].thread, NULL, wait_at_gate, &probes[made])) break;
    }
    pthread_mutex_unlock(&gate);
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

int subp_team(int wanted) {
    if (refused && wanted >= refused) wanted = most;
    if (wanted > kept) {
        const int more = wanted - kept, made = creatable_soon(more);
        if (made < more) {
            refused = wanted;
            wanted = most = kept + made;
        }
    }
    return kept = wanted; /* of a smaller team OpenMP ends the others */
}

void subp_team_released(void) {
    kept = 1;
    refused = most = 0;
}
