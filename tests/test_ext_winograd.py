"""3x3 convolutions after Winograd against a float64 oracle: every kernel set, both sizes of tiles, any padding.

Sizes are small (planes up to 61x61, 1 to 40 channels) but cross every tile, vector and run. The error bound is that of
float32 sums of K products of transformed numbers: the transforms of the magnitudes, times (K + 30) * eps. The
transforms are written here once more, and checked to be those of a convolution.
"""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_ext_kernels import EPS, SETS, oracle, random_weight, typed_weight

from subp_ext import Session, _kernels
from subp_ext.convolution import Convolution, conv2d
from subp_ext.dtypes import DTYPES
from subp_ext.geometry import Weight
from subp_ext.graph import Graph, Node, Ref, TensorSpec
from subp_ext.memory import aligned
from subp_ext.winograd import KERNEL_TRANSFORMS, Winograd, fits

INPUT = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
}
OUTPUT = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
}
VECTOR_SETS = [name for name in SETS if _kernels.choose(name, "winograd", "float32", size=2)]
TYPED = [
    (name, dtype)
    for name in VECTOR_SETS
    for dtype in ("float32", "bfloat16")
    if _kernels.choose(name, "winograd", dtype, size=2)
]


@pytest.mark.parametrize("size", [2, 4])
def test_the_transforms_are_those_of_a_convolution(size):
    rng = np.random.default_rng(size)
    d, g = rng.standard_normal((size + 2, size + 2)), rng.standard_normal((3, 3))
    b, a, k = INPUT[size], OUTPUT[size], KERNEL_TRANSFORMS[size]
    windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3))
    np.testing.assert_allclose(a @ ((k @ g @ k.T) * (b @ d @ b.T)) @ a.T, (windows * g).sum((2, 3)), atol=1e-12)


def magnitudes(x, dense, zeros, size, groups):
    """What the sums of the transforms add up in magnitude for each output; the unit of rounding errors."""
    b, a, k = (abs(m).astype(np.float64) for m in (INPUT[size], OUTPUT[size], KERNEL_TRANSFORMS[size]))
    out = [n + sum(z) - 2 for n, z in zip(x.shape[2:], zeros, strict=True)]
    more = [-n % size for n in out]  # the last tiles hang over the edge
    pads = [(before, after + m) for (before, after), m in zip(zeros, more, strict=True)]
    padded = np.pad(abs(x).astype(np.float64), ((0, 0), (0, 0), *pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size + 2, size + 2), (2, 3))[:, :, ::size, ::size]
    inputs = b @ windows @ b.T
    per_in, per_out = dense.shape[1], dense.shape[0] // groups
    products = np.stack(
        [
            np.einsum("nityab,oiab->notyab", inputs[:, g * per_in : (g + 1) * per_in], k @ abs(part) @ k.T)
            for g, part in enumerate(dense.astype(np.float64).reshape(groups, per_out, per_in, 3, 3))
        ],
        1,
    ).reshape(x.shape[0], dense.shape[0], *inputs.shape[2:])
    tiles = a @ products @ a.T
    return tiles.transpose(0, 1, 2, 4, 3, 5).reshape(*tiles.shape[:2], out[0] + more[0], -1)[:, :, : out[0], : out[1]]


