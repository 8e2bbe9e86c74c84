"""2-D convolution on the compiled kernels: arguments, the choice of an algorithm, and the call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from subp_ext import runtime
from subp_ext.direct import Depthwise, Direct, DirectWords
from subp_ext.dtypes import DTYPES, Array, TypedArray
from subp_ext.geometry import Layer, Weight, pair, resolve_padding
from subp_ext.memory import aligned_empty, scratch
from subp_ext.requantize import Requantization
from subp_ext.sparse import UniformBlockSparse
from subp_ext.winograd import Winograd, fits

# Block size of dense weights that come without one: a multiple of every kernel's tile.
DENSE_BLOCK = 16

# Input sizes that a convolution stays prepared for.
KEPT_SIZES = 8


class Prepared(NamedTuple):
    """A convolution compiled for one input size, the height and width of its output, and the name of what runs it."""

    compiled: Any
    out_size: tuple[int, int]
    kernel: str


class Convolution:
    """A convolution ready to run: weights packed, arguments checked.

    Args:
        weight: `UniformBlockSparse`, or a dense `[O, I / groups, kh, kw]` array, or a `TypedArray` of bfloat16, or of
            int8 with a scale per output channel. Weights of int8 meet activations of uint8, others those of their type.
        bias: `[O]` or None; with weights of int8 it is part of the requantization, as the activation is.
        stride: a number or [height, width]; likewise `dilation`.
        padding: as `resolve_padding`.
        groups: 1 or more; must be the weight's own if it is UniformBlockSparse.
        activation: None or a name of `graph.ACTIVATIONS`.
        kernel_set: admits the kernels that need no more than it does; by default that of `SUBP_KERNEL`, else all that
            this CPU can run.
        winograd: whether 3x3 convolutions may take Winograd's algorithm where it is faster; by default what
            `SUBP_WINOGRAD` says, else yes.

    Attributes:
        layer: the arguments, resolved.
        kept_share: blocks kept over all blocks.
        algorithms: all that can run it.
        requantize: of int8 weights, what makes outputs of the sums unless a call says so; None until somebody sets it.
        out_dtype: of the results, where it is not that of the activations: "float32", of bfloat16. To be set before
            `prepare`.
        note: what a report adds, such as why it does not compute with integers.
        weight_sums, weight_sizes: `[O]` int64, the sums of each output channel's integers and of their magnitudes, for
            `requantize.of_convolution`; None for floats.

    Raises:
        ValueError: an argument that does not fit; the message says what was expected.
        ImportError: the kernels are not built.
    """

    def __init__(
        self,
        weight: UniformBlockSparse | TypedArray | np.ndarray,
        bias: np.ndarray | None = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        groups: int | None = None,
        activation: str | None = None,
        kernel_set: str | None = None,
        winograd: bool | None = None,
    ) -> None:
        self.requantize: Requantization | None = None
        self.out_dtype = ""
        self.note = ""
        weight = _as_blocks(weight, groups)
        self.weight_sums: Array | None
        self.weight_sizes: Array | None
        self.weight_sums, self.weight_sizes = _sums(weight)
        if weight.scale is not None and (bias is not None or activation is not None):
            raise ValueError("weights of int8 come with a bias or an activation; a Requantization has them")
        kernel = weight.shape[2:]
        stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        known = runtime.kernels().activations()
        if activation is not None and activation not in known:
            raise ValueError(f"activation {activation!r} is not known; expected None or one of {', '.join(known)}")
        bias = None if bias is None else np.require(bias, np.float32, ["C", "A"])
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}; expected ({weight.shape[0]},), one per output channel")
        order = weight.order
        self.layer = Layer(
            weight.shape,
            weight.groups,
            weight.block_size,
            weight.indices,
            bias if bias is None or order is None else bias[order],
            stride,
            resolve_padding(padding, kernel, stride, dilation),
            dilation,
            activation,
            kernel_set or runtime.forced_kernel_set(),
            _activations_of(weight.dtype),
            order,
        )
        self.kept_share = weight.kept_share
        self._weight = Weight(weight.values, self.weight_sums)
        self.algorithms = _algorithms(self.layer, self._weight, runtime.winograd() if winograd is None else winograd)
        if len(self.algorithms) == 1:
            self.algorithms[0].packed()
            self.release()
        self._prepared: dict[tuple[int, int, Requantization | None, str], Prepared] = {}

    def macs(self, out_shape: Sequence[int]) -> int:
        """Multiply-accumulates on kept weights for an output `[B, O, Ho, Wo]`."""
        outputs, group_in, kh, kw = self.layer.shape
        kept = round(self.kept_share * group_in)
        return int(out_shape[0]) * outputs * kept * kh * kw * int(out_shape[2]) * int(out_shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of weights: packed, and the plain values as long as another algorithm may pack them."""
        bias = 0 if self.layer.bias is None else self.layer.bias.nbytes
        packed = sum(algorithm.nbytes for algorithm in self.algorithms)
        return packed + self._weight.nbytes + self.layer.indices.nbytes + bias

    def release(self) -> None:
        """Lets go of the plain values: input sizes yet to come have to do with the algorithms chosen so far.

        For who knows that none will come; before the first size is prepared it does nothing.
        """
        if any(algorithm.nbytes for algorithm in self.algorithms):
            self._weight.values = None

    @property
    def depthwise(self) -> bool:
        """Whether every channel has a group of its own."""
        return isinstance(self.algorithms[0], Depthwise)

    def algorithm(self, height: int, width: int) -> Direct | Depthwise | Winograd:
        """The fastest algorithm for one input size, of those whose weights are at hand."""
        usable = [algorithm for algorithm in self.algorithms if algorithm.usable]
        return min(usable, key=lambda algorithm: algorithm.cost(height, width))

    def prepare(self, height: int, width: int, requantize: Requantization | None = None) -> Prepared:
        """Chooses the fastest algorithm for one input size, and compiles it.

        Args:
            height: of the input.
            width: of the input.
            requantize: what makes outputs of the sums, by default the convolution's own; of int8 weights only.

        Raises:
            ValueError: the padded input is smaller than the kernel, or `requantize` or `out_dtype` does not fit the
                weights.
        """
        requantize = requantize or self.requantize
        integers = self.weight_sums is not None
        if integers != (requantize is not None):
            raise ValueError(f"weights of {'int8 need a' if integers else 'floats have no'} requantization")
        known = ("", "bfloat16", "float32") if self.layer.dtype == "bfloat16" else ("",)
        if self.out_dtype not in known:
            raise ValueError(f"out_dtype is {self.out_dtype!r}; kernels of {self.layer.dtype} have no such results")
        key = (height, width, requantize, self.out_dtype)
        if key not in self._prepared:
            while len(self._prepared) >= KEPT_SIZES:
                self._prepared.pop(next(iter(self._prepared)))
            out_size = self.layer.out_size(height, width)
            best = self.algorithm(height, width)
            self._prepared[key] = Prepared(best.build(height, width, requantize, self.out_dtype), out_size, best.kernel)
        return self._prepared[key]

    def __call__(
        self,
        x: np.ndarray,
        residual: np.ndarray | None = None,
        out: np.ndarray | None = None,
        threads: int | None = None,
        empty: Callable[[Sequence[int]], np.ndarray] = aligned_empty,
        requantize: Requantization | None = None,
    ) -> np.ndarray:
        """Returns activation(conv(x) + bias + residual), `[B, O, Ho, Wo]` in the storage of the layer's data type.

        With weights of int8 it is what `requantize` makes of the sums: uint8, or float32 if it says so. With weights of
        bfloat16 sums, bias and residual are added in float32, and the result is rounded once; it is float32 if
        `out_dtype` says so.

        Args:
            x: `[B, I, H, W]`, cast to that storage; of bfloat16 its bits, as uint16.
            residual: `[B, O, Ho, Wo]` or broadcastable to it; none where results are of another type than activations.
            out: where to write: C-contiguous of that type and the output's shape. It must not overlap `x`.
            threads: see `runtime.thread_count`. Any number gives the same bits.
            empty: makes the output where `out` is None and float32.
            requantize: as for `prepare`.

        Raises:
            ValueError: shapes that do not fit.
        """
        storage = DTYPES[self.layer.dtype].storage
        x = _stored(x, storage, "input")
        channels = self.layer.channels
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
            raise ValueError(f"input has shape {x.shape}; expected [B, {channels}, H, W] with no empty dimension")
        threads = runtime.thread_count(threads)
        compiled, out_size, _ = self.prepare(x.shape[2], x.shape[3], requantize)
        if self.out_dtype == "float32" or (requantize is not None and requantize.to_float):
            storage = np.dtype(np.float32)
        shape = (x.shape[0], self.layer.shape[0], *out_size)
        if out is None:
            out = empty(shape) if storage == np.float32 else np.empty(shape, storage)
        elif out.shape != shape or out.dtype != storage or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}; expected C-contiguous {storage} {shape}")
        elif np.may_share_memory(out, x):
            raise ValueError("out overlaps the input, which is still read while out is written; pass another array")
        if residual is not None:
            try:
                residual = np.broadcast_to(residual, shape)
            except ValueError as error:
                raise ValueError(f"residual has shape {np.shape(residual)}; expected {shape}") from error
            residual = _stored(residual, storage, "residual")
        compiled.run(x, residual, out, scratch(compiled.scratch * threads), threads)
        return out


