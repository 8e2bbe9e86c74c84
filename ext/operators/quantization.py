"""Between real numbers and their types: quantization and rounding, as nodes of a graph.

The names are the runtime's own. References compute with real numbers; what they return here is stored elements and
their type, which the value of the node then has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.dtypes import Array, Quantization, TypedArray, ValueType, as_type, dtype_named
from subp_ext.operators.record import MetaTensor, Spec, operator


def _quantized(scale: float, zero_point: int, dtype: str) -> ValueType:
    return ValueType(dtype_named(dtype), Quantization(np.array(scale, np.float32), np.array(zero_point, np.int32)))


def _quantize_spec(self: MetaTensor, scale: float, zero_point: int, dtype: str) -> Spec:
    return self.shape, _quantized(scale, zero_point, dtype)


@operator("quantize", shape=_quantize_spec)
def quantize(self: Array, scale: float, zero_point: int, dtype: str) -> TypedArray:
    """`clamp(round_to_nearest_even(self / scale) + zero_point)`, see `Quantization`; 0 becomes the zero point."""
    type = _quantized(scale, zero_point, dtype)
    return TypedArray(type.from_float(self), type)


def _dequantize_spec(self: MetaTensor) -> Spec:
    return self.shape, np.dtype(np.float32)


@operator("dequantize", shape=_dequantize_spec)
def dequantize(self: Array) -> Array:
    """The real numbers in float32; an integer without scale stands for itself."""
    return self.astype(np.float32)


def _cast_spec(self: MetaTensor, dtype: str) -> Spec:
    return self.shape, as_type(dtype)


@operator("cast", shape=_cast_spec)
def cast(self: Array, dtype: str) -> Any:
    """To a type by name: to the nearest, ties to even; integers saturate. `to` cuts off instead, as torch does."""
    type = as_type(dtype)
    if type.dtype.kind == "integer" and self.dtype.kind != "f":  # exact beyond what floats hold
        return np.clip(self.astype(np.int64), *type.dtype.range).astype(type.dtype.storage)
    values = type.from_float(self)
    return values if type.plain else TypedArray(values, type)
