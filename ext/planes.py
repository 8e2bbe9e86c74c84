"""Pooling, element-wise operators and joints on the compiled kernels, or on NumPy where it needs no memory of its own.

Each maker takes the planner and the arguments of its operator by name, appends a step and returns its result; for
what it does not cover it returns the reason, and the reference runs the node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from subp_ext import infer, runtime
from subp_ext.graph import ACTIVATIONS
from subp_ext.planner import At, Call, Planner, Tensor
from subp_ext.reference import REFERENCE

Maker = Callable[..., Any]
_NOT_FLOAT = "not a float32 tensor of four dimensions"


def _name(op: str) -> str:
    return f"f32_{op}__{runtime.kernel_set()}"


def _is_float(x: Any, ndim: int | None = None) -> bool:
    fits = isinstance(x, Tensor) and x.view.dtype == np.float32 and x.view.size > 0
    return fits and ndim in (None, x.view.ndim)


def memory_order(view: np.ndarray) -> tuple[int, ...] | None:
    """Its axes from the outermost in memory to the innermost, if it is without gaps; None if it has any."""
    order = tuple(sorted(range(view.ndim), key=lambda axis: (-view.strides[axis], axis)))
    if view.flags.c_contiguous:
        return tuple(range(view.ndim))
    return order if view.transpose(order).flags.c_contiguous else None


def _flat(array: np.ndarray, order: Sequence[int], *shape: int) -> np.ndarray:
    return array.transpose(order).reshape(shape)


def _pool(planner: Planner, op: str, x: Tensor, window: dict[str, Any]) -> Tensor:
    x = planner.contiguous(x)
    geometry = infer.check_pool(x.view.shape[2:], **window)
    out, threads, name = planner.empty((*x.view.shape[:2], *geometry.out)), planner.threads, runtime.kernel_set()

    def bind(at: At) -> Call:
        source, target = at(x), at(out)
        return runtime.kernels().bind_pool(
            name,
            source.reshape(-1, *source.shape[2:]),
            geometry.kernel,
            geometry.stride,
            geometry.dilation,
            geometry.padding,
            geometry.counts if op == "avg_pool2d" else None,
            target.reshape(-1, *geometry.out),
            threads,
        )

    planner.step(op, _name(op), "kernel", bind, [x], [out])
    return out


def _max_pool2d(planner: Planner, *, self: Any, **window: Any) -> Tensor | str:
    return _pool(planner, "max_pool2d", self, window) if _is_float(self, 4) else _NOT_FLOAT


def _avg_pool2d(planner: Planner, *, self: Any, divisor_override: Any = None, **window: Any) -> Tensor | str:
    if divisor_override is not None:
        return "no kernel divides by a given number"
    return _pool(planner, "avg_pool2d", self, window) if _is_float(self, 4) else _NOT_FLOAT


def _mean(planner: Planner, *, self: Any, dim: Any = None, keepdim: bool = False, **rest: Any) -> Tensor | str:
    """The mean of every plane: over the last two of four dimensions."""
    if not _is_float(self, 4) or rest.get("dtype") is not None:
        return _NOT_FLOAT
    if not isinstance(dim, (list, tuple)) or {int(d) % 4 for d in dim} != {2, 3}:
        return "the kernel averages over the last two dimensions"
    x = planner.contiguous(self)
    out, threads, name = planner.empty((*x.view.shape[:2], 1, 1)), planner.threads, runtime.kernel_set()

    def bind(at: At) -> Call:
        source, target = at(x), at(out)
        return runtime.kernels().bind_mean(name, source.reshape(target.size, -1), target.reshape(-1), threads)

    planner.step("mean", _name("mean"), "kernel", bind, [x], [out])
    return out if keepdim else planner.view(out, lambda v: v[..., 0, 0])


def _adaptive_avg_pool2d(planner: Planner, *, self: Any, output_size: Any) -> Tensor | str:
    sizes = output_size if isinstance(output_size, (list, tuple)) else [output_size] * 2
    if not _is_float(self, 4):
        return _NOT_FLOAT
    if set(sizes) == {1}:
        return _mean(planner, self=self, dim=(2, 3), keepdim=True)
    if any(size is not None and (size < 1 or n % size) for n, size in zip(self.view.shape[2:], sizes, strict=True)):
        return "the output's size does not divide the input's"
    # Windows of equal size without overlap.
    kernel = [n // (size or n) for n, size in zip(self.view.shape[2:], sizes, strict=True)]
    return _pool(planner, "avg_pool2d", self, {"kernel_size": kernel, "stride": kernel})


def _activate(name: str, planner: Planner, *, self: Any, **parameters: Any) -> Tensor | str:
    if any(value != _PLAIN.get(parameter) for parameter, value in parameters.items()):
        return "the kernel has no parameters"
    if not _is_float(self):
        return "not a float32 tensor"
    order = memory_order(self.view)
    if order is None:
        self, order = planner.copy(self), tuple(range(self.view.ndim))
    out, threads, kernel_set = planner.empty(self.view.shape, order=order), planner.threads, runtime.kernel_set()

    def bind(at: At) -> Call:
        source, target = (_flat(at(tensor), order, -1) for tensor in (self, out))
        return runtime.kernels().bind_activate(kernel_set, source, name, target, threads)

    planner.step(name, _name(name), "kernel", bind, [self], [out], in_place=[self])
    return out


# Parameters of activations that the kernels hold as constants.
_PLAIN = {"approximate": "none", "negative_slope": 0.01}


def _gelu(planner: Planner, *, self: Any, approximate: str = "none") -> Tensor | str:
    return _activate("gelu_tanh" if approximate == "tanh" else "gelu", planner, self=self)


def _hardtanh(planner: Planner, *, self: Any, min_val: float = -1, max_val: float = 1) -> Tensor | str:
    if (min_val, max_val) == (0, 6):
        return _activate("relu6", planner, self=self)
    return _ufunc("hardtanh", np.clip, planner, self, min_val, max_val)


def _clamp(planner: Planner, *, self: Any, min: Any = None, max: Any = None) -> Tensor | str:
    if min is None and max is None:
        return "without bounds"
    return _ufunc("clamp", np.clip, planner, self, min, max)


def _clamp_min(planner: Planner, *, self: Any, min: Any) -> Tensor | str:
    return _ufunc("clamp_min", np.maximum, planner, self, min)


def _clamp_max(planner: Planner, *, self: Any, max: Any) -> Tensor | str:
    return _ufunc("clamp_max", np.minimum, planner, self, max)


def _upsample_nearest2d(planner: Planner, *, input: Any = None, self: Any = None, **sizes: Any) -> Tensor | str:
    """By whole factors: every column to its places, then every row."""
    x = self if input is None else input
    if not _is_float(x, 4):
        return _NOT_FLOAT
    shape, _ = infer.infer("upsample_nearest2d", {"input": x.view, **sizes})
    out = planner.empty(shape)  # the first to refuse what is too large
    height, width = x.view.shape[2:]
    rows, columns = shape[2] // height, shape[3] // width
    if max(rows, columns) > 64:
        return "every factor is a copy, and these are many"
    # Which pixel goes where; a ratio that is not exact may pick a neighbour, as torch does.
    pixels = np.arange(height * width).reshape(1, 1, height, width)
    taken = REFERENCE["upsample_nearest2d"](input=pixels, **sizes)
    if not np.array_equal(taken, pixels.repeat(rows, axis=2).repeat(columns, axis=3)):
        return "the output's size is no multiple of the input's"
    x = planner.contiguous(x)

    def bind(at: At) -> Call:
        source, target = at(x).reshape(-1, height, width), at(out).reshape(-1, height, rows, width, columns)
        pairs = [(target[:, :, 0, :, column], source) for column in range(columns)]
        pairs += [(target[:, :, row], target[:, :, 0]) for row in range(1, rows)]

        def call() -> None:
            for place, values in pairs:
                np.copyto(place, values)

        return call

    planner.step("upsample_nearest2d", "numpy", "copies", bind, [x], [out])
    return out


def _affine(shape: Sequence[int], weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Factors and summands in full, if they are known."""
    known = [np.ones(shape) if weight is None else weight, np.zeros(shape) if bias is None else bias]
    if not all(isinstance(value, np.ndarray) and value.shape == tuple(shape) for value in known):
        return None
    weight, bias = (np.ascontiguousarray(value, np.float32) for value in known)
    return weight, bias


