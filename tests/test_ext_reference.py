"""Every reference operator against torch in float32, on signed inputs; erf and the fused activations in float64.

The bound is 64 roundings of float32 at the size of the result: the longest sums here have a few hundred terms.
Cases are (operator, arguments, the torch call); a test holds that no operator is without one.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from subp_ext.graph import ACTIVATIONS
from subp_ext.operators import OPERATORS
from subp_ext.operators.record import FUSED

torch = pytest.importorskip("torch")
F = torch.nn.functional
aten = torch.ops.aten
EPS = float(np.finfo(np.float32).eps)


def tensor(*shape, seed=0, scale=2.0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


X = tensor(2, 6, 9, 8)
Y = tensor(2, 6, 9, 8, seed=1)
P = np.abs(X) + 0.1
M = tensor(5, 7)
WHOLE = np.array([[3, -7, 2], [5, 4, -1]], np.int64)
POSITIVE = np.array([[3, 7, 2], [5, 4, 1]], np.int64)
BOOL = X > 0
C = tensor(6, seed=2)
V = np.abs(tensor(6, seed=3)) + 0.2

# (op, args, torch callable taking the same arguments as tensors; None looks up torch.ops.aten by name)
CASES: list[tuple] = []


def case(op, call=None, /, **args):
    CASES.append((op, args, call))


SMOOTH = ["sigmoid", "silu", "tanh", "erf", "mish", "selu", "elu", "gelu"]
for name in [*SMOOTH, "relu", "relu6", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"]:
    case(name, None, self=X)
case("gelu", None, self=X, approximate="tanh")
case("elu", None, self=X, alpha=0.7)
case("leaky_relu", None, self=X, negative_slope=0.2)
case("hardtanh", None, self=X, min_val=0.0, max_val=6.0)
case("celu", None, self=X)
case("celu", None, self=X, alpha=1.7)
case("threshold", None, self=X, threshold=0.1, value=20.0)
case("softplus", None, self=X * 10, beta=2.0)
case("prelu", None, self=X, weight=C)
case("prelu", None, self=X, weight=C[:1])
case("_prelu_kernel", None, self=X, weight=C.reshape(1, 6, 1, 1))
case("log_sigmoid", lambda self: F.logsigmoid(self), self=X)
case("glu", None, self=X, dim=1)

for name in ["exp", "expm1", "abs", "sin", "cos", "floor", "ceil", "trunc", "sign", "neg", "round", "square"]:
    case(name, None, self=X)
for name in ["log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal"]:
    case(name, None, self=P)
case("exp", None, self=WHOLE)
case("neg", None, self=WHOLE)
for name in ["add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "atan2"]:
    case(name, None, self=X, other=Y)
for name in ["add", "sub", "mul", "div", "rsub", "eq", "ne", "lt", "le", "gt", "ge"]:
    case(name, None, self=X, other=0.5)
for name in ("add", "sub", "rsub"):
    case(name, None, self=X, other=Y, alpha=2)
for name in ("add", "mul", "sub"):
    case(name, None, self=WHOLE, other=2)
    case(name, None, self=X, other=C.reshape(6, 1, 1))
case("mul", None, self=WHOLE, other=0.5)
case("div", None, self=WHOLE, other=2)
case("true_divide", None, self=X, other=Y)
case("div", None, self=X, other=Y, rounding_mode="floor")
case("div", None, self=X, other=0.3, rounding_mode="trunc")
case("div", None, self=WHOLE, other=2, rounding_mode="floor")
case("div", None, self=WHOLE, other=2, rounding_mode="trunc")
case("floor_divide", None, self=WHOLE, other=2)
case("remainder", None, self=WHOLE, other=3)
case("pow", None, self=X, exponent=2)
case("pow", None, self=P, exponent=0.5)
case("pow", lambda self, exponent: torch.pow(self, exponent), self=10000.0, exponent=X / 8)
case("pow", None, self=POSITIVE, exponent=0.5)
case("clamp", None, self=X, min=-0.5)
case("clamp", None, self=X, min=-0.5, max=1)
case("clip", None, self=X, max=1)
case("clamp_min", None, self=X, min=0.1)
case("clamp_max", None, self=X, max=0.1)
case("addcmul", None, self=C.reshape(6, 1, 1), tensor1=X, tensor2=Y, value=0.5)
case("addcdiv", None, self=X, tensor1=X, tensor2=P, value=0.5)
case("lerp", None, self=X, end=Y, weight=0.25)
case("where", lambda **k: torch.where(k["condition"], k["self"], k["other"]), condition=BOOL, self=X, other=Y)
case("where", lambda **k: torch.where(k["condition"], k["self"], k["other"]), condition=BOOL, self=X, other=0.0)
case("masked_fill", None, self=X, mask=BOOL, value=-math.inf)
for name in ("logical_not", "bitwise_not"):
    case(name, None, self=BOOL)
for name in ("logical_and", "logical_or", "bitwise_and", "bitwise_or"):
    case(name, None, self=BOOL, other=Y > 0)

for kernel, args in [
    (3, {}),
    (3, {"bias": C, "padding": [1, 1]}),
    (2, {"stride": [2, 3], "dilation": [2, 1]}),
    (3, {"groups": 3, "padding": 2, "stride": 2}),
    (4, {"padding": "same"}),
    (3, {"padding": "valid", "groups": 6}),
]:
    weight = tensor(6, 6 // args.get("groups", 1), kernel, kernel, seed=kernel)
    case("conv2d", lambda input, **kw: F.conv2d(input, **kw), input=X, weight=weight, **args)
case("conv1d", lambda input, **kw: F.conv1d(input, **kw), input=X[0], weight=tensor(6, 3, 5), groups=3, padding=[2])
case(
    "conv3d", lambda input, **kw: F.conv3d(input, **kw), input=X[None], weight=tensor(3, 2, 3, 3, 3), padding=[1, 0, 1]
)
T = tensor(6, 4, 3, 2, seed=5)
for args in [
    {},
    {"bias": tensor(4, seed=6), "stride": [2, 3], "padding": [1, 0], "output_padding": [1, 2]},
    {"padding": [3, 1]},
    {"stride": 2, "dilation": [2, 1], "output_padding": 1},
    {"groups": 2, "stride": 2},
]:
    case("conv_transpose2d", lambda input, **kw: F.conv_transpose2d(input, **kw), input=X, weight=T, **args)
LAYERS = tensor(1, 2, 6, 7, 8)
case("avg_pool3d", None, self=LAYERS, kernel_size=[3, 1, 1], stride=[1], padding=[1, 0, 0])
case("avg_pool3d", None, self=LAYERS, kernel_size=[2], stride=[1, 2, 2], padding=[1], count_include_pad=False)
case("avg_pool3d", None, self=LAYERS, kernel_size=[3], stride=[2], padding=[1], ceil_mode=True)
case("avg_pool3d", None, self=LAYERS, kernel_size=[3], divisor_override=5)
WINDOWS = {"kernel_size": [3, 2], "dilation": [1, 2], "padding": [1, 0], "stride": [2, 1]}
case("im2col", None, self=X, **WINDOWS)
case("im2col", lambda self, kernel_size: F.unfold(self, kernel_size), self=X, kernel_size=[2, 2])
case("col2im", None, self=tensor(2, 6 * 6, 5 * 6), output_size=[9, 8], **WINDOWS)
case("slice_scatter", None, self=X, src=Y[:, 1:5:2], dim=1, start=1, end=5, step=2)
case("slice_scatter", None, self=X, src=Y[..., -3:], dim=3, start=-3)
case("select_scatter", None, self=X, src=Y[:, 2], dim=1, index=2)
case("select_scatter", None, self=X, src=Y[:, -1], dim=1, index=-1)

case("full", None, size=[2, 3], fill_value=1.5)
case("full", None, size=[2], fill_value=2)
case("full", None, size=[2], fill_value=True)
for name in ("zeros", "ones"):
    case(name, None, size=[2, 3])
    case(name + "_like", None, self=WHOLE)
    case("new_" + name, None, self=X, size=[3])
case("full_like", None, self=X, fill_value=3)
case("new_full", None, self=X, size=[2], fill_value=3)
case("scalar_tensor", None, s=2.5)
case("arange", None, end=7)
case("arange", lambda start, end, step: torch.arange(start, end, step), start=1, end=9, step=3)
case("arange", None, end=3.5)
case("linspace", None, start=-1.0, end=2.0, steps=7)
case("eye", lambda n: torch.eye(n), n=3)
case("eye", lambda n, m: torch.eye(n, m), n=3, m=4)

case("linear", None, input=X, weight=tensor(5, 8), bias=tensor(5))
case("matmul", None, self=X, other=tensor(8, 3))
case("matmul", None, self=tensor(8), other=tensor(8, seed=4))
case("mm", None, self=M, mat2=tensor(7, 3))
case("bmm", None, self=X[0], mat2=Y[0].swapaxes(1, 2).copy())
case("addmm", None, self=tensor(3), mat1=M, mat2=tensor(7, 3), beta=0.5, alpha=2)
case("baddbmm", None, self=tensor(6, 9, 9), batch1=X[0], batch2=Y[0].swapaxes(1, 2).copy())
case("einsum", lambda equation, tensors: torch.einsum(equation, *tensors), equation="bchw,bdhw->bcd", tensors=[X, Y])
for name in ("softmax", "log_softmax"):
    case(name, lambda self, dim, name=name: getattr(torch, name)(self, dim), self=X, dim=1)
    case("_" + name, None, self=X, dim=-1, half_to_float=False)
Q, K, VALUE = tensor(2, 4, 5, 8), tensor(2, 4, 7, 8), tensor(2, 4, 7, 3)
for extra in (
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"attn_mask": tensor(5, 7)},
    {"attn_mask": np.tri(5, 7, 1, dtype=bool)},
):
    case("scaled_dot_product_attention", None, query=Q, key=K, value=VALUE, **extra)
case("scaled_dot_product_attention", None, query=Q, key=K[:, :2].copy(), value=VALUE[:, :2].copy(), enable_gqa=True)

NORM = {"input": X, "weight": C, "bias": C[::-1].copy()}
RUNNING = {"running_mean": C / 2, "running_var": V, "momentum": 0.1, "eps": 1e-3}
case("batch_norm", lambda **k: aten.batch_norm(**k), **NORM, **RUNNING, training=False, cudnn_enabled=False)
case(
    "_native_batch_norm_legit_no_training",
    lambda **k: aten._native_batch_norm_legit_no_training(**k)[:1],
    **NORM,
    **RUNNING,
)
case(
    "_native_batch_norm_legit",
    lambda **k: aten._native_batch_norm_legit.no_stats(**k),
    input=X,
    weight=None,
    bias=None,
    training=True,
    momentum=0.0,
    eps=1e-6,
)
case("native_batch_norm", lambda **k: aten.native_batch_norm(**k)[:1], **NORM, **RUNNING, training=False)
LAST = {"normalized_shape": [9, 8], "weight": X[0, 0].copy(), "bias": Y[0, 0].copy(), "eps": 1e-5}
case("layer_norm", None, input=X, **LAST)
case("native_layer_norm", None, input=X, **LAST)
case("group_norm", None, num_groups=3, **NORM)
case("native_group_norm", None, **NORM, N=2, C=6, HxW=72, group=2, eps=1e-5)
case(
    "instance_norm",
    None,
    **NORM,
    running_mean=None,
    running_var=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
    cudnn_enabled=False,
)
case("rms_norm", None, input=X, normalized_shape=[8], weight=tensor(8))

POOLS = [
    {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]},
    {"kernel_size": [3, 2]},
    {"kernel_size": [2], "stride": [2], "ceil_mode": True},
    {"kernel_size": [3], "stride": [2], "padding": [1], "ceil_mode": True},
    {"kernel_size": [2, 3], "stride": [3, 2], "padding": [1, 0], "ceil_mode": True},
]
for args in POOLS:
    case("max_pool2d", None, self=X, **args)
    case("max_pool2d_with_indices", None, self=X, **args)
    for include in (True, False):
        case("avg_pool2d", None, self=X, **args, count_include_pad=include)
case("max_pool2d", None, self=X, kernel_size=[3], stride=[1], dilation=[2])
case("max_pool2d_with_indices", None, self=X, kernel_size=[3], stride=[2], padding=[1], dilation=[2])
case("avg_pool2d", None, self=X, kernel_size=[2, 2], divisor_override=3)
case("avg_pool1d", None, self=X[0], kernel_size=[3], stride=[2], padding=[1])
for size in ([1, 1], [3, 5], [9, 8]):
    case("adaptive_avg_pool2d", None, self=X, output_size=size)
    case("adaptive_max_pool2d", None, self=X, output_size=size)
case("_adaptive_avg_pool2d", None, self=X, output_size=[2, 2])

for name in ("mean", "sum", "amax", "amin"):
    case(name, None, self=X, dim=[2, 3], keepdim=True)
    case(name, None, self=X, dim=[-1])
case("mean", lambda self: self.mean(), self=X)
case("sum", lambda self: self.sum(), self=WHOLE)
case("sum", lambda self: self.sum(), self=BOOL)
case("prod", lambda self, dim: self.prod(dim), self=X, dim=2)
for name in ("max", "min"):
    case(name, lambda self, name=name: getattr(self, name)(), self=X)
    case(name, lambda self, dim, name=name: tuple(getattr(self, name)(dim)), self=X, dim=1)
case("argmax", None, self=X, dim=1)
case("var", None, self=X, dim=[1], correction=0, keepdim=True)
case("std", None, self=X, dim=[1, 2], correction=1)
case("var", lambda self, dim, unbiased: torch.var(self, dim, unbiased=unbiased), self=X, dim=[1], unbiased=False)
case("var_mean", None, self=X, dim=[2, 3], correction=0)
for order in (2, 1, 0, 3.0, math.inf, -math.inf):
    case("linalg_vector_norm", None, self=X, ord=order, dim=[2, 3], keepdim=True)
case("linalg_vector_norm", None, self=X)
case("cumsum", None, self=X, dim=2)
case("cumsum", None, self=BOOL, dim=2, dtype="float32")

for name, extra in (("nearest", {}), ("bilinear", {"align_corners": False}), ("bilinear", {"align_corners": True}),
                    ("bicubic", {"align_corners": False}), ("bicubic", {"align_corners": True})):  # fmt: skip
    vec = getattr(aten, f"upsample_{name}2d").vec
    op = f"upsample_{name}2d"
    case(op, lambda vec=vec, **k: vec(**k), input=X, output_size=[13, 20], scale_factors=None, **extra)
    case(op, lambda vec=vec, **k: vec(**k), input=X, output_size=[4, 5], scale_factors=None, **extra)
    case(op, lambda vec=vec, **k: vec(**k), input=X, output_size=None, scale_factors=[2.0, 1.7], **extra)
    case(op, None, self=X, output_size=[18, 16], **extra)
exact = aten._upsample_nearest_exact2d.vec
case("_upsample_nearest_exact2d", lambda **k: exact(**k), input=X, output_size=[13, 20], scale_factors=None)
case("_upsample_nearest_exact2d", lambda **k: exact(**k), input=X, output_size=None, scale_factors=[2.0, 0.6])
GRID = tensor(2, 4, 7, 2, scale=0.8)
for modes in itertools.product(range(3), range(3), (False, True)):
    names = zip(("interpolation_mode", "padding_mode", "align_corners"), modes, strict=True)
    case("grid_sampler", None, input=X, grid=GRID, **dict(names))
case("grid_sampler_2d", None, input=X, grid=GRID, interpolation_mode=0, padding_mode=1, align_corners=False)
for aligned in (False, True):
    theta = tensor(2, 2, 3)
    case("affine_grid_generator", None, theta=theta, size=[2, 3, 4, 5], align_corners=aligned)
case("topk", None, self=X, k=3)
case("topk", None, self=X, k=2, dim=1, largest=False)
case("topk", None, self=np.where(np.arange(8) == 3, np.float32(np.nan), X), k=8, dim=-1)
case("topk", None, self=WHOLE, k=1, dim=0)
case("pixel_shuffle", None, self=tensor(2, 12, 3, 4), upscale_factor=2)
case("pixel_unshuffle", None, self=tensor(2, 3, 6, 4), downscale_factor=2)
for name in ("channel_shuffle", "native_channel_shuffle"):
    case(name, None, self=X, groups=3)

for name, key in (("view", "size"), ("_unsafe_view", "size"), ("reshape", "shape")):
    case(name, None, self=X, **{key: [2, -1, 8]})
case("flatten", lambda self, start_dim: torch.flatten(self, start_dim), self=X, start_dim=1)
case("flatten", lambda **k: torch.flatten(k["self"], k["start_dim"], k["end_dim"]), self=X, start_dim=1, end_dim=2)
case("unflatten", lambda self, dim, sizes: self.unflatten(dim, sizes), self=X, dim=1, sizes=[2, 3])
case("squeeze", lambda self: self.squeeze(), self=X[:1, :, :1].copy())
case("squeeze", None, self=X[:1, :, :1].copy(), dim=2)
case("squeeze", None, self=X[:1, :, :1].copy(), dim=[0, 1])
case("unsqueeze", None, self=X, dim=-1)
case("unsqueeze", None, self=X, dim=1)
case("expand", None, self=C.reshape(6, 1), size=[2, -1, 4])
case("expand_as", None, self=X[:1].copy(), other=X)
case("repeat", None, self=M, repeats=[2, 1, 3])
case("repeat_interleave", lambda self, repeats, dim: self.repeat_interleave(repeats, dim), self=M, repeats=2, dim=1)
case("permute", None, self=X, dims=[0, 2, 3, 1])
case("transpose", None, self=X, dim0=1, dim1=-1)
case("t", None, self=M)
case("numpy_T", None, self=M)
for name in ("contiguous", "clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "detach_copy"):
    case(name, lambda self: self, self=X)
for name in ("dropout", "feature_dropout", "alpha_dropout"):
    case(name, None, input=X, p=0.5, train=False)
case("native_dropout", None, input=X, p=0.5, train=False)
case("_to_copy", lambda self, dtype: self.to(getattr(torch, dtype)), self=X, dtype="int64")
case("_to_copy", lambda self, dtype: self.to(getattr(torch, dtype)), self=BOOL, dtype="float32")
case("to", lambda self, dtype: self.to(getattr(torch, dtype)), self=WHOLE, dtype="float32")
case("type_as", None, self=WHOLE, other=X)
for name in ("cat", "concat"):
    case(name, lambda tensors, dim: torch.cat(tensors, dim), tensors=[X, Y[:, :2].copy()], dim=1)
case("cat", None, tensors=[np.zeros(0, np.float32), X], dim=1)
case("stack", None, tensors=[X, Y], dim=1)
case("split", None, self=X, split_size=4, dim=1)
case("split", lambda self, split_size, dim: torch.split(self, split_size, dim), self=X, split_size=[4, 2], dim=1)
case("split_with_sizes", None, self=X, split_sizes=[1, 2, 3], dim=1)
for count in (2, 4, 5):
    case("chunk", None, self=X, chunks=count, dim=1)
case("unbind", None, self=X, dim=1)
case("getitem", lambda self, index: self[index], self=[X, Y], index=1)
for args in (
    {"dim": 1, "start": 1, "end": -1},
    {"dim": 3, "step": 2},
    {"dim": 2, "start": -3, "end": 9223372036854775807},
):
    case("slice", None, self=X, **args)
case("select", None, self=X, dim=1, index=-1)
case("select", None, self=C, dim=0, index=2)
case("narrow", None, self=X, dim=2, start=-4, length=3)
INDEX = np.array([3, 0, 3])
case("index_select", None, self=X, dim=1, index=INDEX)
case("index", lambda self, indices: aten.index(self, indices), self=X, indices=[None, INDEX])
case("index", lambda self, indices: aten.index(self, indices), self=X, indices=[None, None, INDEX, INDEX])
case("index", lambda self, indices: aten.index(self, indices), self=X, indices=[BOOL])
case("gather", None, self=M, dim=1, index=np.array([[1, 6], [0, 0], [2, 3]]))
case("embedding", None, weight=M, indices=np.array([[1, 4], [0, 0]]))
case("unfold", None, self=X, dimension=2, size=4, step=2)
case("pad", None, self=X, pad=[1, 2, 0, 3])
case("pad", None, self=X, pad=[1, -2, -1, 3], value=-1.5)
for mode in ("reflect", "replicate", "circular"):
    case("pad", None, self=X, pad=[1, 2, 3, 0], mode=mode)
    if mode != "circular":  # torch crops before it wraps, or after it, by the version
        case("pad", None, self=X, pad=[-2, 1, 2, -1], mode=mode)
case("constant_pad_nd", None, self=X, pad=[1, 2], value=0.5)
case("reflection_pad2d", None, self=X, padding=[1, 2, 3, 0])
case("reflection_pad1d", None, self=X[0], padding=[1, 2])
case("replication_pad2d", None, self=X, padding=[1, 2, 3, 0])
case("replication_pad1d", None, self=X[0], padding=[1, 2])
case("roll", None, self=X, shifts=[2, -3], dims=[2, 3])
case("roll", None, self=M, shifts=[3])
case("flip", None, self=X, dims=[2, 3])
case("tril", None, self=M, diagonal=1)
case("triu", None, self=M)
case("meshgrid", lambda tensors, indexing: torch.meshgrid(*tensors, indexing=indexing), tensors=[C, V], indexing="ij")
case("sym_size", lambda self, dim: self.shape[dim], self=X, dim=2)
case("sym_max", lambda self, other: torch.sym_max(self, other), self=3, other=7)
case("sym_min", lambda self, other: torch.sym_min(self, other), self=3, other=7)
case("sym_ceil", lambda self: math.ceil(self), self=-3.5)
case("sym_floor", lambda self: math.floor(self), self=-3.5)
case("sym_trunc", lambda self: torch.sym_int(self), self=-3.5)
case("sym_float", lambda self: torch.sym_float(self), self=3)
case("numel", lambda self: self.numel(), self=X)
case("sym_numel", lambda self: self.numel(), self=X)

# Operators under a second name from operator.* on sizes, checks without a result, and those of the runtime's own, which
# test_ext_quantization.py holds against torch and test_ext_int8_operators.py against integers.
WITHOUT_CASE = {
    "lookup",
    "quantize",
    "dequantize",
    "cast",
    "truediv",
    "mod",
    "_assert_tensor_metadata",
    "_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


def to_torch(value):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, list) and any(isinstance(v, np.ndarray) for v in value):
        return [to_torch(v) for v in value]
    return value


def call_torch(op, args, call):
    converted = {name: to_torch(value) for name, value in args.items()}
    if "dtype" in converted and call is None:
        converted["dtype"] = getattr(torch, converted["dtype"])
    if call is not None:
        return call(**converted)
    # `self` cannot be a keyword of torch.ops; it is always the first argument.
    first = [converted.pop("self")] if "self" in converted else []
    return getattr(aten, op)(*first, **converted)


def check_same(got, want):
    if isinstance(want, (tuple, list)):
        assert len(got) >= len(want)
        for g, w in zip(got, want, strict=False):
            check_same(g, w)
        return
    if isinstance(want, (bool, int, float)):
        assert type(got) is type(want) and got == want
        return
    want = want.numpy()
    assert isinstance(got, np.ndarray) and got.dtype == want.dtype and got.shape == want.shape, (got.dtype, want.dtype)
    if want.dtype.kind != "f":
        assert np.array_equal(got, want)
        return
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True)
    assert np.all(abs(got[finite] - want[finite]) <= 64 * EPS * max(1.0, abs(want[finite]).max(initial=0)))


@pytest.mark.parametrize("op, args, call", CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_operator_matches_torch(op, args, call):
    before = {name: value.copy() for name, value in args.items() if isinstance(value, np.ndarray)}
    with np.errstate(divide="ignore"):
        check_same(OPERATORS[op].reference(**args), call_torch(op, args, call))
    for name, value in before.items():
        assert np.array_equal(args[name], value, equal_nan=value.dtype.kind == "f"), f"{op} changed its argument {name}"


def test_every_operator_has_a_case():
    assert set(OPERATORS) - {case[0] for case in CASES} == WITHOUT_CASE


def test_numbers_alone_stay_numbers():
    """Sizes computed in the graph must remain integers."""
    for op, other, want in (("add", 3, 10), ("sub", 3, 4), ("mul", 3, 21), ("floor_divide", 2, 3), ("mod", 4, 3)):
        got = OPERATORS[op].reference(self=7, other=other)
        assert type(got) is int and got == want
    assert OPERATORS["truediv"].reference(self=7, other=2) == 3.5


def test_storage_arguments_are_ignored():
    got = OPERATORS["zeros"].reference(size=[2], dtype=None, layout=None, device=None, pin_memory=False)
    assert got.dtype == np.float32
    assert OPERATORS["clone"].reference(self=X, memory_format=None) is X
    assert OPERATORS["_assert_tensor_metadata"].reference(a=X, size=None, stride=None, dtype=None) is None


def test_erf_is_good_to_the_last_bits():
    x = np.concatenate([np.linspace(-7, 7, 20001), [0.0, -0.0, 2.5, np.inf, -np.inf, 1e-30]])
    want = np.array([math.erf(v) for v in x])
    assert np.all(abs(OPERATORS["erf"].reference(self=x) - want) <= 1e-13 * abs(want))
    assert np.isnan(OPERATORS["erf"].reference(self=np.array([np.nan]))).all()


def test_every_fused_activation_has_a_reference():
    assert tuple(FUSED) == ACTIVATIONS


def test_fused_parts_of_conv2d_and_linear():
    weight, residual = tensor(6, 6, 3, 3), tensor(2, 6, 9, 8, seed=5)
    plain = OPERATORS["conv2d"].reference(input=X, weight=weight, bias=C, padding=[1, 1])
    fused = OPERATORS["conv2d"].reference(
        input=X, weight=weight, bias=C, padding=[[1, 1], [1, 1]], residual=residual, activation="silu"
    )
    assert np.array_equal(fused, OPERATORS["silu"].reference(self=plain + residual))
    linear = OPERATORS["linear"].reference(input=X, weight=tensor(5, 8), activation="relu")
    assert np.array_equal(linear, np.maximum(X @ tensor(5, 8).T, 0))
