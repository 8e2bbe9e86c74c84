"""A quantized graph as a torch module, and through it as QDQ ONNX.

Values stay real numbers there: each that is uint8 in the graph is quantized and dequantized where it is computed, and
weights are int8 with a scale per output channel behind a dequantization. Engines for ONNX read integer layers out of
such pairs.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from subp_ext import Graph, Node, Ref, UniformBlockSparse
from subp_ext.dtypes import TypedArray, ValueType
from subp_ext.graph import Constant

from ..errors import UsageError
from ..torch_compat import quantized_operators
from .formats import write_onnx
from .placement import function_node

# Arithmetic on sizes.
_ON_SIZES = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floor_divide": operator.floordiv,
}  # fmt: skip


def write_qdq_onnx(graph: Graph, path: Path, input_size: tuple[int, int, int]) -> None:
    """Writes a quantized graph as ONNX, with activations by their names.

    Raises:
        UsageError: a package is missing, or torch's exporter cannot translate the graph.
    """
    write_onnx(GraphModule(graph).eval(), input_size, path, graph.metadata)


class GraphModule(nn.Module):
    """Runs a graph with torch, on real numbers that are rounded where the graph says so.

    Args:
        graph: for one float32 input, quantized or not; activations by their names, not as tables.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph, self.quantized = graph, quantized_operators()
        self.names: dict[str, str] = {}
        for number, (name, constant) in enumerate(graph.constants.items()):
            self.names[name] = f"constant_{number}"
            self._register(name, constant)

    def _register(self, name: str, constant: Constant) -> None:
        self.register_buffer(self.names[name], torch.from_numpy(np.array(_elements(constant))))
        found = _scale(constant)
        if found is not None:
            scale = torch.from_numpy(np.array(found))
            self.register_buffer(f"{self.names[name]}_scale", scale)
            self.register_buffer(f"{self.names[name]}_zero", torch.zeros(len(scale), dtype=torch.int64))

    def forward(self, images: Tensor) -> Any:
        values: dict[str, Any] = {self.graph.inputs[0].name: images}
        for node in self.graph.nodes:
            values[node.output] = self._value(node, values)
        results = {spec.name: values[spec.name] for spec in self.graph.outputs}
        return next(iter(results.values())) if len(results) == 1 else results

    def _value(self, node: Node, values: dict[str, Any]) -> Any:
        """The result of a node, from the values before it."""
        result = self._run(node, {name: self._resolved(value, values) for name, value in node.args.items()})
        return result if node.type is None else self._rounded(result, node.type)

    def _resolved(self, value: Any, values: dict[str, Any]) -> Any:
        if isinstance(value, Ref):
            return values[value.name] if value.name in values else self._constant(value.name)
        return [self._resolved(item, values) for item in value] if isinstance(value, (list, tuple)) else value

    def _constant(self, name: str) -> Tensor:
        buffer = getattr(self, self.names[name])
        scale = getattr(self, f"{self.names[name]}_scale", None)
        if scale is None:
            return buffer
        zero = getattr(self, f"{self.names[name]}_zero")
        return self.quantized.dequantize_per_channel(buffer, scale, zero, 0, -127, 127, torch.int8)

    def _rounded(self, value: Tensor, type: ValueType) -> Tensor:
        quantization = type.quantization
        assert quantization is not None
        scale, zero = float(quantization.scale), int(quantization.zero_point)
        stored = self.quantized.quantize_per_tensor(value, scale, zero, 0, 255, torch.uint8)
        return self.quantized.dequantize_per_tensor(stored, scale, zero, 0, 255, torch.uint8)

    def _run(self, node: Node, args: dict[str, Any]) -> Any:
        if node.op in ("quantize", "dequantize"):
            return args["self"]
        if node.op == "getitem":
            return args["self"][args["index"]]
        if node.op == "sym_size":
            return args["self"].size(args["dim"])
        if node.op in ("conv2d", "linear"):
            return self._layer(node.op, **args)
        if node.op in _ON_SIZES and not any(isinstance(value, Tensor) for value in args.values()):
            return _ON_SIZES[node.op](args["self"], args["other"])
        if isinstance(args.get("dtype"), str):
            args["dtype"] = getattr(torch, args["dtype"])
        return _aten(node.op, args)

    def _layer(self, op: str, **args: Any) -> Tensor:
        residual, activation = args.pop("residual", None), args.pop("activation", None)
        if op == "linear":
            weight = args["weight"]
            result = functional.linear(args["input"], weight.flatten(1), args.get("bias"))
        else:
            if isinstance(args.get("padding"), list) and any(isinstance(part, list) for part in args["padding"]):
                (top, bottom), (left, right) = args.pop("padding")
                args["input"] = functional.pad(args["input"], (left, right, top, bottom))
            result = functional.conv2d(**args)
        if residual is not None:
            result = result + residual
        if activation is None:
            return result
        function, parameters = function_node(activation)
        return _aten(function, {"self": result} | parameters)


def _aten(op: str, args: dict[str, Any]) -> Any:
    """Calls an operator by its base name.

    Raises:
        UsageError: torch has none of that name.
    """
    found = getattr(torch.ops.aten, op, None)
    if found is None:
        raise UsageError(f"torch has no operator {op} for ONNX")
    return found(**args)


def _elements(constant: Constant) -> np.ndarray:
    """What is stored of a constant, a sparse weight as a dense one with its zeros."""
    if isinstance(constant, TypedArray):
        return constant.values
    if not isinstance(constant, UniformBlockSparse):
        return constant
    if constant.scale is None:
        return constant.to_dense()
    unscaled = replace(constant, scale=np.ones_like(constant.scale))
    return unscaled.to_dense().astype(np.int8)


def _scale(constant: Constant) -> np.ndarray | None:
    """[O], of a quantized weight."""
    if isinstance(constant, UniformBlockSparse):
        return constant.scale
    if not isinstance(constant, TypedArray) or constant.type.quantization is None:
        return None
    return constant.type.quantization.scale
