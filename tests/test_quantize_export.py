"""python -m subp_dist.export --dtype int8: a run, random weights, pictures of a folder, QDQ ONNX, misuse.

The run is the one that an earlier version left (`earlier_run`: digits of 28x28, 1x16 blocks); other networks are small
members of timm's families at 64x64. Predictions are compared with float32's, and ONNX Runtime's with subp_ext's.
"""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from photographs import write_photographs
from test_export_formats import export

import subp_ext
from subp_dist.data.digits import MEAN, STD, Digits
from subp_dist.export import Network
from subp_dist.export.int8 import export_int8, random_images
from subp_dist.export.integers import FakeQuantized
from subp_dist.export.quantize import QuantizeOptions
from subp_dist.export.quantize_report import agreement, top1
from subp_ext import UniformBlockSparse

RUN = Path(__file__).parent / "earlier_run"
RANDOM = ["--prune-rate", "0.5", "--image-size", "64", "--dtype", "int8"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = Digits(train=False)
    pairs = [data[index] for index in range(0, len(data), 4)]
    return np.stack([image.numpy() for image, _ in pairs]), np.array([label for _, label in pairs])


def test_a_run_is_calibrated_on_its_training_data(tmp_path, capsys, digits):
    images, labels = digits
    export(RUN, "--output", tmp_path / "float32.subp")
    export(RUN, "--dtype", "int8", "--calibration-images", 64, "--uint8-input", "--output", tmp_path / "model.subp")
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"model.subp: subp, int8, .* MB; .*% of the MACs in int8; top-1 .* of 64 calibration images", said)
    assert [path.name for path in tmp_path.glob("*model*")] == ["model.subp"], "nothing but the file is left"
    int8, float32 = (subp_ext.Session(tmp_path / name) for name in ("model.subp", "float32.subp"))
    assert int8.inputs[0].dtype == "uint8" and int8.metadata["uint8_input"] == "nchw"
    assert int8.metadata["quantization"]["images"] == 64 and int8.metadata["dtype"] == "int8"
    raw = np.rint((images * STD[0] + MEAN[0]) * 255).astype(np.uint8)
    found, exact = int8.run(raw), float32.run(images)
    assert agreement(exact, found) > 97 and abs(top1(found, labels) - top1(exact, labels)) < 2
    sizes = [(tmp_path / name).stat().st_size for name in ("model.subp", "float32.subp")]
    assert sizes[0] < 0.75 * sizes[1], "most of so small a file is its header"
    before, after = (subp_ext.load(tmp_path / name).constants for name in ("float32.subp", "model.subp"))
    sparse = [name for name, value in after.items() if isinstance(value, UniformBlockSparse)]
    assert sparse and all(np.array_equal(after[name].indices, before[name].indices) for name in sparse)


def test_a_random_network_of_se_and_silu_and_its_onnx_twin(tmp_path, capsys):
    export("--model", "test_efficientnet", *RANDOM, "--calibration-images", 24, "--output", tmp_path / "model.subp")
    export("--model", "test_efficientnet", *RANDOM, "--calibration-images", 24, "--output", tmp_path / "model.onnx")
    assert capsys.readouterr().out.count("100.0% of the MACs in int8") == 2
    images = random_images((3, 64, 64), 24)
    found = subp_ext.Session(tmp_path / "model.subp").run(images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    twin = session.run(None, {"input": images})[0]
    # Of random weights the classes are near to each other.
    assert agreement(found, twin) > 85 and np.corrcoef(found.ravel(), twin.ravel())[0, 1] > 0.99
    graph = onnx.load(tmp_path / "model.onnx").graph
    operators = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    weights = [
        tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert any((onnx.numpy_helper.to_array(tensor) == 0).mean() > 0.45 for tensor in weights), "zeros of pruned blocks"
    assert (tmp_path / "model.onnx").stat().st_size < 1.5e6


def test_pictures_of_any_folder_calibrate(tmp_path, capsys):
    folder = write_photographs(tmp_path / "pictures", train=5, val=2)
    command = ["--model", "test_resnet", *RANDOM, "--data-dir", folder, "--output", tmp_path / "model.subp"]
    export(*command, "--keep-float", "fc", "conv1.*", "--range", "percentile", "--uint8-input", "nhwc")
    said = capsys.readouterr().out
    assert "of 14 calibration images; in float32: conv1.0, conv1.3, conv1.6, fc (asked for (--keep-float))" in said
    session = subp_ext.Session(tmp_path / "model.subp")
    assert session.inputs[0].shape[3] == 3 and session.run(np.zeros((1, 64, 64, 3), np.uint8)).dtype == np.float32


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--keep-float", "fc"], "--keep-float belongs to --dtype int8; float32 needs no calibration"),
        (["--dtype", "int8", "--calibration-images", "7"], "--calibration-images 7: expected 8 or more"),
        (["--dtype", "int8", "--format", "timm"], "--dtype int8 --format timm: expected --format subp or onnx"),
        (["--dtype", "int8", "--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
        (["--dtype", "int8", "--max-drop", "101"], "--max-drop 101: expected points between 0 and 100"),
    ],
)
def test_misuse_is_named_in_one_line(flags, message, tmp_path, capsys):
    name = "model" if "--format" in flags else "model.subp"
    with pytest.raises(SystemExit) as error:
        export(RUN, *flags, "--output", tmp_path / name)
    assert error.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_folders_without_pictures_and_exported_files_are_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = [
        ([RUN, "--data-dir", tmp_path / "empty"], "no pictures in it"),
        ([RUN / "model.subp"], "is an exported file, which holds no training"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit):
            export(*arguments, "--dtype", "int8", "--output", tmp_path / "new.subp")
        assert message in capsys.readouterr().err


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    network = Network.open(RUN)
    monkeypatch.setattr(FakeQuantized, "_stored", lambda self, real, out, activation=None: real * 0.5)
    images = random_images(network.input_size, 16)
    with pytest.raises(ValueError, match="subp_ext and torch compute different results of the quantized network"):
        export_int8(network, tmp_path / "model.subp", images, options=QuantizeOptions())
    assert not list(tmp_path.iterdir())
