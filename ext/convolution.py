"""2-D convolution on the compiled kernels: geometry, packing at load, planes and the call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.memory import LINE, aligned_empty, scratch
from subp_ext.sparse import UniformBlockSparse

# Block size of dense weights that come without one: a multiple of every kernel's tile.
DENSE_BLOCK = 16

# Planes of one band, in bytes: they share the second cache with the weights that pass through.
CACHED_PLANES = 768 * 1024

# Bands come in multiples of this: so many threads work on bands of their own, without an exchange between caches.
BANDS = 2

# Least pixels of a run: what one call of a kernel is worth.
RUN_PIXELS = 48

# Bytes of input beyond which every block row would fetch it anew from outside the second cache.
CACHED_INPUT = 1024 * 1024

# Input sizes that a convolution stays prepared for.
KEPT_SIZES = 8


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """Returns (height, width) from one number or two.

    Raises:
        ValueError: not one or two whole numbers of at least `least`.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or any(not isinstance(v, (int, np.integer)) or v < least for v in values):
        raise ValueError(f"{name} is {value!r}; expected one or two whole numbers of at least {least}")
    return int(values[0]), int(values[1])


def resolve_padding(
    padding: Any, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns ((top, bottom), (left, right)) zeros.

    Args:
        padding: a number, [height, width], [[top, bottom], [left, right]], "valid" or "same" (stride 1 only; the odd
            zero goes to the bottom and right).
        kernel: (kh, kw).
        stride: checked for "same".
        dilation: (height, width).

    Raises:
        ValueError: none of these.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"padding 'same' needs stride 1, got {stride}; give the padding in numbers")
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, (list, tuple)) and len(padding) == 2 and all(isinstance(p, (list, tuple)) for p in padding):
        return pair(padding[0], "padding", 0), pair(padding[1], "padding", 0)
    height, width = pair(padding, "padding", 0)
    return (height, height), (width, width)


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a convolution are, for one input size. The terms are those of kernels/conv.h."""

    out_size: tuple[int, int]
    copies: np.ndarray  # [copies, 2] the row and column of each copy of a channel; none where the input will do
    tap_copies: np.ndarray  # [taps] the copy each tap reads
    tap_rows: np.ndarray  # [taps] and from which of its rows on


@dataclass(frozen=True)
class Split:
    """How a convolution is cut into work; fields as in kernels/conv.h."""

    band: int
    plane_rows: int
    channel_stride: int
    tile_pixels: int
    pixels_outside: bool


class Convolution:
    """A convolution ready to run: weights packed, arguments checked.

    Args:
        weight: `UniformBlockSparse`, or a dense `[O, I / groups, kh, kw]` array.
        bias: `[O]` or None.
        stride: a number or [height, width]; likewise `dilation`.
        padding: as `resolve_padding`.
        groups: 1 or more; must be the weight's own if it is UniformBlockSparse.
        activation: None or a name of `graph.ACTIVATIONS`.
        kernel_set: by default the one chosen for this process.

    Raises:
        ValueError: an argument that does not fit; the message says what was expected.
        ImportError: the kernels are not built.
    """

    def __init__(
        self,
        weight: UniformBlockSparse | np.ndarray,
        bias: np.ndarray | None = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        groups: int | None = None,
        activation: str | None = None,
        kernel_set: str | None = None,
    ) -> None:
        weight = _as_blocks(weight, groups)
        outputs, group_in, *kernel = weight.shape
        self.shape, self.groups, self.kept_share = weight.shape, weight.groups, weight.kept_share
        self.kernel_size = (kernel[0], kernel[1])
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding = resolve_padding(padding, self.kernel_size, self.stride, self.dilation)
        self.activation, self._set = activation, kernel_set or runtime.kernel_set()
        known = runtime.kernels().activations()
        if activation is not None and activation not in known:
            raise ValueError(f"activation {activation!r} is not known; expected None or one of {', '.join(known)}")
        self._bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
        if self._bias is not None and self._bias.shape != (outputs,):
            raise ValueError(f"bias has shape {self._bias.shape}; expected ({outputs},), one per output channel")
        self._block, self._indices = weight.block_size, weight.indices
        self._depthwise = group_in == 1 and outputs == weight.groups
        if self._depthwise:
            arguments = (self._set, self.kernel_size, self.stride, self.dilation)
            self.kernel = runtime.kernels().depthwise_name(*arguments)
            self._values = np.ascontiguousarray(weight.values[:, 0, :, :, 0])
        else:
            self.kernel = runtime.kernels().kernel_name(self._set, self._block)
            self._tiles = runtime.kernels().tiles(self._set, self._block)
            self._values = _pack(weight.values, [channels for channels, _ in self._tiles])
        self._prepared: dict[tuple[int, int], Any] = {}

    def macs(self, out_shape: Sequence[int]) -> int:
        """Multiply-accumulates on kept weights for an output `[B, O, Ho, Wo]`."""
        outputs, group_in, kh, kw = self.shape
        kept = round(self.kept_share * group_in)
        return int(out_shape[0]) * outputs * kept * kh * kw * int(out_shape[2]) * int(out_shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return self._values.nbytes + self._indices.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width of the output for an input of this size.

        Raises:
            ValueError: the padded input is smaller than the kernel.
        """
        padded = (height + sum(self.padding[0]), width + sum(self.padding[1]))
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if padded[0] <= reach[0] or padded[1] <= reach[1]:
            raise ValueError(
                f"padded input {padded[0]}x{padded[1]} is smaller than the kernel's extent "
                f"{reach[0] + 1}x{reach[1] + 1}"
            )
        out_h, out_w = ((p - r - 1) // s + 1 for p, r, s in zip(padded, reach, self.stride, strict=True))
        return out_h, out_w

    def geometry(self, height: int, width: int) -> Geometry:
        """Lays out the planes for an input of this size."""
        out_size = self.out_size(height, width)
        taps = np.stack(
            np.meshgrid(
                *(np.arange(k) * d for k, d in zip(self.kernel_size, self.dilation, strict=True)), indexing="ij"
            ),
            -1,
        ).reshape(-1, 2)
        if (taps == 0).all() and self.stride == (1, 1) and out_size == (height, width):
            return Geometry(out_size, np.empty((0, 2), np.intp), np.zeros(1, np.intp), np.zeros(1, np.intp))
        # Tap (i, j) of output (y, x) reads row y * stride + i * dilation: taps whose rows differ by a multiple of the
        # stride share a copy, further down. Every column has one of its own, so that rows join without a gap.
        shift, remainder = np.divmod(taps[:, 0], self.stride[0])
        copies, copy = np.unique(np.stack([remainder, taps[:, 1]], -1), axis=0, return_inverse=True)
        return Geometry(out_size, np.ascontiguousarray(copies, np.intp), copy.reshape(-1), shift)

    def split(self, height: int, width: int, geometry: Geometry) -> Split:
        """Chooses bands that stay in the cache, and whether to finish block rows or pixels first."""
        out_h, out_w = geometry.out_size
        outputs, group_in = self.shape[:2]
        channels = group_in * self.groups
        block = max(pixels for _, pixels in self._tiles)
        blocks = -(-RUN_PIXELS // block)
        tile = blocks * block
        if not len(geometry.copies):
            band = plane_rows = out_h
            stride = height * width
        else:
            halo = int(geometry.tap_rows.max())
            row_bytes = 4 * channels * len(geometry.copies) * out_w
            band = _band(out_h, out_w, -(-out_h * row_bytes // CACHED_PLANES), halo, tile)
            plane_rows = band + halo
            stride = _odd_lines(len(geometry.copies) * plane_rows * out_w)
        pixels = band * out_w
        if pixels == tile + 1 or (blocks == 1 and pixels % (tile + 1) == 0 and pixels % LINE):
            # An odd pixel costs next to nothing beside a single block, while what remains of a plane would be a poor
            # tile. Not where it would take the runs off the cache lines' boundaries.
            tile += 1
        return Split(band, plane_rows, stride, tile, 4 * channels * stride > CACHED_INPUT)

    def prepare(self, height: int, width: int) -> Any:
        """Returns the compiled convolution for one input size, and its output's height and width."""
        if (height, width) not in self._prepared:
            while len(self._prepared) >= KEPT_SIZES:
                self._prepared.pop(next(iter(self._prepared)))
            build = self._build_depthwise if self._depthwise else self._build
            self._prepared[height, width] = build(height, width), self.out_size(height, width)
        return self._prepared[height, width]

    def _build(self, height: int, width: int) -> Any:
        geometry = self.geometry(height, width)
        split = self.split(height, width, geometry)
        offsets = (geometry.tap_copies * split.plane_rows + geometry.tap_rows) * geometry.out_size[1]
        return runtime.kernels().Convolution(
            self._set,
            self._values,
            self._indices,
            self._block,
            self.groups,
            self._bias,
            self.activation,
            (self.shape[1] * self.groups, height, width),
            (self.shape[0], *geometry.out_size),
            geometry.copies,
            (self.padding[0][0], self.padding[1][0]),
            self.stride,
            np.ascontiguousarray(offsets, np.intp),
            **dataclasses.asdict(split),
        )

    def _build_depthwise(self, height: int, width: int) -> Any:
        return runtime.kernels().Depthwise(
            self._set,
            self._values,
            self._bias,
            self.activation,
            (height, width),
            self.out_size(height, width),
            self.stride,
            self.dilation,
            (self.padding[0][0], self.padding[1][0]),
        )

    def __call__(
        self,
        x: np.ndarray,
        residual: np.ndarray | None = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        empty: Callable[[Sequence[int]], np.ndarray] = aligned_empty,
    ) -> np.ndarray:
        """Returns activation(conv(x) + bias + residual), `[B, O, Ho, Wo]` float32.

        Args:
            x: `[B, I, H, W]`, cast to float32.
            residual: `[B, O, Ho, Wo]` or broadcastable to it.
            out: where to write: C-contiguous float32 of the output's shape. It must not overlap `x`.
            threads: see `runtime.thread_count`. Any number gives the same bits.
            empty: makes the output where `out` is None.

        Raises:
            ValueError: shapes that do not fit.
        """
        x = np.ascontiguousarray(x, np.float32)
        channels = self.shape[1] * self.groups
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
            raise ValueError(f"input has shape {x.shape}; expected [B, {channels}, H, W] with no empty dimension")
        threads = runtime.thread_count(threads)
        compiled, out_size = self.prepare(*x.shape[2:])
        shape = (x.shape[0], self.shape[0], *out_size)
        if out is None:
            out = empty(shape)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected C-contiguous float32 {shape}")
        elif np.may_share_memory(out, x):
            raise ValueError("out overlaps the input, which is still read while out is written; pass another array")
        if residual is not None:
            try:
                residual = np.ascontiguousarray(np.broadcast_to(residual, shape), np.float32)
            except ValueError as error:
                raise ValueError(f"residual has shape {np.shape(residual)}; expected {shape}") from error
        compiled.run(x, residual, out, scratch(compiled.scratch * threads), threads)
        return out


def _band(out_h: int, out_w: int, least: int, halo: int, tile: int) -> int:
    """Rows of a band, of at least `least` bands: those that leave the fewest lanes of a vector empty.

    Filling `halo` rows more for each band is weighed as a twentieth of computing them.
    """

    def lanes(rows: int) -> int:
        pixels = rows * out_w
        return pixels if pixels % (tile + 1) == 0 else -(-pixels // LINE) * LINE

    def cost(band: int) -> float:
        whole, rest = divmod(out_h, band)
        return whole * lanes(band) + lanes(rest) + 0.05 * halo * out_w * (whole + (rest > 0))

    if least <= 1 and out_h * out_w < BANDS * 2 * RUN_PIXELS:
        return out_h
    least = max(least, BANDS)
    heights = {-(-out_h // bands) for bands in range(least, min(out_h, 4 * least) + 1)} or {1}
    even = {height for height in heights if -(-out_h // height) % BANDS == 0}
    return min(even or heights, key=cost)


def _odd_lines(size: int) -> int:
    """The next odd number of cache lines, in floats: a power of two would send all channels to the same cache sets."""
    return (-(-size // LINE) | 1) * LINE


def _pack(values: np.ndarray, tiles: Sequence[int]) -> np.ndarray:
    """`[R, K, kh, kw, N]` to `[R, ...]`, each row one tile of channels after the other, as the kernels read them."""
    rows, ends = values.shape[0], np.cumsum(tiles)
    parts = [values[..., end - size : end].reshape(rows, -1) for size, end in zip(tiles, ends, strict=True)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _as_blocks(weight: UniformBlockSparse | np.ndarray, groups: int | None) -> UniformBlockSparse:
    if isinstance(weight, UniformBlockSparse):
        if groups not in (None, weight.groups):
            raise ValueError(f"groups is {groups}, but the weight was packed for {weight.groups}")
        return weight
    weight, groups = np.asarray(weight), groups or 1
    if weight.ndim != 4:
        raise ValueError(f"weight has shape {weight.shape}; expected [O, I / groups, kh, kw]")
    block = min(DENSE_BLOCK, max(1, weight.shape[0] // groups))
    full = np.ones((groups * -(-(weight.shape[0] // groups) // block), weight.shape[1]), bool)
    return UniformBlockSparse.from_dense(weight, block, groups, full)


def conv2d(
    x: np.ndarray,
    weight: UniformBlockSparse | np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    *,
    groups: int | None = None,
    residual: np.ndarray | None = None,
    activation: str | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
    kernel_set: str | None = None,
) -> np.ndarray:
    """Runs one convolution; arguments as `Convolution` and its call. Packs nothing if the weight is packed."""
    convolution = Convolution(weight, bias, stride, padding, dilation, groups, activation, kernel_set)
    return convolution(x, residual, out, threads)
