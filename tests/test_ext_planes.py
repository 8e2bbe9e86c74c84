"""Pooling, linear and element-wise operators against a float64 oracle: every kernel set, any thread count.

Planes up to 20x20, non-square, with windows that hang over every edge, and one beyond a chunk of work. Sums are
bounded by n * eps * sum |x|, maxima are exact. A kernel set is swapped in for the choice of the process.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_ext_kernels import reordered

from subp_ext import Graph, Node, Ref, Session, TensorSpec, UniformBlockSparse, _kernels, runtime

EPS = float(np.finfo(np.float32).eps)
SETS = [entry["name"] for entry in _kernels.kernel_sets() if entry["usable"]]


@pytest.fixture(params=SETS)
def kernel_set(request, monkeypatch):
    monkeypatch.setattr(runtime, "forced_kernel_set", lambda: request.param)
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(op, threads=1, kernel=True, **args):
    """One operator in a session; `kernel` says whether it has to be a compiled one."""
    arrays = {name: value for name, value in args.items() if isinstance(value, np.ndarray)}
    inputs = [TensorSpec(name, value.shape, value.dtype.name) for name, value in arrays.items()]
    named = {name: Ref(name) if name in arrays else value for name, value in args.items()}
    session = Session(Graph(inputs, [TensorSpec("y", ())], [Node(op, "y", named)]), threads)
    ran = session.report().rows[-1].kernel
    assert ran.startswith("f32_") == kernel, ran
    return session.run(arrays)


def pooled(x, size, kernel, stride, pad, dilation, reduce):
    """One window at a time, over what is inside of it."""
    out = np.zeros((*x.shape[:2], *size))
    for y, z in itertools.product(range(size[0]), range(size[1])):
        rows = [y * stride[0] - pad[0] + i * dilation[0] for i in range(kernel[0])]
        columns = [z * stride[1] - pad[1] + j * dilation[1] for j in range(kernel[1])]
        rows = [r for r in rows if 0 <= r < x.shape[2]]
        columns = [c for c in columns if 0 <= c < x.shape[3]]
        out[:, :, y, z] = reduce(x[:, :, rows][:, :, :, columns].astype(np.float64))
    return out


@pytest.mark.parametrize("width", [19, 64, 112])
@pytest.mark.parametrize(
    "kernel, stride, pad, dilation, ceil",
    [
        ((3, 3), (2, 2), (1, 1), (1, 1), False),
        ((2, 2), (2, 2), (0, 0), (1, 1), True),
        ((3, 3), (2, 2), (1, 1), (1, 1), True),
        ((5, 3), (1, 3), (2, 1), (1, 2), False),
        ((3, 3), (1, 1), (1, 1), (1, 1), False),
    ],
)
def test_max_pool(kernel_set, kernel, stride, pad, dilation, ceil, width):
    x = normal(2, 5, 13, width)
    window = {"kernel_size": kernel, "stride": stride, "padding": pad, "dilation": dilation, "ceil_mode": ceil}
    results = [run("max_pool2d", threads, self=x, **window) for threads in (1, 2, 3)]
    want = pooled(x, results[0].shape[2:], kernel, stride, pad, dilation, lambda w: w.max(axis=(2, 3)))
    assert all(np.array_equal(result, want) for result in results)
    x[1, 2, 6, 7] = np.nan
    assert np.isnan(run("max_pool2d", self=x, **window)[1, 2]).any()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(
    "kernel, stride, pad", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (1, 0)), ((7, 7), (7, 7), (0, 0))]
)
def test_avg_pool_matches_torch(kernel_set, kernel, stride, pad, include):
    torch = pytest.importorskip("torch")
    x = normal(2, 4, 14, 17)
    got = run(
        "avg_pool2d",
        2,
        self=x,
        kernel_size=kernel,
        stride=stride,
        padding=pad,
        ceil_mode=True,
        count_include_pad=include,
    )
    want = torch.nn.functional.avg_pool2d(torch.from_numpy(x).double(), kernel, stride, pad, True, include).numpy()
    assert np.all(abs(got - want) <= (kernel[0] * kernel[1] + 3) * EPS * abs(x).max())


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("kernel, pad", [(9, 4), (13, 6), (3, 1)])
def test_pools_with_more_padding_than_input(kernel_set, size, kernel, pad):
    """As in spatial pyramids on the last planes of small images: every window holds all of the plane, or most."""
    x = normal(1, 3, *size)
    window = {"kernel_size": [kernel, kernel], "stride": [1, 1], "padding": [pad, pad]}
    found = run("max_pool2d", self=x, **window)
    np.testing.assert_array_equal(
        found, pooled(x, size, (kernel,) * 2, (1, 1), (pad,) * 2, (1, 1), lambda w: w.max(axis=(2, 3)))
    )


@pytest.mark.parametrize("size, kernel, stride", [((1, 1), 2, 2), ((2, 3), 3, 2), ((1, 5), 3, 3), ((2, 1), 4, 4)])
def test_pools_wider_than_what_is_left_of_a_small_image(kernel_set, size, kernel, stride):
    """In ceil mode, as the shortcuts of ResNet-D have it: a last window that hangs over may be the only one."""
    torch = pytest.importorskip("torch")
    x = normal(2, 3, *size)
    window = {"kernel_size": [kernel, kernel], "stride": [stride, stride], "ceil_mode": True}
    want = torch.nn.functional.max_pool2d(torch.from_numpy(x), kernel, stride, ceil_mode=True)
    np.testing.assert_array_equal(run("max_pool2d", self=x, **window), want)
    for include in (True, False):
        want = torch.nn.functional.avg_pool2d(torch.from_numpy(x), kernel, stride, 0, True, include)
        found = run("avg_pool2d", self=x, count_include_pad=include, **window)
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 13)])
def test_mean(kernel_set, size):
    x = normal(2, 9, *size)
    got = [run("mean", threads, self=x, dim=[2, -1], keepdim=True) for threads in (1, 2, 3)]
    want = x.astype(np.float64).mean(axis=(2, 3), keepdims=True)
    assert np.all(abs(got[0] - want) <= (x[0, 0].size + 2) * EPS * abs(x).mean(axis=(2, 3), keepdims=True))
    assert len({result.tobytes() for result in got}) == 1
    assert np.array_equal(run("adaptive_avg_pool2d", self=x, output_size=[1, 1]), got[0])


@pytest.mark.parametrize("name, function", [("add", np.add), ("mul", np.multiply)])
@pytest.mark.parametrize("other", [(2, 3, 7, 11), (2, 3, 1, 1)])
def test_binary(kernel_set, name, function, other):
    a, b = normal(2, 3, 7, 11), normal(*other, seed=1)
    for left, right in ((a, b), (b, a)):
        got = run(name, 2, self=left, other=right)
        assert np.array_equal(got, function(left, right))


def test_a_large_operand_is_split_without_a_seam(kernel_set):
    a, b = normal(1, 1, 301, 301), normal(1, 1, 301, 301, seed=1)
    assert np.array_equal(run("add", 3, self=a, other=b), a + b)
    assert np.array_equal(run("relu", 3, self=a), np.maximum(a, 0))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["mul", "add"])
def test_an_operand_that_the_result_would_overwrite(kernel_set, threads, name):
    """The first value of a tensor, spread over all of it, may not be read from the memory that the result takes."""
    x = np.arange(70_000, dtype=np.float32)[None] + 2
    nodes = [
        Node("relu", "a", {"self": Ref("x")}),
        Node("slice", "b", {"self": Ref("a"), "dim": 1, "start": 0, "end": 1}),
        Node(name, "y", {"self": Ref("a"), "other": Ref("b")}),
    ]
    y = Session(Graph([TensorSpec("x", x.shape)], [TensorSpec("y", x.shape)], nodes), threads).run(x)
    np.testing.assert_array_equal(y, x * 2 if name == "mul" else x + 2)


def test_what_has_no_kernel_runs_on_numpy(kernel_set):
    x, few = normal(2, 3, 4, 4), normal(4, seed=1)
    assert np.array_equal(run("add", kernel=False, self=x, other=2.0), x + np.float32(2))
    assert np.allclose(run("add", kernel=False, self=x, other=x, alpha=2), 3 * x)
    assert np.array_equal(run("mul", kernel=False, self=x, other=few), x * few)
    assert np.allclose(run("mean", kernel=False, self=x, dim=[1]), x.mean(1))
    assert np.array_equal(run("relu", kernel=False, self=x.astype(np.float64)), np.maximum(x, 0).astype(np.float64))


@pytest.mark.parametrize(
    "sizes",
    [{"scale_factors": [2.0, 2.0]}, {"output_size": [15, 28]}, {"output_size": [5, 7]}, {"scales_h": 2, "scales_w": 8}],
)
def test_nearest_upsampling_by_whole_factors(sizes):
    x = normal(2, 3, 5, 7)
    session = Session(
        Graph(
            [TensorSpec("x", x.shape)],
            [TensorSpec("y", ())],
            [Node("upsample_nearest2d", "y", {"self": Ref("x"), **sizes})],
        )
    )
    got = session.run(x)
    rows, columns = got.shape[2] // 5, got.shape[3] // 7
    assert np.array_equal(got, x.repeat(rows, axis=2).repeat(columns, axis=3))
    assert session.report().rows[-1].kernel in ("gather", "weave")


def test_nearest_upsampling_by_other_factors_is_a_copy():
    torch = pytest.importorskip("torch")
    x = normal(2, 3, 5, 7)
    node = Node("upsample_nearest2d", "y", {"self": Ref("x"), "output_size": [8, 14]})
    session = Session(Graph([TensorSpec("x", x.shape)], [TensorSpec("y", ())], [node]))
    assert np.array_equal(session.run(x), torch.nn.functional.interpolate(torch.from_numpy(x), size=(8, 14)).numpy())
    assert session.report().rows[-1].kernel == "gather"


def norm_session(op, spec, constants, threads, axes=None, **args):
    """A normalisation of the input `x`, seen with its axes in another order; its kernel has to be a compiled one."""
    nodes = [Node("permute", "p", {"self": Ref("x"), "dims": list(axes)})] if axes else []
    refs = {name: Ref(name) for name in constants}
    nodes.append(Node(op, "y", {"input": Ref("p" if axes else "x"), **refs, **args}))
    session = Session(Graph([TensorSpec("x", spec)], [TensorSpec("y", ())], nodes, constants), threads)
    assert [row.kernel.partition("__")[0] for row in session.report().rows] in (["f32_norm_pixels"], ["f32_norm_run"])
    return session


def normalised(x, axes, eps):
    """In float64, and a bound of its rounding: errors of mean, variance and product, at the size of the inputs."""
    x = x.astype(np.float64)
    mean, scale = x.mean(axis=axes, keepdims=True), 1 / np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    count = np.prod([x.shape[axis] for axis in axes])
    return (x - mean) * scale, EPS * (8 + np.sqrt(count)) * scale * abs(x).max(axis=axes, keepdims=True)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape, axes", [
    ((2, 5, 7, 11), (0, 2, 3, 1)),  # channels last of planes, as in convnext; the last tile is not full
    ((1, 130, 16, 16), (0, 2, 3, 1)),
    ((3, 40, 1, 1), (0, 2, 3, 1)),
    ((6, 37), None),
    ((2, 9, 200), None),
    ((33, 70), (1, 0)),
])  # fmt: skip
def test_layer_norm(kernel_set, shape, axes, affine):
    x = 3 + 2 * normal(*shape)
    seen = x.transpose(axes) if axes else x
    channels = seen.shape[-1]
    constants = {"weight": normal(channels, seed=1), "bias": normal(channels, seed=2)} if affine else {}
    results = [
        norm_session("layer_norm", shape, constants, threads, axes, normalized_shape=[channels], eps=1e-6).run(x)
        for threads in (1, 2, 3)
    ]
    want, bound = normalised(seen, (seen.ndim - 1,), 1e-6)
    if affine:
        want, bound = want * constants["weight"] + constants["bias"], bound * abs(constants["weight"]) + 4 * EPS
    assert np.all(abs(results[0] - want) <= bound)
    assert len({result.tobytes() for result in results}) == 1
    x.reshape(-1)[0] = np.nan
    assert np.isnan(norm_session("layer_norm", shape, {}, 1, axes, normalized_shape=[channels]).run(x)).any()


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 4, 3)])
def test_layer_norm_over_several_axes(kernel_set, shape):
    x, sizes = normal(*shape), shape[1:]
    constants = {"weight": normal(*sizes, seed=1), "bias": normal(*sizes, seed=2)}
    got = norm_session("layer_norm", shape, constants, 2, normalized_shape=list(sizes), eps=1e-5).run(x)
    want, bound = normalised(x, tuple(range(1, len(shape))), 1e-5)
    assert np.all(
        abs(got - want * constants["weight"] - constants["bias"]) <= bound * abs(constants["weight"]) + 4 * EPS
    )


@pytest.mark.parametrize("shape, groups", [((2, 6, 7, 5), 3), ((1, 8, 60, 60), 1), ((3, 6), 2), ((2, 4, 9), 4)])
def test_group_norm(kernel_set, shape, groups):
    x = normal(*shape) - 2
    constants = {"weight": normal(shape[1], seed=1), "bias": normal(shape[1], seed=2)}
    results = [
        norm_session("group_norm", shape, constants, threads, num_groups=groups, eps=1e-5).run(x) for threads in (1, 2)
    ]
    want, bound = normalised(x.reshape(shape[0], groups, -1), (2,), 1e-5)
    weight, bias = (constants[name].reshape(-1, *[1] * (len(shape) - 2)) for name in ("weight", "bias"))
    bound = np.broadcast_to(bound, want.shape).reshape(shape)
    assert np.all(abs(results[0] - want.reshape(shape) * weight - bias) <= bound * abs(weight) + 4 * EPS)
    assert results[0].tobytes() == results[1].tobytes()


@pytest.mark.parametrize(
    "op, args, message",
    [
        ("layer_norm", {"normalized_shape": [5]}, "normalized_shape is .5.; the input has shape .2, 6, 4."),
        ("layer_norm", {"normalized_shape": []}, "normalized_shape is"),
        ("group_norm", {"num_groups": 4}, "6 channels do not split into 4 groups"),
        ("group_norm", {"num_groups": 0}, "6 channels do not split into 0 groups"),
    ],
)
def test_normalisations_that_do_not_fit(op, args, message):
    with pytest.raises(ValueError, match=message):
        Session(
            Graph([TensorSpec("x", (2, 6, 4))], [TensorSpec("y", ())], [Node(op, "y", {"input": Ref("x"), **args})])
        )


@pytest.mark.parametrize("shape", [(1, 33), (5, 33), (2, 3, 33)])
def test_linear_in_a_session(shape):
    x, weight, bias = normal(*shape), normal(19, 33, seed=1), normal(19, seed=2)
    node = Node("linear", "y", {"input": Ref("x"), "weight": Ref("w"), "bias": Ref("b"), "activation": "relu"})
    graph = Graph([TensorSpec("x", shape)], [TensorSpec("y", (*shape[:-1], 19))], [node], {"w": weight, "b": bias})
    session = Session(graph)
    want = x.astype(np.float64) @ weight.T + bias
    bound = (33 + 3) * EPS * (abs(x) @ abs(weight.T) + abs(bias))
    assert np.all(abs(session.run(x) - np.maximum(want, 0)) <= bound)
    assert session.report().rows[-1].kernel.startswith("f32_ubsconv")


@pytest.mark.parametrize("shape", [(1, 33), (5, 33), (2, 3, 4, 33)])
@pytest.mark.parametrize("known_bias", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_sparse_linear(kernel_set, shape, known_bias, ordered):
    """On the kernels, and on the reference where the bias is not known at load."""
    x, dense, bias = normal(*shape), normal(21, 33, seed=1), normal(21, seed=2)
    for row in range(3):  # 11 of 33 blocks in each row; the last row has 5 channels
        dense[8 * row : 8 * row + 8, [i for i in range(33) if i % 3 != row]] = 0
    weight = UniformBlockSparse.from_dense(dense[:, :, None, None], 8)
    if ordered:
        dense, weight = reordered(np.random.default_rng(3), dense, weight)
    node = Node("linear", "y", {"input": Ref("x"), "weight": Ref("w"), "bias": Ref("b"), "activation": "silu"})
    inputs = [TensorSpec("x", (None, *shape[1:])), *([] if known_bias else [TensorSpec("b", (21,))])]
    constants = {"w": weight} | ({"b": bias} if known_bias else {})
    session = Session(Graph(inputs, [TensorSpec("y", (None, *shape[1:-1], 21))], [node], constants), 2)
    got = session.run([x] if known_bias else [x, bias])
    want = x.astype(np.float64) @ dense.T + bias
    bound = (33 + 8) * EPS * (abs(x) @ abs(dense.T) + abs(bias))
    assert np.all(abs(got - want / (1 + np.exp(-want))) <= 1.2 * bound)
    row = session.report().rows[-1]
    assert row.kernel.startswith("f32_ubsconv") == known_bias
    if known_bias:
        assert row.kept_share == 1 / 3 and row.macs == row.dense_macs // 3 and session.report().shares["sparse"] == 1


@pytest.mark.parametrize(
    "shape, groups, message",
    [((4, 3, 3, 3), 1, "kernel of 3x3"), ((4, 2, 1, 1), 2, "2 groups"), ((4, 3), 1, "shape .1, 4, 3.")],
)
def test_a_weight_that_is_none_of_a_linear_layer(shape, groups, message):
    dense = normal(*shape)
    weight = UniformBlockSparse.from_dense(dense, 2, groups) if len(shape) == 4 else dense[None]
    node = Node("linear", "y", {"input": Ref("x"), "weight": Ref("w")})
    graph = Graph([TensorSpec("x", (None, 3))], [TensorSpec("y", (None, 4))], [node], {"w": weight})
    with pytest.raises(ValueError, match=f"node 'y' .linear.: .*{message}"):
        Session(graph).run(normal(2, 3))
