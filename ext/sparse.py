"""Uniform block sparse weights: every block row of a convolution keeps the same number of 1xN blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from subp_ext.dtypes import DTYPES, Array, DType, Float32Array


@dataclass(frozen=True, eq=False)
class UniformBlockSparse:
    """The kept blocks of a convolution's weight. A dense convolution is K = I / groups.

    A block is N output channels x one input channel x the whole kernel. Block rows live inside each group,
    R = groups * ceil((O / groups) / N) in all; a group's last row may be narrower than N, and its values are then
    zero-padded. The channels of a row follow each other, or are any of the group's where there is an order.

    Attributes:
        values: `[R, K, kh, kw, N]` in the storage of `dtype`.
        indices: `[R, K]` int32, the kept input channels within the group, ascending.
        shape: `(O, I / groups, kh, kw)` of the dense weight.
        block_size: N.
        groups: groups of the convolution.
        dtype: of the values, a row of `DTYPES` for weights.
        scale: `[O]` float32, what each output channel's integers are multiplied by; None for floats.
        order: `[O]` int32, the output channel that each channel of the block rows, one row after the other, is; rows of
            a group hold channels of that group. None where they follow each other as they are.

    Raises:
        ValueError: the parts do not fit each other; the message names the first that does not.
        TypeError: an array is not of the dtype above.
    """

    values: Array
    indices: npt.NDArray[np.int32]
    shape: tuple[int, int, int, int]
    block_size: int
    groups: int = 1
    dtype: str = "float32"
    scale: Float32Array | None = None
    order: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _check_shape(self.shape, self.block_size, self.groups))
        if self.dtype not in DTYPES or not self._row.weights:
            known = ", ".join(name for name, row in DTYPES.items() if row.weights)
            raise ValueError(f"weights of {self.dtype!r}; expected one of {known}")
        whole, real = np.dtype(np.int32), np.dtype(np.float32)
        wanted = {"values": self._row.storage, "indices": whole, "scale": real, "order": whole}
        for name, dtype in wanted.items():
            array = getattr(self, name)
            if array is None and name in ("scale", "order"):
                continue
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise TypeError(f"{name} is {found}; expected a NumPy array of {dtype}")
            object.__setattr__(self, name, np.ascontiguousarray(array))
        self._check_arrays()
        self._check_scale()
        self._check_order()

    @property
    def _row(self) -> DType:
        return DTYPES[self.dtype]

    def _check_scale(self) -> None:
        outputs, integers = self.shape[0], self._row.kind == "integer"
        if integers != (self.scale is not None):
            raise ValueError(
                f"{self.dtype} values {'need a scale per output channel' if integers else 'have no scale'}"
            )
        if self.scale is None:
            return
        if self.scale.shape != (outputs,):
            raise ValueError(f"scale has shape {self.scale.shape}; expected ({outputs},), one per output channel")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("a scale is not a positive finite number")

    def _check_order(self) -> None:
        if self.order is None:
            return
        outputs = self.shape[0]
        if self.order.shape != (outputs,) or not np.array_equal(np.sort(self.order), np.arange(outputs)):
            raise ValueError(f"order is no permutation of the {outputs} output channels")
        per_group = outputs // self.groups
        if not np.array_equal(self.order // per_group, np.arange(outputs) // per_group):
            raise ValueError("order takes a channel out of its group")

    def _check_arrays(self) -> None:
        _, channels, kh, kw = self.shape
        rows, indices = block_rows(self.shape[0], self.block_size, self.groups), self.indices
        if indices.ndim != 2 or indices.shape[0] != rows or not 1 <= indices.shape[1] <= channels:
            raise ValueError(
                f"indices have shape {indices.shape}; expected [{rows}, K] with 1 <= K <= {channels} "
                f"for a weight {self.shape} with block size {self.block_size} and groups {self.groups}"
            )
        expected = (rows, indices.shape[1], kh, kw, self.block_size)
        if self.values.shape != expected:
            raise ValueError(f"values have shape {self.values.shape}; expected [R, K, kh, kw, N] = {expected}")
        bad = (indices < 0) | (indices >= channels)
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            raise ValueError(
                f"block row {row}: channel {int(indices[row][bad[row]][0])} is out of bounds; "
                f"expected 0 <= channel < {channels}"
            )
        falling = np.diff(indices, axis=1) <= 0
        if falling.any():
            row = int(falling.any(axis=1).argmax())
            raise ValueError(f"block row {row}: channels are not ascending; sort them and drop repeated ones")
        narrow = self.shape[0] // self.groups % self.block_size
        last_rows = self.values[rows // self.groups - 1 :: rows // self.groups]
        if narrow and last_rows[..., narrow:].any():
            raise ValueError("the zero padding of a block row narrower than the block size holds other values")

    @classmethod
    def from_dense(
        cls, weight: np.ndarray, block_size: int, groups: int = 1, mask: np.ndarray | None = None
    ) -> UniformBlockSparse:
        """Packs a dense weight.

        Args:
            weight: `[O, I / groups, kh, kw]`, float32 or convertible.
            block_size: N, output channels of a block.
            groups: groups of the convolution.
            mask: `[R, I / groups]` bool, the blocks to keep; by default those with a non-zero weight.

        Raises:
            ValueError: the block rows keep different numbers of blocks, or a non-zero weight lies outside `mask`.
        """
        weight = np.asarray(weight, dtype=np.float32)
        _, channels, *_ = shape = _check_shape(weight.shape, block_size, groups)
        blocks = _in_blocks(weight, block_size, groups)
        filled = np.asarray(blocks.any(axis=(2, 3))).any(axis=2)
        kept = np.asarray(filled) if mask is None else _check_mask(mask, np.asarray(filled))
        counts = kept.sum(axis=1)
        _check_uniform(counts, channels)
        indices = np.nonzero(kept)[1].reshape(len(counts), -1).astype(np.int32)
        values = blocks if kept.all() else blocks[np.arange(len(counts))[:, None], indices]
        return cls(np.ascontiguousarray(values), indices, shape, block_size, groups)

    @classmethod
    def of_all_blocks(
        cls, stored: Array, block_size: int, groups: int = 1, dtype: str = "float32", scale: Float32Array | None = None
    ) -> UniformBlockSparse:
        """Packs a dense weight `[O, I / groups, kh, kw]` in the storage of its type, and keeps all of its blocks.

        Args:
            stored: elements of `dtype`.
            block_size: N, output channels of a block.
            groups: groups of the convolution.
            dtype: name of the type.
            scale: `[O]`, of integers.
        """
        shape = _check_shape(stored.shape, block_size, groups)
        values = np.ascontiguousarray(_in_blocks(stored, block_size, groups))
        indices = np.tile(np.arange(shape[1], dtype=np.int32), (len(values), 1))
        return cls(
            values, indices, shape, block_size, groups, dtype, None if scale is None else np.array(scale, np.float32)
        )

    def to_dense(self) -> Float32Array:
        """Returns the `[O, I / groups, kh, kw]` float32 weight, zero where blocks were not kept."""
        outputs, channels, kh, kw = self.shape
        rows = self.values.shape[0]
        blocks = np.zeros((rows, channels, kh, kw, self.block_size), np.float32)
        stored = self._row.to_float(self.values)
        np.put_along_axis(blocks, self.indices[:, :, None, None, None], stored, axis=1)
        padded = blocks.transpose(0, 4, 1, 2, 3).reshape(self.groups, -1, channels, kh, kw)
        weight = self.in_channels(padded[:, : outputs // self.groups].reshape(self.shape))
        return weight if self.scale is None else weight * self.scale[:, None, None, None]

    def in_channels(self, array: Array) -> Array:
        """Returns `[O, ...]`, one for each channel of the block rows, in the order of the output channels."""
        if self.order is None:
            return np.ascontiguousarray(array)
        ordered = np.empty_like(array)
        ordered[self.order] = array
        return ordered

    def to_float32(self) -> UniformBlockSparse:
        """Returns the same weight in float32; kernels that know other types do not need it."""
        if self.dtype == "float32":
            return self
        values = self._row.to_float(self.values)
        if self.scale is not None:
            values = values * self._scale_of_blocks()[:, None, None, None, :]
        return replace(self, values=values, dtype="float32", scale=None)

    def _scale_of_blocks(self) -> Float32Array:
        """`[R, N]`, 1 in the padding of narrow rows."""
        assert self.scale is not None
        rows, per_group = self.values.shape[0] // self.groups, self.shape[0] // self.groups
        padded = np.ones((self.groups, rows * self.block_size), np.float32)
        scale = self.scale if self.order is None else self.scale[self.order]
        padded[:, :per_group] = scale.reshape(self.groups, per_group)
        return padded.reshape(-1, self.block_size)

    @property
    def kept_share(self) -> float:
        """Kept blocks over all blocks, the same in every block row."""
        return float(self.indices.shape[1] / self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in memory."""
        arrays = (self.values, self.indices, self.scale, self.order)
        return sum(array.nbytes for array in arrays if array is not None)


