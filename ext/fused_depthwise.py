"""A convolution and the depthwise one that alone reads it as one step: what is between them stays in the cache."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from subp_ext import runtime
from subp_ext.convolution import Convolution
from subp_ext.direct import Depthwise, Direct
from subp_ext.graph import Node, Ref

# Bytes that a pass works on: what the first convolution reads, and a block row of what is between. They share the
# L2 cache with the weights that pass through.
CACHED_ROWS = 1 << 20


class FusedDepthwise:
    """Two convolutions.

    Args:
        first: any but a depthwise one.
        second: a depthwise one of its output.
        between: the name of what is between them.
    """

    def __init__(self, first: Convolution, second: Convolution, between: str) -> None:
        self.first, self.second, self.between = first, second, between

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return self.first.nbytes + self.second.nbytes

    def release(self) -> None:
        """As `Convolution.release`, of both."""
        self.first.release()
        self.second.release()

    @property
    def kernel(self) -> str:
        """Names what runs it."""
        (second,) = self.second.algorithms
        return f"{self.first.algorithms[0].kernel} + {second.kernel}"

    def build(self, height: int, width: int) -> Any:
        """Returns what is compiled for one size of the input, or None where Winograd's algorithm is better.

        Raises:
            ValueError: a padded input is smaller than the kernel.
        """
        first, second = self.first.algorithm(height, width), self.second.layer
        if not isinstance(first, Direct):
            return None
        between_h, between_w = self.first.layer.out_size(height, width)
        out_h, _ = second.out_size(between_h, between_w)
        # Rows that two bands see are computed twice, and a short band leaves lanes of vectors empty: as few as will do.
        copies = max(1, len(first.planes(height, width).copies))
        layer = self.first.layer
        row_bytes = layer.itemsize * between_w * (layer.channels * copies + layer.block_size)
        band = -(-out_h // min(out_h, max(1, round(between_h * row_bytes / CACHED_ROWS))))
        seen = (band - 1) * second.stride[0] + (second.kernel_size[0] - 1) * second.dilation[0] + 1
        compiled = first.build(height, width, self.first.requantize, band=min(between_h, seen))
        (depthwise,) = self.second.algorithms
        assert isinstance(depthwise, Depthwise)
        last = depthwise.build(between_h, between_w, self.second.requantize, order=layer.order)
        return runtime.kernels().CompiledFusedDepthwise(compiled, last, band)


def fuse_depthwise(nodes: list[Node], packed: dict[str, Any], outputs: Collection[str]) -> list[Node]:
    """Joins every convolution with the depthwise one that alone reads it.

    Args:
        nodes: of a graph.
        packed: the Convolution of each node that has one, by output; a FusedDepthwise takes the place of two.
        outputs: names of the graph's.

    Returns:
        The nodes that remain, with the arguments of the first and the output of the second.
    """
    made = {node.output: node for node in nodes}
    read = [ref.name for node in nodes for ref in node.refs()]
    for node in nodes:
        second, source = packed.get(node.output), node.args.get("input")
        if not isinstance(source, Ref):
            continue
        first = packed.get(source.name)
        if second is None or not second.depthwise or not isinstance(first, Convolution) or first.depthwise:
            continue
        maker = made[source.name]
        alone = read.count(source.name) == 1 and source.name not in outputs
        plain = maker.op == "conv2d" and maker.args.get("residual") is None
        plain &= maker.type is None or first.layer.dtype != "float32"
        if not alone or not plain or first.layer.dtype != second.layer.dtype:
            continue
        if second.out_dtype or first.out_dtype or (second.requantize is not None and second.requantize.to_float):
            continue
        packed[node.output] = FusedDepthwise(packed.pop(source.name), second, source.name)
        del made[source.name]
        made[node.output] = replace(node, args=node.args | {"input": maker.args["input"]})
    return list(made.values())
