"""What an operator will return, without computing it: memory is planned by it, and absurd sizes are refused by it.

`RULES[op](**args)` takes the arguments of the reference, of which no element is read, and returns one `Spec` or a list
of them. Three groups need no rule of their own: `VIEWS` return parts of what they are given; `ELEMENTWISE` broadcast;
`SHRINKING` return no more than they are given, so that it is cheap enough to run them once on zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from subp_ext.geometry import MOST, resolve_padding
from subp_ext.reference import REFERENCE
from subp_ext.reference.pooling import pool_geometry
from subp_ext.reference.registry import STORAGE_ARGS, axes

Spec = tuple[tuple[int, ...], np.dtype]

RULES: dict[str, Callable[..., Any]] = {}

VIEWS = frozenset(
    [
        "alias", "alpha_dropout", "chunk", "clone", "contiguous", "detach", "detach_copy", "dropout", "expand",
        "expand_as", "feature_dropout", "flatten", "flip", "getitem", "lift_fresh", "lift_fresh_copy", "narrow",
        "numpy_T", "permute", "reshape", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
        "unbind", "unflatten", "unfold", "unsqueeze", "view", "_unsafe_view",
    ]
)  # fmt: skip

ELEMENTWISE = frozenset(
    [
        "abs", "add", "addcdiv", "addcmul", "atan2", "bitwise_and", "bitwise_not", "bitwise_or", "ceil",
        "clamp", "clamp_max", "clamp_min", "clip", "cos", "div", "elu", "eq", "erf", "exp", "expm1", "floor",
        "floor_divide", "full_like", "ge", "gelu", "gt", "hardsigmoid", "hardswish", "hardtanh", "le",
        "leaky_relu", "lerp", "log", "log1p", "log2", "log_sigmoid", "logical_and", "logical_not", "logical_or",
        "lt", "masked_fill", "maximum", "minimum", "mish", "mod", "mul", "ne", "neg", "ones_like", "pow",
        "reciprocal", "relu", "relu6", "remainder", "round", "rsqrt", "rsub", "selu", "sigmoid", "sign", "silu",
        "sin", "softplus", "sqrt", "square", "sub", "tanh", "to", "_to_copy", "true_divide", "truediv", "trunc",
        "type_as", "where", "zeros_like",
    ]
)  # fmt: skip

SHRINKING = frozenset(
    [
        "adaptive_max_pool2d", "argmax", "channel_shuffle", "cumsum", "gather", "glu", "linalg_vector_norm",
        "max", "min", "native_channel_shuffle", "native_dropout", "amax", "amin", "mean", "pixel_shuffle",
        "pixel_unshuffle", "prod", "roll", "select_scatter", "slice_scatter", "std", "sum", "tril", "triu",
        "var", "var_mean",
    ]
)  # fmt: skip

# Results that say something about sizes alone, or nothing at all.
NUMBERS = frozenset(
    [
        "sym_size", "sym_numel", "numel", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range",
        "sym_constrain_range_for_size",
    ]
)  # fmt: skip

# Parts that one node may cut a tensor into.
MOST_PARTS = 1 << 14

# Pairs of elements that an operator may relate to each other in memory of its own.
MOST_PAIRS = 1 << 30


def infer(op: str, args: dict[str, Any]) -> Spec | list[Spec]:
    """Returns shape and dtype of each result of an operator that is neither of `VIEWS` nor of `NUMBERS`.

    Args:
        op: a name in `REFERENCE`.
        args: those of the reference, arrays of the right shape and dtype among them.

    Raises:
        ValueError, TypeError, IndexError, KeyError: the arguments do not fit each other.
    """
    args = {name: value for name, value in args.items() if name not in STORAGE_ARGS}
    if op in ELEMENTWISE:
        return _elementwise(op, args)
    if op in SHRINKING:
        return _dry_run(op, args)
    return RULES[op](**args)


def arrays_in(value: Any) -> list[np.ndarray]:
    """Every array in an argument, nested ones too."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in arrays_in(item)]
    return [array for item in value.values() for array in arrays_in(item)] if isinstance(value, dict) else []


def check_parts(op: str, args: dict[str, Any]) -> None:
    """Refuses to cut a tensor into more pieces than a network has any use for.

    Raises:
        ValueError: it would.
    """
    if op in ("split", "chunk", "unbind"):
        (dim,), size = axes(args.get("dim", 0), args["self"].ndim), args.get("split_size", 1)
        count = args["chunks"] if op == "chunk" else args["self"].shape[dim] / (size if isinstance(size, int) else 1)
        if count > MOST_PARTS:
            raise ValueError(f"{args['self'].shape[dim]} elements in pieces of {size}: more than {MOST_PARTS} pieces")


