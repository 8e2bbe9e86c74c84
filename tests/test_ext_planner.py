"""The plan of a run: the arena against all pairs of lives, joints, operands in place, nothing allocated in a run.

What a plan computes is checked against the graph run node by node on the reference.
"""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_ext import Graph, Node, Ref, Session, TensorSpec, folding, runtime
from subp_ext import session as sessions
from subp_ext.memory import Buffer, place
from subp_ext.operators import OPERATORS


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on_reference(graph: Graph, *inputs):
    values = dict(graph.constants) | {spec.name: x for spec, x in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        values[node.output] = OPERATORS[node.op].reference(**folding.resolve(node.args, values))
    return [values[spec.name] for spec in graph.outputs]


def conv(output, source, weight, **args):
    return Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight), **args})


def dense_block() -> Graph:
    """Joints of joints, as in densenet: every layer reads all before it; one joint also reads a value twice."""
    constants = {f"w{i}": normal(4, 4 * (i + 1), 3, 3, seed=i) * np.float32(0.1) for i in range(3)}
    nodes, joint = [Node("relu", "a0", {"self": Ref("x")})], "a0"
    for i in range(3):
        nodes.append(conv(f"a{i + 1}", joint, f"w{i}", padding=1, activation="relu"))
        joint = f"j{i}"
        nodes.append(Node("cat", joint, {"tensors": [Ref(f"a{k}") for k in range(i + 2)], "dim": 1}))
    nodes += [
        Node("silu", "s", {"self": Ref("j2")}),
        Node("cat", "t", {"tensors": [Ref("s"), Ref("x"), Ref("s")], "dim": 1}),
        Node("add", "u", {"self": Ref("t"), "other": Ref("t")}),
        Node("mean", "y", {"self": Ref("u"), "dim": [2, 3]}),
    ]
    return Graph([TensorSpec("x", (None, 4, None, None))], [TensorSpec("y", (None, 36))], nodes, constants)


def channels_last() -> Graph:
    """As in convnext: permuted to channels last for a normalisation and two linear layers, and back."""
    constants = {
        "dw": normal(8, 1, 3, 3),
        "g": normal(8, seed=1),
        "b": normal(8, seed=2),
        "up": normal(32, 8, seed=3),
        "down": normal(8, 32, seed=4),
        "scale": normal(1, 8, 1, 1, seed=5),
    }
    norm = {"input": Ref("p"), "normalized_shape": [8], "weight": Ref("g"), "bias": Ref("b"), "eps": 1e-6}
    nodes = [
        conv("c", "x", "dw", padding=1, groups=8),
        Node("permute", "p", {"self": Ref("c"), "dims": [0, 2, 3, 1]}),
        Node("layer_norm", "n", norm),
        Node("linear", "l", {"input": Ref("n"), "weight": Ref("up"), "activation": "gelu"}),
        Node("linear", "m", {"input": Ref("l"), "weight": Ref("down")}),
        Node("permute", "q", {"self": Ref("m"), "dims": [0, 3, 1, 2]}),
        Node("mul", "k", {"self": Ref("q"), "other": Ref("scale")}),
        Node("add", "y", {"self": Ref("k"), "other": Ref("x")}),
    ]
    return Graph([TensorSpec("x", (None, 8, None, None))], [TensorSpec("y", (None, 8, 7, 5))], nodes, constants)


