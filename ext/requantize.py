"""From integer sums to outputs: the constants, and the arithmetic itself in NumPy, which kernels follow to the bit.

Constants are computed in float64 from scales in float32, and rounded once. docs/format.md defines all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from subp_ext.dtypes import Array, Float32Array, Quantization

# What keeps sums within int32 and results, before they are rounded, within what converts to it on every CPU.
MAX_SUM, MAX_RESULT = 2**31 - 1, 2**30

TOO_LARGE = "its results could be beyond int32 before they are bounded"

# The largest stored uint8, and the activations that are bounds of it.
TOP = 255
BOUNDS: dict[str | None, tuple[float | None, float | None]] = {None: (None, None), "relu": (0, None), "relu6": (0, 6)}


@dataclass(frozen=True, eq=False)
class Requantization:
    """How the sums of a convolution become its outputs. Fields are those of subp_requantize in kernels/kernels.h.

    Attributes:
        start: `[O]` int32, what the sum of each output channel starts from.
        factor: `[O]` float32, what it is multiplied by.
        padding: the stored input that stands for 0.
        zero, low, high: zero point and bounds of the stored output.
        residual_factor, residual_zero: of the residual; 0 without one.
        to_float: outputs are float32.
    """

    start: Array
    factor: Float32Array
    padding: int
    zero: int = 0
    low: int = 0
    high: int = TOP
    residual_factor: float = 0.0
    residual_zero: int = 0
    to_float: bool = False

    def in_order(self, order: Array | None) -> Requantization:
        """The same for output channels in another order, or in their own for None.

        Raises:
            ValueError: it is for another number of channels.
        """
        if order is None:
            return self
        if self.start.shape != order.shape or self.factor.shape != order.shape:
            raise ValueError(
                f"start has shape {self.start.shape} and factor {self.factor.shape}; expected {order.shape}, one per "
                "output channel"
            )
        return replace(self, start=self.start[order], factor=self.factor[order])

    def apply(self, sums: Array, residual: Array | None = None) -> Array:
        """Returns the outputs `[B, O, ...]` for int32 sums of products, `start` not included, and a stored residual."""
        shape = (-1, *[1] * (sums.ndim - 2))
        scaled = (sums + self.start.reshape(shape)).astype(np.float32) * self.factor.reshape(shape)
        if self.to_float:
            return scaled
        if residual is not None:
            scaled = fused_multiply_add(
                (residual.astype(np.int32) - self.residual_zero).astype(np.float32),
                np.float32(self.residual_factor),
                scaled,
            )
        return stored(scaled, self.zero, self.low, self.high)


def stored(real: Float32Array, zero: int, low: int = 0, high: int = TOP) -> Array:
    """Returns `clamp(round_to_nearest_even(real) + zero, low, high)` as uint8."""
    return np.clip(np.rint(real).astype(np.int64) + zero, low, high).astype(np.uint8)


def fused_multiply_add(a: Float32Array, b: Float32Array | np.float32, c: Float32Array) -> Float32Array:
    """Returns a * b + c of float32 numbers, rounded once.

    The product is exact in float64. The sum is rounded to odd there: its last bit says whether anything was cut off, so
    that the rounding to float32 is that of the exact sum.
    """
    product, addend = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = np.asarray(total).view(np.int64)
    even = (error != 0) & (bits & 1 == 0)
    odd = np.where((error > 0) == (total > 0), bits + 1, bits - 1)
    return np.where(even, odd, bits).view(np.float64).astype(np.float32)


def bounds(activation: str | None, out: Quantization) -> tuple[int, int] | None:
    """The stored bounds that stand for an activation; None where it is none of `BOUNDS`."""
    if activation not in BOUNDS:
        return None
    low, high = (None if limit is None else int(_stored_number(limit, out)) for limit in BOUNDS[activation])
    return (0 if low is None else low), (TOP if high is None else high)


def _stored_number(real: float, out: Quantization) -> int:
    inverse = np.float32(1.0 / np.float64(out.scale))
    return int(np.clip(np.rint(np.float32(real) * inverse) + int(out.zero_point), 0, TOP))


def of_convolution(
    weight_sums: Array,
    weight_sizes: Array,
    weight_scale: Float32Array,
    bias: Float32Array | None,
    x: Quantization,
    out: Quantization | None,
    residual: Quantization | None = None,
    activation: str | None = None,
) -> Requantization | str:
    """Returns the constants of a convolution or linear layer, or why integers will not do.

    Args:
        weight_sums: `[O]`, the sums of the stored weights of each output channel.
        weight_sizes: `[O]`, the sums of their magnitudes.
        weight_scale: `[O]`.
        bias: `[O]` or None.
        x, out, residual: of the tensors; `out` None for float32 outputs.
        activation: fused into it.
    """
    if out is not None and activation not in BOUNDS:
        return f"activation {activation} is no bound of integers"
    if out is None and (activation is not None or residual is not None):
        return "float32 results have neither activation nor residual"
    zero_x, scale_x = int(x.zero_point), np.float64(x.scale)
    unit = scale_x * weight_scale.astype(np.float64)
    real_bias = np.zeros(len(unit)) if bias is None else bias.astype(np.float64)
    with np.errstate(all="ignore"):
        start = np.rint(real_bias / unit) - zero_x * weight_sums.astype(np.float64)
        factor = (unit if out is None else unit / np.float64(out.scale)).astype(np.float32)
        largest = np.abs(start) + TOP * weight_sizes.astype(np.float64)
        reach = largest * factor.astype(np.float64)
    if not (np.isfinite(largest).all() and largest.max(initial=0) < MAX_SUM):
        return "sums of its products could overflow int32"
    if not (factor > 0).all():
        return "a factor is beyond float32"
    if out is None:
        return Requantization(start.astype(np.int32), factor, zero_x, to_float=True)
    residual_factor = np.float32(0.0)
    if residual is not None:
        residual_factor = np.float32(np.float64(residual.scale) / np.float64(out.scale))
        reach = reach + TOP * np.float64(residual_factor)
    if not (np.isfinite(reach).all() and reach.max(initial=0) < MAX_RESULT):
        return TOO_LARGE
    low, high = bounds(activation, out) or (0, TOP)
    return Requantization(
        start.astype(np.int32),
        factor,
        zero_x,
        int(out.zero_point),
        low,
        high,
        float(residual_factor),
        0 if residual is None else int(residual.zero_point),
    )


@dataclass(frozen=True)
class Rescale:
    """How one or two quantized operands become a quantized result. Fields are as in subp_rescale of kernels/kernels.h.

    Attributes:
        a_zero, b_zero: zero points of the operands.
        a_factor, b_factor: what they are multiplied by; a product and a mean have one, `a_factor`.
        zero, low, high: zero point and bounds of the stored result.
    """

    a_zero: int
    a_factor: float
    zero: int
    b_zero: int = 0
    b_factor: float = 0.0
    low: int = 0
    high: int = TOP


def of_sum(a: Quantization, b: Quantization, out: Quantization) -> Rescale | str:
    """Returns the constants of a + b, or why integers will not do."""
    scale = np.float64(out.scale)
    factors = _factors([np.float64(a.scale) / scale, np.float64(b.scale) / scale])
    if isinstance(factors, str):
        return factors
    if TOP * factors.sum(dtype=np.float64) >= MAX_RESULT:
        return TOO_LARGE
    zero, (a_factor, b_factor) = int(out.zero_point), map(float, factors)
    return Rescale(int(a.zero_point), a_factor, zero, int(b.zero_point), b_factor)


def of_product(a: Quantization, b: Quantization, out: Quantization) -> Rescale | str:
    """Returns the constants of a * b, or why integers will not do."""
    factors = _factors([np.float64(a.scale) * np.float64(b.scale) / np.float64(out.scale)])
    if isinstance(factors, str):
        return factors
    if TOP * TOP * float(factors[0]) >= MAX_RESULT:
        return TOO_LARGE
    return Rescale(int(a.zero_point), float(factors[0]), int(out.zero_point), int(b.zero_point))


def of_average(x: Quantization, out: Quantization, counts: Array, pixels: int) -> Float32Array | str:
    """Returns what sums of pixels are multiplied by, or why integers will not do.

    Args:
        x, out: of the tensors.
        counts: what each sum is divided by, of any shape.
        pixels: the most that are in a sum.
    """
    if not (counts >= 1).all():
        return "an average is over less than one pixel"
    if pixels * TOP >= MAX_SUM:
        return "sums of its pixels could overflow int32"
    factors = _factors(np.float64(x.scale) / (np.float64(out.scale) * counts.astype(np.float64)))
    if isinstance(factors, str):
        return factors
    return factors if pixels * TOP * float(factors.max()) < MAX_RESULT else TOO_LARGE


def _factors(quotients: Any) -> Float32Array | str:
    """Returns float64 numbers as factors in float32, or why they are none."""
    with np.errstate(all="ignore"):
        factors = np.asarray(quotients, np.float64).astype(np.float32)
    return factors if (factors > 0).all() and np.isfinite(factors).all() else "a factor is beyond float32"
