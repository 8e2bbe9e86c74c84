"""Joins, repetitions and copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, as_type
from subp_ext.operators.arguments import Ints, astype, axes, refuse_training, sizes
from subp_ext.operators.record import DRY_RUN, ELEMENTWISE, Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.tensor import At, Call, Tensor, as_meta, type_of

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _cat_spec(tensors: Sequence[MetaTensor], dim: int = 0) -> Spec:
    joined = [x for x in tensors if x.shape != (0,)] or tensors
    (axis,) = axes(dim, joined[0].ndim)
    rests = {(*x.shape[:axis], *x.shape[axis + 1 :]) for x in joined}
    if len(rests) != 1:
        raise ValueError(f"tensors of shapes {[list(x.shape) for x in joined]} do not join along dimension {dim}")
    shape = (*joined[0].shape[:axis], sum(x.shape[axis] for x in joined), *joined[0].shape[axis + 1 :])
    return shape, np.result_type(*tensors)


def _lower_cat(planner: Planner, op: str, *, tensors: list[Any], dim: int = 0) -> Lowered | Unsupported:
    """Joins; where the parts lie one after the other in memory, they are computed there (`Planner`)."""
    tensors = [x for x in tensors if as_meta(x).shape != (0,)]
    shape, _ = _cat_spec([as_meta(x) for x in tensors], dim)
    type = type_of(tensors[0])
    if any(type_of(x) != type for x in tensors):
        return Unsupported("parts of several types")
    axis, out = dim % len(shape), planner.empty(shape, type)
    if math.prod(shape[:axis]) == 1 and all(isinstance(x, Tensor) for x in tensors):
        parts = [planner.contiguous(x) for x in tensors]
        planner.step(op, "numpy", "copies", _unplanned, parts, [out], concatenates=True)
        return Lowered(out)

    def bind(at: At) -> Call:
        whole, sources = at(out), at(tensors)
        ends = np.cumsum([source.shape[axis] for source in sources])
        targets = np.split(whole, ends[:-1], axis=axis)

        def call() -> None:
            for target, source in zip(targets, sources, strict=True):
                np.copyto(target, source)

        return call

    planner.step(op, "numpy", "copies: the parts are not next to each other in memory", bind, tensors, [out])
    return Lowered(out)


def _unplanned(at: At) -> Call:
    raise AssertionError("the planner binds joints, when it knows which parts are in place")


@operator("cat", "concat", shape=_cat_spec, lower=_lower_cat)
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    # ATen lets an empty 1-d tensor join anything.
    return np.concatenate([x for x in tensors if x.shape != (0,)] or tensors, axis=dim)


def _stack_spec(tensors: Sequence[MetaTensor], dim: int = 0) -> Spec:
    shape = list(tensors[0].shape)
    if any(list(x.shape) != shape for x in tensors):
        raise ValueError(f"tensors of shapes {[list(x.shape) for x in tensors]} do not stack")
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape), np.result_type(*tensors)


@operator("stack", shape=_stack_spec)
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    return np.stack(tensors, axis=dim)


def _repeat_spec(self: MetaTensor, repeats: Any) -> Spec:
    counts = sizes(repeats)
    rank = max(len(counts), self.ndim)
    counts, own = (1,) * (rank - len(counts)) + counts, (1,) * (rank - self.ndim) + self.shape
    return tuple(n * size for n, size in zip(counts, own, strict=True)), self.dtype


@operator("repeat", shape=_repeat_spec)
def repeat(self: Array, repeats: Sequence[int]) -> Array:
    return np.tile(self, repeats)


def _interleave_spec(self: MetaTensor, repeats: Any, dim: int | None = None, output_size: Any = None) -> Spec:
    shape = (self.size,) if dim is None else self.shape
    (axis,) = axes(dim or 0, len(shape))
    (count,) = sizes(repeats)
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :]), self.dtype


@operator("repeat_interleave", shape=_interleave_spec)
def repeat_interleave(
    self: Array, repeats: Ints | Array, dim: int | None = None, output_size: int | None = None
) -> Array:
    return np.repeat(self, repeats, axis=dim)


@operator("roll", shape=DRY_RUN)
def roll(self: Array, shifts: Any, dims: Any = ()) -> Array:
    axis = None if dims is None or dims == [] or dims == () else dims
    return np.roll(self, shifts, axis=tuple(axis) if isinstance(axis, list) else axis)


@operator("tril", shape=DRY_RUN)
def tril(self: Array, diagonal: int = 0) -> Array:
    return np.tril(self, diagonal)


@operator("triu", shape=DRY_RUN)
def triu(self: Array, diagonal: int = 0) -> Array:
    return np.triu(self, diagonal)


def _meshgrid_spec(tensors: Sequence[MetaTensor], indexing: str = "ij") -> list[Spec]:
    shape = [x.size for x in tensors]
    if indexing == "xy" and len(shape) > 1:
        shape[:2] = shape[1::-1]
    return [(tuple(shape), x.dtype) for x in tensors]


@operator("meshgrid", shape=_meshgrid_spec)
def meshgrid(tensors: Sequence[Array], indexing: Any = "ij") -> list[Array]:
    return list(np.meshgrid(*tensors, indexing=indexing))


@operator("native_dropout", shape=DRY_RUN)
def native_dropout(input: Array, p: float = 0.5, train: bool | None = False) -> tuple[Array, Array]:
    refuse_training("train", train)
    return input, np.ones(input.shape, bool)


def _lower_to(planner: Planner, op: str, *, self: Any, dtype: str | None = None, **rest: Any) -> Lowered | Unsupported:
    same = isinstance(self, Tensor) and (dtype is None or self.type == as_type(dtype))
    return Lowered(self) if same else Unsupported("another dtype")


@operator("_to_copy", "to", shape=ELEMENTWISE, lower=_lower_to)
def to_copy(self: Array, dtype: str | None = None, copy: bool = False) -> Array:
    return astype(self, dtype)


def _type_as_spec(self: MetaTensor, other: MetaTensor) -> Spec:
    return self.shape, other.dtype


@operator("type_as", shape=_type_as_spec)
def type_as(self: Array, other: Array) -> Array:
    return self.astype(other.dtype)