def _stored(array: np.ndarray, storage: np.dtype[Any], name: str) -> np.ndarray:
    """The same numbers C-contiguous in the storage of a type.

    Raises:
        ValueError: numbers where bits of bfloat16 are expected.
    """
    if storage == np.uint16 and array.dtype != storage:
        raise ValueError(f"the {name} is {array.dtype}; expected the bits of bfloat16, as uint16")
    return np.require(array, storage, ["C", "A"])


def _activations_of(weight_dtype: str) -> str:
    """The data type of activations that kernels multiply such weights with.

    Raises:
        ValueError: no kernel of this build takes such weights.
    """
    rows = [row for row in runtime.rows() if row["operator"] in ("conv2d", "depthwise")]
    for row in rows:
        if row["weight_dtype"] == weight_dtype and row["usable"]:
            return row["dtype"]
    known = ", ".join(dict.fromkeys(row["weight_dtype"] for row in rows))
    raise ValueError(f"the weight is of {weight_dtype}, which no convolution kernel takes; expected one of {known}")


def _algorithms(layer: Layer, weight: Weight, winograd: bool) -> list[Direct | Depthwise | Winograd]:
    """All that can run a layer."""
    if layer.shape[1] == 1 and layer.shape[0] == layer.groups:
        with contextlib.suppress(ValueError):  # a type without such kernels takes those for any convolution
            return [Depthwise(layer, weight)]
    direct = Direct(layer, weight)
    if direct.interleave > 1:
        direct = DirectWords(layer, weight)
    # Tile registers multiply bfloat16 at several times the rate of the float32 that Winograd's products are in.
    winograd = winograd and all(packing != "tile_registers" for _, _, packing in layer.tiles)
    sizes = [size for size in (2, 4) if winograd and fits(layer, size)]
    return [direct, *(Winograd(layer, weight, size) for size in sizes)]