def gates() -> Graph:
    """Squeeze and excitation, a scalar, a strided view, a split, and arithmetic on sizes."""
    nodes = [
        Node("mean", "m", {"self": Ref("x"), "dim": [2, 3], "keepdim": True}),
        conv("h", "m", "w", activation="sigmoid"),
        Node("mul", "g", {"self": Ref("x"), "other": Ref("h")}),
        Node("add", "p", {"self": Ref("g"), "other": 0.5}),
        Node("slice", "s", {"self": Ref("p"), "dim": 2, "start": 0, "end": 100, "step": 2}),
        Node("hardtanh", "c", {"self": Ref("s"), "min_val": -1.0, "max_val": 1.0}),
        Node("split", "t", {"self": Ref("c"), "split_size": 4, "dim": 1}),
        Node("getitem", "t0", {"self": Ref("t"), "index": 0}),
        Node("getitem", "t1", {"self": Ref("t"), "index": 1}),
        Node("sub", "d", {"self": Ref("t0"), "other": Ref("t1")}),
        Node("permute", "e", {"self": Ref("d"), "dims": [0, 2, 3, 1]}),
        Node("sym_size", "n", {"self": Ref("x"), "dim": 0}),
        Node("mul", "rows", {"self": Ref("n"), "other": 2}),
        Node("reshape", "y", {"self": Ref("e"), "shape": [Ref("rows"), -1]}),
        Node("softmax", "z", {"self": Ref("y"), "dim": -1}),
    ]
    constants = {"w": normal(8, 8, 1, 1)}
    outputs = [TensorSpec("y", (None, None)), TensorSpec("z", (None, None))]
    return Graph([TensorSpec("x", (None, 8, None, None))], outputs, nodes, constants)


def inverted_residual() -> Graph:
    """As in mobilenetv2: a depthwise convolution in the middle, chained to the one before it; then the sum."""
    constants = {"up": normal(24, 8, 1, 1), "dw": normal(24, 1, 5, 5, seed=1), "down": normal(8, 24, 1, 1, seed=2)}
    nodes = [
        conv("e", "x", "up", activation="relu6"),
        conv("d", "e", "dw", padding=2, groups=24, activation="relu6"),
        conv("y", "d", "down", residual=Ref("x")),
    ]
    return Graph([TensorSpec("x", (None, 8, None, None))], [TensorSpec("y", (None, 8, None, None))], nodes, constants)


def positions() -> Graph:
    """As in edgenext: a grid as large as the input, through a convolution and a linear layer, added to it."""
    height, width = (Node("sym_size", name, {"self": Ref("x"), "dim": dim}) for dim, name in ((2, "h"), (3, "w")))
    grid = {"size": [1, 4, Ref("h"), Ref("w")], "fill_value": 0.5, "dtype": "float32"}
    nodes = [
        height,
        width,
        Node("full", "grid", grid),
        conv("p", "grid", "k", padding=1, activation="relu"),
        conv("q", "p", "d", padding=1, groups=4),
        Node("add", "a", {"self": Ref("x"), "other": Ref("q")}),
        conv("y", "a", "k", padding=1),
    ]
    constants = {"k": normal(4, 4, 3, 3), "d": normal(4, 1, 3, 3, seed=1)}
    return Graph([TensorSpec("x", (None, 4, None, None))], [TensorSpec("y", (None, 4, None, None))], nodes, constants)


GRAPHS = [dense_block, channels_last, gates, inverted_residual, positions]
CHANNELS = {dense_block: 4, channels_last: 8, gates: 8, inverted_residual: 8, positions: 4}


def close(got, want):
    return np.allclose(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize("batch, height, width", [(1, 8, 6), (3, 5, 7), (1, 1, 1), (2, 16, 2)])
def test_any_batch_and_size_matches_the_reference(make, batch, height, width):
    graph, session = make(), Session(make(), threads=2)
    x = normal(batch, CHANNELS[make], height, width)
    for seed in range(2):
        x = normal(batch, CHANNELS[make], height, width, seed=seed)
        got = session.run(x)
        for mine, want in zip(got if isinstance(got, tuple) else [got], on_reference(graph, x), strict=True):
            assert mine.shape == want.shape and mine.dtype == want.dtype and close(mine, want)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.integers(0, 6)), max_size=25))
