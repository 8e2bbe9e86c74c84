"""The table of data types, and what a value's type is: one row says all that graph, file, planner and kernels ask.

A type is a row of `DTYPES`. NumPy has no bfloat16: such arrays are held as uint16 bit patterns, and shown to people, as
inputs and outputs of a `Session`, as float32. Integers may be quantized: with a scale and a zero point they stand for
real numbers, `real = (stored - zero_point) * scale`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# Numbers that are rounded at once: what is between stays in the cache, and is nothing beside a large weight.
AT_ONCE = 1 << 16

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DType:
    """A row of the table.

    Attributes:
        name: in graphs, files and reports.
        storage: the dtype of NumPy arrays that hold it.
        kind: "float", "integer" or "bool".
        accumulator: name of the type that sums of products are kept in.
        decode: storage to float32; None where NumPy's cast does it.
        encode: float32 to storage, to the nearest, ties to even; None where NumPy's cast does it.
        eps: relative distance of neighbouring numbers; None unless a float.
        weights: whether kept weights of convolutions and linear layers may be of it. Integers are symmetric there: a
            scale per output channel, and 0 stands for 0.
    """

    name: str
    storage: np.dtype[Any]
    kind: Literal["float", "integer", "bool"]
    accumulator: str
    decode: Callable[[Array], Float32Array] | None = None
    encode: Callable[[Float32Array], Array] | None = None
    eps: float | None = None
    weights: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.storage.itemsize

    @property
    def native(self) -> bool:
        """Whether NumPy computes with the storage as it is."""
        return self.decode is None

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest integer.

        Raises:
            ValueError: this is no integer type.
        """
        if self.kind != "integer":
            raise ValueError(f"{self.name} is no integer type")
        limits = np.iinfo(self.storage)
        return int(limits.min), int(limits.max)

    def to_float(self, array: Array) -> Float32Array:
        """Returns stored elements as float32, without regard to scale and zero point."""
        return array.astype(np.float32) if self.decode is None else self.decode(array)

    def from_float(self, array: Array) -> Array:
        """Returns real numbers as stored elements: to the nearest, ties to even; integers saturate, NaN becomes 0."""
        if self.kind == "integer":
            low, high = map(float, self.range)
            high = high if int(high) <= self.range[1] else math.nextafter(high, 0)  # of int64, as a float
            whole = np.rint(np.nan_to_num(np.asarray(array, np.float64), nan=0.0, posinf=high, neginf=low))
            return np.clip(whole, low, high).astype(self.storage)
        if self.encode is None:
            return np.asarray(array).astype(self.storage)
        return self.encode(np.asarray(array, np.float32))

    def __repr__(self) -> str:
        return f"DType({self.name})"


def _bfloat16_to_float32(bits: Array) -> Float32Array:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _float32_to_bfloat16(array: Float32Array) -> Array:
    numbers = np.ascontiguousarray(array).reshape(-1)
    rounded = np.empty(numbers.size, np.uint16)
    for at in range(0, numbers.size, AT_ONCE):
        part = slice(at, at + AT_ONCE)
        rounded[part] = _rounded_to_bfloat16(numbers[part])
    return rounded.reshape(np.shape(array))


def _rounded_to_bfloat16(numbers: Float32Array) -> Array:
    bits = numbers.view(np.uint32)
    # Half of what is cut off, less one bit unless the last kept bit is odd: ties go to even.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN whose kept bits are all zero would read as infinity
    return np.where(np.isnan(numbers), quiet, rounded)


def _plain(
    name: str,
    kind: Literal["float", "integer", "bool"],
    accumulator: str = "",
    weights: bool = False,
) -> DType:
    """A type that NumPy has under the same name."""
    storage = np.dtype(name)
    eps = float(np.finfo(storage).eps) if kind == "float" else None
    return DType(name, storage, kind, accumulator or name, eps=eps, weights=weights)


FLOAT32 = _plain("float32", "float", weights=True)

DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        FLOAT32,
        DType(
            "bfloat16",
            np.dtype(np.uint16),
            "float",
            "float32",
            _bfloat16_to_float32,
            _float32_to_bfloat16,
            eps=2.0**-7,
            weights=True,
        ),
        _plain("float64", "float"),
        _plain("int64", "integer"),
        _plain("int32", "integer"),
        _plain("int8", "integer", "int32", weights=True),
        _plain("uint8", "integer", "int32"),
        _plain("bool", "bool"),
    )
}

# Types that NumPy arrays are of as they stand.
_NATIVE = {row.storage: row for row in DTYPES.values() if row.native}


def dtype_of(storage: Any) -> DType:
    """Returns the row of a NumPy dtype, or of an array's.

    Raises:
        ValueError: no type of the table is stored so by itself.
    """
    found = storage.dtype if isinstance(storage, np.ndarray) else np.dtype(storage)
    if found not in _NATIVE:
        raise ValueError(f"dtype {found} is not one of {', '.join(row.name for row in _NATIVE.values())}; convert it")
    return _NATIVE[found]


