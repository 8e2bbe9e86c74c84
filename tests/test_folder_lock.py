"""subp_dist.folder_lock: one writer a folder, over processes that end in any way, and runs that meet.

Locks belong to processes, so the other writer is a real one. Out of scope: file systems over a network.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import Fork
from runs import environment

from subp_dist.errors import UsageError
from subp_dist.folder_lock import LOCK, FolderLock
from subp_dist.run_folder import claim_folder

HOLD = """
import os, sys, time
from pathlib import Path
from subp_dist.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    lock.take()
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, *more: str) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], env=environment(), **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    other = hold(tmp_path)
    with pytest.raises(UsageError, match=f"process {other.pid} on .* is writing a run there; .*--experiment"):
        FolderLock(tmp_path).take()
    other.stdin.close()
    assert other.wait(300) == 0
    assert not (tmp_path / LOCK).exists()
    with FolderLock(tmp_path) as lock:
        lock.take()
        assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_folder_free_though_its_children_live(tmp_path):
    other = hold(tmp_path, "3")
    other.send_signal(signal.SIGKILL)
    other.wait(300)
    assert (tmp_path / LOCK).exists()
    with FolderLock(tmp_path) as lock:
        lock.take()
        assert lock.found
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_does_not_exist_is_not_made(tmp_path):
    with FolderLock(tmp_path / "runs") as lock:
        lock.take()
        assert not lock.found
    assert not (tmp_path / "runs").exists()


def test_a_run_that_started_meanwhile_is_not_written_over(tmp_path):
    with FolderLock(tmp_path / "run") as lock:
        lock.take()
        (tmp_path / "run").mkdir()
        (tmp_path / "run/args.yaml").write_text("")
        with pytest.raises(UsageError, match="already holds a run"):
            claim_folder(tmp_path / "run", lock)


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path):
    flags = ["test_resnet", "--data-dir", "builtin", "--epochs", "1", "--no-export", "--output", str(tmp_path)]
    command = ["-m", "subp_dist.train", *flags, "--batch-size", "256"]
    runs = [Fork(command, environment()) for _ in range(2)]
    texts = [process.communicate(timeout=600)[1] for process in runs]
    codes = [process.returncode for process in runs]
    assert sorted(codes) == [0, 2], texts
    refused = texts[codes.index(2)]
    assert "is writing a run there" in refused or "already holds a run" in refused
    assert "Traceback" not in refused


def test_resuming_a_run_that_goes_on_is_refused_while_it_does(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    other = hold(folder)
    flags = ["test_resnet", "--data-dir", "builtin", "--output", str(tmp_path), "--experiment", "run"]
    process = Fork(["-m", "subp_dist.train", *flags, "--resume", "auto"], environment())
    errors = process.communicate(timeout=500)[1]
    assert process.returncode == 2 and "is writing a run there" in errors
    assert "Traceback" not in errors and len(errors.strip().splitlines()) == 1, errors
    assert other.poll() is None
    other.stdin.close()
    other.wait(300)
