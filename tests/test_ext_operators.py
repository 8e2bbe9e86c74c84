"""Records of operators: arguments of hostile nodes, what a refused lowering leaves behind, fused activations.

References are tested in test_ext_reference.py, shape rules in test_ext_shape_inference.py, kernels in the others.
"""

from __future__ import annotations

import inspect
import re
import types

import numpy as np
import numpy.typing as npt
import pytest
from test_ext_reference import CASES

from subp_ext import Graph, Node, Ref, Session, TensorSpec, _kernels, operators, packing, runtime
from subp_ext.graph import ACTIVATIONS
from subp_ext.operators import OPERATORS, arguments


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(*nodes, shape=(1, 4, 8, 8), output="y", inputs=(), **constants):
    specs = [TensorSpec("x", shape), *inputs]
    return Graph(specs, [TensorSpec(output, ())], list(nodes), constants)


WEIGHT = normal(4, 4, 1, 1)
CONV = {"input": Ref("x"), "weight": Ref("w")}


@pytest.mark.parametrize("number", range(len(CASES)))
def test_arguments_of_the_reference_tests_are_of_the_annotated_types(number):
    op, args, _ = CASES[number]
    operators.check_arguments(op, args)


def test_every_argument_of_a_reference_is_annotated():
    for op, record in OPERATORS.items():
        for name, parameter in inspect.signature(record.reference).parameters.items():
            assert parameter.annotation is not inspect.Parameter.empty, (op, name)


@pytest.mark.parametrize(
    "op, args, message",
    [
        ("conv2d", CONV | {"kernel_set": "avx512"}, "has no argument 'kernel_set'"),
        ("conv2d", CONV | {"winograd": True}, "has no argument 'winograd'; expected some of input, weight"),
        ("conv2d", CONV | {"groups": "two"}, "argument 'groups' is 'two'; expected a whole number"),
        ("conv2d", CONV | {"stride": [1, 1.5]}, "argument 'stride' is .1, 1.5.; expected a whole number or a list"),
        ("conv2d", CONV | {"stride": Ref("w")}, "argument 'stride' is .*; expected a whole number or a list"),
        ("conv2d", CONV | {"bias": 3}, "argument 'bias' is 3; expected a tensor or None"),
        ("conv2d", CONV | {"residual": [1, 2]}, "argument 'residual' is .1, 2.; expected a tensor or None"),
        ("conv2d", {"input": Ref("x")}, "lacks its argument 'weight'"),
        ("linear", CONV | {"residual": Ref("x")}, "has no argument 'residual'"),
        ("linear", CONV | {"groups": 2}, "has no argument 'groups'"),
        ("linear", CONV | {"activation": 3}, "argument 'activation' is 3; expected a string or None|activation 3 is"),
        ("relu", {"self": Ref("x"), "slope": 1}, "has no argument 'slope'; expected some of self"),
        ("relu", {"self": "x"}, "argument 'self' is 'x'; expected a tensor"),
        ("max_pool2d", {"self": Ref("x"), "kernel_size": {}}, "argument 'kernel_size' is a dict"),
        ("max_pool2d", {"self": Ref("x"), "kernel_size": None}, "argument 'kernel_size' is None; expected a whole"),
        ("layer_norm", {"input": Ref("x"), "normalized_shape": [8], "elementwise": True}, "no argument 'elementwise'"),
        ("group_norm", {"input": Ref("x"), "num_groups": 2, "threads": 7}, "has no argument 'threads'"),
        ("mean", {"self": Ref("x"), "dim": [2, 3], "out": None}, "has no argument 'out'"),
        ("_to_copy", {"self": Ref("x"), "dtype": 3}, "argument 'dtype' is 3; expected|dtype 3 is not one of"),
        ("embedding", {"weight": Ref("w"), "indices": Ref("x"), "max_norm": 1.0}, "has no argument 'max_norm'"),
        ("cat", {"tensors": Ref("x"), "axis": 1}, "has no argument 'axis'"),
        ("add", {"self": Ref("x")}, "lacks its argument 'other'"),
    ],
)  # fmt: skip
def test_arguments_that_a_node_cannot_have_are_named(op, args, message):
    weight = normal(4, 8) if op == "linear" else WEIGHT
    with pytest.raises(ValueError, match=f"node 'y' .{re.escape(op)}.*({message})"):
        Session(graph(Node(op, "y", args), w=weight))


