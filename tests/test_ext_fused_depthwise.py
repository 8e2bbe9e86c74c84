"""Convolutions fused with the depthwise one after them, against a float64 oracle on whole numbers.

Small whole numbers are added without rounding in float32, so every result must be equal, however it is cut.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ext_kernels import SETS, oracle, random_weight, reordered

from subp_ext import Session, fused_depthwise
from subp_ext.convolution import Convolution
from subp_ext.graph import Graph, Node, Ref, TensorSpec
from subp_ext.memory import aligned
from subp_ext.sparse import UniformBlockSparse


def whole(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float32)


def whole_weight(rng, outputs, per_group, size, block, groups, kept, ordered):
    """A dense and a packed weight of the same whole numbers."""
    _, packed = random_weight(rng, outputs, per_group, (size, size), block, groups, kept)
    mask = np.zeros(packed.shape[:2], bool)
    rows_per_group = packed.indices.shape[0] // groups
    for output in range(outputs):
        group, within = divmod(output, outputs // groups)
        mask[output, packed.indices[group * rows_per_group + within // block]] = True
    dense = whole(rng, *packed.shape) * mask[:, :, None, None]
    of_row = [group * (outputs // groups) + row * block for group in range(groups) for row in range(rows_per_group)]
    weight = UniformBlockSparse.from_dense(dense, block, groups, mask[of_row])
    return reordered(rng, dense, weight) if ordered else (dense, weight)


@st.composite
def cases(draw):
    groups, per_group = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(1, 12))
    pads = st.integers(0, 3)
    return {
        "groups": groups,
        "per_group": per_group,
        "outputs": groups * draw(st.integers(2, 40)),
        "kept": draw(st.integers(1, per_group)),
        "block": draw(st.sampled_from([1, 2, 3, 8, 16, 32])),
        "first": (draw(st.sampled_from([1, 1, 1, 3])), draw(st.integers(1, 2))),
        "second": (draw(st.sampled_from([2, 3, 3, 5, 7])), draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2]))),
        "zeros": ((draw(pads), draw(pads)), (draw(pads), draw(pads))),
        "image": (draw(st.integers(1, 2)), draw(st.integers(13, 33)), draw(st.integers(13, 61))),
        "activations": (draw(st.sampled_from([None, "relu"])), draw(st.sampled_from([None, "relu"]))),
        "ordered": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "bytes": draw(st.sampled_from([2000, 20000, 1 << 20])),
        "seed": draw(st.integers(0, 2**31)),
    }


@pytest.mark.parametrize("kernel_set", SETS)
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_any_shape_in_any_bands_is_exact(kernel_set, case):
    rng = np.random.default_rng(case["seed"])
    outputs, groups, (size, stride), (window, step, dilation) = (
        case[name] for name in ("outputs", "groups", "first", "second")
    )
    sizes = (outputs, case["per_group"], size, case["block"], groups, case["kept"])
    dense, weight = whole_weight(rng, *sizes, case["ordered"])
    depthwise, biases = whole(rng, outputs, 1, window, window), [whole(rng, outputs) for _ in range(2)]
    x = whole(rng, case["image"][0], case["per_group"] * groups, *case["image"][1:])
    same = ((size // 2, size // 2),) * 2
    between, _ = oracle(x, dense, biases[0], (stride, stride), same, (1, 1), groups)
    between = np.maximum(between, 0) if case["activations"][0] else between
    spread = ((window - 1) * dilation + 1,) * 2
    zeros = tuple(
        (before, max(after, reach - length - before))
        for (before, after), reach, length in zip(case["zeros"], spread, between.shape[2:], strict=True)
    )
    want, _ = oracle(between, depthwise, biases[1], (step, step), zeros, (dilation, dilation), outputs)
    residual = whole(rng, *want.shape) if case["residual"] else None
    want = want if residual is None else want + residual
    want = np.maximum(want, 0) if case["activations"][1] else want

    joined = fused_depthwise.FusedDepthwise(
        Convolution(weight, biases[0], stride, same, 1, groups, case["activations"][0], kernel_set, winograd=False),
        Convolution(depthwise, biases[1], step, zeros, dilation, outputs, case["activations"][1], kernel_set),
        "between",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_depthwise, "CACHED_ROWS", case["bytes"])
        compiled = joined.build(*x.shape[2:])
    for threads in (1, 2, 3):
        out = np.full(want.shape, np.nan, np.float32)
        compiled.run(x, residual, out, aligned(compiled.scratch * threads), threads)
        np.testing.assert_array_equal(out, want)


def network(rng, *nodes, outputs=("y",)):
    """A graph of one input `x` of 16 channels; a weight w is whole numbers [16, 16, 1, 1], d one [16, 1, 3, 3]."""
    constants = {"w": whole(rng, 16, 16, 1, 1), "w3": whole(rng, 16, 16, 3, 3), "d": whole(rng, 16, 1, 3, 3)}
    shape = (None, 16, 14, 14)
    specs = [TensorSpec(name, shape, "float32") for name in outputs]
    return Graph([TensorSpec("x", shape, "float32")], specs, list(nodes), constants)


def pointwise(source, output, weight="w", **more):
    pad = 1 if weight == "w3" else 0
    return Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight), "padding": pad, **more})


def depthwise(source, output, **more):
    args = {"input": Ref(source), "weight": Ref("d"), "padding": 1, "groups": 16, **more}
    return Node("conv2d", output, args)


def apart(graph, x):
    """All values of a graph of convolutions and additions, each by the oracle."""
    values = {"x": x.astype(np.float64)}
    for node in graph.nodes:
        args = node.args
        if node.op == "add":
            values[node.output] = values[args["self"].name] + values[args["other"].name]
            continue
        zeros = ((args["padding"],) * 2,) * 2
        weight = graph.constants[args["weight"].name]
        out, _ = oracle(values[args["input"].name], weight, None, (1, 1), zeros, (1, 1), args.get("groups", 1))
        values[node.output] = out + (values[args["residual"].name] if "residual" in args else 0)
    return [values[spec.name] for spec in graph.outputs]


FUSED = {
    "a pair": ([pointwise("x", "a"), depthwise("a", "y")], ("y",), 1),
    "two pairs": ([pointwise("x", "a"), depthwise("a", "b"), pointwise("b", "c"), depthwise("c", "y")], ("y",), 2),
    "a residual of the depthwise one": ([pointwise("x", "a"), depthwise("a", "y", residual=Ref("x"))], ("y",), 1),
    "read twice": ([pointwise("x", "a"), depthwise("a", "b"), Node("add", "y", {"self": Ref("a"), "other": Ref("b")})],
                   ("y",), 0),
    "its own residual": ([pointwise("x", "a"), depthwise("a", "y", residual=Ref("a"))], ("y",), 0),
    "an output": ([pointwise("x", "a"), depthwise("a", "y")], ("y", "a"), 0),
    "a residual of the first": ([pointwise("x", "a", residual=Ref("x")), depthwise("a", "y")], ("y",), 0),
    "a pair, then a depthwise one": ([pointwise("x", "a"), depthwise("a", "b"), depthwise("b", "y")], ("y",), 1),
    "two depthwise ones": ([depthwise("x", "a"), depthwise("a", "y")], ("y",), 0),
    "no depthwise one": ([pointwise("x", "a"), pointwise("a", "y")], ("y",), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused_and_what_is_not(name):
    nodes, outputs, pairs = FUSED[name]
    rng = np.random.default_rng(0)
    graph = network(rng, *nodes, outputs=outputs)
    x = whole(rng, 2, 16, 14, 14)
    want = apart(graph, x)
    session = Session(graph, threads=1)
    found = session.run(x)
    for a, b in zip(found if isinstance(found, tuple) else (found,), want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert sum(" + " in row.kernel for row in session.report().rows) == pairs


def test_where_winograd_is_better_the_two_stay_apart():
    rng = np.random.default_rng(0)
    graph = network(rng, pointwise("x", "a", "w3"), depthwise("a", "y"))
    x = whole(rng, 1, 16, 14, 14)
    first = Convolution(graph.constants["w3"], None, 1, 1)
    algorithm = first.algorithm(14, 14)
    session = Session(graph, threads=1)
    np.testing.assert_allclose(session.run(x), apart(graph, x)[0], atol=1e-2)
    rows = session.report().rows
    assert (len(rows) == 1) == (algorithm is first.algorithms[0])
    assert sum(row.macs for row in rows) == 14 * 14 * 16 * (16 * 9 + 9)


def test_a_report_tells_the_work_of_both():
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 16), bool)
    mask[0, ::2] = True
    graph = network(rng, pointwise("x", "a"), depthwise("a", "y"))
    sparse = graph.constants["w"] * mask.repeat(16, 0)[:, :, None, None]
    graph.constants["w"] = UniformBlockSparse.from_dense(sparse, 16, 1, mask)
    session = Session(graph, threads=1)
    session.run(whole(rng, 1, 16, 14, 14))
    (row,) = session.report().rows
    assert (row.node, row.kept_share) == ("y", 0.5)
    assert (row.macs, row.dense_macs, row.sparse_macs) == tuple(14 * 14 * 16 * n for n in (8 + 9, 16 + 9, 8))
    shares = session.report().shares
    assert shares == {"sparse": 8 / 17, "dense": pytest.approx(9 / 17), "fallback": 0}


def test_channels_that_do_not_fit_name_the_node():
    rng = np.random.default_rng(0)
    graph = network(rng, pointwise("x", "a"), depthwise("a", "y"))
    graph.constants["w"] = whole(rng, 8, 16, 1, 1)
    with pytest.raises(ValueError, match="node 'y'.*input has 8 channels; the weight is for 16"):
        Session(graph, threads=1)
