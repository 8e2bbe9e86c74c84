"""What an export refuses, and what it says: results that differ from torch, foreign and random operators, no scale.

Networks: single layers on 8x8 to 16x24 images. Out of scope: the other formats (test_export_formats.py).
"""

import logging
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.library import Library

import subp_ext
from subp_dist.errors import UsageError
from subp_dist.export import build_graph, check_exportable, export_subp, subp
from subp_dist.export.verify import describe_difference, largest_difference

SIZE = (3, 16, 24)


class Function(nn.Module):
    """A convolution, and a function of its result and the module."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), function
        self.register_buffer("counter", torch.zeros(()))

    def forward(self, x):
        return self.function(self.conv(x), self)


@pytest.fixture
def wrong_bias(monkeypatch):
    """A packing that changes a bias."""

    def pack(graph, masks):
        for name in graph.constants:
            if name.endswith("bias"):
                graph.constants[name] = graph.constants[name] + np.float32(0.5)
        return graph

    monkeypatch.setattr(subp, "_pack", pack)


def test_a_file_that_would_compute_something_else_does_not_get_its_name(wrong_bias, tmp_path):
    model = Function(lambda y, m: y).eval()
    message = r"Function is not exported: on images 3x3x16x24 the result differs by [1-9]\.\de-02 of its range"
    with pytest.raises(UsageError, match=message):
        export_subp(model, tmp_path / "model.subp", SIZE, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=message + ".*--no-export"):
        check_exportable(model, SIZE)


def test_of_several_results_the_wrong_one_is_named(wrong_bias, tmp_path):
    model = Function(lambda y, m: {"right": y - y.mean((2, 3), keepdim=True), "wrong": y}).eval()
    with pytest.raises(UsageError, match="output 'wrong' differs by"):
        export_subp(model, tmp_path / "model.subp", SIZE, {})


def test_one_image_is_compared_too(monkeypatch, tmp_path):
    """A reshape that is right for the traced batch alone."""
    model, run = nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), subp_ext.Session.run

    def wrong_for_one(session, images):
        return run(session, images) + (len(images[0]) == 1)

    monkeypatch.setattr(subp_ext.Session, "run", wrong_for_one)
    with pytest.raises(UsageError, match="on images 1x3x16x24 the result differs"):
        export_subp(model, tmp_path / "model.subp", SIZE, {})


class Baked(nn.Module):
    """What computes with the image's size: a number, a shape, a branch, and a wish for one size."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "number":
            return y.sum((2, 3)) / x.shape[2]
        if self.kind == "shape":
            return F.interpolate(F.max_pool2d(y, 2), size=x.shape[2:])
        if self.kind == "parity":
            return F.max_pool2d(F.pad(y, (0, 0, 0, 1)) if x.shape[2] % 2 else y, 2)
        torch._assert(x.shape[2] == 16, "images of 16 rows")
        return y


