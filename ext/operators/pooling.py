"""Pooling. Windows that hang over the edge are clipped, so that padding never counts as a value."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, ValueType
from subp_ext.geometry import MAX_SIZE
from subp_ext.operators.arguments import Ints, pair, sizes
from subp_ext.operators.conversions import UINT8, is_quantized, quantization_of
from subp_ext.operators.record import Lowered, MetaTensor, Spec, Unsupported, operator
from subp_ext.operators.shape_inference import of_shape
from subp_ext.operators.steps import bound, no_kernel, plan_kernel
from subp_ext.requantize import of_average
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner

# The widest window that may be larger than its input.
MAX_WINDOW = 64


def _out_size(size: int, extent: int, stride: int, padding: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - extent
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    # In ceil mode the last window must still start inside the input or its left padding.
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _windows(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fill: float) -> Array:
    """`[..., Ho, Wo, kh, kw]` view of the input padded with `fill` far enough for the last window."""
    kernel, stride = pair(kernel), pair(stride, kernel)
    padding, dilation = pair(padding), pair(dilation)
    pads, extents = [(0, 0)] * (x.ndim - 2), []
    for axis in range(2):
        size, extent = x.shape[axis - 2], dilation[axis] * (kernel[axis] - 1) + 1
        out = _out_size(size, extent, stride[axis], padding[axis], ceil_mode)
        end = (out - 1) * stride[axis] + extent - size - padding[axis]
        pads.append((padding[axis], max(end, 0)))
        extents.append(extent)
    padded = np.pad(x, pads, constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=(-2, -1))
    return view[..., :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


@dataclass(frozen=True)
class PoolGeometry:
    """Windows over one size of plane, (height, width) each; `padding` is (top, left)."""

    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    counts: tuple[Array, Array]  # elements of each row's and column's windows that an average divides by


def pool_geometry(
    size: tuple[int, int],
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> PoolGeometry:
    """What the arguments of a pooling operator mean for planes of `size`."""
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride, out, counts = pair(stride, kernel), [], []
    for n, k, s, zeros, d in zip(size, kernel, stride, padding, dilation, strict=True):
        out.append(_out_size(n, d * (k - 1) + 1, s, zeros, ceil_mode))
        starts = np.arange(out[-1]) * s - zeros
        low, high = (-zeros, n + zeros) if count_include_pad else (0, n)
        counts.append((np.minimum(starts + k, high) - np.maximum(starts, low)).astype(np.float32))
    return PoolGeometry((out[0], out[1]), kernel, stride, dilation, padding, (counts[0], counts[1]))


def check_pool(size: Sequence[int], **window: Any) -> PoolGeometry:
    """As `pool_geometry`, with sizes checked.

    Raises:
        ValueError: windows that do not fit the input, or that could lie outside of it.
    """
    parts = {name: pair(window.get(name, default)) for name, default in (("padding", 0), ("dilation", 1))}
    parts["kernel_size"] = pair(window["kernel_size"])
    strides = window.get("stride") or parts["kernel_size"]
    for n, k, s, p, d in zip(
        size, parts["kernel_size"], pair(strides), parts["padding"], parts["dilation"], strict=True
    ):
        sizes([n, k, s, p, d], MAX_SIZE)
        # Windows without gaps hold a pixel, however few there are; networks have them up to 13 wide. Taps apart from
        # each other could all lie outside, and only hostile files have windows far wider than the input.
        narrow = d == 1 and k <= MAX_WINDOW
        room = n + 2 * p + (s - 1 if window.get("ceil_mode") and narrow else 0)  # the only window may hang over
        if min(n, k, s, d) < 1 or 2 * p > k or d * (k - 1) + 1 > room or (p > n and not narrow):
            raise ValueError(f"{n} pixels in windows of {k}, {d} apart, with stride {s} and {p} zeros, do not fit")
    return pool_geometry((size[0], size[1]), **window)


def _lowest(x: Array) -> float:
    return -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min


def _pooled(self: MetaTensor, **window: Any) -> tuple[int, ...]:
    geometry = check_pool(self.shape[-2:], **window)
    return (*self.shape[:-2], *geometry.out)


def _pool_spec(self: MetaTensor, divisor_override: int | None = None, **window: Any) -> Spec:
    return _pooled(self, **window), self.dtype


def lower_pool(
    planner: Planner,
    op: str,
    *,
    self: Any,
    divisor_override: int | None = None,
    out_type: ValueType | None = None,
    **window: Any,
) -> Lowered | Unsupported:
    if quantization_of(self) is not None and out_type is not None and is_quantized(out_type, UINT8):
        return _lower_integers(planner, op, self, divisor_override, out_type, window)
    if divisor_override is not None:
        return Unsupported("no kernel divides by a given number")
    if refused := no_kernel("pool", self, 4):
        return refused
    geometry = check_pool(self.view.shape[2:], **window)
    x = planner.contiguous(self)
    out, threads = planner.empty((*x.view.shape[:2], *geometry.out), x.type), planner.threads
    counts = geometry.counts if op == "avg_pool2d" else None

    def bind(at: At) -> Call:
        source, target = at(x), at(out)
        return bound(
            "bind_pool",
            source.reshape(-1, *source.shape[2:]),
            geometry.kernel,
            geometry.stride,
            geometry.dilation,
            geometry.padding,
            counts,
            target.reshape(-1, *geometry.out),
            threads,
            x.type.dtype.name,
        )

    return plan_kernel(planner, op, "pool", bind, [x], out)


def _lower_integers(
    planner: Planner, op: str, x: Tensor, divisor: int | None, out_type: ValueType, window: dict[str, Any]
) -> Lowered | Unsupported:
    """Pooling of quantized uint8. A maximum has the type of its operand."""
    if refused := no_kernel("quantized_pool", x, 4):
        return refused
    geometry = check_pool(x.view.shape[2:], **window)
    average, quantization = op == "avg_pool2d", x.type.quantization
    type = out_type if average else x.type
    assert quantization is not None and type.quantization is not None
    factors: Array | str | None = None
    if average:
        counts = np.multiply.outer(*geometry.counts) if divisor is None else np.full(geometry.out, divisor)
        factors = of_average(quantization, type.quantization, counts, _most_pixels(geometry, x.view.shape[2:]))
    if isinstance(factors, str):
        return Unsupported(factors)
    zeros = int(quantization.zero_point), int(type.quantization.zero_point)
    source = planner.contiguous(x)
    out, threads = planner.empty((*x.view.shape[:2], *geometry.out), type), planner.threads

    def bind(at: At) -> Call:
        planes, target = at(source), at(out)
        return bound(
            "bind_quantized_pool",
            planes.reshape(-1, *planes.shape[2:]),
            geometry.kernel,
            geometry.stride,
            geometry.dilation,
            geometry.padding,
            factors,
            zeros,
            target.reshape(-1, *geometry.out),
            threads,
        )

    return plan_kernel(planner, op, "quantized_pool", bind, [source], out)


def _most_pixels(geometry: PoolGeometry, size: Sequence[int]) -> int:
    """Of the input, in any window."""
    return math.prod(min(kernel, n) for kernel, n in zip(geometry.kernel, size, strict=True))


@operator("max_pool2d", shape=_pool_spec, lower=lower_pool)
def max_pool2d(
    self: Array,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> Array:
    return _windows(self, kernel_size, stride, padding, dilation, ceil_mode, _lowest(self)).max(axis=(-2, -1))


def _indices_spec(self: MetaTensor, **window: Any) -> list[Spec]:
    return [(_pooled(self, **window), self.dtype), (_pooled(self, **window), np.dtype(np.int64))]


@operator("max_pool2d_with_indices", shape=_indices_spec)
def max_pool2d_with_indices(
    self: Array,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """Returns the maxima and their flat positions in the input's plane."""
    windows = _windows(self, kernel_size, stride, padding, dilation, ceil_mode, _lowest(self))
    flat = windows.reshape(*windows.shape[:-2], -1)
    best = flat.argmax(axis=-1)
    row, column = np.divmod(best, windows.shape[-1])
    step, zeros, spread = pair(stride, kernel_size), pair(padding), pair(dilation)
    y = np.arange(windows.shape[-4])[:, None] * step[0] - zeros[0] + row * spread[0]
    x = np.arange(windows.shape[-3]) * step[1] - zeros[1] + column * spread[1]
    return flat.max(axis=-1), y * self.shape[-1] + x


