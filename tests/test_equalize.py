"""subp_dist.export.equalize: a range for each channel of what depthwise layers read."""

import dataclasses

import numpy as np
import pytest
from test_quantize import IMAGES, conv, network

from subp_dist.export.calibrate import run_values
from subp_dist.export.equalize import equalized
from subp_dist.export.quantize import QuantizeOptions, quantize_graph, run_all
from subp_dist.export.quantize_report import sqnr
from subp_dist.export.tables import value_types
from subp_ext import Graph, Node, Ref, UniformBlockSparse


def uneven(activation: str, multiplier: int = 1, sparse: bool = False, **args) -> Graph:
    """Sixteen channels of very different sizes, all of which count for the result as much."""
    graph = network(
        conv("first", "x", 16, 3),
        conv("expand", "first", 16, 16, sparse=sparse, activation=activation, **args),
        conv("dw", "expand", 16 * multiplier, 16, 3, groups=16),
        conv("last", "dw", 8, 16 * multiplier),
        output="last",
    )
    sizes = np.geomspace(0.06, 6, 16).astype(np.float32)
    constants = graph.constants
    weight = constants["expand.weight"]
    if sparse:
        rows = sizes.reshape(2, 1, 1, 1, 8)
        constants["expand.weight"] = dataclasses.replace(weight, values=weight.values * rows)
    else:
        constants["expand.weight"] = weight * sizes[:, None, None, None]
    constants["expand.bias"] = constants["expand.bias"] * sizes
    constants["dw.weight"] = constants["dw.weight"] / np.repeat(sizes, multiplier)[:, None, None, None]
    return graph


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("multiplier, sparse", [(1, False), (2, False), (1, True)])
def test_the_same_is_computed_and_channels_end_alike(activation, multiplier, sparse):
    graph = uneven(activation, multiplier, sparse)
    found, ends = equalized(graph, IMAGES, {"expand", "dw"})
    assert list(ends) == ["expand"] and (activation == "relu" or ends["expand"] == 6)
    before, after = run_all(graph, IMAGES), run_all(found, IMAGES)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    old, new = (run_values(g, IMAGES, ["expand"])["expand"].max((0, 2, 3)) for g in (graph, found))
    # Two thirds of the range, but for channels that are beyond that already.
    assert np.allclose(new, np.maximum(old, ends["expand"] / 1.5), rtol=1e-5) and old.min() < 0.05 * old.max()
    if sparse:
        weight, given = found.constants["expand.weight"], graph.constants["expand.weight"]
        assert isinstance(weight, UniformBlockSparse) and np.array_equal(weight.indices, given.indices)
        assert np.array_equal(weight.to_dense() == 0, given.to_dense() == 0)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_integers_are_as_good_as_a_scale_for_each_channel(activation):
    """Every channel, in the units of a range of its own, is off by no more than a few steps."""
    graph = uneven(activation)
    values = run_values(graph, IMAGES, ["expand"])["expand"].astype(np.float64)
    found, report = quantize_graph(graph, IMAGES, QuantizeOptions(bias_correction=False))
    type = value_types(found)["expand"]
    scale = type.quantization.scale
    top = 6.0 if activation == "relu6" else values.max()
    assert values.max() > 6 or activation == "relu6"
    assert type.quantization.zero_point == 0 and scale * 255 == pytest.approx(top, rel=1e-4)
    ends = np.minimum(1.5 * values.max((0, 2, 3)), top)
    factors = ends / (scale * 255)
    stored = run_values(found, IMAGES, ["expand"], {"expand": type})["expand"]
    real = stored * float(scale) * factors[:, None, None]
    off = np.sqrt(((real - values) ** 2).mean((0, 2, 3))) / (ends / 255)
    # Of the layers before, whose own integers are off by about a step of their largest channel, and of the rounding.
    assert off.max() < 2.5
    assert sqnr(run_all(graph, IMAGES), run_all(found, IMAGES)) > 30
    row = next(row for row in report.layers if row.name == "expand")
    assert row.reason == "uint8 result, a range for each channel"


def test_what_is_larger_than_on_any_image_saturates_like_a_range_of_its_own():
    graph = uneven("relu6")
    found, _ = quantize_graph(graph, IMAGES, QuantizeOptions(bias_correction=False))
    types = value_types(found)
    large = IMAGES[:8] * 3
    read, stored = run_values(found, large, ["first", "expand"], types).values()
    weight, bias = (graph.constants[f"expand.{name}"] for name in ("weight", "bias"))
    real = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], types["first"].to_float(read)) + bias[:, None, None]
    tops = np.minimum(1.5 * run_values(graph, IMAGES, ["expand"])["expand"].max((0, 2, 3)), 6)[:, None, None]
    # Weights are rounded, so that a channel at its top may be a few steps below it.
    assert (real > 1.25 * tops).any() and (stored[real > 1.25 * tops] == 255).all()
    assert (stored[real < 0.75 * tops] < 255).all()


def read_twice(graph: Graph) -> Graph:
    nodes = [*graph.nodes[:-1], Node("add", "twice", {"self": Ref("dw"), "other": Ref("expand")})]
    last = graph.nodes[-1]
    nodes.append(dataclasses.replace(last, args=last.args | {"input": Ref("twice")}))
    return dataclasses.replace(graph, nodes=nodes)


@pytest.mark.parametrize(
    "graph",
    [
        uneven("silu"),
        uneven("relu", residual=Ref("first")),
        read_twice(uneven("relu")),
        network(conv("a", "x", 16, 3, activation="relu"), conv("b", "a", 16, 16, 3, groups=2), output="b"),
        network(conv("a", "x", 16, 3, activation="relu"), conv("b", "a", 16, 16, 3), output="b"),
        dataclasses.replace(uneven("relu"), outputs=[dataclasses.replace(uneven("relu").outputs[0], name="expand")]),
    ],
    ids=["silu", "residual", "read twice", "grouped", "dense", "output"],
)
def test_where_it_would_change_the_network_it_is_left_out(graph):
    found, ends = equalized(graph, IMAGES, {node.output for node in graph.nodes})
    assert not ends and found is graph


def test_weights_that_another_layer_shares_and_layers_in_float32_are_left_alone():
    graph = uneven("relu")
    graph.nodes.append(conv("again", "last", 16, 8)[0])
    graph.nodes[-1].args["weight"] = Ref("expand.weight")
    assert equalized(graph, IMAGES, {"expand", "dw"})[1] == {}
    assert equalized(uneven("relu"), IMAGES, {"expand"})[1] == {}


def test_a_channel_that_is_never_on_stays_finite():
    graph = uneven("relu6")
    bias = graph.constants["expand.bias"].copy()
    bias[:3] = -1e4
    graph.constants["expand.bias"] = bias
    found, _ = equalized(graph, IMAGES, {"expand", "dw"})
    assert np.abs(found.constants["expand.bias"]).max() <= 6 * 256e4
    assert np.allclose(run_all(found, IMAGES), run_all(graph, IMAGES), atol=1e-5)
