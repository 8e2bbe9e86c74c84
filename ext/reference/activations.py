"""Activations, and the table by which convolutions fuse them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from subp_ext.reference.registry import like_torch, register


def _wide(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Computes in float64 and rounds once: the smooth activations are then right to the last bit."""

    def run(self: np.ndarray, **args: float) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            return like_torch(function(np.asarray(self, np.float64), **args), self)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


@register("relu")
def relu(self: np.ndarray) -> np.ndarray:
    return np.maximum(self, self.dtype.type(0))


@register("hardtanh")
def hardtanh(self: np.ndarray, min_val: float = -1.0, max_val: float = 1.0) -> np.ndarray:
    return np.clip(self, self.dtype.type(min_val), self.dtype.type(max_val))


@register("relu6")
def relu6(self: np.ndarray) -> np.ndarray:
    return hardtanh(self, 0.0, 6.0)


@register("sigmoid")
@_wide
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


@register("silu")
@_wide
def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


@register("hardsigmoid")
@_wide
def hardsigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


@register("hardswish")
@_wide
def hardswish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3.0, 0.0, 6.0) / 6.0


@register("tanh")
@_wide
def tanh(x: np.ndarray) -> np.ndarray:
    return np.tanh(x)


@register("erf")
@_wide
def erf(x: np.ndarray) -> np.ndarray:
    """Series 7.1.5 of Abramowitz and Stegun up to 2.5, the continued fraction 7.1.14 of erfc beyond; good to 1e-13."""
    size = np.abs(x)
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
    return np.where(np.isnan(x), x, np.copysign(np.where(size < 2.5, series, tail), x))


@register("gelu")
def gelu(self: np.ndarray, approximate: str = "none") -> np.ndarray:
    x = np.asarray(self, np.float64)
    if approximate == "tanh":
        return like_torch(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))), self)
    return like_torch(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))), self)


@register("softplus")
@_wide
def softplus(x: np.ndarray, beta: float = 1.0, threshold: float = 20.0) -> np.ndarray:
    return np.where(x * beta > threshold, x, np.log1p(np.exp(np.minimum(x * beta, threshold))) / beta)


@register("mish")
@_wide
def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.logaddexp(0.0, x))


@register("elu")
@_wide
def elu(x: np.ndarray, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> np.ndarray:
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) * input_scale))


@register("selu")
def selu(self: np.ndarray) -> np.ndarray:
    return elu(self, alpha=1.6732632423543772, scale=1.0507009873554805)


@register("leaky_relu")
def leaky_relu(self: np.ndarray, negative_slope: float = 0.01) -> np.ndarray:
    return np.where(self > 0, self, self * self.dtype.type(negative_slope))


@register("prelu", "_prelu_kernel")
def prelu(self: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One slope per channel (dimension 1), or one for all."""
    slope = weight if weight.ndim == self.ndim else weight.reshape(-1, *[1] * (self.ndim - 2))
    return np.where(self > 0, self, self * slope)


@register("log_sigmoid")
@_wide
def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


@register("glu")
def glu(self: np.ndarray, dim: int = -1) -> np.ndarray:
    value, gate = np.split(self, 2, axis=dim)
    return value * sigmoid(gate)


FUSED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": relu,
    "relu6": relu6,
    "silu": silu,
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "mish": mish,
    "leaky_relu": leaky_relu,
}


def activate(x: np.ndarray, activation: str | None) -> np.ndarray:
    """Applies a fused activation by its name in `graph.ACTIVATIONS`."""
    return x if activation is None else FUSED[activation](x)
