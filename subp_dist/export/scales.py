"""The scale and zero point of every value that integers hold, and the integers of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from subp_ext import Graph, Node, Ref, UniformBlockSparse
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType
from subp_ext.operators import OPERATORS, VIEW

from .histogram import Function, Histogram, activation_type
from .placement import HEAVY, Placement, operands, readers_of

RANGES = ("auto", "minmax", "percentile", "mse")

# Of the values at each end of a range, what --range percentile leaves out.
_PERCENTILE = 99.99

# Where a function is flat to well below a level, so that a range need not go further.
_FLAT = {
    "hardswish": (-3.0, np.inf), "hardsigmoid": (-3.0, 3.0), "sigmoid": (-8.0, 8.0), "tanh": (-4.0, 4.0),
    "silu": (-10.0, np.inf), "gelu": (-5.0, np.inf), "mish": (-12.0, np.inf),
}  # fmt: skip

# A part of a concatenation takes the scale of the whole, so that it is computed in its place. Where others read it too
# and its own values are so many times smaller, it keeps its scale, and a table turns it into the whole's.
_COARSER = 4.0

# Largest bias in units of input scale times weight scale: sums stay within 32 bits with room for the products.
LARGEST_BIAS = 2.0**28


@dataclass(frozen=True)
class Scales:
    """Types by value, and parts of concatenations that take another type on their way in."""

    types: dict[str, ValueType]
    requantized: frozenset[tuple[str, str]]  # (part, output of the concatenation)


def choose_scales(
    placement: Placement, histograms: Mapping[str, Histogram], method: str, ends: Mapping[str, float] | None = None
) -> Scales:
    """Chooses the type of every value that is kept as uint8, or read by integers.

    Args:
        placement: what runs on integers.
        histograms: of values that are not only passed on.
        method: one of ``RANGES``.
        ends: by value, ranges from 0 that are known.
    """
    members, requantized = _groups(placement, histograms)
    functions = _functions(placement)
    types: dict[str, ValueType] = {}
    for group in members:
        found = [name for name in group if name in histograms]
        merged = Histogram()
        for name in found:
            merged.merge(histograms[name])
        node = functions.get(found[0]) if len(found) == 1 else None
        end = (ends or {}).get(group[0])
        found_range = _range(merged, method, node) if end is None else (0.0, end)
        types.update(dict.fromkeys(group, activation_type(*found_range)))
    return Scales(types, frozenset(requantized))


def _range(histogram: Histogram, method: str, node: Node | None) -> tuple[float, float]:
    """The range of a value; `node` is the function that alone reads it, if one does."""
    low, high = histogram.low, histogram.high
    if method == "auto":
        # Sums that no function bounds, such as those that residuals add up to, have a few channels of far values, which
        # the least squared error would spend most levels on.
        method = "percentile" if low < 0 and node is None else "mse"
    if method == "percentile":
        low, high = histogram.percentile(_PERCENTILE)
    elif method == "mse":
        low, high = histogram.least_squares(None if node is None else function_of(node))
    flat = _FLAT.get(node.op, (-np.inf, np.inf)) if node is not None else (-np.inf, np.inf)
    return max(low, flat[0]), min(high, flat[1])


def function_of(node: Node) -> Function:
    """What a node without weights computes of one tensor, in float64."""
    record = OPERATORS[node.op]
    name = "input" if "input" in node.args and "self" not in node.args else "self"
    rest = {key: value for key, value in node.args.items() if key != name}

    def function(values: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(record.reference(**{name: values.astype(np.float64)}, **rest), np.float64)

    return function


def _functions(placement: Placement) -> dict[str, Node]:
    """By value, the function that is its only reader."""
    nodes = {node.output: node for node in placement.graph.nodes}
    found = {}
    for value, readers in readers_of(placement.graph).items():
        if len(readers) == 1 and placement.kinds.get(readers[0]) == "pointwise":
            found[value] = nodes[readers[0]]
    return found


def _groups(placement: Placement, histograms: Mapping[str, Histogram]) -> tuple[list[list[str]], set[tuple[str, str]]]:
    """Values that share a type: what is passed on, and the parts of a concatenation."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    readers = readers_of(placement.graph)
    requantized: set[tuple[str, str]] = set()
    for node in placement.graph.nodes:
        if node.output not in placement.int8:
            continue
        names, kind = operands(node), placement.kinds.get(node.output)
        for name in names + ([node.output] if node.output in placement.stored else []):
            root(name)
        if kind not in ("pass", "cat"):
            continue
        widths = {name: histograms[name].width for name in names if name in histograms}
        for name in names:
            others = [reader for reader in readers[name] if reader in placement.int8 and reader != node.output]
            narrow = _COARSER * widths.get(name, np.inf) < max(widths.values(), default=0.0)
            if kind == "cat" and narrow and any(placement.kinds.get(reader) != "cat" for reader in others):
                requantized.add((name, node.output))
            else:
                parent[root(name)] = root(node.output)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values()), requantized


