"""Networks in bfloat16: which values and weights of a graph become it, and what a CPU without it does instead.

Products are of bfloat16 and summed in float32, where bias, residual and activation are added, too; the result is
rounded once. `convert` decides by what a value is read as: planes between layers become bfloat16, while inputs and
outputs of the graph and what only operators in float32 read stay float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from subp_ext.dtypes import FLOAT32, TypedArray
from subp_ext.graph import Constant, Graph, Node, Ref
from subp_ext.operators import OPERATORS, VIEW
from subp_ext.operators.conversions import BFLOAT16
from subp_ext.operators.steps import no_fast_bfloat16
from subp_ext.sparse import UniformBlockSparse

# What a graph's metadata says of its values of bfloat16: that is precision enough, so float32 will do as well.
PRECISION, NAME = "precision", "bfloat16"

# Layers whose weights become bfloat16, and what they read as bfloat16.
_LAYERS = {"conv2d": ("input", "residual"), "conv_transpose2d": ("input",), "linear": ("input",)}

# Operators with kernels for planes of bfloat16, beside activations and views, which need none.
_PLANES = {
    "add", "mul", "max_pool2d", "avg_pool2d", "mean", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "layer_norm",
    "cat", "concat", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "upsample_nearest2d",
    "_upsample_nearest_exact2d", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip


def as_asked(graph: Graph, dtype: str | None) -> Graph:
    """Returns a graph as a session runs it.

    Args:
        graph: not changed.
        dtype: "bfloat16" to convert it, "float32" to compute in that what `convert` made, None for what it says.
    """
    if dtype == NAME:
        graph = convert(graph)
    # A CPU that would have to emulate products of bfloat16 takes float32, from the same weights.
    return in_float32(graph) if dtype == FLOAT32.name or no_fast_bfloat16() else graph


def weights_rounded(graph: Graph) -> Callable[[str, Constant], Constant]:
    """For `format.read`: rounds the weights that `convert` would, one by one, so that no two forms of all are held."""
    names = _weight_names(graph)
    return lambda name, constant: _rounded(constant) if name in names and _is_float(constant) else constant


def convert(graph: Graph) -> Graph:
    """Returns a graph in float32 as one in bfloat16; what is quantized or has another type stays as it is.

    Args:
        graph: not changed. Its weights may be bfloat16 already. It comes back if it is converted, or has no convolution
            or linear layer with a known weight of floats.
    """
    weights = {name for name in _weight_names(graph) if _is_float(graph.constants.get(name))}
    if not weights or graph.metadata.get(PRECISION) == NAME:
        return graph
    planes = _Planes.of(graph, weights)
    nodes: list[Node] = []
    stored = set()  # values that are bfloat16, also views that nothing wants to be
    for node in graph.nodes:
        operands = [ref.name for ref in planes.operands(node)] if planes.is_layer(node) else []
        for name in dict.fromkeys(operands):
            if name not in planes.values and name not in planes.casts:
                planes.casts[name] = planes.new_name(name)
                nodes.append(Node("cast", planes.casts[name], {"self": Ref(name), "dtype": NAME}, BFLOAT16))
        if operands:
            node = replace(node, args=_renamed(node.args, planes.casts, _LAYERS[node.op]))
        is_view = _is_view(node)
        if node.output in planes.values or (is_view and any(ref.name in stored for ref in planes.operands(node))):
            stored.add(node.output)
            node = node if is_view else replace(node, type=BFLOAT16)
        nodes.append(node)
    nodes = _with_outputs_in_float32(nodes, planes, {spec.name for spec in graph.outputs} & stored)
    constants = {name: _rounded(value) if name in weights else value for name, value in graph.constants.items()}
    return Graph(graph.inputs, graph.outputs, nodes, constants, dict(graph.metadata) | {PRECISION: NAME})


def in_float32(graph: Graph) -> Graph:
    """Returns a graph of `convert` without its values of bfloat16; its weights stay as they are stored.

    Other graphs come back as they are: there a type is what their author asks for.
    """
    if graph.metadata.get(PRECISION) != NAME:
        return graph
    outputs = {spec.name: spec.type for spec in graph.outputs}
    same: dict[str, str] = {}  # casts that go, by what they cast
    nodes = []
    for node in graph.nodes:
        args = _renamed(node.args, same, node.args)
        source = args.get("self")
        if node.op == "cast" and args.get("dtype") == NAME and isinstance(source, Ref) and node.output not in outputs:
            same[node.output] = source.name
            continue
        free = node.type == BFLOAT16 and outputs.get(node.output) != BFLOAT16
        nodes.append(replace(node, args=args, type=None if free else node.type))
    return replace(graph, nodes=nodes)


def _weight_names(graph: Graph) -> set[str]:
    """Names of what nothing reads but layers, as their weights."""
    read = {ref.name for node in graph.nodes for ref in node.refs() if ref is not _weight(node)}
    read |= {spec.name for spec in graph.outputs}
    return {ref.name for node in graph.nodes if (ref := _weight(node)) is not None} - read


def _weight(node: Node) -> Ref | None:
    ref = node.args.get("weight") if node.op in _LAYERS and node.type is None else None
    return ref if isinstance(ref, Ref) else None


def _is_float(value: Constant | None) -> bool:
    """Whether it is a weight of float32, or of bfloat16 already."""
    if isinstance(value, UniformBlockSparse):
        return value.dtype in (FLOAT32.name, NAME)
    return value.type == BFLOAT16 if isinstance(value, TypedArray) else value is not None and value.dtype == np.float32


def _rounded(value: Constant) -> Constant:
    if isinstance(value, UniformBlockSparse) and value.dtype != NAME:
        return replace(value, values=BFLOAT16.from_float(value.values), dtype=NAME)
    return TypedArray(BFLOAT16.from_float(value), BFLOAT16) if isinstance(value, np.ndarray) else value


def _renamed(args: Mapping[str, Any], names: Mapping[str, str], among: Any) -> dict[str, Any]:
    """Arguments with other names in their references, of those arguments that are `among`."""

    def of(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(names.get(value.name, value.name))
        return [of(item) for item in value] if isinstance(value, (list, tuple)) else value

    return {name: of(value) if name in among else value for name, value in args.items()}


def _with_outputs_in_float32(nodes: list[Node], planes: _Planes, outputs: set[str]) -> list[Node]:
    """Nodes with a cast to float32 for each of the graph's outputs that is bfloat16 because others read it, too."""
    inner = {name: planes.new_name(name) for name in outputs}
    found = [
        replace(node, output=inner.get(node.output, node.output), args=_renamed(node.args, inner, node.args))
        for node in nodes
    ]
    return [*found, *(Node("cast", name, {"self": Ref(inner[name]), "dtype": "float32"}) for name in sorted(outputs))]


