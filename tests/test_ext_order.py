"""Networks whose block rows hold other channels than consecutive ones: the same bits as without an order.

Block rows can change places within their group, and channels their lanes within a row, without a change of the dense
weight: every output is then the same sum in the same order, so that nothing may change but where it is written from.
What an order means is tested with every kernel, against oracles of dense weights, where the kernels are.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from bfloat16_graphs import bfloat16_graph
from int8_graphs import int8_graph

from subp_ext import Graph, Session, UniformBlockSparse, _kernels, runtime, save
from subp_ext.convolution import Convolution
from subp_ext.requantize import Requantization

SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]


def in_other_rows(rng, weight):
    """The same weight, its full block rows in another order and each row's channels in other lanes."""
    block, groups = weight.block_size, weight.groups
    per_group, rows = weight.shape[0] // groups, len(weight.indices) // groups
    taken, order = [], []
    values = weight.values.copy()
    for group in range(groups):
        full = per_group // block
        for row in [*rng.permutation(full), *range(full, rows)]:
            width = min(block, per_group - row * block)
            lanes = rng.permutation(width)
            values[group * rows + row, ..., :width] = values[group * rows + row][..., lanes]
            taken.append(group * rows + row)
            order.extend(group * per_group + row * block + lanes)
    return dataclasses.replace(
        weight, values=values[taken], indices=weight.indices[taken], order=np.array(order, np.int32)
    )


def ordered(graph: Graph) -> Graph:
    rng = np.random.default_rng(5)
    constants = {
        name: in_other_rows(rng, value) if isinstance(value, UniformBlockSparse) else value
        for name, value in graph.constants.items()
    }
    moved = [name for name, value in constants.items() if value is not graph.constants[name]]
    assert moved and all(np.any(np.diff(constants[name].order) != 1) for name in moved)
    for name in moved:
        np.testing.assert_array_equal(constants[name].to_dense(), graph.constants[name].to_dense())
    return Graph(graph.inputs, graph.outputs, graph.nodes, constants, graph.metadata)


def test_a_weight_of_several_groups_with_narrow_rows_stays_the_same():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((22, 3, 1, 2)).astype(np.float32)
    weight = UniformBlockSparse.from_dense(dense, 4, 2)
    moved = in_other_rows(rng, weight)
    assert np.any(moved.order != np.arange(22))
    np.testing.assert_array_equal(moved.to_dense(), dense)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_network_has_the_same_bits_from_the_same_kernels(kernel_set, dtype, monkeypatch, tmp_path):
    """Chains with depthwise layers, residuals and narrow last rows are among its layers."""
    monkeypatch.setenv("SUBP_KERNEL", kernel_set)
    graph = int8_graph() if dtype == "int8" else bfloat16_graph()
    size = 20 if dtype == "int8" else 40
    images = np.random.default_rng(1).standard_normal((2, 3, size, size)).astype(np.float32)
    asked = None if dtype == "int8" else dtype
    plain = Session(graph, 1, dtype=asked)
    want = plain.run(images)
    save(tmp_path / "ordered.subp", ordered(graph))
    for threads in (1, 2, 3):
        session = Session(tmp_path / "ordered.subp", threads, dtype=asked)
        assert session.run(images).tobytes() == want.tobytes()
        assert steps(session) == steps(plain)


def steps(session):
    return [(row.node, row.kernel, row.why, row.kept_share, row.products, row.dtype) for row in session.report().rows]


def test_constants_of_signed_products_are_those_of_each_channel(monkeypatch):
    """Kernels of signed products, which not every CPU has, take activations minus 128 and get that back in `start`."""
    rng = np.random.default_rng(0)
    values, order = (
        rng.integers(-127, 128, (2, 3, 1, 1, 4)).astype(np.int8),
        np.array([5, 0, 7, 2, 1, 3, 6, 4], np.int32),
    )
    indices, scale = np.tile(np.arange(3, dtype=np.int32), (2, 1)), np.ones(8, np.float32)
    layer = Convolution(UniformBlockSparse(values, indices, (8, 3, 1, 1), 4, 1, "int8", scale, order))
    (algorithm,) = layer.algorithms
    algorithm._packing = "signed_quads"
    made = SimpleNamespace(CompiledConvolution=lambda *args, requantize, **more: requantize, tiles=_kernels.tiles)
    monkeypatch.setattr(runtime, "kernels", lambda: made)
    constants = Requantization(np.arange(8, dtype=np.int32), np.arange(8, dtype=np.float32), 0)
    found = algorithm.build(5, 5, constants)
    sums = values.astype(int).sum((1, 2, 3)).reshape(-1)  # of each channel of the block rows
    np.testing.assert_array_equal(found.start, order + 128 * sums)
    np.testing.assert_array_equal(found.factor, order)


def test_constants_for_another_number_of_channels_are_refused():
    constants = Requantization(np.zeros(5, np.int32), np.ones(5, np.float32), 0)
    with pytest.raises(ValueError, match=r"start has shape \(5,\) and factor \(5,\); expected \(4,\)"):
        constants.in_order(np.array([1, 0, 3, 2]))
