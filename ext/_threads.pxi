# Teams of threads: OpenMP's, as large as the system allows.

_warned = []


def release_threads():
    """Ends the threads that OpenMP keeps for the calling one; the next run starts new ones."""
    omp_pause_resource_all(omp_pause_soft)
    subp_team_released()


cdef int _team(int wanted) except -1:
    """As many threads as a parallel region may have, with one warning per process if they are fewer than wanted."""
    cdef int found = subp_team(wanted)
    if found < wanted and not _warned:
        _warned.append(found)
        warn(
            f"{found} of {wanted} threads run, and later runs may have fewer too, because the system refuses to create "
            "more: raise its limits (ulimit -u and -v, pids.max, OMP_THREAD_LIMIT), or ask for fewer threads",
            RuntimeWarning,
        )
    return found
