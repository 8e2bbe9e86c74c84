"""Operators on quantized uint8 beside convolution: the bits of integers and fractions, from every kernel set.

Planes up to 40x40, not square, windows over every edge, zero points at both ends; ties, NaN and infinities where floats
come in. What no integer kernel does is the float32 kernels' between two conversions.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_graphs import rounded, uint8

from subp_ext import Graph, Node, Ref, Session, TensorSpec, _kernels, runtime
from subp_ext.dtypes import Quantization
from subp_ext.operators import OPERATORS, infer
from subp_ext.requantize import Rescale, of_average, of_product, of_sum

SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]
A, B, C = uint8(0.05, 120), uint8(0.03, 0), uint8(0.07, 255)
BYTES = np.arange(256, dtype=np.uint8)

SCALES = st.floats(2.0**-8, 4.0, width=32)
ZEROS = st.sampled_from([0, 1, 100, 128, 254, 255])


def random_bytes(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, dtype=np.uint8)


def scale_of(type):
    return np.float64(type.quantization.scale), int(type.quantization.zero_point)


def stored(real, zero):
    """What float32 numbers are stored as: Python rounds ties to even."""
    flat = [min(255, max(0, round(float(value)) + zero)) for value in np.ravel(real)]
    return np.array(flat, np.uint8).reshape(np.shape(real))


def summed(a, b, a_type, b_type, type):
    (s_a, z_a), (s_b, z_b), (s_y, z_y) = map(scale_of, (a_type, b_type, type))
    factor, second = Fraction(float(np.float32(s_a / s_y))), np.float32(s_b / s_y)
    flat = [
        rounded((int(x) - z_a) * factor + Fraction(float(np.float32(int(y) - z_b) * second)))
        for x, y in zip(a.ravel(), b.ravel(), strict=True)
    ]
    return stored(np.array(flat, np.float32).reshape(a.shape), z_y)


def multiplied(a, b, a_type, b_type, type):
    (s_a, z_a), (s_b, z_b), (s_y, z_y) = map(scale_of, (a_type, b_type, type))
    products = (a.astype(np.int64) - z_a) * (b.astype(np.int64) - z_b)
    return stored(products.astype(np.float32) * np.float32(s_a * s_b / s_y), z_y)


def averaged(sums, count, x_type, type):
    (s_x, _), (s_y, z_y) = scale_of(x_type), scale_of(type)
    factors = (s_x / (s_y * np.asarray(count, np.float64))).astype(np.float32)
    return stored(sums.astype(np.float32) * factors, z_y)


def run(nodes, constants=None, threads=1, **inputs):
    """The last node's value and the report; inputs are (array, type), or float32 arrays."""
    specs = [
        TensorSpec(name, value[0].shape, "uint8", value[1].quantization)
        if isinstance(value, tuple)
        else TensorSpec(name, value.shape)
        for name, value in inputs.items()
    ]
    type = nodes[-1].type
    spec = TensorSpec(nodes[-1].output, (), *([] if type is None else [type.dtype.name, type.quantization]))
    session = Session(Graph(specs, [spec], nodes, constants or {}), threads)
    arrays = {name: value[0] if isinstance(value, tuple) else value for name, value in inputs.items()}
    return session.run(arrays), session.report()


def everywhere(monkeypatch, nodes, constants=None, **inputs):
    """The value, which must be the same bits from every kernel set and number of threads, and the last report."""
    found = []
    for kernel_set, threads in itertools.product(SETS, (1, 3)):
        monkeypatch.setattr(runtime, "forced_kernel_set", lambda name=kernel_set: name)
        found.append(run(nodes, constants, threads, **inputs))
    monkeypatch.undo()
    assert len({value.tobytes() for value, _ in found}) == 1
    assert all(row.kernel.startswith(("u8_", "numpy", "none")) for _, report in found for row in report.rows)
    return found[-1]


# --- element-wise ---