def check(case, zeros, image, seed, extras, kernel_set, dtype, size):
    rng, row = np.random.default_rng(seed), DTYPES[dtype]
    dense, weight = typed_weight(rng, dtype, **case, kernel=(3, 3))
    batch, *plane = image

    def random(*shape):
        stored = row.from_float(rng.standard_normal(shape).astype(np.float32))
        return stored, row.to_float(stored)

    stored, x = random(batch, case["per_group"] * case["groups"], *plane)
    bias = rng.standard_normal(case["outputs"]).astype(np.float32) if extras else None
    want, _ = oracle(x, dense, bias, (1, 1), zeros, (1, 1), case["groups"])
    bound = magnitudes(x, dense, zeros, size, case["groups"])
    residual = out_dtype = None
    if extras:
        residual, numbers = random(*want.shape)
        want, bound = np.maximum(want + numbers, 0), bound + abs(numbers) + abs(bias[:, None, None])
    elif seed % 2:
        out_dtype, row = "float32", DTYPES["float32"]
    layer = Convolution(weight, bias, 1, zeros, activation="relu" if extras else None, kernel_set=kernel_set).layer
    assert fits(layer, size)
    compiled = Winograd(layer, Weight(weight.values), size).build(*plane, out_dtype=out_dtype or "")
    results = []
    for threads in (1, 2, 3):
        out = row.from_float(np.full(want.shape, np.nan, np.float32))
        compiled.run(stored, residual, out, aligned(compiled.scratch * threads), threads)
        results.append(out)
    error = (case["kept"] + 40) * EPS * bound
    if row.name == "bfloat16":
        error += row.eps / 2 * (abs(want) + error)
    assert np.all(abs(row.to_float(results[0]) - want) <= error)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


WIDE, SAME = {"outputs": 40, "groups": 1}, ((1, 1), (1, 1))


@st.composite
def cases(draw):
    groups, per_group = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(1, 12))
    case = {
        "outputs": groups * draw(st.integers(1, 40)),
        "per_group": per_group,
        "block": draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64])),
        "groups": groups,
        "kept": draw(st.integers(1, per_group)),
        "ordered": draw(st.booleans()),
    }
    pads = st.integers(0, 3)
    zeros = ((draw(pads), draw(pads)), (draw(pads), draw(pads)))
    image = (draw(st.integers(1, 2)), draw(st.integers(3, 20)), draw(st.integers(3, 61)))
    return case, zeros, image, draw(st.integers(0, 2**31)), draw(st.booleans())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kernel_set, dtype", TYPED)
@settings(max_examples=100, deadline=None)
@given(drawn=cases())
@example(({**WIDE, "per_group": 9, "block": 16, "kept": 5}, SAME, (2, 14, 14), 0, True))
@example(({**WIDE, "per_group": 9, "block": 32, "kept": 4, "ordered": True}, SAME, (1, 28, 28), 1, True))
@example(({**WIDE, "per_group": 70, "block": 16, "kept": 33}, SAME, (1, 56, 56), 2, False))
def test_any_shape_is_within_the_bound_and_the_same_for_any_thread_count(kernel_set, dtype, size, drawn):
    check(*drawn, kernel_set, dtype, size)


@pytest.mark.parametrize("kernel_set", VECTOR_SETS)
@pytest.mark.parametrize("activation", ["relu6", "silu", "gelu"])
def test_activations_are_fused(kernel_set, activation):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 64, 28, 28), np.float32), rng.standard_normal((64, 64, 3, 3), np.float32)
    layers = [Convolution(weight, None, 1, 1, activation=name, kernel_set=kernel_set) for name in (None, activation)]
    assert all("winograd" in layer.prepare(28, 28).kernel for layer in layers)
    plain, fused = (layer(x) for layer in layers)
    alone = conv2d(plain, np.eye(64, dtype=np.float32)[:, :, None, None], activation=activation, kernel_set=kernel_set)
    assert np.array_equal(fused, alone)


