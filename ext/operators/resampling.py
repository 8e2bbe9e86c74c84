"""Up- and downsampling, pixel and channel shuffles."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import MAX_PAIRS, sizes
from subp_ext.operators.record import DRY_RUN, Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner

# Copies per pixel and axis beyond which a lowering on copies is none.
MAX_COPIES = 64


def _scales(
    x: Array, output_size: Any, scale_factors: Any, scales_h: float | None, scales_w: float | None
) -> list[tuple[int, int, float]]:
    """Per axis: input size, output size, input pixels per output pixel; a given scale wins over the sizes' ratio."""
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    found = []
    for axis in range(2):
        size, scale = x.shape[axis - 2], scales[axis]
        out = output_size[axis] if output_size is not None else int(size * scale)
        found.append((size, out, 1.0 / scale if scale else size / out))
    return found


def _upsample_spec(
    input: MetaTensor | None = None,
    output_size: Any = None,
    scale_factors: Any = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
    self: MetaTensor | None = None,
    **rest: Any,
) -> Spec:
    x = _source(input, self)
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    out = output_size if output_size is not None else [int(n * s) for n, s in zip(x.shape[-2:], scales, strict=True)]
    # The reference interpolates with a matrix per axis.
    large = any(n * size > MAX_PAIRS for n, size in zip(x.shape[-2:], out, strict=False))
    if 0 in x.shape or len(out) != 2 or min(sizes(out)) < 1 or large:
        raise ValueError(f"sizes {out} do not fit the input {list(x.shape)}")
    return (*x.shape[:-2], *sizes(out)), x.dtype


def _source(input: Any, self: Any) -> Any:
    """The tensor, in whichever of two arguments it came."""
    if (input is None) == (self is None):
        raise ValueError("needs one of the arguments 'input' and 'self'")
    return self if input is None else input


def _lower_nearest(
    planner: Planner, op: str, *, input: Any = None, self: Any = None, **scales: Any
) -> Lowered | Unsupported:
    """By whole factors: every column to its places, then every row."""
    x = _source(input, self)
    if not isinstance(x, Tensor) or x.view.ndim != 4 or not x.view.size:
        return Unsupported("the input is not a tensor of four dimensions, or empty")
    shape, _ = _upsample_spec(input=x.view, **scales)
    planner.check_room(shape, x.type)
    height, width = x.view.shape[2:]
    rows, columns = shape[2] // height, shape[3] // width
    if max(rows, columns) > MAX_COPIES:
        return Unsupported("every factor is a copy, and these are many")
    # Which pixel goes where; a ratio that is not exact may pick a neighbour, as torch does.
    pixels = np.arange(height * width).reshape(1, 1, height, width)
    taken = upsample_nearest2d(input=pixels, **scales)
    if not np.array_equal(taken, pixels.repeat(rows, axis=2).repeat(columns, axis=3)):
        return Unsupported("the output's size is no multiple of the input's")
    x = planner.contiguous(x)
    out = planner.empty(shape, x.type)

    def bind(at: At) -> Call:
        source, target = at(x).reshape(-1, height, width), at(out).reshape(-1, height, rows, width, columns)
        pairs = [(target[:, :, 0, :, column], source) for column in range(columns)]
        pairs += [(target[:, :, row], target[:, :, 0]) for row in range(1, rows)]

        def call() -> None:
            for place, values in pairs:
                np.copyto(place, values)

        return call

    planner.step(op, "numpy", "copies", bind, [x], [out])
    return Lowered(out)


@operator("upsample_nearest2d", shape=_upsample_spec, lower=_lower_nearest)
def upsample_nearest2d(
    input: Array | None = None,
    output_size: Sequence[int] | None = None,
    scale_factors: Sequence[float] | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
    self: Array | None = None,
) -> Array:
    """Takes the `.vec` form (input, scale_factors) and the plain one (self, scales_h, scales_w)."""
    x = _source(input, self)
    rows, columns = (
        np.minimum((np.arange(out) * np.float32(ratio)).astype(np.int64), size - 1)
        for size, out, ratio in _scales(x, output_size, scale_factors, scales_h, scales_w)
    )
    return x[..., rows[:, None], columns]