@settings(deadline=None, max_examples=60)
@given(st.tuples(SCALES, ZEROS), st.tuples(SCALES, ZEROS), st.tuples(SCALES, ZEROS), st.integers(0, 2**32 - 1))
def test_sums_and_products_of_any_scales(a_type, b_type, type, seed):
    a_type, b_type, type = (uint8(*found) for found in (a_type, b_type, type))
    a, b = (random_bytes(1, 70, seed=[seed, n]) for n in range(2))
    quantizations = [found.quantization for found in (a_type, b_type, type)]
    for multiply, rescale, oracle in (
        (False, of_sum(*quantizations), summed),
        (True, of_product(*quantizations), multiplied),
    ):
        assert isinstance(rescale, Rescale)
        want = oracle(a, b, a_type, b_type, type)
        for kernel_set in SETS:
            out = np.empty_like(a)
            _kernels.bind_quantized_binary(kernel_set, multiply, a, b, rescale, out, 1)()
            assert np.array_equal(out, want), kernel_set
            in_place = a.copy()
            _kernels.bind_quantized_binary(kernel_set, multiply, in_place, b, rescale, in_place, 1)()
            assert np.array_equal(in_place, want), kernel_set


@pytest.mark.parametrize("op, oracle", [("add", summed), ("mul", multiplied)])
@pytest.mark.parametrize("permuted", [False, True])
def test_operands_of_one_shape(monkeypatch, op, oracle, permuted):
    a, b = random_bytes(2, 5, 7, 9), random_bytes(2, 5, 7, 9, seed=1)
    axes = [0, 2, 3, 1]
    views = [Node("permute", name.upper(), {"self": Ref(name), "dims": axes}) for name in "ab"[: 1 + permuted]]
    if permuted:  # of two memory orders
        views[1] = Node("lookup", "B", {"self": Ref("b"), "table": Ref("same")}, B)
        b_shown, a_shown = b.reshape(2, 7, 9, 5), a.transpose(axes)
        views.append(Node("view", "V", {"self": Ref("B"), "size": [2, 7, 9, 5]}))
        names = ("A", "V")
    else:
        views, a_shown, b_shown, names = [], a, b, ("a", "b")
    nodes = [*views, Node(op, "y", {"self": Ref(names[0]), "other": Ref(names[1])}, C)]
    got, _ = everywhere(monkeypatch, nodes, {"same": BYTES}, a=(a, A), b=(b, B))
    assert np.array_equal(got, oracle(a_shown, b_shown, A, B, C))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_gate_multiplies_planes(monkeypatch, swapped):
    x, gate = random_bytes(2, 5, 30, 31), random_bytes(2, 5, 1, 1, seed=1)
    args = {"self": Ref("g" if swapped else "x"), "other": Ref("x" if swapped else "g")}
    got, _ = everywhere(monkeypatch, [Node("mul", "y", args, C)], x=(x, A), g=(gate, B))
    assert np.array_equal(got, multiplied(x, np.broadcast_to(gate, x.shape), A, B, C))


def test_more_than_one_item_of_work(monkeypatch):
    a, b = random_bytes(1, 3, 111, 113), random_bytes(1, 3, 111, 113, seed=1)
    got, _ = everywhere(monkeypatch, [Node("mul", "y", {"self": Ref("a"), "other": Ref("b")}, C)], a=(a, A), b=(b, B))
    assert np.array_equal(got, multiplied(a, b, A, B, C))


@pytest.mark.parametrize(
    "op, args, function",
    [
        ("relu", {}, lambda x: np.maximum(x, 0)),
        ("relu6", {}, lambda x: np.clip(x, 0, 6)),
        ("hardtanh", {"min_val": -1.5, "max_val": 2.0}, lambda x: np.clip(x, np.float32(-1.5), np.float32(2))),
        ("clamp", {"min": -0.31}, lambda x: np.maximum(x, np.float32(-0.31))),
        ("clamp", {"min": 0.1, "max": 3}, lambda x: np.clip(x, np.float32(0.1), np.float32(3))),
    ],
)
@pytest.mark.parametrize("type", [A, C])
def test_bounds_alone(monkeypatch, op, args, function, type):
    x = random_bytes(1, 3, 5, 7)
    got, report = everywhere(monkeypatch, [Node(op, "y", {"self": Ref("x"), **args}, type)], x=(x, A))
    real = ((x.astype(np.int32) - 120).astype(np.float32)) * np.float32(0.05)
    (scale, zero) = scale_of(type)
    assert np.array_equal(got, stored(function(real) * np.float32(1 / scale), zero))
    assert report.rows[-1].kernel.startswith("u8_lookup") and report.rows[-1].why == "a table"


