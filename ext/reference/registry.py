"""The table of operators, and the dtype rules they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

REFERENCE: dict[str, Callable[..., Any]] = {}

# Schema arguments that say where and how a framework stores a tensor: without meaning here.
STORAGE_ARGS = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit")


def register(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Puts a function into `REFERENCE` under each name."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(**args: Any) -> Any:
            return function(**{name: value for name, value in args.items() if name not in STORAGE_ARGS})

        for name in names:
            assert name not in REFERENCE, name
            REFERENCE[name] = run
        return function

    return add


def like_torch(result: Any, *operands: Any) -> Any:
    """Applies torch's promotion: floating results are float32 unless a tensor among the operands is float64.

    Numbers alone stay numbers, so that sizes computed in the graph remain integers.
    """
    if not any(isinstance(operand, np.ndarray) for operand in operands):
        return result.item() if isinstance(result, np.generic) else result
    result = np.asarray(result)
    wide = any(isinstance(operand, np.ndarray) and operand.dtype == np.float64 for operand in operands)
    return result.astype(np.float32) if result.dtype == np.float64 and not wide else result


def axes(dim: Any, ndim: int) -> tuple[int, ...]:
    """Returns non-negative axes from a number, a list, or None or [] for all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(ndim))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(int(d) % ndim if ndim else 0 for d in dims)


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """Returns the array in the named dtype; None keeps its own."""
    return array if dtype is None else array.astype(dtype)
