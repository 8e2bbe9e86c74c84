"""Padding: with a constant, or with what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import sizes
from subp_ext.operators.plane_copies import gathered
from subp_ext.operators.record import Lowered, Lowering, MetaTensor, Spec, Unsupported, operator
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _pairs(amounts: Sequence[int], rank: int) -> list[tuple[int, int]]:
    """(before, after) of every dimension, from ATen's list, which begins with the last one.

    Raises:
        ValueError: it is not one of pairs, or has more of them than there are dimensions.
    """
    if len(amounts) % 2 or len(amounts) > 2 * rank:
        raise ValueError(
            f"padding is {list(amounts)}; expected (before, after) of up to {rank} dimensions, the last one first"
        )
    given = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]
    return [(0, 0)] * (rank - len(given)) + given[::-1]


def _pad_spec(
    self: MetaTensor, pad: Any = None, padding: Any = None, mode: str = "constant", value: Any = None
) -> Spec:
    cuts_first = padding is None and mode in _CUT_FIRST
    pairs = _pairs(pad if padding is None else padding, len(self.shape))
    for n, (before, after) in zip(self.shape, pairs, strict=True):
        if min(before, 0) + min(after, 0) + n < 0 if cuts_first else before + after + n < 0:
            raise ValueError(
                f"padding of {before} and {after} cuts more than all {n} elements off a dimension of {list(self.shape)}"
            )
    return sizes([n + before + after for n, (before, after) in zip(self.shape, pairs, strict=True)]), self.dtype


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
    shape, _ = _pad_spec(x.view, padding=pad)
    if len(pad) > 4:
        return Unsupported("more than two dimensions grow")
    planner.check_room(shape, x.type)
    pairs = _pairs(pad, x.view.ndim)
    rows, columns = (_taken(x.view.shape[axis], pairs[axis], mode) for axis in (-2, -1))
    return Lowered(gathered(planner, op, x, rows, columns))


def _taken(count: int, pair: tuple[int, int], mode: str) -> Array:
    """Which of an axis's elements are in its padded one, in their order there.

    Raises:
        ValueError: there are not as many as the mode takes.
    """
    (before, after), indices = pair, np.arange(count)
    grown = max(before, 0), max(after, 0)
    if mode in _CUT_FIRST:
        indices, before, after = indices[max(-before, 0) : count - max(-after, 0)], *grown
    room = {"reflect": len(indices) - 1, "circular": len(indices)}.get(mode)
    if room is not None and max(grown) > room:
        raise ValueError(f"{mode} padding of {pair[0]} and {pair[1]} is more than {len(indices)} elements give")
    padded: Array = np.pad(indices, grown, mode=_MODES[mode])
    return padded[max(-before, 0) : len(padded) - max(-after, 0)]


def _overlap(shape: Sequence[int], pad: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a tensor that stays when it is padded with a constant, and where it is in the result."""
    pairs = _pairs(pad, len(shape))
    inner = [slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, shape, strict=True)]
    outer = [slice(max(b, 0), n + b + a - max(a, 0)) for (b, a), n in zip(pairs, shape, strict=True)]
    return tuple(inner), tuple(outer)


# As in torch, these modes go around what negative padding leaves; the others cut what they have put around.
_CUT_FIRST = ("constant", "circular")

_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@operator("pad", shape=_pad_spec, lower=_lower_pad)
def pad(self: Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    """Pads from the last dimension backwards, (before, after) each; a negative number cuts."""
    if mode == "constant":
        inner, outer = _overlap(self.shape, pad)
        out = np.full(_pad_spec(self, pad)[0], value or 0, self.dtype)
        out[outer] = self[inner]
        return out
    for axis, pair in enumerate(_pairs(pad, self.ndim)):
        if pair != (0, 0):
            self = np.take(self, _taken(self.shape[axis], pair, mode), axis)
    return self


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