def _as_blocks(weight: UniformBlockSparse | TypedArray | np.ndarray, groups: int | None) -> UniformBlockSparse:
    if isinstance(weight, UniformBlockSparse):
        if groups not in (None, weight.groups):
            raise ValueError(f"groups is {groups}, but the weight was packed for {weight.groups}")
        return weight
    scale, dtype = None, "float32"
    if isinstance(weight, TypedArray):
        dtype = weight.type.dtype.name
        scale = None if dtype == "bfloat16" else _scale_of(weight)
        stored = weight.values
    else:
        stored = np.asarray(weight, np.float32)
    groups = groups or 1
    if stored.ndim != 4:
        raise ValueError(f"weight has shape {stored.shape}; expected [O, I / groups, kh, kw]")
    block = min(DENSE_BLOCK, max(1, stored.shape[0] // groups))
    return UniformBlockSparse.of_all_blocks(stored, block, groups, dtype, scale)


def _scale_of(weight: TypedArray) -> Array:
    """The scales of dense integer weights, one per output channel.

    Raises:
        ValueError: weights of another kind.
    """
    q = weight.type.quantization
    if weight.type.dtype.name != "int8" or q is None or q.axis != 0 or q.zero_point.any():
        raise ValueError(
            f"the weight is of {weight.type}; expected int8 with a scale per output channel, 0 standing for 0, or "
            "bfloat16"
        )
    return q.scale


def _sums(weight: UniformBlockSparse) -> tuple[Array, Array] | tuple[None, None]:
    """What `Convolution` tells of integer weights."""
    if weight.scale is None:
        return None, None
    outputs, groups = weight.shape[0], weight.groups

    def of_channels(values: Array) -> Array:
        found = values.sum(axis=(1, 2, 3), dtype=np.int64).reshape(groups, -1)
        return weight.in_channels(found[:, : outputs // groups].reshape(-1))

    return of_channels(weight.values), of_channels(np.abs(weight.values, dtype=np.int16))


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
    winograd: bool = False,
) -> np.ndarray:
    """Runs one convolution; arguments as `Convolution` and its call.

    The weight is packed for this call alone, and to transform it for Winograd's algorithm takes longer than that saves
    once: it has to be asked for. To run a layer again and again, make a `Convolution`.
    """
    convolution = Convolution(weight, bias, stride, padding, dilation, groups, activation, kernel_set, winograd)
    return convolution(x, residual, out, threads)
