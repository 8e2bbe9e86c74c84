"""Depthwise convolutions of uint8 against sums in int64 and the definition of the requantization, to the bit.

Every kernel of every set of this CPU, and threads; any window, stride, dilation and padding; planes as narrow and as
wide as make the kernels take each of their paths; zero points, weights, factors and bounds at their ends. Then the same
after a convolution, band by band, of which the outputs are never in memory as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ext_int8_convolution import oracle, random_weight

from subp_ext import _kernels, fused_depthwise
from subp_ext.convolution import Convolution
from subp_ext.memory import scratch
from subp_ext.requantize import Requantization
from subp_ext.sparse import UniformBlockSparse

SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]
ROWS = [row for row in _kernels.rows() if row["operator"] == "depthwise" and row["dtype"] == "uint8" and row["usable"]]


def sums_of(x, weight, zero, stride, padding, dilation):
    """int64 sums of products, tap by tap, of `[B, C, H, W]` and `[C, kh, kw]`, the padding being `zero`."""
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), *padding), constant_values=zero)
    kh, kw = weight.shape[1:]
    height, width = (
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(padded.shape[2:], (kh, kw), stride, dilation, strict=True)
    )
    total = np.zeros((*x.shape[:2], height, width), np.int64)
    for i, j in itertools.product(range(kh), range(kw)):
        taken = padded[:, :, i * dilation[0] :: stride[0], j * dilation[1] :: stride[1]][:, :, :height, :width]
        total += weight[:, i, j].astype(np.int64)[:, None, None] * taken
    return total


def outputs_of(sums, q, residual):
    """What the definition makes of the sums: exact numbers in longdouble, rounded to float32 where it says so."""
    total = sums + q.start.astype(np.int64)[:, None, None]
    assert np.all(abs(total) < 2**31)
    scaled = total.astype(np.float32) * q.factor[:, None, None]
    if residual is not None:
        product = (residual.astype(np.int64) - q.residual_zero).astype(np.longdouble) * np.float32(q.residual_factor)
        scaled = (product + scaled.astype(np.longdouble)).astype(np.float32)
    return np.clip(np.rint(scaled).astype(np.int64) + q.zero, q.low, q.high).astype(np.uint8)


def layer_of(weight, stride, padding, dilation, kernel_set):
    channels, kh, kw = weight.shape
    packed = UniformBlockSparse(
        weight.reshape(channels, 1, kh, kw, 1),
        np.zeros((channels, 1), np.int32),
        (channels, 1, kh, kw),
        1,
        channels,
        "int8",
        np.ones(channels, np.float32),
    )
    return Convolution(packed, None, stride, padding, dilation, channels, None, kernel_set)


@st.composite
def cases(draw):
    usual = draw(st.booleans())
    side, step = draw(st.sampled_from([3, 3, 5, 7])), draw(st.integers(1, 2))
    small, pads = st.integers(1, 3), st.integers(0, 4)
    kernel = (side, side) if usual else (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    stride = (step, step) if usual else (draw(small), draw(small))
    dilation = (1, 1) if usual else (draw(small), draw(small))
    same = usual and draw(st.booleans())
    padding = ((side // 2,) * 2,) * 2 if same else ((draw(pads), draw(pads)), (draw(pads), draw(pads)))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    widths = st.sampled_from([6, 7, 14, 15, 28, 29, 40, 55, 56, 57, 64, 112, 130, 300])
    size = (draw(st.integers(least[0], least[0] + 20)), max(least[1], draw(st.one_of(st.integers(1, 70), widths))))
    return {
        "shape": (draw(st.integers(1, 2)), draw(st.integers(1, 20)), *size),
        "kernel": kernel,
        "geometry": (stride, padding, dilation),
        "extreme": draw(st.sampled_from(["no", "no", "largest", "smallest"])),
        "bounds": draw(st.sampled_from([(0, 255), (0, 255), (17, 255), (3, 200), (0, 0), (255, 255)])),
        "residual": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def made_of(case):
    rng = np.random.default_rng(case["seed"])
    batch, channels, *size = case["shape"]
    weight = rng.integers(-127, 128, (channels, *case["kernel"])).astype(np.int8)
    x = rng.integers(0, 256, (batch, channels, *size)).astype(np.uint8)
    if case["extreme"] != "no":  # two products of such a pair are beyond 16 bits
        weight[:] = 127 if case["extreme"] == "largest" else -127
        x[:] = 255
    taps = weight[0].size
    factor = (10.0 ** rng.uniform(-1, 1, channels) * 300 / (255 * 127 * taps)).astype(np.float32)
    zeros = [int(z) for z in rng.choice([0, 0, 255, 128, 7], 3)]
    start = rng.integers(-(2**14), 2**14, channels) - zeros[0] * weight.reshape(channels, -1).astype(np.int64).sum(1)
    q = Requantization(
        start.astype(np.int32),
        factor,
        padding=zeros[0],
        zero=zeros[1],
        low=case["bounds"][0],
        high=case["bounds"][1],
        residual_factor=float(np.float32(rng.uniform(0.01, 3))),
        residual_zero=zeros[2],
    )
    return rng, x, weight, q


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_any_plane_is_exact_for_any_thread_count(kernel_set, case):
    rng, x, weight, q = made_of(case)
    sums = sums_of(x, weight, q.padding, *case["geometry"])
    residual = rng.integers(0, 256, sums.shape).astype(np.uint8) if case["residual"] else None
    want = outputs_of(sums, q, residual)
    compiled, out_size, kernel = layer_of(weight, *case["geometry"], kernel_set).prepare(*x.shape[2:], q)
    assert out_size == want.shape[2:] and kernel.startswith("u8s8_dwconv_")
    for threads in (1, 2, 3):
        out = np.full(want.shape, 99, np.uint8)
        compiled.run(x, residual, out, scratch(compiled.scratch), threads)
        np.testing.assert_array_equal(out, want)
    if residual is not None:
        compiled.run(x, residual, residual, None, 1)  # in its place
        np.testing.assert_array_equal(residual, want)


@pytest.mark.parametrize("kernel_set", SETS)
def test_ties_go_to_the_even_and_small_differences_count(kernel_set):
    start = np.array([1, 3, 5, -1, -3, 2**24 + 1, 2**24 + 3, -(2**31) + 1], np.int32)
    factor = np.array([0.5] * 5 + [2.0**-20] * 2 + [2.0**-3], np.float32)
    q = Requantization(start, factor, 0, zero=100)
    weight, x = np.zeros((8, 3, 3), np.int8), np.zeros((1, 8, 9, 64), np.uint8)
    out = np.empty_like(x)
    layer_of(weight, 1, 1, 1, kernel_set).prepare(9, 64, q).compiled.run(x, None, out, None, 1)
    assert [out[0, c].min() for c in range(8)] == [100, 102, 102, 100, 98, 116, 116, 0]
    assert all(np.ptp(out[0, c]) == 0 for c in range(8))


def test_every_kernel_is_one_of_those_compared():
    taken = {
        layer_of(np.ones((2, side, side), np.int8), step, 0, 1, kernel_set).algorithms[0].kernel
        for kernel_set, side, step in itertools.product(SETS, (2, 3, 5, 7), (1, 2))
    }
    assert taken == {row["name"] for row in ROWS}


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("width", [7, 64])
def test_outputs_are_float32_where_the_constants_say_so(kernel_set, width):
    rng = np.random.default_rng(0)
    weight, x = rng.integers(-127, 128, (3, 3, 3)).astype(np.int8), rng.integers(0, 256, (2, 3, 9, width))
    q = Requantization(np.int32([5, -7, 900]), np.float32([0.1, 3, 1e-5]), 9, to_float=True)
    compiled = layer_of(weight, 1, 1, 1, kernel_set).prepare(9, width, q).compiled
    out = np.empty((2, 3, 9, width), np.float32)
    compiled.run(x.astype(np.uint8), None, out, None, 2)
    sums = sums_of(x, weight, 9, (1, 1), ((1, 1), (1, 1)), (1, 1)) + q.start[:, None, None]
    np.testing.assert_array_equal(out, sums.astype(np.float32) * q.factor[:, None, None])
    with pytest.raises(ValueError, match="a residual beside outputs of float32"):
        compiled.run(x.astype(np.uint8), out, out, None, 1)


CONSTANTS = Requantization(np.zeros(2, np.int32), np.ones(2, np.float32), 0)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"start": np.zeros(3, np.int32)}, ValueError, "start is int32 .3.; expected a C-contiguous int32 .* .2."),
        ({"start": np.zeros(2, np.float32)}, ValueError, "start is float32 .2.; expected a C-contiguous int32"),
        ({"factor": np.zeros(2, np.float64)}, ValueError, "factor is float64 .2.; expected a C-contiguous float32"),
        ({"factor": np.float32([1, np.nan])}, ValueError, "factor or residual_factor has a number that is not finite"),
        ({"residual_factor": np.inf}, ValueError, "factor or residual_factor has a number that is not finite"),
        ({"zero": 256}, ValueError, "zero is 256; expected a whole number from 0 to 255"),
        ({"padding": -1}, ValueError, "padding is -1; expected a whole number from 0 to 255"),
        ({"low": 7, "high": 6}, ValueError, "low is 7 and high 6; expected low to be no more than high"),
    ],
)
def test_constants_that_do_not_fit_are_named(changes, error, message):
    layer = layer_of(np.ones((2, 3, 3), np.int8), 1, 1, 1, None)
    with pytest.raises(error, match=message):
        layer.prepare(5, 5, dataclasses.replace(CONSTANTS, **changes))


def test_without_constants_or_with_a_bias_beside_them_it_is_an_error():
    ones, sizes = np.ones((2, 3, 3), np.int8), [(5, 5), (5, 5), (1, 1), (1, 1), (1, 1)]
    with pytest.raises(ValueError, match="sums of integers need requantize, a Requantization"):
        _kernels.CompiledDepthwise(None, "uint8", ones, None, None, *sizes)
    with pytest.raises(TypeError, match="requantize is str; expected a Requantization"):
        _kernels.CompiledDepthwise(None, "uint8", ones, None, None, *sizes, "constants")
    with pytest.raises(ValueError, match="bias and activation of a convolution of integers are in its requantize"):
        _kernels.CompiledDepthwise(None, "uint8", ones, np.zeros(2, np.float32), None, *sizes, CONSTANTS)
    with pytest.raises(ValueError, match="requantize is for sums of integers; expected None for float32"):
        _kernels.CompiledDepthwise(None, "float32", ones.astype(np.float32), None, None, *sizes, CONSTANTS)


def test_constants_changed_later_do_not_matter():
    q = dataclasses.replace(CONSTANTS, start=np.full(2, 7, np.int32))
    x, out = np.zeros((1, 2, 5, 5), np.uint8), np.empty((1, 2, 5, 5), np.uint8)
    compiled = layer_of(np.ones((2, 3, 3), np.int8), 1, 1, 1, None).prepare(5, 5, q).compiled
    q.start[:] = 0
    compiled.run(x, None, out, None, 1)
    assert (out == 7).all()


@st.composite
def chains(draw):
    """A convolution of 1x1 or 3x3, then a depthwise one, over planes that several bands or one take."""
    groups, per_group = draw(st.sampled_from([1, 1, 2])), draw(st.integers(1, 12))
    pads = st.integers(0, 3)
    return {
        "groups": groups,
        "per_group": per_group,
        "outputs": groups * draw(st.integers(2, 40)),
        "kept": draw(st.integers(1, per_group)),
        "block": draw(st.sampled_from([1, 3, 8, 16, 32])),
        "first": (draw(st.sampled_from([1, 1, 1, 3])), draw(st.integers(1, 2))),
        "second": (draw(st.sampled_from([2, 3, 3, 5, 7])), draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))),
        "padding": ((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        "image": (draw(st.integers(1, 2)), draw(st.integers(13, 33)), draw(st.integers(13, 61))),
        "ordered": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "bytes": draw(st.sampled_from([500, 5000, 1 << 20])),
        "seed": draw(st.integers(0, 2**31)),
    }


def constants_for(rng, sums, zero, low=0):
    """A requantization that spreads such sums over uint8."""
    channels = sums.shape[1]
    middle = sums.mean(axis=(0, 2, 3))
    factor = (60 / (sums.std(axis=(0, 2, 3)) + 1)).astype(np.float32)
    start = np.rint(-middle + rng.normal(0, 5, channels)).astype(np.int32)
    return Requantization(
        start, factor, zero, zero=120, low=low, high=250, residual_factor=float(np.float32(0.3)), residual_zero=128
    )


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=80, deadline=None)
@given(case=chains())
def test_a_chain_with_the_convolution_before_it_is_exact_in_any_bands(kernel_set, case):
    rng = np.random.default_rng(case["seed"])
    outputs, groups, (size, stride), (window, step, dilation) = (
        case[name] for name in ("outputs", "groups", "first", "second")
    )
    sizes = (outputs, case["per_group"], (size, size), case["block"], groups, case["kept"])
    dense, weight = random_weight(rng, *sizes, case["ordered"])
    depthwise = rng.integers(-127, 128, (outputs, window, window)).astype(np.int8)
    x = rng.integers(0, 256, (case["image"][0], case["per_group"] * groups, *case["image"][1:])).astype(np.uint8)
    same = ((size // 2, size // 2),) * 2
    sums = oracle(x, dense, (stride, stride), same, (1, 1), groups, 7)
    first = Convolution(weight, None, stride, same, 1, groups, None, kernel_set)
    first.requantize = constants_for(rng, sums, 7, low=100)
    between = outputs_of(sums, first.requantize, None)

    spread = ((window - 1) * dilation + 1,) * 2
    padding = tuple(
        (before, max(after, reach - length - before))
        for (before, after), reach, length in zip(case["padding"], spread, between.shape[2:], strict=True)
    )
    sums = sums_of(between, depthwise, 120, (step, step), padding, (dilation, dilation))
    second = layer_of(depthwise, step, padding, dilation, kernel_set)
    second.requantize = constants_for(rng, sums, 120)
    residual = rng.integers(0, 256, sums.shape).astype(np.uint8) if case["residual"] else None
    want = outputs_of(sums, second.requantize, residual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_depthwise, "CACHED_ROWS", case["bytes"])
        compiled = fused_depthwise.FusedDepthwise(first, second, "between").build(*x.shape[2:])
    for threads in (1, 2, 3):
        out = np.full(want.shape, 99, np.uint8)
        compiled.run(x, residual, out, scratch(compiled.scratch * threads), threads)
        np.testing.assert_array_equal(out, want)


def test_a_chain_of_integers_and_floats_is_an_error():
    rng = np.random.default_rng(0)
    _, weight = random_weight(rng, 2, 3, (1, 1), 2, 1, 3)
    first, second = Convolution(weight), layer_of(np.ones((2, 3, 3), np.int8), 1, 1, 1, None)
    first.requantize = dataclasses.replace(CONSTANTS, to_float=True)
    second.requantize = CONSTANTS
    with pytest.raises(
        ValueError, match="the first convolution is of uint8 to float32, the second of uint8 to uint8; expected"
    ):
        fused_depthwise.FusedDepthwise(first, second, "between").build(5, 5)
