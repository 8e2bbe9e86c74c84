"""Bias correction: what quantization shifts the mean of a layer's outputs by goes into its bias.

The layers are walked in order, on the values that the quantized network itself computes, so that each takes in the
errors of all before it. The means that are kept are those behind residual and activation: what is cut off of large
values lowers the mean before a ReLU, and a bias that made up for it there would lift small ones above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import subp_ext
from subp_ext import Graph, Node, Ref, TensorSpec
from subp_ext.dtypes import TypedArray, ValueType, type_of
from subp_ext.operators import NUMBER, OPERATORS, VIEW

from .calibrate import batches, channel_sums
from .placement import HEAVY

# Images of one step of the walk.
_TOGETHER = 8

# From the share of values that are on to the shift that keeps the mean; channels that hardly ever are stay.
_NEWTON_STEPS, _LEAST_SLOPE = 3, 0.02


def corrected_biases(
    graph: Graph, images: np.ndarray, means: Mapping[str, np.ndarray], counted: int
) -> dict[str, np.ndarray]:
    """Biases with which layers keep the means of their outputs, by the name of the constant.

    Args:
        graph: quantized.
        images: for calibration.
        means: of the float32 network, by layer.
        counted: over how many images they are.
    """
    constants, corrected = dict(graph.constants), {}
    walk = _Walk(graph, [*batches(images[:counted], graph, _TOGETHER)])
    for node in graph.nodes:
        layer = node.output.removesuffix(".uint8")
        if node.op in HEAVY and layer in means:
            plain = {name: value for name, value in node.args.items() if name != "activation"}
            found = walk.run(Node(node.op, node.output, plain), constants)
            shift = _shift(found, node.op, node.args.get("activation"), means[layer])
            name = node.args["bias"].name
            corrected[name] = constants[name] = (constants[name] + shift).astype(np.float32)
        walk.keep(node, walk.run(node, constants))
    return corrected


def _shift(found: list[np.ndarray], op: str, activation: str | None, means: np.ndarray) -> np.ndarray:
    """What to add to each output channel, so that behind the activation it has these means.

    Without an activation that is a difference; behind a ReLU the mean grows with the share of values that are on.
    """
    shape = (-1,) if op == "linear" else (-1, 1, 1)
    count = sum(map(len, found))
    moments = [sum(channel_sums(array**power, op) for array in found) / count for power in (1, 2)]
    if activation is None:
        return means - moments[0]
    shift = np.zeros(len(means))
    largest = np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0.0))  # a spread: beyond it the slope says nothing
    top = 6.0 if activation == "relu6" else np.inf
    for _ in range(_NEWTON_STEPS):
        mean, slope = np.zeros(len(means)), np.zeros(len(means))
        for array in found:
            moved = array + shift.astype(np.float32).reshape(shape)
            slope += channel_sums(((moved > 0) & (moved < top)).astype(np.float32), op) / count
            mean += channel_sums(np.clip(moved, 0, top, out=moved), op) / count
        step = (means - mean) / np.maximum(slope, _LEAST_SLOPE)
        shift = np.clip(shift + step, -largest, largest)
    return shift


class _Walk:
    """The values of a graph on some batches, computed node by node and kept while something is to read them."""

    def __init__(self, graph: Graph, images: list[np.ndarray]) -> None:
        self.values: dict[str, list[Any]] = {graph.inputs[0].name: list(images)}
        self.types: dict[str, ValueType] = {}
        self.images = sum(map(len, images))
        self._batches = len(images)
        self._last = {ref.name: number for number, node in enumerate(graph.nodes) for ref in node.refs()}
        self._number = 0

    def keep(self, node: Node, found: list[Any]) -> None:
        """Keeps the results of a node, and drops what was read for the last time."""
        self.values[node.output] = found
        for name in [name for name in self.values if self._last.get(name, -1) <= self._number]:
            del self.values[name]
        self._number += 1

    def run(self, node: Node, constants: Mapping[str, Any]) -> list[Any]:
        """The results of a node, one for each batch, as they are stored."""
        known = {ref.name: constants[ref.name] for ref in node.refs() if ref.name in constants}
        read = [name for name in dict.fromkeys(ref.name for ref in node.refs()) if name not in known]
        if OPERATORS[node.op].shape in (VIEW, NUMBER) or not all(self._is_array(name) for name in read):
            return self._by_reference(node, read, known)
        tensors = [name for name in read if isinstance(self.values[name][0], np.ndarray)]
        sessions: dict[str, subp_ext.Session] = {}
        results = []
        for number in range(self._batches):
            args = _resolved(node.args, {name: self.values[name][number] for name in read if name not in tensors})
            session = sessions.get(repr(args)) or self._session(replace(node, args=args), tensors, known)
            sessions[repr(args)] = session
            results.append(session.run([self.values[name][number] for name in tensors]))
        self.types[node.output] = session.outputs[0].type
        return results

    def _is_array(self, name: str) -> bool:
        return isinstance(self.values[name][0], (np.ndarray, int, float))

    def _session(self, node: Node, tensors: list[str], constants: Mapping[str, Any]) -> subp_ext.Session:
        specs = [
            TensorSpec(name, (None,) * self.values[name][0].ndim, found.dtype.name, found.quantization)
            for name in tensors
            for found in [self._type(name)]
        ]
        made = node.type or ValueType(type_of(np.zeros(0, np.float32)).dtype)
        output = TensorSpec(node.output, (None,), made.dtype.name, made.quantization)
        return subp_ext.Session(Graph(specs, [output], [node], dict(constants)), threads=None)

    def _type(self, name: str) -> ValueType:
        return self.types.get(name) or type_of(self.values[name][0])

    def _by_reference(self, node: Node, read: list[str], known: Mapping[str, Any]) -> list[Any]:
        """Views of what is stored, sizes, and operators with several results."""
        if OPERATORS[node.op].shape is VIEW and "self" in node.args:
            source = node.args["self"]
            if isinstance(source, Ref) and source.name in self.types:
                self.types[node.output] = self.types[source.name]
        results = []
        for number in range(self._batches):
            values = {name: self.values[name][number] for name in read}
            if OPERATORS[node.op].shape not in (VIEW, NUMBER):
                values = {name: self._real(name, value) for name, value in values.items()}
            constants = {n: v.to_float() if isinstance(v, TypedArray) else v for n, v in known.items()}
            with np.errstate(all="ignore"):
                results.append(OPERATORS[node.op].reference(**_resolved(node.args, values | constants)))
        return results

    def _real(self, name: str, value: Any) -> Any:
        return self._type(name).to_float(value) if isinstance(value, np.ndarray) else value


def _resolved(value: Any, values: Mapping[str, Any]) -> Any:
    """An argument with these values in place of references; other references stay."""
    if isinstance(value, Ref):
        return values.get(value.name, value)
    if isinstance(value, dict):
        return {name: _resolved(item, values) for name, item in value.items()}
    return [_resolved(item, values) for item in value] if isinstance(value, (list, tuple)) else value
