"""A small network of integers with everything in it that int8 export writes, and an interpreter of such graphs.

The interpreter computes with Python's and NumPy's integers, and with fractions where float32 has to be rounded once: it
shares no code with the runtime.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from subp_ext import Graph, Node, Ref, TensorSpec, UniformBlockSparse
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType

BOUNDS = {None: (None, None), "relu": (0.0, None), "relu6": (0.0, 6.0)}


def uint8(scale: float, zero: int) -> ValueType:
    return ValueType(DTYPES["uint8"], Quantization(np.float32(scale), np.int32(zero)))


class Builder:
    """Nodes and constants of a graph of integers, with random weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict = {}

    def add(self, op: str, type: ValueType | None = None, /, **args) -> Ref:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(Node(op, name, args, type))
        return Ref(name)

    def constant(self, value) -> Ref:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return Ref(name)

    def weight(self, outputs: int, inputs: int, *kernel: int, kept: float = 1.0, block: int = 16) -> Ref:
        scale = self.rng.uniform(0.002, 0.02, outputs).astype(np.float32)
        stored = self.rng.integers(-127, 128, (outputs, inputs, *kernel)).astype(np.int8)
        if kept == 1.0:
            per_channel = Quantization(scale, np.zeros(outputs, np.int32), 0)
            return self.constant(TypedArray(stored, ValueType(DTYPES["int8"], per_channel)))
        rows, count = -(-outputs // block), max(1, round(kept * inputs))
        indices = np.stack([np.sort(self.rng.permutation(inputs)[:count]) for _ in range(rows)]).astype(np.int32)
        values = self.rng.integers(-127, 128, (rows, count, *(kernel or (1, 1)), block)).astype(np.int8)
        if outputs % block:
            values[-1, ..., outputs % block :] = 0
        shape = (outputs, inputs, *(kernel or (1, 1)))
        return self.constant(UniformBlockSparse(values, indices, shape, block, 1, "int8", scale))

    def conv(self, x: Ref, weight: Ref, type: ValueType | None, op: str = "conv2d", **args) -> Ref:
        outputs = self.constants[weight.name].shape[0]
        bias = self.constant(self.rng.normal(0, 0.5, outputs).astype(np.float32))
        return self.add(op, type, input=x, weight=weight, bias=bias, **args)

    def lookup(self, x: Ref, source: ValueType, type: ValueType, function, name: str) -> Ref:
        table = type.from_float(function(source.to_float(np.arange(256).astype(np.uint8)).astype(np.float64)))
        return self.add("lookup", type, self=x, table=self.constant(table), function=name)


def int8_graph(seed: int = 0, size: int | None = 20) -> Graph:
    """Stem, depthwise, sparse and grouped convolutions, residual, squeeze and excitation, cat, pools, classifier."""
    b = Builder(seed)
    image, a, c, d = uint8(0.02, 114), uint8(0.05, 0), uint8(0.06, 128), uint8(0.05, 3)
    x = b.add("quantize", self=Ref("x"), scale=0.02, zero_point=114, dtype="uint8")
    x = b.conv(x, b.weight(24, 3, 3, 3), a, stride=2, padding=1, activation="relu")
    x = b.add("max_pool2d", a, self=x, kernel_size=3, stride=1, padding=1)
    y = b.conv(x, b.weight(24, 1, 3, 3), a, padding=1, groups=24, activation="relu6")
    y = b.conv(y, b.weight(40, 24, kept=0.5), c)
    short = b.conv(x, b.weight(40, 24, 1, 1), d)
    y = b.conv(y, b.weight(40, 40, 3, 3, kept=0.4, block=8), d, padding=1, residual=short, activation="relu")
    pooled = b.add("mean", d, self=y, dim=[2, 3], keepdim=True)
    gate = b.conv(pooled, b.weight(8, 40, 1, 1), c)
    gate = b.lookup(gate, c, d, lambda v: v / (1 + np.exp(-v)), "silu")
    gate = b.conv(gate, b.weight(40, 8, 1, 1), c)
    gate = b.lookup(gate, c, uint8(1 / 255, 0), lambda v: 1 / (1 + np.exp(-v)), "sigmoid")
    y = b.add("mul", a, self=y, other=gate)
    z = b.conv(y, b.weight(12, 20, 3, 3), a, stride=2, padding=1, groups=2, activation="relu")
    w = b.add("avg_pool2d", a, self=y, kernel_size=2, stride=2, ceil_mode=True)
    z = b.add("cat", a, tensors=[z, w], dim=1)
    z = b.add("add", d, self=z, other=z)
    z = b.add("adaptive_avg_pool2d", c, self=z, output_size=[1, 1])
    z = b.add("flatten", self=z, start_dim=1)
    b.conv(z, b.weight(10, 52), None, op="linear")
    shape = (None, 3, size, size)
    nodes = [*b.nodes[:-1], Node("linear", "y", b.nodes[-1].args)]
    return Graph([TensorSpec("x", shape)], [TensorSpec("y", (None, 10))], nodes, b.constants, {"image": str(image)})


def half_even(number: Fraction) -> int:
    return round(number)  # Python's: ties to even


def rounded(number: Fraction) -> np.float32:
    """To float32, once: of the neighbours of what two roundings give the nearest, ties to even."""
    near = np.float32(float(number))
    candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    distance = [abs(Fraction(float(value)) - number) for value in candidates]
    best = min(distance)
    tied = [value for value, far in zip(candidates, distance, strict=True) if far == best]
    return min(tied, key=lambda value: int(np.float32(value).view(np.int32)) & 1)


def q(type: ValueType) -> tuple[np.float64, int]:
    return np.float64(type.quantization.scale), int(type.quantization.zero_point)


def store(real: np.ndarray, type: ValueType, activation: str | None = None) -> np.ndarray:
    scale, zero = q(type)
    low, high = 0, 255
    lowest, highest = BOUNDS[activation]
    if lowest is not None:
        low = zero
    if highest is not None:
        inverse = np.float32(1.0 / scale)
        high = min(255, half_even(Fraction(float(np.float32(highest) * inverse))) + zero)
    return np.clip(np.rint(real.astype(np.float64)).astype(np.int64) + zero, low, high).astype(np.uint8)


def plain_weight(weight) -> tuple[np.ndarray, np.ndarray, int]:
    """int64 [O, I / groups, kh, kw], scales [O]."""
    if isinstance(weight, TypedArray):
        values = weight.values.astype(np.int64)
        return values.reshape(*values.shape[:2], *(values.shape[2:] or (1, 1))), weight.type.quantization.scale
    outputs, channels, kh, kw = weight.shape
    dense = np.zeros(weight.shape, np.int64)
    for row, kept in enumerate(weight.indices):
        for k, channel in enumerate(kept):
            for n in range(weight.block_size):
                if row * weight.block_size + n < outputs:
                    dense[row * weight.block_size + n, channel] = weight.values[row, k, :, :, n]
    return dense, weight.scale


def sums(x: np.ndarray, zero: int, weight: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """int64 sums of (x - zero) * w, tap by tap."""
    shifted = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    outputs, channels, kh, kw = weight.shape
    height, width = ((size - k) // stride + 1 for size, k in zip(shifted.shape[2:], (kh, kw), strict=True))
    out = np.zeros((len(x), outputs, height, width), np.int64)
    per_group = outputs // groups
    for o in range(outputs):
        first = o // per_group * channels
        for i in range(channels):
            for dy in range(kh):
                for dx in range(kw):
                    part = shifted[:, first + i, dy : dy + stride * height : stride, dx : dx + stride * width : stride]
                    out[:, o] += weight[o, i, dy, dx] * part[:, :height, :width]
    return out


def convolve(node: Node, x, x_type, weight, bias, residual, residual_type) -> np.ndarray:
    stored, w_scale = plain_weight(weight)
    (s_x, zero), unit = q(x_type), None
    unit = s_x * w_scale.astype(np.float64)
    acc = sums(
        x if x.ndim == 4 else x[:, :, None, None], zero, stored,
        node.args.get("stride", 1), node.args.get("padding", 0), node.args.get("groups", 1),
    )  # fmt: skip
    acc += np.rint(bias.astype(np.float64) / unit).astype(np.int64)[:, None, None]
    assert abs(acc).max() < 2**31
    if node.type is None:
        return acc.astype(np.float32)[..., 0, 0] * unit.astype(np.float32)
    s_y, _ = q(node.type)
    real = acc.astype(np.float32) * (unit / s_y).astype(np.float32)[:, None, None]
    if residual is not None:
        s_r, z_r = q(residual_type)
        factor = Fraction(float(np.float32(s_r / s_y)))
        flat = [
            rounded((int(r) - z_r) * factor + Fraction(float(p)))
            for r, p in zip(residual.ravel(), real.ravel(), strict=True)
        ]
        real = np.array(flat, np.float32).reshape(real.shape)
    return store(real, node.type, node.args.get("activation"))


def average(x: np.ndarray, x_type: ValueType, type: ValueType, count: np.ndarray | int) -> np.ndarray:
    """`x` holds sums of x - zero."""
    factor = (q(x_type)[0] / (q(type)[0] * np.asarray(count, np.float64))).astype(np.float32)
    return store(x.astype(np.float32) * factor, type)


def interpret(graph: Graph, image: np.ndarray) -> np.ndarray:
    """What the graph computes for `[B, C, H, W]`; it knows the operators of `int8_graph`."""
    values, types = {"x": image, **graph.constants}, {}
    for node in graph.nodes:
        args = {k: values[v.name] if isinstance(v, Ref) else v for k, v in node.args.items()}
        named = {k: types.get(v.name) for k, v in node.args.items() if isinstance(v, Ref)}
        type = node.type
        if node.op == "quantize":
            type = uint8(args["scale"], args["zero_point"])
            real = args["self"] * np.float32(1.0 / np.float64(np.float32(args["scale"])))
            result = np.clip(np.rint(real.astype(np.float64)) + args["zero_point"], 0, 255).astype(np.uint8)
        elif node.op in ("conv2d", "linear"):
            result = convolve(
                node, args["input"], named["input"], args["weight"], args["bias"], args.get("residual"),
                named.get("residual"),
            )  # fmt: skip
        elif node.op == "max_pool2d":
            size, step, pad = args["kernel_size"], args["stride"], args["padding"]
            padded = np.pad(args["self"].astype(np.int64), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-1)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::step, ::step]
            result = windows.max((4, 5)).astype(np.uint8)
        elif node.op == "avg_pool2d":
            x, size = args["self"].astype(np.int64) - q(named["self"])[1], args["kernel_size"]
            height, width = (-(-n // size) for n in x.shape[2:])
            total, count = np.zeros((*x.shape[:2], height, width), np.int64), np.zeros((height, width), np.int64)
            for y, xx in np.ndindex(height, width):
                part = x[:, :, y * size : (y + 1) * size, xx * size : (xx + 1) * size]
                total[:, :, y, xx], count[y, xx] = part.sum((2, 3)), math.prod(part.shape[2:])
            result = average(total, named["self"], type, count)
        elif node.op in ("mean", "adaptive_avg_pool2d"):
            x = args["self"].astype(np.int64) - q(named["self"])[1]
            result = average(x.sum((2, 3), keepdims=True), named["self"], type, math.prod(x.shape[2:]))
        elif node.op == "lookup":
            result = args["table"][args["self"]]
        elif node.op == "mul":
            (s_a, z_a), (s_b, z_b) = q(named["self"]), q(named["other"])
            product = (args["self"].astype(np.int64) - z_a) * (args["other"].astype(np.int64) - z_b)
            result = store(product.astype(np.float32) * np.float32(s_a * s_b / q(type)[0]), type)
        elif node.op == "add":
            (s_a, z_a), (s_b, z_b) = q(named["self"]), q(named["other"])
            a, b = Fraction(float(np.float32(s_a / q(type)[0]))), np.float32(s_b / q(type)[0])
            second = (args["other"].astype(np.int64) - z_b).astype(np.float32) * b
            flat = [
                rounded((int(i) - z_a) * a + Fraction(float(j)))
                for i, j in zip(args["self"].ravel(), second.ravel(), strict=True)
            ]
            result = store(np.array(flat, np.float32).reshape(second.shape), type)
        elif node.op == "cat":
            result = np.concatenate([values[ref.name] for ref in node.args["tensors"]], args["dim"])
        elif node.op == "flatten":
            result, type = args["self"].reshape(len(args["self"]), -1), named["self"]
        else:
            raise ValueError(f"{node.op} is none of the operators that `int8_graph` uses")
        values[node.output], types[node.output] = result, type
    return values[graph.outputs[0].name]
