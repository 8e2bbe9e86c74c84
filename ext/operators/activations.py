"""Activations. Those with a kernel stand in the order in which the kernels list them, in kernels/activation.h."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, ValueType
from subp_ext.operators.arguments import like_torch
from subp_ext.operators.conversions import activation, tabulated
from subp_ext.operators.record import (
    DRY_RUN,
    ELEMENTWISE,
    Lowered,
    MetaTensor,
    Spec,
    Unsupported,
    fused_activation,
    operator,
)
from subp_ext.operators.shape_inference import like
from subp_ext.operators.steps import on_numpy

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _wide(function: Callable[..., Array]) -> Callable[..., Array]:
    """Computes in float64 and rounds once: the smooth activations are then right to the last bit."""

    @wraps(function)
    def run(self: Array, **args: float) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return like_torch(function(np.asarray(self, np.float64), **args), self)

    return run


@operator("relu", shape=ELEMENTWISE, lower=activation, fused="relu")
def relu(self: Array) -> Array:
    return np.maximum(self, self.dtype.type(0))


@operator("relu6", shape=ELEMENTWISE, lower=activation, fused="relu6")
def relu6(self: Array) -> Array:
    return hardtanh(self, 0.0, 6.0)


@operator("silu", shape=ELEMENTWISE, lower=activation, fused="silu")
@_wide
def silu(self: Array) -> Array:
    return self / (1.0 + np.exp(-self))


@operator("hardswish", shape=ELEMENTWISE, lower=activation, fused="hardswish")
@_wide
def hardswish(self: Array) -> Array:
    return self * np.clip(self + 3.0, 0.0, 6.0) / 6.0


@operator("hardsigmoid", shape=ELEMENTWISE, lower=activation, fused="hardsigmoid")
@_wide
def hardsigmoid(self: Array) -> Array:
    return np.clip(self + 3.0, 0.0, 6.0) / 6.0


@operator("sigmoid", shape=ELEMENTWISE, lower=activation, fused="sigmoid")
@_wide
def sigmoid(self: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-self))


@operator("tanh", shape=ELEMENTWISE, lower=activation, fused="tanh")
@_wide
def tanh(self: Array) -> Array:
    return np.tanh(self)


@operator("erf", shape=ELEMENTWISE)
@_wide
def erf(self: Array) -> Array:
    """Series 7.1.5 of Abramowitz and Stegun up to 2.5, the continued fraction 7.1.14 of erfc beyond; good to 1e-13."""
    size = np.abs(self)
    near = np.minimum(size, 2.5)
    term, total = near.copy(), near.copy()
    for n in range(1, 50):
        term = term * -(near * near) / n
        total += term / (2 * n + 1)
    series = total * 2.0 / np.sqrt(np.pi)
    far = np.clip(size, 2.5, 6.0)  # erf(6) is 1 in float64
    fraction = far.copy()
    for n in range(60, 0, -1):
        fraction = far + 0.5 * n / fraction
    tail = 1.0 - np.exp(-far * far) / (np.sqrt(np.pi) * fraction)
    return np.where(np.isnan(self), self, np.copysign(np.where(size < 2.5, series, tail), self))


@operator("gelu", shape=ELEMENTWISE, lower=activation, fused={"gelu": {}, "gelu_tanh": {"approximate": "tanh"}})
def gelu(self: Array, approximate: str = "none") -> Array:
    x = np.asarray(self, np.float64)
    if approximate == "tanh":
        return like_torch(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))), self)
    return like_torch(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))), self)


@operator("mish", shape=ELEMENTWISE, lower=activation, fused="mish")
@_wide
def mish(self: Array) -> Array:
    return self * np.tanh(np.logaddexp(0.0, self))


@operator("leaky_relu", shape=ELEMENTWISE, lower=activation, fused="leaky_relu")
def leaky_relu(self: Array, negative_slope: float = 0.01) -> Array:
    return np.where(self > 0, self, self * self.dtype.type(negative_slope))


def _lower_hardtanh(
    planner: Planner,
    op: str,
    *,
    self: Any,
    min_val: float = -1,
    max_val: float = 1,
    out_type: ValueType | None = None,
) -> Lowered | Unsupported:
    integers = tabulated(planner, op, self, out_type, lambda x: hardtanh(x, min_val, max_val))
    if integers is not None:
        return integers
    if fused_activation(op, {"min_val": min_val, "max_val": max_val}):
        return activation(planner, op, self=self, min_val=min_val, max_val=max_val)
    return on_numpy(planner, op, np.clip, self, min_val, max_val)


@operator("hardtanh", shape=ELEMENTWISE, lower=_lower_hardtanh, fused={"relu6": {"min_val": 0, "max_val": 6}})
def hardtanh(self: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    return np.clip(self, self.dtype.type(min_val), self.dtype.type(max_val))


@operator("softplus", shape=ELEMENTWISE)
@_wide
def softplus(self: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    x = self * beta
    return np.where(x > threshold, self, np.log1p(np.exp(np.minimum(x, threshold))) / beta)


@operator("elu", shape=ELEMENTWISE)
@_wide
def elu(self: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    return scale * np.where(self > 0, self, alpha * np.expm1(np.minimum(self, 0.0) * input_scale))


@operator("celu", shape=ELEMENTWISE)
@_wide
def celu(self: Array, alpha: float = 1.0) -> Array:
    return np.maximum(self, 0.0) + np.minimum(0.0, alpha * np.expm1(self / alpha))


@operator("threshold", shape=ELEMENTWISE)
def threshold(self: Array, threshold: float, value: float) -> Array:
    return np.where(self <= threshold, self.dtype.type(value), self)


@operator("selu", shape=ELEMENTWISE)
def selu(self: Array) -> Array:
    return elu(self, alpha=1.6732632423543772, scale=1.0507009873554805)


def _as_self(self: MetaTensor, weight: MetaTensor) -> Spec:
    return like(self)


@operator("prelu", "_prelu_kernel", shape=_as_self)
def prelu(self: Array, weight: Array) -> Array:
    """One slope per channel (dimension 1), or one for all."""
    slope = weight if weight.ndim == self.ndim else weight.reshape(-1, *[1] * (self.ndim - 2))
    return np.where(self > 0, self, self * slope)


@operator("log_sigmoid", shape=ELEMENTWISE)
@_wide
def log_sigmoid(self: Array) -> Array:
    return -np.logaddexp(0.0, -self)


@operator("glu", shape=DRY_RUN)
def glu(self: Array, dim: int = -1) -> Array:
    value, gate = np.split(self, 2, axis=dim)
    return value * sigmoid(gate)