@pytest.mark.parametrize("constant", [True, False])
def test_a_residual_of_a_linear_layer_is_not_ignored(constant):
    node = Node("linear", "y", {"input": Ref("x"), "weight": Ref("w"), "residual": Ref("r")})
    inputs = () if constant else [TensorSpec("r", (1, 5))]
    constants = {"r": normal(1, 5)} if constant else {}
    with pytest.raises(ValueError, match="node 'y' .linear.: has no argument 'residual'"):
        Session(graph(node, shape=(1, 3), inputs=inputs, w=normal(5, 3), **constants))


NORM = {"input": Ref("x"), "weight": None, "bias": None, "running_mean": Ref("m"), "running_var": Ref("v")}


@pytest.mark.parametrize(
    "op, args, message",
    [
        *((op, {"input": Ref("x"), "p": 0.5, "train": True}, "train is True, as in training")
          for op in ("dropout", "feature_dropout", "alpha_dropout", "native_dropout")),
        *((op, NORM | {"training": True, "momentum": 0.1, "eps": 1e-5}, "training is True, as in training")
          for op in ("batch_norm", "native_batch_norm", "_native_batch_norm_legit")),
        ("instance_norm", NORM | {"use_input_stats": True}, "use_input_stats beside running statistics is True"),
        ("scaled_dot_product_attention", {"query": Ref("x"), "key": Ref("x"), "value": Ref("x"), "dropout_p": 0.1},
         "dropout_p is 0.1, as in training"),
    ],
)  # fmt: skip
def test_what_layers_do_in_training_alone_is_refused_by_name(op, args, message):
    constants = {"m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=f"node 'y' .{op}.: {message}.*evaluation mode"):
        Session(graph(Node(op, "y", args), **constants))
    resolved = {"x": normal(1, 4, 8, 8), **constants}
    args = {name: resolved[value.name] if isinstance(value, Ref) else value for name, value in args.items()}
    with pytest.raises(ValueError, match=message):
        OPERATORS[op].reference(**args)


def test_statistics_of_the_batch_alone_are_no_training():
    """Weight standardisation is written so, without running statistics."""
    args = {"input": Ref("x"), "weight": None, "bias": None, "training": True, "momentum": 0.0, "eps": 1e-6}
    nodes = [Node("_native_batch_norm_legit", "n", args), Node("getitem", "y", {"self": Ref("n"), "index": 0})]
    assert abs(Session(graph(*nodes)).run(normal(1, 4, 8, 8)).mean()) < 1e-6


def fallbacks(size, **second):
    """A 3x3 convolution, faster after Winograd than as one step with the depthwise one after it."""
    nodes = [
        Node("conv2d", "a", CONV | {"padding": 1, "activation": "relu"}),
        Node("conv2d", "y", {"input": Ref("a"), "weight": Ref("d"), "padding": 1, "groups": 32, **second}),
    ]
    return graph(*nodes, shape=(1, 32, size, size), w=normal(32, 32, 3, 3), d=normal(32, 1, 3, 3, seed=1))


@pytest.mark.parametrize("second", [{}, {"residual": Ref("x")}])
def test_two_convolutions_that_stay_apart_take_no_more_memory_than_apart(monkeypatch, second):
    session = Session(fallbacks(56, **second), threads=1)
    if len(session.report().rows) == 1:
        pytest.skip("this CPU runs the two as one step")
    monkeypatch.setattr(packing, "fuse_depthwise", lambda nodes, packed, outputs: nodes)
    apart = Session(fallbacks(56, **second), threads=1)
    assert session.report().arena_bytes == apart.report().arena_bytes
    x = normal(1, 32, 56, 56)
    assert np.array_equal(session.run(x), apart.run(x))


REFUSED = [
    ("upsample_bilinear2d", {"self": Ref("d"), "output_size": [11, 15]}),
    ("pad", {"self": Ref("t"), "pad": [1, 1, 1, 1, 1, 1], "mode": "replicate"}),
    ("adaptive_avg_pool2d", {"self": Ref("t"), "output_size": [3, 3]}),
    ("avg_pool2d", {"self": Ref("t"), "kernel_size": 2, "divisor_override": 3}),
    ("max_pool2d", {"self": Ref("d"), "kernel_size": 2}),
    ("mean", {"self": Ref("t"), "dim": [1]}),
    ("leaky_relu", {"self": Ref("t"), "negative_slope": 0.3}),
    ("silu", {"self": Ref("d")}),
    ("layer_norm", {"input": Ref("t"), "normalized_shape": [8], "weight": Ref("v"), "bias": None}),
    ("group_norm", {"input": Ref("t"), "num_groups": 2, "weight": Ref("v"), "bias": None}),
    ("add", {"self": Ref("t"), "other": Ref("t"), "alpha": 2}),
    ("clamp", {"self": Ref("t")}),
    ("conv2d", {"input": Ref("t"), "weight": Ref("v4")}),
    ("linear", {"input": Ref("t"), "weight": Ref("v2")}),
    ("cat", {"tensors": [Ref("t"), Ref("d")], "dim": 1}),
]


@pytest.mark.parametrize("op, args", REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_a_lowering_that_refuses_has_planned_and_allocated_nothing(monkeypatch, op, args):
    """The inputs lie in another memory order, so that a lowering is tempted to copy them first."""
    seen = []
    reference = operators.lowering._reference

    def record(planner, *rest):
        seen.append((len(planner._buffers), len(planner.steps)))
        return reference(planner, *rest)

    monkeypatch.setattr(operators.lowering, "_reference", record)
    nodes = [Node("transpose", "t", {"self": Ref("x"), "dim0": 2, "dim1": 3}), Node(op, "y", args)]
    inputs = [TensorSpec("d", (1, 4, 8, 8), "float64"), TensorSpec("v", (8,)), TensorSpec("v2", (5, 8)),
              TensorSpec("v4", (5, 4, 1, 1))]  # fmt: skip
    Session(graph(*nodes, inputs=inputs))
    assert seen == [(5, 0)]


def test_fused_activations_are_those_of_the_records():
    assert operators.fused_activations() == ACTIVATIONS
    x = normal(4, 64) * 4
    for name in ACTIVATIONS:
        assert np.array_equal(operators.record.activate(x, name), operators.record.FUSED[name](x))
    assert operators.record.activate(x, None) is x


@pytest.mark.parametrize(
    "op, args, name",
    [
        ("relu", {}, "relu"),
        ("leaky_relu", {}, "leaky_relu"),
        ("leaky_relu", {"negative_slope": 0.01}, "leaky_relu"),
        ("leaky_relu", {"negative_slope": 0.2}, None),
        ("gelu", {}, "gelu"),
        ("gelu", {"approximate": "tanh"}, "gelu_tanh"),
        ("hardtanh", {}, None),
        ("hardtanh", {"min_val": 0.0, "max_val": 6.0}, "relu6"),
        ("clamp", {"min": 0, "max": 6}, "relu6"),
        ("clamp", {"min": 0, "max": Ref("six")}, None),
        ("clamp", {"min": False, "max": 6}, None),
        ("softplus", {}, None),
        ("conv2d", {}, None),
        ("unknown", {}, None),
    ],
)
def test_which_parameters_the_kernels_hold(op, args, name):
    assert operators.fused_activation(op, {"self": Ref("x"), **args}) == name


def test_a_report_says_why_faster_kernels_do_not_run(monkeypatch):
    rows = [row for row in _kernels.rows() if row["usable"] and row["dtype"] == "float32"]
    better = [row["name"] for row in rows if row["operator"] == "activate"][1:]
    monkeypatch.setattr(runtime, "forced_kernel_set", lambda: "generic")
    nodes = [Node("conv2d", "a", CONV), Node("relu", "y", {"self": Ref("a")})]
    convolution, relu = Session(graph(*nodes, w=WEIGHT)).report().rows
    assert relu.kernel == "f32_activate__generic" and relu.why == "kernel"
    for name in better:
        assert f"{name}: SUBP_KERNEL=generic leaves it out" in relu.passed_over
    assert bool(better) == bool(convolution.passed_over)


def test_arrays_are_told_by_any_form_of_their_annotation():
    class Alias:  # as NumPy's NDArray is, of Python 3.12 and NumPy 2.5
        __value__ = npt.NDArray[np.float32]

    alias = types.GenericAlias(Alias, (np.float32,))
    for hint in (alias, alias | None, npt.NDArray[np.float32]):
        assert arguments.fits(np.zeros(3, np.float32), hint) and not arguments.fits("x", hint)
        assert arguments.describe(hint).startswith("a tensor")
