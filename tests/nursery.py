"""Programs that start as forks of a process that has imported torch, timm and this package: in a second, not fifteen.

They are sessions of their own, with their own arguments, environment and output, and end as an interpreter ends:
threads are waited for, then exit handlers run. They do not test the start of an interpreter: keep a real one beside
them.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver, get_context, set_start_method
from pathlib import Path

_FORKS = get_context("forkserver")


class Fork:
    """As much of ``subprocess.Popen`` as tests of runs need.

    Args:
        command: ``-m MODULE``, a command of this package, or the path of a program; and its arguments.
        env: all of its environment.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        _start_server()
        self._outputs = [tempfile.NamedTemporaryFile("r+") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._outputs]
        self._process = _FORKS.Process(target=_become, args=(list(map(str, command)), env, names))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed, once it has ended, on standard output and error."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fork", timeout)
        return tuple(Path(file.name).read_text() for file in self._outputs)


def _start_server() -> None:
    """Start the process that others are forks of, on one thread."""
    _FORKS.set_forkserver_preload(["subp_dist.train", "subp_dist.launch", "subp_dist.data.write"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _become(command: list[str], env: dict[str, str], outputs: list[str]) -> None:
    set_start_method(None, force=True)  # the default one, for its own children
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background, which ignores it
    os.setsid()
    for number, name in enumerate(outputs, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    code = 1
    try:
        _run(command)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(command: list[str]) -> None:
    if command[0] == "-m":
        sys.argv = command[1:]
        module = importlib.import_module(command[1])
        getattr(module, "cli", getattr(module, "main", None))()
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
