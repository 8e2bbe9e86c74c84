"""Pooling to a given size of output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, ValueType
from subp_ext.operators.arguments import pair, sizes
from subp_ext.operators.conversions import quantization_of
from subp_ext.operators.pooling import lower_pool
from subp_ext.operators.record import OPERATORS, Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.operators.reductions import lower_mean
from subp_ext.operators.shape_inference import dry_run
from subp_ext.operators.steps import no_kernel

if TYPE_CHECKING:
    from subp_ext.planner import Planner

OutputSize = int | Sequence[int | None]

# Windows to an output pixel beyond which an output is absurdly larger than its input.
MAX_GROWTH = 64


def _bins(size: int, out: int) -> list[slice]:
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive(x: Array, output_size: OutputSize, reduce: Callable[..., Any]) -> Array:
    height, width = (x.shape[i - 2] if s is None else s for i, s in enumerate(pair(output_size)))
    rows = [
        np.stack([reduce(x[..., h, w], axis=(-2, -1)) for w in _bins(x.shape[-1], width)], -1)
        for h in _bins(x.shape[-2], height)
    ]
    return np.stack(rows, -2)


def _average_spec(self: MetaTensor, output_size: OutputSize) -> Spec:
    out = tuple(own if size is None else size for own, size in zip(self.shape[-2:], pair(output_size), strict=True))
    grown = any(size > MAX_GROWTH * own for own, size in zip(self.shape[-2:], sizes(out), strict=True))
    if grown or 0 in self.shape:
        raise ValueError(f"output_size {output_size} does not fit the input {list(self.shape)}")
    return (*self.shape[:-2], *sizes(out)), self.dtype


def _lower_average(
    planner: Planner, op: str, *, self: Any, output_size: OutputSize, out_type: ValueType | None = None
) -> Lowered | Unsupported:
    wanted = pair(output_size)
    if set(wanted) == {1}:
        return lower_mean(planner, op, self=self, dim=(2, 3), keepdim=True, out_type=out_type)
    if refused := no_kernel("pool" if quantization_of(self) is None else "quantized_pool", self, 4):
        return refused
    planes = self.view.shape[2:]
    if any(size is not None and (size < 1 or n % size) for n, size in zip(planes, wanted, strict=True)):
        return Unsupported("the output's size does not divide the input's")
    # Windows of equal size without overlap.
    kernel = [n // (size or n) for n, size in zip(planes, wanted, strict=True)]
    return lower_pool(planner, "avg_pool2d", self=self, kernel_size=kernel, stride=kernel, out_type=out_type)


@operator("adaptive_avg_pool2d", "_adaptive_avg_pool2d", shape=_average_spec, lower=_lower_average)
def adaptive_avg_pool2d(self: Array, output_size: OutputSize) -> Array:
    return _adaptive(self, output_size, np.mean)


def _max_spec(self: MetaTensor, output_size: OutputSize) -> Any:
    if math.prod(pair(output_size)) > self.size:
        raise ValueError(f"output_size {output_size} is larger than the input {self.shape}")
    return dry_run(OPERATORS["adaptive_max_pool2d"], {"self": self, "output_size": output_size})


@operator("adaptive_max_pool2d", shape=_max_spec)
def adaptive_max_pool2d(self: Array, output_size: OutputSize) -> tuple[Array, Array]:
    """Returns the maxima and their flat positions in the input's plane."""
    best = _adaptive(self, output_size, np.max)
    positions = np.broadcast_to(np.arange(self.shape[-2] * self.shape[-1]).reshape(self.shape[-2:]), self.shape)
    height, width = best.shape[-2:]
    found = np.empty(best.shape, np.int64)
    for i, h in enumerate(_bins(self.shape[-2], height)):
        for j, w in enumerate(_bins(self.shape[-1], width)):
            values = self[..., h, w].reshape(*self.shape[:-2], -1)
            places = positions[..., h, w].reshape(*self.shape[:-2], -1)
            found[..., i, j] = np.take_along_axis(places, values.argmax(-1)[..., None], -1)[..., 0]
    return best, found
