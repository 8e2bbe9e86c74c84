"""launch/train.sh, torchrun and launch/train.slurm with real processes: all ways to start, user errors.

Two ranks on gloo, `test_resnet` on the built-in digits. Every command has a timeout. The scripts themselves install
nothing here: the environment that runs the tests is the one they find.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nursery import Fork
from runs import PRELOADED, TRAIN, finish
from safetensors.torch import load_file
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.launcher import api

from subp_dist import launch
from subp_dist.errors import EXIT_LOST_RANK, EXIT_STOPPED

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FLAGS = ["test_resnet", "--data-dir", "builtin", "--epochs", "1", "--batch-size", "256", "--lr", "0.05", "--no-export"]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, on one thread a rank, as `launch/train.sh` would find it outside torchrun."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "LOCAL_", "RANK"))}
    return base | {"OMP_NUM_THREADS": "1", "VENV": sys.prefix, "NPROC": "2"} | extra


def execute(command: list[str], **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd="/", env=environment(**extra), capture_output=True, text=True, timeout=500, check=False
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


@pytest.mark.slow
def test_torchrun_without_python_runs_the_script_once_per_rank(undisturbed, tmp_path):
    done = execute([*TORCHRUN, "--no-python", str(ROOT / "launch/train.sh"), *FLAGS, "--output", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert_equal_weights(next(tmp_path.iterdir()), undisturbed)


def test_user_error_is_printed_once_without_traceback_or_restart(tmp_path):
    flags = ["resnet5O", "--data-dir", "builtin", "--output", str(tmp_path / "x")]
    ranks = [*PRELOADED, "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    done = finish(Fork([*ranks, str(TRAIN), *flags], environment()))
    assert done.returncode == 2
    assert done.stderr.count("has no model 'resnet5O'; did you mean resnet50") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def quick_start(folder: Path, **extra: str) -> subprocess.Popen:
    """The quick start of a copy of the scripts, which sets nothing up."""
    copy_scripts(folder)
    return subprocess.Popen(
        [folder / "launch/train.sh"], env=environment(**extra), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the background ignores it
    )  # fmt: skip


def copy_scripts(folder: Path) -> None:
    for part in ("train.sh", "train.bash", "recipes/digits.yaml"):
        (folder / "launch" / part).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / "launch" / part, folder / "launch" / part)
    command(folder / "launch", "setup.sh", "exit 0")


def assert_ends_in_the_first_step(script: subprocess.Popen, sent: int, code: int, begun: Path) -> None:
    while not begun.exists() and script.poll() is None:
        time.sleep(0.1)
    script.send_signal(sent)
    out, err = script.communicate(timeout=500)  # to the end of all that holds its output
    assert script.returncode == code, err
    assert "1/3" in out and "2/3" not in out
    assert "Traceback" not in err


SIGNALS = pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


@SIGNALS
def test_the_quick_start_ends_with_what_it_runs_when_it_is_told_to(tmp_path, sent, code):
    # In the place of Python, which has its own ways to end by a signal.
    waits = f"trap 'exit {code}' {sent.name}; touch {tmp_path}/begun; while true; do sleep 0.1; done"
    command(tmp_path / "bin", "python", f"case $1 in -c) echo 2 ;; *) {waits} ;; esac")
    assert_ends_in_the_first_step(quick_start(tmp_path, VENV=str(tmp_path)), sent, code, tmp_path / "begun")


@pytest.mark.parametrize(("asked", "ranks", "comparison"), [("", "3", "6"), ("2", "2", "2")])
def test_ranks_share_the_cores_and_the_comparison_has_them_alone(tmp_path, asked, ranks, comparison):
    command(tmp_path / "bin", "python", "case $1 in -c) echo 6 ;; *) echo $OMP_NUM_THREADS: $* ;; esac")
    said, _ = quick_start(tmp_path, VENV=str(tmp_path), OMP_NUM_THREADS=asked).communicate(timeout=60)
    steps = [line.split(": ", 1) for line in said.splitlines() if " -m subp_dist." in line]
    assert [threads for threads, step in steps if "subp_dist.train" in step] == [ranks] * 2
    assert [threads for threads, step in steps if "subp_dist.validate" in step] == [comparison]


@pytest.mark.slow
@SIGNALS
def test_the_quick_start_and_its_ranks_end_when_they_are_told_to(tmp_path, sent, code):
    trained = tmp_path / "output/quickstart/dense/last.pt"
    assert_ends_in_the_first_step(quick_start(tmp_path), sent, code, trained)


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ("--help", {}, "-m subp_dist.train --help"),
        (
            "resnet18 --max-restarts 3 --lr 1",
            {},
            "-m subp_dist.launch --standalone --nproc-per-node 2 --max-restarts 3 -m subp_dist.train resnet18 --lr 1",
        ),
        (
            "resnet18 --max-restarts=1",
            {"NPROC": "5", "NNODES": "2", "RDZV_ENDPOINT": "host0:29400"},
            "-m subp_dist.launch --nnodes 2 --rdzv-backend c10d --rdzv-endpoint host0:29400 --rdzv-id subp --rdzv-conf "
            "join_timeout=1800 --nproc-per-node 5 --max-restarts 1 -m subp_dist.train resnet18",
        ),
        # A rank of "torchrun --no-python".
        ("resnet18 --max-restarts 2", {"TORCHELASTIC_RUN_ID": "x"}, "{launch}/train.sh resnet18 --max-restarts 2"),
    ],
    ids=["help", "restarts", "machines", "rank"],
)
def test_what_the_script_starts(tmp_path, arguments, settings, expected):
    copy_scripts(tmp_path)
    command(tmp_path / "bin", "python", 'case $1 in -c) echo 2 ;; *) printf "%s\\n" "$@" ;; esac')
    done = execute([str(tmp_path / "launch/train.sh"), *arguments.split()], VENV=str(tmp_path), **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected.format(launch=tmp_path / "launch").split()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"NNODES": "2"}, "NNODES=2, RDZV_ENDPOINT=: expected RDZV_ENDPOINT=HOST:PORT"),
        ({"NNODES": "2", "RDZV_ENDPOINT": "host0"}, "RDZV_ENDPOINT=host0: expected RDZV_ENDPOINT=HOST:PORT"),
        ({"NNODES": "two"}, "NNODES=two: expected the number of machines"),
        ({"NPROC": "0"}, "NPROC=0: expected a whole number, at least 1"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS=-1: expected a whole number, at least 0"),
        ({"JOIN_MINUTES": "soon"}, "JOIN_MINUTES=soon: expected a whole number, at least 1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line_before_anything_is_done(settings, found):
    done = execute([str(ROOT / "launch/train.sh"), *FLAGS], **settings)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert found in done.stderr


def test_a_port_of_another_program_is_told_from_a_rendezvous():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert launch._is_store("127.0.0.1", store.port, seconds=100)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not launch._is_store(*mute.getsockname(), seconds=2)


def test_nothing_at_the_rendezvous_is_an_error_that_asks_for_the_other_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert launch._wait_for_store("127.0.0.1", port, minutes=0).startswith(f"no rendezvous at 127.0.0.1:{port}")


def command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_slurm_script_trains_on_its_machines(undisturbed, tmp_path, machines):
    # SLURM's commands are replaced: srun starts the tasks here, as many as there are machines, one rank or two each.
    bin = tmp_path / "bin"
    command(bin, "scontrol", "echo 127.0.0.1")
    command(bin, "srun", 'shift; for ((i = 0; i < NNODES; i++)); do "$@" & pids+=($!); done; wait -f "${pids[@]}"')
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "n[0-1]"}
    done = execute(
        [str(ROOT / "launch/train.slurm"), *FLAGS, "--output", str(tmp_path)],
        **slurm, SLURM_JOB_NUM_NODES=str(machines), NPROC=str(2 // machines), PATH=f"{bin}:{os.environ['PATH']}",
        LOCAL_ADDR="127.0.0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert_equal_weights(tmp_path / "test_resnet-0.5", undisturbed)


@pytest.mark.slow
def test_slurm_script_asks_for_the_queue_after_a_stop(tmp_path):
    command(tmp_path, "scontrol", 'echo "$@" >>"${0%/*}/asked"; echo 127.0.0.1')
    command(tmp_path, "srun", "exit 143")
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = execute([str(ROOT / "launch/train.slurm"), *FLAGS], **slurm, PATH=path)
    assert done.returncode == 143, done.stderr
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 77"


class _Rendezvous:
    """A rendezvous that is lost; counts how often this machine closes it for all the others."""

    use_agent_store = False
    closed = 0

    def next_rendezvous(self):
        raise RendezvousConnectionError("the link is cut")

    def get_run_id(self) -> str:
        return "test"

    def get_backend(self) -> str:
        return "test"

    def shutdown(self) -> bool:
        self.closed += 1
        return True


def test_a_machine_that_loses_the_rendezvous_does_not_close_it_for_the_others(monkeypatch):
    rendezvous = _Rendezvous()
    monkeypatch.setattr(api, "LocalElasticAgent", launch._Agent)
    monkeypatch.setattr(api.rdzv_registry, "get_rendezvous_handler", lambda _: rendezvous)
    config = api.LaunchConfig(min_nodes=2, max_nodes=2, nproc_per_node=1, rdzv_backend="c10d")
    with pytest.raises(RendezvousConnectionError):
        api.launch_agent(config, "true", [])
    assert rendezvous.closed == 0


@pytest.mark.parametrize(
    ("fate", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSTOP)", 1, "error: rank 1 failed first: it did not answer the others"),
        # Before it could handle it.
        ("os.kill(os.getpid(), signal.SIGTERM)", EXIT_STOPPED, "error: rank 1 was ended by SIGTERM"),
        # After it has saved.
        (f"sys.exit({EXIT_STOPPED})", EXIT_STOPPED, ""),
    ],
    ids=["hangs", "ended", "stopped"],
)
def test_the_rank_at_fault_is_named_and_one_that_is_told_to_stop_is_not_restarted(tmp_path, fate, code, said):
    # Rank 0 waits for the other one, for three seconds from its fate on.
    program, met = tmp_path / "program.py", tmp_path / "met"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"met = pathlib.Path({str(met)!r})\n"
        f"if os.environ['RANK'] == '1':\n    met.touch()\n    {fate}\n"
        f"while not met.exists():\n    time.sleep(0.05)\ntime.sleep(3)\nsys.exit({EXIT_LOST_RANK})\n"
    )
    restarts = int(code == EXIT_STOPPED)
    ranks = ["--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    command = ["-m", "subp_dist.launch", *ranks, str(program)]
    done = finish(Fork(command, environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")))
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().startswith(said)
    assert done.stderr.count("\n") == (3 if said else 0), done.stderr


def test_an_error_of_all_ranks_is_told_once_whichever_is_first(tmp_path):
    # Rank 1 finds it while rank 0 is still starting, and has torchrun end it.
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\n"
        "from subp_dist.errors import UsageError, report_usage_errors\n"
        "@report_usage_errors\n"
        "def main():\n"
        "    time.sleep(0 if os.environ['RANK'] == '1' else 60)\n"
        "    raise UsageError('--lr -1: expected more')\n"
        "main()\n"
    )
    ranks = [*PRELOADED, "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = finish(Fork([*ranks, str(program)], environment()))
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("W")]  # torch tells of forks that it ends
    assert said == ["", "error: --lr -1: expected more", ""]
