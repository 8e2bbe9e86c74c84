"""Quantized graphs in integers, by the arithmetic that docs/format.md defines, one output element's sum at a time.

Independent of the runtime: NumPy's int64 sums, float32 products rounded once, nothing of the package but the graph's
own data classes. For networks of a few thousand elements.
"""

from __future__ import annotations

import math

import numpy as np

from subp_ext import Graph, Node, UniformBlockSparse
from subp_ext.dtypes import TypedArray


def run(graph: Graph, images: np.ndarray) -> dict[str, np.ndarray]:
    """All values of a graph by name: stored bytes where a node is uint8, else float32."""
    values: dict[str, object] = {graph.inputs[0].name: images}
    types = {}
    for node in graph.nodes:
        source = node.args.get("self", node.args.get("input"))
        if node.op in ("view", "flatten", "permute"):
            types[node.output] = types.get(source.name)
        else:
            types[node.output] = None if node.type is None else scale_of(node.type)
        values[node.output] = RULES[node.op](node, graph, values, types)
    return values


def scale_of(type) -> tuple[np.float64, int]:
    return np.float64(np.float32(type.quantization.scale)), int(type.quantization.zero_point)


def clamp(values: np.ndarray, zero: int, activation: str | None = None, six: int = 255) -> np.ndarray:
    low = zero if activation in ("relu", "relu6") else 0
    high = six if activation == "relu6" else 255
    return np.clip(np.rint(values.astype(np.float64)).astype(np.int64) + zero, low, high).astype(np.uint8)


def integers(constant) -> tuple[np.ndarray, np.ndarray]:
    """Dense int64 weight [O, I / groups, kh, kw] and its scales [O]."""
    if isinstance(constant, TypedArray):
        values = constant.values.astype(np.int64)
        return values.reshape(*values.shape, *[1] * (4 - values.ndim)), constant.type.quantization.scale
    assert isinstance(constant, UniformBlockSparse)
    outputs, channels, kh, kw = constant.shape
    weight, per_group, row_of_group = np.zeros(constant.shape, np.int64), outputs // constant.groups, 0
    rows = len(constant.values) // constant.groups
    for group in range(constant.groups):
        for row_of_group in range(rows):
            row = group * rows + row_of_group
            for lane in range(constant.block_size):
                if row_of_group * constant.block_size + lane < per_group:
                    output = group * per_group + row_of_group * constant.block_size + lane
                    weight[output, constant.indices[row]] = constant.values[row, ..., lane]
    return weight, constant.scale


def layer(node: Node, graph: Graph, values, types) -> np.ndarray:
    x = values[node.args["input"].name]
    scale_x, zero_x = types[node.args["input"].name]
    weight, scale_w = integers(graph.constants[node.args["weight"].name])
    bias = graph.constants[node.args["bias"].name].astype(np.float64)
    shape = x.shape
    x = x.reshape(-1, x.shape[-1], 1, 1) if node.op == "linear" else x
    pads = node.args.get("padding", [0, 0])
    pads = [p if isinstance(p, list) else [p, p] for p in ([pads] * 2 if isinstance(pads, int) else pads)]
    strides, groups = node.args.get("stride", [1, 1]), node.args.get("groups", 1)
    x = np.pad(x.astype(np.int64), ((0, 0), (0, 0), *pads), constant_values=zero_x)
    outputs, per_group, kh, kw = weight.shape
    high, wide = (x.shape[2] - kh) // strides[0] + 1, (x.shape[3] - kw) // strides[1] + 1
    unit = scale_x * scale_w.astype(np.float64)
    start = np.rint(bias / unit).astype(np.int64) - zero_x * weight.sum((1, 2, 3))
    sums = np.zeros((len(x), outputs, high, wide), np.int64)
    for output in range(outputs):
        first = output // (outputs // groups) * per_group
        for row in range(high):
            for column in range(wide):
                top, left = row * strides[0], column * strides[1]
                window = x[:, first : first + per_group, top : top + kh, left : left + kw]
                sums[:, output, row, column] = start[output] + (window * weight[output]).sum((1, 2, 3))
    assert np.abs(sums).max() < 2**31
    real = sums.astype(np.float32)
    if node.type is None:
        result = real * unit.astype(np.float32).reshape(1, -1, 1, 1)
        return result.reshape(*shape[:-1], -1) if node.op == "linear" else result
    scale_y, zero_y = types[node.output]
    factor = (unit / scale_y).astype(np.float32).reshape(1, -1, 1, 1)
    total = (real * factor).astype(np.float64)
    residual = node.args.get("residual")
    if residual is not None:
        scale_r, zero_r = types[residual.name]
        ratio = np.float64(np.float32(scale_r / scale_y))
        exact = (values[residual.name].astype(np.int64) - zero_r) * ratio + total
        total = exact.astype(np.float32).astype(np.float64)  # a fused multiply-add rounds once
    six = int(np.clip(np.rint(np.float32(6) * np.float32(1 / scale_y)) + zero_y, 0, 255))
    result = clamp(total, zero_y, node.args.get("activation"), six)
    return result.reshape(*shape[:-1], -1) if node.op == "linear" else result


