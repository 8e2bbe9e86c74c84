"""Runs that are disturbed must end like the one that was not, bit for bit: weights, masks, optimizer, figures.

Real ranks under torchrun on gloo, two where nothing else is said, `test_resnet` on 500 digits, 3 epochs of 7 steps;
faults are real signals at chosen moments (faults.py) and at random ones, damaged files, a full disk. Machines and
networks are in test_machines.py. The full matrix is slow.
"""

import contextlib
import os
import random
import re
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import LAUNCH, PRELOADED, assert_same_end, finish, ranks_of, scalars, start

RECOVERY = ("--recovery-interval", "3")
FROM_THE_BEGINNING = "from the beginning"
# The machine may be slow, or stop for a while.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run that all others must equal."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = finish(start(output, launch=PRELOADED))
    assert done.returncode == 0, done.stderr
    return output / "run"


# One run each: "MOMENT:RANK:COUNT", counted from the last start, and where the ranks go on afterwards. Checkpoints are
# written after steps 3 and 6 of epoch 0, 2 and 5 of epoch 1, 1 and 4 of epoch 2, and at the end of each.
KILLS = {
    "interpreters": {"checkpoint, half written:0:4": "epoch 1"},
    "two-kinds": {
        "mask update:1:18": "epoch 1",  # the 6th of 12 layers in the second update
        "checkpoint, half written:0:2": "epoch 1, step 2",
    },
    "before-any-checkpoint": {
        "start:0:1": FROM_THE_BEGINNING,
        "mask update:0:1": FROM_THE_BEGINNING,
        "checkpoint, half written:0:1": FROM_THE_BEGINNING,
        "checkpoint, between the renames:0:1": FROM_THE_BEGINNING,
    },
    "first-epoch": {
        "start:1:1": FROM_THE_BEGINNING,
        "forward:0:5": FROM_THE_BEGINNING,
        "backward:1:4": "epoch 0, step 3",
        "checkpoint, before the renames:0:2": "epoch 0, step 6",
    },
    "between-epochs": {
        "figures:0:1": "epoch 0, step 6",
        "checkpoint, done:0:1": "epoch 1",
        "validation:1:1": "epoch 1, step 5",
    },
    "best-checkpoint": {
        "checkpoint, half written:0:9": "epoch 2, step 4",  # best.pt, which there is at the target alone
        "checkpoint, half written:0:2": "epoch 2, step 4",  # last.pt after best.pt
        "checkpoint, between the renames:0:1": "epoch 2, step 4",
    },
    "last-epoch": {
        "mask update:0:36": "epoch 2",
        "resuming:1:1": "epoch 2",
        "forward:1:62": "epoch 2, step 4",  # the 5th step, two layers in
        "export:0:1": "epoch 3",
    },
}