def _layer_norm(
    planner: Planner, *, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    **rest: Any,
) -> Tensor | str:  # fmt: skip
    """Over the last axis wherever it lies in memory, or over several in C order."""
    if not _is_float(input) or input.view.ndim == 0:
        return "not a float32 tensor"
    count = len(normalized_shape)
    sizes = input.view.shape[input.view.ndim - count :]
    if not count or sizes != tuple(normalized_shape):
        raise ValueError(f"normalized_shape is {normalized_shape}; the input has shape {list(input.view.shape)}")
    affine = _affine(sizes, weight, bias)
    if affine is None:
        return "weight or bias is not known before the run, or of another shape"
    order = memory_order(input.view)
    if order is None or count > 1:
        input, order = planner.contiguous(input), tuple(range(input.view.ndim))
    laid, at = input.view.transpose(order).shape, order.index(input.view.ndim - 1)
    pixels = math.prod(laid[at + 1 :])
    if pixels == 1:
        return _norm_runs(planner, "layer_norm", input, order, [value.reshape(1, -1) for value in affine], eps)
    out, threads, kernel_set = planner.empty(input.view.shape, order=order), planner.threads, runtime.kernel_set()

    def bind(where: At) -> Call:
        source, target = (_flat(where(tensor), order, -1, sizes[0], pixels) for tensor in (input, out))
        return runtime.kernels().bind_norm_pixels(kernel_set, source, *affine, eps, target, threads)

    planner.step("layer_norm", _name("norm_pixels"), "kernel", bind, [input], [out], in_place=[input])
    return out