def _like(array: np.ndarray) -> Spec:
    return array.shape, array.dtype


def _small(value: Any) -> Any:
    """The argument with one element in place of every array."""
    if isinstance(value, np.ndarray):
        return np.ones((1,) * value.ndim, value.dtype)
    return [_small(item) for item in value] if isinstance(value, (list, tuple)) else value


def _elementwise(op: str, args: dict[str, Any]) -> Spec:
    with np.errstate(all="ignore"):
        result = np.asarray(REFERENCE[op](**{name: _small(value) for name, value in args.items()}))
    # The other tensor of type_as and the like lends its dtype alone.
    taking = ("self",) if op == "type_as" else args
    return np.broadcast_shapes(*(a.shape for name in taking for a in arrays_in(args[name]))), result.dtype


def _zeros(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.broadcast_to(np.zeros((), value.dtype), value.shape)
    return [_zeros(item) for item in value] if isinstance(value, (list, tuple)) else value


def _dry_run(op: str, args: dict[str, Any]) -> Spec | list[Spec]:
    if op == "adaptive_max_pool2d" and math.prod(_pair(args["output_size"])) > args["self"].size:
        raise ValueError(f"output_size {args['output_size']} is larger than the input {args['self'].shape}")
    with np.errstate(all="ignore"):
        result = REFERENCE[op](**{name: _zeros(value) for name, value in args.items()})
    return [_like(part) for part in result] if isinstance(result, (list, tuple)) else _like(result)


def _rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values[0], values[-1]


def _sizes(values: Sequence[Any], most: int | None = None) -> tuple[int, ...]:
    """A shape from an argument, or what windows are described by, with a bound that keeps their sums in range.

    Raises:
        ValueError: one of the sizes is negative, not a whole number, or more than `most`.
    """
    sizes = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    if not all(isinstance(size, (int, np.integer)) and size >= 0 and (most is None or size <= most) for size in sizes):
        expected = "at least 0" if most is None else f"0 to {most}"
        raise ValueError(f"sizes are {values}; expected whole numbers of {expected}")
    return tuple(int(size) for size in sizes)


@_rule("prelu", "_prelu_kernel", "rms_norm")
def _same(self: Any = None, input: Any = None, **rest: Any) -> Spec:
    return _like(input if self is None else self)


_rule("batch_norm", "layer_norm", "group_norm", "instance_norm")(_same)


@_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(self: Any, dtype: str | None = None, **rest: Any) -> Spec:
    return self.shape, np.dtype(dtype or self.dtype)


@_rule("_native_batch_norm_legit_no_training")
def _batch_norm_inference(input: Any, **rest: Any) -> list[Spec]:
    return [_like(input), ((0,), input.dtype), ((0,), input.dtype)]


@_rule("_native_batch_norm_legit", "native_batch_norm")
def _batch_norm(input: Any, running_mean: Any = None, training: bool = True, **rest: Any) -> list[Spec]:
    statistics = (0,) if not training and running_mean is not None else (input.shape[1],)
    return [_like(input), (statistics, input.dtype), (statistics, input.dtype)]


@_rule("native_layer_norm")
def _layer_norm(input: Any, normalized_shape: Any, **rest: Any) -> list[Spec]:
    kept = input.shape[: input.ndim - len(normalized_shape)] + (1,) * len(normalized_shape)
    return [_like(input), (kept, input.dtype), (kept, input.dtype)]


@_rule("native_group_norm")
def _group_norm(input: Any, N: int, group: int, **rest: Any) -> list[Spec]:
    return [_like(input), ((N, group), input.dtype), ((N, group), input.dtype)]


@_rule("matmul", "mm", "bmm")
def _matmul(self: Any, other: Any = None, mat2: Any = None) -> Spec:
    b = mat2 if other is None else other
    rows, columns = self.shape[-2:-1], b.shape[-1:] if b.ndim > 1 else ()
    if self.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
        raise ValueError(f"matrices {list(self.shape)} and {list(b.shape)} do not fit")
    return (*np.broadcast_shapes(self.shape[:-2], b.shape[:-2]), *rows, *columns), np.result_type(self, b)


@_rule("addmm")
def _addmm(self: Any, mat1: Any, mat2: Any, **rest: Any) -> Spec:
    return np.broadcast_shapes(self.shape, _matmul(mat1, mat2)[0]), np.result_type(self, mat1)


@_rule("baddbmm")
def _baddbmm(self: Any, batch1: Any, batch2: Any, **rest: Any) -> Spec:
    return _addmm(self, batch1, batch2)


@_rule("linear")
def _linear(input: Any, weight: Any, **rest: Any) -> Spec:
    # A sparse weight has the shape of a 1x1 convolution's.
    return _matmul(input, (weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) else weight).T)