# --- conversions ---


@pytest.mark.parametrize("scale, zero", [(0.05, 120), (0.5, 0), (3.7, 255), (1e-30, 7), (1e30, 7)])
def test_quantize_and_back(monkeypatch, scale, zero):
    ties = (np.arange(-300, 300, dtype=np.float32) + 0.5) * np.float32(scale)
    x = np.concatenate([ties, np.float32([0.0, -0.0, 3.3, 1e38, -1e38, math.inf, -math.inf, math.nan])])
    args = {"self": Ref("x"), "scale": scale, "zero_point": zero, "dtype": "uint8"}
    type = uint8(scale, zero)
    got, report = everywhere(monkeypatch, [Node("quantize", "y", args, type)], x=x)
    with np.errstate(over="ignore"):
        scaled = x * np.float32(1 / np.float64(np.float32(scale)))
    bounded = np.clip(np.where(np.isnan(scaled), -1000, scaled), -1000, 1000)
    assert np.array_equal(got, stored(bounded, zero))
    assert np.array_equal(got, OPERATORS["quantize"].reference(**args | {"self": x}).values)
    back, _ = everywhere(monkeypatch, [Node("dequantize", "y", {"self": Ref("q")})], q=(BYTES, type))
    assert back.dtype == np.float32
    assert np.array_equal(back, (np.arange(256) - zero).astype(np.float32) * np.float32(scale))


def test_conversions_of_views(monkeypatch):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    quantize = {"scale": 0.05, "zero_point": 120, "dtype": "uint8"}
    nodes = [
        Node("slice", "s", {"self": Ref("x"), "dim": 3, "start": 1, "end": 5}),
        Node("permute", "p", {"self": Ref("s"), "dims": [0, 2, 3, 1]}),
        Node("quantize", "q", {"self": Ref("p"), **quantize}, A),
        Node("permute", "r", {"self": Ref("q"), "dims": [0, 3, 1, 2]}),
        Node("dequantize", "y", {"self": Ref("r")}),
    ]
    got, report = everywhere(monkeypatch, nodes, x=x)
    want = stored(x[..., 1:5] * np.float32(1 / np.float64(np.float32(0.05))), 120)
    assert np.array_equal(got, (want.astype(np.int32) - 120).astype(np.float32) * np.float32(0.05))


def test_another_quantization_is_a_table(monkeypatch):
    x = random_bytes(1, 3, 4, 5)
    nodes = [Node("max_pool2d", "y", {"self": Ref("x"), "kernel_size": 1}, C)]
    got, report = everywhere(monkeypatch, nodes, x=(x, A))
    real = (x.astype(np.int32) - 120).astype(np.float32) * np.float32(0.05)
    assert np.array_equal(got, stored(real * np.float32(1 / np.float64(np.float32(0.07))), 255))
    assert [row.op for row in report.rows] == ["max_pool2d", "cast"]