def add(node: Node, graph: Graph, values, types) -> np.ndarray:
    (a, scale_a, zero_a), (b, scale_b, zero_b) = (
        (values[node.args[side].name].astype(np.int64), *types[node.args[side].name]) for side in ("self", "other")
    )
    scale, zero = types[node.output]
    first = ((b - zero_b).astype(np.float32) * np.float32(scale_b / scale)).astype(np.float64)
    exact = (a - zero_a) * np.float64(np.float32(scale_a / scale)) + first
    return clamp(exact.astype(np.float32), zero)


def mul(node: Node, graph: Graph, values, types) -> np.ndarray:
    (a, scale_a, zero_a), (b, scale_b, zero_b) = (
        (values[node.args[side].name].astype(np.int64), *types[node.args[side].name]) for side in ("self", "other")
    )
    scale, zero = types[node.output]
    return clamp(((a - zero_a) * (b - zero_b)).astype(np.float32) * np.float32(scale_a * scale_b / scale), zero)


def mean(node: Node, graph: Graph, values, types) -> np.ndarray:
    x, (scale_x, zero_x) = values[node.args["self"].name].astype(np.int64), types[node.args["self"].name]
    scale, zero = types[node.output]
    count = math.prod(x.shape[2:])
    sums = (x - zero_x).sum((2, 3), keepdims=True)
    return clamp(sums.astype(np.float32) * np.float32(scale_x / (scale * count)), zero)


def max_pool(node: Node, graph: Graph, values, types) -> np.ndarray:
    x = values[node.args["self"].name]
    size = node.args["kernel_size"][0]
    high, wide = x.shape[2] // size, x.shape[3] // size
    return x[:, :, : high * size, : wide * size].reshape(*x.shape[:2], high, size, wide, size).max((3, 5))


def quantize(node: Node, graph: Graph, values, types) -> np.ndarray:
    scale, zero = types[node.output]
    product = np.asarray(values[node.args["self"].name], np.float32) * np.float32(1 / scale)
    return clamp(product, zero)


def lookup(node: Node, graph: Graph, values, types) -> np.ndarray:
    x, table = values[node.args["self"].name], graph.constants[node.args["table"].name]
    if table.ndim == 1:
        return table[x]
    return np.stack([table[channel][x[:, channel]] for channel in range(x.shape[1])], 1)


def dequantize(node: Node, graph: Graph, values, types) -> np.ndarray:
    scale, zero = types[node.args["self"].name]
    return (values[node.args["self"].name].astype(np.int64) - zero).astype(np.float32) * np.float32(scale)


def cat(node: Node, graph: Graph, values, types) -> np.ndarray:
    return np.concatenate([values[part.name] for part in node.args["tensors"]], node.args.get("dim", 0))


def view(node: Node, graph: Graph, values, types) -> np.ndarray:
    return values[node.args["self"].name].reshape(len(values[node.args["self"].name]), -1)


RULES = {
    "conv2d": layer, "linear": layer, "add": add, "mul": mul, "mean": mean, "adaptive_avg_pool2d": mean,
    "max_pool2d": max_pool, "quantize": quantize, "lookup": lookup, "cat": cat, "flatten": view,
    "dequantize": dequantize,
    "permute": lambda node, graph, values, types: values[node.args["self"].name].transpose(node.args["dims"]),
}  # fmt: skip
