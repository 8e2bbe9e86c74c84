"""What operators share about arguments: types of values, sizes with bounds, axes, dtypes of results."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt

from subp_ext.dtypes import TypedArray
from subp_ext.sparse import UniformBlockSparse
from subp_ext.tensor import Tensor

Number = bool | int | float
Operand = npt.NDArray[Any] | bool | int | float  # a tensor, or a number that meets all its elements
Ints = int | Sequence[int]

# Pairs of elements that an operator may relate to each other in memory of its own.
MAX_PAIRS = 1 << 30

_TENSORS = (np.ndarray, Tensor, TypedArray, UniformBlockSparse)
_LITERALS = (type(None), bool, int, float, str, list, tuple, np.generic)


def fits(value: Any, hint: Any) -> bool:
    """Whether the value of a node's argument is of an annotated type; what is neither data nor tensor fits any."""
    origin = origin_of(hint)
    if hint is Any or not isinstance(value, (*_TENSORS, *_LITERALS)):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in get_args(hint))
    if isinstance(value, _TENSORS):
        return (origin or hint) in (np.ndarray, UniformBlockSparse)
    if isinstance(value, (list, tuple)):
        sequence = isinstance(origin or hint, type) and issubclass(origin or hint, Sequence) and hint is not str
        (element, *_) = get_args(hint) or (Any,)
        return sequence and all(fits(item, element) for item in value)
    if hint is float:
        return isinstance(value, (float, int, np.number))
    if hint is int:
        return isinstance(value, (int, np.integer))
    return isinstance(value, hint) if isinstance(hint, type) else False


def origin_of(hint: Any) -> Any:
    """As `typing.get_origin`, through aliases, of which NumPy 2.5 makes one of `NDArray` on Python 3.12 and later."""
    origin = get_origin(hint)
    return get_origin(origin.__value__) if hasattr(origin, "__value__") else origin


def describe(hint: Any) -> str:
    """An annotated type in words."""
    origin = origin_of(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(choice) for choice in get_args(hint)))
    if (origin or hint) in (np.ndarray, UniformBlockSparse):
        return "a tensor"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each element {describe((get_args(hint) or (Any,))[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", type(None): "None"}
    return names.get(hint, "a value")


def pair(value: Any, default: Any = None) -> tuple[Any, Any]:
    """(height, width) from one number or a list of one or two; `default` in place of None or an empty list."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or values == (None,):
        return pair(default) if default is not None else (None, None)
    return values[0], values[-1]


def repeated(value: Any, count: int) -> tuple[Any, ...]:
    """One value per dimension, from a number or a list of one or `count`."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * count if len(values) == 1 else values


def sizes(values: Any, most: int | None = None) -> tuple[int, ...]:
    """A shape from an argument, or what windows are described by, with a bound that keeps their sums in range.

    Raises:
        ValueError: one of the sizes is negative, not a whole number, or more than `most`.
    """
    found = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    if not all(isinstance(size, (int, np.integer)) and size >= 0 and (most is None or size <= most) for size in found):
        expected = "at least 0" if most is None else f"0 to {most}"
        raise ValueError(f"sizes are {values}; expected whole numbers of {expected}")
    return tuple(int(size) for size in found)


def axes(dim: Any, ndim: int) -> tuple[int, ...]:
    """Returns non-negative axes from a number, a list, or None or [] for all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(ndim))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(int(d) % ndim if ndim else 0 for d in dims)


def astype(array: npt.NDArray[Any], dtype: str | None) -> npt.NDArray[Any]:
    """Returns the array in the named dtype; None keeps its own."""
    return array if dtype is None else array.astype(dtype)


def like_torch(result: Any, *operands: Any) -> Any:
    """Applies torch's promotion: floating results are float32 unless a tensor among the operands is float64.

    Numbers alone stay numbers, so that sizes computed in the graph remain integers.
    """
    if not any(isinstance(operand, np.ndarray) for operand in operands):
        return result.item() if isinstance(result, np.generic) else result
    result = np.asarray(result)
    wide = any(isinstance(operand, np.ndarray) and operand.dtype == np.float64 for operand in operands)
    return result.astype(np.float32) if result.dtype == np.float64 and not wide else result


def arrays_in(value: Any) -> list[npt.NDArray[Any]]:
    """Every array in an argument, nested ones too."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays_in(item)]
    return [array for item in value.values() for array in arrays_in(item)] if isinstance(value, dict) else []


def refuse_training(argument: str, value: Any) -> None:
    """Refuses what a layer does in training alone.

    Raises:
        ValueError: the argument is set.
    """
    if value:
        raise ValueError(f"{argument} is {value}, as in training; export the model in evaluation mode")
