"""Up- and downsampling, pixel and channel shuffles."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext import runtime
from subp_ext.dtypes import FLOAT32, Array
from subp_ext.operators.arguments import MAX_PAIRS, sizes
from subp_ext.operators.plane_copies import gathered, woven
from subp_ext.operators.record import DRY_RUN, Lowered, Lowering, MetaTensor, Spec, Unsupported, operator
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner

# The neighbours along an axis that each output is made of, and their weights: [out, taps] each.
Taps = Callable[[Array], tuple[Array, Array]]


def _scales(
    x: Array, output_size: Any, scale_factors: Any, scales_h: float | None, scales_w: float | None
) -> list[tuple[int, int, float]]:
    """Per axis: input size, output size, input pixels per output pixel; a given scale wins over the sizes' ratio."""
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    found = []
    for axis in range(2):
        size, scale = x.shape[axis - 2], scales[axis]
        out = output_size[axis] if output_size is not None else int(size * scale)
        found.append((size, out, 1.0 / scale if scale else size / out))
    return found


def _upsample_spec(
    input: MetaTensor | None = None,
    output_size: Any = None,
    scale_factors: Any = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
    self: MetaTensor | None = None,
    **rest: Any,
) -> Spec:
    x = _source(input, self)
    scales = scale_factors if scale_factors is not None else [scales_h, scales_w]
    out = output_size if output_size is not None else [int(n * s) for n, s in zip(x.shape[-2:], scales, strict=True)]
    large = any(n * size > MAX_PAIRS for n, size in zip(x.shape[-2:], out, strict=False))
    if 0 in x.shape or len(out) != 2 or min(sizes(out)) < 1 or large:
        raise ValueError(f"sizes {out} do not fit the input {list(x.shape)}")
    return (*x.shape[:-2], *sizes(out)), x.dtype


def _source(input: Any, self: Any) -> Any:
    """The tensor, in whichever of two arguments it came."""
    if (input is None) == (self is None):
        raise ValueError("needs one of the arguments 'input' and 'self'")
    return self if input is None else input


def _refused(planner: Planner, x: Any, scales: dict[str, Any]) -> Unsupported | None:
    """Why no kernel resizes a value; None if one does."""
    if not isinstance(x, Tensor) or x.view.ndim != 4 or not x.view.size:
        return Unsupported("the input is not a tensor of four dimensions, or empty")
    planner.check_room(_upsample_spec(input=x.view, **scales)[0], x.type)
    return None


def _nearest(size: int, out: int, ratio: float, offset: float) -> Array:
    """`[out]`, the input's index for each output along an axis, in torch's float32."""
    at = (np.arange(out, dtype=np.float32) + np.float32(offset)) * np.float32(ratio)
    return np.minimum(at.astype(np.int64), size - 1)


