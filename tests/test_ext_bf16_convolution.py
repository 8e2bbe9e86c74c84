"""Convolutions of bfloat16 against sums in float64 of the rounded operands: every kernel set, both types of results.

The bound is that of a sum of K * taps float32 products, (n + 3) * eps * sum |w x|; a bfloat16 result is that, rounded
once more. Sizes are small but cross every tile, word and block boundary. Speed is not tested.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ext_kernels import cases, depthwise_cases, oracle, typed_weight

from subp_ext import UniformBlockSparse, _kernels
from subp_ext.convolution import Convolution
from subp_ext.dtypes import DTYPES, TypedArray, as_type
from subp_ext.fused_depthwise import FusedDepthwise
from subp_ext.memory import scratch

BFLOAT16 = DTYPES["bfloat16"]
EPS = float(np.finfo(np.float32).eps)
ROWS = [row for row in _kernels.rows() if row["dtype"] == "bfloat16" and row["usable"]]
SETS = list(dict.fromkeys(row["set"] for row in ROWS if row["operator"] == "conv2d"))

# Each with the steepest slope that it has.
ACTIVATIONS = {
    None: (lambda v: v, 1.0),
    "relu": (lambda v: np.maximum(v, 0), 1.0),
    "relu6": (lambda v: np.clip(v, 0, 6), 1.0),
    "silu": (lambda v: v / (1 + np.exp(-v)), 1.1),
}


def bits(rng, *shape):
    return BFLOAT16.from_float(rng.standard_normal(shape).astype(np.float32))


def check(case, geometry, image, made, kernel_set):
    """A layer with everything that may be added to it, on any number of threads."""
    rng = np.random.default_rng(made["seed"])
    dense, weight = typed_weight(rng, "bfloat16", **case)
    x = bits(rng, image[0], case["per_group"] * case["groups"], *image[1:])
    bias = rng.standard_normal(case["outputs"]).astype(np.float32)
    want, size = oracle(BFLOAT16.to_float(x), dense, bias, *geometry.values(), case["groups"])
    residual = None
    if made["result"] == "residual":
        residual = bits(rng, *want.shape)
        want, size = want + BFLOAT16.to_float(residual), size + abs(BFLOAT16.to_float(residual))
    layer = Convolution(weight, bias, **geometry, activation=made["activation"], kernel_set=kernel_set)
    layer.out_dtype = "float32" if made["result"] == "float32" else ""
    function, slope = ACTIVATIONS[made["activation"]]
    want = function(want)
    error = slope * (case["kept"] * np.prod(case["kernel"]) + 3) * EPS * size + 8 * EPS * abs(want)
    results = [layer(x, residual, threads=threads) for threads in (1, 2, 3)]
    got = results[0]
    assert got.shape == want.shape and got.dtype == (np.float32 if layer.out_dtype else np.uint16)
    if not layer.out_dtype:
        got, error = BFLOAT16.to_float(got), error + BFLOAT16.eps / 2 * (abs(want) + error)
    assert np.all(abs(got - want) <= error)
    assert all(other.tobytes() == results[0].tobytes() for other in results[1:])


MADE = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "result": st.sampled_from(["bfloat16", "residual", "float32"]),
    }
)


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=100, deadline=None)
@given(drawn=st.one_of(cases(), depthwise_cases()), made=MADE)
def test_any_shape(kernel_set, drawn, made):
    check(*drawn[:3], made, kernel_set)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=2000, deadline=None)
@given(drawn=st.one_of(cases(), depthwise_cases()), made=MADE)
def test_any_shape_long(kernel_set, drawn, made):
    check(*drawn[:3], made, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("size", [7, 14, 28, 33])
@pytest.mark.parametrize("result", ["residual", "float32"])
def test_network_planes(kernel_set, kernel, stride, size, result):
    case = {"outputs": 48, "per_group": 40, "kernel": (kernel,) * 2, "block": 16, "groups": 1, "ordered": size > 20}
    geometry = {"stride": (stride,) * 2, "padding": ((kernel // 2,) * 2,) * 2, "dilation": (1, 1)}
    for kept in (21, 40):
        made = {"seed": size, "activation": "relu", "result": result}
        check(case | {"kept": kept}, geometry, (2, size, size), made, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_on_network_planes(kernel_set, kernel, stride):
    case = {"outputs": 6, "per_group": 1, "kernel": (kernel,) * 2, "block": 1, "groups": 6, "kept": 1}
    geometry = {"stride": (stride,) * 2, "padding": ((kernel // 2,) * 2,) * 2, "dilation": (1, 1)}
    for size, result in ((7, "residual"), (14, "float32"), (28, "bfloat16"), (56, "residual"), (300, "bfloat16")):
        made = {"seed": size, "activation": "relu6", "result": result}
        check(case, geometry, (1, 9, size), made, kernel_set)


def test_every_depthwise_kernel_is_taken():
    taken = set()
    for kernel_set in SETS:
        for side in (2, 3, 5, 7):
            for step in (1, 2):
                weight = TypedArray(np.full((2, 1, side, side), 0x3F80, np.uint16), as_type("bfloat16"))
                taken.add(Convolution(weight, stride=step, groups=2, kernel_set=kernel_set).algorithms[0].kernel)
    assert taken == {row["name"] for row in ROWS if row["operator"] == "depthwise"}


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("size", [14, 40])
def test_a_chain_has_the_bits_of_one_after_the_other(kernel_set, size):
    rng = np.random.default_rng(size)
    case = {"per_group": 24, "block": 16, "groups": 1}
    _, weight = typed_weight(rng, "bfloat16", outputs=70, kernel=(1, 1), kept=11, ordered=True, **case)
    _, second = typed_weight(rng, "bfloat16", outputs=70, kernel=(3, 3), per_group=1, block=1, groups=70, kept=1)
    bias = rng.standard_normal(70).astype(np.float32)
    first = Convolution(weight, bias, activation="relu6", kernel_set=kernel_set)
    second = Convolution(second, bias, 2, 1, activation="silu", kernel_set=kernel_set)
    x = bits(rng, 2, 24, size, size)
    want = second(first(x, threads=1), threads=1)
    compiled = FusedDepthwise(first, second, "").build(size, size)
    for threads in (1, 2, 3):
        got = np.zeros_like(want)
        compiled.run(x, None, got, scratch(compiled.scratch * threads), threads)
        np.testing.assert_array_equal(got, want)


def not_finite(array):
    """NaN, infinity with its sign, and 0 for what is finite."""
    return np.where(np.isfinite(array), 0, array)


def check_what_is_not_finite(case, geometry, image, seed, kernel_set):
    """One such number in an input of small ones: as in float32 it is in every output that reads it, and in no other.

    Kernels also multiply what fills a word, pixels beyond the last and neighbours of a row, and none of that counts.
    """
    rng = np.random.default_rng(seed)
    dense, weight = typed_weight(rng, "bfloat16", **case)
    layer = Convolution(weight, **geometry, kernel_set=kernel_set, winograd=False)  # whose tiles spread it
    layer.out_dtype = rng.choice(["", "float32"]).item()
    x = bits(rng, image[0], case["per_group"] * case["groups"], *image[1:])
    place, bad = tuple(rng.integers(x.shape)), rng.choice([np.nan, np.inf, -np.inf])
    x[place] = BFLOAT16.from_float(np.float32(bad))
    alone = np.zeros(x.shape)
    alone[place] = 1
    reads, _ = oracle(alone, dense, None, *geometry.values(), case["groups"])
    with np.errstate(invalid="ignore"):
        want = np.where(reads == 0, 0, bad * reads)
    got = layer(x, threads=1)
    np.testing.assert_array_equal(not_finite(got if layer.out_dtype else BFLOAT16.to_float(got)), want)


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=150, deadline=None)
@given(drawn=st.one_of(cases(), depthwise_cases()))
def test_what_is_not_finite_is_where_it_is_in_float32(kernel_set, drawn):
    check_what_is_not_finite(*drawn[:4], kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("block", [1, 2, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2), (7, 2)])
def test_what_is_not_finite_in_a_word_of_one_channel(kernel_set, block, kernel, stride):
    """All but one of these are, or all words are shared; planes are those of a linear layer and of networks."""
    geometry = {"stride": (stride,) * 2, "padding": ((kernel // 2,) * 2,) * 2, "dilation": (1, 1)}
    for seed, (per_group, kept) in enumerate([(1, 1), (3, 1), (3, 3), (6, 5), (8, 4)]):
        case = {
            "outputs": 37,
            "per_group": per_group,
            "kernel": (kernel,) * 2,
            "block": block,
            "groups": 1,
            "kept": kept,
        }
        for size in ((1, 1), (7, 7), (14, 14)):
            check_what_is_not_finite(case, geometry, (1, *size), seed, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_a_chain(kernel_set, bad):
    """Of a channel that is the last of an odd number in one block row, and in no other."""
    values = np.full((2, 3, 1, 1, 16), 0x3F80, np.uint16)
    weight = UniformBlockSparse(values, np.int32([[0, 1, 4], [0, 2, 3]]), (32, 5, 1, 1), 16, 1, dtype="bfloat16")
    ones = TypedArray(np.full((32, 1, 3, 3), 0x3F80, np.uint16), as_type("bfloat16"))
    chain = FusedDepthwise(
        Convolution(weight, kernel_set=kernel_set), Convolution(ones, padding=1, groups=32, kernel_set=kernel_set), ""
    )
    x, got = np.full((1, 5, 9, 9), 0x3F80, np.uint16), np.empty((1, 32, 9, 9), np.uint16)
    x[0, 4, 4, 5] = BFLOAT16.from_float(np.float32(bad))
    compiled = chain.build(9, 9)
    compiled.run(x, None, got, scratch(compiled.scratch), 1)
    want = np.zeros(got.shape)
    want[0, :16, 3:6, 4:7] = bad
    np.testing.assert_array_equal(not_finite(BFLOAT16.to_float(got)), want)


@pytest.mark.parametrize("kernel_set", SETS)
def test_nan_passes_a_relu(kernel_set):
    weight = TypedArray(np.full((3, 3, 1, 1), 0x3F80, np.uint16), as_type("bfloat16"))
    x = np.full((1, 3, 1, 20), 0x7FC0, np.uint16)
    got = Convolution(weight, activation="relu", kernel_set=kernel_set)(x, threads=1)
    assert np.isnan(BFLOAT16.to_float(got)).all()


@pytest.mark.parametrize("kernel_set", SETS)
def test_results_round_to_the_nearest_ties_to_even(kernel_set):
    """One plus parts of the last place of bfloat16, which is 2**-7 there."""
    weight = TypedArray(np.full((1, 1, 1, 1), 0x3F80, np.uint16), as_type("bfloat16"))
    parts = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 0.5 + 2.0**-16, 1.5 - 2.0**-16], np.float32)
    x = np.zeros((1, 1, 1, 1), np.uint16)
    want = np.array([0, 0, 0, 1, 1, 2, 2, 1, 1])
    for part, steps in zip(parts, want, strict=True):
        bias = np.float32([1 + part * 2.0**-7])
        assert Convolution(weight, bias, kernel_set=kernel_set)(x, threads=1).item() == 0x3F80 + steps


def test_prepared_sizes_are_kept_apart_by_the_type_of_results():
    weight = TypedArray(np.full((4, 4, 1, 1), 0x3F80, np.uint16), as_type("bfloat16"))
    layer = Convolution(weight)
    narrow = layer.prepare(8, 8)
    layer.out_dtype = "float32"
    assert layer.prepare(8, 8) is not narrow and layer.prepare(8, 8) is layer.prepare(8, 8)


def test_errors():
    weight = TypedArray(np.full((4, 4, 1, 1), 0x3F80, np.uint16), as_type("bfloat16"))
    layer, x = Convolution(weight), np.zeros((1, 4, 5, 5), np.uint16)
    with pytest.raises(ValueError, match="the input is float32; expected the bits of bfloat16, as uint16"):
        layer(x.astype(np.float32))
    with pytest.raises(ValueError, match="the residual is float32; expected the bits"):
        layer(x, x.astype(np.float32))
    layer.out_dtype = "float32"
    with pytest.raises(ValueError, match="a residual beside outputs of float32 from bfloat16"):
        layer(x, np.zeros((1, 4, 5, 5), np.float32))
    layer.out_dtype = "int8"
    with pytest.raises(ValueError, match="out_dtype is 'int8'; kernels of bfloat16 have no such results"):
        layer(x)
    layer = Convolution(np.ones((4, 4, 1, 1), np.float32))
    layer.out_dtype = "bfloat16"
    with pytest.raises(ValueError, match="out_dtype is 'bfloat16'; kernels of float32 have no such results"):
        layer(x)
