"""subp_dist.study: the grid file, its data, what is left to do, real runs with a dependency and a failure, studies that
are changed, stopped and killed, the table, what blocks leave to choose.

Sizes: digits as PNG files, 20 per class, `test_resnet` for one epoch. Accuracy is out of scope; numbers of the table
are counted by hand.
"""

import csv
import fcntl
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import timm
import torch
import yaml
from grids import FLAGS, STUDY, grid_of
from nursery import Fork
from safetensors.torch import save_file
from torch import nn

from subp_dist.errors import UsageError
from subp_dist.options import parse_args
from subp_dist.study import __main__ as command_line
from subp_dist.study import evenness, runner
from subp_dist.study.data import prepare
from subp_dist.study.grid import Grid
from subp_dist.study.runner import COLUMNS, Runner, read_results, results_of
from subp_dist.study.table import as_markdown, plot, summarise

SHIPPED = Path(__file__).parent.parent / "launch" / "study"


def test_seeds_are_the_outer_loop(tmp_path):
    grid = grid_of(tmp_path, seeds=[1, 2])
    assert [run.name for run in grid.runs] == [
        *("dense-0-1x16-s1", "tuned-0.5-1x16-s1", "broken-0.5-1x16-s1"),
        *("dense-0-1x16-s2", "tuned-0.5-1x16-s2", "broken-0.5-1x16-s2"),
    ]
    assert grid.runs[4].after == "dense-0-1x16-s2"
    assert grid.labels == {"dense": "dense", "tuned": "tuned weights", "broken": "broken"}


def test_all_variants_come_before_second_cells(tmp_path):
    grid = grid_of(tmp_path, variants={"a": {}, "b": {"cells": [[0.5, 16]]}}, cells=[[0.5, 16], [0.75, 16]])
    assert [run.name for run in grid.runs] == ["a-0.5-1x16-s1", "b-0.5-1x16-s1", "a-0.75-1x16-s1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown seed"),
        ({"seeds": []}, "seeds is missing"),
        ({"model": ""}, "model is missing"),
        ({"variants": {"a": {"after": "b"}, "b": {}}}, "a: after: there is no variant 'b' above it"),
        ({"variants": {"a": {"after": "a"}}}, "a: after: there is no variant 'a' above it"),
        ({"variants": {"a": ["flags"]}}, "a: expected the keys"),
        ({"variants": {"a": {"flags": {"no-such-flag": 1}}}}, "a: unrecognized arguments: --no-such-flag"),
        ({"variants": {"a": {"flags": {"epochs": "many"}}}}, "a: argument --epochs: invalid int value: 'many'"),
        ({"variants": {"a": {"flags": {"tau": 0}}}}, "a: --tau 0"),
        ({"flags": ["epochs"]}, "flags: expected"),
        ({"cells": [0.5, 16]}, "cells: expected pairs"),
        ({"cells": [[0.5]]}, "cells: expected pairs"),
        ({"variants": {"a": {"cells": []}, "b": {"after": "a"}}}, "a: cells: expected pairs"),
        ({"cells": [[0.5, 17]]}, "--block-size: invalid choice: 17"),
        ({"cells": [[1.5, 16]]}, "--prune-rate 1.5"),
        ({"seeds": 3}, "seeds: 3: expected whole numbers"),
        ({"beton": 3200090.0}, "beton: expected quotes"),
        ({"beton": "32_0.00_90", "images_per_class": None}, "beton without images_per_class"),
        ({"variants": {"a": {"flag": {}}}}, "a: unknown flag"),
        ({"variants": []}, "expected a study"),
    ],
)
def test_a_bad_grid_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        grid_of(tmp_path, **changes)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_grids_name_flags_that_exist(path):
    for run in Grid.read(path).runs:
        given = parse_args([*run.argv, *(("--initial-checkpoint", "weights") if run.after else ())])
        found = (given.pruning.prune_rate, given.pruning.block_size, given.run.seed)
        assert found == (*run.cell, run.seed)


