"""An int8 graph as a module that learns: integers forward, as the runtime computes them, real gradients backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from subp_ext import Graph, Node, Ref, UniformBlockSparse
from subp_ext.dtypes import Quantization, TypedArray
from subp_ext.graph import Constant
from subp_ext.operators import OPERATORS, VIEW
from subp_ext.requantize import BOUNDS, TOP, bounds

from .averages import summed
from .packing import dense_mask, packed
from .placement import HEAVY, operands
from .qdq import GraphModule
from .scales import LARGEST_BIAS, quantized_weight
from .straight_through import looked_up, rounded
from .tables import value_types, with_tables

# Integers below it are exact in float32, and sums of them in any order.
_EXACT = 2.0**24

# Besides views: bytes that are moved as they are.
_MOVES = ("max_pool2d", "upsample_nearest2d", "pad", "constant_pad_nd", "cat", "concat")

_AVERAGES = ("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "mean")


class _Layer(NamedTuple):
    """What a layer computes with: integers, what one of their products stands for (``[O]``), and the bias in that."""

    weight: Tensor
    unit: Tensor
    start: Tensor


class FakeQuantized(GraphModule):
    """The network of an int8 graph, with weights and biases that are trained.

    Values that are bytes in the graph are integers here as well, less their zero point and held in float32. What is
    between them follows the runtime's arithmetic (docs/format.md, "Arithmetic of integers"). In evaluation it does so
    to the bit; in training sums beyond 24 bits are rounded, as float32 does it. Activations keep the scales that were
    calibrated. Those of weights follow the weights: the largest of an output channel is 127.

    A trained weight is a parameter times a fixed ``unit`` of each output channel, so that an optimizer meets weights of
    the size that they had before batch norms were folded into them. Pruned blocks are held at zero by a mask.

    Args:
        graph: int8, as ``quantize_by_name`` returns it.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        types = {name: type.quantization for name, type in value_types(graph).items() if type.dtype.name == "uint8"}
        self._bytes: dict[str, Quantization] = {name: found for name, found in types.items() if found is not None}
        self._add_tables()

    @cached_property
    def layers(self) -> list[Node]:
        """Convolutions and linear layers."""
        return [node for node in self.graph.nodes if node.op in HEAVY]

    @cached_property
    def _trained(self) -> set[str]:
        """Names of their weights and biases."""
        refs = [node.args.get(part) for node in self.layers for part in ("weight", "bias")]
        return {ref.name for ref in refs if isinstance(ref, Ref) and ref.name in self.graph.constants}

    def _register(self, name: str, constant: Constant) -> None:
        if name not in self._trained:
            super()._register(name, constant)
            return
        real = np.asarray(_real(constant), np.float32)
        key = self.names[name]
        self.register_parameter(key, nn.Parameter(torch.from_numpy(real.copy())))
        self.register_buffer(f"{key}_unit", torch.ones(len(real), *[1] * (real.ndim - 1)))
        if isinstance(constant, UniformBlockSparse):
            self.register_buffer(f"{key}_mask", torch.from_numpy(dense_mask(constant)), persistent=False)

    @torch.no_grad()
    def assign(self, constants: Mapping[str, Tensor], units: Mapping[str, Tensor]) -> None:
        """Set trained weights and biases by name, each as a parameter and its unit ``[O]``."""
        for name, value in constants.items():
            key = self.names[name]
            unit = getattr(self, f"{key}_unit")
            unit.copy_(units[name].view_as(unit))
            getattr(self, key).copy_(value / unit)

    def trained(self, name: str) -> Tensor:
        """A trained weight, with zeros where blocks are pruned, or a bias."""
        key = self.names[name]
        value = getattr(self, key) * getattr(self, f"{key}_unit")
        mask = getattr(self, f"{key}_mask", None)
        return value if mask is None else value * mask

    def _constant(self, name: str) -> Tensor:
        return self.trained(name) if name in self._trained else super()._constant(name)

    @torch.no_grad()
    def integers(self) -> Graph:
        """The int8 graph with the weights and biases of now, rounded by the function that export uses."""
        constants = dict(self.graph.constants)
        for node in self.layers:
            names = {part: ref.name for part in ("weight", "bias") if isinstance(ref := node.args.get(part), Ref)}
            real = {part: self.trained(name).cpu().numpy() for part, name in names.items() if name in self._trained}
            before = constants[names["weight"]]
            weight = packed(real["weight"], before) if isinstance(before, UniformBlockSparse) else real["weight"]
            if _is_int8(before):
                read = self._bytes[node.args["input"].name]
                weight = quantized_weight(weight, real["bias"], float(read.scale))
            constants |= {names["weight"]: weight} | ({names["bias"]: real["bias"]} if "bias" in real else {})
        return replace(self.graph, constants=constants)

    # The forward pass. `values` holds integers less their zero point where `_bytes` has the name, else real numbers.

    def _value(self, node: Node, values: dict[str, Any]) -> Any:
        out, read = self._bytes.get(node.output), [self._bytes.get(name) for name in operands(node)]
        if read and all(found is not None for found in read):
            result = self._on_integers(node, values, read, out)
            if result is not None:
                return result
        known = {ref.name: self._as_real(ref.name, values) for ref in node.refs() if ref.name in values}
        return super()._value(node, known)

    def _as_real(self, name: str, values: Mapping[str, Any]) -> Any:
        return values[name] * float(self._bytes[name].scale) if name in self._bytes else values[name]

    def _rounded(self, value: Tensor, type: Any) -> Tensor:
        """Real numbers as the integers of a type."""
        quantization = type.quantization
        inverse = float(np.float32(1.0 / np.float64(quantization.scale)))
        return self._stored(value * inverse, quantization)

    def _stored(self, real: Tensor, out: Quantization, activation: str | None = None) -> Tensor:
        """Numbers in units of a scale as its integers, less the zero point."""
        low, high = bounds(activation, out) or (0, TOP)
        zero = int(out.zero_point)
        return rounded(real, low - zero, high - zero)

    def _on_integers(self, node: Node, values: dict[str, Any], read: list[Any], out: Quantization | None) -> Any:
        """The result of a node whose operands are all bytes; None where it is one of real numbers."""
        args = {
            name: self._resolved(value, values) for name, value in node.args.items() if name not in ("weight", "bias")
        }
        if node.op in HEAVY:
            on_integers = _is_int8(self.graph.constants[node.args["weight"].name])
            return self._layer_on_integers(node, args, read, out) if on_integers else None
        if node.op == "dequantize":
            return args["self"] * float(read[0].scale)
        if out is None:
            return None
        if node.output in self._tables:
            table, slopes = (getattr(self, f"{self._tables[node.output]}_{part}") for part in ("values", "slopes"))
            return looked_up(args["self" if "self" in args else "input"] + int(read[0].zero_point), table, slopes)
        if (node.op in _MOVES or OPERATORS[node.op].shape is VIEW) and all(found == out for found in read):
            return self._run(node, args)
        scales = [float(found.scale) for found in read]
        if node.op == "add" and len(read) == 2 and args["self"].shape == args["other"].shape:
            a, b = (float(np.float32(scale / float(out.scale))) for scale in scales)
            return self._stored(self._fma(args["self"], a, args["other"] * b), out)
        if node.op == "mul" and len(read) == 2:
            factor = float(np.float32(scales[0] * scales[1] / float(out.scale)))
            return self._stored(args["self"] * args["other"] * factor, out)
        if node.op in _AVERAGES and (found := summed(node.op, args)) is not None:
            sums, counts = found
            divisor = float(out.scale) * (counts if isinstance(counts, int) else counts.double())
            factor = scales[0] / divisor
            factor = float(np.float32(factor)) if isinstance(factor, float) else factor.float()
            return self._stored(sums * factor, out)
        return None

    def _fma(self, a: Tensor, factor: float, c: Tensor) -> Tensor:
        """``a * factor + c``, in evaluation rounded once."""
        return a * factor + c if self.training else (a.double() * factor + c.double()).float()

    def _layer_on_integers(self, node: Node, args: dict[str, Any], read: list[Any], out: Quantization | None) -> Tensor:
        residual, activation = args.pop("residual", None), args.pop("activation", None)
        layer = self._quantized_layer(node, read[0])
        shape = (-1,) if node.op == "linear" else (-1, 1, 1)
        sums = self._sums(node.op, args, layer, shape)
        if out is None:
            real = sums * layer.unit.float().view(shape)
            real = real if residual is None else real + residual * float(read[1].scale)
            low, high = BOUNDS[activation]
            return real if low is None else real.clamp(low, high)
        scaled = sums * (layer.unit / float(out.scale)).float().view(shape)
        if residual is not None:
            scaled = self._fma(residual, float(np.float32(float(read[1].scale) / float(out.scale))), scaled)
        return self._stored(scaled, out, activation)

    def _sums(self, op: str, args: dict[str, Any], layer: _Layer, shape: tuple[int, ...]) -> Tensor:
        """The sums of products, and what they start from, as float32 rounds them."""
        if self.training:
            return self._layer(op, **args, weight=layer.weight, bias=layer.start.float())
        sizes = TOP * layer.weight.abs().flatten(1).sum(1, dtype=torch.float64) + layer.start.abs()
        if float(sizes.max()) < _EXACT:
            return self._layer(op, **args, weight=layer.weight, bias=layer.start.float())
        wide = args | {"input": args["input"].double()}
        return self._layer(op, **wide, weight=layer.weight.double(), bias=layer.start).float()

    def _quantized_layer(self, node: Node, read: Quantization) -> _Layer:
        """As ``quantized_weight`` and the runtime have it, to the bit."""
        weight, bias = (self.trained(node.args[part].name) for part in ("weight", "bias"))
        with torch.no_grad():
            largest = weight.abs().flatten(1).amax(1).double()
            scale = torch.maximum(largest / 127, bias.abs().double() / (float(read.scale) * LARGEST_BIAS))
            scale = torch.where(scale > float(np.finfo(np.float32).tiny), scale, 1.0).float()
            unit = float(read.scale) * scale.double()
        # Without bounds: the largest may come to a little more than 127 before it is rounded.
        whole = rounded(weight / scale.view(-1, *[1] * (weight.ndim - 1)))
        return _Layer(whole, unit, rounded(bias.double() / unit))

    # Tables.

    def _add_tables(self) -> None:
        """Tables, and their slopes, of nodes that compute a byte from one byte."""
        tabled = with_tables(self.graph)
        nodes = {node.output: node for node in self.graph.nodes}
        self._tables: dict[str, str] = {}
        for node in tabled.nodes:
            if node.op != "lookup" or node.output in self.graph.constants:
                continue
            out = self._bytes[node.output]
            table = torch.from_numpy(np.asarray(tabled.constants[node.args["table"].name], np.float32))
            key = self._tables[node.output] = f"table_{len(self._tables)}"
            self.register_buffer(f"{key}_values", table - int(out.zero_point), persistent=False)
            slopes = self._slopes(nodes[node.output], node.args["self"].name, out)
            self.register_buffer(
                f"{key}_slopes", torch.where((table > 0) & (table < TOP), slopes, 0.0), persistent=False
            )

    def _slopes(self, node: Node, source: str, out: Quantization) -> Tensor:
        """``[256]``: the derivative of a node, in units of its scale over units of its operand's, at each byte."""
        read = self._bytes[source]
        with torch.inference_mode(False), torch.enable_grad():
            stored = torch.arange(256, dtype=torch.float64) - int(read.zero_point)
            real = (stored * float(read.scale)).requires_grad_()
            result = self._run(node, {name: real if isinstance(v, Ref) else v for name, v in node.args.items()})
            (slopes,) = torch.autograd.grad(result.sum(), real)
        return (slopes * float(read.scale) / float(out.scale)).float()


def _real(constant: Constant) -> Any:
    if isinstance(constant, UniformBlockSparse):
        return constant.to_dense()
    return constant.to_float() if isinstance(constant, TypedArray) else constant


def _is_int8(constant: Constant) -> bool:
    if isinstance(constant, UniformBlockSparse):
        return constant.dtype == "int8"
    return isinstance(constant, TypedArray) and constant.type.dtype.name == "int8"
