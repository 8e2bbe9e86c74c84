"""The CPUs of this process, also where OpenMP has bound its main thread to some of them.

With `OMP_PROC_BIND` or `OMP_PLACES`, OpenMP's library narrows the affinity of the thread that loads it, and what asks
afterwards, another copy of that library too, sees a single CPU. Each copy knows as its places the CPUs that it found.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

# What makes OpenMP bind threads.
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_LIBRARIES = ("libgomp", "libomp", "libiomp5")


def usable() -> set[int]:
    """The CPUs that this process may use: those of the calling thread, or all of OpenMP's where that has bound it.

    OpenMP binds a thread that calls it to the first of its places; CPUs other than those were chosen by somebody since.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set(range(os.cpu_count() or 1))
    found = os.sched_getaffinity(0)
    if any(os.environ.get(name) for name in BINDING):
        bound = [places for places in map(_places, _loaded()) if places and places[0] == found]
        return found.union(*itertools.chain.from_iterable(bound))
    return found


@contextlib.contextmanager
def unbound() -> Iterator[None]:
    """Gives the calling thread all CPUs of the process while a library is loaded that looks at them."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before, whole = os.sched_getaffinity(0), usable()
    if whole == before:
        yield
        return
    os.sched_setaffinity(0, whole)
    try:
        yield
    finally:
        if os.sched_getaffinity(0) == whole:  # else the library has bound the thread itself
            os.sched_setaffinity(0, before)


def _loaded() -> set[str]:
    """Paths of the OpenMP libraries in this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/") and len(line.split(maxsplit=5)) > 5}
    return {path for path in paths if Path(path).name.startswith(_LIBRARIES)}


def _places(path: str) -> list[set[int]]:
    """The CPUs of each place of an OpenMP library; none where it binds nothing."""
    try:
        library = ctypes.CDLL(path)
        places = []
        for place in range(library.omp_get_num_places()):
            ids = (ctypes.c_int * library.omp_get_place_num_procs(place))()
            library.omp_get_place_proc_ids(place, ids)
            places.append(set(ids))
    except (OSError, AttributeError):
        return []
    return places
