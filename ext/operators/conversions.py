"""Steps from one type to another: casts, quantization, and functions of a byte as a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import DTYPES, FLOAT32, Array, DType, Quantization, ValueType
from subp_ext.operators.record import FUSED, Lowered, Unsupported, fused_activation
from subp_ext.operators.steps import bound, flat, no_kernel, ordered, plan_kernel
from subp_ext.requantize import BOUNDS
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner

UINT8 = DTYPES["uint8"]
BFLOAT16 = ValueType(DTYPES["bfloat16"])

# Every uint8: what tables are made from.
BYTES = np.arange(256, dtype=np.uint8)


def converted(planner: Planner, tensor: Tensor, type: ValueType, why: str) -> Tensor:
    """A tensor of the run in another type, by a step of its own; the tensor itself if it is of that type."""
    if tensor.type == type:
        return tensor
    known = planner.conversions.get((tensor, type))
    if known is not None:
        return known
    out = recast(planner, "cast", tensor, type, why)
    if out is None:
        out = planner.empty(tensor.view.shape, type)
        planner.step("cast", "reference", why, _numpy_conversion(tensor, out), [tensor], [out])
    planner.conversions[tensor, type] = out
    return out


def _numpy_conversion(tensor: Tensor, out: Tensor) -> Callable[[At], Call]:
    def bind(at: At) -> Call:
        source, target = at(tensor), at(out)
        return lambda: np.copyto(target, out.type.from_float(tensor.type.to_float(source)))

    return bind


def recast(planner: Planner, op: str, tensor: Tensor, type: ValueType, why: str = "kernel") -> Tensor | None:
    """The real numbers of a tensor in another type, by a kernel; None if there is none between these types.

    Args:
        planner: gets the step.
        op: of the step.
        tensor: any memory order.
        type: of the result.
        why: of the step, for the report.
    """
    if not tensor.view.size:
        return None
    if is_quantized(tensor.type, UINT8) and is_quantized(type, UINT8):
        return look_up(planner, op, tensor, type.from_float(tensor.type.to_float(BYTES)), type, why)
    if BFLOAT16 in (tensor.type, type):
        return _cast(planner, op, tensor, type, why)
    if tensor.type.dtype is FLOAT32 and is_quantized(type, UINT8):
        operator, quantization = "quantize", type.quantization
    elif is_quantized(tensor.type, UINT8) and type.dtype is FLOAT32:
        operator, quantization = "dequantize", tensor.type.quantization
    else:
        return None
    assert quantization is not None
    scale, zero, threads = np.float64(quantization.scale), int(quantization.zero_point), planner.threads
    factors = (float(np.float32(1 / scale)), zero) if operator == "quantize" else (zero, float(scale))
    tensor, order = ordered(planner, tensor)
    out = planner.empty(tensor.view.shape, type, order)

    def bind(at: At) -> Call:
        source, target = (flat(at(value), order, -1) for value in (tensor, out))
        return bound(f"bind_{operator}", source, *factors, target, threads)

    return plan_kernel(planner, op, operator, bind, [tensor], out, dtype="uint8", why=why).value


def _cast(planner: Planner, op: str, tensor: Tensor, type: ValueType, why: str) -> Tensor | None:
    """As `recast`, from bfloat16 or to it; by way of float32 where the other type is none of the two."""
    real = ValueType(FLOAT32)
    if real not in (tensor.type, type):
        between = recast(planner, op, tensor, real, why)
        return None if between is None else recast(planner, op, between, type, why)
    if no_kernel("cast", tensor):
        return None
    tensor, order = ordered(planner, tensor)
    out, threads = planner.empty(tensor.view.shape, type, order), planner.threads
    types = tensor.type.dtype.name, type.dtype.name

    def bind(at: At) -> Call:
        source, target = (flat(at(value), order, -1) for value in (tensor, out))
        return bound("bind_cast", source, target, threads, *types)

    return plan_kernel(planner, op, "cast", bind, [tensor], out, dtype=types[0], why=why).value


def look_up(planner: Planner, op: str, tensor: Tensor, table: Array, type: ValueType, why: str = "kernel") -> Tensor:
    """A tensor of uint8 with each element replaced by that of a table, by a kernel.

    Args:
        planner: gets the step.
        op: of the step.
        tensor: not empty, any memory order.
        table: `[256]`, or `[C, 256]` with one per channel, the tensor's dimension 1; uint8 or float32.
        type: of the result.
        why: of the step, for the report.
    """
    if table.ndim == 1:
        tensor, order = ordered(planner, tensor)
        runs = 1
    else:
        tensor, order = planner.contiguous(tensor), tuple(range(tensor.view.ndim))
        runs = math.prod(tensor.view.shape[:2])
    tables, threads = np.ascontiguousarray(table.reshape(-1, len(BYTES))), planner.threads
    out = planner.empty(tensor.view.shape, type, order)

    def bind(at: At) -> Call:
        source, target = (flat(at(value), order, runs, -1) for value in (tensor, out))
        return bound("bind_lookup", source, tables, target, threads, tables.dtype.name)

    same = [tensor] if tables.dtype == np.uint8 else []
    return plan_kernel(planner, op, "lookup", bind, [tensor], out, same, dtype="uint8", why=why).value


def tabulated(
    planner: Planner, op: str, tensor: Any, out_type: ValueType | None, function: Callable[[Array], Array]
) -> Lowered | Unsupported | None:
    """Lowers a function that is exact in float32, such as a bound, on quantized uint8: as a table.

    Returns:
        None if the tensor is no quantized uint8.
    """
    if not isinstance(tensor, Tensor) or not is_quantized(tensor.type, UINT8):
        return None
    if not is_quantized(out_type, UINT8):
        return Unsupported("the result is not quantized")
    assert out_type is not None
    if not tensor.view.size:
        return Unsupported("the input is empty")
    table = out_type.from_float(function(tensor.type.to_float(BYTES)))
    return Lowered(look_up(planner, op, tensor, table, out_type, "a table"))


def is_quantized(type: ValueType | None, dtype: DType) -> bool:
    """Whether it is the type of integers of a dtype that stand for real numbers."""
    return type is not None and type.dtype is dtype and type.quantization is not None


def quantization_of(value: Any) -> Quantization | None:
    """That of a tensor of the run which is quantized uint8; None of all else."""
    return value.type.quantization if isinstance(value, Tensor) and value.type.dtype is UINT8 else None


def activation(
    planner: Planner, op: str, *, self: Any, out_type: ValueType | None = None, **parameters: Any
) -> Lowered | Unsupported:
    """Lowers an operator that convolutions can fuse, where it stands alone, for the parameters its kernels hold."""
    name = fused_activation(op, parameters)
    if name is None:
        return Unsupported("the kernels hold other parameters as constants")
    if name in BOUNDS:
        integers = tabulated(planner, op, self, out_type, FUSED[name])
        if integers is not None:
            return integers
    if refused := no_kernel("activate", self):
        return refused
    self, order = ordered(planner, self)
    out, threads = planner.empty(self.view.shape, self.type, order), planner.threads

    def bind(at: At) -> Call:
        source, target = (flat(at(tensor), order, -1) for tensor in (self, out))
        return bound("bind_activate", source, name, target, threads, out.type.dtype.name)

    return plan_kernel(planner, op, "activate", bind, [self], out, in_place=[self])