def test_no_two_buffers_overlap_while_both_live(parts):
    buffers = [Buffer(nbytes, first, first + length) for nbytes, first, length in parts]
    total = place(buffers)
    for i, a in enumerate(buffers):
        assert a.offset % 64 == 0 and a.offset + a.nbytes <= total
        for b in buffers[:i]:
            apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
            assert apart or a.last < b.first or b.last < a.first or 0 in (a.nbytes, b.nbytes)
    alive = [sum(b.nbytes for b in buffers if b.first <= t <= b.last) for t in range(19)]
    assert max(alive, default=0) <= total <= sum(max(64, -(-b.nbytes // 64) * 64) for b in buffers)


def test_joints_cost_nothing_for_one_image():
    session = Session(dense_block())
    session.run(normal(1, 4, 6, 6))
    joints = [row for row in session.report().rows if row.op == "cat"]
    assert {row.node: row.kernel for row in joints} == {"j0": "none", "j1": "none", "j2": "none", "t": "numpy"}


def test_operands_that_nothing_reads_again_are_overwritten():
    nodes = [Node("relu", "a0", {"self": Ref("x")})]
    nodes += [Node("silu", f"a{i + 1}", {"self": Ref(f"a{i}")}) for i in range(9)]
    graph = Graph([TensorSpec("x", (1, 1 << 16))], [TensorSpec("a9", (1, 1 << 16))], nodes)
    session = Session(graph)
    assert session.report().arena_bytes == 4 << 16
    assert close(session.run(normal(1, 1 << 16)), on_reference(graph, normal(1, 1 << 16))[0])


def test_nothing_is_allocated_while_running():
    nodes = [
        conv("a", "x", "w", padding=1, activation="relu"),
        conv("b", "a", "w", padding=1, residual=Ref("x")),
        Node("mul", "c", {"self": Ref("b"), "other": Ref("a")}),
        Node("cat", "d", {"tensors": [Ref("c"), Ref("a")], "dim": 1}),
        Node("max_pool2d", "e", {"self": Ref("d"), "kernel_size": 2}),
        Node("sub", "f", {"self": Ref("e"), "other": Ref("e")}),
        Node("mean", "y", {"self": Ref("f"), "dim": [2, 3]}),
    ]
    graph = Graph([TensorSpec("x", (1, 8, 64, 64))], [TensorSpec("y", (1, 16))], nodes, {"w": normal(8, 8, 3, 3)})
    session, x = Session(graph, threads=2), normal(1, 8, 64, 64)
    assert not session.report().fallbacks
    session.run(x)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        session.run(x)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 < x.nbytes  # the result and Python's own objects; the least tensor has 64 KiB


def test_memory_of_other_shapes_is_bounded():
    session = Session(dense_block())
    for size in range(2, 20):
        session.run(normal(1, 4, size, size))
    assert len(session._entries) == sessions.KEPT_PLANS


def test_python_threads_with_different_shapes_share_a_session():
    session, graph, wrong = Session(gates(), threads=1), gates(), []
    inputs = [normal(1 + seed % 3, 8, 4 + 2 * (seed % 2), 6, seed=seed) for seed in range(6)]
    wants = [on_reference(graph, x)[1] for x in inputs]

    def work(seed):
        for _ in range(20):
            if not close(session.run(inputs[seed])[1], wants[seed]):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert sum(len(entry.free) for entry in session._entries.values()) <= 6


def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated(monkeypatch):
    monkeypatch.setattr(runtime, "memory_limit", lambda: 1 << 20)
    session = Session(dense_block())
    session.run(normal(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \[1, 4, 512, 512\]: .* GB"):
        session.run(normal(1, 4, 512, 512))


def test_sizes_that_the_network_cannot_take_are_named():
    session = Session(gates())
    with pytest.raises(ValueError, match=r"node 'y' \(reshape\)"):
        graph = gates()
        graph.nodes[-2] = Node("reshape", "y", {"self": Ref("e"), "shape": [7, -1]})
        Session(graph).run(normal(1, 8, 4, 4))
    assert session.run(normal(1, 8, 4, 4))[0].shape == (2, 16)
    with pytest.raises(ValueError, match="run once, or pass inputs"):
        Session(gates()).report()
