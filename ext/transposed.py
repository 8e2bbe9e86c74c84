"""Transposed convolutions, phase by phase: output pixels of one phase of the stride are an ordinary convolution.

Along an axis, output y = stride * q + r is the sum of w[t] * x[q + (r + padding - t * dilation) / stride] over those
taps t for which that is a whole number. They are equally far apart, so that each phase r is a convolution of stride 1
with some of the taps, in reverse; what the phases give is woven together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from subp_ext.convolution import Convolution
from subp_ext.dtypes import Array, Quantization, TypedArray, ValueType
from subp_ext.sparse import UniformBlockSparse

TransposedWeight = Array | TypedArray | UniformBlockSparse


class AxisPhase(NamedTuple):
    """One phase along one axis, with taps or without any."""

    taps: tuple[int, ...]  # of the kernel, as the convolution takes them
    dilation: int
    padding: tuple[int, int]  # zeros before and after the input
    cut: tuple[int, int]  # pixels of the input, before and after, that it does not see


def axis_phases(kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> list[AxisPhase]:
    """The phases along an axis, `stride` of them."""
    found = []
    for phase in range(stride):
        taps = [tap for tap in reversed(range(kernel)) if (phase + padding - tap * dilation) % stride == 0]
        if not taps:
            found.append(AxisPhase((), 1, (0, 0), (0, 0)))
            continue
        first, last = ((phase + padding - tap * dilation) // stride for tap in (taps[0], taps[-1]))
        # Outputs of the phase beyond as many as there are inputs.
        more = (dilation * (kernel - 1) - 2 * padding + output_padding + stride - phase) // stride - 1
        before, after = -first, last + more
        spread = dilation // math.gcd(stride, dilation) if len(taps) > 1 else 1
        found.append(AxisPhase(tuple(taps), spread, (max(before, 0), max(after, 0)), (max(-before, 0), max(-after, 0))))
    return found


def out_size(size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> int:
    """The output's size along an axis."""
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1


@dataclass(frozen=True)
class Phase:
    """One of the convolutions.

    Attributes:
        convolution: of the pixels of this phase; None where the kernel has no tap for it.
        cut: ((top, bottom), (left, right)) pixels of the input that it does not see.
        constant: `[O]`, what pixels are that no tap meets.
    """

    convolution: Convolution | None
    cut: tuple[tuple[int, int], tuple[int, int]]
    constant: Array


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution ready to run.

    Attributes:
        phases: row by row of the stride.
        channels: of the input and of the output.
        stride: (height, width).
        size: kernel, padding, output padding and dilation, (height, width) each.
    """

    phases: tuple[Phase, ...]
    channels: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[tuple[int, int], ...]
    depthwise: bool = False  # as a Convolution has it: no convolution before it runs in one step with it

    @property
    def convolutions(self) -> list[Convolution]:
        return [phase.convolution for phase in self.phases if phase.convolution is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of weights."""
        return sum(convolution.nbytes for convolution in self.convolutions)

    def release(self) -> None:
        """As `Convolution.release`, of all."""
        for convolution in self.convolutions:
            convolution.release()

    def out_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """The output's shape for an input `[B, I, H, W]`.

        Raises:
            ValueError: the channels do not fit, or nothing is left.
        """
        if len(shape) != 4 or shape[1] != self.channels[0]:
            raise ValueError(f"input has shape {list(shape)}; expected [B, {self.channels[0]}, H, W]")
        kernel, padding, extra, dilation = self.size
        height, width = (
            out_size(shape[2 + axis], kernel[axis], self.stride[axis], padding[axis], extra[axis], dilation[axis])
            for axis in range(2)
        )
        if min(height, width, *shape) < 1:
            raise ValueError(f"an input of {shape[2]}x{shape[3]} gives an output of {height}x{width}")
        return shape[0], self.channels[1], height, width


def as_convolution(weight: TransposedWeight, groups: int) -> TransposedWeight:
    """ATen's `[I, O / groups, kh, kw]` as `[O, I / groups, kh, kw]`, which a sparse weight has already.

    Raises:
        ValueError: the shape does not fit the groups.
    """
    if isinstance(weight, UniformBlockSparse):
        return weight
    if isinstance(weight, TypedArray):
        q = weight.type.quantization
        if q is not None and q.axis is not None and (q.axis != 1 or groups != 1):
            return as_convolution(weight.to_float(), groups)
        type = weight.type
        if q is not None and q.axis is not None:
            type = ValueType(type.dtype, Quantization(q.scale, q.zero_point, 0))
        return TypedArray(_swapped(weight.values, groups), type)
    return _swapped(weight, groups)


def _swapped(weight: Array, groups: int) -> Array:
    if weight.ndim != 4 or groups < 1 or weight.shape[0] % groups or 0 in weight.shape:
        raise ValueError(
            f"the weight has shape {list(weight.shape)}; expected [I, O / groups, kh, kw], {groups} groups"
        )
    inputs, per_group, kh, kw = weight.shape
    split = weight.reshape(groups, inputs // groups, per_group, kh, kw).swapaxes(1, 2)
    return np.ascontiguousarray(split.reshape(groups * per_group, inputs // groups, kh, kw))


def with_taps(weight: TransposedWeight, rows: Sequence[int], columns: Sequence[int]) -> TransposedWeight:
    """A convolution's weight with some of its taps, in the order given."""

    def picked(values: Array, axis: int) -> Array:
        return np.ascontiguousarray(np.take(np.take(values, rows, axis), columns, axis + 1))

    if isinstance(weight, UniformBlockSparse):
        shape = (*weight.shape[:2], len(rows), len(columns))
        return dataclasses.replace(weight, values=picked(weight.values, 2), shape=shape)
    if isinstance(weight, TypedArray):
        return TypedArray(picked(weight.values, 2), weight.type)
    return picked(weight, 2)