@dataclass
class _Planes:
    """What becomes bfloat16 of a graph.

    Attributes:
        values: names of those that do.
        layers: outputs of the layers whose weights do.
        casts: by name, the copies in bfloat16 of what stays float32.
    """

    values: set[str]
    layers: set[str]
    taken: set[str]
    casts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, weights: set[str]) -> _Planes:
        layers = {node.output for node in graph.nodes if (ref := _weight(node)) is not None and ref.name in weights}
        names = {node.output for node in graph.nodes} | {spec.name for spec in graph.inputs} | set(graph.constants)
        planes = cls(set(), layers, names)
        foreign = {spec.name for spec in graph.inputs if spec.dtype != FLOAT32.name}
        for node in graph.nodes:
            operands = [ref.name for ref in planes.operands(node)]
            if planes.is_layer(node):
                planes.values.add(node.output)
            elif node.type is not None or any(name in foreign for name in operands):
                foreign.add(node.output)  # quantized, or whatever follows from it
            elif _has_kernel(node) and any(name in planes.values for name in operands):
                planes.values.add(node.output)
        planes._keep_what_is_read(graph)
        return planes

    def is_layer(self, node: Node) -> bool:
        return node.output in self.layers

    def operands(self, node: Node) -> list[Ref]:
        """What a node reads as numbers of its own type."""
        names = _LAYERS.get(node.op, ("self", "input", "other", "tensors"))
        return list(Node(node.op, "", {name: node.args.get(name) for name in names}).refs())

    def new_name(self, name: str) -> str:
        """A name for another form of a value."""
        found = f"{name}.{NAME}"
        while found in self.taken:
            found += "'"
        self.taken.add(found)
        return found

    def _keep_what_is_read(self, graph: Graph) -> None:
        """Leaves in float32 what nothing reads as bfloat16: what is but an output, or read by other operators."""
        readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for ref in self.operands(node):
                readers[ref.name].append(node)
        for node in reversed(graph.nodes):
            wanted = any(self.is_layer(reader) or reader.output in self.values for reader in readers[node.output])
            # A sum with a residual is bfloat16 as the residual is: kernels add nothing else.
            if not wanted and node.args.get("residual") is None:
                self.values.discard(node.output)


def _is_view(node: Node) -> bool:
    record = OPERATORS.get(node.op)
    return record is not None and record.shape is VIEW


def _has_kernel(node: Node) -> bool:
    """Whether there are kernels of bfloat16 for an operator, or it needs none."""
    record = OPERATORS.get(node.op)
    if record is None or node.args.get("alpha", 1) != 1:
        return False
    return _is_view(node) or bool(record.fused) or node.op in _PLANES
