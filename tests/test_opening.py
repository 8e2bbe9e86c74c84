"""subp_dist.opening: what a run says before its first step, on digits with `test_resnet`; counts by hand.

Out of scope: what is said of pictures that are left out (test_data_folders.py).
"""

import logging

import pytest

from subp_dist import train
from subp_dist.data import digits
from subp_dist.opening import opening_lines
from subp_dist.options import parse_args
from subp_dist.process_group import Rank


@pytest.fixture
def few_digits(monkeypatch):
    """Every fifth digit: 800 to train on, 200 to test."""
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels[::5], labels[::5]))


def lines(tmp_path, *flags: str, world_size: int = 1) -> dict[str, str]:
    given = parse_args(["test_resnet", "--data-dir", "builtin", "--batch-size", "64", "--no-export", *flags])
    alone = train.init_process_group("cpu")
    training, _ = train.set_up(given, alone)
    training.rank = Rank(0, world_size, alone.device)
    said = opening_lines(training, given, 6, tmp_path / "run")
    assert all("\n" not in line for line in said)
    return dict(line.split(": ", 1) for line in said)


def test_a_run_says_what_it_will_do_and_where_it_goes(few_digits, tmp_path):
    said = lines(tmp_path, "--epochs", "100", "--prune-rate", "0.25")
    assert said["batch"] == "64 images x 1 rank (cpu) = 64 images a step; 6 steps an epoch, 100 epochs"
    assert said["learning rate"] == (
        "0.025 (0.1 for 256 images a step, scaled); schedule cosine; optimizer momentum"
    )  # 0.1 * 64 / 256
    assert said["pruning"].startswith("12 of 15 layers, 25 % of their 1x16 blocks, cubic over epochs 4 to 25; ")
    assert said["results"] == str(tmp_path / "run")


def test_what_is_asked_for_is_told_apart_from_what_follows(few_digits, tmp_path):
    flags = ("--epochs", "9", "--lr", "0.3", "--warmup-epochs", "1", "--layer-rates", "layer4*=0.75")
    said = lines(tmp_path, *flags, "--grad-accum-steps", "2", world_size=2)
    assert said["batch"] == "64 images x 2 ranks (cpu) x 2 batches = 256 images a step; 6 steps an epoch, 9 epochs"
    assert said["learning rate"].startswith("0.3 (as given); schedule cosine, warm-up from 1e-05 over 1 epoch; ")
    assert "layers (3 at rates of their own), 50 % of" in said["pruning"]


def test_the_macs_that_remain_are_those_of_the_report(few_digits, tmp_path):
    said = lines(tmp_path, "--epochs", "4", "--target-macs", "2M")
    remain, total = said["pruning"].rsplit("; ", 1)[1].split(" of ")
    assert float(remain) <= 2.0 and float(total.split()[0]) > 3


def test_a_run_logs_it_with_its_images_and_its_loader(few_digits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = ["test_resnet", "--data-dir", "builtin", "--epochs", "1", "--no-export", "--output", str(tmp_path)]
    train.main(parse_args(flags))
    starts = [record.getMessage().split(":")[0] for record in caplog.records]
    wanted = ["loader", "images", "batch", "learning rate", "pruning", "results"]
    assert [start for start in starts if start in wanted] == wanted
