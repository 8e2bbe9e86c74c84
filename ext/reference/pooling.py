"""Pooling. Windows that hang over the edge are clipped, so that padding never counts as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext.reference.registry import register


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not values or values == (None,):
        return _pair(default)
    return (values[0], values[-1])


def _out_size(size: int, extent: int, stride: int, padding: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - extent
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    # In ceil mode the last window must still start inside the input or its left padding.
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _windows(
    x: np.ndarray, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fill: float
) -> np.ndarray:
    """`[..., Ho, Wo, kh, kw]` view of the input padded with `fill` far enough for the last window."""
    kernel, stride = _pair(kernel), _pair(stride, kernel)
    padding, dilation = _pair(padding), _pair(dilation)
    pads, extents = [(0, 0)] * (x.ndim - 2), []
    for axis in range(2):
        size, extent = x.shape[axis - 2], dilation[axis] * (kernel[axis] - 1) + 1
        out = _out_size(size, extent, stride[axis], padding[axis], ceil_mode)
        end = (out - 1) * stride[axis] + extent - size - padding[axis]
        pads.append((padding[axis], max(end, 0)))
        extents.append(extent)
    padded = np.pad(x, pads, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=(-2, -1))
    return view[..., :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


@dataclass(frozen=True)
class PoolGeometry:
    """Windows over one size of plane, (height, width) each; `padding` is (top, left)."""

    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    counts: tuple[np.ndarray, np.ndarray]  # elements of each row's and column's windows that an average divides by


def pool_geometry(
    size: tuple[int, int],
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> PoolGeometry:
    """What the arguments of a pooling operator mean for planes of `size`."""
    kernel, padding, dilation = _pair(kernel_size), _pair(padding), _pair(dilation)
    stride, out, counts = _pair(stride, kernel), [], []
    for n, k, s, zeros, d in zip(size, kernel, stride, padding, dilation, strict=True):
        out.append(_out_size(n, d * (k - 1) + 1, s, zeros, ceil_mode))
        starts = np.arange(out[-1]) * s - zeros
        low, high = (-zeros, n + zeros) if count_include_pad else (0, n)
        counts.append((np.minimum(starts + k, high) - np.maximum(starts, low)).astype(np.float32))
    return PoolGeometry((out[0], out[1]), kernel, stride, dilation, padding, (counts[0], counts[1]))


def _lowest(x: np.ndarray) -> float:
    return -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min


@register("max_pool2d")
def max_pool2d(
    self: np.ndarray,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> np.ndarray:
    return _windows(self, kernel_size, stride, padding, dilation, ceil_mode, _lowest(self)).max(axis=(-2, -1))


@register("max_pool2d_with_indices")
def max_pool2d_with_indices(
    self: np.ndarray,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maxima and their flat positions in the input's plane."""
    windows = _windows(self, kernel_size, stride, padding, dilation, ceil_mode, _lowest(self))
    flat = windows.reshape(*windows.shape[:-2], -1)
    best = flat.argmax(axis=-1)
    row, column = np.divmod(best, windows.shape[-1])
    step, zeros, spread = _pair(stride, kernel_size), _pair(padding), _pair(dilation)
    y = np.arange(windows.shape[-4])[:, None] * step[0] - zeros[0] + row * spread[0]
    x = np.arange(windows.shape[-3]) * step[1] - zeros[1] + column * spread[1]
    return flat.max(axis=-1), y * self.shape[-1] + x


@register("avg_pool2d")
def avg_pool2d(
    self: np.ndarray,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    total = _windows(self, kernel_size, stride, padding, 1, ceil_mode, 0.0).sum(axis=(-2, -1))
    if divisor_override is not None:
        return total / self.dtype.type(divisor_override)
    # What counts: the input, and its declared padding if asked; never what ceil mode adds beyond it.
    height, width = self.shape[-2:]
    (ph, pw) = _pair(padding)
    counted = np.ones((height, width), self.dtype)
    if count_include_pad:
        counted = np.ones((height + 2 * ph, width + 2 * pw), self.dtype)
        counts = _counts(counted, kernel_size, stride, total.shape[-2:])
    else:
        counts = _windows(counted, kernel_size, stride, padding, 1, ceil_mode, 0.0).sum(axis=(-2, -1))
    return total / counts


def _counts(counted: np.ndarray, kernel: Any, stride: Any, out: tuple[int, ...]) -> np.ndarray:
    """Elements of each window that lie inside `counted`, for windows from its corner on."""
    kernel, stride = _pair(kernel), _pair(stride, kernel)
    spans = [
        np.minimum(np.arange(out[a]) * stride[a] + kernel[a], counted.shape[a]) - np.arange(out[a]) * stride[a]
        for a in range(2)
    ]
    return np.multiply.outer(*spans).astype(counted.dtype)


@register("avg_pool1d")
def avg_pool1d(
    self: np.ndarray,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    size, step, zeros = _pair(kernel_size)[0], _pair(stride, kernel_size)[0], _pair(padding)[0]
    return avg_pool2d(self[..., None, :], (1, size), (1, step), (0, zeros), ceil_mode, count_include_pad)[..., 0, :]


def _bins(size: int, out: int) -> list[slice]:
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive(x: np.ndarray, output_size: Any, reduce: Any) -> np.ndarray:
    height, width = (x.shape[i - 2] if s is None else s for i, s in enumerate(_pair(output_size)))
    rows = [
        np.stack([reduce(x[..., h, w], axis=(-2, -1)) for w in _bins(x.shape[-1], width)], -1)
        for h in _bins(x.shape[-2], height)
    ]
    return np.stack(rows, -2)


@register("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool2d(self: np.ndarray, output_size: Any) -> np.ndarray:
    return _adaptive(self, output_size, np.mean)


@register("adaptive_max_pool2d")
def adaptive_max_pool2d(self: np.ndarray, output_size: Any) -> tuple[np.ndarray, np.ndarray]:
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
