"""Indexing: selections, look-ups, and copies with a part replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import axes
from subp_ext.operators.record import DRY_RUN, MetaTensor, Spec, operator
from subp_ext.operators.views import slice_


def _select_spec(self: MetaTensor, dim: int, index: int) -> Spec:
    (axis,) = axes(dim, self.ndim)
    if not -self.shape[axis] <= index < self.shape[axis]:
        raise ValueError(f"index {index} is out of bounds for dimension {dim} of {list(self.shape)}")
    return (*self.shape[:axis], *self.shape[axis + 1 :]), self.dtype


@operator("select", shape=_select_spec)
def select(self: Array, dim: int, index: int) -> Array:
    return np.asarray(self.take(index, axis=dim))


def _index_select_spec(self: MetaTensor, dim: int, index: Any) -> Spec:
    (axis,) = axes(dim, self.ndim)
    return (*self.shape[:axis], index.size, *self.shape[axis + 1 :]), self.dtype


@operator("index_select", shape=_index_select_spec)
def index_select(self: Array, dim: int, index: Array) -> Array:
    return self.take(index.reshape(-1), axis=dim)


def _index_spec(self: MetaTensor, indices: Sequence[MetaTensor]) -> Spec:
    if any(i is not None and i.dtype.kind == "b" for i in indices):
        raise ValueError("indexing with a mask that depends on the input has no size of its own")
    source = np.broadcast_to(np.zeros((), self.dtype), self.shape)
    given = [i for i in indices if i is not None]
    places = [k for k, i in enumerate(indices) if i is not None]
    joined = np.broadcast_shapes(*(i.shape for i in given))
    rest = [n for k, n in enumerate(source.shape) if k not in places]
    # NumPy: what indices that stand together select stays in their place, else it comes first.
    at = places[0] if places == list(range(places[0], places[0] + len(places))) else 0
    return (*rest[:at], *joined, *rest[at:]), self.dtype


@operator("index", shape=_index_spec)
def index(self: Array, indices: list[Array | None]) -> Array:
    """Indexes with arrays, bool or integer; None keeps a whole dimension."""
    return np.asarray(self[tuple(slice(None) if i is None else i for i in indices)])


@operator("gather", shape=DRY_RUN)
def gather(self: Array, dim: int, index: Array, sparse_grad: bool = False) -> Array:
    inner = tuple(slice(size) if axis != dim % self.ndim else slice(None) for axis, size in enumerate(index.shape))
    return np.take_along_axis(self[inner], index, axis=dim)


def _embedding_spec(weight: MetaTensor, indices: MetaTensor, **rest: Any) -> Spec:
    return (*indices.shape, *weight.shape[1:]), weight.dtype


@operator("embedding", shape=_embedding_spec)
def embedding(
    weight: Array, indices: Array, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Array:
    return weight[indices]


@operator("slice_scatter", shape=DRY_RUN)
def slice_scatter(
    self: Array, src: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    """A copy with `src` in the place of the slice."""
    result = self.copy()
    slice_(result, dim, start, end, step)[...] = src
    return result


@operator("select_scatter", shape=DRY_RUN)
def select_scatter(self: Array, src: Array, dim: int, index: int) -> Array:
    """A copy with `src` in the place of what `select` returns."""
    return slice_scatter(self, np.expand_dims(src, dim), dim, index, index + 1 or None)


def _topk_spec(self: MetaTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> list[Spec]:
    (axis,) = axes(dim, self.ndim)
    if not self.ndim or not 0 <= k <= self.shape[axis]:
        raise ValueError(f"k is {k}; expected 0 to the size of dimension {dim} of {list(self.shape)}")
    shape = (*self.shape[:axis], k, *self.shape[axis + 1 :])
    return [(shape, self.dtype), (shape, np.dtype(np.int64))]


@operator("topk", shape=_topk_spec)
def topk(self: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Array, Array]:
    """The k largest or smallest elements in order, and where they are; NaN counts as larger than any number.

    Of equal elements that of the lower index comes first, and they are always sorted; torch promises neither.
    """
    if largest:  # a stable order from the end, read backwards
        backwards = np.argsort(np.flip(self, dim), axis=dim, kind="stable")
        order = self.shape[dim] - 1 - np.flip(backwards, dim)
    else:
        order = np.argsort(self, axis=dim, kind="stable")
    places = np.take(order, np.arange(k), axis=dim)
    return np.take_along_axis(self, places, axis=dim), places