# --- tables ---


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape, channels", [((2, 3, 9, 11), None), ((2, 3, 9, 11), 3), ((4, 5), 5), ((70,), None)])
def test_lookup(monkeypatch, dtype, shape, channels):
    x = random_bytes(*shape)
    table = random_bytes(*([] if channels is None else [channels]), 256, seed=1).astype(dtype)
    type = B if dtype == np.uint8 else None
    node = Node("lookup", "y", {"self": Ref("x"), "table": Ref("t"), "function": "silu"}, type)
    got, report = everywhere(monkeypatch, [node], {"t": table}, x=(x, A))
    want = np.empty(shape, dtype)
    for place in np.ndindex(*shape):
        want[place] = table[x[place]] if channels is None else table[place[1], x[place]]
    assert got.dtype == dtype and np.array_equal(got, want)
    assert report.rows[-1].why == "a table of silu"
    assert np.array_equal(OPERATORS["lookup"].reference(self=x, table=table), want)
    assert infer("lookup", {"self": x, "table": table}) == (shape, np.dtype(dtype))


@pytest.mark.parametrize(
    "table, message",
    [
        (np.zeros(255, np.uint8), r"table is uint8 .255.; expected uint8 or float32 of shape .256."),
        (np.zeros((4, 256), np.uint8), r"table is uint8 .4, 256.; expected"),
        (np.zeros(256, np.int64), "table is int64"),
    ],
)
def test_tables_that_do_not_fit(table, message):
    with pytest.raises(ValueError, match=f"node 'y' .lookup.: {message}"):
        run([Node("lookup", "y", {"self": Ref("x"), "table": Ref("t")}, B)], {"t": table}, x=(random_bytes(2, 3), A))


def test_lookup_takes_stored_bytes_alone():
    node = Node("lookup", "y", {"self": Ref("x"), "table": Ref("t")}, B)
    with pytest.raises(ValueError, match="node 'y' .lookup.: takes stored uint8"):
        run([node], {"t": BYTES}, x=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="looks up float32; expected stored uint8"):
        OPERATORS["lookup"].reference(self=np.zeros(3, np.float32), table=BYTES)


# --- pools ---


def windows(size, kernel, stride, padding, dilation, ceil):
    """For each output along a side its pixels, and how many of the input and its padding it covers."""
    extent = dilation * (kernel - 1) + 1
    span = size + 2 * padding - extent
    count = (math.ceil(span / stride) if ceil else span // stride) + 1
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1
    found = []
    for out in range(count):
        first = out * stride - padding
        inside = [first + i * dilation for i in range(kernel) if 0 <= first + i * dilation < size]
        found.append((inside, min(first + kernel, size + padding) - first))
    return found


def pooled(x, kernel, stride, padding, dilation, ceil, function):
    """function(pixels, covered) of every window, in int64."""
    sides = [windows(n, *rest, ceil) for n, *rest in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)]
    out = np.empty((*x.shape[:2], *map(len, sides)), np.uint8)
    for (i, (rows, high)), (j, (columns, wide)) in itertools.product(*map(enumerate, sides)):
        out[:, :, i, j] = function(x[:, :, rows][:, :, :, columns].astype(np.int64), high * wide)
    return out


POOLS = st.tuples(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.tuples(st.integers(15, 18), st.integers(1, 20)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.booleans(),
).filter(
    lambda p: all(
        2 * pad <= k and d * (k - 1) + 1 <= n + 2 * pad for n, k, pad, d in zip(p[0], p[1], p[3], p[4], strict=True)
    )
)


@settings(deadline=None, max_examples=100)
@given(POOLS)
def test_largest_of_windows(pool):
    size, kernel, stride, padding, dilation, ceil = pool
    x = random_bytes(2, 2, *size)
    args = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil}
    want = pooled(x, kernel, stride, padding, dilation, ceil, lambda pixels, _: pixels.max((2, 3), initial=0))
    with pytest.MonkeyPatch.context() as patch:
        got, _ = everywhere(patch, [Node("max_pool2d", "y", {"self": Ref("x"), **args}, A)], x=(x, A))
    assert np.array_equal(got, want)


