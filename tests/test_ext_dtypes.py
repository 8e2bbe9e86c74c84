"""The table of data types: rounding against torch and against exact arithmetic, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType, as_type, dtype_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", list(DTYPES))
def test_rows_hold_together(name):
    row = DTYPES[name]
    assert row.name == name and row.accumulator in DTYPES and row.itemsize == row.storage.itemsize
    assert (row.eps is not None) == (row.kind == "float")
    zero = np.zeros(3, row.storage)
    assert np.array_equal(row.from_float(row.to_float(zero)), zero) and row.from_float(np.zeros(2)).dtype == row.storage


def test_every_bfloat16_reads_as_torch_reads_it_and_comes_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    row = DTYPES["bfloat16"]
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(row.to_float(bits), expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert np.array_equal(row.from_float(expected)[numbers], bits[numbers])
    assert np.isnan(row.to_float(row.from_float(expected[~numbers]))).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_bfloat16_rounds_as_torch(values):
    found = DTYPES["bfloat16"].from_float(np.array(values, np.float32))
    expected = torch.tensor(values, dtype=torch.float32).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(found, expected)


def test_the_widest_integers_saturate_at_what_a_float_holds():
    assert DTYPES["int64"].from_float(np.array([1e30, -1e30])).tolist() == [2**63 - 1024, -(2**63)]


@pytest.mark.parametrize("name", ["int8", "uint8", "int32"])
def test_integers_round_to_even_and_saturate(name):
    row = DTYPES[name]
    low, high = row.range
    given_, wanted = [0.5, 1.5, 2.5, 1e20, -1e20, np.inf, -np.inf, np.nan], [0, 2, 2, high, low, high, low, 0]
    assert row.from_float(np.array(given_)).tolist() == wanted


@settings(max_examples=200, deadline=None)
@given(
    st.lists(FLOATS, min_size=1, max_size=20),
    st.floats(2**-20, 2**20, width=32),
    st.integers(0, 255),
)
def test_quantizing_follows_its_formula(values, scale, zero):
    """Against exact arithmetic: the product is rounded to float32 once, then to the nearest even integer."""
    kind = ValueType(DTYPES["uint8"], Quantization(np.float32(scale), np.int32(zero)))
    inverse = np.float32(1 / np.float64(np.float32(scale)))
    exact = [Fraction(float(np.float32(v))) * Fraction(float(inverse)) for v in values]
    with np.errstate(over="ignore"):
        rounded = [float(np.float32(float(e))) if abs(e) < 2**127 else np.sign(float(e)) * np.inf for e in exact]
    wanted = [min(255, max(0, round(r) + zero)) if np.isfinite(r) else (255 if r > 0 else 0) for r in rounded]
    assert kind.from_float(np.array(values, np.float32)).tolist() == wanted


def test_quantizing_agrees_with_torch_on_many_numbers():
    x = (3 * np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    kind = ValueType(DTYPES["uint8"], Quantization(np.float32(0.0173), np.int32(37)))
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(np.float32(0.0173)), 37, 0, 255)
    assert np.array_equal(kind.to_float(kind.from_float(x)), expected.numpy())
    assert kind.to_float(np.array([37], np.uint8)) == 0  # zero is exact


def test_scales_per_channel():
    scale, values = np.array([0.5, 2], np.float32), np.array([[2, 4], [-1, 3]], np.int8)
    q = Quantization(scale, np.zeros(2, np.int32), axis=0)
    constant = TypedArray(values, ValueType(DTYPES["int8"], q))
    assert constant.to_float().tolist() == [[1, 2], [-2, 6]]
    assert np.array_equal(constant.type.from_float(constant.to_float()), values)


def one(scale, zero, axis=None, dtype="uint8"):
    return ValueType(DTYPES[dtype], Quantization(np.float32(scale), np.int32(zero), axis))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: one(0, 0), "expected positive finite"),
        (lambda: one(-1, 0), "expected positive finite"),
        (lambda: one(np.inf, 0), "expected positive finite"),
        (lambda: one(np.nan, 0), "expected positive finite"),
        (lambda: one(1, 256), "zero point 256 is beyond uint8, 0 to 255"),
        (lambda: one([1, 2], [0, 0]), "a number each"),
        (lambda: one(1, 0, axis=0), "per channel along an axis"),
        (lambda: one(1, 0, dtype="float32"), "float32 is no integer type"),
        (lambda: dtype_of(np.complex64), "dtype complex64 is not one of"),
        (lambda: dtype_of(np.zeros(1, np.uint16)), "dtype uint16 is not one of"),
        (lambda: as_type("float8"), "dtype 'float8' is not one of"),
        (lambda: TypedArray(np.zeros(3, np.uint8), ValueType(DTYPES["uint8"], one([1, 2], [0, 0], 0).quantization)),
         "2 scales along axis 0 do not fit shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_storage_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match="bfloat16 is stored as a NumPy array of uint16"):
        TypedArray(np.zeros(2, np.float32), ValueType(DTYPES["bfloat16"]))


@pytest.mark.parametrize("kind", [as_type("float32"), as_type("bfloat16"), one(0.1, 7), one(2.5e-3, -3, dtype="int8")])
def test_types_go_through_json(kind):
    assert ValueType.from_json(kind.to_json()) == kind
    assert kind.dtype.name in str(kind)
