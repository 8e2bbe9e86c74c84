"""Convolutions tap by tap: planes in which every tap is a shifted run of pixels, and depthwise ones in place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.geometry import Algorithm, Layer, Weight
from subp_ext.memory import LINE, odd_lines
from subp_ext.requantize import Requantization

# Planes of one band, in bytes: they share the L2 cache with the weights that pass through.
CACHED_PLANES = 768 * 1024

# Bands come in multiples of this: so many threads work on bands of their own, without an exchange between caches.
BANDS = 2

# Least pixels of a run: what one call of a kernel is worth.
RUN_PIXELS = 48

# Bytes of input beyond which every block row would fetch it anew from outside the L2 cache.
CACHED_INPUT = 256 * 1024

# Words of a band, of one block row or of all where they are shared, in bytes.
CACHED_BAND_WORDS = 256 * 1024

# Words of a pixel so few that what is done once for a run takes a good part of the time; and the tiles of such runs.
FEW_WORDS = 16
TILES_OF_FEW = 4

# What a weight costs beside its products, in products: it comes from outside the L2 cache.
PRODUCTS_PER_WEIGHT = 32

# The same of weights in words, of which a product takes as long as one of float32.
PRODUCTS_PER_NARROW_WEIGHT = 4


def run_pixels(layer: Layer) -> int:
    """Pixels of a run: whole tiles of the kernel, RUN_PIXELS or a little more."""
    block = max(pixels for _, pixels, _ in layer.tiles)
    return -(-RUN_PIXELS // block) * block


def lanes(pixels: int, run: int) -> int:
    """Lanes of vectors that so many pixels take; an odd one beside a whole run is for free."""
    return pixels if pixels % (run + 1) == 0 else -(-pixels // LINE) * LINE


@dataclass(frozen=True)
class Planes:
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


class Direct(Algorithm):
    """The algorithm for every convolution that is not depthwise."""

    def __init__(self, layer: Layer, weight: Weight) -> None:
        super().__init__(layer, weight, "conv2d", channels=layer.block_size)

    def cost(self, height: int, width: int) -> float:
        """What an image takes, in products."""
        out_h, out_w = self._layer.out_size(height, width)
        taps = self._layer.kernel_size[0] * self._layer.kernel_size[1]
        per_weight = PRODUCTS_PER_WEIGHT if self.interleave == 1 else PRODUCTS_PER_NARROW_WEIGHT
        products = per_weight + lanes(out_h * out_w, run_pixels(self._layer))
        return self._layer.padded_weights * taps * products / self.interleave

    def planes(self, height: int, width: int) -> Planes:
        """Lays out the planes for an input of this size."""
        layer, out_size = self._layer, self._layer.out_size(height, width)
        taps = np.stack(
            np.meshgrid(
                *(np.arange(k) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)), indexing="ij"
            ),
            -1,
        ).reshape(-1, 2)
        if (taps == 0).all() and layer.stride == (1, 1) and out_size == (height, width):
            return Planes(out_size, np.empty((0, 2), np.intp), np.zeros(1, np.intp), np.zeros(1, np.intp))
        # Tap (i, j) of output (y, x) reads row y * stride + i * dilation: taps whose rows differ by a multiple of the
        # stride share a copy, further down. Every column has one of its own, so that rows join without a gap.
        shift, remainder = np.divmod(taps[:, 0], layer.stride[0])
        copies, copy = np.unique(np.stack([taps[:, 1], remainder], -1), axis=0, return_inverse=True)
        return Planes(out_size, np.ascontiguousarray(copies[:, ::-1], np.intp), copy.reshape(-1), shift)

    def split(self, height: int, width: int, planes: Planes, band: int | None = None) -> Split:
        """Chooses bands that stay in the cache, and whether to finish block rows or pixels first.

        Args:
            height: of the input.
            width: of the input.
            planes: for this size.
            band: output rows of a pass, where something else decides.
        """
        out_h, out_w = planes.out_size
        layer = self._layer
        channels, tile = layer.channels, run_pixels(layer)
        block = max(pixels for _, pixels, _ in self._layer.tiles)
        if not len(planes.copies):
            band = plane_rows = band or out_h
            stride = height * width
        else:
            halo = int(planes.tap_rows.max())
            row_bytes = layer.itemsize * channels * len(planes.copies) * out_w
            band = band or _band(out_h, out_w, -(-out_h * row_bytes // CACHED_PLANES), halo, tile)
            plane_rows = band + halo
            stride = odd_lines(len(planes.copies) * plane_rows * out_w)
        pixels = band * out_w
        if pixels == tile + 1 or (tile == block and pixels % (tile + 1) == 0 and pixels % LINE):
            # An odd pixel costs next to nothing beside a single block, while what remains of a plane would be a poor
            # tile. Not where it would take the runs off the cache lines' boundaries.
            tile += 1
        return Split(band, plane_rows, stride, tile, layer.itemsize * channels * stride > CACHED_INPUT)

    def build(
        self,
        height: int,
        width: int,
        requantize: Requantization | None = None,
        out_dtype: str = "",
        band: int | None = None,
    ) -> Any:
        """As of `Algorithm`; `band` as for `split`."""
        return self._build(height, width, band, out_dtype=out_dtype)

    def _build(self, height: int, width: int, band: int | None, **more: Any) -> Any:
        layer, planes = self._layer, self.planes(height, width)
        split = self.split(height, width, planes, band)
        offsets = (planes.tap_copies * split.plane_rows + planes.tap_rows) * planes.out_size[1]
        return runtime.kernels().CompiledConvolution(
            layer.kernel_set,
            layer.dtype,
            self.packed(),
            layer.indices,
            layer.block_size,
            layer.groups,
            layer.bias,
            layer.activation,
            (layer.channels, height, width),
            (layer.shape[0], *planes.out_size),
            planes.copies,
            (layer.padding[0][0], layer.padding[1][0]),
            layer.stride,
            np.ascontiguousarray(offsets, np.intp),
            **dataclasses.asdict(split),
            **more,
            order=layer.order,
        )


class DirectWords(Direct):
    """The same where kernels read words of several kept channels, made from the planes.

    Where all block rows keep all channels they share the words of a band; else each makes its own, run by run. Where
    columns of the window, taken for channels of their own, fill words better, they are: with a window of 7x7 the three
    channels of a picture are 21, and 11 words of two with 7 taps each instead of 2 with 49.
    """

    @property
    def _columns(self) -> int:
        """Columns of the window that a kept channel counts for."""
        kept, columns = self._layer.indices.shape[1], self._layer.kernel_size[1]
        return columns if -(-kept * columns // self.interleave) < -(-kept // self.interleave) * columns else 1

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        if self._columns == 1:
            return values
        rows, kept, kh, kw, block = values.shape
        return values.transpose(0, 1, 3, 2, 4).reshape(rows, kept * kw, kh, 1, block)

    def planes(self, height: int, width: int) -> Planes:
        planes, columns = super().planes(height, width), self._columns
        return replace(planes, tap_copies=planes.tap_copies[::columns], tap_rows=planes.tap_rows[::columns])

    def build(
        self,
        height: int,
        width: int,
        requantize: Requantization | None = None,
        out_dtype: str = "",
        band: int | None = None,
    ) -> Any:
        planes = self.planes(height, width)
        split = self.split(height, width, planes, band)
        # Words of one tap are read once, by one tile; those of several taps again and again, by their neighbours too.
        if requantize is not None:
            if self._packing == "signed_quads":
                requantize = _of_signed(requantize, self._weight)
            requantize = requantize.in_order(self._layer.order)
        run = self._run(split) if len(planes.tap_rows) == 1 else split.band * planes.out_size[1]
        return self._build(
            height, width, split.band, requantize=requantize, run_pixels=run, out_dtype=out_dtype, columns=self._columns
        )

    def _run(self, split: Split) -> int:
        """Pixels of a run of one tap."""
        few = -(-self._layer.indices.shape[1] // self.interleave) <= FEW_WORDS and split.tile_pixels % LINE == 0
        return split.tile_pixels * (TILES_OF_FEW if few else 1)

    def split(self, height: int, width: int, planes: Planes, band: int | None = None) -> Split:
        layer, (out_h, out_w) = self._layer, planes.out_size
        tile, kept, copies = run_pixels(layer), layer.indices.shape[1], max(1, len(planes.copies))
        shared = kept == layer.shape[1]
        halo = int(planes.tap_rows.max())
        # Bytes of a row of words, and of the planes that they are made of.
        row_bytes = layer.itemsize * out_w
        words, sources = copies * kept * row_bytes, len(planes.copies) * layer.channels * row_bytes
        if shared:
            words *= layer.groups
        if band is None and (shared or len(planes.copies)):
            least = max(-(-out_h * words // CACHED_BAND_WORDS), -(-out_h * sources // CACHED_PLANES))
            band = _band(out_h, out_w, least, halo, tile)
        band = band or out_h
        plane_rows = band + halo if len(planes.copies) else band
        stride = odd_lines(-(-copies * plane_rows * row_bytes // 4)) * 4 // layer.itemsize
        stride = stride if len(planes.copies) else height * width
        pixels, block = band * out_w, max(pixels for _, pixels, _ in layer.tiles)
        if tile == block and pixels % (tile + 1) == 0 and pixels % LINE:
            tile += 1  # as above, for kernels that compute an odd pixel beside a block
        if tile < pixels < tile + LINE // 2:
            tile = pixels  # a few pixels by themselves would want words of their own
        return Split(band, plane_rows, stride, tile, True)


class Depthwise(Algorithm):
    """The algorithm for depthwise convolutions."""

    def __init__(self, layer: Layer, weight: Weight) -> None:
        window = {"kernel": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation}
        super().__init__(layer, weight, "depthwise", **window)

    def cost(self, height: int, width: int) -> float:
        return 0.0  # there is no other

    def build(
        self,
        height: int,
        width: int,
        requantize: Requantization | None = None,
        out_dtype: str = "",
        order: np.ndarray | None = None,
    ) -> Any:
        """As of `Algorithm`; `order` is that of the channels where they are not in their own."""
        layer, values, bias = self._layer, self.packed(), self._layer.bias
        if order is not None:
            values, bias = values[order], None if bias is None else bias[order]
        requantize = None if requantize is None else requantize.in_order(order)
        return runtime.kernels().CompiledDepthwise(
            layer.kernel_set,
            layer.dtype,
            values,
            bias if requantize is None else None,
            layer.activation if requantize is None else None,
            (height, width),
            layer.out_size(height, width),
            layer.stride,
            layer.dilation,
            (layer.padding[0][0], layer.padding[1][0]),
            requantize,
            out_dtype,
        )


def _of_signed(requantize: Requantization, weight: Weight) -> Requantization:
    """The constants for activations minus 128, as signed products take them. Sums that wrap around do so back."""
    assert weight.sums is not None
    start = (requantize.start + 128 * weight.sums).astype(np.uint32).view(np.int32)
    return replace(requantize, start=start)


def _band(out_h: int, out_w: int, least: int, halo: int, tile: int) -> int:
    """Rows of a band, of at least `least` bands: those that leave the fewest lanes of a vector empty.

    Filling `halo` rows more for each band is weighed as a twentieth of computing them.
    """

    def cost(band: int) -> float:
        whole, rest = divmod(out_h, band)
        return (
            whole * lanes(band * out_w, tile) + lanes(rest * out_w, tile) + 0.05 * halo * out_w * (whole + (rest > 0))
        )

    if least <= 1 and out_h * out_w < BANDS * 2 * RUN_PIXELS:
        return out_h
    least = max(least, BANDS)
    heights = {-(-out_h // bands) for bands in range(least, min(out_h, 4 * least) + 1)} or {1}
    even = {height for height in heights if -(-out_h // height) % BANDS == 0}
    return min(even or heights, key=cost)
