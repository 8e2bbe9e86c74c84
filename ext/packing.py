"""Weights of a graph in the form that kernels read, packed once when a session is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from subp_ext import operators
from subp_ext.convolution import Convolution
from subp_ext.folding import guarded
from subp_ext.fused_depthwise import FusedDepthwise, fuse_depthwise
from subp_ext.graph import Graph, Node
from subp_ext.operators import NUMBER, OPERATORS


def pack_weights(
    graph: Graph, nodes: Sequence[Node], constants: dict[str, Any]
) -> tuple[list[Node], dict[str, Convolution | FusedDepthwise]]:
    """Packs what nodes multiply with, and fuses convolutions with the depthwise ones that follow.

    Args:
        graph: inputs, outputs and the types of values.
        nodes: its nodes that are not constant, in order.
        constants: known values by name; loses plain weights that a packed form takes the place of.

    Returns:
        Nodes in order, those with weights without them, and packed weights by the name of the node's output.

    Raises:
        ValueError: names the node whose weights do not fit.
    """
    packed: dict[str, Convolution | FusedDepthwise] = {}
    readers = Counter(ref.name for node in nodes for ref in node.refs())
    kept: list[Node] = []
    outputs = {spec.name for spec in graph.outputs}
    sized: set[str] = set()  # what follows from the sizes of the inputs: planning computes it, by the reference
    types = operators.value_types(graph)
    for node in nodes:
        follows = all(ref.name in constants or ref.name in sized for ref in node.refs())
        if follows or OPERATORS[node.op].shape is NUMBER:
            sized.add(node.output)
            kept.append(node)
            continue
        weights = guarded(node, partial(operators.pack, node, constants, types))
        if weights is None:
            kept.append(node)
            continue
        packed[node.output] = weights
        rest = {name: value for name, value in node.args.items() if name in ("input", "residual")}
        remaining = Node(node.op, node.output, rest, node.type)
        readers.subtract(ref.name for ref in node.refs())
        readers.update(ref.name for ref in remaining.refs())
        for ref in node.refs():
            if not readers[ref.name] and ref.name not in outputs:
                constants.pop(ref.name, None)  # the packed form takes its place
        kept.append(remaining)
    return fuse_depthwise(kept, packed, outputs), packed
