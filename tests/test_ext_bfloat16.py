"""Networks in bfloat16: what becomes it, every step against an oracle on its own operands, and what a session does.

The oracle is torch in float64. A stored result is the nearest bfloat16 to it, or a neighbour where the sum in float32
lies on the other side of a tie; sums are of at most 144 products. Accuracy on pictures is in test_validate.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bfloat16_graphs import bfloat16_graph
from int8_graphs import int8_graph

import subp_ext
from subp_ext import Graph, Node, Ref, Session, TensorSpec, _kernels
from subp_ext.bfloat16 import convert, in_float32
from subp_ext.dtypes import DTYPES, TypedArray, ValueType
from subp_ext.operators.steps import no_fast_bfloat16

BFLOAT16 = ValueType(DTYPES["bfloat16"])
SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]
fast = pytest.mark.skipif(bool(no_fast_bfloat16()), reason="this CPU has no products of bfloat16")


@pytest.fixture
def images():
    return np.random.default_rng(1).standard_normal((3, 3, 29, 30)).astype(np.float32)


def typed(graph):
    return [node.output for node in graph.nodes if node.type == BFLOAT16]


def test_planes_between_layers_become_bfloat16_and_outputs_do_not():
    graph = convert(bfloat16_graph())
    graph.validate()
    views = {"k", "o", "s"}
    assert typed(graph) == ["x.bfloat16", *(name for name in "abcdefghijlmnpqrtuv" if name not in views)]
    assert graph.nodes[0].op == "cast" and graph.nodes[-1].output == "y" and graph.nodes[-1].type is None
    weights = {name for name, constant in graph.constants.items() if getattr(constant, "dtype", None) != np.float32}
    assert weights == {"stem", "sparse", "depthwise", "back", "squeeze", "gate", "wide", "narrow", "classes"}
    stored = DTYPES["bfloat16"].from_float(bfloat16_graph().constants["stem"])
    assert np.array_equal(graph.constants["stem"].values, stored)
    assert graph.metadata == {"independent_images": True, "precision": "bfloat16"}


def test_what_is_read_in_float32_alone_stays_so():
    graph = bfloat16_graph()
    graph.nodes.insert(5, Node("softmax", "odd", {"self": Ref("c"), "dim": 1}))  # beside d, which reads bfloat16
    graph.nodes.insert(1, Node("conv2d", "logits", {"input": Ref("x"), "weight": Ref("stem")}))
    graph.nodes.insert(2, Node("log_softmax", "scores", {"self": Ref("logits"), "dim": 1}))
    graph.outputs += [TensorSpec("odd", (None,) * 4), TensorSpec("scores", (None,) * 4)]
    converted = convert(graph)
    assert {"c"} < set(typed(converted)) and not {"logits", "odd", "scores"} & set(typed(converted))
    assert sum(node.op == "cast" for node in converted.nodes) == 1, "both layers read the same copy of the input"


def test_an_output_that_layers_read_too_is_cast_for_the_caller(images):
    graph = bfloat16_graph()
    graph.outputs += [TensorSpec("e", (None,) * 4), TensorSpec("s", (None,) * 4)]
    converted = convert(graph)
    casts = {node.output: node.args["self"].name for node in converted.nodes if node.args.get("dtype") == "float32"}
    assert casts == {"e": "e.bfloat16", "s": "s.bfloat16"}
    outputs = Session(graph, dtype="bfloat16").run(images)
    assert all(output.dtype == np.float32 for output in outputs)
    np.testing.assert_allclose(outputs[1], Session(graph).run(images)[1], atol=0.1)


def test_nothing_to_convert_comes_back_as_it_was():
    graph = int8_graph()
    assert convert(graph).nodes[:3] == graph.nodes[:3]
    alone = Graph([TensorSpec("x", (2,))], [TensorSpec("y", (2,))], [Node("relu", "y", {"self": Ref("x")})])
    assert convert(alone) is alone
    assert Session(alone, dtype="bfloat16").run(np.array([-1, 1.00001], np.float32))[1] == np.float32(1.00001)


def test_converted_back_it_has_rounded_weights_and_no_rounded_values(images):
    graph = bfloat16_graph()
    back = in_float32(convert(graph))
    assert typed(back) == [] and [node.op for node in back.nodes] == [node.op for node in graph.nodes]
    exact = replace(graph, constants={name: rounded(value) for name, value in graph.constants.items()})
    found = Session(convert(graph), dtype="float32").run(images)
    assert np.array_equal(found, Session(exact).run(images))


def rounded(constant):
    """A constant in float32 as it reads in bfloat16; vectors, which are no weights of layers, as they are."""
    if isinstance(constant, np.ndarray):
        return BFLOAT16.to_float(BFLOAT16.from_float(constant)) if constant.ndim in (2, 4) else constant
    return replace(constant, values=BFLOAT16.to_float(BFLOAT16.from_float(constant.values)))


def in_torch(node, values):
    """One node in float64."""
    args = {name: values[arg.name] if isinstance(arg, Ref) else arg for name, arg in node.args.items()}
    if node.op == "cat":
        return torch.cat([values[ref.name] for ref in args["tensors"]], args["dim"])
    own = torch.nn.functional
    if node.op in ("conv2d", "linear"):
        activation, residual = args.pop("activation", None), args.pop("residual", None)
        result = getattr(own, node.op)(**args)
        result = result if residual is None else result + residual
        return result if activation is None else getattr(own, activation, getattr(torch, activation, None))(result)
    calls = {
        "max_pool2d": lambda: own.max_pool2d(args["self"], args["kernel_size"], args["stride"], args["padding"]),
        "avg_pool2d": lambda: own.avg_pool2d(args["self"], args["kernel_size"], args["stride"], args["padding"]),
        "layer_norm": lambda: own.layer_norm(
            args["input"], args["normalized_shape"], args["weight"], args["bias"], args["eps"]
        ),
        "mean": lambda: args["self"].mean(args["dim"], args.get("keepdim", False)),
        "mul": lambda: args["self"] * args["other"],
        "add": lambda: args["self"] + args["other"],
        "relu": lambda: args["self"].relu(),
        "cast": lambda: args["self"],
        "permute": lambda: args["self"].permute(args["dims"]),
        "slice": lambda: args["self"][:, args["start"] : args["end"]],
    }
    return calls[node.op]()


def order(stored):
    """Stored numbers in the order of what they stand for, neighbours one apart."""
    signed = stored.astype(np.uint16).view(np.int16).astype(int)
    return np.where(signed < 0, -(signed & 0x7FFF), signed)


@fast
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_the_oracles_on_its_own_operands_to_a_neighbour(images, seed):
    graph = convert(bfloat16_graph(seed))
    names = typed(graph)
    shown = replace(graph, outputs=[*(TensorSpec(name, (None,) * 4, "bfloat16") for name in names), *graph.outputs])
    found = dict(zip([*names, "y"], map(torch.from_numpy, Session(shown, threads=2).run(images)), strict=True))
    values = {name: torch.from_numpy(as_float(value)).double() for name, value in graph.constants.items()}
    values["x"] = torch.from_numpy(images).double()
    moved = 0
    for node in graph.nodes:
        want = in_torch(node, values)
        if node.output in names:
            stored = order(BFLOAT16.from_float(found[node.output].numpy()))
            distance = np.abs(stored - order(BFLOAT16.from_float(want.numpy())))
            # Near 0, where bfloat16 is finer than the sum of what cancelled out, the sum's own rounding counts.
            near = (found[node.output].double() - want).abs() <= 2e-6
            assert ((distance <= 1) | near.numpy()).all(), (node.op, node.output)
            moved += (distance > 0).sum() / distance.size
            want = found[node.output].double()
        values[node.output] = want
    assert moved < 0.02 * len(names), "a neighbour is an exception"
    torch.testing.assert_close(found["y"].double(), values["y"], rtol=1e-5, atol=1e-5)


def as_float(constant):
    if isinstance(constant, np.ndarray):
        return constant
    return constant.to_float() if isinstance(constant, TypedArray) else constant.to_dense()


@fast
def test_what_runs_as_one_step_and_any_threads_give_the_same_bits(images):
    graph = convert(bfloat16_graph())
    apart = replace(graph, outputs=[*graph.outputs, *(TensorSpec(n, (None,) * 4, "bfloat16") for n in ("b", "c", "d"))])
    want = Session(apart).run(images)[0]
    for threads in (1, 2, 3):
        session = Session(graph, threads=threads)
        assert np.array_equal(session.run(images), want)
        assert np.array_equal(session.run(images[:1]), want[:1])


@fast
def test_a_session_converts_and_reports_it(images, monkeypatch):
    graph = bfloat16_graph()
    session = Session(graph, dtype="bfloat16")
    want = session.run(images)
    report = session.report()
    assert report.product_shares == {"float32": 0, "bfloat16": 1, "int8": 0} and "100.0% in bfloat16" in str(report)
    assert [row.node for row in report.rows if row.op == "cast"] == ["x.bfloat16"], "one cast, of the input"
    assert not report.fallbacks and all(row.kernel.startswith("bf16") for row in report.rows if row.macs)
    monkeypatch.setenv("SUBP_DTYPE", "bfloat16")
    assert np.array_equal(Session(graph).run(images), want)
    assert Session(graph, dtype="float32").report(images).product_shares["float32"] == 1
    monkeypatch.setenv("SUBP_DTYPE", "float16")
    with pytest.raises(ValueError, match="SUBP_DTYPE is 'float16'; expected 'bfloat16' or 'float32'"):
        Session(graph)
    with pytest.raises(ValueError, match="dtype is 'int8'; expected 'bfloat16' or 'float32'"):
        Session(graph, dtype="int8")


@pytest.mark.parametrize("kernel_set", [name for name in SETS if "bf16" not in name])
def test_a_cpu_without_it_computes_in_float32_and_says_why(images, monkeypatch, kernel_set):
    monkeypatch.setattr(subp_ext.runtime, "forced_kernel_set", lambda: kernel_set)
    session = Session(convert(bfloat16_graph()))
    found = session.run(images)
    np.testing.assert_allclose(found, Session(in_float32(convert(bfloat16_graph()))).run(images), rtol=1e-5, atol=1e-5)
    report = session.report()
    assert report.product_shares["float32"] == 1 and not [row for row in report.rows if row.op == "cast"]
    layers = [row for row in report.rows if row.macs]
    assert all(f"in float32: SUBP_KERNEL={kernel_set} has no products of bfloat16" in row.why for row in layers)


def test_a_file_holds_half_the_bytes_and_gives_the_same_bits(images, tmp_path):
    graph = bfloat16_graph(classes=2000)
    subp_ext.save(tmp_path / "float32.subp", graph)
    subp_ext.save(tmp_path / "bfloat16.subp", convert(graph))
    sizes = [(tmp_path / f"{name}.subp").stat().st_size for name in ("bfloat16", "float32")]
    assert sizes[0] < 0.6 * sizes[1]
    session = Session(tmp_path / "bfloat16.subp")
    assert session.metadata["precision"] == "bfloat16"
    assert np.array_equal(session.run(images), Session(tmp_path / "float32.subp", dtype="bfloat16").run(images))


@fast
def test_it_takes_little_more_than_half_the_memory():
    """Where planes of many channels are most of it, as in networks: the input stays in float32."""
    rng = np.random.default_rng(0)
    sizes = {"a": 3, "b": 64, "c": 64}
    weights = {name: rng.standard_normal((64, size, 1, 1)).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        Node("conv2d", output, {"input": Ref(source), "weight": Ref(weight)})
        for output, source, weight in (("p", "x", "a"), ("q", "p", "b"), ("r", "q", "c"))
    ]
    nodes.append(Node("mean", "m", {"self": Ref("r"), "dim": [2, 3]}))
    nodes.append(Node("linear", "y", {"input": Ref("m"), "weight": Ref("d")}))
    weights["d"] = rng.standard_normal((10, 64)).astype(np.float32)
    graph = Graph([TensorSpec("x", (1, 3, 112, 112))], [TensorSpec("y", (1, 10))], nodes, weights)
    low, high = (Session(graph, threads=1, dtype=dtype).report() for dtype in ("bfloat16", "float32"))
    assert low.arena_bytes < 0.6 * high.arena_bytes and low.weight_bytes < 0.6 * high.weight_bytes


@fast
def test_a_graph_that_asks_for_bfloat16_itself_keeps_it(images):
    """Without the metadata of a conversion a type is what the author wants, on every CPU."""
    graph = Graph(
        [TensorSpec("x", (2,))], [TensorSpec("y", (2,), "bfloat16")], [Node("relu", "y", {"self": Ref("x")}, BFLOAT16)]
    )
    found = Session(graph, dtype="float32").run(np.array([-1, 1.00001], np.float32))
    assert found.tolist() == [0, 1]


# --- planes ---


@pytest.fixture(params=SETS)
def kernel_set(request, monkeypatch):
    monkeypatch.setattr(subp_ext.runtime, "forced_kernel_set", lambda: request.param)
    return request.param


def stored(*shape, seed=0):
    """Random bfloat16 with some of the numbers that are special."""
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    numbers.reshape(-1)[:: max(1, numbers.size // 9)] *= np.float32(1e30)
    return BFLOAT16.from_float(numbers)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 511, 512, 513, 16385])
def test_casts_round_to_nearest_even_and_keep_nan(kernel_set, count):
    bits = np.random.default_rng(count).integers(0, 1 << 32, count, np.uint64).astype(np.uint32)
    bits[:3] = [0x3F808000, 0x3F818000, 0xFF800001][: len(bits)]  # two ties, and a NaN whose kept bits are infinity's
    real, low = bits.view(np.float32), np.empty(count, np.uint16)
    _kernels.bind_cast(kernel_set, real, low, 2)()
    want = torch.from_numpy(real).bfloat16()
    back = np.empty(count, np.float32)
    _kernels.bind_cast(kernel_set, low, back, 2, "bfloat16", "float32")()
    np.testing.assert_array_equal(back, want.float().numpy())


@pytest.mark.parametrize("op", ["mul", "add"])
def test_numbers_of_the_network_are_not_rounded_before_use(op):
    """torch multiplies bfloat16 in float32 by the number as it was written; sums are treated alike here."""
    x = BFLOAT16.from_float(np.random.default_rng(0).standard_normal((2, 8, 5, 5)))
    scales = np.linspace(0.1, 0.9, 8, dtype=np.float32).reshape(8, 1, 1)
    for other, constants in ((0.1, {}), (Ref("w"), {"w": scales})):
        node = Node(op, "y", {"self": Ref("x"), "other": other}, BFLOAT16)
        spec = TensorSpec("x", (2, 8, 5, 5), "bfloat16"), TensorSpec("y", (2, 8, 5, 5), "bfloat16")
        session = Session(Graph([spec[0]], [spec[1]], [node], constants))
        found = session.run(BFLOAT16.to_float(x))
        assert "binary" in session.report().rows[0].kernel
        wide, number = torch.from_numpy(BFLOAT16.to_float(x)), torch.tensor(constants.get("w", np.float32(0.1)))
        want = (wide * number if op == "mul" else wide + number).bfloat16()
        if op == "mul" and not constants:
            assert torch.equal(want, wide.bfloat16() * 0.1)
        np.testing.assert_array_equal(found, want.float().numpy())


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_sums_and_products_round_once(kernel_set, multiply, one, activation):
    a, b = stored(3, 1000), stored(3, 1 if one else 1000, seed=1)
    out = np.empty_like(a)
    _kernels.bind_binary(kernel_set, multiply, a, b, activation, out, 2, "bfloat16")()
    x, y = BFLOAT16.to_float(a), BFLOAT16.to_float(b)
    with np.errstate(over="ignore"):
        exact = torch.from_numpy(x * y if multiply else x + y)
    if activation:
        exact = getattr(torch.nn.functional, activation)(exact.double()).float()
    want = order(BFLOAT16.from_float(exact.numpy()))
    assert np.abs(order(out) - want).max() <= (activation == "silu")


def test_activations_are_those_of_float32_rounded(kernel_set):
    x = stored(1300)
    for name in _kernels.activations():
        out, exact = np.empty_like(x), np.empty(x.shape, np.float32)
        _kernels.bind_activate(kernel_set, x, name, out, 2, "bfloat16")()
        _kernels.bind_activate(kernel_set, BFLOAT16.to_float(x), name, exact, 2)()
        assert np.abs(order(out) - order(BFLOAT16.from_float(exact))).max() <= 1, name


@pytest.mark.parametrize("kernel, stride, dilation, pad", [(3, 2, 1, 1), (2, 2, 1, 0), (5, 1, 2, 2), (4, 3, 1, 2)])
@pytest.mark.parametrize("width", [9, 31, 32, 33, 70])
@pytest.mark.parametrize("average", [False, True])
def test_pooling(kernel_set, kernel, stride, dilation, pad, width, average):
    if average and dilation > 1:
        pytest.skip("averages have no gaps")
    x = stored(5, 11, width, seed=width)
    if not average:
        x[2, 5, 4], x[3, 6, 7] = 0x7FC1, 0xFFC1  # NaN of both signs
    real = torch.from_numpy(BFLOAT16.to_float(x))
    more = [1, 1] if average else [dilation, dilation]
    if average:
        want = torch.nn.functional.avg_pool2d(real.double(), kernel, stride, pad, count_include_pad=False)
    else:
        want = torch.nn.functional.max_pool2d(real, kernel, stride, pad, dilation)
    out = np.empty(want.shape, np.uint16)
    counts = None
    if average:
        ones = torch.ones(1, 1, *x.shape[1:])
        sums = torch.nn.functional.avg_pool2d(ones, kernel, stride, pad, divisor_override=1)[0, 0].numpy()
        counts = (np.ascontiguousarray(sums.max(1)), np.ascontiguousarray(sums.max(0) / sums.max()))
    window = (kernel, kernel), (stride, stride), tuple(more), (pad, pad)
    _kernels.bind_pool(kernel_set, x, *window, counts, out, 2, "bfloat16")()
    if not average:
        np.testing.assert_array_equal(BFLOAT16.to_float(out), want.numpy())
    else:
        size = np.abs(BFLOAT16.to_float(x)).max()
        np.testing.assert_allclose(BFLOAT16.to_float(out), want.numpy(), rtol=2**-8 + 1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("pixels", [1, 49, 64, 196, 3136])
def test_means_and_norms_of_pixels(kernel_set, pixels):
    x = BFLOAT16.from_float(np.random.default_rng(pixels).standard_normal((2, 24, pixels)).astype(np.float32))
    real = torch.from_numpy(BFLOAT16.to_float(x)).double()
    out = np.empty(48, np.uint16)
    _kernels.bind_mean(kernel_set, x.reshape(48, pixels), out, 2, "bfloat16")()
    np.testing.assert_allclose(BFLOAT16.to_float(out), real.mean(2).reshape(-1), rtol=2**-8 + 1e-6, atol=1e-6)
    weight, bias = (np.random.default_rng(n).standard_normal(24).astype(np.float32) for n in (1, 2))
    normed = np.empty_like(x)
    _kernels.bind_norm_pixels(kernel_set, x, weight, bias, 1e-5, normed, 2, "bfloat16")()
    want = torch.nn.functional.layer_norm(
        real.transpose(1, 2), [24], torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), 1e-5
    ).transpose(1, 2)
    np.testing.assert_allclose(BFLOAT16.to_float(normed), want.numpy(), rtol=2**-8 + 1e-6, atol=1e-5)


@pytest.mark.parametrize(
    "op, args, dtype",
    [
        ("relu", {}, "float32"),
        ("max_pool2d", {"kernel_size": 2}, "float32"),
        ("channel_shuffle", {"groups": 2}, "float32"),
        ("upsample_nearest2d", {"output_size": [16, 16]}, "float32"),
        ("argmax", {"dim": 1}, "int64"),
    ],
)
def test_an_output_beside_values_of_bfloat16_is_what_it_declares(op, args, dtype):
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((8, 8, 3, 3), np.float32), rng.standard_normal((2, 8, 8, 8), np.float32)
    first, second = (
        Node("conv2d", out, {"input": Ref(source), "weight": Ref("w"), "padding": 1})
        for source, out in (("x", "a"), ("a", "y"))
    )
    graph = Graph(
        [TensorSpec("x", (None, 8, 8, 8))],
        [TensorSpec("r", (), dtype), TensorSpec("y", ())],
        [first, Node(op, "r", {"self": Ref("a"), **args}), second],
        {"w": weight},
    )
    exact, found = (Session(graph, dtype=wanted).run(x) for wanted in (None, "bfloat16"))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert op == "argmax" or np.abs(ours - theirs).max() < 0.02 * np.ptp(theirs)
