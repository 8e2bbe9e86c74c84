"""Steps that move elements of any type: an output plane whose rows and columns are picked, or woven from phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subp_ext import runtime
from subp_ext.dtypes import Array
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def gathered(planner: Planner, op: str, x: Tensor, rows: Array, columns: Array, why: str = "copies") -> Tensor:
    """`x[..., rows[:, None], columns]`, in C order, by a step of its own.

    Args:
        planner: gets the step.
        op: of the node.
        x: of at least two dimensions, not empty.
        rows, columns: indices into its last two.
        why: for the report.
    """
    x = planner.contiguous(x)
    shape = (*x.view.shape[:-2], len(rows), len(columns))
    out, element, threads = planner.empty(shape, x.type), x.view.itemsize, planner.threads

    def bind(at: At) -> Call:
        planes = [_planes(at(tensor), tensor.view.shape[-2]) for tensor in (x, out)]
        call: Call = runtime.kernels().bind_gather(planes[0], rows, columns, element, planes[1], threads)
        return call

    planner.step(op, "gather", why, bind, [x], [out])
    return out


def woven(
    planner: Planner, op: str, sources: Sequence[Tensor] | Tensor, shape: Sequence[int], step: tuple[int, int]
) -> Tensor:
    """`[B, C, H, W]` whose pixel (y, x) is of phase (y % step_h, x % step_w), by a step of its own.

    Args:
        planner: gets the step.
        op: of the node.
        sources: in C order and of one type, each phase's pixels `[B, C, rows, columns]`; or one tensor `[B, C * phases,
            rows, columns]`, the phases of a channel one after the other.
        shape: of the result.
        step: (height, width), no more than the result has.
    """
    every = [sources] if isinstance(sources, Tensor) else list(sources)
    out, element, threads = planner.empty(shape, every[0].type), every[0].view.itemsize, planner.threads
    phases = math.prod(step)

    def bind(at: At) -> Call:
        planes = [_planes(at(tensor), tensor.view.shape[-2]) for tensor in every]
        stacked = planes[0].reshape(-1, phases, *planes[0].shape[1:]) if isinstance(sources, Tensor) else planes
        call: Call = runtime.kernels().bind_weave(stacked, step, element, _planes(at(out), shape[-2]), threads)
        return call

    planner.step(op, "weave", "copies", bind, every, [out])
    return out


def _planes(array: Array, height: int) -> Array:
    """The bytes of an array in C order, `[planes, height, width * bytes of an element]`."""
    return array.reshape(-1).view(np.uint8).reshape(math.prod(array.shape[:-2]), height, -1)
