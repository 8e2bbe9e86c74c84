"""Padding: with a constant, or with what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import sizes
from subp_ext.operators.plane_copies import gathered
from subp_ext.operators.record import Lowered, Lowering, MetaTensor, Spec, Unsupported, operator
from subp_ext.operators.shape_inference import of_shape
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _pad_spec(self: MetaTensor, pad: Any = None, padding: Any = None, **rest: Any) -> Spec:
    amounts, shape = pad if padding is None else padding, list(self.shape)
    for i in range(len(amounts) // 2):
        shape[-1 - i] += amounts[2 * i] + amounts[2 * i + 1]
    return sizes(shape), self.dtype


def _lower_pad(
    planner: Planner, op: str, *, self: Any, pad: Any, mode: str = "constant", value: float | None = None
) -> Lowered | Unsupported:
    """With a constant: the frame is filled in and the middle copied. What is stored of a real number is by its type."""
    if mode != "constant":
        return _lower_copies(planner, op, self, pad, mode)
    if not isinstance(self, Tensor):
        return Unsupported("a known tensor")
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


def _lower_copies(planner: Planner, op: str, x: Any, pad: Sequence[int], mode: str) -> Lowered | Unsupported:
    """With elements of the tensor itself, at both ends of its last two dimensions."""
    if not isinstance(x, Tensor) or not x.view.ndim >= 2 or not x.view.size:
        return Unsupported("the input is known, has one dimension, or is empty")
    if len(pad) % 2 or len(pad) > 4:
        return Unsupported("more than two dimensions grow")
    shape, _ = _pad_spec(x.view, pad)
    planner.check_room(shape, x.type)
    rows, columns = (_padded(np.arange(x.view.shape[-1 - n]), pad[2 * n : 2 * n + 2], mode) for n in (1, 0))
    return Lowered(gathered(planner, op, x, rows, columns))


def _padded(indices: Array, amounts: Sequence[int], mode: str) -> Array:
    """Indices of an axis as they are after padding it.

    Raises:
        ValueError: there is not as much as the mode takes.
    """
    before, after = amounts if len(amounts) else (0, 0)
    room = {"reflect": len(indices) - 1, "circular": len(indices)}.get(mode)
    if room is not None and max(before, after) > room:
        raise ValueError(f"{mode} padding of {before} and {after} is more than {len(indices)} elements give")
    kept = indices[max(-before, 0) : len(indices) - max(-after, 0)]
    padded: Array = np.pad(kept, (max(before, 0), max(after, 0)), mode=_MODES[mode])
    return padded


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


def _lower_by(mode: str) -> Lowering:
    def lower(planner: Planner, op: str, *, self: Any, padding: Sequence[int]) -> Lowered | Unsupported:
        return _lower_copies(planner, op, self, padding, mode)

    return lower


@operator("reflection_pad1d", "reflection_pad2d", shape=_pad_spec, lower=_lower_by("reflect"))
def reflection_pad(self: Array, padding: Sequence[int]) -> Array:
    return _pad(self, padding, "reflect")


@operator("replication_pad1d", "replication_pad2d", shape=_pad_spec, lower=_lower_by("replicate"))
def replication_pad(self: Array, padding: Sequence[int]) -> Array:
    return _pad(self, padding, "replicate")


_pad = pad  # the functions above have an argument of that name