@_rule("einsum")
def _einsum(equation: str, tensors: list[Any], **rest: Any) -> Spec:
    equation = equation.replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if "." in equation or not arrow or len(terms.split(",")) != len(tensors):
        raise ValueError(f"einsum equation {equation!r} is not supported: it needs '->' and no '...'")
    sizes: dict[str, int] = {}
    for letters, tensor in zip(terms.split(","), tensors, strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"einsum {equation!r}: {letter!r} is both {sizes[letter]} and {size}")
    if math.prod(sizes.values()) > MOST_PAIRS:
        raise ValueError(f"einsum {equation!r} with sizes {sizes} may need {math.prod(sizes.values())} numbers")
    return tuple(sizes[letter] for letter in result), np.result_type(*tensors)


@_rule("scaled_dot_product_attention")
def _attention(query: Any, key: Any, value: Any, enable_gqa: bool = False, **rest: Any) -> Spec:
    lead = query.shape[:-2] if enable_gqa else np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    if math.prod(lead) * query.shape[-2] * key.shape[-2] > MOST_PAIRS:
        raise ValueError(f"{math.prod(lead)} heads of {query.shape[-2]} queries and {key.shape[-2]} keys are too many")
    return (*lead, query.shape[-2], value.shape[-1]), query.dtype


