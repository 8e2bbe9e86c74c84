"""Elementwise arithmetic, comparisons and selection. Operands are arrays or numbers, in any mix."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from subp_ext.reference.registry import like_torch, register

Operand = Any  # an array or a number


@register("add")
def add(self: Operand, other: Operand, alpha: float = 1) -> Operand:
    return like_torch(self + (other if alpha == 1 else other * alpha), self, other)


@register("sub")
def sub(self: Operand, other: Operand, alpha: float = 1) -> Operand:
    return like_torch(self - (other if alpha == 1 else other * alpha), self, other)


@register("rsub")
def rsub(self: Operand, other: Operand, alpha: float = 1) -> Operand:
    return sub(other, self, alpha)


@register("mul")
def mul(self: Operand, other: Operand) -> Operand:
    return like_torch(self * other, self, other)


@register("div", "true_divide", "truediv")
def div(self: Operand, other: Operand, rounding_mode: str | None = None) -> Operand:
    if rounding_mode == "floor":
        return floor_divide(self, other)
    quotient = like_torch(np.true_divide(self, other), self, other)
    if rounding_mode is None:
        return quotient
    whole = np.result_type(self, other).kind in "iu"
    return np.trunc(quotient).astype(np.result_type(self, other)) if whole else np.trunc(quotient)


@register("floor_divide")
def floor_divide(self: Operand, other: Operand) -> Operand:
    return like_torch(self // other, self, other)


@register("remainder", "mod")
def remainder(self: Operand, other: Operand) -> Operand:
    return like_torch(self % other, self, other)


@register("pow")
def power(self: Operand, exponent: Operand) -> Operand:
    if isinstance(self, np.ndarray) and self.dtype.kind in "iu" and isinstance(exponent, float):
        self = self.astype(np.float32)
    return like_torch(np.power(self, exponent), self, exponent)


@register("square")
def square(self: np.ndarray) -> np.ndarray:
    return self * self


@register("maximum")
def maximum(self: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.maximum(self, other)


@register("minimum")
def minimum(self: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.minimum(self, other)


@register("clamp", "clip")
def clamp(self: np.ndarray, min: Operand = None, max: Operand = None) -> np.ndarray:
    if min is not None:
        self = np.maximum(self, np.asarray(min, self.dtype))
    return self if max is None else np.minimum(self, np.asarray(max, self.dtype))


@register("clamp_min")
def clamp_min(self: np.ndarray, min: Operand) -> np.ndarray:
    return clamp(self, min=min)


@register("clamp_max")
def clamp_max(self: np.ndarray, max: Operand) -> np.ndarray:
    return clamp(self, max=max)


@register("addcmul")
def addcmul(self: np.ndarray, tensor1: np.ndarray, tensor2: np.ndarray, value: float = 1) -> np.ndarray:
    return like_torch(self + value * tensor1 * tensor2, self, tensor1, tensor2)


@register("addcdiv")
def addcdiv(self: np.ndarray, tensor1: np.ndarray, tensor2: np.ndarray, value: float = 1) -> np.ndarray:
    return like_torch(self + value * tensor1 / tensor2, self, tensor1, tensor2)


@register("lerp")
def lerp(self: np.ndarray, end: np.ndarray, weight: Operand) -> np.ndarray:
    return like_torch(self + weight * (end - self), self, end)


@register("where")
def where(condition: np.ndarray, self: Operand, other: Operand) -> np.ndarray:
    return like_torch(np.where(condition, self, other), condition, self, other)


@register("masked_fill")
def masked_fill(self: np.ndarray, mask: np.ndarray, value: Operand) -> np.ndarray:
    return np.where(mask, np.asarray(value, self.dtype), self)


@register("bitwise_not", "logical_not")
def logical_not(self: np.ndarray) -> np.ndarray:
    return ~self


@register("rsqrt")
def rsqrt(self: np.ndarray) -> np.ndarray:
    return like_torch(1.0 / np.sqrt(self), self)


def _register_unary(name: str, function: Callable[[Any], Any]) -> None:
    register(name)(lambda self: like_torch(function(self), self))


def _register_binary(name: str, function: Callable[[Any, Any], Any]) -> None:
    register(name)(lambda self, other: like_torch(function(self, other), self, other))


for _name in ("exp", "expm1", "log", "log2", "log1p", "sqrt", "abs", "sin", "cos", "floor", "ceil", "trunc", "sign"):
    _register_unary(_name, getattr(np, _name))
_register_unary("neg", operator.neg)
_register_unary("round", np.round)
_register_unary("reciprocal", lambda x: 1.0 / x)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _register_binary(_name, getattr(operator, _name))
for _name in ("logical_and", "logical_or", "bitwise_and", "bitwise_or", "atan2"):
    _register_binary(_name, getattr(np, "arctan2" if _name == "atan2" else _name))