def _in_blocks(weight: Array, block_size: int, groups: int) -> Array:
    """A dense weight as `[R, I / groups, kh, kw, N]`, narrow rows padded with zeros."""
    outputs, channels, kh, kw = weight.shape
    rows = block_rows(outputs, block_size, groups)
    padded = np.zeros((groups, rows // groups * block_size, channels, kh, kw), weight.dtype)
    padded[:, : outputs // groups] = weight.reshape(groups, outputs // groups, channels, kh, kw)
    return padded.reshape(rows, block_size, channels, kh, kw).transpose(0, 2, 3, 4, 1)


def block_rows(outputs: int, block_size: int, groups: int) -> int:
    """Returns R, the block rows of a weight with that many output channels."""
    return groups * -(-(outputs // groups) // block_size)


def _check_shape(shape: tuple[int, ...], block_size: int, groups: int) -> tuple[int, int, int, int]:
    if len(shape) != 4 or any(int(size) != size or size < 1 for size in shape):
        raise ValueError(
            f"weight shape is {tuple(shape)}; expected four sizes (O, I / groups, kh, kw), each at least 1"
        )
    if block_size < 1 or groups < 1:
        raise ValueError(f"block size is {block_size} and groups {groups}; both must be at least 1")
    if shape[0] % groups:
        raise ValueError(f"{shape[0]} output channels do not split into {groups} groups")
    outputs, channels, kh, kw = (int(size) for size in shape)
    return outputs, channels, kh, kw


def _check_mask(mask: np.ndarray, filled: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != filled.shape:
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}; expected bool [R, I / groups] = {list(filled.shape)}"
        )
    lost = np.argwhere(filled & ~mask)
    if len(lost):
        row, channel = (int(i) for i in lost[0])
        raise ValueError(
            f"block row {row}, channel {channel}: the mask drops the block but its weights are not zero "
            f"({len(lost)} such blocks); apply the mask to the weight first"
        )
    return mask


def _check_uniform(counts: np.ndarray, channels: int) -> None:
    values, frequency = np.unique(counts, return_counts=True)
    expected = int(values[frequency.argmax()])
    if len(values) > 1:
        row = int((counts != expected).argmax())
        raise ValueError(
            f"block row {row} keeps {int(counts[row])} of {channels} blocks, expected {expected} as most rows do; "
            "every row must keep the same number: pass the mask of the pruning, or a full one to keep it dense"
        )
    if expected == 0:
        raise ValueError("the weight is zero everywhere: every block row must keep at least one block; pass a mask")
