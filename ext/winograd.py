"""3x3 convolutions after Winograd: which of them, on tiles of which size, and their weights.

Blocks of 1xN pruning are whole kernels, so a pruned block is zero at every position of the transformed kernel too: the
same indices hold at all of them, and every position is a uniform block-sparse product of its own. Tiles of 2x2 outputs
take 16 products where the convolution takes 36, tiles of 4x4 take 36 in place of 144; against that stand the
transforms, lanes left empty by the few tiles of small planes, and weights that become 1.8 or 4 times as large. Planes
of bfloat16 are transformed and multiplied in float32, at half the rate of their own products; their weights stay as
they are stored and are transformed for each run.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.direct import PRODUCTS_PER_WEIGHT, lanes, run_pixels
from subp_ext.dtypes import FLOAT32
from subp_ext.geometry import Algorithm, Layer, Weight
from subp_ext.memory import odd_lines
from subp_ext.requantize import Requantization

# Transforms of the three rows of a kernel, by outputs of a tile; the points are 0, 1, -1, 2, -2 and infinity.
KERNEL_TRANSFORMS = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}

# Transformed channels of one run, in bytes: they stay in the L2 cache while all block rows pass.
CACHED_RUN = 768 * 1024


# What a number takes to be transformed, in products.
PRODUCTS_PER_TRANSFORM = 16

# The same of bfloat16, and what a weight that is transformed for each run takes beside its products.
PRODUCTS_PER_NARROW_TRANSFORM, PRODUCTS_PER_MADE_WEIGHT = 8, 2.5

# Of bfloat16: with more, transformed channels leave the L2 cache, and a weight that waits for the choice of an
# algorithm is held beside its packed form.
MOST_NARROW_CHANNELS = 256

# Floats behind a run that whole vectors may spill into; as in kernels/kernels.h.
SLACK = 15


def fits(layer: Layer, size: int) -> bool:
    """Whether a layer can run on tiles of size x size outputs."""
    plain = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.dilation == (1, 1)
    if layer.dtype != FLOAT32.name and layer.channels > MOST_NARROW_CHANNELS:
        return False
    return plain and runtime.kernels().choose(layer.kernel_set, "winograd", layer.dtype, size=size) is not None


def transform_kernels(values: np.ndarray, size: int) -> np.ndarray:
    """`[R, K, 3, 3, N]` to `[R, positions, K, N]`, computed in float64."""
    g = KERNEL_TRANSFORMS[size]
    found = np.einsum("pi,qj,rkijn->rpqkn", g, g, values.astype(np.float64), optimize=True)
    return found.reshape(len(values), -1, values.shape[1], values.shape[4]).astype(np.float32)


class Winograd(Algorithm):
    """The algorithm on tiles of one size.

    Args:
        layer: to be run; `fits` says which can be.
        weight: of the layer.
        size: outputs of a tile along a side, a key of KERNEL_TRANSFORMS.
    """

    def __init__(self, layer: Layer, weight: Weight, size: int) -> None:
        super().__init__(layer, weight, "winograd", size=size)
        self._size, self._positions = size, (size + 2) ** 2
        self._multiplied = replace(layer, dtype=FLOAT32.name)
        self._made = self._packing == "blocks"  # for each run
        self.note = ", transformed and multiplied in float32" if layer.dtype != FLOAT32.name else ""

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        return values if self._made else transform_kernels(values, self._size)

    def _tiles(self, height: int, width: int) -> int:
        out_h, out_w = self._layer.out_size(height, width)
        return -(-out_h // self._size) * -(-out_w // self._size)

    def cost(self, height: int, width: int) -> float:
        """What an image takes, in products."""
        layer, tiles = self._layer, self._tiles(height, width)
        per_weight: float
        per_weight, per_transform = PRODUCTS_PER_WEIGHT, PRODUCTS_PER_TRANSFORM
        if self._made:
            per_weight = PRODUCTS_PER_MADE_WEIGHT * -(-tiles // self._run(tiles)[0])
            per_transform = PRODUCTS_PER_NARROW_TRANSFORM
        products = layer.padded_weights * (per_weight + lanes(tiles, run_pixels(self._multiplied)))
        return self._positions * (products + per_transform * tiles * (layer.channels + layer.shape[0]))

    def build(self, height: int, width: int, requantize: Requantization | None = None, out_dtype: str = "") -> Any:
        """Returns the compiled convolution for one input size."""
        layer, (run, call_tiles) = self._layer, self._run(self._tiles(height, width))
        return runtime.kernels().CompiledWinograd(
            layer.kernel_set,
            layer.dtype,
            self._size,
            self.packed(),
            layer.indices,
            layer.block_size,
            layer.groups,
            layer.bias,
            layer.activation,
            (layer.channels, height, width),
            (layer.shape[0], *layer.out_size(height, width)),
            (layer.padding[0][0], layer.padding[1][0]),
            run=run,
            call_tiles=call_tiles,
            pitch=odd_lines(run + SLACK),
            out_dtype=out_dtype,
            order=layer.order,
        )

    def _run(self, tiles: int) -> tuple[int, int]:
        """Tiles of a run and of a call, of so many in an image."""
        call_tiles = run_pixels(self._multiplied)
        # One tile more than a call takes costs next to nothing beside it; 28x28 in 4x4 and 14x14 in 2x2 have 49.
        call_tiles += tiles % (call_tiles + 1) == 0
        room = CACHED_RUN // (FLOAT32.itemsize * self._positions * self._layer.channels)
        return min(tiles, max(1, room // call_tiles) * call_tiles), call_tiles
