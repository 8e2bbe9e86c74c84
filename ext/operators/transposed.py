"""Transposed convolutions: the reference, and phase by phase on the kernels of convolutions."""

# (what NumPy returns for arrays of any dtype is often Any)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import FLOAT32, Array, TypedArray, ValueType
from subp_ext.geometry import pair as checked_pair
from subp_ext.operators.arguments import Ints, pair, repeated, sizes
from subp_ext.operators.conversions import converted
from subp_ext.operators.convolutions import convolve
from subp_ext.operators.packed import NOT_PACKED, lower_conv2d
from subp_ext.operators.packed import pack as pack_convolution
from subp_ext.operators.plane_copies import woven
from subp_ext.operators.record import Lowered, MetaTensor, Spec, Unsupported, activate, operator
from subp_ext.operators.steps import viewed
from subp_ext.sparse import UniformBlockSparse
from subp_ext.tensor import At, Call, Tensor
from subp_ext.transposed import AxisPhase, Phase, Transposed, TransposedWeight, as_convolution, axis_phases, with_taps

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def _spec(
    input: MetaTensor,
    weight: MetaTensor,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    activation: str | None = None,
) -> Spec:
    # [I, O / groups, kh, kw], or of a sparse weight [O, I / groups, kh, kw].
    outputs = weight.shape[1] * groups if weight.shape[0] == input.shape[1] else weight.shape[0]
    parts = (sizes(pair(value)) for value in (stride, padding, output_padding, dilation))
    out = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * p + extra
        for n, k, s, p, extra, d in zip(input.shape[2:], weight.shape[2:], *parts, strict=True)
    ]
    return (input.shape[0], outputs, *sizes(out)), input.dtype


def pack(
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    activation: str | None = None,
    *,
    operands: Mapping[str, ValueType | None] | None = None,
    out_type: ValueType | None = None,
) -> Transposed | None:
    """Packs a transposed convolution with known arguments; each phase computes as `pack` of a convolution says.

    Returns:
        None where no kernel takes the weight's dtype.

    Raises:
        ValueError: arguments that do not fit.
    """
    if len(weight.shape) != 4:
        raise ValueError(f"the weight has shape {list(weight.shape)}; expected [I, O / groups, kh, kw]")
    whole = as_convolution(weight, groups)
    bias = bias.to_float() if isinstance(bias, TypedArray) else bias
    step, spread = checked_pair(stride, "stride", 1), checked_pair(dilation, "dilation", 1)
    zeros, extra = checked_pair(padding, "padding", 0), checked_pair(output_padding, "output_padding", 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, step, spread, strict=True)):
        raise ValueError(f"output_padding is {extra}; expected less than the stride {step} or the dilation {spread}")
    kernel = (int(whole.shape[2]), int(whole.shape[3]))
    vertical, horizontal = (axis_phases(kernel[a], step[a], zeros[a], extra[a], spread[a]) for a in range(2))
    common = {"bias": bias, "groups": groups, "activation": activation, "operands": operands, "out_type": out_type}
    phases = []
    for down in vertical:
        for across in horizontal:
            phase = _phase(whole, down, across, common)
            if phase is None:
                return None
            phases.append(phase)
    outputs, per_group = whole.shape[:2]
    return Transposed(tuple(phases), (per_group * groups, outputs), step, (kernel, zeros, extra, spread))


def _phase(weight: TransposedWeight, down: AxisPhase, across: AxisPhase, common: dict[str, Any]) -> Phase | None:
    """One phase; None where no kernel takes the weight's dtype."""
    bias = np.zeros(weight.shape[0], np.float32) if common["bias"] is None else common["bias"].astype(np.float32)
    constant = activate(bias, common["activation"])
    if not (down.taps and across.taps):
        return Phase(None, ((0, 0), (0, 0)), constant)
    convolution = pack_convolution(
        with_taps(weight, down.taps, across.taps),
        padding=[list(down.padding), list(across.padding)],
        dilation=[down.dilation, across.dilation],
        **common,
    )
    return None if convolution is None else Phase(convolution, (down.cut, across.cut), constant)


