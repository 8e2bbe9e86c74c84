"""A value of a run before the run, and what operators and the planner ask of arguments that hold some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext.dtypes import FLOAT32, Array, TypedArray, ValueType, dtype_of
from subp_ext.memory import Buffer
from subp_ext.sparse import UniformBlockSparse

At = Callable[[Any], Any]
Call = Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of a run before the run.

    Attributes:
        buffer: the memory it lives in.
        view: an array of its shape, strides and storage, whose numbers mean nothing.
        start: where in the buffer its first element is, in bytes.
        type: of its elements.
    """

    buffer: Buffer
    view: Array
    start: int = 0
    type: ValueType = ValueType(FLOAT32)

    @property
    def whole(self) -> bool:
        """Whether it is all of its buffer, in C order."""
        return self.start == 0 and self.view.flags.c_contiguous and self.view.nbytes == self.buffer.nbytes


def type_of(value: Tensor | Array) -> ValueType:
    """The type of a tensor of the run, or of a plain array."""
    return value.type if isinstance(value, Tensor) else ValueType(dtype_of(value))


def tensors_in(value: Any) -> list[Tensor]:
    """Every Tensor in an argument, nested ones too."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def as_meta(value: Any) -> Any:
    """The argument with an array of the same form in place of each Tensor, sparse weight and typed constant."""
    if isinstance(value, Tensor):
        return value.view
    if isinstance(value, (UniformBlockSparse, TypedArray)):
        return np.broadcast_to(np.zeros((), np.float32), value.shape)
    if isinstance(value, dict):
        return {name: as_meta(item) for name, item in value.items()}
    return [as_meta(item) for item in value] if isinstance(value, (list, tuple)) else value
