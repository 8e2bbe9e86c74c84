"""Between real numbers and their types: quantization and rounding, as nodes of a graph.

The names are the runtime's own. References compute with real numbers; what they return here is stored elements and
their type, which the value of the node then has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import FLOAT32, Array, Quantization, TypedArray, ValueType, as_type, dtype_named
from subp_ext.operators.conversions import BYTES, UINT8, look_up, quantization_of, recast
from subp_ext.operators.record import Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.tensor import Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _quantized(scale: float, zero_point: int, dtype: str) -> ValueType:
    return ValueType(dtype_named(dtype), Quantization(np.array(scale, np.float32), np.array(zero_point, np.int32)))


def _quantize_spec(self: MetaTensor, scale: float, zero_point: int, dtype: str) -> Spec:
    return self.shape, _quantized(scale, zero_point, dtype)


def _lower_quantize(
    planner: Planner, op: str, *, self: Any, scale: float, zero_point: int, dtype: str
) -> Lowered | Unsupported:
    return _recast(planner, op, self, _quantized(scale, zero_point, dtype))


def _recast(planner: Planner, op: str, value: Any, type: ValueType) -> Lowered | Unsupported:
    out = recast(planner, op, value, type) if isinstance(value, Tensor) else None
    return Lowered(out) if out is not None else Unsupported(f"no kernel makes it {type}")


@operator("quantize", shape=_quantize_spec, lower=_lower_quantize)
def quantize(self: Array, scale: float, zero_point: int, dtype: str) -> TypedArray:
    """`clamp(round_to_nearest_even(self / scale) + zero_point)`, see `Quantization`; 0 becomes the zero point."""
    type = _quantized(scale, zero_point, dtype)
    return TypedArray(type.from_float(self), type)


def _dequantize_spec(self: MetaTensor) -> Spec:
    return self.shape, np.dtype(np.float32)


def _lower_dequantize(planner: Planner, op: str, *, self: Any) -> Lowered | Unsupported:
    return _recast(planner, op, self, ValueType(FLOAT32))


@operator("dequantize", shape=_dequantize_spec, lower=_lower_dequantize)
def dequantize(self: Array) -> Array:
    """The real numbers in float32; an integer without scale stands for itself."""
    return self.astype(np.float32)


def _cast_spec(self: MetaTensor, dtype: str) -> Spec:
    return self.shape, as_type(dtype)


def _lower_cast(planner: Planner, op: str, *, self: Any, dtype: str) -> Lowered | Unsupported:
    type = as_type(dtype)
    return Lowered(self) if isinstance(self, Tensor) and self.type == type else _recast(planner, op, self, type)


@operator("cast", shape=_cast_spec, lower=_lower_cast)
def cast(self: Array, dtype: str) -> Any:
    """To a type by name: to the nearest, ties to even; integers saturate. `to` cuts off instead, as torch does."""
    type = as_type(dtype)
    if type.dtype.kind == "integer" and self.dtype.kind != "f":  # exact beyond what floats hold
        return np.clip(self.astype(np.int64), *type.dtype.range).astype(type.dtype.storage)
    values = type.from_float(self)
    return values if type.plain else TypedArray(values, type)


def _lookup_spec(self: MetaTensor, table: MetaTensor, function: str = "") -> Spec:
    _check_table(self, table)
    return self.shape, table.dtype


def _check_table(self: MetaTensor, table: MetaTensor) -> None:
    """Checks that a table has an entry for every uint8, once or per channel.

    Raises:
        ValueError: it has not.
    """
    channels = self.shape[1:2] if table.ndim == 2 else ()
    if table.shape != (*channels, len(BYTES)) or table.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"table is {table.dtype} {list(table.shape)}; expected uint8 or float32 of shape [256], or [C, 256] for "
            f"an input with C channels; this one has shape {list(self.shape)}"
        )


def _lower_lookup(
    planner: Planner, op: str, *, self: Any, table: Any, function: str = "", out_type: ValueType | None = None
) -> Lowered | Unsupported:
    if quantization_of(self) is None and not (isinstance(self, Tensor) and self.type == ValueType(UINT8)):
        raise ValueError("takes stored uint8, computed in the run")
    if not isinstance(table, np.ndarray):
        raise ValueError("takes a table that is a constant")
    _check_table(self.view, table)
    if not self.view.size:
        return Unsupported("the input is empty")
    declared = out_type is not None and out_type.dtype is UINT8 and table.dtype == np.uint8
    type = out_type if out_type is not None and declared else as_type(table.dtype)
    return Lowered(look_up(planner, op, self, table, type, f"a table of {function}" if function else "a table"))


@operator("lookup", shape=_lookup_spec, lower=_lower_lookup)
def lookup(self: Array, table: Array, function: str = "") -> Array:
    """`table[self]` of stored uint8; with a table `[C, 256]` that of the channel, dimension 1.

    Bytes that are looked up are stored elements of the type that the node declares. `function` says in reports what
    the table is of.

    Raises:
        ValueError: `self` is no uint8, or the table has no entry for each.
    """
    _check_table(self, table)
    if self.dtype != np.uint8:
        raise ValueError(f"looks up {self.dtype}; expected stored uint8")
    if table.ndim == 1:
        return table[self]
    return table[np.arange(self.shape[1]).reshape(-1, *[1] * (self.ndim - 2)), self]
