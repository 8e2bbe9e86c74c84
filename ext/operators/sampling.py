"""Sampling at positions that are tensors themselves."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import sizes
from subp_ext.operators.record import MetaTensor, Spec, operator

_BILINEAR, _NEAREST, _BICUBIC = 0, 1, 2
_ZEROS, _BORDER, _REFLECTION = 0, 1, 2

# A position along an axis of that size, as a padding mode bounds it.
Bound = Callable[[Array, int], Array]


def _grid_spec(
    input: MetaTensor,
    grid: MetaTensor,
    interpolation_mode: int = _BILINEAR,
    padding_mode: int = _ZEROS,
    align_corners: bool | None = False,
) -> Spec:
    fits = input.ndim == grid.ndim == 4 and grid.shape[0] == input.shape[0] and grid.shape[3] == 2
    if not fits or 0 in input.shape[1:]:
        raise ValueError(
            f"input {list(input.shape)} and grid {list(grid.shape)}; expected [B, C, H, W] and [B, h, w, 2]"
        )
    if not (0 <= interpolation_mode <= 2 and 0 <= padding_mode <= 2):
        raise ValueError(f"modes {interpolation_mode} and {padding_mode} are not known; expected 0 to 2")
    return (*input.shape[:2], *grid.shape[1:3]), input.dtype


def _reflected(position: Array, low: float, high: float) -> Array:
    """Bounced back between two ends as often as it takes."""
    span = high - low
    if span == 0:
        return np.zeros_like(position)
    distance = np.abs(position - low)
    turns, rest = np.floor(distance / span), np.fmod(distance, span)
    return np.where(turns % 2 == 0, rest + low, high - rest)


def _bounded(padding_mode: int, align_corners: bool) -> Bound:
    def bound(position: Array, size: int) -> Array:
        if padding_mode == _REFLECTION:
            ends = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
            position = _reflected(position, *ends)
        if padding_mode != _ZEROS:
            # As ATen: what is no number counts for the first pixel.
            position = np.fmin(np.fmax(position, 0.0), size - 1.0)
        return position

    return bound


def _pixels(x: Array, row: Array, column: Array) -> Array:
    """`[B, C, h, w]`, the pixels at whole positions `[B, h, w]`; 0 outside of the input."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = (np.where(inside, at, 0).astype(np.int64) for at in (row, column))
    taken = x[np.arange(len(x))[:, None, None], :, row, column]
    return np.where(inside[..., None], taken, x.dtype.type(0)).transpose(0, 3, 1, 2)


def _cubic(distance: Array) -> Array:
    """`[..., 4]` weights of the pixels -1 to 2 from the one below a position."""
    a, at = -0.75, np.abs(distance[..., None] - np.arange(-1, 3))
    near = ((a + 2) * at - (a + 3)) * at**2 + 1
    return np.where(at <= 1, near, ((a * at - 5 * a) * at + 8 * a) * at - 4 * a)


@operator("grid_sampler", "grid_sampler_2d", shape=_grid_spec)
def grid_sampler(
    input: Array,
    grid: Array,
    interpolation_mode: int = _BILINEAR,
    padding_mode: int = _ZEROS,
    align_corners: bool | None = False,
) -> Array:
    """`[B, C, H, W]` at positions `[B, h, w, (x, y)]` from -1 to 1.

    Modes are ATen's: bilinear, nearest, bicubic; zeros, border, reflection outside of the input.
    """
    height, width = input.shape[2:]
    bound = _bounded(padding_mode, bool(align_corners))

    def position(at: Array, size: int) -> Array:
        return (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2

    x, y = position(grid[..., 0], width), position(grid[..., 1], height)
    if interpolation_mode == _BICUBIC:
        return _bicubic(input, x, y, bound)
    x, y = bound(x, width), bound(y, height)
    if interpolation_mode == _NEAREST:
        return _pixels(input, np.rint(y), np.rint(x))
    left, top = np.floor(x), np.floor(y)
    right_part, lower_part = (x - left)[:, None], (y - top)[:, None]
    result = _pixels(input, top, left) * (1 - lower_part) * (1 - right_part)
    result += _pixels(input, top, left + 1) * (1 - lower_part) * right_part
    result += _pixels(input, top + 1, left) * lower_part * (1 - right_part)
    result += _pixels(input, top + 1, left + 1) * lower_part * right_part
    return result.astype(input.dtype, copy=False)


def _bicubic(x: Array, column: Array, row: Array, bound: Bound) -> Array:
    height, width = x.shape[2:]
    left, top = np.floor(column), np.floor(row)
    across, down = _cubic(column - left), _cubic(row - top)
    result: Any = np.zeros((), x.dtype)
    for i in range(4):
        for j in range(4):
            part = _pixels(x, bound(top + i - 1, height), bound(left + j - 1, width))
            result = result + part * (down[..., i] * across[..., j])[:, None]
    found: Array = result.astype(x.dtype, copy=False)
    return found


def _affine_spec(theta: MetaTensor, size: Sequence[int], align_corners: bool = False) -> Spec:
    shape = sizes(size)
    if len(shape) != 4 or theta.shape != (shape[0], 2, 3):
        raise ValueError(f"theta {list(theta.shape)} does not fit {list(shape)}; expected [B, 2, 3] and four sizes")
    return (shape[0], *shape[2:], 2), theta.dtype


@operator("affine_grid_generator", shape=_affine_spec)
def affine_grid_generator(theta: Array, size: Sequence[int], align_corners: bool = False) -> Array:
    """`[B, H, W, 2]`, the positions that affine maps `[B, 2, 3]` send a grid's to."""
    height, width = size[2:]

    def ticks(count: int) -> Array:
        found = np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
        return found if align_corners else found * (count - 1) / count

    y, x = np.meshgrid(ticks(height), ticks(width), indexing="ij")
    places = np.stack([x, y, np.ones_like(x)], -1).astype(theta.dtype)
    return np.einsum("hwk,bik->bhwi", places, theta)