def of_class_3(folder: Path) -> list[Path]:
    return sorted((folder / "train" / "3").iterdir())


def test_the_data_are_links_to_the_first_images_of_each_class(digit_pictures, tmp_path):
    made = prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path))
    assert [path.resolve() for path in of_class_3(made)] == of_class_3(digit_pictures)[:8]
    assert len(list((made / "val").glob("*/*"))) == 40
    nine = prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path, images_per_class=9))
    assert len(list((nine / "train").glob("*/*"))) == 90
    assert prepare(digit_pictures, tmp_path / "other", grid_of(tmp_path, images_per_class=None)) == digit_pictures
    with pytest.raises(UsageError, match="has 20 images; the study asks for 21"):
        prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path, images_per_class=21))
    with pytest.raises(UsageError, match="expected train/"):
        prepare(tmp_path, tmp_path / "data", grid_of(tmp_path))
    with pytest.raises(UsageError, match="no such folder"):
        prepare(tmp_path / "nothing", tmp_path / "data", grid_of(tmp_path))


def test_other_images_under_the_same_names_are_linked_anew(digit_pictures, tmp_path):
    prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path))
    shutil.copytree(digit_pictures, tmp_path / "moved")
    made = prepare(tmp_path / "moved", tmp_path / "data", grid_of(tmp_path))
    assert [path.resolve() for path in of_class_3(made)] == of_class_3(tmp_path / "moved")[:8]


def test_the_data_are_stored_for_ffcv_where_the_study_asks_for_it(digit_pictures, tmp_path):
    wanted = {"train_32_0.00_90.beton", "val_32_0.00_90.beton"}
    made = prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path, beton="32_0.0_90"))
    assert {path.name for path in made.glob("*.beton")} == wanted
    written = (made / "train_32_0.00_90.beton").stat().st_mtime_ns
    prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path, beton="32_0.0_90"))
    assert (made / "train_32_0.00_90.beton").stat().st_mtime_ns == written
    # A study of pictures must not read files that are left from before.
    assert not list(prepare(digit_pictures, tmp_path / "data", grid_of(tmp_path)).glob("*.beton"))


