"""What decoders are made of, in a session against torch: transposed convolutions, resizing, padding, shuffles.

Every case has to run without the reference. Sums have a few hundred terms of size 1: 1e-4 is far above float32's
rounding of them. Random cases are seeded.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from test_ext_kernels import reordered

from subp_ext import Graph, Node, Ref, Session, TensorSpec, UniformBlockSparse
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType
from subp_ext.operators import OPERATORS

torch = pytest.importorskip("torch")
F = torch.nn.functional


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run(op, args, x, constants=None, name="input", type=None):
    """The result of one node, which no reference may have computed."""
    nodes = [Node(op, "y", {name: Ref("x"), **args}, type)]
    inputs = [TensorSpec("x", (None,) * x.ndim, x.dtype.name)]
    session = Session(Graph(inputs, [TensorSpec("y", (None,) * x.ndim)], nodes, constants or {}), threads=2)
    found = session.run(x)
    assert not session.report().fallbacks, session.report()
    return found


def transposed_cases(count):
    draw = random.Random(0)
    for _ in range(count):
        groups = draw.choice([1, 1, 2, 4])
        channels = groups * draw.choice([1, 2, 4]), groups * draw.choice([1, 3, 8])
        kernel, stride, padding, dilation = (
            (draw.randint(low, high), draw.randint(low, high)) for low, high in ((1, 5), (1, 4), (0, 4), (1, 3))
        )
        extra = tuple(draw.randint(0, max(pair) - 1) for pair in zip(stride, dilation, strict=True))
        yield groups, channels, kernel, stride, padding, extra, dilation, (draw.randint(1, 8), draw.randint(1, 8))


def test_transposed_convolutions_of_any_form_are_those_of_torch():
    refused = 0
    for number, (groups, channels, kernel, stride, padding, extra, dilation, size) in enumerate(transposed_cases(150)):
        x, weight = normal(2, channels[0], *size), normal(channels[0], channels[1] // groups, *kernel)
        bias = normal(channels[1]) if number % 2 else None
        given = map(torch.from_numpy, (x, weight))
        try:
            want = F.conv_transpose2d(
                *given, None if bias is None else torch.from_numpy(bias), stride, padding, extra, groups, dilation
            ).numpy()
        except RuntimeError:  # nothing is left
            want = None
        args = {"weight": Ref("w"), "stride": list(stride), "padding": list(padding), "dilation": list(dilation),
                "output_padding": list(extra), "groups": groups}  # fmt: skip
        constants = {"w": weight}
        if bias is not None:
            args["bias"], constants["b"] = Ref("b"), bias
        if want is None or not want.size:
            refused += 1
            with pytest.raises(ValueError, match="gives an output of"):
                run("conv_transpose2d", args, x, constants)
            continue
        np.testing.assert_allclose(run("conv_transpose2d", args, x, constants), want, atol=1e-4)
    assert 0 < refused < 75


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_sparse_transposed_convolution(groups, ordered):
    dense = normal(64, 16, 4, 4)  # as a convolution has it: [O, I / groups, kh, kw]
    rng = np.random.default_rng(0)
    for row in range(4):
        dense[16 * row : 16 * row + 16, rng.permutation(16)[:8]] = 0
    sparse = UniformBlockSparse.from_dense(dense, 16, groups)
    if ordered:
        dense, sparse = reordered(rng, dense, sparse)
    inputs = 16 * groups
    weight = dense.reshape(groups, 64 // groups, 16, 4, 4).swapaxes(1, 2).reshape(inputs, 64 // groups, 4, 4)
    x, bias = normal(1, inputs, 9, 7), normal(64)
    want = F.conv_transpose2d(*map(torch.from_numpy, (x, weight, bias)), 2, 1, groups=groups).relu().numpy()
    args = {"weight": Ref("w"), "bias": Ref("b"), "stride": 2, "padding": 1, "groups": groups, "activation": "relu"}
    nodes = [Node("conv_transpose2d", "y", {"input": Ref("x"), **args})]
    graph = Graph([TensorSpec("x", x.shape)], [TensorSpec("y", want.shape)], nodes, {"w": sparse, "b": bias})
    session = Session(graph)
    np.testing.assert_allclose(session.run(x), want, atol=1e-4)
    kept = [row.kept_share for row in session.report().rows if row.macs]
    assert kept == [0.5] * 4


def quantized(scale, zero):
    return ValueType(DTYPES["uint8"], Quantization(np.float32(scale), np.int32(zero)))


def test_a_transposed_convolution_of_integers():
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 5)).astype(np.uint8)
    values = np.random.default_rng(1).integers(-127, 128, (8, 4, 2, 2)).astype(np.int8)
    scale, bias = np.linspace(0.01, 0.02, 4, dtype=np.float32), normal(4)
    kind = ValueType(DTYPES["int8"], Quantization(scale, np.zeros(4, np.int32), 1))
    source, target = quantized(0.02, 100), quantized(0.3, 120)
    real = F.conv_transpose2d(
        torch.from_numpy(source.to_float(x)), torch.from_numpy(values * scale[:, None, None]), torch.from_numpy(bias), 2
    )
    node = Node("conv_transpose2d", "y", {"input": Ref("x"), "weight": Ref("w"), "bias": Ref("b"), "stride": 2}, target)
    spec = TensorSpec("x", x.shape, "uint8", source.quantization)
    graph = Graph([spec], [TensorSpec("y", tuple(real.shape), "uint8", target.quantization)], [node],
                  {"w": TypedArray(values, kind), "b": bias})  # fmt: skip
    session = Session(graph)
    assert abs(session.run(x).astype(int) - target.from_float(real.numpy()).astype(int)).max() <= 1
    assert session.report().int8_share == 1


FORMS = [
    {"output_size": [18, 16]},
    {"output_size": [13, 20]},
    {"output_size": [4, 5]},
    {"output_size": [1, 1]},
    {"output_size": [9, 8]},
    {"output_size": None, "scale_factors": [2.0, 2.0]},
    {"output_size": None, "scale_factors": [3.0, 2.0]},
    {"output_size": None, "scale_factors": [2.0, 1.7]},
    {"output_size": None, "scale_factors": [0.5, 4.0]},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "exact", "bilinear", "corners"])
def test_resizing(mode, form):
    x = normal(2, 3, 9, 8)
    op = {"nearest": "upsample_nearest2d", "exact": "_upsample_nearest_exact2d"}.get(mode, "upsample_bilinear2d")
    args = dict(form) | ({"align_corners": mode == "corners"} if op == "upsample_bilinear2d" else {})
    given = {"scale_factors": None} | args
    want = getattr(torch.ops.aten, op).vec(input=torch.from_numpy(x), **given).numpy()
    np.testing.assert_allclose(run(op, args, x), want, atol=1e-5)


def test_phases_that_see_the_same_part_of_the_input_share_its_copy():
    x, weight = normal(1, 8, 6, 7), normal(8, 4, 3, 3)
    node = Node("conv_transpose2d", "y", {"input": Ref("x"), "weight": Ref("w"), "stride": 2, "padding": 3})
    session = Session(Graph([TensorSpec("x", x.shape)], [TensorSpec("y", (1, 4, 7, 9))], [node], {"w": weight}))
    want = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2, padding=3).numpy()
    np.testing.assert_allclose(session.run(x), want, rtol=1e-5, atol=1e-5)
    assert [row.op for row in session.report().rows].count("copy") == 1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_pixel_that_is_no_number_reaches_its_neighbours_alone(mode):
    x = np.zeros((1, 1, 32, 32), np.float32)
    x[0, 0, 5, 5] = np.nan
    node = Node(f"upsample_{mode}2d", "y", {"input": Ref("x"), "scale_factors": [2.0, 2.0], "align_corners": False})
    found = Session(Graph([TensorSpec("x", x.shape)], [TensorSpec("y", (1, 1, 64, 64))], [node], {})).run(x)
    want = F.interpolate(torch.from_numpy(x), scale_factor=2, mode=mode).isnan().numpy()
    assert np.array_equal(np.isnan(found), want) and want.sum() == (16 if mode == "bilinear" else 64)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pad", [[1, 2, 3, 0], [0, 0, 2, 2], [3, 1], [-1, 2, 0, -3]])
def test_padding_with_what_is_there(mode, pad):
    if mode == "circular" and len(pad) == 2:
        pad = [*pad, 0, 0]
    x = normal(2, 3, 9, 8) if len(pad) == 4 else normal(2, 9, 8)
    if mode == "circular" and min(pad) < 0:
        pytest.skip("torch crops before it wraps, or after it, by the version")
    want = F.pad(torch.from_numpy(x), pad, mode=mode).numpy()
    assert np.array_equal(run("pad", {"pad": pad, "mode": mode}, x, name="self"), want)


@pytest.mark.parametrize(
    "pad, mode, message",
    [
        ([0, 0, 9, 0], "reflect", "reflect padding of 9 and 0 is more than 9 elements give"),
        ([-5, 4], "circular", "circular padding of -5 and 4 is more than 3 elements give"),
        ([-5, -4], "constant", r"padding of -5 and -4 cuts more than all 8 elements off a dimension of \[1, 1, 9, 8\]"),
        ([-9, 4], "constant", "padding of -9 and 4 cuts more than all 8 elements off"),
        ([0, 0, -12, 2], "reflect", "padding of -12 and 2 cuts more than all 9 elements off"),
        ([1, 2, 3], "constant", r"padding is \[1, 2, 3\]; expected \(before, after\) of up to 4 dimensions"),
        ([1] * 10, "constant", r"padding is .*; expected \(before, after\) of up to 4 dimensions"),
    ],
)
def test_padding_with_more_than_is_there_is_refused(pad, mode, message):
    with pytest.raises(ValueError, match=message):
        run("pad", {"pad": pad, "mode": mode}, normal(1, 1, 9, 8), name="self")


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffled_pixels(factor):
    x = normal(2, 2 * factor**2, 3, 5)
    mixed = run("pixel_shuffle", {"upscale_factor": factor}, x, name="self")
    assert np.array_equal(mixed, F.pixel_shuffle(torch.from_numpy(x), factor).numpy())
    assert np.array_equal(run("pixel_unshuffle", {"downscale_factor": factor}, mixed, name="self"), x)


@pytest.mark.parametrize(
    "op, args",
    [
        ("pixel_shuffle", {"upscale_factor": 2}),
        ("pixel_unshuffle", {"downscale_factor": 2}),
        ("upsample_nearest2d", {"output_size": [12, 8]}),
        ("upsample_nearest2d", {"output_size": [7, 9]}),
        ("pad", {"pad": [1, 2, 2, 1], "mode": "reflect"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_copies_move_bytes_of_integers(op, args):
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 4)).astype(np.uint8)
    kind = quantized(0.1, 7)
    node = Node(op, "y", {"self": Ref("x"), **args}, kind)
    spec = TensorSpec("x", x.shape, "uint8", kind.quantization)
    session = Session(Graph([spec], [TensorSpec("y", (None,) * 4, "uint8", kind.quantization)], [node], {}))
    found = session.run(x)
    plain = run(op, args, x.astype(np.float32), name="self")
    assert found.dtype == np.uint8 and np.array_equal(found, plain)
    assert len(session.report().rows) == 1


def test_interpolation_of_integers_goes_through_floats():
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 4)).astype(np.uint8)
    kind = quantized(0.1, 7)
    node = Node("upsample_bilinear2d", "y", {"self": Ref("x"), "output_size": [12, 8], "align_corners": False}, kind)
    spec = TensorSpec("x", x.shape, "uint8", kind.quantization)
    session = Session(Graph([spec], [TensorSpec("y", (1, 8, 12, 8), "uint8", kind.quantization)], [node], {}))
    want = F.interpolate(torch.from_numpy(kind.to_float(x)), scale_factor=2, mode="bilinear").numpy()
    assert abs(session.run(x).astype(int) - kind.from_float(want).astype(int)).max() <= 1
    assert not session.report().fallbacks


@pytest.mark.parametrize(
    "kernel, stride, padding, extra, dilation",
    [
        ((2, 1), (4, 2), (4, 3), (2, 1), (1, 1)),
        ((1, 1), (1, 1), (4, 4), (3, 3), (4, 4)),
        ((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    ],
)
def test_the_reference_of_a_transposed_convolution_with_wide_padding(kernel, stride, padding, extra, dilation):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((2, 3, 12, 12), (3, 4, *kernel)))
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, stride, padding, extra, 1, dilation
    )
    arguments = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
    found = OPERATORS["conv_transpose2d"].reference(input=x, weight=weight, **arguments)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
