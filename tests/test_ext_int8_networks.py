"""Whole networks of integers: the same bits as an interpreter, from every kernel set and any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from int8_graphs import Builder, int8_graph, interpret, uint8

import subp_ext
from subp_ext import Graph, Ref, Session, TensorSpec, _kernels

SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]


@pytest.fixture(scope="module")
def network():
    graph = int8_graph()
    images = np.random.default_rng(3).normal(0, 1, (3, 3, 20, 20)).astype(np.float32)
    return graph, images, interpret(graph, images)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kernel_set", SETS)
def test_outputs_are_the_interpreters_to_the_bit(network, kernel_set, threads, monkeypatch):
    graph, images, want = network
    monkeypatch.setenv("SUBP_KERNEL", kernel_set)
    session = Session(graph, threads=threads)
    assert np.array_equal(session.run(images), want)
    assert np.array_equal(session.run(images[:1]), want[:1])


def test_no_step_leaves_the_integers(network, tmp_path):
    graph, images, want = network
    subp_ext.save(tmp_path / "model.subp", graph)
    session = Session(tmp_path / "model.subp", threads=1)
    assert np.array_equal(session.run(images), want)
    report = session.report()
    assert report.int8_share == 1.0 and "100.0% in int8" in str(report)
    assert [row.op for row in report.rows if row.op == "cast" or row.kernel == "reference"] == []
    others = [row.node for row in report.rows if not row.dtype.startswith("uint8")]
    assert others == ["y"]  # the classifier's results alone are real numbers


@pytest.mark.parametrize("seed", range(1, 6))
def test_other_weights_and_sizes(seed):
    graph = int8_graph(seed, 13 + seed)
    images = np.random.default_rng(seed).normal(0, 2, (2, 3, 13 + seed, 13 + seed)).astype(np.float32)
    assert np.array_equal(Session(graph).run(images), interpret(graph, images))


def test_a_depthwise_layer_of_integers_gives_results_in_float32():
    b = Builder(7)
    x = b.add("quantize", self=Ref("x"), scale=0.02, zero_point=114, dtype="uint8")
    weight = b.weight(16, 1, 3, 3)
    y = b.conv(x, weight, None, groups=16)
    graph = Graph([TensorSpec("x", (None, 16, 8, 8))], [TensorSpec(y.name, (None, 16, 6, 6))], b.nodes, b.constants)
    graph.nodes[0] = replace(graph.nodes[0], type=uint8(0.02, 114))
    images = np.random.default_rng(0).normal(0, 1, (2, 16, 8, 8)).astype(np.float32)
    session = Session(graph, threads=1)
    found = session.run(images)
    real = uint8(0.02, 114).to_float(uint8(0.02, 114).from_float(images)).astype(np.float64)
    taps, bias = b.constants[weight.name].to_float()[:, 0].astype(np.float64), b.constants["constant_1"]
    want = sum(taps[:, i, j, None, None] * real[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3))
    # The bias is rounded to the unit of the sums.
    unit = 0.02 * float(b.constants[weight.name].type.quantization.scale.max())
    np.testing.assert_allclose(found, want + bias[:, None, None], rtol=1e-5, atol=unit)
    assert session.report().int8_share == 1
