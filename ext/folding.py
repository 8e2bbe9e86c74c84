"""What a graph computes from constants and sizes alone: by the references of the operators, before any run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from subp_ext import operators, runtime
from subp_ext.dtypes import TypedArray, as_type, dtype_of
from subp_ext.graph import Graph, Node, Ref
from subp_ext.operators import ELEMENTWISE, NUMBER, OPERATORS, VIEW, Rule
from subp_ext.tensor import as_meta

# What a graph may compute from constants when it is loaded, in bytes: more than any network's tables and weights.
MAX_CONSTANT_BYTES = 4 << 30

# Sizes and counts that a graph computes; beyond are only those of hostile files.
MAX_NUMBER = 1 << 62


def fold(graph: Graph) -> tuple[dict[str, Any], list[Node]]:
    """Constants and all that follows from them, and the nodes that remain.

    Raises:
        ValueError: names the node that failed, or whose result is too large.
    """
    constants: dict[str, Any] = {name: _aligned(value) for name, value in graph.constants.items()}
    nodes, room = [], min(MAX_CONSTANT_BYTES, runtime.memory_limit())
    for node in graph.nodes:
        if any(ref.name not in constants for ref in node.refs()):
            nodes.append(node)
            continue
        args = resolve(node.args, constants)
        value = guarded(node, partial(compute_constant, node, args, room))
        constants[node.output] = value
        owned = [array for array in operators.arrays_in(value) if array.flags.owndata]
        room -= sum(array.nbytes for array in owned)
    return constants, nodes


def _aligned(constant: Any) -> Any:
    """A constant whose elements lie where kernels may read them; a Graph may be given others."""
    if isinstance(constant, TypedArray):
        return TypedArray(np.require(constant.values, requirements="A"), constant.type)
    return np.require(constant, requirements="A") if isinstance(constant, np.ndarray) else constant


def guarded(node: Node, function: Callable[[], Any]) -> Any:
    """Calls, with the node's name in front of what goes wrong.

    Raises:
        ValueError: anything did.
    """
    try:
        return function()
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError) as error:
        text = str(error) or type(error).__name__
        raise ValueError(f"node {node.output!r} ({node.op}): {text}") from error


def check_size(shape: Sequence[int], dtype: np.dtype, limit: int) -> int:
    """Returns the bytes of a tensor.

    Raises:
        ValueError: they are more than `limit`, or no numbers.
    """
    if dtype != np.uint16:  # which holds bfloat16
        dtype_of(dtype)
    nbytes = math.prod(int(size) for size in shape) * dtype.itemsize
    if nbytes > limit or len(shape) > 32:
        sizes = ", ".join(str(size) for size in shape)
        raise ValueError(
            f"a {dtype} tensor of shape [{sizes}] takes {nbytes / 1e9:.3g} GB; there is room for {limit / 1e9:.1f} GB"
        )
    return nbytes


def compute(op: str, args: dict[str, Any], limit: int) -> Any:
    """Runs the reference on known values, after a check that the result has a reasonable size.

    Raises:
        ValueError: it has not; and whatever the reference raises.
    """
    rule = OPERATORS[op].shape
    if rule is ELEMENTWISE and any(isinstance(args.get(name), (str, list)) for name in ("self", "other")):
        raise ValueError("takes tensors and numbers")
    if rule is VIEW:
        operators.check_pieces(op, args)
    elif rule is not NUMBER and (operators.arrays_in(args) or not isinstance(rule, Rule)) and not _masks(op, args):
        found = operators.infer(op, as_meta(args))
        for shape, dtype in found if isinstance(found, list) else [found]:
            check_size(shape, as_type(dtype).dtype.storage, limit)
    with np.errstate(all="ignore"):
        result = OPERATORS[op].reference(**args)
    if isinstance(result, (int, float, np.number)) and abs(float(result)) > MAX_NUMBER and math.isfinite(result):
        raise ValueError(f"computes {result:.3g}, which is no size of a tensor")
    return result


def compute_constant(node: Node, args: dict[str, Any], limit: int) -> Any:
    """Runs a node whose arguments are known: typed ones as real numbers, the result in the type the node declares.

    Raises:
        ValueError: as `compute`.
    """
    value = compute(node.op, _real(args), limit)
    if node.type is None or node.type.plain or isinstance(value, TypedArray):
        return value
    return TypedArray(node.type.from_float(value), node.type)


def _real(value: Any) -> Any:
    """The argument with float32 arrays in place of typed constants."""
    if isinstance(value, TypedArray):
        return value.to_float()
    if isinstance(value, dict):
        return {name: _real(item) for name, item in value.items()}
    return [_real(item) for item in value] if isinstance(value, (list, tuple)) else value


def _masks(op: str, args: dict[str, Any]) -> bool:
    """Whether known masks select: the result is then no larger than what they select from."""
    return op == "index" and all(i is None or i.dtype.kind == "b" for i in args["indices"])


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """Replaces references, nested ones too, by what they name."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, dict):
        return {name: resolve(item, values) for name, item in value.items()}
    return [resolve(item, values) for item in value] if isinstance(value, (list, tuple)) else value
