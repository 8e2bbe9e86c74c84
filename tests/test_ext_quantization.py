"""Quantized and bfloat16 values on the reference: quantize, dequantize and cast against torch, and typed nodes.

Whole numbers and halves of a scale, where ties show; saturation on both sides; zero, NaN and infinities.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from subp_ext import Graph, Node, Ref, Session, TensorSpec
from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType
from subp_ext.operators import OPERATORS, infer

torch = pytest.importorskip("torch")

UINT8 = ValueType(DTYPES["uint8"], Quantization(np.float32(0.5), np.int32(3)))
BFLOAT16 = ValueType(DTYPES["bfloat16"])
X = np.concatenate([np.arange(-140, 140, dtype=np.float32) / 4, [0.0, -0.0, 1e9, -1e9, math.inf, -math.inf]])
X = X.astype(np.float32)


@pytest.mark.parametrize("dtype, zero", [("uint8", 0), ("uint8", 131), ("int8", 0), ("int8", -7), ("int32", 5)])
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch means to remove its quantized tensors
@pytest.mark.parametrize("scale", [0.5, 0.25, 0.013, 3.7])
def test_quantize_matches_torch(dtype, zero, scale):
    torch_dtype = {"uint8": torch.quint8, "int8": torch.qint8, "int32": torch.qint32}[dtype]
    finite = X[abs(X) < 1e6]
    want = torch.quantize_per_tensor(torch.from_numpy(finite), scale, zero, torch_dtype)
    got = OPERATORS["quantize"].reference(self=finite, scale=scale, zero_point=zero, dtype=dtype)
    assert got.values.dtype == np.dtype(dtype) and np.array_equal(got.values, want.int_repr().numpy())
    assert np.array_equal(got.to_float(), want.dequantize().numpy())
    assert infer("quantize", {"self": finite, "scale": scale, "zero_point": zero, "dtype": dtype}) == (
        X[:-4].shape,
        got.type,
    )


def test_quantize_rounds_ties_to_even_saturates_and_keeps_zero():
    def quantize(*values):
        values = np.array(values, np.float32)
        return OPERATORS["quantize"].reference(self=values, scale=2.0, zero_point=100, dtype="uint8").values.tolist()

    assert quantize(1, 3, 5, -1, -3) == [100, 102, 102, 100, 98]
    assert quantize(1e30, -1e30, math.inf, -math.inf) == [255, 0, 255, 0]
    assert quantize(0.0, -0.0) == [100, 100]


@pytest.mark.parametrize(
    "args, message",
    [
        ({"scale": 0.0, "zero_point": 0, "dtype": "uint8"}, "scale is 0.0; expected positive finite numbers"),
        ({"scale": math.inf, "zero_point": 0, "dtype": "uint8"}, "scale is inf"),
        ({"scale": 1.0, "zero_point": 256, "dtype": "uint8"}, "zero point 256 is beyond uint8, 0 to 255"),
        ({"scale": 1.0, "zero_point": 0, "dtype": "float32"}, "float32 is no integer type"),
        ({"scale": 1.0, "zero_point": 0, "dtype": "int4"}, "dtype 'int4' is not one of"),
        ({"scale": 1.0, "zero_point": 0.5, "dtype": "int8"}, "argument 'zero_point' is 0.5; expected a whole number"),
    ],
)
def test_quantizations_that_cannot_be_are_named(args, message):
    graph = Graph([TensorSpec("x", (4,))], [TensorSpec("y", (4,))], [Node("quantize", "y", {"self": Ref("x"), **args})])
    with pytest.raises(ValueError, match=f"node 'y' .quantize.: {message}"):
        Session(graph)


def test_cast_matches_torch_for_floats():
    finite = np.concatenate([X, np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, 3.4e38])])
    want = torch.from_numpy(finite).to(torch.bfloat16)
    got = OPERATORS["cast"].reference(self=finite, dtype="bfloat16")
    assert got.type == BFLOAT16 and np.array_equal(got.values, want.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(got.to_float(), want.float().numpy())
    back = OPERATORS["cast"].reference(self=finite.astype(np.float64), dtype="float32")
    assert back.dtype == np.float32 and np.array_equal(back, finite)


def test_cast_to_integers_rounds_to_even_and_saturates():
    cast = OPERATORS["cast"].reference
    values = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 300, -300])
    assert cast(self=values, dtype="int8").tolist() == [0, 2, 2, 0, -2, 127, 127, -128]
    assert cast(self=np.array([1 << 53, 1 + (1 << 53), -5]), dtype="int64").tolist() == [1 << 53, 1 + (1 << 53), -5]
    assert cast(self=np.array([300, -300, 7]), dtype="uint8").tolist() == [255, 0, 7]
    assert cast(self=np.array([True, False]), dtype="float32").tolist() == [1.0, 0.0]


def run(*nodes, x=X, spec=None, output=None):
    graph = Graph([spec or TensorSpec("x", x.shape)], [output or TensorSpec("y", x.shape)], list(nodes))
    session = Session(graph)
    return session.run(x), session.report()


Q = Node("quantize", "q", {"self": Ref("x"), "scale": 0.5, "zero_point": 3, "dtype": "uint8"}, UINT8)


def test_values_pass_quantized_from_node_to_node():
    got, report = run(Q, Node("relu", "r", {"self": Ref("q")}, UINT8), Node("dequantize", "y", {"self": Ref("r")}))
    assert np.array_equal(got, np.maximum(UINT8.to_float(UINT8.from_float(X)), 0))
    found = {row.node: row.dtype for row in report.rows}  # the last step of each
    assert found == {"q": str(UINT8), "r": str(UINT8), "y": "float32"}


def test_a_kernel_whose_node_declares_another_type_is_followed_by_a_conversion():
    got, report = run(
        Node("relu", "r", {"self": Ref("x")}, BFLOAT16), Node("cast", "y", {"self": Ref("r"), "dtype": "float32"})
    )
    assert np.array_equal(got, BFLOAT16.to_float(BFLOAT16.from_float(np.maximum(X, 0))))
    assert [row.op for row in report.rows] == ["relu", "cast", "cast"]
    assert report.rows[0].kernel.startswith("f32_activate__")


def test_what_only_moves_values_keeps_their_type():
    x = X[:64].reshape(1, 4, 4, 4)
    nodes = [
        Q,
        Node("permute", "p", {"self": Ref("q"), "dims": [0, 1, 3, 2]}),
        Node("upsample_nearest2d", "u", {"self": Ref("p"), "output_size": [8, 8]}, UINT8),
        Node("cat", "c", {"tensors": [Ref("u"), Ref("u")], "dim": 1}, UINT8),
        Node("dequantize", "y", {"self": Ref("c")}),
    ]
    got, report = run(*nodes, x=x, output=TensorSpec("y", (1, 8, 8, 8)))
    want = UINT8.to_float(UINT8.from_float(x)).transpose(0, 1, 3, 2).repeat(2, axis=2).repeat(2, axis=3)
    assert np.array_equal(got, np.concatenate([want, want], 1))
    assert [row.kernel for row in report.rows if row.op in ("upsample_nearest2d", "cat")] == ["weave", "numpy"]


def test_operands_of_several_types_meet_as_real_numbers():
    k = TypedArray(UINT8.from_float(np.float32([7.0])), UINT8)
    nodes = [
        Q,
        Node("add", "a", {"self": Ref("q"), "other": Ref("k")}),
        Node("mul", "y", {"self": Ref("a"), "other": Ref("x")}),
    ]
    graph = Graph([TensorSpec("x", X[:280].shape)], [TensorSpec("y", X[:280].shape)], nodes, {"k": k})
    x = X[:280]
    want = (UINT8.to_float(UINT8.from_float(x)) + np.float32(7)) * x
    assert np.array_equal(Session(graph).run(x), want)


@pytest.mark.parametrize("type", [ValueType(DTYPES["int8"], Quantization(np.float32(0.02), np.int32(0))), BFLOAT16])
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_typed_weights_run_on_float_kernels(op, type):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 5) if op == "conv2d" else (2, 3)).astype(np.float32)
    weight = rng.standard_normal((4, 3, 1, 1) if op == "conv2d" else (4, 3)).astype(np.float32)
    typed = TypedArray(type.from_float(weight), type)
    node = Node(op, "y", {"input": Ref("x"), "weight": Ref("w")})
    found = []
    for constant in (typed, typed.to_float()):
        session = Session(Graph([TensorSpec("x", x.shape)], [TensorSpec("y", ())], [node], {"w": constant}))
        assert session.report().rows[-1].kernel.startswith("f32_")
        found.append(session.run(x))
    assert np.array_equal(*found)


@pytest.mark.parametrize("type", [UINT8, BFLOAT16])
@pytest.mark.parametrize("shape, last", [((2, 3, 5, 5), False), ((2, 3, 5, 5), True), ((2, 3), False)])
def test_typed_inputs_of_float_kernels_are_converted_by_steps_that_the_report_shows(type, shape, last):
    rng = np.random.default_rng(0)
    op = "conv2d" if len(shape) == 4 and not last else "linear"
    x = rng.standard_normal(shape).astype(np.float32)
    weight = rng.standard_normal((4, 3, 1, 1) if op == "conv2d" else (4, 3))
    residual = op == "conv2d"
    axes = [0, 2, 3, 1] if last else [*range(len(shape))]
    nodes = [
        Node("cast", "a", {"self": Ref("x"), "dtype": "float32"}, type),
        Node("permute", "q", {"self": Ref("a"), "dims": axes}),
        Node(op, "c", {"input": Ref("q"), "weight": Ref("w")}, type),
        Node(op, "d", {"input": Ref("q"), "weight": Ref("w"), **({"residual": Ref("c")} if residual else {})}, type),
        Node("dequantize", "y", {"self": Ref("d")}),
    ]
    constants = {"w": weight.astype(np.float32)}
    session = Session(Graph([TensorSpec("x", shape)], [TensorSpec("y", ())], nodes, constants))

    def rounded(array):
        return type.to_float(type.from_float(array))

    q = rounded(x).transpose(axes)
    plain = OPERATORS[op].reference
    c = rounded(plain(input=q, weight=constants["w"]))
    want = rounded(plain(input=q, weight=constants["w"], **({"residual": c} if residual else {})))
    step = 0.5 if type is UINT8 else 2.0**-7 * abs(want).max()  # sums differ in the last bit, and may round otherwise
    assert np.all(abs(session.run(x) - want) <= step) and np.mean(session.run(x) == want) > 0.9
    why = {row.why for row in session.report().rows if row.op == "cast"}
    assert f"no {type.dtype.name} kernel for conv2d" in why


BYTES = np.arange(256, dtype=np.uint8).reshape(2, 2, 8, 8)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_lookup_takes_stored_elements_through_a_table(rows, dtype):
    shape = (256,) if rows is None else (rows, 256)
    table = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    type = UINT8 if dtype == "uint8" else None
    spec = TensorSpec("x", (None, 2, 8, 8), "uint8", UINT8.quantization)
    declared = TensorSpec("y", (None, 2, 8, 8), dtype, None if type is None else type.quantization)
    node = Node("lookup", "y", {"self": Ref("x"), "table": Ref("table"), "function": "any"}, type)
    found = Session(Graph([spec], [declared], [node], {"table": table})).run(BYTES)
    expected = [[(table if rows is None else table[c])[BYTES[b, c]] for c in range(2)] for b in range(2)]
    assert found.dtype == dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    "table, dtype, message",
    [
        (np.zeros(255, np.uint8), "uint8", r"table is uint8 \[255\]; expected uint8 or float32 of shape"),
        (np.zeros((3, 256), np.uint8), "uint8", r"table is uint8 \[3, 256\]; expected"),
        (np.zeros(256, np.int32), "uint8", r"table is int32 \[256\]; expected uint8 or float32"),
        (np.zeros(256, np.uint8), "float32", "takes stored uint8"),
    ],
)
def test_tables_that_do_not_fit_are_named(table, dtype, message):
    node = Node("lookup", "y", {"self": Ref("x"), "table": Ref("table")})
    graph = Graph([TensorSpec("x", (1, 2, 8, 8), dtype)], [TensorSpec("y", (1, 2, 8, 8))], [node], {"table": table})
    with pytest.raises(ValueError, match=message):
        Session(graph)