class Forked(Fork):
    """What a runner starts, as a fork instead of an interpreter; its output comes at the end."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: IO[str], **_) -> None:
        super().__init__(command[1:], env)
        self.log = stdout

    def wait(self) -> int:
        self.log.write("".join(self.communicate()))
        return self.returncode


@pytest.fixture(scope="module", autouse=True)
def forks():
    """Runs that this process starts; those of a real study, below, are interpreters."""
    before, runner.subprocess = runner.subprocess, SimpleNamespace(Popen=Forked, **{
        name: getattr(subprocess, name) for name in ("STDOUT", "DEVNULL")
    })  # fmt: skip
    yield
    runner.subprocess = before


@pytest.fixture(scope="module")
def done(digit_pictures, tmp_path_factory) -> Runner:
    """A study of three runs that has been worked through; the last one fails."""
    root = tmp_path_factory.mktemp("study")
    grid = grid_of(root)
    runner = Runner(grid, prepare(digit_pictures, root / "data", grid), root / "runs", root / "results.csv", 2, 1.0)
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


def test_a_run_that_starts_from_a_changed_one_is_done_again(done, tmp_path):
    variants = STUDY["variants"] | {"dense": {"cells": [[0, 16]], "flags": {"epochs": 2}}}
    changed = Runner(grid_of(tmp_path, variants=variants), done.data, done.output, done.path, 1, 1.0)
    assert [run.variant for run in changed.pending()] == ["dense", "tuned", "broken"]


def test_weights_that_a_run_starts_from_are_made_again_where_they_are_missing(done, tmp_path):
    variants = STUDY["variants"] | {"tuned": {"after": "dense", "flags": {"criterion": "l2"}}}
    del variants["broken"]
    grid = grid_of(tmp_path, variants=variants)
    assert [run.variant for run in Runner(grid, done.data, done.output, done.path, 1, 1.0).pending()] == ["tuned"]
    # As with results of the repository on a fresh machine: the same paths, and no folder of runs.
    done.output.rename(done.output.with_name("away"))
    try:
        pending = Runner(grid, done.data, done.output, done.path, 1, 1.0).pending()
    finally:
        done.output.with_name("away").rename(done.output)
    assert [run.variant for run in pending] == ["dense", "tuned"]


DENSE = {"variants": {"dense": {"cells": [[0, 16]]}}}


def test_a_changed_study_does_not_go_on_with_the_runs_of_the_old_one(digit_pictures, tmp_path):
    top1 = {}
    for lr in (0.1, 1e-12):
        grid = grid_of(tmp_path, **DENSE, flags=FLAGS | {"no-export": True, "lr": lr})
        data = prepare(digit_pictures, tmp_path / "data", grid)
        runner = Runner(grid, data, tmp_path / "runs", tmp_path / "results.csv", 1, 1.0)
        runner.work()
        assert not runner.failed
        top1[lr] = read_results(runner.path)["dense-0-1x16-s1"]["loss"]
    assert yaml.safe_load((runner.output / "dense-0-1x16-s1" / "args.yaml").read_text())["lr"] == 1e-12
    assert top1[0.1] != top1[1e-12]
    assert len(list(csv.DictReader((runner.output / "dense-0-1x16-s1" / "summary.csv").open()))) == 1


def test_the_folder_of_another_run_is_left_alone(done, tmp_path, capsys):
    other = tmp_path / "runs" / "dense-0-1x16-s1"
    other.mkdir(parents=True)
    (other / "args.yaml").write_text("mine")
    runner = Runner(grid_of(tmp_path, **DENSE), done.data, tmp_path / "runs", tmp_path / "results.csv", 1, 1.0)
    runner.work()
    assert runner.failed == ["dense-0-1x16-s1"]
    assert "choose another --output" in capsys.readouterr().err
    assert (other / "args.yaml").read_text() == "mine"


def test_two_studies_do_not_work_in_one_folder(done):
    with (done.output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another study is at work"):
            Runner(done.grid, done.data, done.output, done.path, 1, 1.0).work()


def start(pictures: Path, root: Path) -> tuple[subprocess.Popen, int]:
    """A study of one run of 10,000 epochs, and the process of that run, which is in its second epoch or later."""
    grid_of(root, **DENSE, flags=FLAGS | {"no-export": True, "epochs": 10_000})
    arguments = ["grid.yaml", "--data-dir", str(pictures), "--results", "results.csv", "--output", "runs", "--jobs=1"]
    study = subprocess.Popen([sys.executable, "-m", "subp_dist.study", *arguments], cwd=root)
    while not (root / "runs" / "dense-0-1x16-s1" / "previous.pt").exists():
        assert study.poll() is None
        time.sleep(0.2)
    children = Path(f"/proc/{study.pid}/task").glob("*/children")
    (run,) = (int(pid) for path in children for pid in path.read_text().split())
    return study, run


def test_sigterm_stops_the_runs_and_saves_them(digit_pictures, tmp_path):
    study, run = start(digit_pictures, tmp_path)
    study.terminate()
    assert study.wait() == 128 + signal.SIGTERM
    assert not Path(f"/proc/{run}").exists()
    assert "stopped and saved" in (tmp_path / "runs" / "dense-0-1x16-s1" / "log.txt").read_text()


def test_a_run_that_a_killed_study_leaves_is_not_started_twice(digit_pictures, tmp_path):
    study, run = start(digit_pictures, tmp_path)
    study.kill()
    study.wait()
    runner = Runner(
        Grid.read(tmp_path / "grid.yaml"), digit_pictures, tmp_path / "runs", tmp_path / "results.csv", 1, 1.0
    )
    try:
        with pytest.raises(UsageError, match="or runs that one has left"):
            runner.work()
    finally:
        os.kill(run, signal.SIGKILL)


def test_no_run_is_started_after_the_budget(done, tmp_path):
    late = Runner(done.grid, done.data, tmp_path / "runs", tmp_path / "results.csv", 1, 0.0)
    late.work()
    assert not late.path.exists()
    assert not late.failed


def test_another_csv_is_not_taken_for_results(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="not the results of a study"):
        read_results(tmp_path / "x.csv")


def test_what_cannot_be_written_is_refused_before_the_first_run(digit_pictures, tmp_path, monkeypatch):
    grid_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["--results", "nowhere/results.csv"], "there is no folder nowhere"),
        (["--results", "results.csv", "--plot", "plot.xls"], "expected the name of a .png or .svg file"),
        (["--results", "results.csv", "--plot", "nowhere/plot.svg"], "there is no folder nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["study", "grid.yaml", "--data-dir", str(digit_pictures), *arguments])
        with pytest.raises(UsageError, match=message):
            command_line.cli.__wrapped__()
    assert not (tmp_path / "output").exists()


def test_rows_of_other_flags_stay_out_of_the_table(done, tmp_path):
    rows = read_results(done.path)
    elsewhere = {n: row | {"command": row["command"].replace(str(done.data), "/data")} for n, row in rows.items()}
    assert results_of(done.grid, elsewhere) == (elsewhere, [])
    variants = STUDY["variants"] | {"tuned": {"after": "dense", "flags": {"criterion": "l2"}}}
    kept, others = results_of(grid_of(tmp_path, variants=variants), rows)
    assert (list(kept), others) == (["dense-0-1x16-s1"], ["tuned-0.5-1x16-s1"])
    assert results_of(grid_of(tmp_path, seeds=[2]), rows) == ({}, [])
    variants = STUDY["variants"] | {"tuned": {"flags": {"criterion": "l1"}}}  # no longer from trained weights
    assert results_of(grid_of(tmp_path, variants=variants), rows)[1] == ["tuned-0.5-1x16-s1"]


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


def test_one_seed_has_no_spread_and_a_plot_repeats_byte_for_byte(tmp_path):
    cells = summarise({"x": result("bpar", 0.5, 1, 60.0)}, ["bpar"])
    assert as_markdown(cells, {}).splitlines()[2] == "| 50 % | 1x16 | bpar | 60.0 | 1 |  | 5.0 M |"
    for name in ("a.svg", "b.svg"):
        plot(cells, {}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_share_of_the_best_blocks_is_counted_by_hand():
    weight = torch.full((4, 4, 3, 3), 1.0)
    weight[:2, 1] = 3.0  # one block of the first of two block rows
    # Squares of the first row: 162 and three of 18, of the second: four of 18; two of four stay in each.
    assert evenness.share_of_best(weight, 2, 0.5) == pytest.approx((162 + 18 + 2 * 18) / (162 + 3 * 18 + 4 * 18))
    assert evenness.share_of_best(weight, 2, 0.0) == 1.0


def test_large_blocks_leave_less_to_choose_and_training_may_leave_more(tmp_path, capsys, monkeypatch):
    """A network with every eighth input channel ten times as large, in blocks of any size: found in all sizes."""
    model = timm.create_model("resnet10t", num_classes=10)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith("layer"):
            module.weight.data[:, ::8] *= 10
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    command = ["evenness", "resnet10t", "--num-classes", "10", "--initial-checkpoint", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    evenness.cli()
    random, trained = (
        [float(cell) for cell in line.split("|")[2:-1]] for line in capsys.readouterr().out.splitlines()[-2:]
    )
    assert random == sorted(random, reverse=True) and 0.5 < random[-1] < random[0] < 1
    assert all(share > 0.95 for share in trained)
    monkeypatch.setattr(sys, "argv", [*command, "--target-macs", "1G"])
    with pytest.raises(SystemExit):
        evenness.cli()
    assert "expected --prune-rate" in capsys.readouterr().err
