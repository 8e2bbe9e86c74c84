"""From nodes to steps: the choice between kernels and the reference, and the lowerings that many operators share.

A lowering makes all its checks first. Only then it copies, allocates and plans, so that a node it leaves to others has
taken nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subp_ext import runtime
from subp_ext.dtypes import DTYPES, FLOAT32, Array, DType, Quantization, TypedArray, ValueType, as_type
from subp_ext.operators.record import (
    FUSED,
    OPERATORS,
    STORAGE_ARGS,
    VIEW,
    Lowered,
    Lowering,
    Unsupported,
    check_arguments,
    fused_activation,
)
from subp_ext.operators.shape_inference import infer, of_shape
from subp_ext.requantize import BOUNDS
from subp_ext.tensor import At, Call, Tensor, as_meta, tensors_in, type_of

if TYPE_CHECKING:
    from subp_ext.graph import Graph, Node
    from subp_ext.planner import Planner

# Arguments that stay with a node whose others are packed.
RUN_ARGS = ("input", "residual")

UINT8 = DTYPES["uint8"]

# Every uint8: what tables are made from.
BYTES = np.arange(256, dtype=np.uint8)

# Those of `quantize` that make the type of its result.
QUANTIZE_ARGS = ("dtype", "scale", "zero_point")


def lower(planner: Planner, node: Node, args: dict[str, Any], packed: Mapping[str, Any]) -> Any:
    """Plans a node on the best implementation there is.

    Args:
        planner: gets the steps.
        node: its operator and output count.
        args: its arguments, references resolved.
        packed: by output, the form that replaces the constant arguments of a node.

    Returns:
        The node's value: a Tensor, or a list of them.

    Raises:
        ValueError: the arguments do not fit.
    """
    record, form = OPERATORS[node.op], packed.get(node.output)
    args = {name: value for name, value in args.items() if name not in STORAGE_ARGS}
    args = _map(args, lambda value: value.to_float() if isinstance(value, TypedArray) else value)
    if form is None:
        check_arguments(node.op, args)  # once more: now it is known what references stand for
    outcome = _lowered(planner, node, args, form)
    if isinstance(outcome, Unsupported) and record.lower is not None and any(map(_quantized, tensors_in(args))):
        # What no kernel does with integers float32 kernels may do, between two conversions.
        args = _map(args, partial(_as_float32, planner, outcome.reason))
        outcome = _lowered(planner, node, args, form)
    if isinstance(outcome, Unsupported):
        if form is not None:  # its weight is in no form that the reference knows
            raise ValueError(outcome.reason)
        return _reference(planner, node, args, outcome.reason)
    if node.type is None or outcome.value.type == node.type:
        return outcome.value
    why = f"the kernel returns {outcome.value.type}, the node declares {node.type}"
    return converted(planner, outcome.value, node.type, why)


def _lowered(planner: Planner, node: Node, args: dict[str, Any], form: Any) -> Lowered | Unsupported:
    """Plans a node by the lowering of its operator, if that supports it."""
    record = OPERATORS[node.op]
    if record.lower is None:
        return Unsupported("no kernel for this operator")
    wanted: dict[str, Any] = {"packed": form} if record.pack is not None else {}
    if _asks_for_type(record.lower):
        wanted["out_type"] = node.type
    return record.lower(planner, node.op, **wanted, **args)


@cache
def _asks_for_type(lowering: Lowering) -> bool:
    """Whether a lowering wants to know the type that its node declares, as the keyword `out_type`."""
    return "out_type" in inspect.signature(lowering).parameters


def _quantized(tensor: Tensor) -> bool:
    return tensor.type.quantization is not None


def _as_float32(planner: Planner, why: str, value: Any) -> Any:
    """A quantized tensor as float32, by a step of its own; anything else as it is."""
    if not isinstance(value, Tensor) or not _quantized(value):
        return value
    return converted(planner, value, ValueType(FLOAT32), why)


def pack(node: Node, constants: Mapping[str, Any], types: Mapping[str, ValueType] | None = None) -> Any:
    """Packs what is known of a node's arguments, once for all plans.

    Args:
        node: of a graph.
        constants: by name.
        types: of the values that are quantized, by name.

    Returns:
        None for an operator that has no packed form, or an argument that has to be known and is not.

    Raises:
        ValueError: arguments that do not fit.
    """
    record = OPERATORS[node.op]
    if record.pack is None:
        return None
    refs = list(node.refs())
    args = {name: value for name, value in node.args.items() if name not in RUN_ARGS and name not in STORAGE_ARGS}
    read = [value for value in args.values() if value in refs]
    if any(ref.name not in constants for ref in read):
        return None
    args = {name: constants[value.name] if value in read else value for name, value in args.items()}
    check_arguments(node.op, args | {name: node.args[name] for name in RUN_ARGS if name in node.args})
    quantized = {name: (types or {}).get(ref.name) for name, ref in node.args.items() if name in RUN_ARGS and ref}
    return record.pack(**args, operands=quantized, out_type=node.type)


def value_types(graph: Graph) -> dict[str, ValueType]:
    """The types of a graph's quantized values, by name: what inputs and nodes declare, and views pass on."""
    found = {spec.name: spec.type for spec in graph.inputs if spec.quantization is not None}
    for node in graph.nodes:
        if node.type is not None:
            found[node.output] = node.type
        elif OPERATORS[node.op].shape is VIEW:
            source = node.args.get("self", node.args.get("input"))
            if source in list(node.refs()) and source.name in found:
                found[node.output] = found[source.name]
        elif node.op == "quantize":
            with contextlib.suppress(ValueError, KeyError, TypeError):  # planning says what is wrong, and where
                found[node.output] = ValueType.from_json({name: node.args[name] for name in QUANTIZE_ARGS})
    return {name: type for name, type in found.items() if type.quantization is not None}