def quantized_weight(
    weight: np.ndarray | UniformBlockSparse, bias: np.ndarray, input_scale: float
) -> TypedArray | UniformBlockSparse:
    """A weight as int8 from -127 to 127, symmetric, with a scale per output channel; what is 0 stays 0.

    Args:
        weight: float32.
        bias: [O], which has to be so small in units of the scales that sums stay within 32 bits.
        input_scale: of the layer's input.
    """
    dense = weight.to_dense() if isinstance(weight, UniformBlockSparse) else weight
    largest = np.abs(dense.reshape(len(dense), -1)).max(1, initial=0.0).astype(np.float64)
    scale = np.maximum(largest / 127, np.abs(bias) / (input_scale * LARGEST_BIAS))
    # A channel of zeros that only adds its bias.
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    if isinstance(weight, UniformBlockSparse):
        values = _whole(weight.values / of_blocks(weight, scale)[:, None, None, None, :])
        return replace(weight, values=values, dtype="int8", scale=scale)
    values = _whole(dense / scale.reshape(-1, *[1] * (dense.ndim - 1)))
    quantization = Quantization(scale, np.zeros(len(scale), np.int32), 0)
    return TypedArray(values, ValueType(DTYPES["int8"], quantization))


def _whole(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


def of_blocks(weight: UniformBlockSparse, scale: np.ndarray) -> np.ndarray:
    """A number for each output channel, [O], as [R, N]; 1 in the padding of narrow rows."""
    ordered = scale if weight.order is None else scale[weight.order]
    per_group = weight.shape[0] // weight.groups
    padded = np.ones((weight.groups, weight.values.shape[0] // weight.groups * weight.block_size), np.float32)
    padded[:, :per_group] = ordered.reshape(weight.groups, per_group)
    return padded.reshape(-1, weight.block_size)


def quantized_graph(placement: Placement, scales: Scales) -> Graph:
    """The graph on integers: types of nodes, weights and what brings float32 values in. Biases are the given ones."""
    return _Assembly(placement, scales).run()


class _Assembly:
    """The state of the pass: nodes so far, constants, and the names under which integers read values."""

    def __init__(self, placement: Placement, scales: Scales) -> None:
        self.placement, self.types, self.requantized = placement, scales.types, scales.requantized
        self.constants = dict(placement.graph.constants)
        self.nodes: list[Node] = []
        self.inner: dict[str, str] = {}  # by value, its form in uint8
        self.uses: dict[str, int] = {}
        for node in placement.graph.nodes:
            for ref in node.refs():
                self.uses[ref.name] = self.uses.get(ref.name, 0) + 1

    def run(self) -> Graph:
        outputs = {spec.name for spec in self.placement.graph.outputs}
        for node in self.placement.graph.nodes:
            if node.output not in self.placement.int8:
                self.nodes.append(node)
                continue
            name, typed = node.output, node.output in self.placement.stored
            node = self._on_integers(node)
            if typed and OPERATORS[node.op].shape is not VIEW:  # a view has its operand's type
                node = replace(node, type=self.types[name])
            if typed and name in outputs:  # read as float32 from outside
                self.inner[name] = f"{name}.uint8"
                self.nodes.append(replace(node, output=self.inner[name]))
                node = Node("dequantize", name, {"self": Ref(self.inner[name])})
            self.nodes.append(node)
        used = {ref.name for node in self.nodes for ref in node.refs()} | outputs
        constants = {name: value for name, value in self.constants.items() if name in used}
        return replace(self.placement.graph, nodes=self.nodes, constants=constants)

    def _on_integers(self, node: Node) -> Node:
        args = dict(node.args)
        for key, value in args.items():
            if isinstance(value, list) and node.op in ("cat", "concat"):
                args[key] = [Ref(self._read(part.name, node.output)) for part in value]
            elif isinstance(value, Ref) and value.name in operands(node):
                args[key] = Ref(self._read(value.name, node.output))
        if node.op not in HEAVY:
            return replace(node, args=args)
        weight, bias = self.constants[args["weight"].name], args.get("bias")
        outputs = weight.shape[0]
        zeros = np.zeros(outputs, np.float32)
        numbers = zeros if bias is None else np.asarray(self.constants[bias.name], np.float32)
        names = {"weight": args["weight"].name, "bias": f"{node.output}.corrected_bias" if bias is None else bias.name}
        for part, name in names.items():
            if self.uses.get(name, 0) > 1:  # shared with another layer, whose input has another scale
                names[part] = f"{node.output}.{part}"
        input_scale = float(self.types[node.args["input"].name].quantization.scale)
        self.constants[names["weight"]] = quantized_weight(weight, numbers, input_scale)
        self.constants[names["bias"]] = numbers.copy()
        return replace(node, args=args | {part: Ref(name) for part, name in names.items()})

    def _read(self, name: str, reader: str) -> str:
        """The name under which a node on integers reads a value, brought into uint8 where it is not yet."""
        if name not in self.placement.stored and name not in self.inner:
            type = self.types[name]
            self.inner[name] = f"{name}.uint8"
            self.nodes.append(_quantize(name, self.inner[name], type))
        found = self.inner.get(name, name)
        if (name, reader) in self.requantized:
            source, found = found, f"{name}.as_{reader}"
            self.nodes.append(_quantize(source, found, self.types[reader]))
        return found


def _quantize(source: str, output: str, type: ValueType) -> Node:
    assert type.quantization is not None
    scale, zero = float(type.quantization.scale), int(type.quantization.zero_point)
    args = {"self": Ref(source), "scale": scale, "zero_point": zero, "dtype": type.dtype.name}
    return Node("quantize", output, args, type)