@settings(deadline=None, max_examples=100)
@given(POOLS, st.booleans(), st.none() | st.integers(1, 30), ZEROS)
def test_averages_of_windows(pool, include, divisor, zero):
    size, kernel, stride, padding, _, ceil = pool
    x, x_type = random_bytes(2, 2, *size), uint8(0.05, zero)
    args = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil}
    args |= {"count_include_pad": include, "divisor_override": divisor}

    def average(pixels, covered):
        count = divisor or (covered if include else math.prod(pixels.shape[2:]))
        return averaged((pixels - zero).sum((2, 3)), count, x_type, B)

    with pytest.MonkeyPatch.context() as patch:
        got, _ = everywhere(patch, [Node("avg_pool2d", "y", {"self": Ref("x"), **args}, B)], x=(x, x_type))
    assert np.array_equal(got, pooled(x, kernel, stride, padding, (1, 1), ceil, average))


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (40, 33)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_means_of_planes(monkeypatch, size, keepdim):
    x = random_bytes(2, 5, *size)
    want = averaged((x.astype(np.int64) - 120).sum((2, 3), keepdims=keepdim), math.prod(size), A, C)
    node = Node("mean", "y", {"self": Ref("x"), "dim": [-1, 2], "keepdim": keepdim}, C)
    assert np.array_equal(everywhere(monkeypatch, [node], x=(x, A))[0], want)
    if keepdim:
        node = Node("adaptive_avg_pool2d", "y", {"self": Ref("x"), "output_size": 1}, C)
        assert np.array_equal(everywhere(monkeypatch, [node], x=(x, A))[0], want)


def test_adaptive_averages(monkeypatch):
    x = random_bytes(1, 3, 12, 20)
    node = Node("adaptive_avg_pool2d", "y", {"self": Ref("x"), "output_size": [3, None]}, C)
    got, _ = everywhere(monkeypatch, [node], x=(x, A))
    assert np.array_equal(got, averaged((x.astype(np.int64) - 120).reshape(1, 3, 3, 4, 20).sum(3), 4, A, C))


# --- what only moves values ---


def test_parts_of_a_concatenation_are_computed_in_place(monkeypatch):
    x = random_bytes(1, 3, 5, 7)
    nodes = [
        Node("max_pool2d", "a", {"self": Ref("x"), "kernel_size": 1}, A),
        Node("relu", "b", {"self": Ref("x")}, A),
        Node("cat", "y", {"tensors": [Ref("a"), Ref("b")], "dim": 1}, A),
    ]
    got, report = everywhere(monkeypatch, nodes, x=(x, A))
    assert np.array_equal(got, np.concatenate([x, np.maximum(x, 120)], 1))
    assert (report.rows[-1].kernel, report.rows[-1].why) == ("none", "2 of 2 parts are computed in place")


@pytest.mark.parametrize("op", ["pad", "constant_pad_nd"])
@pytest.mark.parametrize("value, byte", [(0, 120), (None, 120), (1.0, 140), (-100.0, 0)])
@pytest.mark.parametrize("pad", [[1, 2], [1, 0, 2, 3], [-1, 2, 3, -2], [0, 0, 1, 1, 1, 0]])
def test_constant_padding(monkeypatch, op, value, byte, pad):
    x = random_bytes(2, 3, 5, 7)
    args = {"self": Ref("x"), "pad": pad} | ({} if value is None else {"value": value})
    got, _ = everywhere(monkeypatch, [Node(op, "y", args, A)], x=(x, A))
    want = x
    for axis, (before, after) in zip((-1, -2, -3), zip(pad[::2], pad[1::2], strict=True), strict=False):
        want = np.moveaxis(want, axis, 0)[max(-before, 0) : want.shape[axis] - max(-after, 0)]
        frame = [np.full((max(n, 0), *want.shape[1:]), byte, np.uint8) for n in (before, after)]
        want = np.moveaxis(np.concatenate([frame[0], want, frame[1]]), 0, axis)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("type", ["float32", "int64", "bool"])
def test_constant_padding_of_plain_values(type):
    x = np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(type)
    node = Node("pad", "y", {"self": Ref("x"), "pad": [1, 2, 0, 1], "value": 1})
    graph = Graph([TensorSpec("x", x.shape, type)], [TensorSpec("y", (), type)], [node])
    assert np.array_equal(Session(graph).run(x), np.pad(x, [(0, 0), (0, 1), (1, 2)], constant_values=1))


