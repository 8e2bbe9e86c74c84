"""Models with several results, nested in lists, tuples and dicts: order, names, shapes and numbers.

Networks: single convolutions and timm's backbones at 64x64, with 3 images; the oracle is torch, 1e-4 of the range.
"""

import collections

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export import check_exportable, export_subp
from subp_dist.export.formats import write_onnx
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

SIZE = (3, 16, 24)


class Returns(nn.Module):
    """A convolution, and what a function makes of its input and its result."""

    def __init__(self, results):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.results = nn.Conv2d(3, 4, 3, padding=1), results

    def forward(self, x):
        return self.results(x, self.conv(x))


def export(results, path, size=SIZE):
    model = Returns(results).eval()
    export_subp(model, path, size, {})
    session, images = subp_ext.Session(path), torch.randn(3, *size)
    with torch.inference_mode():
        return session, session.run(images.numpy()), model(images)


Pair = collections.namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    "results, names",
    [
        (lambda x, y: [y, y.relu()], ["conv2d", "relu"]),
        (lambda x, y: {"mask": y, "aux": {"low": y.mean(1), "high": y.amax(1)}}, ["mask", "aux.low", "aux.high"]),
        (lambda x, y: {"a": [y * 2, (y * 3, y.sum(1))], "b": y}, ["a.0", "a.1.0", "a.1.1", "b"]),
        (lambda x, y: Pair(y + 1, y + 2), ["left", "right"]),
        (lambda x, y: {"relu": y + 1, "add": y.relu()}, ["relu", "add"]),
        (lambda x, y: {"x": y + 1, "conv.weight": y + 2}, ["output.x", "output.conv.weight"]),
        (lambda x, y: {"first": y, "again": y, "image": x}, ["first", "again", "image"]),
        (lambda x, y: {"first": y, "same": y.contiguous()}, ["first", "same"]),
        (lambda x, y: {"out": y, "aux": None}, ["out"]),
        (lambda x, y: {"only": y}, ["only"]),
    ],
    ids=["list", "dict", "nested", "named", "swapped", "taken", "repeated", "identity", "none", "one"],
)
def test_results_are_flattened_in_order_and_named_by_their_keys(results, names, tmp_path):
    session, found, expected = export(results, tmp_path / "model.subp")
    assert [spec.name for spec in session.outputs] == names
    flat = [leaf for leaf in torch.utils._pytree.tree_leaves(expected) if leaf is not None]
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(flat) == len(names)
    for ours, theirs in zip(found, flat, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "results, shapes",
    [
        (lambda x, y: y.argmax(1), [(None, None, None)]),
        (lambda x, y: y.permute(0, 2, 3, 1), [(None, None, None, 4)]),
        (lambda x, y: y.mean((2, 3)), [(None, 4)]),
        (lambda x, y: nn.functional.adaptive_avg_pool2d(y, 2).flatten(2), [(None, 4, 4)]),
        (lambda x, y: (y.mean(3), y.mean(2), y[:, :, :5]), [(None, 4, None), (None, 4, None), (None, 4, 5, None)]),
        (lambda x, y: nn.functional.max_pool2d(y, 16, 64), [(None, 4, None, None)]),
    ],
    ids=["argmax", "nhwc", "pooled", "grid", "sides", "stride"],
)
def test_dimensions_that_do_not_follow_the_image_size_stay_numbers(results, shapes, tmp_path):
    session, _, _ = export(results, tmp_path / "model.subp")
    assert session.inputs[0].shape == (None, 3, None, None), session.metadata["notes"]
    assert [spec.shape for spec in session.outputs] == shapes


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_feature_maps_of_a_pruned_backbone(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    SUBPPruner(model, PruneSchedule(0.5, 0, 0), block_size=8).step(0)
    check_exportable(model, (3, 64, 64))
    export_subp(model, tmp_path / "model.subp", (3, 64, 64), {})
    session, images = subp_ext.Session(tmp_path / "model.subp"), torch.randn(3, 3, 96, 64)
    found = session.run(images.numpy())
    with torch.inference_mode():
        expected = model(images)
    assert len(found) == len(expected) == 5 and session.metadata["independent_images"]
    for ours, theirs, spec in zip(found, expected, session.outputs, strict=True):
        assert spec.shape == (None, theirs.shape[1], None, None)
        assert np.abs(ours - theirs.numpy()).max() < 1e-4 * np.ptp(theirs.numpy())


@pytest.mark.parametrize(
    "results, message",
    [
        (lambda x, y: {"y": y, "count": 3}, "result 'count' is 3; expected tensors alone"),
        (lambda x, y: (y, x.shape[0]), "result 1 is .*; expected tensors alone"),
        (lambda x, y: {"y": None}, "returns no tensor"),
    ],
)
def test_results_that_are_no_tensors_are_refused(results, message):
    with pytest.raises(UsageError, match=f"Returns cannot be exported: .*{message}.*--no-export"):
        check_exportable(Returns(results), SIZE)


def test_several_results_in_onnx(tmp_path):
    model = Returns(lambda x, y: {"a": y, "b": [y.relu(), y.mean(1)]}).eval()
    write_onnx(model, SIZE, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["a", "b.0", "b.1"]
