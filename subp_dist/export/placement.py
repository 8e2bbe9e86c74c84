"""Which nodes of a graph run on integers.

Convolutions and linear layers are what int8 is for. Other operators that have an integer form follow them where that
saves a way to float32 and back: a node between two of them, never one on its own.
"""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from subp_ext import Graph, Node, Ref, UniformBlockSparse
from subp_ext.operators import OPERATORS, VIEW
from subp_ext.operators.record import FUSED

from ..errors import UsageError

HEAVY = ("conv2d", "linear")

# What integers reach by raising the lower bound, in a convolution's store or alone.
RELUS = (None, "relu", "relu6")

# Of one tensor, value by value: any function of these is a table of 256 entries.
POINTWISE = {
    *("silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "erf", "gelu", "mish", "leaky_relu", "hardtanh", "elu"),
    *("selu", "softplus", "log_sigmoid", "clamp", "clip", "clamp_min", "clamp_max", "square", "pow"),
    *("add", "sub", "rsub", "mul", "div"),
}

_AVERAGES = ("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "mean")

# Results of the same type as the operand, none of them new.
_PASSES = ("max_pool2d", "upsample_nearest2d", "pad", "constant_pad_nd")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Placement:
    """A graph in a form that integers can follow, and where they do.

    Attributes:
        graph: activations that integers apply by a table stand alone behind their convolution.
        int8: outputs of the nodes that run on integers.
        stored: those of them that are kept as uint8; the others hand out float32.
        kinds: by output of each of them without weights, what it is to integers (``kind_of``).
        reasons: by output of each convolution and linear layer that stays in float32, why.
    """

    graph: Graph
    int8: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    kinds: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def layer_name(node: Node) -> str:
    """The module of a convolution or linear layer, as timm names it; the value's name for other nodes."""
    weight = node.args.get("weight")
    if node.op not in HEAVY or not isinstance(weight, Ref):
        return node.output
    return weight.name.removesuffix(".weight")


def operands(node: Node) -> list[str]:
    """The values that a node reads as tensors of its result's kind: no weights, no sizes."""
    if node.op in ("cat", "concat"):
        return [ref.name for ref in node.args["tensors"] if isinstance(ref, Ref)]
    names = ("input", "residual") if node.op in HEAVY else ("self", "input", "other")
    return [value.name for name in names if isinstance(value := node.args.get(name), Ref)]


def kind_of(node: Node, shapes: Shapes, constants: Mapping[str, object]) -> str | None:
    """What an operator without weights is to integers; None if they have no form of it.

    Args:
        node: of the graph.
        shapes: of its operands.
        constants: of the graph; no operand may be one.
    """
    names = operands(node)
    if not names or any(name in constants for name in names):
        return None
    if node.op in ("cat", "concat"):
        return "cat"
    if node.op in _AVERAGES:
        return "average" if _averages_planes(node, shapes.get(names[0], ())) else None
    if node.op in _PASSES:
        return (
            "pass" if (node.args.get("value") or 0) == 0 and node.args.get("mode", "constant") == "constant" else None
        )
    if OPERATORS[node.op].shape is VIEW:
        return "pass"
    plain = all(
        not isinstance(v, (list, Ref)) for name, v in node.args.items() if name not in ("self", "input", "other")
    )
    if len(names) == 2 and node.op in ("add", "mul") and node.args.get("alpha", 1) == 1 and plain:
        return "binary" if _fit(node.op, *(shapes.get(name) for name in names)) else None
    # Numbers beside the tensor; a reference to a constant or to another size is none.
    scalar = all(isinstance(v, (int, float)) for k, v in node.args.items() if k == "other")
    if len(names) == 1 and list(node.refs()) == [Ref(names[0])] and (scalar or node.op in ("relu", "relu6")):
        return "pointwise" if plain and node.op in {*POINTWISE, "relu", "relu6"} else None
    return None


def _averages_planes(node: Node, shape: tuple[int, ...]) -> bool:
    if len(shape) != 4 or node.args.get("divisor_override") is not None or node.args.get("dtype") is not None:
        return False
    dims = node.args.get("dim", ())
    return node.op != "mean" or sorted(dim % 4 for dim in (dims if isinstance(dims, list) else [dims])) == [2, 3]


def _fit(op: str, first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> bool:
    """Whether two operands are of one shape, or one of them is a factor for each channel."""
    if first is None or second is None:
        return False
    gates = [shape for shape in (first, second) if len(shape) == 4 and shape[2:] == (1, 1)]
    return first == second or (op == "mul" and len(gates) == 1 and len(first) == 4 and first[:2] == second[:2])


def place(
    graph: Graph, shapes: Shapes, keep_float: Sequence[str] = (), sensitive: Mapping[str, str] | None = None
) -> Placement:
    """Chooses what runs on integers.

    Args:
        graph: in float32, as ``build_graph`` returns it.
        shapes: of all values that are tensors.
        keep_float: patterns of layers to leave in float32.
        sensitive: by name, layers to leave in float32 and the reason.

    Raises:
        UsageError: a pattern matches no layer; or nothing is left to quantize.
    """
    placement = Placement(graph)
    _check_patterns(graph, keep_float)
    for node in graph.nodes:
        if node.op in HEAVY:
            reason = _why_float(node, graph, keep_float) or (sensitive or {}).get(layer_name(node))
            if reason is None:
                placement.int8.add(node.output)
            else:
                placement.reasons[node.output] = reason
    if not placement.int8:
        raise UsageError(_nothing(placement.reasons))
    placement.graph = _unfused(graph, placement.int8)
    kinds = {
        node.output: kind
        for node in placement.graph.nodes
        if node.op not in HEAVY
        and (kind := kind_of(node, shapes, graph.constants)) is not None
        and not _kept(node, keep_float)
    }
    _grow(placement, kinds)
    _trim(placement, kinds)
    placement.kinds = {output: kind for output, kind in kinds.items() if output in placement.int8}
    readers = readers_of(placement.graph)
    for node in placement.graph.nodes:
        if node.output in placement.int8:
            only_float = node.op in HEAVY and node.args.get("residual") is None
            if not only_float or any(reader in placement.int8 for reader in readers[node.output]):
                placement.stored.add(node.output)
    return placement


def _nothing(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "the network has no convolution or linear layer to quantize"
    listed = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons.values()).most_common())
    return f"nothing is left to quantize: of {len(reasons)} layers, {listed}"


def _check_patterns(graph: Graph, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_kept(node, [pattern]) for node in graph.nodes):
            known = [layer_name(node) for node in graph.nodes if node.op in HEAVY]
            raise UsageError(f"--keep-float {pattern}: no layer has such a name; there are {', '.join(known[:5])}, ...")


def _kept(node: Node, patterns: Sequence[str]) -> bool:
    names = {layer_name(node), node.output}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _why_float(node: Node, graph: Graph, keep_float: Sequence[str]) -> str | None:
    """Why a convolution or linear layer cannot be quantized, or shall not be."""
    weight, bias = (node.args.get(name) for name in ("weight", "bias"))
    if not isinstance(weight, Ref) or weight.name not in graph.constants:
        return "has a weight that is computed"
    value = graph.constants[weight.name]
    if getattr(value.values if isinstance(value, UniformBlockSparse) else value, "dtype", None) != np.float32:
        return "has a weight that is not float32"
    if bias is not None and not (isinstance(bias, Ref) and bias.name in graph.constants):
        return "has a bias that is computed"
    if any(name in graph.constants for name in operands(node)):
        return "reads a constant"
    return "asked for (--keep-float)" if _kept(node, keep_float) else None


def _unfused(graph: Graph, int8: set[str]) -> Graph:
    """The graph with activations that are a table to integers as nodes of their own; `int8` follows."""
    nodes = []
    for node in graph.nodes:
        activation = node.args.get("activation")
        if node.output in int8 and activation not in RELUS:
            inner = f"{node.output}.sum"
            nodes.append(replace(node, output=inner, args={k: v for k, v in node.args.items() if k != "activation"}))
            op, parameters = function_node(activation)
            node = Node(op, node.output, {"self": Ref(inner)} | parameters)
            int8.remove(node.output)
            int8.add(inner)
        nodes.append(node)
    return replace(graph, nodes=nodes)


def function_node(activation: str) -> tuple[str, dict[str, object]]:
    """The operator and the parameters that a fused activation is."""
    assert activation in FUSED
    for op, record in OPERATORS.items():
        if activation in record.fused and op not in ("hardtanh", "clamp", "clip"):
            return op, dict(record.fused[activation])
    raise AssertionError(activation)


def readers_of(graph: Graph) -> dict[str, list[str]]:
    """Who reads each value as a tensor, as outputs of nodes; a graph's output is read from outside, by ""."""
    readers: dict[str, list[str]] = defaultdict(list)
    for node in graph.nodes:
        if node.op not in ("sym_size", "sym_numel", "numel"):
            for name in {ref.name for ref in node.refs()}:
                readers[name].append(node.output)
    for spec in graph.outputs:
        readers[spec.name].append("")
    return readers


def _grow(placement: Placement, kinds: Mapping[str, str]) -> None:
    """Takes in what lies beside integers, until nothing more does."""
    int8, readers, grown = placement.int8, readers_of(placement.graph), True
    while grown:
        grown = False
        for node in placement.graph.nodes:
            kind = kinds.get(node.output)
            if kind is None or node.output in int8:
                continue
            read = [name in int8 for name in operands(node)]
            followers = [reader in int8 for reader in readers[node.output]]
            joins = all(read)
            if kind in ("binary", "cat"):
                joins |= any(read) and any(followers)
            elif kind == "pass" and node.op in _PASSES:
                joins |= bool(followers) and all(followers)
            if joins:
                int8.add(node.output)
                grown = True


def _trim(placement: Placement, kinds: Mapping[str, str]) -> None:
    """Lets go of what hands its values to float32 alone and is as well off there.

    Those are functions, views and their like; and all else where nothing on integers needs their operands, so that the
    layer before them hands out float32 at no cost.
    """
    int8, readers, trimmed = placement.int8, readers_of(placement.graph), True
    nodes = {node.output: node for node in placement.graph.nodes}
    while trimmed:
        trimmed = False
        for output, kind in kinds.items():
            if output not in int8 or any(reader in int8 for reader in readers[output]):
                continue
            needed = any(
                reader in int8 and reader != output for name in operands(nodes[output]) for reader in readers[name]
            )
            if not needed or kind == "pointwise" or OPERATORS[nodes[output].op].shape is VIEW:
                int8.remove(output)
                trimmed = True