def dtype_named(name: Any) -> DType:
    """Returns the row of a name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True, eq=False)
class Quantization:
    """How integers stand for real numbers: `real = (stored - zero_point) * scale`.

    Attributes:
        scale: float32, positive and finite; a number of no dimensions, or `[C]` along `axis`.
        zero_point: int32 of the same shape; the stored integer that stands for 0.
        axis: the dimension that `[C]` runs along; None for one scale of the whole tensor.

    Raises:
        ValueError: a scale that is not positive, or shapes that do not fit each other.
    """

    scale: Float32Array
    zero_point: npt.NDArray[np.int32]
    axis: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", np.array(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.array(self.zero_point, np.int32))
        if self.scale.ndim != (self.axis is not None) or self.zero_point.shape != self.scale.shape:
            raise ValueError(
                f"scale has shape {self.scale.shape} and zero point {self.zero_point.shape}; expected a number each, "
                "or one of each per channel along an axis"
            )
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"scale is {self.scale}; expected positive finite numbers")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quantization):
            return NotImplemented
        same = np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)
        return self.axis == other.axis and same

    def __hash__(self) -> int:
        return hash((self.scale.tobytes(), self.zero_point.tobytes(), self.axis))

    def _along(self, numbers: Array, ndim: int) -> Array:
        """Scale or zero point, shaped to meet a tensor of so many dimensions."""
        if self.axis is None:
            return numbers
        return numbers.reshape([-1 if axis == self.axis else 1 for axis in range(ndim)])

    def dequantize(self, stored: Array) -> Float32Array:
        """Returns real numbers, computed in float32."""
        offset = stored.astype(np.int32) - self._along(self.zero_point, stored.ndim)
        return np.asarray(offset.astype(np.float32) * self._along(self.scale, stored.ndim), np.float32)

    def quantize(self, real: Array, dtype: DType) -> Array:
        """Returns `clamp(round_to_nearest_even(real * (1 / scale)) + zero_point)`, the product taken in float32.

        The inverse of the scale is rounded to float32 once, as PyTorch's `quantize_per_tensor` does.
        """
        inverse = (1.0 / self.scale.astype(np.float64)).astype(np.float32)
        with np.errstate(over="ignore"):
            scaled = np.asarray(real, np.float32) * self._along(inverse, np.ndim(real))
        whole = np.rint(scaled.astype(np.float64)) + self._along(self.zero_point, np.ndim(real))
        return dtype.from_float(whole)


@dataclass(frozen=True)
class ValueType:
    """What the elements of a tensor are.

    Raises:
        ValueError: a quantization of something other than integers, or a zero point beyond them.
    """

    dtype: DType
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is None:
            return
        low, high = self.dtype.range
        zero = self.quantization.zero_point
        if zero.size and not (low <= zero.min() and zero.max() <= high):
            raise ValueError(f"zero point {zero} is beyond {self.dtype.name}, {low} to {high}")

    @property
    def plain(self) -> bool:
        """Whether a NumPy array of the storage dtype says it all."""
        return self.dtype.native and self.quantization is None

    def to_float(self, stored: Array) -> Float32Array:
        """Returns the real numbers that stored elements stand for, in float32."""
        return self.dtype.to_float(stored) if self.quantization is None else self.quantization.dequantize(stored)

    def from_float(self, real: Array) -> Array:
        """Returns real numbers as stored elements."""
        return (
            self.dtype.from_float(real) if self.quantization is None else self.quantization.quantize(real, self.dtype)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns `{"dtype", "scale", "zero_point"}`, the last two where it is quantized; `from_json` reads it.

        Raises:
            ValueError: it is quantized per channel, which a constant alone can be.
        """
        described: dict[str, Any] = {"dtype": self.dtype.name}
        if self.quantization is not None:
            if self.quantization.axis is not None:
                raise ValueError("a value that is computed has one scale; only constants have one per channel")
            described["scale"] = float(self.quantization.scale)
            described["zero_point"] = int(self.quantization.zero_point)
        return described

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ValueType:
        """Reads what `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: it did not.
        """
        dtype = dtype_named(data["dtype"])
        if "scale" not in data and "zero_point" not in data:
            return cls(dtype)
        scale, zero = data["scale"], data["zero_point"]
        if type(scale) not in (float, int) or type(zero) is not int or abs(zero) >= 1 << 31 or not 0 < scale < 1e38:
            raise ValueError(f"scale {scale!r} and zero point {zero!r} are no positive number and integer")
        return cls(dtype, Quantization(np.array(scale, np.float32), np.array(zero, np.int32)))

    def __str__(self) -> str:
        q = self.quantization
        if q is None:
            return self.dtype.name
        many = "per channel" if q.axis is not None else f"scale {float(q.scale):.4g}, zero point {int(q.zero_point)}"
        return f"{self.dtype.name} ({many})"


@dataclass(frozen=True, eq=False)
class TypedArray:
    """A constant that a NumPy array alone does not describe: bfloat16, or quantized.

    Raises:
        TypeError: `values` is no array of the type's storage.
        ValueError: scales per channel that do not fit its shape.
    """

    values: Array
    type: ValueType

    def __post_init__(self) -> None:
        storage = self.type.dtype.storage
        if not isinstance(self.values, np.ndarray) or self.values.dtype != storage:
            found = getattr(self.values, "dtype", type(self.values).__name__)
            raise TypeError(f"values are {found}; {self.type.dtype.name} is stored as a NumPy array of {storage}")
        q = self.type.quantization
        if q is not None and q.axis is not None:
            fits = 0 <= q.axis < self.values.ndim and self.values.shape[q.axis] == len(q.scale)
            if not fits:
                raise ValueError(f"{len(q.scale)} scales along axis {q.axis} do not fit shape {self.values.shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def to_float(self) -> Float32Array:
        """Returns the real numbers in float32."""
        return self.type.to_float(self.values)


def type_of(value: Any) -> ValueType:
    """Returns the type of an array or a `TypedArray`.

    Raises:
        ValueError: an array of a dtype that is not in the table.
    """
    return value.type if isinstance(value, TypedArray) else ValueType(dtype_of(value))


def as_type(value: Any) -> ValueType:
    """Returns a `ValueType` from one, from a `DType`, a name, or a NumPy dtype.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(value, ValueType):
        return value
    if isinstance(value, DType):
        return ValueType(value)
    return ValueType(dtype_named(value) if isinstance(value, str) else dtype_of(np.dtype(value)))
