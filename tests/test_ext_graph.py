"""The graph data model: JSON round trip and validation messages."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from subp_ext import Graph, Node, Ref, TensorSpec


def graph(nodes, **parts) -> Graph:
    whole = {
        "inputs": [TensorSpec("x", (None, 4))],
        "outputs": [TensorSpec("y", (None, 4))],
        "constants": {"c": np.ones(4, np.float32)},
        **parts,
    }
    return Graph(nodes=nodes, **whole)


def test_json_round_trip_keeps_nested_references_and_infinities():
    nodes = [
        Node("sym_size", "n", {"self": Ref("x"), "dim": 0}),
        Node("view", "v", {"self": Ref("x"), "size": [Ref("n"), 2, -1]}),
        Node("clamp", "k", {"self": Ref("v"), "min": -math.inf, "max": 1.5}),
        Node("view", "y", {"self": Ref("k"), "size": [-1, 4]}),
    ]
    original = graph(nodes)
    original.validate()
    again = Graph.from_json(json.loads(json.dumps(original.to_json(), allow_nan=False)))
    again.constants = original.constants
    assert again == original


def test_refs_finds_nested_references():
    node = Node("index", "y", {"self": Ref("x"), "indices": [None, Ref("a"), [Ref("b")]], "other": "x"})
    assert {ref.name for ref in node.refs()} == {"x", "a", "b"}


RELU = Node("relu", "y", {"self": Ref("x")})


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"nodes": [Node("relu", "y", {"self": Ref("z")})]}, r"node 'y' \(relu\): reads 'z', which is not"),
        ({"nodes": [Node("relu", "y", {"self": Ref("y")})]}, "reads 'y'"),
        ({"nodes": [RELU, RELU]}, "name 'y' .* is already taken"),
        ({"nodes": [Node("relu", "c", {}), RELU]}, "name 'c' .* is already taken"),
        ({"nodes": [Node("relu", "", {}), RELU]}, "not a non-empty string"),
        ({"nodes": []}, "output 'y' is not a value of the graph"),
        ({"nodes": [Node("full", "y", {"size": [{"a": 1}]})]}, "argument 'size' is a dict"),
        ({"nodes": [Node("add", "y", {"self": Ref("x"), "other": np.float32(1)})]}, "argument 'other' is a float32"),
        ({"nodes": [Node("conv2d", "y", {"activation": "cube"})]}, "activation 'cube' is not one of relu, relu6"),
        ({"nodes": [RELU], "inputs": []}, "graph has 0 inputs"),
        ({"nodes": [RELU], "outputs": []}, "0 outputs"),
        ({"nodes": [RELU], "inputs": [TensorSpec("x", (-1, 4))]}, "holds -1"),
        ({"nodes": [RELU], "inputs": [TensorSpec("x", (1, 4), "float16")]}, "dtype 'float16' is not one of"),
        ({"nodes": [RELU], "constants": {"c": [1, 2]}}, "constant 'c' is a list"),
        ({"nodes": [RELU], "constants": {"c": np.zeros(2, complex)}}, "dtype complex128 is not one of"),
        ({"nodes": [RELU], "metadata": {"a": {1, 2}}}, "metadata 'a' is not a JSON value"),
        ({"nodes": [RELU], "metadata": {"a": math.nan}}, "metadata 'a' is not a JSON value"),
        ({"nodes": [RELU], "metadata": {1: 2}}, "string keys"),
    ],
)
def test_validation_names_what_is_wrong(parts, message):
    with pytest.raises(ValueError, match=message):
        graph(**parts).validate()


@pytest.mark.parametrize("data", [None, [], {}, {"inputs": 1}, {"inputs": [], "outputs": [{"name": "y"}]}])
def test_from_json_refuses_other_structures(data):
    with pytest.raises(ValueError, match="graph description"):
        Graph.from_json(data)
