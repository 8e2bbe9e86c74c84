"""What an operator will return, without computing it: memory is planned by it, and absurd sizes are refused by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.operators.arguments import arrays_in, axes
from subp_ext.operators.record import ELEMENTWISE, OPERATORS, STORAGE_ARGS, MetaTensor, Operator, Rule, Spec

# Pieces that one node may cut a tensor into.
MAX_PIECES = 1 << 14


def infer(op: str, args: dict[str, Any]) -> Spec | list[Spec]:
    """Returns shape and dtype of each result of an operator whose rule is neither VIEW nor NUMBER.

    Args:
        op: a name in `OPERATORS`.
        args: those of the reference, with arrays or meta tensors for tensors.

    Raises:
        ValueError, TypeError, IndexError, KeyError: the arguments do not fit each other.
    """
    record = OPERATORS[op]
    args = {name: value for name, value in args.items() if name not in STORAGE_ARGS}
    if not isinstance(record.shape, Rule):
        found: Spec | list[Spec] = record.shape(**args)
        return found
    return _elementwise(record, args) if record.shape is ELEMENTWISE else dry_run(record, args)


def like(array: MetaTensor) -> Spec:
    """The form of an array."""
    return array.shape, array.dtype


def of_shape(shape: tuple[int, ...], dtype: Any = np.float32) -> MetaTensor:
    """A meta tensor, of any size."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def check_pieces(op: str, args: dict[str, Any]) -> None:
    """Refuses to cut a tensor into more pieces than a network has any use for.

    Raises:
        ValueError: it would.
    """
    if op in ("split", "chunk", "unbind"):
        (dim,), size = axes(args.get("dim", 0), args["self"].ndim), args.get("split_size", 1)
        count = args["chunks"] if op == "chunk" else args["self"].shape[dim] / (size if isinstance(size, int) else 1)
        if count > MAX_PIECES:
            raise ValueError(f"{args['self'].shape[dim]} elements in pieces of {size}: more than {MAX_PIECES} pieces")


def _small(value: Any) -> Any:
    """The argument with one element in place of every array."""
    if isinstance(value, np.ndarray):
        return np.ones((1,) * value.ndim, value.dtype)
    return [_small(item) for item in value] if isinstance(value, (list, tuple)) else value


def _elementwise(record: Operator, args: dict[str, Any]) -> Spec:
    with np.errstate(all="ignore"):
        result = np.asarray(record.reference(**{name: _small(value) for name, value in args.items()}))
    return np.broadcast_shapes(*(array.shape for array in arrays_in(args))), result.dtype


def _zeros(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return of_shape(value.shape, value.dtype)
    return [_zeros(item) for item in value] if isinstance(value, (list, tuple)) else value


def dry_run(record: Operator, args: dict[str, Any]) -> Spec | list[Spec]:
    """What the reference returns on zeros."""
    with np.errstate(all="ignore"):
        result = record.reference(**{name: _zeros(value) for name, value in args.items()})
    return [like(part) for part in result] if isinstance(result, (list, tuple)) else like(result)
