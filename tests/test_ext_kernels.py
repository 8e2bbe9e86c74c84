"""The convolution kernels against a float64 oracle written here: every kernel set, every tile, any geometry.

Sizes are small (planes up to 24x24, 1 to 40 channels) but cross every tile and block boundary. The error bound is that
of a sum of K * taps float32 products in any order, (n + 3) * eps * sum |w x|, plus the rounding of bias and
residual; results of fewer bits are rounded once more. Speed is not tested here.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_ext import UniformBlockSparse, _kernels, conv2d
from subp_ext.convolution import Convolution
from subp_ext.dtypes import DTYPES
from subp_ext.geometry import PACKINGS
from subp_ext.graph import ACTIVATIONS

EPS = float(np.finfo(np.float32).eps)
SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]
# What convolutions are tested with: every data type of weights on every set that has a row for it. Integers are exact,
# and have tests of their own.
ROWS = [
    row
    for row in _kernels.rows()
    if row["operator"] == "conv2d" and row["usable"] and DTYPES[row["dtype"]].kind == "float"
]
TYPED = list(dict.fromkeys((row["set"], row["weight_dtype"]) for row in ROWS))


def oracle(x, dense, bias, stride, zeros, dilation, groups):
    """Returns the convolution and the sum of absolute products, in float64, tap by tap."""
    x, dense = x.astype(np.float64), dense.astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), *zeros))
    kh, kw = dense.shape[2:]
    ho = (padded.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (padded.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((x.shape[0], dense.shape[0], ho, wo))
    size = np.zeros_like(out)
    per_in, per_out = dense.shape[1], dense.shape[0] // groups
    for g, i, j in itertools.product(range(groups), range(kh), range(kw)):
        y0, x0 = i * dilation[0], j * dilation[1]
        taken = padded[:, g * per_in : (g + 1) * per_in, y0 : y0 + ho * stride[0] : stride[0]]
        taken = taken[:, :, :, x0 : x0 + wo * stride[1] : stride[1]][:, :, :ho, :wo]
        rows = slice(g * per_out, (g + 1) * per_out)
        out[:, rows] += np.einsum("oi,bihw->bohw", dense[rows, :, i, j], taken)
        size[:, rows] += np.einsum("oi,bihw->bohw", abs(dense[rows, :, i, j]), abs(taken))
    if bias is not None:
        out += bias[:, None, None]
        size += abs(bias[:, None, None])
    return out, size


def reordered(rng, dense, weight):
    """The same block rows, of other channels of their groups."""
    per_group = weight.shape[0] // weight.groups
    order = np.concatenate([g * per_group + rng.permutation(per_group) for g in range(weight.groups)])
    moved = np.empty_like(dense)
    moved[order] = dense
    return moved, dataclasses.replace(weight, order=order.astype(np.int32))


def random_weight(rng, outputs, per_group, kernel, block, groups, kept, ordered=False):
    rows = groups * -(-(outputs // groups) // block)
    mask = np.zeros((rows, per_group), bool)
    for row in mask:
        row[rng.choice(per_group, kept, replace=False)] = True
    dense = rng.standard_normal((outputs, per_group, *kernel)).astype(np.float32)
    of_group = np.arange(outputs) % (outputs // groups) // block + np.arange(outputs) // (outputs // groups) * (
        rows // groups
    )
    dense *= mask[of_group][:, :, None, None]
    weight = UniformBlockSparse.from_dense(dense, block, groups, mask)
    return reordered(rng, dense, weight) if ordered else (dense, weight)


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group = draw(st.integers(1, 12))
    kernel = (
        (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
        if draw(st.booleans())
        else (draw(st.sampled_from([1, 3])),) * 2
    )
    case = {
        "outputs": groups * draw(st.integers(1, 40)),
        "per_group": per_group,
        "kernel": kernel,
        "block": draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64])),
        "groups": groups,
        "kept": draw(st.integers(1, per_group)),
        "ordered": draw(st.booleans()),
    }
    pads = st.integers(0, 4)
    geometry = {
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": ((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        "dilation": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    }
    least = [
        max(1, d * (k - 1) + 1 - sum(p))
        for d, k, p in zip(geometry["dilation"], kernel, geometry["padding"], strict=True)
    ]
    size = tuple(draw(st.integers(low, low + 16)) for low in least)
    return case, geometry, (draw(st.integers(1, 2)), *size), draw(st.integers(0, 2**31)), draw(st.booleans())


def typed_weight(rng, dtype, **case):
    """A sparse weight in the storage of a type, and the numbers that it stands for, dense."""
    dense, weight = random_weight(rng, **case)
    if dtype == "float32":
        return dense, weight
    row = DTYPES[dtype]
    values = row.from_float(weight.values)
    dense = row.to_float(row.from_float(dense))
    return dense, dataclasses.replace(weight, values=values, dtype=dtype)


def check_case(case, geometry, image, seed, extras, kernel_set, dtype="float32"):
    rng = np.random.default_rng(seed)
    dense, weight = typed_weight(rng, dtype, **case)
    batch, *size = image
    row = next(row for row in ROWS if row["weight_dtype"] == dtype)
    of_x, of_out = DTYPES[row["dtype"]], DTYPES[row["out_dtype"]]
    stored = of_x.from_float(rng.standard_normal((batch, case["per_group"] * case["groups"], *size)).astype(np.float32))
    x = of_x.to_float(stored)
    bias = rng.standard_normal(case["outputs"]).astype(np.float32) if extras else None
    want, bound = oracle(x, dense, bias, geometry["stride"], geometry["padding"], geometry["dilation"], case["groups"])
    residual = of_out.from_float(rng.standard_normal(want.shape).astype(np.float32)) if extras else None
    if extras:
        want, bound = want + of_out.to_float(residual), bound + abs(of_out.to_float(residual))
        want = np.maximum(want, 0)
    terms = case["kept"] * case["kernel"][0] * case["kernel"][1]
    args = {**geometry, "bias": bias, "residual": residual, "activation": "relu" if extras else None}
    results = [conv2d(stored, weight, threads=threads, kernel_set=kernel_set, **args) for threads in (1, 2, 3)]
    assert results[0].shape == want.shape
    tolerance = row["tolerance"] * DTYPES[of_x.accumulator].eps
    error = (terms + 3) * tolerance * bound
    if of_out.name != of_x.accumulator:
        error += of_out.eps * (abs(want) + error)  # sums are rounded once more
    assert np.all(abs(of_out.to_float(results[0]) - want) <= error)
    for other in results[1:]:
        assert results[0].tobytes() == other.tobytes()


@pytest.mark.parametrize("kernel_set, dtype", TYPED)
@settings(max_examples=120, deadline=None)
@given(drawn=cases())
def test_any_shape_is_within_the_bound_and_the_same_for_any_thread_count(kernel_set, dtype, drawn):
    check_case(*drawn, kernel_set, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_set, dtype", TYPED)
@settings(max_examples=1000, deadline=None)
@given(drawn=cases())
def test_any_shape_long(kernel_set, dtype, drawn):
    check_case(*drawn, kernel_set, dtype)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (31, 33)])
def test_every_block_size_on_network_planes(kernel_set, block, size):
    case = {"outputs": 72, "per_group": 10, "kernel": (3, 3), "block": block, "groups": 1, "kept": 5, "ordered": True}
    geometry = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    check_case(case, geometry, (2, *size), block, True, kernel_set)


@st.composite
def depthwise_cases(draw):
    """Mostly the windows that have kernels of their own, on planes around the widths of a vector."""
    size, stride = draw(st.sampled_from([3, 5, 7])), draw(st.sampled_from([1, 2]))
    usual = draw(st.integers(0, 3)) > 0
    kernel = (size, size) if usual else (draw(st.integers(1, 5)), draw(st.integers(1, 8)))
    pads = st.integers(0, 5)
    geometry = {
        "stride": (stride, stride) if usual else (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": ((size // 2,) * 2,) * 2
        if draw(st.booleans())
        else ((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        "dilation": (1, 1) if usual else (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
    }
    least = [
        max(1, d * (k - 1) + 1 - sum(p))
        for d, k, p in zip(geometry["dilation"], kernel, geometry["padding"], strict=True)
    ]
    channels = draw(st.integers(1, 5))
    case = {"outputs": channels, "per_group": 1, "kernel": kernel, "block": 1, "groups": channels, "kept": 1}
    image = (draw(st.integers(1, 2)), least[0] + draw(st.integers(0, 20)), least[1] + draw(st.integers(0, 70)))
    return case, geometry, image, draw(st.integers(0, 2**31)), draw(st.booleans())


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=120, deadline=None)
@given(drawn=depthwise_cases())
def test_any_depthwise_window(kernel_set, drawn):
    check_case(*drawn, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_on_network_planes(kernel_set, kernel, stride):
    case = {"outputs": 6, "per_group": 1, "kernel": (kernel,) * 2, "block": 1, "groups": 6, "kept": 1}
    geometry = {"stride": (stride,) * 2, "padding": ((kernel // 2,) * 2,) * 2, "dilation": (1, 1)}
    assert "_dwconv_" in Convolution(np.ones((6, 1, kernel, kernel), np.float32), groups=6).prepare(9, 9).kernel
    for size in (7, 14, 28, 56):
        check_case(case, geometry, (1, size, size), kernel, True, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_with_more_padding_than_input(kernel_set, stride):
    """Every vector of such planes is an edge: more of them than a kernel keeps room for."""
    case = {"outputs": 40, "per_group": 1, "kernel": (3, 3), "block": 1, "groups": 40, "kept": 1}
    geometry = {"stride": (stride,) * 2, "padding": ((1, 1), (150, 150)), "dilation": (1, 1)}
    check_case(case, geometry, (1, 4, 5), 0, True, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("op, groups", [("ubsconv", 1), ("dwconv", 6)])
def test_nothing_outside_the_output_is_written(kernel_set, op, groups):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 6 // groups, 3, 3)).astype(np.float32)
    x = rng.standard_normal((2, 6, 9, 11)).astype(np.float32)
    layer = Convolution(weight, None, 2, 1, groups=groups, kernel_set=kernel_set)
    assert op in layer.prepare(9, 11).kernel
    canary = np.float32(-7.25)
    buffer = np.full(2 * 6 * 5 * 6 + 256, canary)
    out = buffer[128:-128].reshape(2, 6, 5, 6)
    layer(x, out=out, threads=3)
    assert np.all(buffer[:128] == canary) and np.all(buffer[-128:] == canary)
    assert not np.any(out == canary)


@pytest.mark.parametrize("kernel_set", SETS)
def test_nothing_outside_the_input_is_read(kernel_set):
    """A 1x1 convolution reads its input in place: one that ends where a page without access begins."""
    code = f"""
