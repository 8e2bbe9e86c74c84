"""Convolutions as a window view and one matrix product per group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from subp_ext.geometry import resolve_padding
from subp_ext.reference.activations import activate
from subp_ext.reference.registry import register
from subp_ext.sparse import UniformBlockSparse


def _spread(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * count if len(values) == 1 else values


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> np.ndarray:
    """Any number of spatial dimensions: `[B, I, *size]` and `[O, I / groups, *kernel]` to `[B, O, *out]`."""
    kernel, nd = weight.shape[2:], weight.ndim - 2
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    # [B, I, *out, *kernel]
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=tuple(range(2, 2 + nd)))
    steps = (*(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
    windows = windows[(slice(None), slice(None), *steps)]
    batch, out = x.shape[0], windows.shape[2 : 2 + nd]
    order = (0, 1, *range(2 + nd, 2 + 2 * nd), *range(2, 2 + nd))
    columns = windows.transpose(order).reshape(batch, groups, -1, math.prod(out))
    rows = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    result = np.matmul(rows, columns).reshape(batch, weight.shape[0], *out)
    return result if bias is None else result + bias.reshape(-1, *[1] * nd)


@register("conv2d")
def conv2d(
    input: np.ndarray,
    weight: np.ndarray | UniformBlockSparse,
    bias: np.ndarray | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    residual: np.ndarray | None = None,
    activation: str | None = None,
) -> np.ndarray:
    """ATen's conv2d; then the residual is added and the activation applied. Padding as `resolve_padding`."""
    if isinstance(weight, UniformBlockSparse):
        weight = weight.to_dense()
    stride, dilation = _spread(stride, 2), _spread(dilation, 2)
    zeros = resolve_padding(padding, weight.shape[2:], stride, dilation)
    result = convolve(input, weight, bias, stride, zeros, dilation, groups)
    return activate(result if residual is None else result + residual, activation)


def _plain(nd: int) -> Any:
    def run(
        input: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> np.ndarray:
        dilation = _spread(dilation, nd)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            zeros = tuple((total // 2, total - total // 2) for total in totals)
        else:
            zeros = tuple((p, p) for p in _spread(0 if padding == "valid" else padding, nd))
        return convolve(input, weight, bias, _spread(stride, nd), zeros, dilation, groups)

    return run


conv1d = register("conv1d")(_plain(1))
conv3d = register("conv3d")(_plain(3))


@register("conv_transpose2d")
def conv_transpose2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> np.ndarray:
    """Convolves the input, zeros put between its pixels, with the flipped kernel; weight `[I, O / groups, kh, kw]`."""
    stride, padding, extra, dilation = (_spread(v, 2) for v in (stride, padding, output_padding, dilation))
    batch, inputs, *size = input.shape
    apart = np.zeros((batch, inputs, *((n - 1) * s + 1 for n, s in zip(size, stride, strict=True))), input.dtype)
    apart[:, :, :: stride[0], :: stride[1]] = input
    per_group, *kernel = weight.shape[1:]
    flipped = weight[:, :, ::-1, ::-1].reshape(groups, inputs // groups, per_group, *kernel).swapaxes(1, 2)
    edges = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    # A padding beyond the kernel's reach cuts the input instead.
    cut = tuple(slice(max(-edge, 0), n - max(-edge, 0)) for edge, n in zip(edges, apart.shape[2:], strict=True))
    zeros = tuple((max(edge, 0), max(edge, 0) + more) for edge, more in zip(edges, extra, strict=True))
    flat = flipped.reshape(groups * per_group, inputs // groups, *kernel)
    return convolve(apart[(slice(None), slice(None), *cut)], flat, bias, (1, 1), zeros, dilation, groups)


@register("im2col")
def im2col(self: np.ndarray, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> np.ndarray:
    """The windows of a convolution: `[B, C, H, W]` to `[B, C * kh * kw, windows]`."""
    kernel, dilation, padding, stride = (_spread(v, 2) for v in (kernel_size, dilation, padding, stride))
    padded = np.pad(self, ((0, 0), (0, 0), *((p, p) for p in padding)))
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(self.shape[0], self.shape[1] * math.prod(kernel), -1)


@register("col2im")
def col2im(
    self: np.ndarray, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> np.ndarray:
    """The sum of windows where they overlap: `[B, C * kh * kw, windows]` to `[B, C, *output_size]`."""
    kernel, dilation, padding, stride = (_spread(v, 2) for v in (kernel_size, dilation, padding, stride))
    padded = [n + 2 * p for n, p in zip(output_size, padding, strict=True)]
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(padded, dilation, kernel, stride, strict=True)]
    columns = self.reshape(self.shape[0], -1, *kernel, *counts)
    result = np.zeros((*columns.shape[:2], *padded), self.dtype)
    for y, x in np.ndindex(*kernel):
        rows, across = (
            slice(at * d, at * d + (count - 1) * s + 1, s)
            for at, d, count, s in zip((y, x), dilation, counts, stride, strict=True)
        )
        result[:, :, rows, across] += columns[:, :, y, x]
    top, left = padding
    return result[:, :, top : top + output_size[0], left : left + output_size[1]]