def _reference(planner: Planner, node: Node, args: dict[str, Any], why: str) -> Any:
    """The operator on NumPy, in memory that NumPy allocates, copied to its place.

    It computes with real numbers: typed arguments are converted before it, and its result after it.
    """
    reference = OPERATORS[node.op].reference
    specs = infer(node.op, as_meta(_map(args, _real_meta)))
    several = isinstance(specs, list)
    found = [(shape, as_type(type)) for shape, type in (specs if isinstance(specs, list) else [specs])]
    declared = None if several else node.type
    outs = [planner.empty(shape, declared or type) for shape, type in found]

    def bind(at: At) -> Call:
        bound, targets = {name: at(value) for name, value in args.items()}, at(outs)

        def call() -> None:
            result = reference(**{name: _real(value, bound[name]) for name, value in args.items()})
            for out, target, part in zip(outs, targets, result if several else [result], strict=True):
                if target.shape != part.shape:
                    raise RuntimeError(f"the result has shape {list(part.shape)}; planned was {list(target.shape)}")
                np.copyto(target, _stored(part, out.type))

        return call

    macs = _macs(node.op, args, outs[0].view.size)
    planner.step(node.op, "reference", why, bind, tensors_in(args), outs, macs=macs, dense_macs=macs)
    return outs if several else outs[0]


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """An argument with a function applied to all it holds."""
    if isinstance(value, dict):
        return {name: _map(item, function) for name, item in value.items()}
    return [_map(item, function) for item in value] if isinstance(value, (list, tuple)) else function(value)


def _real_meta(value: Any) -> Any:
    """A meta tensor of real numbers in place of a typed Tensor."""
    return of_shape(value.view.shape) if isinstance(value, Tensor) and not value.type.plain else value


def _real(value: Any, array: Any) -> Any:
    """What a reference gets for an argument: `array` is what its Tensors are in this run."""
    if isinstance(value, Tensor):
        return array if value.type.plain else value.type.to_float(array)
    if isinstance(value, (list, tuple)):
        return [_real(item, part) for item, part in zip(value, array, strict=True)]
    return array


def _stored(result: Any, type: ValueType) -> Array:
    """What a reference returned, as elements of a type."""
    if isinstance(result, TypedArray):
        if result.type == type:
            return result.values
        result = result.to_float()
    return result if type.plain and result.dtype == type.dtype.storage else type.from_float(result)


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