@pytest.mark.parametrize("kind", ["number", "shape"])
def test_sizes_that_the_code_computes_with_stay_free(kind, tmp_path):
    torch.manual_seed(0)
    model = Baked(kind).eval()
    graph = export_subp(model, tmp_path / "model.subp", SIZE, {})
    assert graph.inputs[0].shape == (None, 3, None, None) and graph.metadata["independent_images"] is True
    session, images = subp_ext.Session(tmp_path / "model.subp"), torch.randn(2, 3, 50, 34)
    with torch.inference_mode():
        expected = model(images).numpy()
    np.testing.assert_allclose(session.run(images.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind, shape, reason",
    [
        (
            "assert",
            (None, 3, 16, None),
            r"size 2 of input 'x' is fixed at 16: with 48 there the model itself fails: images of 16 rows",
        ),
        ("parity", (None, *SIZE), r"height and width are fixed: at 17x42 the result has shape .* instead of"),
    ],
)
def test_why_a_size_is_fixed(kind, shape, reason, tmp_path, caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="subp_dist"):
        graph = export_subp(Baked(kind).eval(), tmp_path / "model.subp", SIZE, {"model": "baked"})
    assert graph.inputs[0].shape == shape
    metadata = subp_ext.Session(tmp_path / "model.subp").metadata
    assert metadata["model"] == "baked" and metadata["independent_images"] is True
    (note,) = metadata["notes"]
    assert re.match(reason, note), note
    assert f"exported: {note}" in caplog.messages


def test_what_was_found_out_stands_above_given_metadata(tmp_path):
    model = Function(lambda y, m: y - y.mean(0)).eval()
    export_subp(model, tmp_path / "model.subp", SIZE, {"independent_images": True, "timm": "0"})
    metadata = subp_ext.Session(tmp_path / "model.subp").metadata
    assert metadata["independent_images"] is False and metadata["timm"] == "0"


def test_what_the_runtime_cannot_run_is_named(monkeypatch, tmp_path):
    def fail(session, images):
        raise RuntimeError("node 'conv2d': no memory")

    monkeypatch.setattr(subp_ext.Session, "run", fail)
    with pytest.raises(UsageError, match="subp_ext does not run Function: node 'conv2d': no memory"):
        export_subp(Function(lambda y, m: y).eval(), tmp_path / "model.subp", SIZE, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fill", ["zeros", "bias", "equal"])
def test_results_without_a_range_are_exported_without_warnings(fill, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    nn.init.zeros_(model[3].weight)
    nn.init.constant_(model[3].bias, {"zeros": 0.0, "bias": 2.5, "equal": 1e-30}[fill])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        export_subp(model, tmp_path / "model.subp", SIZE, {})
    assert subp_ext.Session(tmp_path / "model.subp").run(np.zeros((1, *SIZE), np.float32)).shape == (1, 5)


def test_overflow_in_both_engines_is_no_difference_and_no_warning(tmp_path):
    model = Function(lambda y, m: (y * 1e30).square().mean((2, 3)) - y.abs().mean() * 1e38 * 1e10).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        check_exportable(model, SIZE)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "found, expected, difference",
    [
        ([1.0, 3.0], [1.0, 3.0], 0),
        ([1.0, 2.0], [1.0, 3.0], 0.5),
        ([2.5, 2.5 + 1e-6], [2.5, 2.5], 4e-6),
        ([0.0, 1e-9], [0.0, 0.0], 1e-9),
        ([1000.0, 1000.5], [1000.0, 1001.0], 5e-3),
        ([NAN, INF, 1.0], [NAN, INF, 1.0], 0),
        ([NAN, 1.0], [0.0, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([NAN], [NAN], 0),
        ([], [], 0),
    ],
)
def test_scale_of_a_difference(found, expected, difference):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = largest_difference(np.array(found, np.float32), np.array(expected, np.float32))
    assert result == pytest.approx(difference, rel=0.05)


def test_classes_are_compared_by_count():
    expected = np.arange(8).reshape(2, 4)
    assert largest_difference(expected % 7, expected) == 1 / 8
    assert "shape [2, 4] instead of [2, 5]" in describe_difference(["a"], [expected], [np.zeros((2, 5))])
    assert "1 outputs instead of 2" in describe_difference(["a", "b"], [expected], [expected, expected])


@pytest.fixture(scope="module")
def foreign_linear():
    library = Library("others", "DEF")
    library.define("linear(Tensor input, Tensor weight) -> Tensor")
    for key in ("CompositeExplicitAutograd", "Meta"):
        library.impl("linear", lambda x, weight: x @ weight, key)
    yield torch.ops.others.linear
    library._destroy()


def test_an_operator_of_another_namespace_is_not_taken_for_atens(foreign_linear):
    model = Function(lambda y, m: foreign_linear(y, m.conv.weight[0, 0, :1].expand(24, 3)))
    with pytest.raises(UsageError, match=r"subp_ext has no operator others::linear \(node linear\)"):
        build_graph(model, SIZE)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda y, m: F.dropout(y, 0.5, training=True), r"dropout \(node \w*dropout\w*\) drops at random"),
        (lambda y, m: F.dropout2d(y, 0.5, training=True), r"no operator .*bernoulli"),
        (lambda y, m: F.alpha_dropout(y, 0.5, training=True), r"no operator .*bernoulli"),
        (
            lambda y, m: F.scaled_dot_product_attention(y, y, y, dropout_p=0.1),
            r"scaled_dot_product_attention \(node \w+\) drops at random",
        ),
        (
            lambda y, m: F.batch_norm(y, m.norm.running_mean, m.norm.running_var, training=True),
            r"a run changes 'norm.running_mean' of the model .*after eval\(\)",
        ),
        (lambda y, m: y + m.counter.add_(1), r"a run changes 'counter'"),
    ],
    ids=["dropout", "dropout2d", "alpha_dropout", "attention", "batch_norm", "counter"],
)
def test_what_is_random_or_changes_the_model_is_refused_by_name(function, message):
    with pytest.raises(UsageError, match=f"Function cannot be exported: .*{message}"):
        build_graph(Function(function), SIZE)


def test_dropout_that_drops_nothing_is_left_out():
    graph = build_graph(Function(lambda y, m: F.dropout(F.dropout(y, 0.5, training=m.training), 0.0, True)), SIZE)
    assert [node.op for node in graph.nodes] == ["conv2d"]


def test_a_norm_with_the_statistics_of_its_batch_is_exported_as_one(tmp_path):
    model = Function(lambda y, m: F.batch_norm(y, None, None, m.norm.weight, m.norm.bias, training=True)).eval()
    export_subp(model, tmp_path / "model.subp", SIZE, {})
    images = torch.randn(4, *SIZE)
    with torch.inference_mode():
        expected = model(images).numpy()
    np.testing.assert_allclose(subp_ext.Session(tmp_path / "model.subp").run(images.numpy()), expected, atol=1e-5)
