"""subp_dist.study.precision: its table, its file, what is refused, and a real run exported and measured.

Numbers of the table are counted by hand.
"""

import csv
import shlex
import subprocess
import sys

import pytest
from grids import call, grid_of

from subp_dist.errors import UsageError
from subp_dist.study import precision
from subp_dist.study.data import prepare
from subp_dist.study.runner import Runner


def row(name: str, dtype: str, top1: float, same: int, rate: str = "0.5") -> dict[str, str]:
    values = (name, "subp", rate, "16", name[-1], dtype, f"{top1:.2f}", str(same), "200", "1.000", "1500000", "0.250")
    return dict(zip(precision.COLUMNS, (*values, "python"), strict=True))


def test_the_table_compares_seed_by_seed():
    rows = [row("a-s1", "float32", 60, 200), row("a-s1", "int8", 59.5, 190), row("a-s2", "float32", 62, 200)]
    rows += [row("a-s2", "int8", 62.1, 196), row("b-s1", "int8", 50, 180, "0.75")]
    *_, float32, int8, sparser = precision.as_markdown(rows, {"subp": "SUBP"}).splitlines()
    assert float32 == "| SUBP, 50 % of 1x16 | float32 | 61.00 ± 1.41 |  | 100.00 | 1.50 | 0.250 | 2 |"
    assert int8 == "| SUBP, 50 % of 1x16 | int8 | 60.80 ± 1.84 | -0.20 (-0.50) | 96.50 | 1.50 | 0.250 | 2 |"
    assert sparser == "| SUBP, 75 % of 1x16 | int8 | 50.00 |  | 90.00 | 1.50 | 0.250 | 1 |"


def test_rows_come_back_and_another_file_is_refused(tmp_path):
    rows = [row("a-s1", "float32", 60, 200), row("a-s1", "int8", 59.5, 190)]
    precision.write_rows(tmp_path / "rows.csv", rows)
    assert list(precision.read_rows(tmp_path / "rows.csv").values()) == rows
    (tmp_path / "other.csv").write_text("name,top1\n")
    with pytest.raises(UsageError, match=r"other\.csv: not such results; expected the columns name, variant"):
        precision.read_rows(tmp_path / "other.csv")


def test_what_cannot_be_is_said(tmp_path, monkeypatch, capsys):
    grid_of(tmp_path)
    given = (tmp_path / "grid.yaml", "--output", tmp_path, "--results", tmp_path / "rows.csv")
    code, _, errors = call(monkeypatch, capsys, precision, *given)
    assert code == 2 and "dense-0-1x16-s1: not trained yet" in errors and "no results of" in errors
    assert call(monkeypatch, capsys, precision, *given, "--threads", 0)[0] == 2
    precision.write_rows(tmp_path / "rows.csv", [row("a-s1", "int8", 60, 200)])
    before = (tmp_path / "rows.csv").read_bytes()
    code, _, errors = call(monkeypatch, capsys, precision, *given, "--time-only")
    assert code == 2 and "a-s1/last-int8.subp: not there; remove the rows from" in errors
    assert (tmp_path / "rows.csv").read_bytes() == before


@pytest.mark.slow
def test_a_trained_run_is_exported_and_measured(tmp_path, digit_pictures, monkeypatch, capsys):
    flags = {"epochs": 1, "batch-size": 16, "workers": 0, "img-size": 32, "prune-start": 0, "prune-end": 0}
    flags |= {"no-export": True, "val-split": "val"}
    fake_quantized = {"flags": {"epochs": 2, "qat-epochs": 1, "no-export": False}}
    grid = grid_of(tmp_path, variants={"subp": {}, "qat": fake_quantized}, flags=flags)
    runs = tmp_path / "runs"
    Runner(grid, prepare(digit_pictures, tmp_path / "data", grid), runs, tmp_path / "runs.csv", 1, 1.0).work()
    given = (tmp_path / "grid.yaml", "--output", runs, "--results", tmp_path / "rows.csv")
    code, out, _ = call(monkeypatch, capsys, precision, *given)
    assert code == 0 and "| subp, 50 % of 1x16 | int8 |" in out
    with (tmp_path / "rows.csv").open(newline="") as file:
        float32, int8, trained = csv.DictReader(file)
    # To the bit, so on every picture.
    assert (trained["name"], trained["dtype"], trained["same"]) == ("qat-0.5-1x16-s1", "int8", "40")
    assert (float32["dtype"], float32["same"], float32["images"]) == ("float32", "40", "40")
    assert int8["dtype"] == "int8" and int(int8["same"]) >= 30 and float(int8["macs_share"]) > 0.5
    file = runs / "subp-0.5-1x16-s1" / "last-int8.subp"
    before = file.read_bytes()
    assert int8["bytes"] == str(len(before))
    subprocess.run([sys.executable, *shlex.split(int8["command"])[1:]], check=True, capture_output=True)
    assert file.read_bytes() == before, "the command of the row makes the same file"
    code, again, _ = call(monkeypatch, capsys, precision, *given, "--table-only")
    assert code == 0 and again.strip() in out
    for old in (rows := (float32, int8, trained)):
        old["best_ms"] = "1000000"
    precision.write_rows(tmp_path / "rows.csv", rows)
    assert call(monkeypatch, capsys, precision, *given, "--time-only")[0] == 0
    timed = list(precision.read_rows(tmp_path / "rows.csv").values())
    assert [old | {"best_ms": new["best_ms"]} for old, new in zip(rows, timed, strict=True)] == timed
    assert all(0 < float(new["best_ms"]) < 1000 for new in timed)
