"""Up- and downsampling, pixel and channel shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.reference.registry import register


def _sizes(
    x: np.ndarray, output_size: Any, scale_factors: Any, scales_h: float | None, scales_w: float | None
) -> list[tuple[int, int, float]]:
    """Per axis: input size, output size, input pixels per output pixel; a given scale wins over the sizes' ratio."""
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    found = []
    for axis in range(2):
        size, scale = x.shape[axis - 2], scales[axis]
        out = output_size[axis] if output_size is not None else int(size * scale)
        found.append((size, out, 1.0 / scale if scale else size / out))
    return found


@register("upsample_nearest2d")
def upsample_nearest2d(
    input: np.ndarray | None = None,
    output_size: Any = None,
    scale_factors: Any = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
    self: np.ndarray | None = None,
) -> np.ndarray:
    """Takes the `.vec` form (input, scale_factors) and the plain one (self, scales_h, scales_w)."""
    x = self if input is None else input
    rows, columns = (
        np.minimum((np.arange(out) * np.float32(ratio)).astype(np.int64), size - 1)
        for size, out, ratio in _sizes(x, output_size, scale_factors, scales_h, scales_w)
    )
    return x[..., rows[:, None], columns]


def _linear_taps(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    position = np.maximum(position, 0.0)
    low = np.floor(position)
    return low[:, None] + [0, 1], np.stack([1 - (position - low), position - low], 1)


def _cubic_taps(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, a = np.floor(position), -0.75
    distance = np.abs((position - low)[:, None] - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return low[:, None] + np.arange(-1, 3), np.where(distance <= 1, near, far)


def _weights(size: int, out: int, ratio: float, align_corners: bool, taps: Any) -> np.ndarray:
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
        input: np.ndarray | None = None,
        output_size: Any = None,
        align_corners: bool = False,
        scale_factors: Any = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
        self: np.ndarray | None = None,
    ) -> np.ndarray:
        x = self if input is None else input
        sizes = _sizes(x, output_size, scale_factors, scales_h, scales_w)
        rows, columns = (_weights(*axis, align_corners, taps).astype(x.dtype) for axis in sizes)
        return rows @ x @ columns.T

    return run


upsample_bilinear2d = register("upsample_bilinear2d")(_separable(_linear_taps))
upsample_bicubic2d = register("upsample_bicubic2d")(_separable(_cubic_taps))


@register("pixel_shuffle")
def pixel_shuffle(self: np.ndarray, upscale_factor: int) -> np.ndarray:
    *batch, channels, height, width = self.shape
    r, n = upscale_factor, len(batch)
    x = self.reshape(*batch, channels // r**2, r, r, height, width)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return x.transpose(order).reshape(*batch, channels // r**2, height * r, width * r)


@register("pixel_unshuffle")
def pixel_unshuffle(self: np.ndarray, downscale_factor: int) -> np.ndarray:
    *batch, channels, height, width = self.shape
    r, n = downscale_factor, len(batch)
    x = self.reshape(*batch, channels, height // r, r, width // r, r)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return x.transpose(order).reshape(*batch, channels * r**2, height // r, width // r)


@register("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(self: np.ndarray, groups: int) -> np.ndarray:
    batch, channels, *size = self.shape
    return self.reshape(batch, groups, channels // groups, *size).swapaxes(1, 2).reshape(self.shape)