def _lower_nearest(offset: float) -> Lowering:
    """By whole factors every row and column is repeated; by others they are picked."""

    def lower(
        planner: Planner, op: str, *, input: Any = None, self: Any = None, **scales: Any
    ) -> Lowered | Unsupported:
        x = _source(input, self)
        if refused := _refused(planner, x, scales):
            return refused
        axes = _scales(x.view, *(scales.get(name) for name in ("output_size", "scale_factors", "scales_h", "scales_w")))
        rows, columns = (_nearest(*axis, offset) for axis in axes)
        (height, tall, _), (width, wide, _) = axes
        step = (tall // height, wide // width)
        whole = all(
            np.array_equal(picked, np.arange(size).repeat(factor))
            for picked, (size, _, _), factor in zip((rows, columns), axes, step, strict=True)
        )
        if not whole or step[1] != 2:
            return Lowered(gathered(planner, op, x, rows, columns))
        x, shape = planner.contiguous(x), (*x.view.shape[:2], len(rows), len(columns))
        return Lowered(woven(planner, op, [x] * (step[0] * step[1]), shape, step))

    return lower


def _nearest_by(offset: float) -> Any:
    """The reference; takes the `.vec` form (input, scale_factors) and the plain one (self, scales_h, scales_w)."""

    def run(
        input: Array | None = None,
        output_size: Sequence[int] | None = None,
        scale_factors: Sequence[float] | None = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
        self: Array | None = None,
    ) -> Array:
        x = _source(input, self)
        scales = _scales(x, output_size, scale_factors, scales_h, scales_w)
        rows, columns = (_nearest(*axis, offset) for axis in scales)
        return x[..., rows[:, None], columns]

    return run


for _name, _offset in (("upsample_nearest2d", 0.0), ("_upsample_nearest_exact2d", 0.5)):
    operator(_name, shape=_upsample_spec, lower=_lower_nearest(_offset))(_nearest_by(_offset))


def _linear_taps(position: Array) -> tuple[Array, Array]:
    position = np.maximum(position, 0.0)
    low = np.floor(position)
    return low[:, None] + [0, 1], np.stack([1 - (position - low), position - low], 1)


def _cubic_taps(position: Array) -> tuple[Array, Array]:
    low, a = np.floor(position), -0.75
    distance = np.abs((position - low)[:, None] - np.arange(-1, 3))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return low[:, None] + np.arange(-1, 3), np.where(distance <= 1, near, far)


def _neighbours(size: int, out: int, ratio: float, align_corners: bool, taps: Taps) -> tuple[Array, Array]:
    """`[out, taps]` indices and weights of one axis; taps outside the input count for its edge."""
    at = np.arange(out, dtype=np.float64)
    corners = at * ((size - 1) / max(out - 1, 1))
    index, weight = taps(corners if align_corners else (at + 0.5) * ratio - 0.5)
    return np.clip(index, 0, size - 1).astype(np.int32), weight


def _blended(x: Array, axis: int, index: Array, weight: Array) -> Array:
    """Sums of neighbours along an axis, -2 or -1; what is no neighbour reaches no result."""
    weight = weight.astype(x.dtype).reshape(*weight.shape, *[1] * (-1 - axis))
    parts = (np.take(x, index[:, tap], axis=axis) * weight[:, tap] for tap in range(index.shape[1]))
    total: Array = sum(parts, np.zeros((), x.dtype))
    return total


def _separable(taps: Taps) -> Any:
    def run(
        input: Array | None = None,
        output_size: Sequence[int] | None = None,
        align_corners: bool = False,
        scale_factors: Sequence[float] | None = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
        self: Array | None = None,
    ) -> Array:
        x = _source(input, self)
        for axis, scale in zip((-1, -2), _scales(x, output_size, scale_factors, scales_h, scales_w)[::-1], strict=True):
            x = _blended(x, axis, *_neighbours(*scale, align_corners, taps))
        return x

    return run


def _lower_bilinear(
    planner: Planner,
    op: str,
    *,
    input: Any = None,
    self: Any = None,
    align_corners: bool = False,
    **scales: Any,
) -> Lowered | Unsupported:
    x = _source(input, self)
    if isinstance(x, Tensor) and x.type.dtype is not FLOAT32:
        return Unsupported(f"no {x.type.dtype.name} kernel for {op}")
    if refused := _refused(planner, x, scales):
        return refused
    axes = _scales(x.view, *(scales.get(name) for name in ("output_size", "scale_factors", "scales_h", "scales_w")))
    pairs = []
    for axis in axes:
        index, weight = _neighbours(*axis, align_corners, _linear_taps)
        pairs.append([np.ascontiguousarray(part) for part in (*index.T, *weight.T.astype(np.float32))])
    size, wide, ratio = axes[1]
    doubles = wide == 2 * size and ratio == 0.5 and not align_corners
    x = planner.contiguous(x)
    out, threads = planner.empty((*x.view.shape[:2], axes[0][1], wide)), planner.threads

    def bind(at: At) -> Call:
        source, target = (value.reshape(-1, *value.shape[2:]) for value in (at(x), at(out)))
        call: Call = runtime.kernels().bind_bilinear(source, *pairs, doubles, target, threads)
        return call

    planner.step(op, "bilinear", "kernel", bind, [x], [out])
    return Lowered(out)


upsample_bilinear2d = operator("upsample_bilinear2d", shape=_upsample_spec, lower=_lower_bilinear)(
    _separable(_linear_taps)
)
upsample_bicubic2d = operator("upsample_bicubic2d", shape=_upsample_spec)(_separable(_cubic_taps))


def _lower_pixel_shuffle(planner: Planner, op: str, *, self: Any, upscale_factor: int) -> Lowered | Unsupported:
    factor = upscale_factor
    if not isinstance(self, Tensor) or self.view.ndim != 4 or not self.view.size:
        return Unsupported("the input is not a tensor of four dimensions, or empty")
    batch, channels, height, width = self.view.shape
    if factor < 1 or channels % factor**2:
        raise ValueError(f"{channels} channels are no multiple of {factor} x {factor}")
    shape = (batch, channels // factor**2, height * factor, width * factor)
    return Lowered(woven(planner, op, planner.contiguous(self), shape, (factor, factor)))


@operator("pixel_shuffle", shape=DRY_RUN, lower=_lower_pixel_shuffle)
def pixel_shuffle(self: Array, upscale_factor: int) -> Array:
    *batch, channels, height, width = self.shape
    r, n = upscale_factor, len(batch)
    x = self.reshape(*batch, channels // r**2, r, r, height, width)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return x.transpose(order).reshape(*batch, channels // r**2, height * r, width * r)


def _moved(
    planner: Planner, op: str, x: Tensor, shape: Sequence[int], order: Sequence[int], out_shape: Sequence[int]
) -> Lowered:
    """A copy of the tensor seen as another shape, with its axes in another order, of any type."""
    x = planner.contiguous(x)
    out = planner.empty(out_shape, x.type)

    def bind(at: At) -> Call:
        source = at(x).reshape(shape).transpose(order)
        target = at(out).reshape(source.shape)
        return lambda: np.copyto(target, source)

    planner.step(op, "numpy", "copies", bind, [x], [out])
    return Lowered(out)


def _lower_pixel_unshuffle(planner: Planner, op: str, *, self: Any, downscale_factor: int) -> Lowered | Unsupported:
    if not isinstance(self, Tensor) or self.view.ndim != 4 or not self.view.size:
        return Unsupported("the input is not a tensor of four dimensions, or empty")
    (batch, channels, height, width), r = self.view.shape, downscale_factor
    if r < 1 or height % r or width % r:
        raise ValueError(f"{height}x{width} pixels are no multiple of {r} x {r}")
    split = (batch, channels, height // r, r, width // r, r)
    shape = (batch, channels * r**2, height // r, width // r)
    return _moved(planner, op, self, split, (0, 1, 3, 5, 2, 4), shape)


@operator("pixel_unshuffle", shape=DRY_RUN, lower=_lower_pixel_unshuffle)
def pixel_unshuffle(self: Array, downscale_factor: int) -> Array:
    *batch, channels, height, width = self.shape
    r, n = downscale_factor, len(batch)
    x = self.reshape(*batch, channels, height // r, r, width // r, r)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return x.transpose(order).reshape(*batch, channels * r**2, height // r, width // r)


def _lower_channel_shuffle(planner: Planner, op: str, *, self: Any, groups: int) -> Lowered | Unsupported:
    if not isinstance(self, Tensor) or self.view.ndim < 2 or groups < 1 or self.view.shape[1] % groups:
        return Unsupported("the input is known, or its channels do not split into the groups")
    batch, channels, *size = self.view.shape
    order = (0, 2, 1, *range(3, 3 + len(size)))
    return _moved(planner, op, self, (batch, groups, channels // groups, *size), order, self.view.shape)


@operator("channel_shuffle", "native_channel_shuffle", shape=DRY_RUN, lower=_lower_channel_shuffle)
def channel_shuffle(self: Array, groups: int) -> Array:
    batch, channels, *size = self.shape
    return self.reshape(batch, groups, channels // groups, *size).swapaxes(1, 2).reshape(self.shape)
