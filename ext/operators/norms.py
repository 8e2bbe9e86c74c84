"""Normalisations. The references take statistics in float64: over a large plane float32 sums lose digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import refuse_training
from subp_ext.operators.record import Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.operators.shape_inference import like
from subp_ext.operators.steps import bound, flat, memory_order, no_kernel, plan_kernel
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _per_channel(x: Array, vector: Array) -> Array:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _affine(x: Array, weight: Array | None, bias: Array | None) -> Array:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _normalise(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    """Returns the normalised array, the mean and 1 / sqrt(var + eps), with the axes kept."""
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    rstd = 1.0 / np.sqrt(x.var(axis=axes, keepdims=True, dtype=np.float64) + eps)
    return ((x - mean) * rstd).astype(x.dtype), mean.astype(x.dtype), rstd.astype(x.dtype)


def _check_mode(training: Any, running_mean: Any) -> None:
    """Statistics of the batch are the operator's own where it keeps none (weight standardisation is written so)."""
    refuse_training("training", bool(training) and running_mean is not None)


def _batch_norm_spec(input: MetaTensor, training: bool = False, running_mean: Any = None, **rest: Any) -> Spec:
    _check_mode(training, running_mean)
    return like(input)


@operator("batch_norm", shape=_batch_norm_spec)
def batch_norm(
    input: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Array:
    _check_mode(training, running_mean)
    if running_mean is None or running_var is None:
        return _native_batch_norm_legit(input, weight, bias, training=True, eps=eps)[0]
    scale = 1.0 / np.sqrt(running_var + input.dtype.type(eps))
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * _per_channel(input, scale) + _per_channel(input, shift)


def _inference_spec(input: MetaTensor, **rest: Any) -> list[Spec]:
    return [like(input), ((0,), input.dtype), ((0,), input.dtype)]


@operator("_native_batch_norm_legit_no_training", shape=_inference_spec)
def _native_batch_norm_legit_no_training(
    input: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array,
    running_var: Array,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Returns (output, empty, empty), as ATen does."""
    empty = np.empty(0, input.dtype)
    return batch_norm(input, weight, bias, running_mean, running_var, eps=eps), empty, empty


def _legit_spec(input: MetaTensor, running_mean: Any = None, training: bool = True, **rest: Any) -> list[Spec]:
    _check_mode(training, running_mean)
    statistics = (0,) if not training and running_mean is not None else (input.shape[1],)
    return [like(input), (statistics, input.dtype), (statistics, input.dtype)]


@operator("_native_batch_norm_legit", "native_batch_norm", shape=_legit_spec)
def _native_batch_norm_legit(
    input: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """With the batch's own statistics where none are given. Returns (output, mean, rstd)."""
    _check_mode(training, running_mean)
    if running_mean is not None and running_var is not None:
        return _native_batch_norm_legit_no_training(input, weight, bias, running_mean, running_var, momentum, eps)
    x, mean, rstd = _normalise(input, (0, *range(2, input.ndim)), eps)
    weight, bias = (None if v is None else _per_channel(input, v) for v in (weight, bias))
    return _affine(x, weight, bias), mean.reshape(-1), rstd.reshape(-1)


def _known_affine(shape: Sequence[int], weight: Any, bias: Any) -> tuple[Array, Array] | None:
    """Factors and summands in full, if they are known."""
    known = [np.ones(shape) if weight is None else weight, np.zeros(shape) if bias is None else bias]
    if not all(isinstance(value, np.ndarray) and value.shape == tuple(shape) for value in known):
        return None
    weight, bias = (np.ascontiguousarray(value, np.float32) for value in known)
    return weight, bias


def _lower_layer_norm(
    planner: Planner, op: str, *, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, **rest: Any,
) -> Lowered | Unsupported:  # fmt: skip
    """Over the last axis wherever it lies in memory, or over several in C order."""
    if refused := no_kernel("norm_pixels", input):
        return refused
    count, shape = len(normalized_shape), input.view.shape
    sizes = shape[len(shape) - count :]
    if not count or sizes != tuple(normalized_shape):
        raise ValueError(f"normalized_shape is {normalized_shape}; the input has shape {list(shape)}")
    affine = _known_affine(sizes, weight, bias)
    if affine is None:
        return Unsupported("weight or bias is not known before the run, or of another shape")
    order = memory_order(input.view)
    if order is None or count > 1:
        order = tuple(range(len(shape)))
    pixels = math.prod(shape[axis] for axis in order[order.index(len(shape) - 1) + 1 :])
    if pixels == 1 and (refused := no_kernel("norm_run", input)):
        return refused
    if order == tuple(range(len(shape))):
        input = planner.contiguous(input)
    if pixels == 1:
        runs = [value.reshape(1, -1) for value in affine]
        return _lower_norm_runs(planner, op, input, order, runs, math.prod(sizes), eps)
    out, threads = planner.empty(shape, input.type, order), planner.threads

    def bind(where: At) -> Call:
        source, target = (flat(where(tensor), order, -1, sizes[0], pixels) for tensor in (input, out))
        return bound("bind_norm_pixels", source, *affine, eps, target, threads, out.type.dtype.name)

    return plan_kernel(planner, op, "norm_pixels", bind, [input], out, in_place=[input])


def _lower_norm_runs(
    planner: Planner, op: str, x: Tensor, order: Sequence[int], affine: Sequence[Array], length: int, eps: float
) -> Lowered:
    """Normalises runs of `length`, as many to an image as there are rows of factors and summands, `[groups, C]`."""
    out, threads = planner.empty(x.view.shape, order=order), planner.threads

    def bind(at: At) -> Call:
        source, target = (flat(at(tensor), order, -1, length) for tensor in (x, out))
        return bound("bind_norm_runs", source, *affine, eps, target, threads)

    return plan_kernel(planner, op, "norm_run", bind, [x], out, in_place=[x])


def _as_input(input: MetaTensor, **rest: Any) -> Spec:
    return like(input)


@operator("layer_norm", shape=_as_input, lower=_lower_layer_norm)
def layer_norm(
    input: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Array:
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def _native_layer_spec(input: MetaTensor, normalized_shape: Sequence[int], **rest: Any) -> list[Spec]:
    kept = input.shape[: input.ndim - len(normalized_shape)] + (1,) * len(normalized_shape)
    return [like(input), (kept, input.dtype), (kept, input.dtype)]


@operator("native_layer_norm", shape=_native_layer_spec)
def native_layer_norm(
    input: Array, normalized_shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    x, mean, rstd = _normalise(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _affine(x, weight, bias), mean, rstd


def _lower_group_norm(
    planner: Planner, op: str, *, input: Any, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, **rest: Any,
) -> Lowered | Unsupported:  # fmt: skip
    if refused := no_kernel("norm_run", input):
        return refused
    if input.view.ndim < 2:
        return Unsupported("the input has no channels")
    images, channels = input.view.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{channels} channels do not split into {num_groups} groups")
    affine = _known_affine([channels], weight, bias)
    if affine is None:
        return Unsupported("weight or bias is not known before the run, or of another shape")
    x, runs = planner.contiguous(input), [value.reshape(num_groups, -1) for value in affine]
    length = x.view.size // (images * num_groups)
    return _lower_norm_runs(planner, op, x, tuple(range(x.view.ndim)), runs, length, eps)


@operator("group_norm", shape=_as_input, lower=_lower_group_norm)
def group_norm(
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Array:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    x = _normalise(grouped, (2,), eps)[0].reshape(input.shape)
    weight, bias = (None if v is None else _per_channel(input, v) for v in (weight, bias))
    return _affine(x, weight, bias)


def _native_group_spec(input: MetaTensor, N: int, group: int, **rest: Any) -> list[Spec]:
    return [like(input), ((N, group), input.dtype), ((N, group), input.dtype)]


@operator("native_group_norm", shape=_native_group_spec)
def native_group_norm(
    input: Array, weight: Array | None, bias: Array | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Array, Array, Array]:
    _, mean, rstd = _normalise(input.reshape(N, group, -1), (2,), eps)
    return group_norm(input, group, weight, bias, eps), mean[..., 0], rstd[..., 0]


def _instance_spec(input: MetaTensor, use_input_stats: bool = True, running_mean: Any = None, **rest: Any) -> Spec:
    refuse_training("use_input_stats beside running statistics", use_input_stats and running_mean is not None)
    return like(input)


@operator("instance_norm", shape=_instance_spec)
def instance_norm(
    input: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Array:
    refuse_training("use_input_stats beside running statistics", use_input_stats and running_mean is not None)
    if not use_input_stats:
        return batch_norm(input, weight, bias, running_mean, running_var, eps=eps)
    return group_norm(input, input.shape[1], weight, bias, eps)


@operator("rms_norm", shape=_as_input)
def rms_norm(
    input: Array, normalized_shape: Sequence[int], weight: Array | None = None, eps: float | None = None
) -> Array:
    axes = tuple(range(-len(normalized_shape), 0))
    square = np.square(input, dtype=np.float64).sum(axis=axes, keepdims=True) / math.prod(normalized_shape)
    floor = np.finfo(input.dtype).eps if eps is None else eps
    return _affine((input / np.sqrt(square + floor)).astype(input.dtype), weight, None)
