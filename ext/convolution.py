"""2-D convolution on the compiled kernels: geometry, packing at load, planes and the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.sparse import UniformBlockSparse

# Block size of dense weights that come without one: a multiple of every kernel's tile.
DENSE_BLOCK = 16


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
    """Where the pixels of a convolution are, for one input size."""

    planes: tuple[int, int, int]  # phases, and the height and width of each
    phases: np.ndarray  # [phases, 2] the row and column of each
    tap_offsets: np.ndarray  # [taps] within the planes of a channel
    out_size: tuple[int, int]

    @property
    def pitch(self) -> int:
        """Flat pixels from one output row to the next."""
        return self.planes[2]


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
        depthwise = group_in == 1 and outputs == weight.groups
        self._op = "dwconv" if depthwise else "ubsconv"
        # [R, K, taps, N], as the kernels read them.
        self._values = weight.values.reshape(*weight.values.shape[:2], -1, weight.block_size)
        if depthwise and weight.block_size > 1:  # one channel per row: the rest of a block would be padding
            self._values = np.ascontiguousarray(self._values[..., :1])
        self._indices = weight.indices
        self.kernel = runtime.kernels().kernel_name(self._op, self._set, self._values.shape[3])

    def macs(self, out_shape: Sequence[int]) -> int:
        """Multiply-accumulates on kept weights for an output `[B, O, Ho, Wo]`."""
        outputs, group_in, kh, kw = self.shape
        kept = round(self.kept_share * group_in)
        return int(out_shape[0]) * outputs * kept * kh * kw * int(out_shape[2]) * int(out_shape[3])

    def geometry(self, height: int, width: int) -> Geometry:
        """Lays out the planes for an input of this size.

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
        out_size = tuple((p - r - 1) // s + 1 for p, r, s in zip(padded, reach, self.stride, strict=True))
        # Tap (i, j) of output (y, x) reads row y * stride + i * dilation: phase and offset follow from the remainder.
        taps = np.stack(
            np.meshgrid(
                *(np.arange(k) * d for k, d in zip(self.kernel_size, self.dilation, strict=True)), indexing="ij"
            ),
            -1,
        ).reshape(-1, 2)
        shift, remainder = np.divmod(taps, self.stride)
        phases, phase = np.unique(remainder, axis=0, return_inverse=True)
        plane = out_size + shift.max(axis=0)
        offsets = phase.reshape(-1) * plane.prod() + shift[:, 0] * plane[1] + shift[:, 1]
        return Geometry(
            (len(phases), int(plane[0]), int(plane[1])),
            np.ascontiguousarray(phases, np.intp),
            np.ascontiguousarray(offsets, np.intp),
            (int(out_size[0]), int(out_size[1])),
        )

    def __call__(
        self,
        x: np.ndarray,
        residual: np.ndarray | None = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
    ) -> np.ndarray:
        """Returns activation(conv(x) + bias + residual), `[B, O, Ho, Wo]` float32.

        Args:
            x: `[B, I, H, W]`, cast to float32.
            residual: `[B, O, Ho, Wo]` or broadcastable to it.
            out: where to write: C-contiguous float32 of the output's shape. It must not overlap `x`.
            threads: see `runtime.thread_count`. Any number gives the same bits.

        Raises:
            ValueError: shapes that do not fit.
        """
        x = np.ascontiguousarray(x, np.float32)
        channels = self.shape[1] * self.groups
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
            raise ValueError(f"input has shape {x.shape}; expected [B, {channels}, H, W] with no empty dimension")
        threads = runtime.thread_count(threads)
        geometry = self.geometry(*x.shape[2:])
        shape = (x.shape[0], self.shape[0], *geometry.out_size)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected C-contiguous float32 {shape}")
        elif np.may_share_memory(out, x):
            raise ValueError("out overlaps the input, which is still read while out is written; pass another array")
        if residual is not None:
            try:
                residual = np.ascontiguousarray(np.broadcast_to(residual, shape), np.float32)
            except ValueError as error:
                raise ValueError(f"residual has shape {np.shape(residual)}; expected {shape}") from error
        runtime.kernels().convolve(
            self._op,
            self._set,
            self._planes(x, geometry, threads),
            geometry.tap_offsets,
            geometry.pitch,
            self._values,
            self._indices,
            self.groups,
            self._bias,
            residual,
            self.activation,
            out,
            threads,
        )
        return out

    def _planes(self, x: np.ndarray, geometry: Geometry, threads: int) -> np.ndarray:
        """`[B, I, phases * plane_h * plane_w]`; the input itself where it already is that."""
        batch, channels, height, width = x.shape
        padded = any(map(any, self.padding))
        if not padded and self.stride == (1, 1) and geometry.planes == (1, height, width):
            return x.reshape(batch, channels, -1)
        planes = np.empty((batch * channels, *geometry.planes), np.float32)
        runtime.kernels().fill_planes(
            x.reshape(-1, height, width),
            geometry.phases,
            (self.padding[0][0], self.padding[1][0]),
            self.stride,
            planes,
            threads,
        )
        return planes.reshape(batch, channels, -1)


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
