"""Functions of one byte as tables of 256 entries: activations, other scales, and the normalisation of raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from subp_ext import Graph, Node, Ref, TensorSpec
from subp_ext.dtypes import ValueType
from subp_ext.operators import NUMBER, OPERATORS, VIEW

from ..errors import UsageError
from .fuse import renamed
from .placement import POINTWISE
from .scales import Function, function_of

LAYOUTS = ("nchw", "nhwc")

_BYTES = np.arange(256, dtype=np.uint8)


def with_tables(graph: Graph) -> Graph:
    """The graph with `lookup` nodes in place of those that compute a byte from one byte.

    Tables are made in float64 and rounded to the type of the result once.
    """
    types = value_types(graph)
    constants, nodes, names = dict(graph.constants), [], dict[bytes, str]()
    for node in graph.nodes:
        source = node.args.get("self", node.args.get("input"))
        read = types.get(source.name) if isinstance(source, Ref) else None
        if not _is_byte(read) or not _is_byte(node.type) or not _of_one(node):
            nodes.append(node)
            continue
        table = node.type.from_float(_function(node)(read.to_float(_BYTES)))
        name = names.setdefault(table.tobytes(), f"{node.output}.table")
        constants[name] = table
        function = "requantize" if node.op == "quantize" else node.op
        nodes.append(Node("lookup", node.output, {"self": source, "table": Ref(name), "function": function}, node.type))
    return replace(graph, nodes=nodes, constants=constants)


def value_types(graph: Graph) -> dict[str, ValueType]:
    """The declared types of values, those of views of them included."""
    types = {spec.name: spec.type for spec in graph.inputs if not spec.type.plain}
    for node in graph.nodes:
        source = node.args.get("self", node.args.get("input"))
        if node.type is not None:
            types[node.output] = node.type
        elif OPERATORS[node.op].shape is VIEW and isinstance(source, Ref) and source.name in types:
            types[node.output] = types[source.name]
    return types


def _is_byte(type: ValueType | None) -> bool:
    return type is not None and type.dtype.name == "uint8"


def _of_one(node: Node) -> bool:
    """Whether a node computes each element from one element: it reads one tensor, and its operator is such."""
    return node.op in (*POINTWISE, "quantize") and len(list(node.refs())) == 1


def _function(node: Node) -> Function:
    """What the node computes of real numbers; quantization itself is the rounding that follows."""
    return (lambda values: values) if node.op == "quantize" else function_of(node)


def with_uint8_input(graph: Graph, layout: str, mean: Sequence[float], std: Sequence[float]) -> Graph:
    """The graph for raw pixels, bytes from 0 to 255, as if they were normalised in float32 and then quantized.

    Args:
        graph: for normalised images [B, C, H, W].
        layout: of the pixels, ``nchw`` or ``nhwc``.
        mean, std: of each channel, for pixels from 0 to 1.

    Raises:
        UsageError: there are not as many means as channels, or no such layout.
    """
    spec = graph.inputs[0]
    channels = spec.shape[1]
    if layout not in LAYOUTS:
        raise UsageError(f"--uint8-input {layout}: expected one of {', '.join(LAYOUTS)}")
    if len(mean) != channels or len(std) != channels:
        raise UsageError(f"--uint8-input: mean and std have {len(mean)} and {len(std)} values for {channels} channels")
    real = normalised(mean, std)
    shape = spec.shape if layout == "nchw" else (spec.shape[0], *spec.shape[2:], channels)
    pixels, nodes, constants = spec.name, [], dict(graph.constants)
    if layout == "nhwc":
        pixels = f"{spec.name}.planes"
        nodes.append(Node("permute", pixels, {"self": Ref(spec.name), "dims": [0, 3, 1, 2]}))

    def lookup(output: str, table: np.ndarray, type: ValueType | None) -> Node:
        constants[f"{output}.table"] = table
        args = {"self": Ref(pixels), "table": Ref(f"{output}.table"), "function": "normalize"}
        return Node("lookup", output, args, type)

    floats = f"{spec.name}.normalized"
    taken = False
    for node in graph.nodes:
        if node.op == "quantize" and node.args["self"] == Ref(spec.name):
            nodes.append(lookup(node.output, node.type.from_float(real), node.type))
            continue
        names = {spec.name: pixels if OPERATORS[node.op].shape is NUMBER else floats}
        if floats in names.values() and Ref(spec.name) in node.refs() and not taken:
            nodes.append(lookup(floats, real, None))
            taken = True
        nodes.append(renamed(node, names))
    inputs = [TensorSpec(spec.name, shape, "uint8")]
    metadata = graph.metadata | {"uint8_input": layout}
    size = metadata.get("input_size")
    if layout == "nhwc" and isinstance(size, list) and len(size) == 3:
        metadata["input_size"] = [*size[1:], size[0]]  # as the input is laid out
    return replace(graph, inputs=inputs, nodes=nodes, constants=constants, metadata=metadata)


def normalised(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """[C, 256] float32: what each byte of each channel becomes, rounded at each step as torchvision's transforms do."""
    shape = (-1, 1)
    pixels = _BYTES.astype(np.float32) / np.float32(255)
    return (pixels[None] - np.array(mean, np.float32).reshape(shape)) / np.array(std, np.float32).reshape(shape)
