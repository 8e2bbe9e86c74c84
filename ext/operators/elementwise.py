"""Element-wise arithmetic, comparisons and selection. Operands are arrays or numbers, in any mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from operator import eq, ge, gt, le, lt, ne, neg
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subp_ext.dtypes import FLOAT32, Array, ValueType
from subp_ext.operators.arguments import Number, Operand, like_torch
from subp_ext.operators.conversions import BFLOAT16, UINT8, is_quantized, quantization_of, tabulated
from subp_ext.operators.record import ELEMENTWISE, Lowered, Lowering, Unsupported, operator
from subp_ext.operators.steps import bound, flat, memory_order, no_kernel, on_numpy, plan_kernel, ufunc
from subp_ext.requantize import of_product, of_sum
from subp_ext.tensor import At, Call, Tensor, as_meta, type_of

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _lower_binary(
    planner: Planner,
    op: str,
    *,
    self: Any,
    other: Any,
    alpha: Number = 1,
    out_type: ValueType | None = None,
) -> Lowered | Unsupported:
    """Operands of one shape, or one with a number per plane, as a squeeze-and-excitation gate has."""
    if alpha != 1:
        return Unsupported("alpha is not 1")
    a, b = (self, other) if _size(self) >= _size(other) else (other, self)
    if quantization_of(a) is not None and out_type is not None and is_quantized(out_type, UINT8):
        return _lower_integers(planner, op, a, b, out_type)
    if isinstance(a, Tensor) and a.type == BFLOAT16 and isinstance(b, (int, float)):
        b = np.full((1,) * a.view.ndim, b, np.float32)
    fits = no_kernel("binary", a) is None and _is_array(b) and _one_type(a, b)
    met = None
    if fits:  # two casts of bfloat16 would cost more than copies; NumPy's loop takes float32 in any order
        met = _meet_copied(planner, a, b) if a.type == BFLOAT16 else _meet(a, b)
    if met is None:
        return on_numpy(planner, op, np.multiply if op == "mul" else np.add, self, other)
    a, b, order, runs = met
    if isinstance(b, np.ndarray) and not a.type.plain and b.size != runs:  # one number a run stays as exact as it is
        b = a.type.from_float(b)
    out, threads = planner.empty(a.view.shape, a.type, order), planner.threads

    def bind(at: At) -> Call:
        views = [flat(at(value), order, runs, -1) for value in (a, b, out)]
        return bound("bind_binary", op == "mul", *views[:2], None, views[2], threads, a.type.dtype.name)

    same = [a, b] if isinstance(b, Tensor) and b.view.shape == a.view.shape else [a]
    return plan_kernel(planner, op, "binary", bind, [a, b], out, in_place=same)


def _lower_integers(planner: Planner, op: str, a: Tensor, b: Any, out_type: ValueType) -> Lowered | Unsupported:
    """As `_lower_binary`, of quantized uint8; a sum is one of operands of one shape."""
    own, other, result = a.type.quantization, quantization_of(b), out_type.quantization
    if own is None or other is None or result is None:
        return Unsupported("an operand is not quantized")
    if refused := no_kernel("quantized_binary", a):
        return refused
    if op == "add" and a.view.shape != b.view.shape:
        return Unsupported("operands of several shapes")
    rescale = of_product(own, other, result) if op == "mul" else of_sum(own, other, result)
    if isinstance(rescale, str):
        return Unsupported(rescale)
    met = _meet_copied(planner, a, b)
    if met is None:
        return Unsupported("operands of shapes that meet in another way")
    a, b, order, runs = met
    out, threads = planner.empty(a.view.shape, out_type, order), planner.threads

    def bind(at: At) -> Call:
        first, second, target = (flat(at(value), order, runs, -1) for value in (a, b, out))
        return bound("bind_quantized_binary", op == "mul", first, second, rescale, target, threads)

    same = [a, b] if b.view.shape == a.view.shape else [a]
    return plan_kernel(planner, op, "quantized_binary", bind, [a, b], out, in_place=same)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _one_type(a: Tensor, b: Tensor | Array) -> bool:
    """Whether a kernel takes both: of bfloat16 also known numbers in float32."""
    return type_of(b) in (a.type, ValueType(FLOAT32)) if isinstance(b, np.ndarray) else b.type == a.type


class _Met(NamedTuple):
    """How two operands meet on a kernel."""

    a: Tensor  # the larger one
    b: Any  # the other, spread to it
    order: tuple[int, ...]  # of the larger one in memory
    runs: int  # of it, each of which meets a number of the other; 1 if every element meets one of its own


def _meet_copied(planner: Planner, a: Tensor, b: Any) -> _Met | None:
    """As `_meet`; operands that meet in C order alone are copied to it."""
    met, shape = _meet(a, b), as_meta(b).shape
    spread = as_meta(b).reshape((1,) * (a.view.ndim - len(shape)) + shape)
    if met is not None or not 0 < a.view.ndim >= len(shape) or _runs(a.view, spread) is None:
        return met
    return _meet(planner.contiguous(a), planner.contiguous(b))


def _meet(a: Tensor, b: Any) -> _Met | None:
    """How two operands meet; None if they do not."""
    order = memory_order(a.view)
    if order is None or a.view.ndim == 0:
        return None
    b = _spread(a.view, order, b)
    if b is None:
        return None
    laid_b = as_meta(b).transpose(order)
    runs = _runs(a.view.transpose(order), laid_b)
    return None if runs is None or not laid_b.flags.c_contiguous else _Met(a, b, order, runs)


def _size(value: Any) -> int:
    return as_meta(value).size if _is_array(value) else 0


def _runs(a: Array, b: Array) -> int | None:
    """Leading elements of `a` that each meet one number of `b`; None if the two meet otherwise."""
    if a.shape == b.shape:
        return 1
    cut = a.ndim
    while cut and b.shape[cut - 1] == 1:
        cut -= 1
    return math.prod(a.shape[:cut]) if b.shape[:cut] == a.shape[:cut] else None


def _spread(a: Array, order: tuple[int, ...], b: Any) -> Any:
    """`b` with as many dimensions as `a`; a constant with a number per channel also gets one per image."""
    shape, rank = as_meta(b).shape, a.ndim
    if len(shape) > rank:
        return None
    shape = (1,) * (rank - len(shape)) + shape
    if isinstance(b, Tensor):
        return replace(b, view=b.view.reshape(shape)) if b.view.flags.c_contiguous else None
    laid, own = [shape[axis] for axis in order], [a.shape[axis] for axis in order]
    cut = max((axis + 1 for axis in range(rank) if laid[axis] != 1), default=0)
    wanted = [own[axis] if axis < cut else 1 for axis in range(rank)]
    try:
        laid_b = np.ascontiguousarray(np.broadcast_to(b.reshape(shape).transpose(order), wanted))
    except ValueError:
        return None
    return laid_b.transpose(np.argsort(order))


@operator("add", shape=ELEMENTWISE, lower=_lower_binary)
def add(self: Operand, other: Operand, alpha: Number = 1) -> Any:
    return like_torch(self + (other if alpha == 1 else other * alpha), self, other)


def _lower_sub(planner: Planner, op: str, *, self: Any, other: Any, alpha: Number = 1) -> Lowered | Unsupported:
    return Unsupported("alpha is not 1") if alpha != 1 else on_numpy(planner, op, np.subtract, self, other)


@operator("sub", shape=ELEMENTWISE, lower=_lower_sub)
def sub(self: Operand, other: Operand, alpha: Number = 1) -> Any:
    return like_torch(self - (other if alpha == 1 else other * alpha), self, other)


@operator("rsub", shape=ELEMENTWISE)
def rsub(self: Operand, other: Operand, alpha: Number = 1) -> Any:
    return sub(other, self, alpha)


@operator("mul", shape=ELEMENTWISE, lower=_lower_binary)
def mul(self: Operand, other: Operand) -> Any:
    return like_torch(self * other, self, other)


def _lower_div(
    planner: Planner, op: str, *, self: Any, other: Any, rounding_mode: str | None = None
) -> Lowered | Unsupported:
    return Unsupported("with rounding") if rounding_mode else on_numpy(planner, op, np.true_divide, self, other)


@operator("div", "true_divide", "truediv", shape=ELEMENTWISE, lower=_lower_div)
def div(self: Operand, other: Operand, rounding_mode: str | None = None) -> Any:
    if rounding_mode == "floor":
        return floor_divide(self, other)
    quotient = like_torch(np.true_divide(self, other), self, other)
    if rounding_mode is None:
        return quotient
    whole = np.result_type(self, other).kind in "iu"
    return np.trunc(quotient).astype(np.result_type(self, other)) if whole else np.trunc(quotient)


@operator("floor_divide", shape=ELEMENTWISE)
def floor_divide(self: Operand, other: Operand) -> Any:
    return like_torch(self // other, self, other)


@operator("remainder", "mod", shape=ELEMENTWISE)
def remainder(self: Operand, other: Operand) -> Any:
    return like_torch(self % other, self, other)


@operator("pow", shape=ELEMENTWISE)
def power(self: Operand, exponent: Operand) -> Any:
    if isinstance(self, np.ndarray) and self.dtype.kind in "iu" and isinstance(exponent, float):
        self = self.astype(np.float32)
    return like_torch(np.power(self, exponent), self, exponent)


@operator("square", shape=ELEMENTWISE, lower=ufunc(np.square))
def square(self: Array) -> Array:
    return self * self


@operator("maximum", shape=ELEMENTWISE, lower=ufunc(np.maximum))
def maximum(self: Array, other: Array) -> Array:
    return np.maximum(self, other)


@operator("minimum", shape=ELEMENTWISE, lower=ufunc(np.minimum))
def minimum(self: Array, other: Array) -> Array:
    return np.minimum(self, other)


def _lower_clamp(
    planner: Planner,
    op: str,
    *,
    self: Any,
    min: Any = None,
    max: Any = None,
    out_type: ValueType | None = None,
) -> Lowered | Unsupported:
    if min is None and max is None:
        return Unsupported("without bounds")
    if not any(_is_array(bound) for bound in (min, max)):
        integers = tabulated(planner, op, self, out_type, lambda x: clamp(x, min, max))
        if integers is not None:
            return integers
    return on_numpy(planner, op, np.clip, self, min, max)


@operator("clamp", "clip", shape=ELEMENTWISE, lower=_lower_clamp, fused={"relu6": {"min": 0, "max": 6}})
def clamp(self: Array, min: Operand | None = None, max: Operand | None = None) -> Array:
    if min is not None:
        self = np.maximum(self, np.asarray(min, self.dtype))
    return self if max is None else np.minimum(self, np.asarray(max, self.dtype))


@operator("clamp_min", shape=ELEMENTWISE, lower=ufunc(np.maximum))
def clamp_min(self: Array, min: Operand) -> Array:
    return clamp(self, min=min)


@operator("clamp_max", shape=ELEMENTWISE, lower=ufunc(np.minimum))
def clamp_max(self: Array, max: Operand) -> Array:
    return clamp(self, max=max)


@operator("addcmul", shape=ELEMENTWISE)
def addcmul(self: Array, tensor1: Array, tensor2: Array, value: Number = 1) -> Any:
    return like_torch(self + value * tensor1 * tensor2, self, tensor1, tensor2)


@operator("addcdiv", shape=ELEMENTWISE)
def addcdiv(self: Array, tensor1: Array, tensor2: Array, value: Number = 1) -> Any:
    return like_torch(self + value * tensor1 / tensor2, self, tensor1, tensor2)


@operator("lerp", shape=ELEMENTWISE)
def lerp(self: Array, end: Array, weight: Operand) -> Any:
    return like_torch(self + weight * (end - self), self, end)


@operator("where", shape=ELEMENTWISE)
def where(condition: Array, self: Operand, other: Operand) -> Any:
    return like_torch(np.where(condition, self, other), condition, self, other)


@operator("masked_fill", shape=ELEMENTWISE)
def masked_fill(self: Array, mask: Array, value: Operand) -> Array:
    return np.where(mask, np.asarray(value, self.dtype), self)


@operator("bitwise_not", "logical_not", shape=ELEMENTWISE)
def logical_not(self: Array) -> Array:
    return ~self


@operator("rsqrt", shape=ELEMENTWISE)
def rsqrt(self: Array) -> Any:
    return like_torch(1.0 / np.sqrt(self), self)


def _unary(name: str, function: Callable[[Any], Any], lower: Lowering | None = None) -> None:
    def reference(self: Operand) -> Any:
        return like_torch(function(self), self)

    operator(name, shape=ELEMENTWISE, lower=lower)(reference)


def _binary(name: str, function: Callable[[Any, Any], Any]) -> None:
    def reference(self: Operand, other: Operand) -> Any:
        return like_torch(function(self, other), self, other)

    operator(name, shape=ELEMENTWISE)(reference)


for _name in ("exp", "sqrt", "abs"):
    _unary(_name, getattr(np, _name), ufunc(getattr(np, _name)))
_unary("neg", neg, ufunc(np.negative))
for _name in ("expm1", "log", "log2", "log1p", "sin", "cos", "floor", "ceil", "trunc", "sign", "round"):
    _unary(_name, getattr(np, _name))
_unary("reciprocal", lambda x: 1.0 / x)
for _compare in (eq, ne, lt, le, gt, ge):
    _binary(_compare.__name__, _compare)
for _name in ("logical_and", "logical_or", "bitwise_and", "bitwise_or"):
    _binary(_name, getattr(np, _name))
_binary("atan2", np.arctan2)
