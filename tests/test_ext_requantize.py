"""The constants and the arithmetic that make outputs of integer sums, against fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from int8_graphs import rounded

from subp_ext.dtypes import Quantization
from subp_ext.requantize import Requantization, bounds, fused_multiply_add, of_convolution

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**40), max_value=2.0**40)


def quantization(scale, zero=0):
    return Quantization(np.float32(scale), np.int32(zero))


@given(st.integers(-255, 255), FLOATS, FLOATS)
def test_multiply_add_rounds_once(a, b, c):
    got = fused_multiply_add(np.float32([a]), np.float32(b), np.float32([c]))[0]
    assert got == rounded(a * Fraction(float(np.float32(b))) + Fraction(float(np.float32(c))))


def test_multiply_add_sees_what_float64_cuts_off():
    # In float64 the sum is a tie of float32 exactly; what was cut off decides, upwards and downwards.
    one, tie, least = np.float32([1.0]), np.float32(2.0**-24), np.float32([2.0**-80])
    big = np.float32([1.0 + 2.0**-23])
    assert fused_multiply_add(tie * one, np.float32(1), one)[0] == 1.0
    for small in (least, -least):
        exact = Fraction(1) + Fraction(2) ** -24 + Fraction(float(small[0])) * 3
        assert fused_multiply_add(np.float32([3.0]), small[0], one) == rounded(1 + Fraction(float(small[0])) * 3)
        assert rounded(exact) == (big[0] if small[0] > 0 else 1.0)


def constants(**changes):
    arguments = {
        "weight_sums": np.array([10, -20]),
        "weight_sizes": np.array([500, 900]),
        "weight_scale": np.float32([0.01, 0.02]),
        "bias": np.float32([1.0, -0.25]),
        "x": quantization(0.05, 7),
        "out": quantization(0.1, 3),
    }
    return of_convolution(**arguments | changes)


def test_constants_of_a_convolution():
    found = constants(residual=quantization(0.2, 9), activation="relu6")
    assert isinstance(found, Requantization)
    assert found.start.tolist() == [2000 - 70, -250 + 140] and found.start.dtype == np.int32
    scales = np.float32([0.05, 0.01, 0.02, 0.1]).astype(np.float64)
    assert found.factor.tolist() == (scales[0] * scales[1:3] / scales[3]).astype(np.float32).tolist()
    assert (found.padding, found.zero, found.low, found.high) == (7, 3, 3, 63)
    assert (found.residual_factor, found.residual_zero) == (2.0, 9)


def test_results_in_float32_are_one_product():
    found = constants(out=None)
    assert found.to_float
    sums = np.array([[[5]], [[123456]]])[None]
    unit = [np.float32(np.float64(np.float32(0.05)) * np.float64(np.float32(w))) for w in (0.01, 0.02)]
    want = [np.float32(5 + 1930) * unit[0], np.float32(123456 - 110) * unit[1]]
    assert found.apply(sums).reshape(-1).tolist() == want


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"activation": "silu"}, "activation silu is no bound"),
        ({"out": None, "activation": "relu"}, "neither activation nor residual"),
        ({"out": None, "residual": quantization(1)}, "neither activation nor residual"),
        ({"weight_sizes": np.array([2**24, 1])}, "overflow int32"),
        ({"bias": np.float32([np.inf, 0])}, "overflow int32"),
        ({"bias": np.float32([np.nan, 0])}, "overflow int32"),
        ({"bias": np.float32([2e6, 0])}, "overflow int32"),
        ({"out": quantization(1e-30)}, "beyond int32"),
        ({"residual": quantization(1e8)}, "beyond int32"),
        ({"x": quantization(1e-30), "weight_scale": np.float32([1e-30, 1]), "bias": None}, "beyond float32"),
    ],
)
def test_what_integers_cannot_hold_is_named(changes, reason):
    assert reason in constants(**changes)


def test_ties_and_bounds_of_stored_results():
    halves = Requantization(np.int32([0]), np.float32([0.5]), 0, zero=10, low=10, high=13)
    assert halves.apply(np.array([[-7, 1, 3, 5, 7, 100]])[:, None]).reshape(-1).tolist() == [10, 10, 12, 12, 13, 13]


def test_an_upper_bound_beyond_the_type_is_none():
    assert bounds("relu6", quantization(0.01, 0)) == (0, 255)
    assert bounds("relu6", quantization(0.1, 5)) == (5, 65)
    assert bounds("gelu", quantization(0.1, 5)) is None
