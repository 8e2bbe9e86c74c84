"""From nodes to steps: the choice between kernels and the reference.

A lowering makes all its checks first. Only then it copies, allocates and plans, so that a node it leaves to others has
taken nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import FLOAT32, Array, TypedArray, ValueType, as_type
from subp_ext.operators.conversions import BFLOAT16, converted
from subp_ext.operators.record import (
    OPERATORS,
    STORAGE_ARGS,
    VIEW,
    Lowered,
    Lowering,
    Operator,
    Unsupported,
    check_arguments,
)
from subp_ext.operators.shape_inference import infer, of_shape
from subp_ext.tensor import At, Call, Tensor, as_meta, tensors_in

if TYPE_CHECKING:
    from subp_ext.graph import Graph, Node
    from subp_ext.planner import Planner

# Arguments that stay with a node whose others are packed.
RUN_ARGS = ("input", "residual")

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
    if isinstance(outcome, Unsupported) and any(_convertible(record, value) for value in tensors_in(args)):
        # What no kernel does with other types float32 kernels may do, between two conversions.
        args = _map(args, partial(_as_float32, planner, record, outcome.reason))
        outcome = _lowered(planner, node, args, form)
    if isinstance(outcome, Unsupported) and form is not None:  # its weight is in no form that the reference knows
        raise ValueError(outcome.reason)
    lowered = isinstance(outcome, Lowered)
    value = outcome.value if isinstance(outcome, Lowered) else _reference(planner, node, args, outcome.reason)
    if not isinstance(value, Tensor) or (node.type is None and record.shape is VIEW):
        return value
    # What declares no type is float32 where it has a fraction, whatever its kernel passes on.
    type = node.type or (ValueType(FLOAT32) if value.type == BFLOAT16 else value.type)
    if value.type == type:
        return value
    found = "kernel" if lowered else "reference"
    return converted(planner, value, type, f"the {found} returns {value.type}, the node declares {type}")


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


def _convertible(record: Operator, tensor: Tensor) -> bool:
    """Whether a tensor that no kernel takes is worth a step that makes it float32.

    The reference converts for itself, but bfloat16 it converts more slowly than a kernel does.
    """
    return tensor.type == BFLOAT16 or (tensor.type.quantization is not None and record.lower is not None)


def _as_float32(planner: Planner, record: Operator, why: str, value: Any) -> Any:
    """A tensor of another type as float32, by a step of its own; anything else as it is."""
    if not isinstance(value, Tensor) or not _convertible(record, value):
        return value
    return converted(planner, value, ValueType(FLOAT32), why)


def pack(node: Node, constants: Mapping[str, Any], types: Mapping[str, ValueType] | None = None) -> Any:
    """Packs what is known of a node's arguments, once for all plans.

    Args:
        node: of a graph.
        constants: by name.
        types: of the values that are quantized or bfloat16, by name.

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
    """The types of quantized and bfloat16 values, by name: what inputs and nodes declare, and views pass on."""
    found = {spec.name: spec.type for spec in graph.inputs if not spec.type.plain}
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
    return {name: type for name, type in found.items() if not type.plain}


def _reference(planner: Planner, node: Node, args: dict[str, Any], why: str) -> Any:
    """The operator on NumPy, in memory that NumPy allocates, copied to its place.

    It computes with real numbers: typed arguments are converted before it, and its result after it.
    """
    reference = OPERATORS[node.op].reference
    specs = infer(node.op, as_meta(_map(args, _real_meta)))
    several = isinstance(specs, list)
    found = [(shape, as_type(type)) for shape, type in (specs if isinstance(specs, list) else [specs])]
    declared = None if several or node.type == BFLOAT16 else node.type
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


def _macs(op: str, args: dict[str, Any], results: int) -> int | None:
    """Multiply-accumulates of a product of matrices or a convolution on the reference; None for all else."""
    if op in ("matmul", "mm", "bmm"):
        return results * int(args["self"].view.shape[-1])
    return results * math.prod(as_meta(args["weight"]).shape[1:]) if op in ("conv2d", "linear") else None
