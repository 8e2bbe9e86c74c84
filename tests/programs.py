"""Programs of several processes that must end: one that does not says where each of its threads stands."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path


def run_program(command: Sequence[str], seconds: float, attempts: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a program as a session of its own, which is aborted as a whole.

    Args:
        command: with Python, whose processes write their stacks to standard error when they are aborted.
        seconds: after which it is aborted.
        attempts: it may hang one time less than so, with a warning that has the stacks: for what other projects' code
            was seen to do.

    Raises:
        AssertionError: it did not end; the message has the stacks.
    """
    for attempt in range(attempts):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # pipes stay open in orphans
            environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
            process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            hung = process.poll() is None
            if hung:
                _abort(process)
            out.seek(0), err.seek(0)
            done = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
        if not hung:
            return done
        said = f"no end after {seconds} s\n{done.stdout}\n{done.stderr}"
        assert attempt + 1 < attempts, said
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    raise AssertionError("no attempts")


def session(leader: int) -> list[int]:
    """Processes of a session that have not ended."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(folder.name))
    return members


def _abort(process: subprocess.Popen) -> None:
    """End a session, children first: their stacks say more, and a parent would start others in their place."""
    for pid in sorted(session(process.pid), reverse=True):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pid in session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