def test_shuffled_channels(monkeypatch):
    x = random_bytes(2, 6, 3, 4)
    got, _ = everywhere(monkeypatch, [Node("channel_shuffle", "y", {"self": Ref("x"), "groups": 2}, A)], x=(x, A))
    assert np.array_equal(got, x[:, [0, 3, 1, 4, 2, 5]])


def test_a_result_takes_over_the_memory_of_its_operand():
    x = random_bytes(1, 4, 50, 50)
    nodes = [Node("relu", "r", {"self": Ref("x")}, A)]
    nodes += [
        Node("add", f"s{i}", {"self": Ref("r" if i == 0 else f"s{i - 1}"), "other": Ref("x")}, A) for i in range(4)
    ]
    got, report = run(nodes, x=(x, A))
    want = np.maximum(x, 120)
    for _ in range(4):
        want = summed(want, x, A, A, A)
    assert np.array_equal(got, want) and report.arena_bytes < 3 * x.nbytes


# --- what integers do not do ---


@pytest.mark.parametrize(
    "node, why",
    [
        (Node("add", "y", {"self": Ref("x"), "other": Ref("g")}, C), "operands of several shapes"),
        (Node("add", "y", {"self": Ref("x"), "other": 1.0}, C), "an operand is not quantized"),
        (
            Node("avg_pool2d", "y", {"self": Ref("x"), "kernel_size": 2, "divisor_override": -3}, C),
            "less than one pixel",
        ),
        (Node("mul", "y", {"self": Ref("x"), "other": Ref("x")}, uint8(1e-9, 0)), "beyond int32"),
        (Node("sigmoid", "y", {"self": Ref("x")}, B), "no uint8 kernel for activate"),
    ],
)
def test_the_rest_runs_in_float32_and_says_why(node, why):
    x, gate = random_bytes(2, 3, 4, 6), random_bytes(2, 3, 1, 1)
    got, report = run([node], x=(x, A), g=(gate, B))
    assert any(why in row.why for row in report.rows), [row.why for row in report.rows]
    args = {"x": A.to_float(x), "g": B.to_float(gate)}
    args = {name: args[value.name] if isinstance(value, Ref) else value for name, value in node.args.items()}
    want = node.type.from_float(OPERATORS[node.op].reference(**args))
    assert abs(got.astype(int) - want).max() <= 1


def test_without_a_declared_type_results_are_real_numbers():
    x = random_bytes(1, 3, 4, 6)
    for op, args in (("mean", {"dim": [2, 3]}), ("max_pool2d", {"kernel_size": 2}), ("relu", {})):
        got, _ = run([Node(op, "y", {"self": Ref("x"), **args})], x=(x, A))
        np.testing.assert_allclose(got, OPERATORS[op].reference(self=A.to_float(x), **args), rtol=1e-6, atol=1e-7)


def quantization(scale, zero=0):
    return Quantization(np.float32(scale), np.int32(zero))


def test_constants_that_integers_do_not_reach():
    small, large = quantization(1e-20), quantization(1e20)
    one, million = quantization(1.0), quantization(2.0**22)
    assert of_sum(large, large, small) == of_product(small, small, large) == "a factor is beyond float32"
    assert of_sum(million, million, one) == "its results could be beyond int32 before they are bounded"
    assert isinstance(of_sum(quantization(2.0**21), one, one), Rescale)
    assert of_product(quantization(2.0**15), one, one) == "its results could be beyond int32 before they are bounded"
    assert isinstance(of_product(quantization(2.0**14), one, one), Rescale)
    assert of_average(small, small, np.array([0.0]), 1) == "an average is over less than one pixel"
    assert of_average(small, small, np.array([9.0]), 8421505) == "sums of its pixels could overflow int32"
    assert of_average(small, small, np.array([9.0]), 8421504) == pytest.approx([1 / 9])


