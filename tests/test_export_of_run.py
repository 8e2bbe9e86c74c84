"""subp_dist.export.of_run: files that a training writes in int8 or bfloat16, and what is refused before it starts."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

import subp_ext
from subp_dist import train
from subp_dist.data import digits
from subp_dist.errors import UsageError
from subp_dist.export import Network, of_run
from subp_dist.options import parse_args

FLAGS = ["test_resnet", "--data-dir", "builtin", "--batch-size", "64", "--epochs", "1", "--prune-start", "0"]
FLAGS += ["--prune-end", "0"]


@pytest.fixture
def few_digits(monkeypatch):
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels[::10], labels[::10]))


def data(images: int) -> SimpleNamespace:
    return SimpleNamespace(train=range(images), input_size=(3, 16, 16))


def test_too_few_images_and_models_without_a_layer_are_refused_before_training():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    of_run.check_quantizable(network, data(8))
    with pytest.raises(UsageError, match="--export-dtype int8: 7 training images are too few to calibrate on"):
        of_run.check_quantizable(network, data(7))
    with pytest.raises(UsageError, match="^--export-dtype int8: "):
        of_run.check_quantizable(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), data(8))


def test_a_training_with_int8_writes_its_file_and_what_became_of_each_layer(few_digits, tmp_path):
    flags = [*FLAGS, "--output", str(tmp_path), "--experiment", "run"]
    folder = train.main(parse_args([*flags, "--export-dtype", "int8"]))
    report = json.loads((folder / "report.json").read_text())
    assert report["files"]["model-int8.subp"] == (folder / "model-int8.subp").stat().st_size
    assert {layer["type"] for layer in report["int8"]["layers"]} >= {"int8"}
    float32, int8 = (subp_ext.load(folder / name) for name in ("model.subp", "model-int8.subp"))
    assert int8.metadata["class_names"] == float32.metadata["class_names"]
    sparse = {n: c for n, c in int8.constants.items() if isinstance(c, subp_ext.UniformBlockSparse)}
    assert "int8" in {constant.dtype for constant in sparse.values()}
    for name, constant in sparse.items():
        np.testing.assert_array_equal(constant.indices, float32.constants[name].indices)

    again = train.main(parse_args([*flags, "--epochs", "2", "--resume", "auto", "--export-dtype", "bfloat16"]))
    assert again == folder and (folder / "model.subp").exists()
    assert not (folder / "model-int8.subp").exists(), "it held the weights of the epoch before"
    report = json.loads((folder / "report.json").read_text())
    assert report["int8"] is None
    bfloat16 = folder / "model-bfloat16.subp"
    assert report["files"][bfloat16.name] == bfloat16.stat().st_size < 0.6 * report["files"]["model.subp"]
    assert subp_ext.load(bfloat16).metadata["class_names"] == float32.metadata["class_names"]


def test_a_network_that_cannot_be_quantized_after_all_is_told_and_ends_no_run(monkeypatch, tmp_path, caplog):
    def fails(*_args):
        raise UsageError("values are not numbers")

    monkeypatch.setattr(of_run, "calibration_images", lambda data, count: (np.zeros((8, 3, 4, 4)), np.zeros(8)))
    monkeypatch.setattr(of_run, "export_int8", fails)
    network = Network(nn.Conv2d(3, 16, 3), (3, 4, 4), {}, {})
    with caplog.at_level(logging.WARNING, "subp_dist"):
        assert of_run.export_run_int8(network, data(8), tmp_path / "model-int8.subp") is None
        monkeypatch.setattr(of_run, "export_bfloat16", fails)
        of_run.export_run_bfloat16(network, tmp_path / "model-bfloat16.subp")
    assert "there is no model-int8.subp: values are not numbers; python -m subp_dist.export --dtype int8" in caplog.text
    assert "there is no model-bfloat16.subp: values are not numbers" in caplog.text
