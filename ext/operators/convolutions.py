"""Convolutions as a window view and one matrix product per group; conv2d has kernels, see `packed`."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.geometry import resolve_padding
from subp_ext.operators.arguments import Ints, pair, repeated, sizes
from subp_ext.operators.packed import convolution_spec, lower_conv2d, pack
from subp_ext.operators.record import MetaTensor, Spec, activate, operator
from subp_ext.operators.shape_inference import of_shape
from subp_ext.sparse import UniformBlockSparse


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
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


@operator("conv2d", shape=convolution_spec, lower=lower_conv2d, pack=pack)
def conv2d(
    input: Array,
    weight: Array | UniformBlockSparse,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: int | str | Sequence[int | Sequence[int]] = 0,
    dilation: Ints = 1,
    groups: int = 1,
    residual: Array | None = None,
    activation: str | None = None,
) -> Array:
    """ATen's conv2d; then the residual is added and the activation applied. Padding as `resolve_padding`."""
    if isinstance(weight, UniformBlockSparse):
        weight = weight.to_dense()
    stride, dilation = repeated(stride, 2), repeated(dilation, 2)
    zeros = resolve_padding(padding, weight.shape[2:], stride, dilation)
    result = convolve(input, weight, bias, stride, zeros, dilation, groups)
    return activate(result if residual is None else result + residual, activation)


def _plain(nd: int) -> Callable[..., Array]:
    def run(
        input: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Ints = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: Ints = 1,
        groups: int = 1,
    ) -> Array:
        dilation = repeated(dilation, nd)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            zeros = tuple((total // 2, total - total // 2) for total in totals)
        else:
            zeros = tuple((p, p) for p in repeated(0 if padding == "valid" else padding, nd))
        return convolve(input, weight, bias, repeated(stride, nd), zeros, dilation, groups)

    return run


operator("conv1d", shape=convolution_spec)(_plain(1))
operator("conv3d", shape=convolution_spec)(_plain(3))


def _im2col_spec(self: MetaTensor, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1) -> Spec:
    kernel = sizes(pair(kernel_size))
    template = of_shape((1, self.shape[1], *kernel), self.dtype)
    stride, padding, dilation = (list(pair(value)) for value in (stride, padding, dilation))
    shape, dtype = convolution_spec(self, template, stride=stride, padding=padding, dilation=dilation)
    return (self.shape[0], self.shape[1] * math.prod(kernel), math.prod(shape[2:])), dtype


@operator("im2col", shape=_im2col_spec)
def im2col(self: Array, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1) -> Array:
    """The windows of a convolution: `[B, C, H, W]` to `[B, C * kh * kw, windows]`."""
    kernel, dilation, padding, stride = (repeated(v, 2) for v in (kernel_size, dilation, padding, stride))
    padded = np.pad(self, ((0, 0), (0, 0), *((p, p) for p in padding)))
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(self.shape[0], self.shape[1] * math.prod(kernel), -1)


def _col2im_spec(self: MetaTensor, output_size: Ints, kernel_size: Ints, padding: Ints = 0, **window: Any) -> Spec:
    out, kernel, zeros = (sizes(pair(value)) for value in (output_size, kernel_size, padding))
    taps = math.prod(kernel)
    if max(*kernel, *zeros) > max(out) or not taps or self.shape[1] % taps:
        raise ValueError(f"{list(self.shape)} are no windows of {kernel_size} of an image of {output_size}")
    return (self.shape[0], self.shape[1] // taps, *out), self.dtype


@operator("col2im", shape=_col2im_spec)
def col2im(
    self: Array,
    output_size: Sequence[int],
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Ints = 0,
    stride: Ints = 1,
) -> Array:
    """The sum of windows where they overlap: `[B, C * kh * kw, windows]` to `[B, C, *output_size]`."""
    kernel, dilation, padding, stride = (repeated(v, 2) for v in (kernel_size, dilation, padding, stride))
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