# --- arguments that memory safety rests on ---

RESCALE = Rescale(3, 0.5, 7, 5, 0.25)


@pytest.mark.parametrize(
    "function, args, change, message",
    [
        ("quantize", [np.zeros(5, np.float32), 1.0, 3, np.zeros(5, np.uint8), 1], {3: np.zeros(4, np.uint8)}, "out is"),
        ("quantize", [np.zeros(5, np.float32), 1.0, 3, np.zeros(5, np.uint8), 1], {2: 256}, "zero is 256"),
        ("quantize", [np.zeros(5, np.float32), 1.0, 3, np.zeros(5, np.uint8), 1], {0: np.zeros(5)}, "x is float64"),
        ("dequantize", [np.zeros(5, np.uint8), 3, 1.0, np.zeros(5, np.float32), 1], {0: np.zeros(6, np.uint8)}, "out"),
        ("dequantize", [np.zeros(5, np.uint8), 3, 1.0, np.zeros(5, np.float32), 1], {1: -1}, "zero is -1"),
        ("lookup", [BYTES[None], BYTES[None], np.zeros((1, 256), np.uint8), 1], {1: BYTES[None, :255]}, "table is"),
        ("lookup", [BYTES[None], BYTES[None], np.zeros((1, 256), np.uint8), 1], {2: BYTES[None, :9]}, "out"),
        ("lookup", [BYTES[None], BYTES[None], np.zeros((1, 256), np.uint8), 1], {1: random_bytes(2, 256)}, "2 tables"),
        ("lookup", [BYTES[None], BYTES[None], np.zeros((1, 256), np.uint8), 1, "int8"], {}, "results are int8"),
        ("quantized_binary", [True, BYTES[None], BYTES[None], RESCALE, np.zeros((1, 256), np.uint8), 1],
         {2: BYTES[None, :2]}, "b has shape .1, 2.; expected that of a"),
        ("quantized_binary", [False, BYTES[None], BYTES[None], RESCALE, np.zeros((1, 256), np.uint8), 1],
         {2: BYTES[None, :1]}, "b has shape .1, 1."),
        ("quantized_binary", [True, BYTES[None], BYTES[None], RESCALE, np.zeros((1, 256), np.uint8), 1],
         {4: np.zeros((2, 128), np.uint8)}, "out is"),
        ("quantized_binary", [True, BYTES[None], BYTES[None], RESCALE, np.zeros((1, 256), np.uint8), 1],
         {3: Rescale(3, 0.5, 300)}, "zero is 300"),
        ("quantized_mean", [BYTES[None], RESCALE, np.zeros(1, np.uint8), 1], {2: np.zeros(2, np.uint8)}, "out is"),
        ("quantized_mean", [BYTES[None], RESCALE, np.zeros(1, np.uint8), 1],
         {0: np.zeros((1, 8421505), np.uint8)}, "planes of 8421505 pixels: their sums could overflow int32"),
        ("quantized_pool", [BYTES.reshape(1, 16, 16), (2, 2), (2, 2), (1, 1), (0, 0), None, (0, 0),
         np.zeros((1, 8, 8), np.uint8), 1], {5: np.ones((8, 7), np.float32)}, "factors is"),
        ("quantized_pool", [BYTES.reshape(1, 16, 16), (2, 2), (2, 2), (1, 1), (0, 0), None, (0, 0),
         np.zeros((1, 8, 8), np.uint8), 1], {6: (0, 256)}, "zero of out is 256"),
        ("quantized_pool", [BYTES.reshape(1, 16, 16), (2, 2), (2, 2), (1, 1), (0, 0), None, (0, 0),
         np.zeros((1, 8, 8), np.uint8), 1], {2: (0, 2)}, "stride is 0"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(function, args, change, message):
    bind = getattr(_kernels, f"bind_{function}")
    if change:
        bind("generic", *args)()
    args = [change.get(position, value) for position, value in enumerate(args)]
    with pytest.raises(ValueError, match=message):
        bind("generic", *args)