def _linear_taps(position: Array) -> tuple[Array, Array]:
    position = np.maximum(position, 0.0)
    low = np.floor(position)
    return low[:, None] + [0, 1], np.stack([1 - (position - low), position - low], 1)


def _cubic_taps(position: Array) -> tuple[Array, Array]:
    low, a = np.floor(position), -0.75
    distance = np.abs((position - low)[:, None] - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return low[:, None] + np.arange(-1, 3), np.where(distance <= 1, near, far)


def _weights(size: int, out: int, ratio: float, align_corners: bool, taps: Any) -> Array:
    """`[out, size]` matrix of one axis; taps outside the input count for its edge."""
    at = np.arange(out, dtype=np.float64)
    corners = at * ((size - 1) / max(out - 1, 1))
    position = corners if align_corners else (at + 0.5) * ratio - 0.5
    index, weight = taps(position)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], np.clip(index, 0, size - 1).astype(np.int64)), weight)
    return matrix


def _separable(taps: Any) -> Any:
    def run(
        input: Array | None = None,
        output_size: Sequence[int] | None = None,
        align_corners: bool = False,
        scale_factors: Sequence[float] | None = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
        self: Array | None = None,
    ) -> Array:
        x = _source(input, self)
        sizes = _scales(x, output_size, scale_factors, scales_h, scales_w)
        rows, columns = (_weights(*axis, align_corners, taps).astype(x.dtype) for axis in sizes)
        return rows @ x @ columns.T

    return run


upsample_bilinear2d = operator("upsample_bilinear2d", shape=_upsample_spec)(_separable(_linear_taps))
upsample_bicubic2d = operator("upsample_bicubic2d", shape=_upsample_spec)(_separable(_cubic_taps))


@operator("pixel_shuffle", shape=DRY_RUN)
def pixel_shuffle(self: Array, upscale_factor: int) -> Array:
    *batch, channels, height, width = self.shape
    r, n = upscale_factor, len(batch)
    x = self.reshape(*batch, channels // r**2, r, r, height, width)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return x.transpose(order).reshape(*batch, channels // r**2, height * r, width * r)


@operator("pixel_unshuffle", shape=DRY_RUN)
def pixel_unshuffle(self: Array, downscale_factor: int) -> Array:
    *batch, channels, height, width = self.shape
    r, n = downscale_factor, len(batch)
    x = self.reshape(*batch, channels, height // r, r, width // r, r)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return x.transpose(order).reshape(*batch, channels * r**2, height // r, width // r)


def _lower_channel_shuffle(planner: Planner, op: str, *, self: Any, groups: int) -> Lowered | Unsupported:
    """A copy in another order, of any type."""
    if not isinstance(self, Tensor) or self.view.ndim < 2 or groups < 1 or self.view.shape[1] % groups:
        return Unsupported("the input is known, or its channels do not split into the groups")
    x = planner.contiguous(self)
    out = planner.empty(x.view.shape, x.type)
    batch, channels, *size = x.view.shape

    def bind(at: At) -> Call:
        source = at(x).reshape(batch, groups, channels // groups, *size).swapaxes(1, 2)
        target = at(out).reshape(source.shape)
        return lambda: np.copyto(target, source)

    planner.step(op, "numpy", "copies", bind, [x], [out])
    return Lowered(out)


@operator("channel_shuffle", "native_channel_shuffle", shape=DRY_RUN, lower=_lower_channel_shuffle)
def channel_shuffle(self: Array, groups: int) -> Array:
    batch, channels, *size = self.shape
    return self.reshape(batch, groups, channels // groups, *size).swapaxes(1, 2).reshape(self.shape)
