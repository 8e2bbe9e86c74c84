"""subp_dist.study: the grid file, what is left to do, real runs with a dependency, a failure and a resume, the table.

Sizes: digits as PNG files, 20 per class, `test_resnet` for one epoch. Accuracy is out of scope; numbers of the table
are counted by hand.
"""

import csv
import statistics
from pathlib import Path

import pytest
import yaml
from PIL import Image

from subp_dist.data import digits
from subp_dist.errors import UsageError
from subp_dist.options import parse_args
from subp_dist.study.grid import Grid
from subp_dist.study.runner import COLUMNS, Runner, read_results, subset
from subp_dist.study.table import as_markdown, plot, summarise

FLAGS = {"epochs": 1, "batch-size": 16, "workers": 0, "img-size": 32, "prune-start": 0, "prune-end": 0}
STUDY = {
    "model": "test_resnet",
    "images_per_class": 8,
    "seeds": [1],
    "cells": [[0.5, 16]],
    "flags": FLAGS | {"no-export": True},
    "variants": {
        "dense": {"cells": [[0, 16]]},
        "tuned": {"label": "tuned weights", "after": "dense", "flags": {"criterion": "l1"}},
        "broken": {"flags": {"opt": "no_such_optimizer"}},
    },
}


def grid_of(tmp_path: Path, **changes) -> Grid:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return Grid.read(tmp_path / "grid.yaml")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real digits as PNG files: 20 of each class to learn, 4 to test."""
    root = tmp_path_factory.mktemp("digits")
    pixels, labels = digits.load_digits()
    for label in range(10):
        of_class = pixels[labels == label]
        for index in range(24):
            folder = root / ("train" if index < 20 else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(of_class[index].reshape(28, 28)).save(folder / f"{index:03}.png")
    return root


def test_seeds_are_the_outer_loop(tmp_path):
    grid = grid_of(tmp_path, seeds=[1, 2])
    assert [run.name for run in grid.runs] == [
        *("dense-0-1x16-s1", "tuned-0.5-1x16-s1", "broken-0.5-1x16-s1"),
        *("dense-0-1x16-s2", "tuned-0.5-1x16-s2", "broken-0.5-1x16-s2"),
    ]
    assert grid.runs[4].after == "dense-0-1x16-s2"
    assert grid.labels == {"dense": "dense", "tuned": "tuned weights", "broken": "broken"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown seed"),
        ({"seeds": []}, "seeds is missing"),
        ({"model": ""}, "model is missing"),
        ({"variants": {"a": {"after": "b"}}}, "a: after: there is no variant 'b'"),
        ({"variants": {"a": {"flag": {}}}}, "a: unknown flag"),
        ({"variants": []}, "expected a study"),
    ],
)
def test_a_bad_grid_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        grid_of(tmp_path, **changes)


def test_the_shipped_grid_names_flags_that_exist():
    grid = Grid.read(Path(__file__).parent.parent / "launch" / "study" / "cifar10.yaml")
    for run in grid.runs:
        args = parse_args(run.argv)
        assert (args.prune_rate, args.block_size, args.seed) == (*run.cell, run.seed)


def test_a_subset_links_the_first_images_of_each_class(pictures, tmp_path):
    made = subset(pictures, tmp_path / "data", 8)
    assert sorted(p.name for p in (made / "train" / "3").iterdir()) == [f"{index:03}.png" for index in range(8)]
    assert len(list((made / "val").glob("*/*"))) == 40
    assert len(list((subset(pictures, tmp_path / "data", 9) / "train").glob("*/*"))) == 90
    assert subset(pictures, tmp_path / "other", None) == pictures
    with pytest.raises(UsageError, match="has 20 images; the study asks for 21"):
        subset(pictures, tmp_path / "data", 21)
    with pytest.raises(UsageError, match="expected train/"):
        subset(tmp_path, tmp_path / "data", 2)


@pytest.fixture(scope="module")
def done(pictures, tmp_path_factory) -> Runner:
    """A study of three runs that has been worked through; the last one fails."""
    root = tmp_path_factory.mktemp("study")
    grid = grid_of(root)
    runner = Runner(grid, subset(pictures, root / "data", 8), root / "runs", root / "results.csv", 2, 1.0)
    runner.work()
    return runner


def test_every_run_that_ends_has_a_row(done):
    rows = read_results(done.path)
    assert list(rows) == ["dense-0-1x16-s1", "tuned-0.5-1x16-s1"]
    assert done.failed == ["broken-0.5-1x16-s1"]
    tuned = rows["tuned-0.5-1x16-s1"]
    last = list(csv.DictReader((done.output / "tuned-0.5-1x16-s1" / "summary.csv").open()))[-1]
    assert float(tuned["top1"]) == pytest.approx(float(last["val_top1"]), abs=0.005)
    assert int(tuned["macs_kept"]) < int(tuned["macs_dense"])
    assert f"--initial-checkpoint {done.output}/dense-0-1x16-s1/model.safetensors" in tuned["command"]


def test_only_what_is_missing_or_changed_is_left_to_do(done, tmp_path):
    again = Runner(done.grid, done.data, done.output, done.path, 1, 1.0)
    assert [run.variant for run in again.pending()] == ["broken"]
    changed = grid_of(tmp_path, flags=STUDY["flags"] | {"epochs": 2})
    assert len(Runner(changed, done.data, done.output, done.path, 1, 1.0).pending()) == 3


def test_no_run_is_started_after_the_budget(done, tmp_path):
    late = Runner(done.grid, done.data, tmp_path / "runs", tmp_path / "results.csv", 1, 0.0)
    late.work()
    assert not late.path.exists()
    assert not late.failed


def test_another_csv_is_not_taken_for_results(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="not the results of a study"):
        read_results(tmp_path / "x.csv")


def result(variant: str, rate: float, seed: int, top1: float) -> dict[str, str]:
    values = (f"{variant}-{rate}-{seed}", variant, rate, 16, seed, top1, 1.0, 5_000_000, 10_000_000, 9, "python")
    return dict(zip(COLUMNS, map(str, values), strict=True))


def test_the_table_has_mean_spread_and_difference(tmp_path):
    rows = [result("dense", 0, s, t) for s, t in ((1, 70.0), (2, 71.0))]
    rows += [result("bpar", 0.5, s, t) for s, t in ((1, 69.0), (2, 70.0), (3, 71.0))]
    rows += [result("once", 0.5, 1, 60.0)]
    cells = summarise({row["name"]: row for row in rows}, ["dense", "bpar", "once"])
    assert [(c.variant, c.mean) for c in cells] == [("dense", 70.5), ("bpar", 70.0), ("once", 60.0)]
    assert cells[1].spread == statistics.stdev([69, 70, 71])
    lines = as_markdown(cells, {"bpar": "SUBP"}).splitlines()
    assert lines[3] == "| 50 % | 1x16 | SUBP | 70.0 ± 1.0 | 3 | -0.5 | 5.0 M |"
    plot(cells, {}, tmp_path / "study.svg")
    assert "<svg" in (tmp_path / "study.svg").read_text()
