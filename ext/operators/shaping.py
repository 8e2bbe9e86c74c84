"""Joins, repetitions, padding and copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, as_type
from subp_ext.operators.arguments import Ints, astype, axes, refuse_training, sizes
from subp_ext.operators.record import DRY_RUN, ELEMENTWISE, Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.operators.shape_inference import of_shape
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


def _pad_spec(self: MetaTensor, pad: Any = None, padding: Any = None, **rest: Any) -> Spec:
    amounts, shape = pad if padding is None else padding, list(self.shape)
    for i in range(len(amounts) // 2):
        shape[-1 - i] += amounts[2 * i] + amounts[2 * i + 1]
    return sizes(shape), self.dtype


def _lower_pad(
    planner: Planner, op: str, *, self: Any, pad: Any, mode: str = "constant", value: float | None = None
) -> Lowered | Unsupported:
    """With a constant: the frame is filled in and the middle copied. What is stored of a real number is by its type."""
    if mode != "constant" or not isinstance(self, Tensor):
        return Unsupported(f"mode {mode} has no kernel" if mode != "constant" else "a known tensor")
    shape, _ = _pad_spec(self.view, pad)
    planner.check_room(shape, self.type)
    inner, outer = _overlap(self.view.shape, pad)
    if self.view[inner].shape != of_shape(shape)[outer].shape:
        return Unsupported("it cuts off more than there is")
    out = planner.empty(shape, self.type)
    fill = (value or 0) if self.type.plain else self.type.from_float(np.array(value or 0.0, np.float32))

    def bind(at: At) -> Call:
        source, target = at(self)[inner], at(out)
        middle = target[outer]

        def call() -> None:
            target.fill(fill)
            np.copyto(middle, source)

        return call

    planner.step(op, "numpy", "copies", bind, [self], [out])
    return Lowered(out)


def _overlap(shape: Sequence[int], pad: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a tensor that stays when it is padded, and where it is in the result."""
    pairs = [(0, 0)] * (len(shape) - len(pad) // 2) + [
        (pad[i], pad[i + 1]) for i in range(len(pad) // 2 * 2 - 2, -1, -2)
    ]
    inner = [slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, shape, strict=True)]
    outer = [slice(max(b, 0), n + b + a - max(a, 0)) for (b, a), n in zip(pairs, shape, strict=True)]
    return tuple(inner), tuple(outer)


_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@operator("pad", shape=_pad_spec, lower=_lower_pad)
def pad(self: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    """Pads from the last dimension backwards, (before, after) each; a negative number cuts."""
    pairs = [(0, 0)] * self.ndim
    for i in range(len(pad) // 2):
        pairs[-1 - i] = (pad[2 * i], pad[2 * i + 1])
    keep = tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, self.shape, strict=True))
    grow = [(max(b, 0), max(a, 0)) for b, a in pairs]
    if mode == "constant":
        return np.pad(self[keep], grow, constant_values=value or 0)
    return np.pad(self[keep], grow, mode=_MODES[mode])


@operator("constant_pad_nd", shape=_pad_spec, lower=_lower_pad)
def constant_pad_nd(self: Array, pad: Sequence[int], value: float = 0) -> Array:
    return _pad(self, pad, "constant", value)


@operator("reflection_pad1d", "reflection_pad2d", shape=_pad_spec)
def reflection_pad(self: Array, padding: Sequence[int]) -> Array:
    return _pad(self, padding, "reflect")


@operator("replication_pad1d", "replication_pad2d", shape=_pad_spec)
def replication_pad(self: Array, padding: Sequence[int]) -> Array:
    return _pad(self, padding, "replicate")


_pad = pad  # the functions above have an argument of that name


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
