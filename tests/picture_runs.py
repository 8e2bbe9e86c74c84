"""Runs of ``test_resnet`` on a few pictures, of which one that ends leaves no process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
from nursery import Fork
from runs import TRAIN, environment

FLAGS = [
    *("test_resnet", "--img-size", "32", "--epochs", "1", "--batch-size", "4", "--no-export", "--experiment", "run"),
    *("--prune-start", "0", "--prune-end", "0", "--lr", "0.01"),
]


def members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def run(folder: Path, *more: str, ranks: int = 1, program: Path = TRAIN, start=Fork, **extra: str):
    """Exit code and standard error of a run that leaves no process."""
    forks = ["--run-path", "--start-method=fork"] if start is Fork else []
    launch = ["-m", "subp_dist.launch", "--standalone", f"--nproc-per-node={ranks}", *forks] if ranks > 1 else []
    flags = [*FLAGS, "--data-dir", str(folder), "--output", str(folder.parent / "out"), *more]
    process = start([*launch, str(program), *flags], environment(**extra))
    try:
        errors = process.communicate(timeout=600)[1]
        end = time.monotonic() + 60  # a busy machine takes its time to end what has been killed
        while members(process.pid):
            assert time.monotonic() < end, "processes are left"
            time.sleep(0.05)
    finally:
        for left in members(process.pid):
            left.kill()
    return process.returncode, errors
