"""Convolutions of uint8 activations with int8 weights, against sums of integers by NumPy: equal to the bit.

Every kernel set of this CPU, any geometry, all that becomes of the sums. `Requantization.apply`, tested on its own,
makes outputs of the oracle's sums. Sizes are small but cross every tile, word and block boundary. Speed is not tested.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ext_kernels import reordered

from subp_ext import UniformBlockSparse, _kernels
from subp_ext.convolution import Convolution
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType
from subp_ext.requantize import Requantization, of_convolution

ROWS = [row for row in _kernels.rows() if row["operator"] == "conv2d" and row["dtype"] == "uint8" and row["usable"]]
SETS = list(dict.fromkeys(row["set"] for row in ROWS))


def oracle(x, dense, stride, padding, dilation, groups, zero):
    """The sums of products, `[B, O, Ho, Wo]` int64, `zero` standing beyond the edges."""
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), *padding), constant_values=zero)
    kh, kw = dense.shape[2:]
    ho = (padded.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (padded.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    sums = np.zeros((x.shape[0], dense.shape[0], ho, wo), np.int64)
    per_in, per_out = dense.shape[1], dense.shape[0] // groups
    for g, i, j in itertools.product(range(groups), range(kh), range(kw)):
        top, left = i * dilation[0], j * dilation[1]
        seen = padded[:, g * per_in : (g + 1) * per_in, top : top + (ho - 1) * stride[0] + 1 : stride[0]]
        seen = seen[..., left : left + (wo - 1) * stride[1] + 1 : stride[1]]
        of_group = slice(g * per_out, (g + 1) * per_out)
        sums[:, of_group] += np.einsum("oi,bihw->bohw", dense[of_group, :, i, j].astype(np.int64), seen)
    return sums


def random_weight(rng, outputs, per_group, kernel, block, groups, kept, ordered=False):
    """A sparse int8 weight and its integers, dense."""
    rows = groups * -(-(outputs // groups) // block)
    mask = np.zeros((rows, per_group), bool)
    for row in mask:
        row[rng.choice(per_group, kept, replace=False)] = True
    dense = rng.integers(-127, 128, (outputs, per_group, *kernel)).astype(np.float32)
    channel = np.arange(outputs)
    row_of = channel % (outputs // groups) // block + channel // (outputs // groups) * (rows // groups)
    dense *= mask[row_of][:, :, None, None]
    weight = UniformBlockSparse.from_dense(dense, block, groups, mask)
    dense, weight = reordered(rng, dense, weight) if ordered else (dense, weight)
    scale = (rng.random(outputs).astype(np.float32) + 0.5) / 256
    return dense.astype(np.int8), dataclasses.replace(
        weight, values=weight.values.astype(np.int8), dtype="int8", scale=scale
    )


def quantization(scale, zero):
    return Quantization(np.float32(scale), np.int32(zero))


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    per_group = draw(st.integers(1, 14))
    usual = draw(st.booleans())
    kernel = (draw(st.sampled_from([1, 1, 3])),) * 2 if usual else (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    case = {
        "outputs": groups * draw(st.integers(1, 40)),
        "per_group": per_group,
        "kernel": kernel,
        "block": draw(st.sampled_from([1, 2, 3, 5, 7, 8, 16, 32, 64])),
        "groups": groups,
        "kept": draw(st.one_of(st.just(per_group), st.integers(1, per_group))),
        "ordered": draw(st.booleans()),
    }
    pads = st.integers(0, 4)
    geometry = {
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": ((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        "dilation": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    }
    if kernel == (1, 1) and draw(st.booleans()):  # reads the input in place
        geometry = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    least = [
        max(1, d * (k - 1) + 1 - sum(p))
        for d, k, p in zip(geometry["dilation"], kernel, geometry["padding"], strict=True)
    ]
    image = (draw(st.integers(1, 2)), *(draw(st.integers(low, low + 16)) for low in least))
    made = {
        "seed": draw(st.integers(0, 2**31)),
        "zeros": [draw(st.integers(0, 255)) for _ in range(3)],
        "activation": draw(st.sampled_from([None, "relu", "relu6"])),
        "result": draw(st.sampled_from(["uint8", "residual", "float32"])),
        "extreme": draw(st.booleans()),
    }
    return case, geometry, image, made


def check_case(case, geometry, image, made, kernel_set):
    rng = np.random.default_rng(made["seed"])
    dense, weight = random_weight(rng, **case)
    zero_x, zero_out, zero_residual = made["zeros"]
    x = rng.integers(0, 256, (image[0], case["per_group"] * case["groups"], *image[1:])).astype(np.uint8)
    if made["extreme"]:
        x = np.where(rng.random(x.shape) < 0.5, 0, 255).astype(np.uint8)
    layer = Convolution(weight, **geometry, kernel_set=kernel_set)
    flat = dense.reshape(len(dense), -1).astype(np.int64)
    assert np.array_equal(layer.weight_sums, flat.sum(1)) and np.array_equal(layer.weight_sizes, abs(flat).sum(1))
    sums = oracle(x, dense, **geometry, groups=case["groups"], zero=zero_x)
    bias = rng.standard_normal(case["outputs"]).astype(np.float32)
    residual = rng.integers(0, 256, sums.shape).astype(np.uint8) if made["result"] == "residual" else None
    floats = made["result"] == "float32"
    spread = 0.02 * float(sums.std() + 1) / 256
    constants = of_convolution(
        layer.weight_sums,
        layer.weight_sizes,
        weight.scale,
        bias,
        quantization(0.02, zero_x),
        None if floats else quantization(spread / 40, zero_out),
        None if residual is None else quantization(spread / 60, zero_residual),
        None if floats else made["activation"],
    )
    assert isinstance(constants, Requantization)
    want = constants.apply(sums.astype(np.int32), residual)
    for threads in (1, 2, 3):
        got = layer(x, residual, threads=threads, requantize=constants)
        assert got.dtype == want.dtype and got.shape == want.shape
        assert np.array_equal(got, want)


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=150, deadline=None)
@given(drawn=cases())
def test_any_shape_is_the_oracle_to_the_bit_for_any_thread_count(kernel_set, drawn):
    check_case(*drawn, kernel_set)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=2000, deadline=None)
@given(drawn=cases())
def test_any_shape_long(kernel_set, drawn):
    check_case(*drawn, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [7, 14, 28, 33])
@pytest.mark.parametrize("kept", [21, 40])
def test_network_planes(kernel_set, kernel, size, kept):
    case = {"outputs": 48, "per_group": 40, "kernel": (kernel,) * 2, "block": 16, "groups": 1, "kept": kept}
    case["ordered"] = size > 20
    geometry = {"stride": (1, 1), "padding": ((kernel // 2,) * 2,) * 2, "dilation": (1, 1)}
    made = {"seed": size, "zeros": [3, 0, 9], "activation": "relu", "result": "residual", "extreme": False}
    check_case(case, geometry, (2, size, size), made, kernel_set)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_largest_products_do_not_saturate(kernel_set, sign, kernel):
    """Every product is 255 * 127, of one sign: sums of two are beyond 16 bits."""
    values = np.full((16, 37, kernel, kernel), sign * 127, np.int8)
    weight = TypedArray(
        values, ValueType(DTYPES["int8"], Quantization(np.ones(16, np.float32), np.zeros(16, np.int32), 0))
    )
    x = np.full((1, 37, 9, 9), 255, np.uint8)
    constants = Requantization(np.zeros(16, np.int32), np.ones(16, np.float32), 255, to_float=True)
    got = Convolution(weight, None, 1, kernel // 2, kernel_set=kernel_set)(x, requantize=constants, threads=1)
    assert np.all(got == np.float32(sign * 127 * 255 * 37 * kernel * kernel))


@pytest.mark.parametrize("kernel_set", SETS)
def test_sums_round_to_even_and_saturate_at_the_bounds(kernel_set):
    weight = TypedArray(
        np.ones((3, 1, 1, 1), np.int8),
        ValueType(DTYPES["int8"], Quantization(np.ones(3, np.float32), np.zeros(3, np.int32), 0)),
    )
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    start = np.array([-128, 100_000, -(2**30)], np.int32)
    for low, high, zero in ((0, 255, 128), (10, 200, 0), (255, 255, 255)):
        constants = Requantization(start, np.array([0.5, 300.0, 0.9], np.float32), 0, zero, low, high)
        got = Convolution(weight, kernel_set=kernel_set)(x, requantize=constants, threads=1)
        assert np.array_equal(got, constants.apply(x.astype(np.int32).repeat(3, axis=1)))


def test_int8_layers_take_neither_winograd_nor_floats():
    rng = np.random.default_rng(0)
    _, weight = random_weight(rng, 16, 8, (3, 3), 16, 1, 4)
    layer = Convolution(weight, padding=1)
    assert len(layer.algorithms) == 1 and "u8s8_ubsconv" in layer.algorithms[0].kernel
    with pytest.raises(ValueError, match="weights of int8 need a requantization"):
        layer.prepare(8, 8)
    with pytest.raises(ValueError, match="weights of floats have no requantization"):
        Convolution(np.ones((4, 4, 1, 1), np.float32)).prepare(8, 8, constants_of(4))
    with pytest.raises(ValueError, match="come with a bias or an activation"):
        Convolution(weight, np.zeros(16, np.float32))
    with pytest.raises(ValueError, match="start is int32 .3.; expected a C-contiguous int32 array of shape .16."):
        layer.prepare(8, 8, constants_of(3))


def constants_of(outputs):
    return Requantization(np.zeros(outputs, np.int32), np.ones(outputs, np.float32), 0)


def test_every_requantization_is_kept_apart():
    _, weight = random_weight(np.random.default_rng(0), 16, 8, (1, 1), 16, 1, 8)
    layer, first, second = Convolution(weight), constants_of(16), constants_of(16)
    assert layer.prepare(8, 8, first) is layer.prepare(8, 8, first)
    assert layer.prepare(8, 8, first) is not layer.prepare(8, 8, second)


@pytest.mark.parametrize(
    "dtype, scale, axis, zero", [("uint8", [1.0, 1.0], 0, 0), ("int8", 1.0, None, 0), ("int8", [1.0, 1.0], 0, 1)]
)
def test_dense_integers_need_a_scale_per_output_channel(dtype, scale, axis, zero):
    scale = np.array(scale, np.float32)
    of = ValueType(DTYPES[dtype], Quantization(scale, np.full(scale.shape, zero, np.int32), axis))
    with pytest.raises(ValueError, match="expected int8 with a scale per output channel"):
        Convolution(TypedArray(np.ones((2, 3, 1, 1), DTYPES[dtype].storage), of))
