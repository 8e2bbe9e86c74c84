"""Convolutions as a window view and one matrix product per group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from subp_ext.convolution import resolve_padding
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
