"""The benchmark of a file: what it writes is consistent, and what does not fit is one line and exit status 2."""

from __future__ import annotations

import json

import pytest
from test_ext_planner import dense_block
from test_ext_session import network

import subp_ext
from subp_ext.bench.__main__ import main


@pytest.fixture
def model(tmp_path):
    subp_ext.save(tmp_path / "m.subp", network())
    return str(tmp_path / "m.subp")


def test_figures(model, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert main([model, "--threads", "1", "--batch-size", "3", "--seconds", "0.05", "--json", str(path)]) == 0
    found, text = json.loads(path.read_text()), capsys.readouterr().out
    assert 0 < found["best_ms"] <= found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["images_per_second"] == pytest.approx(3000 / found["p50_ms"])
    assert found["input_shapes"] == [[3, 3, 16, 12]] and found["threads"] == 1 and found["runs"] >= 1
    assert all(found[key] > 0 for key in ("load_ms", "peak_rss_mb", "arena_mb", "weights_mb", "bytes"))
    assert found["report"]["shares"]["sparse"] > 0 and found["report"]["rows"][0]["ms"] > 0
    assert "images/s" in text and "on sparse kernels" in text and found["kernel_set"] in text


def test_image_size_where_it_is_free(tmp_path, capsys):
    subp_ext.save(tmp_path / "m.subp", dense_block())
    path = str(tmp_path / "m.subp")
    assert main([path, "--image-size", "6", "4", "--seconds", "0.01"]) == 0
    assert "input 1x4x6x4" in capsys.readouterr().out
    assert main([path, "--seconds", "0.01"]) == 2
    assert "pass --image-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--image-size", "8"], "made for images of 16x12; export it for another size"),
        (["--image-size", "1", "2", "3"], "one side, or height and width"),
        (["--seconds", "0"], "expected more than 0"),
        (["--batch-size", str(10**12)], "there is no memory for an input of 1000000000000x3x16x12; pass a smaller"),
        (["--batch-size", str(10**30)], "there is no memory for an input of 1"),
        (["--threads", "0"], "expected a whole number"),
        (["--json", "/nowhere/out.json", "--seconds", "0.01"], "/nowhere/out.json: No such file"),
    ],
)
def test_misuse(model, capsys, flags, message):
    assert main([model, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_counts_that_are_none(model, capsys, value):
    with pytest.raises(SystemExit):
        main([model, f"--batch-size={value}"])
    assert f"argument --batch-size: {value!r} is no whole number of at least 1" in capsys.readouterr().err


def test_files_that_are_none(tmp_path, capsys):
    assert main([str(tmp_path / "absent.subp")]) == 2
    assert "absent.subp: No such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("no model")
    assert main([str(tmp_path / "text")]) == 2
    assert "does not start as a .subp file does" in capsys.readouterr().err
