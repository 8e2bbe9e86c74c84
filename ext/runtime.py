"""What this process may use: CPUs, threads, the compiled kernels and the set of them that is chosen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from subp_ext import affinity

_BUILD_HINT = (
    "subp_ext's compiled kernels are missing: build them with `pip install .`, or in a source tree with "
    "`python setup.py build_ext --inplace` (needs a C compiler with OpenMP)"
)


@cache
def kernels() -> ModuleType:
    """Returns the compiled module.

    Raises:
        ImportError: it was not built; the message says how to.
    """
    try:
        with affinity.unbound():
            found = import_module("subp_ext._kernels")
    except ImportError as error:
        raise ImportError(f"{_BUILD_HINT} ({error})") from error
    if hasattr(os, "register_at_fork"):
        # A forked child has none of the threads that GNU OpenMP keeps, and would wait for them for ever.
        os.register_at_fork(before=found.release_threads)
    return found


@cache
def forced_kernel_set() -> str | None:
    """Returns the kernel set that `SUBP_KERNEL` names: kernels that need more than it does are left out.

    Raises:
        ValueError: it is not built, or this CPU cannot run it.
    """
    return _forced()


def _forced() -> str | None:
    forced = os.environ.get("SUBP_KERNEL")
    if not forced:
        return None
    sets = kernels().kernel_sets()
    usable = [entry["name"] for entry in sets if entry["usable"]]
    for entry in sets:
        if entry["name"] == forced and not entry["usable"]:
            raise ValueError(
                f"SUBP_KERNEL={forced}: this CPU lacks {entry['needs']}; available here: {', '.join(usable)}"
            )
    if forced not in usable:
        raise ValueError(f"SUBP_KERNEL={forced}: no such kernel set; available here: {', '.join(usable)}")
    return forced


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """Returns the rows of all kernels of the build; listed once, for every layer asks."""
    return tuple(kernels().rows())


@cache
def kernel_set() -> str:
    """Returns the kernel set in use: the one that is forced, else the best this CPU can run.

    Raises:
        ValueError: as `forced_kernel_set`.
    """
    return _forced() or [entry["name"] for entry in kernels().kernel_sets() if entry["usable"]][-1]


def winograd() -> bool:
    """Returns whether convolutions may run after Winograd, which rounds a little more: `SUBP_WINOGRAD`, else yes.

    Raises:
        ValueError: `SUBP_WINOGRAD` is neither 0 nor 1.
    """
    value = os.environ.get("SUBP_WINOGRAD") or "1"
    if value not in ("0", "1"):
        raise ValueError(f"SUBP_WINOGRAD is {value!r}; expected 1, or 0 to run 3x3 convolutions tap by tap")
    return value == "1"


def dtype(asked: str | None = None) -> str | None:
    """Returns the type that a session computes in: the argument, else `SUBP_DTYPE`; None for what each file says.

    Raises:
        ValueError: it is none of "float32" and "bfloat16".
    """
    found = asked or os.environ.get("SUBP_DTYPE") or None
    if found not in (None, "float32", "bfloat16"):
        source = "dtype" if asked else "SUBP_DTYPE"
        raise ValueError(f"{source} is {found!r}; expected 'bfloat16' or 'float32', or none for what the file says")
    return found


def thread_count(threads: int | None = None) -> int:
    """Returns the threads to use: the argument, else `SUBP_NUM_THREADS`, `OMP_NUM_THREADS`, the CPUs of this process.

    Raises:
        ValueError: the argument or the first of the variables that is set is not a whole number of at least 1.
    """
    if threads is not None:
        return _positive(threads, "threads")
    if variable := os.environ.get("SUBP_NUM_THREADS"):
        return _positive(variable, "SUBP_NUM_THREADS")
    # A list is of nested parallel regions, the outermost first.
    outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return _positive(outermost, "OMP_NUM_THREADS") if outermost else usable_cpus()


def _positive(value: int | str, source: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    # The upper bound catches a slip of the pen before it becomes an out-of-memory in the thread library.
    if not 1 <= count <= 4096 or (not isinstance(value, str) and count != value):
        raise ValueError(f"{source} is {value!r}; expected a whole number from 1 to 4096")
    return count


def usable_cpus() -> int:
    """Returns the CPUs this process may use: the smaller of its affinity and its cgroup quota, at least 1."""
    found, quota = len(affinity.usable()), cgroup_cpus()
    return found if quota is None else max(1, min(found, int(quota)))


_MOUNT, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cgroup_cpus(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> float | None:
    """Returns the CPU quota of this process's control groups (v1 or v2) in CPUs, or None without one."""
    quotas = map(_quota, _control_groups("cpu", mount, membership))
    return min((quota for quota in quotas if quota is not None), default=None)


def _control_groups(controller: str, mount: Path, membership: Path) -> list[Path]:
    """Folders of this process's control groups (v1 or v2) and of their ancestors, whose limits hold too."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no control groups on this system
        return []
    folders = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [mount] if not controllers else [mount / controllers, mount / controller, mount / "cpu,cpuacct"]
        # Inside a container the own path may not be mounted, its ancestors are.
        parts = Path(group).parts[1:]
        folders += [root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts) + 1)]
    return folders


def _quota(directory: Path) -> float | None:
    """CPUs one control group allows, from v2's `cpu.max` or v1's pair of files."""
    try:
        if (directory / "cpu.max").exists():
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = ((directory / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
    except OSError:
        return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def memory_limit(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> int:
    """Returns the bytes this process may use: the least of physical memory, address space and control group."""
    limits = [1 << 46]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ImportError, OSError):
        import resource  # not on every system

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    for folder in _control_groups("memory", mount, membership):
        for file in ("memory.max", "memory.limit_in_bytes"):  # of v2 and of v1
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / file).read_text()))  # "max" where there is none
    return min(limits)


def return_memory() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cpu_info() -> dict[str, Any]:
    """Returns what was found and chosen.

    Keys: `machine`; `features` (instruction sets, usable or not); `kernel_sets` (those built: name, needs, usable);
    `kernel_set` and `why` it was chosen; `usable_cpus`; `default_threads`.

    Raises:
        ImportError, ValueError: as `kernel_set` and `thread_count`.
    """
    forced = os.environ.get("SUBP_KERNEL")
    return {
        "machine": platform.machine(),
        "features": kernels().cpu_features(),
        "kernel_sets": kernels().kernel_sets(),
        "kernel_set": kernel_set(),
        "why": "SUBP_KERNEL is set" if forced else "the best built set this CPU can run",
        "usable_cpus": usable_cpus(),
        "default_threads": thread_count(),
    }