def session(channels, size, threads=1, dtype=None):
    """A graph of one convolution, which keeps half of its blocks."""
    _, weight = random_weight(np.random.default_rng(0), channels, channels, (3, 3), 16, 1, channels // 2)
    spec = TensorSpec("x", (None, channels, size, size), "float32")
    node = Node("conv2d", "y", {"input": Ref("x"), "weight": Ref("w"), "padding": [1, 1]})
    graph = Graph([spec], [TensorSpec("y", (None, channels, size, size), "float32")], [node], {"w": weight})
    return Session(graph, threads, dtype=dtype)


def ran(channels, size, dtype=None):
    rows = session(channels, size, dtype=dtype).report(np.zeros((1, channels, size, size), np.float32)).rows
    return next(row for row in rows if row.macs)


@pytest.mark.skipif(not VECTOR_SETS, reason="no kernel set of this CPU has the transforms")
def test_each_layer_of_a_network_takes_what_suits_it():
    assert "winograd_4x4" in ran(64, 56).kernel and "winograd_4x4" in ran(128, 28).kernel
    assert "winograd_2x2" in ran(256, 14).kernel
    assert "ubsconv" in ran(512, 7).kernel  # four times the weights for four tiles
    assert "ubsconv" in ran(16, 5).kernel


@pytest.mark.skipif(("avx512bf16", "bfloat16") not in TYPED, reason="this CPU has no such transforms")
def test_layers_of_bfloat16_take_it_where_it_is_faster():
    for channels, size in ((64, 56), (128, 28), (256, 14)):
        row = ran(channels, size, "bfloat16")
        assert row.kernel.startswith("bf16_winograd_4x4") and row.products == "bfloat16"
        assert row.why == "sparse, transformed and multiplied in float32"
    assert ran(512, 7, "bfloat16").kernel.startswith("bf16_ubsconv")


def held(root):
    """Bytes of the float32 arrays of at least 1 KB that an object leads to, whoever owns them."""
    found, seen, left = {}, set(), [root]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            left.append(each.base)
            if each.base is None and each.dtype == np.float32 and each.nbytes > 1024:
                found[id(each)] = each.nbytes
        else:
            left += gc.get_referents(each)
    return sum(found.values())


@pytest.mark.skipif(not VECTOR_SETS, reason="no kernel set of this CPU has the transforms")
@pytest.mark.parametrize("size, algorithm, times", [(56, "winograd_4x4", 4), (7, "ubsconv", 1)])
def test_weights_are_held_as_often_as_it_says(size, algorithm, times):
    """The plain values stay while another size may come, and go where none will."""
    dense = np.random.default_rng(0).standard_normal((128, 128, 3, 3), np.float32)
    layer, plain = Convolution(dense, None, 1, 1), dense.nbytes
    small = layer.layer.indices.nbytes
    assert layer.nbytes == plain + small == held(layer) + small
    assert algorithm in layer.prepare(size, size).kernel
    assert layer.nbytes == (1 + times) * plain + small == held(layer) + small
    x = np.random.default_rng(1).standard_normal((1, 128, size, size), np.float32)
    want = layer(x)
    layer.release()
    assert layer.nbytes == times * plain + small == held(layer) + small
    np.testing.assert_array_equal(layer(x), want)
    other = layer(np.ones((1, 128, 20, 20), np.float32))  # by what is there
    assert algorithm in layer.prepare(20, 20).kernel
    np.testing.assert_allclose(other, conv2d(np.ones((1, 128, 20, 20), np.float32), dense, padding=1), atol=1e-2)


def test_a_layer_that_only_one_algorithm_can_run_is_packed_at_once():
    layer = Convolution(np.ones((32, 16, 1, 1), np.float32))
    assert layer.nbytes == 32 * 16 * 4 + layer.layer.indices.nbytes == held(layer) + layer.layer.indices.nbytes


@pytest.mark.skipif(not VECTOR_SETS, reason="no kernel set of this CPU has the transforms")
def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("SUBP_WINOGRAD", "0")
    assert "ubsconv" in ran(64, 56).kernel
    monkeypatch.setenv("SUBP_WINOGRAD", "yes")
    with pytest.raises(ValueError, match="SUBP_WINOGRAD is 'yes'; expected 1, or 0"):
        ran(64, 56)


@pytest.mark.parametrize("change", [{"stride": 2}, {"dilation": 2}, {"weight": np.ones((4, 3, 5, 5), np.float32)}])
def test_other_convolutions_do_not_fit(change):
    args = {"weight": np.ones((4, 3, 3, 3), np.float32), **change}
    assert not fits(Convolution(**args).layer, 2)
