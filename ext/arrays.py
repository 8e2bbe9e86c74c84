"""Arrays where a session meets its caller: inputs, which are checked, and results, which are the caller's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.dtypes import TypedArray, ValueType
from subp_ext.graph import TensorSpec
from subp_ext.tensor import Tensor


def check_input(value: Any, spec: TensorSpec) -> np.ndarray:
    """The input as an array.

    Raises:
        ValueError: its shape or dtype does not fit; the message says what to do about the usual reasons.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"input {spec.name!r} is no array: {error}") from error
    if array.dtype.kind not in "biufc" and not isinstance(value, np.ndarray):
        raise ValueError(f"input {spec.name!r} is a {type(value).__name__}; expected a {spec.dtype} array")
    if not _fits(array.shape, spec.shape):
        expected = "[" + ", ".join("any" if size is None else str(size) for size in spec.shape) + "]"
        hint = ""
        if _fits((1, *array.shape), spec.shape):
            hint = f"; a single image needs a batch dimension: {spec.name}[None]"
        elif array.ndim == 4 and _fits((array.shape[0], array.shape[3], *array.shape[1:3]), spec.shape):
            hint = f"; these are channels last; pass {spec.name}.transpose(0, 3, 1, 2)"
        raise ValueError(f"input {spec.name!r} has shape {list(array.shape)}; expected {expected}{hint}")
    if 0 in array.shape[1:]:
        raise ValueError(
            f"input {spec.name!r} has shape {list(array.shape)}, which is empty; expected a batch of 1 or more"
        )
    dtype = spec.type.dtype
    # bfloat16 is given as float32.
    wanted = dtype.storage if dtype.native else np.dtype(np.float32)
    if wanted.kind == "f" and array.dtype.kind in "biu":
        raise ValueError(
            f"input {spec.name!r} is {array.dtype}; expected {wanted}: normalise it first, as in training "
            "(scale to 0..1, subtract the mean, divide by the standard deviation)"
        )
    if array.dtype != wanted and (wanted.kind != "f" or array.dtype.kind != "f"):
        raise ValueError(f"input {spec.name!r} is {array.dtype}; expected {wanted}")
    if array.dtype.kind == "f" and array.dtype.itemsize > wanted.itemsize and _overflows(array, wanted):
        raise ValueError(
            f"input {spec.name!r} is {array.dtype} with numbers beyond the range of {wanted}, "
            f"{np.finfo(wanted).max:.3g}; expected smaller ones, or inf"
        )
    return array if dtype.native else dtype.from_float(array)


def _overflows(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a finite number would become infinite in the dtype."""
    return bool((np.isinf(array.astype(dtype)) & np.isfinite(array)).any())


def shown_like(output: Any) -> np.ndarray:
    """An array of the form in which the caller gets an output of a plan."""
    if isinstance(output, Tensor):
        return output.view if output.type.dtype.native else np.broadcast_to(np.float32(0), output.view.shape)
    return shown(output, None)


def shown(array: Any, type: ValueType | None) -> np.ndarray:
    """A result as the caller's own array, in C order; bfloat16 as float32."""
    if isinstance(array, TypedArray):
        array, type = array.values, array.type
    if type is not None and not type.dtype.native:
        return type.dtype.to_float(array)
    return np.array(array, order="C")


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(b in (None, a) for a, b in zip(found, wanted, strict=True))
