"""Thirty kinds of error, each in a run of two ranks with four workers each (failing.py): the run ends with one line, an
exit code of the kind, the right rank and file, and no process left. Most are slow; what a run takes to end is printed.

Pictures and networks as in test_data_errors.py. The bound on time is far above what it takes, against hanging alone.
"""

import re
import time
from pathlib import Path

import pytest
from picture_runs import run
from runs import ROOT

NAMED = "rank RANK: .*train/dog/00.png: "
# What goes wrong: the exit code, and what the line says after "error: ". In CI those with a mark.
ENDS = {
    "decode": (2, NAMED + r"cannot be read \(ArithmeticError: odd\)"),
    "cut picture": (2, NAMED + r"cannot be read \(OSError: image file is truncated"),
    "missing picture": (2, NAMED + r"cannot be read \(FileNotFoundError"),
    "forbidden picture": (2, NAMED + r"cannot be read \(PermissionError"),
    "memory of a picture": (2, NAMED + r"cannot be read \(MemoryError"),
    "validation picture": (2, r"rank RANK: .*val/dog/00.png: cannot be read \(OSError"),
    "transform": (2, NAMED + r"its augmentation or resize failed \(ArithmeticError: odd\)"),
    "transform exits": (5, "rank RANK: a process that loads pictures died"),
    "worker killed": (5, "rank RANK: a process that loads pictures died"),
    "worker crashes": (5, "rank RANK: a process that loads pictures died"),
    "worker exits": (5, "rank RANK: a process that loads pictures died"),
    "collate": (5, "rank RANK: loading failed: ArithmeticError: odd"),
    "shared memory": (5, "rank RANK: loading failed: RuntimeError: .*No space left on device"),
    "no process": (5, "rank 1: loading failed: BlockingIOError"),
    "length": (1, "rank 1 failed first: .*odd"),
    "hook": (1, "rank 1 failed first: .*odd"),
    "memory of a GPU": (1, "rank 1 failed first: .*CUDA out of memory"),
    "optimizer": (1, "rank 0 failed first: .*odd"),
    "mask update": (1, "rank 1 failed first: .*odd"),
    "validation of rank 1": (1, "rank 1 failed first: .*odd"),
    "validation": (1, "rank . failed first: .*odd"),
    "checkpoint": (2, "cannot write .*No space left on device"),
    "figures": (2, "cannot write .*No space left on device"),
    "TensorBoard": (2, "cannot write .*No space left on device"),
    "export": (2, "cannot write .*No space left on device"),
    "report": (1, "rank 0 failed first: .*odd"),
    "rank killed": (1, "rank 1 failed first: killed by SIGKILL"),
    "rank crashes": (1, "rank 0 failed first: killed by SIGSEGV"),
    "rank exits": (9, "rank 1 failed first: "),
}
IN_CI = {"transform exits", "shared memory", "mask update", "validation of rank 1", "TensorBoard", "rank killed"}


def fail(folder: Path, name: str, *flags: str) -> tuple[int, str, list[list[str]]]:
    failed, started = folder.parent / "failed", time.time()
    settings = {"FAIL": name, "FAILED": str(failed)}
    code, errors = run(folder, "--workers", "4", *flags, ranks=2, program=ROOT / "tests/failing.py", **settings)
    noted = [line.split() for line in failed.read_text().splitlines()] if failed.exists() else [[str(started), "0"]]
    print(f"{name}: ended {time.time() - float(noted[0][0]):.1f} s after the error")
    return code, errors, noted


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.slow, id=name) for name in ENDS]
)
def test_whatever_fails_ends_all_ranks_with_one_line(few_pictures, name):
    code, message = ENDS[name]
    ended, errors, noted = fail(few_pictures, name)
    lines = [line for line in errors.splitlines() if line.startswith(("error: ", "lost "))]
    assert len(lines) == 1, errors
    assert any(re.match(f"error: {message.replace('RANK', rank)}", lines[0]) for _, rank in noted), errors
    assert ended == code, errors
    assert code in (1, 9) or "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "1e30", "--log-interval", "1"], "the .*loss is (nan|inf) .*lower --lr"),
        (["--device", "cuda"], ".*cuda"),
        (["--sync-bn"], ".*--sync-bn"),
        (["--num-classes", "1"], "--num-classes 1: the data has 2 classes"),
        (["--initial-checkpoint", "/nowhere.pt"], ".*/nowhere.pt"),
    ],
    ids=["diverges", "no-gpu", "sync-bn-without-gpu", "fewer-classes", "no-checkpoint"],
)
def test_what_flags_lead_to_ends_all_ranks_with_one_line(few_pictures, flags, message):
    ended, errors, _ = fail(few_pictures, "flags", *flags)
    (line,) = [line for line in errors.splitlines() if line.startswith(("error: ", "lost "))]
    assert ended == 2 and re.match(f"error: {message}", line) and "Traceback" not in errors, errors


@pytest.mark.slow
def test_a_rank_that_is_told_to_stop_has_all_save_and_end(few_pictures):
    ended, errors, _ = fail(few_pictures, "rank told to stop", "--epochs", "3")
    assert ended == 143 and errors.count("stopped and saved") == 1 and "Traceback" not in errors, errors