import ctypes, mmap, numpy as np, subp_ext
size = 4 * mmap.PAGESIZE
memory = mmap.mmap(-1, size)
guard = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + size - mmap.PAGESIZE
assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(guard), mmap.PAGESIZE, 0) == 0
for height, width, outputs in ((7, 7, 19), (1, 1, 16), (14, 14, 5), (3, 11, 2)):
    count = 5 * height * width
    x = np.frombuffer(memory, np.float32, count, size - mmap.PAGESIZE - 4 * count).reshape(1, 5, height, width)
    for groups, weight in ((1, np.ones((outputs, 5, 1, 1))), (5, np.ones((5, 1, 1, 1)))):
        subp_ext.conv2d(x, weight.astype(np.float32), groups=groups, kernel_set={kernel_set!r})
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_activations(kernel_set, activation):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    functions = {"gelu_tanh": lambda v: f.gelu(v, approximate="tanh"), "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    x = np.concatenate([np.linspace(-110, 110, 4001), np.linspace(-4, 4, 4000)]).astype(np.float32)[None, None, None]
    got = conv2d(x, np.ones((1, 1, 1, 1), np.float32), activation=activation, kernel_set=kernel_set)
    want = functions.get(activation, getattr(f, activation, None))(torch.from_numpy(x.astype(np.float64))).numpy()
    # A few roundings of values up to max(|x|, 1), whatever the function does in between.
    assert np.all(abs(got - want) <= 8 * EPS * np.maximum(abs(want), np.minimum(abs(x), 1.0)) + 1e-37)
    nan = conv2d(np.full((1, 1, 1, 1), np.nan, np.float32), np.ones((1, 1, 1, 1), np.float32), activation=activation)
    assert np.isnan(nan).all()


def test_the_store_and_the_graph_know_the_same_activations():
    assert _kernels.activations() == ACTIVATIONS


def test_every_row_has_a_decodable_name_and_a_packing():
    sets = {entry["name"]: entry for entry in _kernels.kernel_sets()}
    names = [row["name"] for row in _kernels.rows()]
    assert len(set(names)) == len(names)
    for row in _kernels.rows():
        window = f"{row['size']}x{row['size']}s{row['stride']}" if row["size"] else "any"
        shape = {
            "conv2d": f"ubsconv_{row['channels']}x{row['pixels']}",
            "depthwise": f"dwconv_{window}",
            "winograd": f"winograd_{row['size']}x{row['size']}",
            "winograd_weights": f"winograd_weights_{row['size']}x{row['size']}",
        }
        word, bits = re.fullmatch(r"([a-z]+)(\d+)", row["dtype"]).groups()
        kind = {"float": "f", "bfloat": "bf", "int": "s", "uint": "u"}[word] + bits
        integers = row["dtype"] == "uint8"
        kind += "s8" * (integers and row["weight_dtype"] == "int8")
        assert row["name"] == f"{kind}_{shape.get(row['operator'], row['operator'])}__{row['set']}"
        assert row["features"] == sets[row["set"]]["features"] and row["usable"] == sets[row["set"]]["usable"]
        exact = integers or row["operator"] == "cast"
        assert row["tolerance"] == 0 if exact else row["tolerance"] >= 1
        assert row["interleave"] >= 1 and {row["dtype"], row["weight_dtype"]} <= set(DTYPES)
        packs = row["operator"] in shape and row["operator"] != "winograd_weights"
        assert (row["packing"] in PACKINGS) == packs


def test_same_padding_and_residual_broadcast():
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((1, 3, 8, 9)).astype(np.float32), np.ones((4, 3, 4, 4), np.float32)
    got = conv2d(x, weight, padding="same", residual=np.ones((1, 4, 1, 1), np.float32))
    want, bound = oracle(x, weight, None, (1, 1), ((1, 2), (1, 2)), (1, 1), 1)
    assert np.all(abs(got - want - 1) <= 60 * EPS * (bound + 1))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((1, 4, 5, 5), np.float32)}, r"expected \[B, 3, H, W\]"),
        ({"x": np.zeros((3, 5, 5), np.float32)}, r"expected \[B, 3, H, W\]"),
        ({"x": np.zeros((0, 3, 5, 5), np.float32)}, "no empty dimension"),
        ({"x": np.zeros((1, 3, 2, 5), np.float32)}, "smaller than the kernel's extent 3x3"),
        ({"bias": np.zeros(3, np.float32)}, "one per output channel"),
        ({"stride": 0}, "stride is 0"),
        ({"padding": -1}, "padding is -1"),
        ({"padding": "full"}, "padding is 'full'"),
        ({"padding": "same", "stride": 2}, "needs stride 1"),
        ({"activation": "cube"}, "activation 'cube' is not known; expected None or one of relu"),
        ({"residual": np.zeros((1, 2, 3, 3), np.float32)}, "residual has shape"),
        ({"out": np.zeros((1, 4, 3, 3))}, "expected C-contiguous float32"),
        ({"threads": 0}, "threads is 0"),
        ({"groups": 3}, "do not split into 3 groups"),
        ({"kernel_set": "vliw"}, "available: generic"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    args = {"x": np.zeros((1, 3, 5, 5), np.float32), "weight": np.ones((4, 3, 3, 3), np.float32), **change}
    with pytest.raises(ValueError, match=message):
        conv2d(**args)