def lower(
    planner: Planner,
    op: str,
    *,
    packed: Transposed | None,
    input: Any,
    out_type: ValueType | None = None,
    **args: Any,
) -> Lowered | Unsupported:
    if packed is None:
        return NOT_PACKED
    if not isinstance(input, Tensor):
        return Unsupported(f"a {type(input).__name__} is no tensor of the run")
    shape = packed.out_shape(input.view.shape)
    planner.check_room(shape)
    # Of an output smaller than the stride some phases have no pixel.
    step = (min(packed.stride[0], shape[2]), min(packed.stride[1], shape[3]))
    parts: list[Tensor | Array] = []
    cuts: dict[Any, Tensor] = {((0, 0), (0, 0)): input}  # phases may see the same part of the input
    for row in range(step[0]):
        for column in range(step[1]):
            phase = packed.phases[row * packed.stride[1] + column]
            part = _part(planner, op, phase, input, cuts, out_type)
            if isinstance(part, Unsupported):
                return part
            parts.append(part)
    types = {part.type for part in parts if isinstance(part, Tensor)}
    kind = next(iter(types)) if len(types) == 1 else ValueType(FLOAT32)
    same = [
        converted(planner, part, kind, "other phases are of this type")
        if isinstance(part, Tensor)
        else _constant(planner, op, part, _phase_shape(shape, step, number), kind)
        for number, part in enumerate(parts)
    ]
    return Lowered(same[0] if len(same) == 1 else woven(planner, op, same, shape, step))


def _part(
    planner: Planner, op: str, phase: Phase, x: Tensor, cuts: dict[Any, Tensor], out_type: ValueType | None
) -> Tensor | Array | Unsupported:
    """The pixels of a phase; of one whose taps meet no pixel what they all are. `cuts` has the parts of x so far."""
    (top, bottom), (left, right) = phase.cut
    height, width = x.view.shape[2:]
    if phase.convolution is None or height <= top + bottom or width <= left + right:
        return phase.constant
    if phase.cut not in cuts:
        seen = viewed(planner, x, lambda view: view[:, :, top : height - bottom, left : width - right])
        cuts[phase.cut] = planner.contiguous(seen)
    outcome = lower_conv2d(planner, op, packed=phase.convolution, input=cuts[phase.cut], out_type=out_type)
    return outcome.value if isinstance(outcome, Lowered) else outcome


def _phase_shape(shape: tuple[int, ...], step: tuple[int, int], number: int) -> tuple[int, ...]:
    row, column = divmod(number, step[1])
    return (*shape[:2], -(-(shape[2] - row) // step[0]), -(-(shape[3] - column) // step[1]))


def _constant(planner: Planner, op: str, values: Array, shape: tuple[int, ...], type: ValueType) -> Tensor:
    """Pixels that are the same everywhere, one value for each channel."""
    out = planner.empty(shape, type)
    stored = (values if type.plain else type.from_float(values))[:, None, None]

    def bind(at: At) -> Call:
        target = at(out)
        return lambda: np.copyto(target, stored)

    planner.step(op, "numpy", "no tap meets these pixels", bind, [], [out])
    return out


@operator("conv_transpose2d", shape=_spec, lower=lower, pack=pack)
def conv_transpose2d(
    input: Array,
    weight: Array | UniformBlockSparse,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    activation: str | None = None,
) -> Array:
    """Convolves the input, zeros put between its pixels, with the flipped kernel; weight `[I, O / groups, kh, kw]`.

    A sparse weight has the form that it has of a convolution, `[O, I / groups, kh, kw]`.
    """
    stride, padding, extra, dilation = (repeated(v, 2) for v in (stride, padding, output_padding, dilation))
    plain: Any = as_convolution(weight, groups)
    plain = plain.to_float32().to_dense() if isinstance(plain, UniformBlockSparse) else plain
    batch, inputs, *size = input.shape
    apart = np.zeros((batch, inputs, *((n - 1) * s + 1 for n, s in zip(size, stride, strict=True))), input.dtype)
    apart[:, :, :: stride[0], :: stride[1]] = input
    edges = [
        (d * (k - 1) - p, d * (k - 1) - p + more)
        for d, k, p, more in zip(dilation, plain.shape[2:], padding, extra, strict=True)
    ]
    # A padding beyond the kernel's reach cuts the input instead.
    cut = tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(edges, apart.shape[2:], strict=True))
    zeros = tuple((max(before, 0), max(after, 0)) for before, after in edges)
    seen = apart[(slice(None), slice(None), *cut)]
    return activate(convolve(seen, plain[:, :, ::-1, ::-1], bias, (1, 1), zeros, dilation, groups), activation)
