"""Rewrites of a traced graph that leave its results as they are: fold batch norms, fuse, drop identities.

One pass in execution order: each node is either an alias of another value, absorbed into the convolution or linear
layer that feeds it, or kept. A fused node stands where its last part stood, so everything it reads is there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from subp_ext import Graph, Node, Ref, operators

# What a node takes: a value by reference, a constant, or a list of these.
Argument: TypeAlias = "Ref | str | float | bool | None | list[Argument]"
Shape = tuple[int, ...]

_IDENTITIES = {"alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "lift_fresh_copy"}
_BATCH_NORM = "_native_batch_norm_legit_no_training"
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def simplify(graph: Graph, shapes: dict[str, Shape]) -> Graph:
    """Fold, fuse and clean a traced graph.

    Args:
        graph: as ``trace`` returns it.
        shapes: of each tensor, to tell a residual from a broadcast.
    """
    with np.errstate(all="ignore"):  # a scale that overflows here does so in torch
        return _Rewrite(graph, shapes).run()


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The node with references to values by new names, where they have one; its own name stays."""

    def rename(value: Argument) -> Argument:
        if isinstance(value, Ref):
            return Ref(names.get(value.name, value.name))
        return [rename(item) for item in value] if isinstance(value, list) else value

    return dataclasses.replace(node, args={key: rename(value) for key, value in node.args.items()})


