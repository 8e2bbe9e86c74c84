"""Small networks in float32 that are converted to bfloat16: what tests and mutations start from."""

from __future__ import annotations

import numpy as np

from subp_ext import Graph, Node, Ref, TensorSpec, UniformBlockSparse


def uniform(rng: np.random.Generator, outputs: int, inputs: int, kernel: int, kept: int) -> UniformBlockSparse:
    """A weight of random blocks of 16, as many in each row."""
    weight = rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32)
    weight /= np.sqrt(np.float32(kept * kernel * kernel))
    mask = np.zeros((-(-outputs // 16), inputs), bool)
    for row in mask:
        row[rng.permutation(inputs)[:kept]] = True
    weight *= np.repeat(mask, 16, axis=0)[:outputs, :, None, None]
    return UniformBlockSparse.from_dense(weight, 16, 1, mask)


def bfloat16_graph(seed: int = 0, classes: int = 10) -> Graph:
    """A network in float32 with every kind of layer that becomes bfloat16, of images `[B, 3, any, any]`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "stem": normal(16, 3, 3, 3) / 5, "bias": normal(16) / 4, "sparse": uniform(rng, 32, 16, 1, 8),
        "depthwise": normal(32, 1, 3, 3) / 3, "back": uniform(rng, 16, 32, 3, 16), "squeeze": normal(8, 16, 1, 1) / 4,
        "gate": normal(16, 8, 1, 1) / 3, "scale": normal(16, 1, 1), "factor": 1 + normal(16) / 8,
        "summand": normal(16) / 8,
        "wide": normal(40, 16) / 4, "narrow": normal(16, 40) / 6, "classes": normal(classes, 16) / 4,
        "class bias": normal(classes),
    }  # fmt: skip

    def conv(output: str, source: str, weight: str, **more) -> Node:
        return Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight)} | more)

    nodes = [
        conv("a", "x", "stem", bias=Ref("bias"), stride=2, padding=1, activation="relu"),
        Node("max_pool2d", "b", {"self": Ref("a"), "kernel_size": 3, "stride": 2, "padding": 1}),
        conv("c", "b", "sparse", activation="hardswish"),
        conv("d", "c", "depthwise", padding=1, groups=32, activation="relu6"),
        conv("e", "d", "back", padding=1, residual=Ref("b")),
        Node("mean", "f", {"self": Ref("e"), "dim": [2, 3], "keepdim": True}),
        conv("g", "f", "squeeze", activation="silu"),
        conv("h", "g", "gate", activation="sigmoid"),
        Node("mul", "i", {"self": Ref("e"), "other": Ref("h")}),
        Node("avg_pool2d", "j", {"self": Ref("i"), "kernel_size": 2, "stride": 1, "padding": 1}),
        Node("permute", "k", {"self": Ref("j"), "dims": [0, 2, 3, 1]}),
        Node("layer_norm", "l", {"input": Ref("k"), "normalized_shape": [16], "weight": Ref("factor"),
                                 "bias": Ref("summand"), "eps": 1e-5}),
        Node("linear", "m", {"input": Ref("l"), "weight": Ref("wide"), "activation": "gelu"}),
        Node("linear", "n", {"input": Ref("m"), "weight": Ref("narrow")}),
        Node("permute", "o", {"self": Ref("n"), "dims": [0, 3, 1, 2]}),
        Node("mul", "p", {"self": Ref("o"), "other": Ref("scale")}),
        Node("add", "q", {"self": Ref("j"), "other": Ref("p")}),
        Node("cat", "r", {"tensors": [Ref("q"), Ref("j")], "dim": 1}),
        Node("slice", "s", {"self": Ref("r"), "dim": 1, "start": 8, "end": 24}),
        Node("mul", "t", {"self": Ref("s"), "other": 0.5}),
        Node("relu", "u", {"self": Ref("t")}),
        Node("mean", "v", {"self": Ref("u"), "dim": [2, 3]}),
        Node("linear", "y", {"input": Ref("v"), "weight": Ref("classes"), "bias": Ref("class bias")}),
    ]  # fmt: skip
    inputs = [TensorSpec("x", (None, 3, None, None))]
    return Graph(inputs, [TensorSpec("y", (None, classes))], nodes, constants, {"independent_images": True})