def ordered(planner: Planner, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor, copied if it has gaps, and its memory order."""
    order = memory_order(tensor.view)
    return (planner.copy(tensor), tuple(range(tensor.view.ndim))) if order is None else (tensor, order)


def _macs(op: str, args: dict[str, Any], results: int) -> int | None:
    """Multiply-accumulates of a product of matrices or a convolution on the reference; None for all else."""
    if op in ("matmul", "mm", "bmm"):
        return results * int(args["self"].view.shape[-1])
    return results * math.prod(as_meta(args["weight"]).shape[1:]) if op in ("conv2d", "linear") else None


def no_kernel(operator: str, value: Any, ndim: int | None = None) -> Unsupported | None:
    """Why no kernel of an operator takes a value; None if one does.

    Args:
        operator: as kernels name it.
        value: an argument of a node.
        ndim: dimensions that the kernels expect.
    """
    if not isinstance(value, Tensor):
        return Unsupported(f"a {type(value).__name__} is no tensor of the run")
    dtype = value.type.dtype.name
    if find_kernel(operator, dtype) is None:
        return Unsupported(f"no {dtype} kernel for {operator}")
    if ndim not in (None, value.view.ndim):
        return Unsupported(f"the kernels take {ndim} dimensions; this has {value.view.ndim}")
    return None if value.view.size else Unsupported("the input is empty")


class Kernel(NamedTuple):
    """What runs a step."""

    name: str
    passed_over: tuple[str, ...]  # faster kernels, each with the reason why it does not


def find_kernel(operator: str, dtype: str) -> Kernel | None:
    """The best kernel of an operator for a data type; None if there is none."""
    found = runtime.kernels().choose(runtime.forced_kernel_set(), operator, dtype)
    return None if found is None else Kernel(found[0], told(found[1]))


def told(better: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What a report says of faster kernels that do not run."""
    return tuple(f"{name}: {why}" for name, why in better)


def plan_kernel(
    planner: Planner,
    op: str,
    operator: str,
    bind: Callable[[At], Call],
    reads: Sequence[Any],
    out: Tensor,
    in_place: Sequence[Tensor] = (),
    dtype: str | None = None,
    why: str = "kernel",
) -> Lowered:
    """Appends a step on a kernel that `no_kernel` has nothing against.

    Args:
        planner: gets the step.
        op: of the node.
        operator: as kernels name it.
        bind: makes the call for one state.
        reads: tensors and arrays.
        out: what it writes, and returns.
        in_place: those read whose memory the result may take over.
        dtype: of the kernels; by default that of the result.
        why: of the step, for the report.
    """
    kernel = find_kernel(operator, dtype or out.type.dtype.name)
    if kernel is None:
        raise RuntimeError(f"no {dtype or out.type} kernel for {operator}")
    planner.step(op, kernel.name, why, bind, reads, [out], in_place=list(in_place), passed_over=kernel.passed_over)
    return Lowered(out)


def bound(function: str, *args: Any) -> Call:
    """A call that a function of the compiled module binds to the arrays of one state, with all checks made."""
    call: Call = getattr(runtime.kernels(), function)(runtime.forced_kernel_set(), *args)
    return call


def viewed(planner: Planner, tensor: Tensor, function: Callable[[Array], Array]) -> Tensor:
    """A view that never takes a copy, such as another shape of what is without gaps.

    Raises:
        RuntimeError: it would.
    """
    found = planner.view(tensor, function)
    if found is None:
        raise RuntimeError(f"a view of {list(tensor.view.shape)} would be a copy")
    return found


def memory_order(view: Array) -> tuple[int, ...] | None:
    """Its axes from the outermost in memory to the innermost, if it is without gaps; None if it has any."""
    order = tuple(sorted(range(view.ndim), key=lambda axis: (-view.strides[axis], axis)))
    if view.flags.c_contiguous:
        return tuple(range(view.ndim))
    return order if view.transpose(order).flags.c_contiguous else None


def flat(array: Array, order: Sequence[int], *shape: int) -> Array:
    """The array in its memory order, as another shape."""
    return array.transpose(order).reshape(shape)


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
    out, threads = planner.empty(self.view.shape, order=order), planner.threads

    def bind(at: At) -> Call:
        source, target = (flat(at(tensor), order, -1) for tensor in (self, out))
        return bound("bind_activate", source, name, target, threads)

    return plan_kernel(planner, op, "activate", bind, [self], out, in_place=[self])


def ufunc(function: Callable[..., Any]) -> Lowering:
    """The lowering of an operator of one operand or two, `self` and any other, that is a function of NumPy's."""

    def lowering(planner: Planner, op: str, *, self: Any, **other: Any) -> Lowered | Unsupported:
        return on_numpy(planner, op, function, self, *other.values())

    return lowering


def on_numpy(planner: Planner, op: str, function: Callable[..., Any], *operands: Any) -> Lowered | Unsupported:
    """NumPy's own loop, which takes any memory order and broadcast, writing into the arena."""
    arrays = [value for value in operands if isinstance(value, (Tensor, np.ndarray))]
    for value in arrays:
        if type_of(value).dtype is not FLOAT32:
            return Unsupported(f"NumPy's loop is for float32; an operand is {type_of(value)}")
    shape = np.broadcast_shapes(*(as_meta(value).shape for value in arrays))
    largest = as_meta(max(arrays, key=lambda value: as_meta(value).size))
    out = planner.empty(shape, order=memory_order(largest) if largest.shape == shape else None)

    def bind(at: At) -> Call:
        return partial(function, *at(operands), out=at(out))

    whole = [value for value in arrays if isinstance(value, Tensor) and value.view.strides == out.view.strides]
    planner.step(op, "numpy", "any memory order", bind, arrays, [out], in_place=whole)
    return Lowered(out)