@pytest.mark.parametrize(
    ("kills", "launch"),
    [
        pytest.param(
            kills, LAUNCH if name == "interpreters" else PRELOADED, id=name,
            marks=[] if name in ("interpreters", "two-kinds") else pytest.mark.slow,
        )
        for name, kills in KILLS.items()
    ],
)  # fmt: skip
def test_ranks_killed_at_any_moment_cost_nothing(undisturbed, tmp_path, kills, launch):
    torchrun = [f"--max-restarts={len(kills)}"]
    done = finish(start(tmp_path, *RECOVERY, torchrun=torchrun, launch=launch, FAULT=";".join(kills)))
    assert done.returncode == 0, done.stderr
    ranks = [kill.split(":")[1] for kill in kills]
    assert (tmp_path / "mark").read_text().split() == ranks, done.stderr
    if launch is LAUNCH:  # torch watches forks in another way: it tells the first end that it sees, and logs more
        assert re.findall(r"rank (\d) failed first: killed by SIGKILL; restart \d of", done.stderr) == ranks
        assert "Traceback" not in done.stderr
    assert re.findall(r"(?:going on at )?(epoch .*|from the beginning)$", done.stderr, re.M) == list(kills.values())
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.fixture(scope="module")
def four_undisturbed(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("four-undisturbed")
    done = finish(start_four(output))
    assert done.returncode == 0, done.stderr
    return output / "run"


def start_four(output: Path, *flags: str, restarts: int = 0, **extra: str):
    torchrun = ["--nproc-per-node=4", f"--max-restarts={restarts}"]
    schedule = ("--epochs", "5", "--prune-end", "4", "--recovery-interval", "2")  # 3 steps an epoch
    return start(output, *schedule, *flags, torchrun=torchrun, launch=PRELOADED, **extra)


def test_four_ranks_go_on_where_one_was_killed(four_undisturbed, tmp_path):
    # Sums over more than two ranks depend on their order.
    kills = {"backward:3:6": "epoch 1, step 1", "validation:1:1": "epoch 1, step 1"}
    done = finish(start_four(tmp_path, restarts=len(kills), FAULT=";".join(kills)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").read_text().split() == ["3", "1"], done.stderr
    assert re.findall(r"going on at (epoch .*)$", done.stderr, re.M) == list(kills.values())
    assert_same_end(tmp_path / "run", four_undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_four_ranks_disturbed_at_random_moments_cost_nothing(four_undisturbed, tmp_path, seed):
    choose = random.Random(seed)
    for left in reversed(range(6)):
        process = start_four(tmp_path, "--resume", "auto", restarts=20)
        while process.poll() is None and len(ranks_of(process)) < 4:
            time.sleep(0.02)
        for _ in range(choose.randint(1, 3) if left else 0):
            time.sleep(choose.uniform(0, 6))
            ranks = ranks_of(process)
            target = choose.choice([process.pid, *ranks] if process.poll() is None else [None])
            sent = choose.choice([signal.SIGKILL, signal.SIGTERM])
            if target is None:
                break
            print(sent.name, "to", "the launcher" if target == process.pid else f"rank {ranks.index(target)}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, sent)
        done = finish(process)
        print(done.returncode, done.stderr)
        # A launcher that has not begun, or has finished, just ends by the signal.
        assert done.returncode in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        if done.returncode == 0:
            break
    assert_same_end(tmp_path / "run", four_undisturbed)


def wait_for(path: Path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_sigterm_saves_and_the_run_goes_on_from_there(undisturbed, tmp_path):
    process = start(tmp_path, launch=PRELOADED)
    wait_for(tmp_path / "run/last.pt", process)  # the end of the first of three epochs
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("stopped and saved") == 1
    assert "Traceback" not in done.stderr
    done = finish(start(tmp_path, "--resume", "auto", launch=PRELOADED))
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


# "MOMENT:RANK:COUNT", and where the run goes on afterwards; None where it is through by then.
TERMS = {
    "start:1:1": FROM_THE_BEGINNING,
    "mask update:1:18": "epoch 1, step 2",
    "validation:1:1": "epoch 1, step 1",
    "figures:0:1": "epoch 1, step 1",
    "checkpoint, half written:0:2": "epoch 2, step 1",
    "checkpoint, between the renames:0:2": "epoch 2, step 1",
    "backward:0:19": "epoch 2, step 6",
    "validation:0:3": None,
    "checkpoint, half written:0:3": None,
    "export:0:1": "epoch 3",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", TERMS)
def test_sigterm_at_any_moment_costs_nothing(undisturbed, tmp_path, moment):
    # A rank that is a fork of the launcher has the launcher's way to end, where it has none of its own.
    launch = LAUNCH if moment.startswith(("start", "export")) else PRELOADED
    done = finish(start(tmp_path, launch=launch, FAULT=moment, FAULT_SIGNAL="SIGTERM"))
    assert (tmp_path / "mark").exists()
    if TERMS[moment]:
        assert done.returncode == 128 + signal.SIGTERM, done.stderr
        done = finish(start(tmp_path, "--resume", "auto", launch=PRELOADED))
        assert TERMS[moment] == FROM_THE_BEGINNING or f"going on at {TERMS[moment]}\n" in done.stderr
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_one_rank_told_to_stop_stops_all_and_damaged_checkpoints_are_passed_over(undisturbed, tmp_path):
    done = finish(start(tmp_path, *RECOVERY, FAULT="backward:1:11", FAULT_SIGNAL="SIGTERM"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    # Received in the 4th step of the second epoch, sent after it, heard after the next.
    assert "stopped and saved in epoch 1, after 5 of 7 steps" in done.stderr
    newest, previous = tmp_path / "run/last.pt", tmp_path / "run/previous.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    whole = previous.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    previous.write_bytes(damaged)

    done = finish(start(tmp_path, "--resume", "auto", torchrun=["--max-restarts=3"]))
    assert done.returncode == 2
    assert done.stderr.count("no complete checkpoint is left") == 1
    assert f"{newest}: damaged" in done.stderr and f"{previous}: damaged" in done.stderr
    assert "Traceback" not in done.stderr

    previous.write_bytes(whole)
    done = finish(start(tmp_path, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert f"{newest}: damaged, or not a checkpoint" in done.stderr
    assert "going on at epoch 1, step 2" in done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_ends_the_run_once_and_leaves_the_one_before(tmp_path):
    # Files of this run stay below 4 MB but for checkpoints; those have momentum, and grow beyond the first one.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        process = start(tmp_path, torchrun=["--max-restarts=3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = finish(process)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("cannot write") == 1
    assert "last.pt: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.pt")) and not list((tmp_path / "run").glob(".*.tmp"))


def test_two_ranks_and_one_with_the_same_global_batch_learn_the_same(tmp_path):
    # Without batch norm, whose statistics are of a rank's batch unless it is synchronised (GPU).
    flags = ("--epochs", "2", "--prune-end", "1", "--log-interval", "1")
    losses, states = [], []
    for ranks, batch in ((1, "64"), (2, "32")):
        output, torchrun = tmp_path / str(ranks), [f"--nproc-per-node={ranks}"]
        started = start(
            output, *flags, "--batch-size", batch, model="test_efficientnet_gn", torchrun=torchrun, launch=PRELOADED
        )
        done = finish(started)
        assert done.returncode == 0, done.stderr
        losses.append(torch.tensor([loss for _, loss in scalars(output / "run")["learning/loss_train"]]))
        states.append(torch.load(output / "run/last.pt", weights_only=True))
    assert len(losses[0]) == 14
    # 7 steps an epoch: float32 sums in another order, then what training makes of the differences.
    torch.testing.assert_close(losses[0][:3], losses[1][:3], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)
    masks = [{key: value for key, value in state["model"].items() if key.endswith(".mask")} for state in states]
    assert masks[0] and all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    assert not all(mask.all() for mask in masks[0].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "features",
    [
        ["--opt", "adamw", "--lr", "0.002", "--mixup", "0.2", "--sched-on-updates"],
        ["--amp", "--amp-dtype", "bfloat16", "--grad-accum-steps", "2", "--prune-interval", "3", "--clip-grad", "1.0"],
        ["--torchcompile", "aot_eager", "--channels-last", "--layer-rates", "layer4*=0.75", "--drop-path", "0.1"],
    ],
    ids=["adamw-mixup", "bf16-accumulation-interval", "compiled-channels-last-drop-path"],
)
def test_two_ranks_go_on_within_an_epoch_whatever_they_train_with(tmp_path, features):
    done = finish(start(tmp_path / "undisturbed", *features))
    assert done.returncode == 0, done.stderr
    done = finish(start(tmp_path, *features, FAULT="backward:1:9", FAULT_SIGNAL="SIGTERM"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "stopped and saved in epoch 1, after" in done.stderr
    done = finish(start(tmp_path, *features, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", tmp_path / "undisturbed/run")
