"""Runs that are disturbed must end like the one that was not, bit for bit: weights, masks, optimizer, figures.

Two real ranks under torchrun on gloo, `test_resnet` on 500 digits, 3 epochs of 7 steps; faults are real signals at
chosen moments (faults.py), damaged files, a full disk. Machines and networks are in test_machines.py. The full matrix
is slow.
"""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import assert_same_end, finish, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECOVERY = ("--recovery-interval", "3")
RESTART = ("--max-restarts=1",)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The run that all others must equal."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = finish(start(output))
    assert done.returncode == 0, done.stderr
    return output / "run"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("fault", "resumed"),
    [
        ("mask update:1:20", "going on at epoch 1"),  # the 6th of 14 layers, in the second update
        slow("mask update:0:1", "from the beginning"),
        slow("mask update:0:41", "going on at epoch 2"),
        slow("forward:0:5", "from the beginning"),
        slow("forward:1:333", "going on at epoch"),
        slow("forward:0:401", "going on at epoch"),
        slow("backward:1:4", "going on at epoch 0, step 3"),
        slow("backward:0:14", "going on at epoch 1, step 5"),
        slow("validation:1:2", "going on at epoch 1, step 5"),
        slow("checkpoint, half written:0:1", "from the beginning"),
        slow("checkpoint, half written:0:4", "going on at epoch"),
        slow("checkpoint, half written:0:7", "going on at epoch"),
        slow("checkpoint, before the renames:0:2", "going on at epoch 0, step 6"),
        slow("checkpoint, before the renames:0:5", "going on at epoch"),
        slow("checkpoint, between the renames:0:1", "from the beginning"),
        slow("checkpoint, between the renames:0:5", "going on at epoch"),
    ],
)
def test_a_rank_killed_at_any_moment_costs_nothing(undisturbed, tmp_path, fault, resumed):
    done = finish(start(tmp_path, *RECOVERY, torchrun=RESTART, FAULT=fault))
    assert (tmp_path / "mark").exists(), "the moment never came"
    assert done.returncode == 0, done.stderr
    assert f"rank {fault.split(':')[1]} failed first: killed by SIGKILL; restart 1 of 1" in done.stderr
    assert resumed in done.stderr
    assert "Traceback" not in done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


def wait_for(path: Path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_sigterm_saves_and_the_run_goes_on_from_there(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path / "run/last.pt", process)  # the end of the first of three epochs
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.count("stopped and saved") == 1
    assert "Traceback" not in done.stderr
    done = finish(start(tmp_path, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_one_rank_told_to_stop_stops_all_after_the_same_step(undisturbed, tmp_path):
    done = finish(start(tmp_path, FAULT="backward:1:11", FAULT_SIGNAL="SIGTERM"))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    # Received in the 4th step of the second epoch, sent after it, heard after the next.
    assert "stopped and saved in epoch 1, after 5 of 7 steps" in done.stderr
    done = finish(start(tmp_path, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


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


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path):
    done = finish(start(tmp_path, *RECOVERY, FAULT="validation:1:2"))
    assert done.returncode != 0 and "rank 1 failed first: killed by SIGKILL" in done.stderr
    newest = tmp_path / "run/last.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    done = finish(start(tmp_path, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert f"{newest}: damaged, or not a checkpoint" in done.stderr
    assert "going on at epoch 1, step 2" in done.stderr
    assert_same_end(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_two_damaged_checkpoints_end_with_both_names(tmp_path):
    done = finish(start(tmp_path, *RECOVERY, FAULT="validation:0:1"))
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).write_bytes(b"x")
    done = finish(start(tmp_path, "--resume", "auto"))
    assert done.returncode == 2
    assert "no complete checkpoint is left" in done.stderr
    assert "last.pt: damaged" in done.stderr and "previous.pt: damaged" in done.stderr


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_ends_the_run_once_and_leaves_the_one_before(tmp_path):
    # Files of this run stay below 4 MB but for checkpoints; those have momentum, and grow beyond the first one.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        process = start(tmp_path, torchrun=("--max-restarts=3",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = finish(process)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("cannot write") == 1
    assert "last.pt: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.pt")) and not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.slow
def test_two_ranks_and_one_with_the_same_global_batch_learn_the_same(tmp_path):
    # Without batch norm, whose statistics are of a rank's batch unless it is synchronised (GPU).
    flags = ("test_efficientnet_gn", "--epochs", "2", "--log-interval", "1", "--prune-end", "1")
    losses, states = [], []
    for ranks, batch in ((1, "64"), (2, "32")):
        output = tmp_path / str(ranks)
        done = finish(start(output, *flags, "--batch-size", batch, torchrun=(f"--nproc-per-node={ranks}",)))
        assert done.returncode == 0, done.stderr
        events = EventAccumulator(str(output / "run/tensorboard"))
        events.Reload()
        losses.append(torch.tensor([event.value for event in events.Scalars("train/loss")]))
        states.append(torch.load(output / "run/last.pt", weights_only=True))
    # 7 steps an epoch: float32 sums in another order, then what training makes of the differences.
    torch.testing.assert_close(losses[0][:3], losses[1][:3], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)
    masks = [{key: value for key, value in state["model"].items() if key.endswith(".mask")} for state in states]
    assert masks[0] and all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    assert not all(mask.all() for mask in masks[0].values())