def _group_norm(
    planner: Planner, *, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    **rest: Any,
) -> Tensor | str:  # fmt: skip
    if not _is_float(input) or input.view.ndim < 2:
        return "not a float32 tensor with channels"
    channels = input.view.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{channels} channels do not split into {num_groups} groups")
    affine = _affine([channels], weight, bias)
    if affine is None:
        return "weight or bias is not known before the run, or of another shape"
    x = planner.contiguous(input)
    order = tuple(range(x.view.ndim))
    return _norm_runs(planner, "group_norm", x, order, [value.reshape(num_groups, -1) for value in affine], eps)


def _norm_runs(
    planner: Planner, op: str, x: Tensor, order: Sequence[int], affine: list[np.ndarray], eps: float
) -> Tensor:
    """Normalises runs, as many to an image as there are groups of factors and summands, `[groups, channels]`."""
    out, threads, kernel_set = planner.empty(x.view.shape, order=order), planner.threads, runtime.kernel_set()
    # A layer norm has one run for each row, a group norm one for each group of an image.
    length = affine[0].shape[1]
    if op == "group_norm":
        length = x.view.size // (x.view.shape[0] * len(affine[0]))

    def bind(at: At) -> Call:
        source, target = (_flat(at(tensor), order, -1, length) for tensor in (x, out))
        return runtime.kernels().bind_norm_runs(kernel_set, source, *affine, eps, target, threads)

    planner.step(op, _name("norm_run"), "kernel", bind, [x], [out], in_place=[x])
    return out


def _runs(a: np.ndarray, b: np.ndarray) -> int | None:
    """Leading elements of `a` that each meet one number of `b`; None if the two meet otherwise."""
    if a.shape == b.shape:
        return 1
    cut = a.ndim
    while cut and b.shape[cut - 1] == 1:
        cut -= 1
    return math.prod(a.shape[:cut]) if b.shape[:cut] == a.shape[:cut] else None


def _binary(op: str, planner: Planner, *, self: Any, other: Any, alpha: float = 1) -> Tensor | str:
    """Operands of one shape, or one with a number per plane, as a squeeze-and-excitation gate has."""
    ufunc = np.multiply if op == "mul" else np.add
    a, b = (self, other) if _size(self) >= _size(other) else (other, self)
    if alpha != 1:
        return "alpha is not 1"
    if not _is_float(a) or not isinstance(b, (Tensor, np.ndarray)) or _form(b).dtype != np.float32:
        return _ufunc(op, ufunc, planner, self, other)
    order, b = memory_order(a.view), _spread(a, b)
    if order is None or b is None or a.view.ndim == 0:
        return _ufunc(op, ufunc, planner, self, other)
    laid_a, laid_b = a.view.transpose(order), _form(b).transpose(order)
    runs = _runs(laid_a, laid_b)
    if runs is None or not laid_b.flags.c_contiguous:
        return _ufunc(op, ufunc, planner, self, other)
    out, threads, kernel_set = planner.empty(a.view.shape, order=order), planner.threads, runtime.kernel_set()

    def bind(at: At) -> Call:
        views = [_flat(at(value), order, runs, -1) for value in (a, b, out)]
        return runtime.kernels().bind_binary(kernel_set, op == "mul", *views[:2], None, views[2], threads)

    same = [a, b] if isinstance(b, Tensor) and b.view.shape == a.view.shape else [a]
    planner.step(op, _name(op), "kernel", bind, [a, b], [out], in_place=same)
    return out


def _form(value: Any) -> np.ndarray:
    return value.view if isinstance(value, Tensor) else value


def _size(value: Any) -> int:
    return _form(value).size if isinstance(value, (Tensor, np.ndarray)) else 0


def _spread(a: Tensor, b: Any) -> Any:
    """`b` with as many dimensions as `a`; a constant with a number per channel also gets one per image."""
    shape, rank = _form(b).shape, a.view.ndim
    if len(shape) > rank:
        return None
    shape = (1,) * (rank - len(shape)) + shape
    if isinstance(b, Tensor):
        return planner_view(b, shape)
    order = memory_order(a.view)
    if order is None:
        return None
    laid, own = [shape[axis] for axis in order], [a.view.shape[axis] for axis in order]
    cut = max((axis + 1 for axis in range(rank) if laid[axis] != 1), default=0)
    wanted = [own[axis] if axis < cut else 1 for axis in range(rank)]
    try:
        laid_b = np.ascontiguousarray(np.broadcast_to(b.reshape(shape).transpose(order), wanted))
    except ValueError:
        return None
    return laid_b.transpose(np.argsort(order))


