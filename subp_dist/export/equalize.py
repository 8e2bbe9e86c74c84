"""A range for each channel of what depthwise layers read, in a file that knows of none: cross-layer equalization.

A depthwise layer reads each channel on its own. So an output channel of the convolution before it may be divided by any
positive number that its weights in the depthwise layer are multiplied with: behind a ReLU both compute what they did.
With numbers that bring the largest values of all channels to about the same top, one scale serves all channels as well
as a scale for each would; weights have a scale for each output channel anyway and lose nothing. What was 6 for a ReLU6
becomes another number in each channel; it stays the top of the range, and what lies between the two has not been seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace

import numpy as np

import subp_ext
from subp_ext import Graph, Node, Ref, UniformBlockSparse

from .calibrate import batches, observed_graph
from .placement import readers_of
from .scales import of_blocks

# Images that run together.
_TOGETHER = 2

# Other images have larger values than those seen, for which one scale for all channels would leave the small ones room:
# every range ends so many times higher than what was seen. A channel that was hardly ever on gets a share of the top.
_ROOM, _SMALLEST = 1.5, 1 / 256


def equalized(graph: Graph, images: np.ndarray, int8: Set[str]) -> tuple[Graph, dict[str, float]]:
    """Brings the channels that depthwise layers read to the same range, where that can be done exactly.

    Args:
        graph: in float32.
        images: for calibration, [n, C, H, W].
        int8: outputs of the nodes that will run on integers.

    Returns:
        The graph, and by value what its range ends at; it begins at 0.
    """
    pairs = {conv.output: (conv, depthwise) for conv, depthwise in _pairs(graph, int8)}
    if not pairs:
        return graph, {}
    constants, ends = dict(graph.constants), {}
    for name, tops in _largest(graph, images, list(pairs)).items():
        conv, depthwise = pairs[name]
        if not np.isfinite(tops).all():
            continue  # refused by name when ranges are looked at
        # With 6 as the common top, the bound of a ReLU6 is where its range ends.
        ends[name] = 6.0 if conv.args["activation"] == "relu6" else float(tops.max()) or 1.0
        factors = np.clip(_ROOM * tops / ends[name], _SMALLEST, 1.0)
        for argument in ("weight", "bias"):
            if isinstance(ref := conv.args.get(argument), Ref):
                constants[ref.name] = _times(constants[ref.name], 1 / factors)
        ref = depthwise.args["weight"]
        multiplier = len(constants[ref.name]) // len(factors)
        constants[ref.name] = _times(constants[ref.name], np.repeat(factors, multiplier))
    return replace(graph, constants=constants), ends


def _pairs(graph: Graph, int8: Set[str]) -> Iterator[tuple[Node, Node]]:
    """Convolutions behind which there are a ReLU and one depthwise layer, and nothing else."""
    nodes, readers = {node.output: node for node in graph.nodes}, readers_of(graph)
    uses = Counter(ref.name for node in graph.nodes for ref in node.refs())
    for node in graph.nodes:
        if node.op != "conv2d" or node.args.get("activation") not in ("relu", "relu6") or node.args.get("residual"):
            continue
        read_by = readers[node.output]
        follower = nodes.get(read_by[0]) if len(read_by) == 1 else None
        if follower is None or follower.output not in int8 or not _is_depthwise(follower, graph):
            continue
        refs = [node.args["weight"], node.args.get("bias"), follower.args["weight"]]
        own = all(ref.name in graph.constants and uses[ref.name] == 1 for ref in refs if ref is not None)
        if own and follower.args.get("input") == Ref(node.output):
            yield node, follower


def _is_depthwise(node: Node, graph: Graph) -> bool:
    weight = node.args.get("weight")
    if node.op != "conv2d" or not isinstance(weight, Ref):
        return False
    value, groups = graph.constants.get(weight.name), node.args.get("groups", 1)
    return isinstance(value, np.ndarray) and groups > 1 and value.shape[1] == 1


def _largest(graph: Graph, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """[C] by value, the largest of each channel over all images."""
    session = subp_ext.Session(observed_graph(graph, names))
    found: dict[str, np.ndarray] = {}
    for batch in batches(images, graph, _TOGETHER):
        run = session.run(batch)
        for name, array in zip(names, run if isinstance(run, tuple) else (run,), strict=True):
            tops = array.max((0, 2, 3)).astype(np.float64)
            found[name] = np.maximum(found.get(name, 0.0), tops)
    return found


def _times(constant: np.ndarray | UniformBlockSparse, factors: np.ndarray) -> np.ndarray | UniformBlockSparse:
    """A weight or bias with its output channels multiplied; zeros stay zeros."""
    if isinstance(constant, UniformBlockSparse):
        values = constant.values * of_blocks(constant, factors)[:, None, None, None, :]
        return replace(constant, values=values.astype(np.float32))
    return (constant * factors.reshape(-1, *[1] * (constant.ndim - 1))).astype(np.float32)
