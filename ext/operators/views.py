"""Views: operators that return parts of what they are given, and those that ask for its size alone."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import Ints, Number, axes, refuse_training
from subp_ext.operators.record import NUMBER, VIEW, operator


@operator("view", "_unsafe_view", shape=VIEW)
def view(self: Array, size: Sequence[int]) -> Array:
    return self.reshape(size)


@operator("reshape", shape=VIEW)
def reshape(self: Array, shape: Sequence[int]) -> Array:
    return self.reshape(shape)


@operator("flatten", shape=VIEW)
def flatten(self: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    start, end = axes([start_dim, end_dim], self.ndim)
    return self.reshape(*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :])


@operator("unflatten", shape=VIEW)
def unflatten(self: Array, dim: int, sizes: Sequence[int]) -> Array:
    (dim,) = axes(dim, self.ndim)
    return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])


@operator("squeeze", shape=VIEW)
def squeeze(self: Array, dim: Ints | None = None) -> Array:
    """Without `dim` drops every dimension of size 1; those named that are larger stay."""
    return self.squeeze(axis=tuple(d for d in axes(dim, self.ndim) if self.shape[d] == 1))


@operator("unsqueeze", shape=VIEW)
def unsqueeze(self: Array, dim: int) -> Array:
    return np.expand_dims(self, dim)


@operator("expand", shape=VIEW)
def expand(self: Array, size: Sequence[int]) -> Array:
    own = (1,) * (len(size) - self.ndim) + self.shape
    return np.broadcast_to(self, [o if s == -1 else s for o, s in zip(own, size, strict=True)])


@operator("expand_as", shape=VIEW)
def expand_as(self: Array, other: Array) -> Array:
    return np.broadcast_to(self, other.shape)


@operator("permute", shape=VIEW)
def permute(self: Array, dims: Sequence[int]) -> Array:
    return self.transpose(dims)


@operator("transpose", shape=VIEW)
def transpose(self: Array, dim0: int, dim1: int) -> Array:
    return self.swapaxes(dim0, dim1)


@operator("t", "numpy_T", shape=VIEW)
def t(self: Array) -> Array:
    return self.T


@operator("contiguous", "clone", "alias", "detach", "detach_copy", "lift_fresh_copy", "lift_fresh", shape=VIEW)
def identity(self: Array) -> Array:
    return self


@operator("split", shape=VIEW)
def split(self: Array, split_size: int | Sequence[int], dim: int = 0) -> list[Array]:
    if not isinstance(split_size, int):
        return split_with_sizes(self, split_size, dim)
    return np.split(self, range(split_size, self.shape[dim], split_size), axis=dim)


@operator("split_with_sizes", shape=VIEW)
def split_with_sizes(self: Array, split_sizes: Sequence[int], dim: int = 0) -> list[Array]:
    return np.split(self, np.cumsum(split_sizes)[:-1], axis=dim)


@operator("chunk", shape=VIEW)
def chunk(self: Array, chunks: int, dim: int = 0) -> list[Array]:
    return split(self, max(1, -(-self.shape[dim] // chunks)), dim)


@operator("unbind", shape=VIEW)
def unbind(self: Array, dim: int = 0) -> list[Array]:
    return list(np.moveaxis(self, dim, 0))


@operator("getitem", shape=VIEW)
def getitem(self: Any, index: int) -> Any:
    return self[index]


@operator("slice", shape=VIEW)
def slice_(self: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    cut: list[Any] = [slice(None)] * self.ndim
    cut[dim] = slice(start, end, step)
    return self[tuple(cut)]


@operator("narrow", shape=VIEW)
def narrow(self: Array, dim: int, start: int, length: int) -> Array:
    (start,) = axes(start, self.shape[dim])
    return slice_(self, dim, start, start + length)


@operator("flip", shape=VIEW)
def flip(self: Array, dims: Sequence[int]) -> Array:
    return np.flip(self, tuple(dims))


@operator("unfold", shape=VIEW)
def unfold(self: Array, dimension: int, size: int, step: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(self, size, axis=dimension)
    return slice_(windows, dimension % self.ndim, step=step)


@operator("dropout", "feature_dropout", "alpha_dropout", shape=VIEW)
def dropout(input: Array, p: float = 0.5, train: bool = False) -> Array:
    refuse_training("train", train)
    return input


@operator("sym_size", shape=NUMBER)
def sym_size(self: Array, dim: int) -> int:
    return self.shape[dim]


@operator("sym_numel", "numel", shape=NUMBER)
def sym_numel(self: Array) -> int:
    return self.size


@operator("sym_max", shape=NUMBER)
def sym_max(self: Number, other: Number) -> Number:
    return max(self, other)


@operator("sym_min", shape=NUMBER)
def sym_min(self: Number, other: Number) -> Number:
    return min(self, other)


@operator("sym_ceil", shape=NUMBER)
def sym_ceil(self: Number) -> int:
    return math.ceil(self)


@operator("sym_floor", shape=NUMBER)
def sym_floor(self: Number) -> int:
    return math.floor(self)


@operator("sym_trunc", shape=NUMBER)
def sym_trunc(self: Number) -> int:
    return math.trunc(self)


@operator("sym_float", shape=NUMBER)
def sym_float(self: Number) -> float:
    return float(self)


@operator(
    "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size", shape=NUMBER
)
def no_effect(**args: Any) -> None:
    """Checks of the exporting framework, already true for the graph it wrote."""
