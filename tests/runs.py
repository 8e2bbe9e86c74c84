"""Starting runs of several ranks as real processes, and comparing what they leave, for the tests of faults."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from nursery import Fork
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "tests/train_program.py"
LAUNCH = [sys.executable, "-m", "subp_dist.launch"]
# Ranks that are forks of a launcher that has imported everything, a fork itself: a start takes a second instead of ten.
PRELOADED = ["-m", "subp_dist.launch", "--run-path", "--start-method=fork"]
FLAGS = [
    *("--data-dir", "builtin", "--epochs", "3", "--batch-size", "32", "--lr", "0.05", "--no-export"),
    # The schedule runs to the last epoch, so that faults fall into it; the moving average must survive them, too.
    *("--prune-start", "0", "--prune-end", "2", "--model-ema", "--model-ema-decay", "0.9", "--experiment", "run"),
]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without torchrun's, on one thread a rank."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "LOCAL_", "RANK"))}
    return base | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | extra


def start(
    output: Path,
    *flags: str,
    model: str = "test_resnet",
    torchrun: Sequence[str] = (),
    prefix: Sequence[str] = (),
    launch: Sequence[str] = LAUNCH,
    **extra: str,
) -> subprocess.Popen | Fork:
    """Start ranks on few digits; ``torchrun`` flags come after those of one machine with two ranks."""
    where = [] if any(flag.startswith("--nnodes") for flag in torchrun) else ["--standalone", "--nproc-per-node=2"]
    output.mkdir(parents=True, exist_ok=True)
    command = [
        *(*prefix, *launch, *where, *torchrun, str(ROOT / "tests/faults.py"), model, *FLAGS),
        *("--output", str(output), *flags),
    ]
    settings = environment(FAULT_MARK=str(output / "mark"), **extra)
    if launch is PRELOADED:
        return Fork(command, settings)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=settings, start_new_session=True, **pipes)


def finish(process: subprocess.Popen | Fork, seconds: float = 1500) -> subprocess.CompletedProcess:
    """Wait for a run's end; kill it all if it does not come."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"no end after {seconds} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess([], process.returncode, out, err)


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """The processes that a launcher has started, oldest first."""
    children: list[int] = []
    for task in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            children += map(int, task.read_text().split())
    return sorted(children)


def states_equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def assert_same_end(folder: Path, expected: Path) -> None:
    """Weights, masks, moving average, optimizer and every epoch's figures are those of the other run, bit for bit."""
    a, b = (torch.load(run / "last.pt", weights_only=True) for run in (folder, expected))
    assert a.keys() == b.keys() and {"model", "optimizer"} <= a.keys()
    for part in a.keys() - {"config"}:
        assert states_equal(a[part], b[part]), part
    assert states_equal(load_file(folder / "model.safetensors"), load_file(expected / "model.safetensors"))
    rows = [list(csv.DictReader((run / "summary.csv").open())) for run in (folder, expected)]
    for row in rows[0] + rows[1]:
        for timing in ("seconds", "train_img_per_s", "train_data_time"):
            del row[timing]
    assert rows[0] == rows[1]
    assert scalars(folder) == scalars(expected)
    assert not list(folder.glob(".*.tmp")), "leftovers"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of all that TensorBoard shows of a run as curves, but for timings.

    What is noted once, at the end, may stand there twice: a run that is killed after that exports again.
    """
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"]) - {"training/img_per_s", "training/data_time"}
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    return {tag: list(dict.fromkeys(c)) if tag.startswith("training_result/") else c for tag, c in curves.items()}