class _Rewrite:
    """The state of the pass: what is kept so far, and what other names stand for."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self.graph, self.shapes = graph, dict(shapes)
        self.constants = dict(graph.constants)
        self.kept: dict[str, Node] = {}
        self.aliases: dict[str, str] = {}
        self.folded_norms: set[str] = set()
        self.uses = Counter(ref.name for node in graph.nodes for ref in node.refs())
        self.uses.update(spec.name for spec in graph.outputs)

    def run(self) -> Graph:
        for node in self.graph.nodes:
            node = renamed(node, self.aliases)
            source = self._alias(node)
            if source is not None:
                self.aliases[node.output] = source
                # The alias's readers now read the source, in place of the alias itself.
                self.uses[source] += self.uses[node.output] - 1
                continue
            node = self._without_norm(node) or node
            fused = self._fuse_residual(node) or self._fuse_activation(node)
            if fused is not None:
                absorbed, node = fused
                del self.kept[absorbed]
            self.kept[node.output] = self._fold_padding(node)
        outputs = [dataclasses.replace(o, name=self.aliases.get(o.name, o.name)) for o in self.graph.outputs]
        return without_unused(Graph(self.graph.inputs, outputs, list(self.kept.values()), self.constants))

    def _alias(self, node: Node) -> str | None:
        """The value that a node merely passes on."""
        source = node.args.get("self", node.args.get("input"))
        if not isinstance(source, Ref):
            return None
        if node.op in _IDENTITIES and not node.args.get("train"):
            return source.name
        # A batch norm returns a tuple; folded into a convolution it is the one tensor that was read from it.
        return source.name if node.op == "getitem" and source.name in self.folded_norms else None

    def _absorbable(self, value: Argument, *ops: str) -> Node | None:
        """The node behind a value, if nothing else reads it and it is of one of the operators."""
        node = self.kept.get(value.name) if isinstance(value, Ref) else None
        if node is None or node.op not in ops or self.uses[node.output] != 1:
            return None
        return node if node.args.get("activation") is None else None

    def _without_norm(self, node: Node) -> Node | None:
        """A batch norm as part of the convolution before it, or as a convolution of its own."""
        if node.op != _BATCH_NORM:
            return None
        shape = self.shapes.get(node.args["input"].name)
        known = all(ref.name in self.constants for key in _STATISTICS if (ref := node.args[key]) is not None)
        if shape is None or len(shape) != 4 or not known:
            return None
        parts = {key: self._constant(node.args[key], shape[1]) for key in ("weight", "running_mean", "running_var")}
        scale = parts["weight"] / np.sqrt(parts["running_var"] + node.args["eps"])
        shift = self._constant(node.args["bias"], shape[1], default=0.0) - parts["running_mean"] * scale
        self.folded_norms.add(node.output)
        self.shapes[node.output] = shape
        return self._fold_batch_norm(node, scale, shift) or self._as_depthwise(node, scale, shift)

    def _fold_batch_norm(self, node: Node, scale: np.ndarray, shift: np.ndarray) -> Node | None:
        conv = self._absorbable(node.args["input"], "conv2d", "conv_transpose2d")
        weight = None if conv is None else self.constants.get(conv.args["weight"].name)
        if (
            conv is None
            or weight is None
            or conv.args.get("residual") is not None
            or not self._only_reader(conv.args["weight"])
        ):
            return None
        bias_name = f"{conv.args['weight'].name.removesuffix('.weight')}.folded_bias"
        self.constants[conv.args["weight"].name] = _scaled(conv, weight, scale).astype(np.float32)
        old_bias = self._constant(conv.args.get("bias"), len(scale), default=0.0)
        self.constants[bias_name] = (old_bias * scale + shift).astype(np.float32)
        del self.kept[conv.output]
        return Node(conv.op, node.output, conv.args | {"bias": Ref(bias_name)})

    def _as_depthwise(self, node: Node, scale: np.ndarray, shift: np.ndarray) -> Node:
        """A 1x1 convolution of each channel alone, which takes in residuals and activations as any other does."""
        names = [f"{node.output}.{part}" for part in ("scale", "shift")]
        self.constants[names[0]] = scale.astype(np.float32).reshape(-1, 1, 1, 1)
        self.constants[names[1]] = shift.astype(np.float32)
        self.uses.update(names)
        weight, bias = map(Ref, names)
        return Node(
            "conv2d", node.output, {"input": node.args["input"], "weight": weight, "bias": bias, "groups": len(scale)}
        )

    def _only_reader(self, weight: Ref) -> bool:
        return self.uses[weight.name] == 1

    def _constant(self, value: Ref | None, channels: int, default: float = 1.0) -> np.ndarray:
        if value is None:
            return np.full(channels, default)
        return self.constants[value.name].astype(np.float64)

    def _fuse_residual(self, node: Node) -> tuple[str, Node] | None:
        if node.op != "add" or node.args.get("alpha", 1) != 1:
            return None
        operands = [node.args["self"], node.args["other"]]
        candidates = [
            (conv, other)
            for value, other in (operands, operands[::-1])
            if (conv := self._absorbable(value, "conv2d")) is not None
            and conv.args.get("residual") is None
            and isinstance(other, Ref)
            and other.name != conv.output
            and self.shapes.get(other.name) == self.shapes.get(node.output)
        ]
        if not candidates:
            return None
        # Of two convolutions the later one takes the sum: the earlier result is what it has to wait for anyway.
        order = list(self.kept)
        conv, other = max(candidates, key=lambda pair: order.index(pair[0].output))
        return conv.output, Node("conv2d", node.output, conv.args | {"residual": other})

    def _fuse_activation(self, node: Node) -> tuple[str, Node] | None:
        activation = operators.fused_activation(node.op, node.args)
        target = self._absorbable(node.args.get("self", node.args.get("input")), "conv2d", "conv_transpose2d", "linear")
        if activation is None or target is None:
            return None
        return target.output, Node(target.op, node.output, target.args | {"activation": activation})

    def _fold_padding(self, node: Node) -> Node:
        """Zeros that a padding node puts around a convolution's input become the convolution's own."""
        if node.op != "conv2d":
            return node
        pad = self.kept.get(node.args["input"].name)
        if pad is None or pad.op not in ("constant_pad_nd", "pad") or pad.args.get("mode", "constant") != "constant":
            return node
        amounts, own = pad.args["pad"], node.args.get("padding", [0, 0])
        plain = isinstance(own, list) and all(isinstance(p, int) for p in own) and len(amounts) == 4
        if (pad.args.get("value") or 0) != 0 or not plain or any(not isinstance(p, int) or p < 0 for p in amounts):
            return node
        left, right, top, bottom = amounts
        rows, columns = own if len(own) == 2 else own * 2
        padding = [[top + rows, bottom + rows], [left + columns, right + columns]]
        self.uses[pad.output] -= 1
        if self.uses[pad.output] == 0:
            del self.kept[pad.output]
        return Node("conv2d", node.output, node.args | {"input": pad.args["self"], "padding": padding})


def _scaled(conv: Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A convolution's weight times a factor for each output channel; a transposed one has these in dimension 1."""
    if conv.op == "conv2d":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = conv.args.get("groups", 1)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * scale.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)


def without_unused(graph: Graph) -> Graph:
    """The graph without nodes and constants that nothing reads."""
    needed = {spec.name for spec in graph.outputs}
    nodes = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            nodes.append(node)
            needed.update(ref.name for ref in node.refs())
    constants = {name: value for name, value in graph.constants.items() if name in needed}
    return dataclasses.replace(graph, nodes=nodes[::-1], constants=constants)