@operator("avg_pool2d", shape=_pool_spec, lower=lower_pool)
def avg_pool2d(
    self: Array,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    total = _windows(self, kernel_size, stride, padding, 1, ceil_mode, 0.0).sum(axis=(-2, -1))
    if divisor_override is not None:
        return total / self.dtype.type(divisor_override)
    # What counts: the input, and its declared padding if asked; never what ceil mode adds beyond it.
    height, width = self.shape[-2:]
    (ph, pw) = pair(padding)
    counted = np.ones((height, width), self.dtype)
    if count_include_pad:
        counted = np.ones((height + 2 * ph, width + 2 * pw), self.dtype)
        counts = _counts(counted, kernel_size, stride, total.shape[-2:])
    else:
        counts = _windows(counted, kernel_size, stride, padding, 1, ceil_mode, 0.0).sum(axis=(-2, -1))
    return total / counts


def _counts(counted: Array, kernel: Any, stride: Any, out: tuple[int, ...]) -> Array:
    """Elements of each window that lie inside `counted`, for windows from its corner on."""
    kernel, stride = pair(kernel), pair(stride, kernel)
    spans = [
        np.minimum(np.arange(out[a]) * stride[a] + kernel[a], counted.shape[a]) - np.arange(out[a]) * stride[a]
        for a in range(2)
    ]
    return np.multiply.outer(*spans).astype(counted.dtype)


def _pool1d_spec(self: MetaTensor, kernel_size: Any, stride: Any = (), padding: Any = 0, **rest: Any) -> Spec:
    size, step, zeros = pair(kernel_size)[0], pair(stride or kernel_size)[0], pair(padding)[0]
    window = {"kernel_size": (1, size), "stride": (1, step), "padding": (0, zeros), **rest}
    shape = _pooled(of_shape((*self.shape[:-1], 1, self.shape[-1]), self.dtype), **window)
    return (*shape[:-2], shape[-1]), self.dtype


@operator("avg_pool1d", shape=_pool1d_spec)
def avg_pool1d(
    self: Array,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    size, step, zeros = pair(kernel_size)[0], pair(stride, kernel_size)[0], pair(padding)[0]
    return avg_pool2d(self[..., None, :], (1, size), (1, step), (0, zeros), ceil_mode, count_include_pad)[..., 0, :]


def _triple(value: Any) -> tuple[int, int, int]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    depth, height, width = values * 3 if len(values) == 1 else values
    return depth, height, width


def _pool3d_spec(
    self: MetaTensor,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    divisor_override: int | None = None,
    **rest: Any,
) -> Spec:
    kernel, zeros = _triple(kernel_size), _triple(padding)
    step, size = _triple(stride or kernel), self.shape[-3:]
    planes = {"kernel_size": kernel[1:], "stride": step[1:], "padding": zeros[1:], **rest}
    layers = {"kernel_size": (kernel[0], 1), "stride": (step[0], 1), "padding": (zeros[0], 0), **rest}
    shape = _pooled(of_shape(size, self.dtype), **planes)
    depth = _pooled(of_shape((size[0], 1), self.dtype), **layers)[0]
    return (*self.shape[:-3], depth, *shape[-2:]), self.dtype


@operator("avg_pool3d", shape=_pool3d_spec)
def avg_pool3d(
    self: Array,
    kernel_size: Ints,
    stride: Ints | None = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Averages over planes, then over layers: what a window is divided by is the product of both counts."""
    kernel, zeros = _triple(kernel_size), _triple(padding)
    step, rest = _triple(stride or kernel), (ceil_mode, count_include_pad, None if divisor_override is None else 1)
    planes = avg_pool2d(self, kernel[1:], step[1:], zeros[1:], *rest)
    *batch, depth, height, width = planes.shape
    lines = planes.reshape(*batch, depth, height * width)
    found = avg_pool2d(lines, (kernel[0], 1), (step[0], 1), (zeros[0], 0), *rest)
    result = found.reshape(*batch, -1, height, width)
    return result if divisor_override is None else result / self.dtype.type(divisor_override)
