"""launch/train.sh and torchrun with real processes: both ways to start, user errors, killed ranks.

Two ranks on gloo, `test_resnet` on the built-in digits. Every command has a timeout. The scripts themselves install
nothing here: the environment that runs the tests is the one they find.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FLAGS = ["test_resnet", "--data-dir", "builtin", "--epochs", "2", "--batch-size", "128", "--lr", "0.05", "--no-export"]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, on one thread a rank, as `launch/train.sh` would find it outside torchrun."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "LOCAL_", "RANK"))}
    return base | {"OMP_NUM_THREADS": "1", "VENV": sys.prefix, "NPROC": "2"} | extra


def execute(command: list[str], **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd="/", env=environment(**extra), capture_output=True, text=True, timeout=300, check=False
    )


def plain_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(a: Path, b: Path) -> None:
    left, right = plain_weights(a), plain_weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of two ranks through launch/train.sh."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = execute([str(ROOT / "launch/train.sh"), *FLAGS, "--output", str(output)])
    assert done.returncode == 0, done.stderr
    assert "everything is in" in done.stdout
    return next(output.iterdir())


def test_torchrun_runs_the_script_once_per_rank(undisturbed, tmp_path):
    done = execute([*TORCHRUN, str(ROOT / "launch/train.sh"), *FLAGS, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert_equal_weights(next(tmp_path.iterdir()), undisturbed)


def test_torchrun_without_python_runs_the_script_once_per_rank(undisturbed, tmp_path):
    done = execute([*TORCHRUN, "--no-python", str(ROOT / "launch/train.sh"), *FLAGS, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert_equal_weights(next(tmp_path.iterdir()), undisturbed)


def test_user_error_is_printed_once_without_traceback(tmp_path):
    done = execute(
        [str(ROOT / "launch/train.sh"), "resnet5O", "--data-dir", "builtin", "--output", str(tmp_path / "x")]
    )
    assert done.returncode == 2
    assert done.stderr.count("has no model 'resnet5O'; did you mean resnet50") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_help_needs_no_ranks():
    done = execute([str(ROOT / "launch/train.sh"), "--help"])
    assert done.returncode == 0
    assert "--prune-rate" in done.stdout


def rank_processes(parent: int) -> list[int]:
    """Process ids of the ranks below a launcher."""
    found, queue = [], [parent]
    while queue:
        pid = queue.pop()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []
        for child in map(int, children):
            queue.append(child)
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"subp_dist.train" in command and b"subp_dist.launch" not in command:
                found.append(child)
    return found


def start_and_kill_a_rank(output: Path, max_restarts: str) -> subprocess.CompletedProcess:
    """Start a run, kill -9 one rank once the first epoch is saved, and wait for the end."""
    process = subprocess.Popen(
        [str(ROOT / "launch/train.sh"), *FLAGS, "--output", str(output), "--experiment", "run"],
        env=environment(MAX_RESTARTS=max_restarts), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (output / "run/last.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the first epoch was never saved"
        time.sleep(0.05)
    os.kill(rank_processes(process.pid)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def test_killed_rank_ends_the_run_with_its_cause(tmp_path):
    done = start_and_kill_a_rank(tmp_path, max_restarts="0")
    assert done.returncode != 0
    assert "failed first: killed by SIGKILL" in done.stderr


def test_killed_rank_is_restarted_and_ends_like_the_undisturbed_run(undisturbed, tmp_path):
    done = start_and_kill_a_rank(tmp_path, max_restarts="3")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(tmp_path / "run", undisturbed)