@_rule("conv1d", "conv2d", "conv3d")
def _convolution(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **fused: Any,
) -> Spec:
    shape = weight.shape
    nd = len(shape) - 2
    stride, dilation = (tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in (stride, dilation))
    stride, dilation = (_sizes(v * nd if len(v) == 1 else v, MOST) for v in (stride, dilation))
    if padding in ("same", "valid"):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, shape[2:], strict=True)]
    elif nd == 2:
        totals = [sum(p) for p in resolve_padding(padding, shape[2:], stride, dilation)]
    else:
        pads = tuple(padding) if isinstance(padding, (list, tuple)) else (padding,)
        totals = [2 * p for p in _sizes(pads * nd if len(pads) == 1 else pads)]
    if input.ndim != nd + 2 or input.shape[1] != shape[1] * groups or shape[0] % groups:
        raise ValueError(f"input {list(input.shape)} and weight {list(shape)} in {groups} groups do not fit")
    out = []
    for size, total, kernel, step, spread in zip(input.shape[2:], totals, shape[2:], stride, dilation, strict=True):
        if size + total < spread * (kernel - 1) + 1 or total > MOST_PADDING * (size + kernel * spread):
            raise ValueError(f"{size} pixels, {total} zeros and a kernel of {kernel}, {spread} apart, do not fit")
        out.append((size + total - spread * (kernel - 1) - 1) // step + 1)
    return (input.shape[0], shape[0], *out), input.dtype


@_rule("conv_transpose2d")
def _transposed(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Spec:
    parts = (_sizes(_pair(value)) for value in (stride, padding, output_padding, dilation))
    out = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * p + extra
        for n, k, s, p, extra, d in zip(input.shape[2:], weight.shape[2:], *parts, strict=True)
    ]
    return (input.shape[0], weight.shape[1] * groups, *_sizes(out)), input.dtype


@_rule("im2col")
def _im2col(self: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Spec:
    kernel = _sizes(_pair(kernel_size))
    template = np.broadcast_to(np.zeros((), self.dtype), (1, self.shape[1], *kernel))
    pairs = [list(_pair(value)) for value in (stride, padding, dilation)]
    shape, dtype = _convolution(self, template, None, *pairs)
    return (self.shape[0], self.shape[1] * math.prod(kernel), math.prod(shape[2:])), dtype


@_rule("col2im")
def _col2im(self: Any, output_size: Any, kernel_size: Any, padding: Any = 0, **window: Any) -> Spec:
    _sizes([*_pair(output_size), *_pair(kernel_size), *_pair(padding)])
    taps = math.prod(_pair(kernel_size))
    if max(*_pair(kernel_size), *_pair(padding)) > max(_pair(output_size)) or not taps or self.shape[1] % taps:
        raise ValueError(f"{list(self.shape)} are no windows of {kernel_size} of an image of {output_size}")
    return (self.shape[0], self.shape[1] // taps, *_pair(output_size)), self.dtype


# Zeros around an input, against its own size and the kernel's extent.
MOST_PADDING = 64


# Of pooling, beyond the size of its input.
WIDEST_WINDOW = 64


def _pool(self: Any, **window: Any) -> tuple[int, ...]:
    geometry = check_pool(self.shape[-2:], **window)
    return (*self.shape[:-2], *geometry.out)


def check_pool(size: Sequence[int], **window: Any) -> Any:
    """As `pool_geometry`, with sizes checked.

    Raises:
        ValueError: windows that do not fit the input, or that could lie outside of it.
    """
    parts = {name: _pair(window.get(name, default)) for name, default in (("padding", 0), ("dilation", 1))}
    parts["kernel_size"] = _pair(window["kernel_size"])
    strides = window.get("stride") or parts["kernel_size"]
    for n, k, s, p, d in zip(
        size, parts["kernel_size"], _pair(strides), parts["padding"], parts["dilation"], strict=True
    ):
        _sizes([n, k, s, p, d], MOST)
        # Windows without gaps hold a pixel, however few there are; networks have them up to 13 wide. Taps apart from
        # each other could all lie outside, and only hostile files have windows far wider than the input.
        narrow = d == 1 and k <= WIDEST_WINDOW
        room = n + 2 * p + (s - 1 if window.get("ceil_mode") and narrow else 0)  # the only window may hang over
        if min(n, k, s, d) < 1 or 2 * p > k or d * (k - 1) + 1 > room or (p > n and not narrow):
            raise ValueError(f"{n} pixels in windows of {k}, {d} apart, with stride {s} and {p} zeros, do not fit")
    return pool_geometry((size[0], size[1]), **window)


@_rule("max_pool2d", "avg_pool2d")
def _pool2d(self: Any, divisor_override: Any = None, **window: Any) -> Spec:
    return _pool(self, **window), self.dtype


@_rule("max_pool2d_with_indices")
def _pool2d_with_indices(self: Any, **window: Any) -> list[Spec]:
    return [(_pool(self, **window), self.dtype), (_pool(self, **window), np.dtype(np.int64))]


@_rule("avg_pool1d")
def _pool1d(self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, **rest: Any) -> Spec:
    size, step, zeros = _pair(kernel_size)[0], _pair(stride or kernel_size)[0], _pair(padding)[0]
    window = {"kernel_size": (1, size), "stride": (1, step), "padding": (0, zeros), **rest}
    shape = _pool(np.broadcast_to(np.zeros((), self.dtype), (*self.shape[:-1], 1, self.shape[-1])), **window)
    return (*shape[:-2], shape[-1]), self.dtype


@_rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive(self: Any, output_size: Any) -> Spec:
    out = tuple(own if size is None else size for own, size in zip(self.shape[-2:], _pair(output_size), strict=True))
    if any(size > 64 * own for own, size in zip(self.shape[-2:], _sizes(out), strict=True)) or 0 in self.shape:
        raise ValueError(f"output_size {output_size} does not fit the input {list(self.shape)}")
    return (*self.shape[:-2], *_sizes(out)), self.dtype


@_rule("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _upsample(
    input: Any = None,
    output_size: Any = None,
    scale_factors: Any = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
    self: Any = None,
    **rest: Any,
) -> Spec:
    x = self if input is None else input
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    out = output_size if output_size is not None else [int(n * s) for n, s in zip(x.shape[-2:], scales, strict=True)]
    # The reference interpolates with a matrix per axis.
    large = any(n * size > MOST_PAIRS for n, size in zip(x.shape[-2:], out, strict=False))
    if 0 in x.shape or len(out) != 2 or min(_sizes(out)) < 1 or large:
        raise ValueError(f"sizes {out} do not fit the input {list(x.shape)}")
    return (*x.shape[:-2], *_sizes(out)), x.dtype


@_rule("cat", "concat")
def _cat(tensors: list[Any], dim: int = 0) -> Spec:
    joined = [x for x in tensors if x.shape != (0,)] or tensors
    (axis,) = axes(dim, joined[0].ndim)
    rests = {(*x.shape[:axis], *x.shape[axis + 1 :]) for x in joined}
    if len(rests) != 1:
        raise ValueError(f"tensors of shapes {[list(x.shape) for x in joined]} do not join along dimension {dim}")
    shape = (*joined[0].shape[:axis], sum(x.shape[axis] for x in joined), *joined[0].shape[axis + 1 :])
    return shape, np.result_type(*tensors)


@_rule("stack")
def _stack(tensors: list[Any], dim: int = 0) -> Spec:
    shape = list(tensors[0].shape)
    if any(list(x.shape) != shape for x in tensors):
        raise ValueError(f"tensors of shapes {[list(x.shape) for x in tensors]} do not stack")
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tuple(shape), np.result_type(*tensors)


@_rule("repeat")
def _repeat(self: Any, repeats: Any) -> Spec:
    counts = _sizes(repeats)
    rank = max(len(counts), self.ndim)
    counts, own = (1,) * (rank - len(counts)) + counts, (1,) * (rank - self.ndim) + self.shape
    return tuple(n * size for n, size in zip(counts, own, strict=True)), self.dtype


@_rule("repeat_interleave")
def _interleave(self: Any, repeats: Any, dim: int | None = None, output_size: Any = None) -> Spec:
    shape = (self.size,) if dim is None else self.shape
    (axis,) = axes(dim or 0, len(shape))
    (count,) = _sizes(repeats)
    return (*shape[:axis], shape[axis] * count, *shape[axis + 1 :]), self.dtype


@_rule("select")
def _select(self: Any, dim: int, index: int) -> Spec:
    (axis,) = axes(dim, self.ndim)
    if not -self.shape[axis] <= index < self.shape[axis]:
        raise ValueError(f"index {index} is out of bounds for dimension {dim} of {list(self.shape)}")
    return (*self.shape[:axis], *self.shape[axis + 1 :]), self.dtype


@_rule("index_select")
def _index_select(self: Any, dim: int, index: Any) -> Spec:
    (axis,) = axes(dim, self.ndim)
    return (*self.shape[:axis], index.size, *self.shape[axis + 1 :]), self.dtype


@_rule("index")
def _index(self: Any, indices: list[Any]) -> Spec:
    if any(i is not None and i.dtype.kind == "b" for i in indices):
        raise ValueError("indexing with a mask that depends on the input has no size of its own")
    source = np.broadcast_to(np.zeros((), self.dtype), self.shape)
    given = [i for i in indices if i is not None]
    places = [k for k, i in enumerate(indices) if i is not None]
    joined = np.broadcast_shapes(*(i.shape for i in given))
    rest = [n for k, n in enumerate(source.shape) if k not in places]
    # NumPy: what indices that stand together select stays in their place, else it comes first.
    at = places[0] if places == list(range(places[0], places[0] + len(places))) else 0
    return (*rest[:at], *joined, *rest[at:]), self.dtype


@_rule("embedding")
def _embedding(weight: Any, indices: Any, **rest: Any) -> Spec:
    return (*indices.shape, *weight.shape[1:]), weight.dtype


@_rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(self: Any, pad: Any = None, padding: Any = None, **rest: Any) -> Spec:
    amounts, shape = pad if padding is None else padding, list(self.shape)
    for i in range(len(amounts) // 2):
        shape[-1 - i] += amounts[2 * i] + amounts[2 * i + 1]
    return _sizes(shape), self.dtype


@_rule("meshgrid")
def _meshgrid(tensors: list[Any], indexing: str = "ij") -> list[Spec]:
    shape = [x.size for x in tensors]
    if indexing == "xy" and len(shape) > 1:
        shape[:2] = shape[1::-1]
    return [(tuple(shape), x.dtype) for x in tensors]


@_rule("full", "zeros", "ones", "new_full", "new_zeros", "new_ones")
def _filled(size: Any, self: Any = None, fill_value: Any = None, dtype: str | None = None) -> Spec:
    natural = {bool: "bool", int: "int64"}.get(type(fill_value), "float32")
    return _sizes(size), np.dtype(dtype or (natural if self is None else self.dtype))


@_rule("arange", "linspace")
def _range(end: Any, start: Any = 0, step: Any = 1, steps: int | None = None, dtype: str | None = None) -> Spec:
    whole = steps is None and all(isinstance(value, int) for value in (start, end, step))
    count = math.ceil((end - start) / step) if steps is None else steps
    return (max(0, count),), np.dtype(dtype or ("int64" if whole else "float32"))


@_rule("eye")
def _eye(n: int, m: int | None = None, dtype: str | None = None) -> Spec:
    return _sizes([n, n if m is None else m]), np.dtype(dtype or "float32")


@_rule("scalar_tensor")
def _scalar(s: Any, dtype: str | None = None) -> Spec:
    return (), np.dtype(dtype or "float32")