def planner_view(b: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The tensor with dimensions of 1 in front."""
    return Tensor(b.buffer, b.view.reshape(shape), b.start) if b.view.flags.c_contiguous else None


def _ufunc(op: str, function: Callable[..., Any], planner: Planner, *operands: Any) -> Tensor | str:
    """NumPy's own loop, which takes any memory order and broadcast, writing into the arena."""
    arrays = [value for value in operands if isinstance(value, (Tensor, np.ndarray))]
    if any(_form(value).dtype != np.float32 for value in arrays):
        return "not float32"
    shape = np.broadcast_shapes(*(_form(value).shape for value in arrays))
    largest = max(arrays, key=_size)
    order = memory_order(_form(largest)) if _form(largest).shape == shape else None
    out = planner.empty(shape, order=order)

    def bind(at: At) -> Call:
        return partial(function, *at(operands), out=at(out))

    whole = [value for value in arrays if isinstance(value, Tensor) and value.view.strides == out.view.strides]
    planner.step(op, "numpy", "any memory order", bind, arrays, [out], in_place=whole)
    return out


def _sub(planner: Planner, *, self: Any, other: Any, alpha: float = 1) -> Tensor | str:
    return _ufunc("sub", np.subtract, planner, self, other) if alpha == 1 else "alpha is not 1"


def _div(planner: Planner, *, self: Any, other: Any, rounding_mode: str | None = None) -> Tensor | str:
    return "with rounding" if rounding_mode else _ufunc("div", np.true_divide, planner, self, other)


def _two(op: str, function: Callable[..., Any]) -> Maker:
    return lambda planner, *, self, other: _ufunc(op, function, planner, self, other)


def _one(op: str, function: Callable[..., Any]) -> Maker:
    return lambda planner, *, self: _ufunc(op, function, planner, self)


def _cat(planner: Planner, *, tensors: list[Any], dim: int = 0) -> Tensor | str:
    """Joins; where the parts lie one after the other in memory, they are computed there (`Planner`)."""
    tensors = [x for x in tensors if _form(x).shape != (0,)]
    shape, dtype = infer.infer("cat", {"tensors": [_form(x) for x in tensors], "dim": dim})
    if any(_form(x).dtype != dtype for x in tensors):
        return "parts of several dtypes"
    axis, out = dim % len(shape), planner.empty(shape, dtype)
    if math.prod(shape[:axis]) == 1 and all(isinstance(x, Tensor) for x in tensors):
        parts = [planner.contiguous(x) for x in tensors]
        planner.step("cat", "numpy", "copies", _unplanned, parts, [out], concatenates=True)
        return out

    def bind(at: At) -> Call:
        whole, sources = at(out), at(tensors)
        ends = np.cumsum([source.shape[axis] for source in sources])
        targets = np.split(whole, ends[:-1], axis=axis)

        def call() -> None:
            for target, source in zip(targets, sources, strict=True):
                np.copyto(target, source)

        return call

    planner.step("cat", "numpy", "copies: the parts are not next to each other in memory", bind, tensors, [out])
    return out


def _unplanned(at: At) -> Call:
    raise AssertionError("the planner binds joints, when it knows which parts are in place")


def _copying(op: str) -> Maker:
    """A tensor in another dtype, or the same."""

    def make(planner: Planner, *, self: Any, dtype: str | None = None, **rest: Any) -> Tensor | str:
        same = isinstance(self, Tensor) and self.view.dtype == np.dtype(dtype or self.view.dtype)
        return self if same else "another dtype"

    return make


MAKERS: dict[str, Maker] = {
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "_adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "upsample_nearest2d": _upsample_nearest2d,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "add": partial(_binary, "add"),
    "mul": partial(_binary, "mul"),
    "sub": _sub,
    "div": _div,
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "maximum": _two("maximum", np.maximum),
    "minimum": _two("minimum", np.minimum),
    "exp": _one("exp", np.exp),
    "neg": _one("neg", np.negative),
    "sqrt": _one("sqrt", np.sqrt),
    "abs": _one("abs", np.abs),
    "square": _one("square", np.square),
    "cat": _cat,
    "concat": _cat,
    "to": _copying("to"),
    "_to_copy": _copying("_to_copy"),
    **{name: partial(_activate, name) for name in ACTIVATIONS if name in REFERENCE and name != "gelu"},
}
