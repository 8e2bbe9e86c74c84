"""subp_dist.export_model: any module in one call; several inputs, nested ones, free sizes, and what it refuses.

Networks: a few small layers at 16 to 64 pixels; the oracle is torch, 1e-4 of the range. Out of scope: zeros of others
(test_export_zeros.py), nesting of results (test_export_outputs.py), int8 itself (test_quantize_export.py).
"""

import logging
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import subp_ext
from subp_dist import PruneSchedule, SUBPPruner, export_model
from subp_dist.errors import UsageError
from subp_dist.export import bfloat16, subp


class Segments(nn.Module):
    """Ends at the size of its input."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        return F.interpolate(self.head(self.body(x).relu()), size=x.shape[-2:], mode="bilinear")


class Pair(nn.Module):
    """Two inputs, and results in a dict."""

    def __init__(self):
        super().__init__()
        self.image, self.mask = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 8, 1)

    def forward(self, image, mask):
        y = self.image(image) + self.mask(mask)
        return {"y": y, "of": [y.mean((2, 3)), y.argmax(1)]}


class Neck(nn.Module):
    """A feature pyramid: a list of maps, each half as large as the one before."""

    def __init__(self):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in (4, 8))

    def forward(self, maps):
        low, high = (layer(level) for layer, level in zip(self.lateral, maps, strict=True))
        return {"p0": low + F.interpolate(high, scale_factor=2), "p1": high}


class Tokens(nn.Module):
    """Whole numbers of any count."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 5)

    def forward(self, ids):
        return self.head(self.embedding(ids).relu())


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def maps(batch, size):
    return [torch.randn(batch, 4, size, size), torch.randn(batch, 8, size // 2, size // 2)]


def ids(batch, count):
    return torch.randint(0, 50, (batch, count))


CASES = {
    "segments": (Segments, lambda b, s: (torch.randn(b, 3, s, s + 8),), [(None, 3, None, None)]),
    "pair": (
        Pair,
        lambda b, s: (torch.randn(b, 3, s, s), torch.randn(b, 2, s, s)),
        [(None, 3, None, None), (None, 2, None, None)],
    ),
    "neck": (Neck, lambda b, s: (maps(b, s),), [(None, 4, None, None), (None, 8, None, None)]),
    "tokens": (Tokens, lambda b, s: (ids(b, s),), [(None, None)]),
    "channels_last": (ChannelsLast, lambda b, s: (torch.randn(b, s, s + 4, 3),), [(None, None, None, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_any_module_at_any_size(name, tmp_path):
    torch.manual_seed(0)
    make, inputs, shapes = CASES[name]
    model = make().train()
    summary = export_model(model, inputs(1, 16), tmp_path / "model.subp")
    assert [spec.shape for spec in summary.inputs] == shapes and summary.independent_images, summary
    assert model.training
    session = subp_ext.Session(tmp_path / "model.subp")
    for batch, size in ((1, 16), (3, 22), (2, 40)):
        given = inputs(batch, size)
        found = session.run([leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(given)])
        with torch.inference_mode():
            expected = torch.utils._pytree.tree_leaves(model.eval()(*given))
        for ours, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_by_name_and_names_of_outputs(tmp_path):
    named = {"mask": np.zeros((1, 2, 16, 16)), "image": np.ones((1, 3, 16, 16))}
    summary = export_model(
        Pair(), named, tmp_path / "model.subp", names=["sum", "mean", "class"], metadata={"by": "us"}
    )
    assert [spec.name for spec in summary.inputs] == ["image", "mask"]
    session = subp_ext.Session(tmp_path / "model.subp")
    assert [spec.name for spec in session.outputs] == ["sum", "mean", "class"] and session.metadata["by"] == "us"
    assert [spec.shape for spec in session.outputs] == [(None, 8, None, None), (None, 8), (None, None, None)]


def test_norms_of_weights_are_folded(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        weight_norm(nn.Conv2d(3, 16, 3)),
        spectral_norm(nn.Conv2d(16, 16, 3)),
        parametrizations.weight_norm(nn.Conv2d(16, 16, 3)),
        parametrizations.spectral_norm(nn.Conv2d(16, 4, 3)),
    )
    images = torch.randn(2, 3, 16, 16)
    model(images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_model(model, images, tmp_path / "model.subp")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    graph = subp_ext.load(tmp_path / "model.subp")
    assert [node.op for node in graph.nodes] == ["conv2d"] * 4
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(subp_ext.Session(graph).run(images.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_a_pruned_model_and_what_the_summary_says(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 1))
    SUBPPruner(model, PruneSchedule(0.5, 0, 0), block_size=16, only=["1", "3"]).step(0)
    text = str(export_model(torch.compile(model), torch.randn(1, 3, 32, 32), tmp_path / "model.subp"))
    assert "2 layers in 1x16 blocks, 50.0% kept" in text and "every image is computed alone" in text
    assert "input input: float32 [any, 3, any, any]" in text and "output conv2d_2: float32 [any, 64, any, any]" in text
    assert "of the MACs are on sparse kernels" in text


class Branches(nn.Module):
    """Larger images go another way."""

    def forward(self, x):
        return x * 2 if x.shape[2] > 1000 else x * 3


def test_a_branch_on_sizes_keeps_them_fixed(tmp_path):
    summary = export_model(Branches(), (torch.randn(2, 3, 32),), tmp_path / "model.subp")
    assert summary.inputs[0].shape == (None, 3, 32)
    assert "fixed: its code goes another way for other sizes" in str(summary)


class Crops(nn.Module):
    """Halves an image, doubles it again and cuts off what is too much: nothing, at even sizes."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        doubled = self.up(self.down(x))[..., : x.shape[-2], : x.shape[-1]]
        return F.interpolate(doubled + x, size=x.shape[-2:], mode="bilinear")


@pytest.mark.parametrize("size", [(15, 21), (16, 20)])
def test_sizes_are_free_where_code_that_goes_two_ways_was_tried_on_both(size, tmp_path):
    torch.manual_seed(0)
    model = Crops().eval()
    summary = export_model(model, torch.randn(2, 3, *size), tmp_path / "model.subp")
    assert summary.inputs[0].shape == (None, 3, None, None)
    for other in [(1, 3, 33, 40), (3, 3, 8, 9)]:
        images = torch.randn(other)
        with torch.inference_mode():
            expected = model(images).numpy()
        found = subp_ext.Session(tmp_path / "model.subp").run(images.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, x, negate: bool = False):
        return -self.conv(x) if negate else self.conv(x)


def test_int8_of_a_call_with_more_than_images_is_of_that_call(tmp_path):
    torch.manual_seed(0)
    model, images = Turned(), torch.randn(16, 3, 16, 16)
    found = {}
    for negate in (False, True):
        path = tmp_path / f"{negate}.subp"
        export_model(model, {"x": images[:2], "negate": negate}, path, dtype="int8", calibration=[images])
        found[negate] = subp_ext.Session(path).run(images.numpy())
    with torch.inference_mode():
        expected = model(images).numpy()
    for negate, result in found.items():
        difference = result - (-expected if negate else expected)
        assert np.abs(difference).max() < 0.05 * np.ptp(expected), negate


class Endless(torch.utils.data.Dataset):
    """As torch allows them: an index beyond its length is no error."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index)), 0


def test_a_dataset_of_any_indices_ends(tmp_path):
    summary = export_model(
        nn.DataParallel(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))),
        *(torch.randn(2, 3, 16, 16), tmp_path / "model.subp"), dtype="int8", calibration=Endless(),
    )  # fmt: skip
    assert (tmp_path / "model.subp").exists() and summary is not None


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        y = self.body(x).relu()
        return y, self.head(y)


# What quantization itself calls values that it adds.
@pytest.mark.parametrize("names", [["map", "map.uint8"], ["input.uint8", "conv2d.as_relu"]])
def test_int8_with_names(names, tmp_path, monkeypatch):
    torch.manual_seed(0)
    traces, trace = [], subp.trace
    monkeypatch.setattr(subp, "trace", lambda *args, **kwargs: traces.append(1) or trace(*args, **kwargs))
    model = TwoMaps()
    loader = [(torch.randn(16, 3, 24, 24), torch.zeros(16)) for _ in range(2)]
    summary = export_model(
        model, torch.randn(1, 3, 24, 24), tmp_path / "m.subp", dtype="int8", calibration=loader, names=names
    )
    assert [spec.name for spec in summary.outputs] == names and len(traces) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.subp"]
    images = torch.randn(2, 3, 24, 24)
    with torch.inference_mode():
        expected = model.eval()(images)
    found = subp_ext.Session(tmp_path / "m.subp").run(images.numpy())
    for ours, theirs in zip(found, expected, strict=True):
        assert 1e-4 < np.abs(ours - theirs.numpy()).max() / np.ptp(theirs.numpy()) < 0.05


def test_bfloat16_of_several_inputs(tmp_path):
    torch.manual_seed(0)
    model, inputs = Neck().eval(), maps(2, 24)
    export_model(model, (inputs,), tmp_path / "m.subp", dtype="bfloat16", names=["low", "high"])
    found = subp_ext.Session(tmp_path / "m.subp").run([tensor.numpy() for tensor in inputs])[0]
    with torch.inference_mode():
        expected = model(inputs)["p0"].numpy()
    assert 1e-5 < np.abs(found - expected).max() / np.ptp(expected) < 0.02


class Results(nn.Module):
    """What a function makes of a convolution's output."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 16, 3), function

    def forward(self, x):
        return self.function(self.conv(x))


OF_BFLOAT16 = {
    "classes": (lambda y: y.argmax(1), r"^m.subp: \d+\.\d % of whole numbers as in float32 on random images$"),
    "counts": (lambda y: (y > 0.1).sum((1, 2, 3)), r"% of whole numbers"),
    "masked": (lambda y: y + torch.tensor([0.0, -torch.inf]).repeat(8).view(16, 1, 1), r"\d\d dB of signal"),
    "zeros": (lambda y: y * 0, r"^m.subp: 200 dB of signal"),
    "both": (lambda y: (y, y.argmax(1)), r"\d\d dB of signal over the difference from float32 and \d+\.\d % of whole"),
}


@pytest.mark.parametrize("name", OF_BFLOAT16)
def test_bfloat16_of_results_that_are_whole_or_infinite(name, tmp_path, caplog):
    torch.manual_seed(0)
    function, message = OF_BFLOAT16[name]
    with caplog.at_level(logging.INFO, "subp_dist"):
        export_model(Results(function), torch.randn(2, 3, 16, 16), tmp_path / "m.subp", dtype="bfloat16")
    said = next(record.getMessage() for record in caplog.records if record.name == "subp_dist.export.model")
    assert re.search(message, said) and "inf" not in said, said


@pytest.mark.parametrize(
    "function, change, message",
    [
        (
            lambda y: y.argmax(1),
            lambda found: 15 - found,
            "0.0 % of whole numbers as in float32, expected 6 dB or 50 %",
        ),
        (lambda y: y, lambda found: np.where(found > 2, np.inf, found), "-inf dB of signal"),
        (lambda y: y, lambda found: -found, "-6 dB of signal over the difference from float32, expected 6 dB or more"),
    ],
)
def test_bfloat16_with_results_that_have_little_to_do_with_float32_is_not_written(
    function, change, message, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    path, model = tmp_path / "m.subp", Results(function)
    run, changes = bfloat16.run_session, iter([lambda found: found, change])
    monkeypatch.setattr(bfloat16, "run_session", lambda *given: list(map(next(changes), run(*given))))
    with pytest.raises(UsageError, match=message):
        export_model(model, torch.randn(2, 3, 16, 16), path, dtype="bfloat16")
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dtype": "float8"}, "dtype 'float8': expected one of float32"),
        ({"dtype": "int8"}, "'int8' needs calibration"),
        ({"calibration": []}, "calibration belongs to dtype 'int8'"),
        ({"dtype": "int8", "calibration": []}, "calibration holds nothing; expected images of one size"),
        ({"dtype": "int8", "calibration": [torch.zeros(2, 2)]}, r"calibration holds float32 of shape \[2, 2\]"),
        ({"names": "y"}, r"names 'y': expected a list or tuple of texts, such as \['y'\]"),
        ({"metadata": "by us"}, "metadata 'by us': expected a dict of JSON values"),
        ({"names": ["a", "b"]}, "names has a, b; expected a name of its own for each of 1 outputs"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        export_model(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), tmp_path / "model.subp", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "inputs, message",
    [
        ((), "do not fit Pair.forward"),
        ((1, "a"), "hold no tensor"),
        ((torch.zeros(1, 3, 8, 8),), r"do not fit Pair.forward: missing a required argument: 'mask'"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        export_model(Pair(), inputs, tmp_path / "model.subp")


def test_int8_of_several_inputs_is_refused(tmp_path):
    inputs = (torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8))
    with pytest.raises(UsageError, match="'int8' takes models that are called with images"):
        export_model(Pair(), inputs, tmp_path / "model.subp", dtype="int8", calibration=[inputs])
