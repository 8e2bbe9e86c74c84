"""What a convolution is, apart from its weights: sizes, strides, padding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.dtypes import DTYPES, Array
from subp_ext.requantize import Requantization

# Sizes beyond it are mistakes, and sums of a few below it fit the kernels' integers.
MAX_SIZE = 2**31 - 1

# Words of a row of a tile register.
REGISTER_WORDS = 16


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """Returns (height, width) from one number or two.

    Raises:
        ValueError: not one or two whole numbers of at least `least`, or larger than any picture.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or any(not isinstance(v, (int, np.integer)) or not least <= v <= MAX_SIZE for v in values):
        raise ValueError(f"{name} is {value!r}; expected one or two whole numbers from {least} to {MAX_SIZE}")
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
class Layer:
    """A convolution, all of it checked.

    Attributes:
        shape: of the weight, (O, I / groups, kh, kw).
        groups: of its channels.
        block_size: N, output channels of a block.
        indices: `[R, K]` channels of the kept blocks, within the group.
        bias: `[O]` float32 or None, in the order of the block rows' channels.
        stride, dilation: (height, width).
        padding: ((top, bottom), (left, right)) zeros.
        activation: a name of `graph.ACTIVATIONS` or None.
        kernel_set: admits the kernels that need no more than it does; None all that this CPU can run.
        dtype: of the activations, as of the kernels' rows.
        order: `[O]` the output channel that each channel of the block rows is; None where they follow each other.
    """

    shape: tuple[int, int, int, int]
    groups: int
    block_size: int
    indices: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    activation: str | None
    kernel_set: str | None
    dtype: str = "float32"
    order: np.ndarray | None = None

    @property
    def channels(self) -> int:
        """Input channels of all groups."""
        return self.shape[1] * self.groups

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.shape[2:]

    @property
    def tiles(self) -> list[tuple[int, int, str]]:
        """The (channels, pixels, packing) of the kernels that a block row takes, one after the other."""
        return runtime.kernels().tiles(self.kernel_set, self.block_size, self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return DTYPES[self.dtype].itemsize

    def choose(self, operator: str, **shape: Any) -> tuple[str, list[tuple[str, str]]]:
        """Returns the kernel that runs an operator, and the better ones with the reason why they do not.

        Args:
            operator: of the rows.
            shape: as of `_kernels.choose`.

        Raises:
            ValueError: there is none for the data type.
        """
        found = runtime.kernels().choose(self.kernel_set, operator, self.dtype, **shape)
        if found is None:
            raise ValueError(f"there is no {self.dtype} kernel for {operator}")
        return found

    def row(self, name: str) -> dict[str, Any]:
        """Returns the row of a kernel."""
        return next(row for row in runtime.rows() if row["name"] == name)

    @property
    def padded_weights(self) -> int:
        """Kept weights of one tap, with the zeros that pad narrow block rows."""
        return self.indices.size * self.block_size

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


@dataclass
class Weight:
    """The values of a weight, shared by the algorithms that may still pack them.

    Attributes:
        values: `[R, K, kh, kw, N]`; None once no algorithm will.
        sums: `[O]` int64, those of the integers of each output channel; None for floats.
    """

    values: np.ndarray | None
    sums: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return 0 if self.values is None else self.values.nbytes


class Algorithm(ABC):
    """What can run a layer. Its weights are packed when it is chosen for the first time.

    Args:
        layer: to be run.
        weight: of the layer.
        operator: of the kernels' rows.
        shape: of the operator, as of `Layer.choose`.

    Attributes:
        kernel: the name of the row that runs it.
        interleave: channels of a word that it reads; 1 where it reads planes.
        passed_over: the better rows, best first, each with the reason why it is not taken.
        note: what a report adds to say how it computes.
    """

    def __init__(self, layer: Layer, weight: Weight, operator: str, **shape: Any) -> None:
        self._layer, self._weight = layer, weight
        self._multiplied = layer  # as the kernels of its products see it
        self.kernel, self.passed_over = layer.choose(operator, **shape)
        row = layer.row(self.kernel)
        self._packing, self.interleave = row["packing"], row["interleave"]
        self.note = ""
        self._packed: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return 0 if self._packed is None else self._packed.nbytes

    @property
    def usable(self) -> bool:
        """Whether its weights are packed or can be."""
        return self._packed is not None or self._weight.values is not None

    def packed(self) -> np.ndarray:
        """Returns the weights as the kernel reads them."""
        if self._packed is None:
            assert self._weight.values is not None
            self._packed = PACKINGS[self._packing](self._transformed(self._weight.values), self._multiplied)
        return self._packed

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        """The values that are packed."""
        return values

    @abstractmethod
    def cost(self, height: int, width: int) -> float:
        """What an image of this size takes, in products."""

    @abstractmethod
    def build(self, height: int, width: int, requantize: Requantization | None = None, out_dtype: str = "") -> Any:
        """Returns what is compiled for one input size.

        Args:
            height: of the input.
            width: of the input.
            requantize: of uint8, the constants that make outputs of sums.
            out_dtype: of the outputs; empty for that of the kernel's row.
        """


def pack_tiles(values: np.ndarray, layer: Layer) -> np.ndarray:
    """`[R, ..., N]` to `[R, -1]`, each row one tile of channels after the other, as the kernels read them."""
    packed = np.empty((len(values), values[0].size), values.dtype)
    for tile, channels in _tiles(packed, layer, *values.shape[1:-1]):
        tile[...] = values[..., channels]
    return packed


def _tiles(packed: np.ndarray, layer: Layer, *terms: int, per_word: int | None = None) -> Iterator[tuple[Array, slice]]:
    """The tiles in packed weights, `[R, *terms, channels]`, with words `[..., per_word]`, and the channels of each."""
    rows, end = len(packed), 0
    size, words = math.prod(terms) * (per_word or 1), () if per_word is None else (per_word,)
    for channels, _, _ in layer.tiles:
        begin, end = end, end + channels
        yield packed[:, begin * size : end * size].reshape(rows, *terms, channels, *words), slice(begin, end)


def pack_planes(values: np.ndarray, layer: Layer) -> np.ndarray:
    """Weights of a depthwise convolution, `[C, 1, kh, kw, 1]` to `[C, kh, kw]`."""
    return np.ascontiguousarray(values[:, 0, :, :, 0])


def pack_blocks(values: np.ndarray, layer: Layer) -> np.ndarray:
    """`[R, K, kh, kw, N]` to `[R, -1]`, as they are, and in the same memory."""
    return values.reshape(len(values), -1)


def pack_quads(values: np.ndarray, layer: Layer) -> np.ndarray:
    """int8 `[R, K, kh, kw, N]` to `[R, -1]`, tile by tile as `pack_tiles`, in words of four kept channels each."""
    return _pack_words(values, layer, 4)


def pack_pairs(values: np.ndarray, layer: Layer) -> np.ndarray:
    """As `pack_quads`, in words of two kept channels, their weights widened to 16 bits; the bytes of them."""
    return _pack_words(values, layer, 2, np.int16).view(np.int8)


def pack_words(values: np.ndarray, layer: Layer) -> np.ndarray:
    """As `pack_quads`, of bfloat16 and two kept channels; each tile in the order that its kernel wants.

    A last word of one channel has it twice, each time with half of the weight, which gives the same product: weights of
    nothing would make NaN of infinity.
    """
    packed = _pack_words(values, layer, 2)
    rows, kept, kh, kw, block = values.shape
    row = DTYPES["bfloat16"]
    halves = row.from_float(row.to_float(values[:, -1:]) / 2).reshape(rows, -1, kh * kw, block, 1)
    tiles = _tiles(packed, layer, -(-kept // 2), kh * kw, per_word=2)
    for (tile, channels), (_, _, packing) in zip(tiles, layer.tiles, strict=True):
        if kept % 2:
            tile[:, -1:] = halves[:, :, :, channels]
        if packing == "tile_registers":
            tile[...] = _by_register(tile)
    return packed


def _pack_words(values: np.ndarray, layer: Layer, per_word: int, dtype: Any = None) -> np.ndarray:
    """Tiles of `[words, taps, channels, per_word]`; what fills the last word weighs nothing."""
    rows, kept, kh, kw, block = values.shape
    words, taps = -(-kept // per_word), kh * kw
    values = values.reshape(rows, kept, taps, block)
    packed = np.zeros((rows, words * taps * block * per_word), dtype or values.dtype)
    for tile, channels in _tiles(packed, layer, words, taps, per_word=per_word):
        for i in range(per_word):
            part = values[:, i::per_word, :, channels]
            tile[:, : part.shape[1], ..., i] = part
    return packed


def _by_register(tile: np.ndarray) -> np.ndarray:
    """A tile `[R, words, taps, channels, per_word]` in parts `[R, taps, channels, words of a register, per_word]`."""
    parts = [
        tile[:, at : at + REGISTER_WORDS].transpose(0, 2, 3, 1, 4).reshape(len(tile), -1)
        for at in range(0, tile.shape[1], REGISTER_WORDS)
    ]
    return np.concatenate(parts, axis=1).reshape(tile.shape)


# How a kernel wants its weights, by the name that its row gives.
PACKINGS: dict[str, Callable[[np.ndarray, Layer], np.ndarray]] = {
    "tiles": pack_tiles,
    "planes": pack_planes,
    "blocks": pack_blocks,
    "quads": pack_quads,
    "signed_quads": pack_quads,
    "pairs": pack_pairs,
    "words": pack_words,
    "tile_registers": pack_words,
}
