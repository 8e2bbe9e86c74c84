"""Normalisations. Statistics are taken in float64: over a large plane float32 sums lose digits."""

from __future__ import annotations

import math

import numpy as np

from subp_ext.reference.registry import register

Optional = np.ndarray | None


def _per_channel(x: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _affine(x: np.ndarray, weight: Optional, bias: Optional) -> np.ndarray:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _normalise(x: np.ndarray, axes: tuple[int, ...], eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the normalised array, the mean and 1 / sqrt(var + eps), with the axes kept."""
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    rstd = 1.0 / np.sqrt(x.var(axis=axes, keepdims=True, dtype=np.float64) + eps)
    return ((x - mean) * rstd).astype(x.dtype), mean.astype(x.dtype), rstd.astype(x.dtype)


@register("batch_norm")
def batch_norm(
    input: np.ndarray,
    weight: Optional = None,
    bias: Optional = None,
    running_mean: Optional = None,
    running_var: Optional = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> np.ndarray:
    if training or running_mean is None or running_var is None:
        return _native_batch_norm_legit(input, weight, bias, training=True, eps=eps)[0]
    scale = 1.0 / np.sqrt(running_var + input.dtype.type(eps))
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * _per_channel(input, scale) + _per_channel(input, shift)


@register("_native_batch_norm_legit_no_training")
def _native_batch_norm_legit_no_training(
    input: np.ndarray,
    weight: Optional,
    bias: Optional,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (output, empty, empty), as ATen does."""
    empty = np.empty(0, input.dtype)
    return batch_norm(input, weight, bias, running_mean, running_var, eps=eps), empty, empty


@register("_native_batch_norm_legit", "native_batch_norm")
def _native_batch_norm_legit(
    input: np.ndarray,
    weight: Optional = None,
    bias: Optional = None,
    running_mean: Optional = None,
    running_var: Optional = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """With the batch's own statistics: weight standardisation is written this way. Returns (output, mean, rstd)."""
    if not training and running_mean is not None and running_var is not None:
        return _native_batch_norm_legit_no_training(input, weight, bias, running_mean, running_var, momentum, eps)
    x, mean, rstd = _normalise(input, (0, *range(2, input.ndim)), eps)
    weight, bias = (None if v is None else _per_channel(input, v) for v in (weight, bias))
    return _affine(x, weight, bias), mean.reshape(-1), rstd.reshape(-1)


@register("layer_norm")
def layer_norm(
    input: np.ndarray,
    normalized_shape: list[int],
    weight: Optional = None,
    bias: Optional = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> np.ndarray:
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@register("native_layer_norm")
def native_layer_norm(
    input: np.ndarray, normalized_shape: list[int], weight: Optional, bias: Optional, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, mean, rstd = _normalise(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _affine(x, weight, bias), mean, rstd


@register("group_norm")
def group_norm(
    input: np.ndarray,
    num_groups: int,
    weight: Optional = None,
    bias: Optional = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> np.ndarray:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    x = _normalise(grouped, (2,), eps)[0].reshape(input.shape)
    weight, bias = (None if v is None else _per_channel(input, v) for v in (weight, bias))
    return _affine(x, weight, bias)


@register("native_group_norm")
def native_group_norm(
    input: np.ndarray, weight: Optional, bias: Optional, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, mean, rstd = _normalise(input.reshape(N, group, -1), (2,), eps)
    return group_norm(input, group, weight, bias, eps), mean[..., 0], rstd[..., 0]


@register("instance_norm")
def instance_norm(
    input: np.ndarray,
    weight: Optional = None,
    bias: Optional = None,
    running_mean: Optional = None,
    running_var: Optional = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> np.ndarray:
    if not use_input_stats:
        return batch_norm(input, weight, bias, running_mean, running_var, eps=eps)
    return group_norm(input, input.shape[1], weight, bias, eps)


@register("rms_norm")
def rms_norm(
    input: np.ndarray, normalized_shape: list[int], weight: Optional = None, eps: float | None = None
) -> np.ndarray:
    axes = tuple(range(-len(normalized_shape), 0))
    square = np.square(input, dtype=np.float64).sum(axis=axes, keepdims=True) / math.prod(normalized_shape)
    floor = np.finfo(input.dtype).eps if eps is None else eps
    return _affine((input / np.sqrt(square + floor)).astype(input.dtype), weight, None)
