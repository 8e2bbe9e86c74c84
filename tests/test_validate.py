"""subp_dist.validate and its table, on one short run."""

import functools
import json
import sys

import numpy as np
import pytest
import timm
import torch

import subp_ext
from subp_dist import train, validate
from subp_dist.data.digits import Digits
from subp_dist.errors import UsageError
from subp_dist.export import Network, build_graph
from subp_dist.export.bfloat16 import export_bfloat16
from subp_dist.options import parse_args
from subp_ext.operators.steps import no_fast_bfloat16

FLAGS = ["test_resnet", "--data-dir", "builtin", "--batch-size", "128", "--lr", "0.05", "--epochs", "1"]

# The MACs of test_resnet on one digit, by hand: positions x (outputs x inputs x kernel) of each convolution. The stem's
# stride 2 leaves 14x14, its pooling 7x7, the layers after it 7x7, 4x4, 2x2, 1x1; layer3 strides in its second
# convolution. Every other layer has an even number of inputs, so 50 % of its blocks is exactly half of its MACs.
ALWAYS_DENSE_MACS = 14 * 14 * (16 * 1 * 9 + 16 * 16 * 9 + 32 * 16 * 9) + 10 * 96  # stem; classifier
PRUNABLE_MACS = (
    7 * 7 * (2 * 32 * 32 * 9)
    + 4 * 4 * (48 * 32 * 9 + 48 * 48 * 9 + 48 * 32)
    + (4 * 4 * 48 * 48 + 2 * 2 * (48 * 48 * 9 + 192 * 48 + 192 * 48))
    + 1 * 1 * (96 * 192 * 9 + 96 * 96 * 9 + 96 * 192)
)


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch):
    monkeypatch.setattr(validate, "time_in_turns", functools.partial(validate.time_in_turns, seconds=0.1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    for name, rate in (("sparse", "0.5"), ("dense", "0")):
        more = ["--export-dtype", "int8"] if name == "sparse" else []
        train.main(parse_args([*FLAGS, "--output", str(output), "--experiment", name, "--prune-rate", rate, *more]))
    return output


def test_comparison_of_both_engines(runs):
    sparse, dense = validate.Run.open(runs / "sparse"), validate.Run.open(runs / "dense")
    comparison = validate.compare(sparse, dense, threads=1)
    assert comparison["images"] == comparison["same_predictions"] == 1000
    assert comparison["max_logit_difference"] < 1e-4
    columns = comparison["columns"]
    assert columns["sparse, torch"]["top1"] == columns["sparse, subp_ext"]["top1"]
    assert columns["sparse, torch"]["top1"] == pytest.approx(sparse.report["accuracy"]["top1"])  # summed in batches
    assert columns["dense, torch"]["macs"] == ALWAYS_DENSE_MACS + PRUNABLE_MACS
    for engine in ("torch", "subp_ext"):
        assert columns[f"sparse, {engine}"]["macs"] == ALWAYS_DENSE_MACS + PRUNABLE_MACS // 2
    assert "same prediction on 1000 of 1000 images" in validate.as_table(comparison)


def test_the_int8_file_of_the_run_stands_beside_float32(runs):
    run = validate.Run.open(runs / "sparse")
    comparison = validate.compare(run, None, threads=1)
    assert list(comparison["columns"]) == ["sparse, torch", "sparse, subp_ext", "sparse, int8"]
    float32, int8 = (comparison["columns"][f"sparse, {name}"] for name in ("subp_ext", "int8"))
    digits = Digits(train=False)
    images = torch.stack([image for image, _ in digits]).numpy()
    labels = np.array([label for _, label in digits])
    predicted, exact = (
        subp_ext.Session(runs / "sparse" / name).run(images).argmax(1) for name in ("model-int8.subp", "model.subp")
    )
    assert int8["top1"] == pytest.approx(100 * (predicted == labels).mean())
    assert comparison["int8"]["same_predictions"] == (predicted == exact).sum() > 900
    assert int8["bytes"] == (runs / "sparse/model-int8.subp").stat().st_size < 0.6 * float32["bytes"]
    assert 0.5 < comparison["int8"]["macs_share"] <= 1
    line = validate.as_table(comparison).splitlines()[-1]
    assert line.startswith("int8 against float32 on subp_ext: same prediction on ") and "of the file" in line


def test_bfloat16_predicts_what_float32_does(runs, tmp_path):
    """On at least 99 % of the pictures, as no calibration could have seen to."""
    run = validate.Run.open(runs / "sparse")
    file = tmp_path / "model-bfloat16.subp"
    export_bfloat16(Network.open(run.folder), file)
    files = validate.Files.of(run.folder, lower={"bfloat16": file})
    comparison = validate.compare(run, None, threads=1, files=files)
    assert list(comparison["columns"])[2:] == ["sparse, bfloat16", "sparse, int8"]
    float32, bfloat16 = (comparison["columns"][f"sparse, {name}"] for name in ("subp_ext", "bfloat16"))
    assert comparison["bfloat16"]["same_predictions"] >= 990
    assert abs(bfloat16["top1"] - float32["top1"]) <= 0.5
    assert comparison["bfloat16"]["macs_share"] == (0 if no_fast_bfloat16() else 1)
    assert bfloat16["bytes"] < 0.6 * float32["bytes"]
    lines = [line for line in validate.as_table(comparison).splitlines() if line.startswith("bfloat16 against float32")]
    assert len(lines) == 1 and f"same prediction on {comparison['bfloat16']['same_predictions']} of 1000" in lines[0]


def test_files_can_be_named(runs):
    run, dense = validate.Run.open(runs / "sparse"), validate.Run.open(runs / "dense")
    named = validate.Files.of(run.folder, runs / "dense/model.subp", {"int8": runs / "sparse/model.subp"})
    comparison = validate.compare(run, None, threads=1, limit=100, files=named)
    assert comparison["columns"]["sparse, subp_ext"]["bytes"] == (runs / "dense/model.subp").stat().st_size
    assert comparison["columns"]["sparse, int8"]["bytes"] == (runs / "sparse/model.subp").stat().st_size
    assert comparison["int8"]["macs_share"] == 0
    assert validate.Files.of(dense.folder) == validate.Files(runs / "dense/model.subp")
    assert "int8" not in validate.compare(dense, None, threads=1, limit=100)


def test_a_file_of_other_images_is_refused(runs, tmp_path):
    network = Network.random("test_resnet", 0.5, 16, image_size=32)
    subp_ext.save(tmp_path / "other.subp", build_graph(network.model, network.input_size))
    run = validate.Run.open(runs / "sparse")
    with pytest.raises(
        UsageError, match=r"other.subp takes float32 \[None, 3, .*; expected the run's normalised images"
    ):
        validate.compare(run, None, threads=1, files=validate.Files(tmp_path / "other.subp"))


@pytest.mark.parametrize("limit", [1000, 70])
def test_the_dense_model_is_judged_on_the_same_images(runs, limit):
    sparse, dense = validate.Run.open(runs / "sparse"), validate.Run.open(runs / "dense")
    dense.report["accuracy"]["top1"] = -1.0
    comparison = validate.compare(sparse, dense, threads=1, limit=limit)
    digits = Digits(train=False)
    images, labels = zip(*(digits[index * 1000 // limit] for index in range(limit)), strict=True)
    with torch.inference_mode():
        right = dense.model(torch.stack(images)).argmax(1) == torch.tensor(labels)
    assert comparison["images"] == limit
    assert comparison["columns"]["dense, torch"]["top1"] == pytest.approx(100 * right.double().mean().item())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit", "-5"], "--limit -5: expected 1 or more"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--threads", "0"], "threads is 0; expected a whole number from 1"),
        (["--threads", "5000"], "threads is 5000; expected a whole number from 1"),
    ],
)
def test_what_the_command_refuses(runs, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sys, "argv", ["subp-validate", str(runs / "sparse"), *more])
    with pytest.raises(SystemExit) as end:
        validate.cli()
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_command_prints_the_table_and_keeps_it(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["subp-validate", str(runs / "sparse"), "--threads", "1", "--limit", "100"])
    validate.cli()
    assert "same prediction on 100 of 100 images" in capsys.readouterr().out
    assert json.loads((runs / "sparse/report.json").read_text())["comparison"]["images"] == 100


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"is not a finished run: it has no args.yaml"):
        validate.Run.open(tmp_path)


def test_a_damaged_export_is_refused(runs, tmp_path):
    run = validate.Run.open(runs / "sparse")
    content = bytearray((runs / "sparse/model.subp").read_bytes())
    content[len(content) // 2] ^= 1
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "model.subp").write_bytes(content)
    with pytest.raises(UsageError, match="model.subp"):
        validate.compare(validate.Run(folder, run.config, run.data, run.model, run.report), None, threads=1)


def test_a_network_with_a_conv3d_is_timed_in_channels_last():
    model = timm.create_model("lambda_resnet26t", in_chans=1, num_classes=3).eval()
    image = np.random.default_rng(0).standard_normal((1, 1, 64, 64)).astype(np.float32)
    found = validate.torch_runner(model, image)()
    with torch.inference_mode():
        torch.testing.assert_close(found, model(torch.from_numpy(image)), rtol=1e-3, atol=1e-4)


def test_a_dense_run_on_other_images_is_refused(runs, monkeypatch):
    sparse, dense = validate.Run.open(runs / "sparse"), validate.Run.open(runs / "dense")
    monkeypatch.setattr(dense.data.val, "labels", dense.data.val.labels[::-1].copy())
    with pytest.raises(UsageError, match=r"its validation images \(1000\) are not those of"):
        validate.compare(sparse, dense, threads=1)
