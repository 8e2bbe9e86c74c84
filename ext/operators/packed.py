"""The lowerings of convolutions and linear layers whose weights are known when a model is loaded, and packed then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.convolution import Convolution
from subp_ext.dtypes import DTYPES, FLOAT32, Array, Quantization, TypedArray, ValueType
from subp_ext.geometry import MAX_SIZE, Layer, resolve_padding
from subp_ext.operators.arguments import sizes
from subp_ext.operators.conversions import BFLOAT16, converted
from subp_ext.operators.record import Lowered, MetaTensor, Spec, Unsupported
from subp_ext.operators.shape_inference import of_shape
from subp_ext.operators.steps import no_fast_bfloat16, no_kernel, told, viewed
from subp_ext.requantize import Requantization, of_convolution
from subp_ext.sparse import UniformBlockSparse
from subp_ext.tensor import At, Call, Tensor, as_meta, type_of

if TYPE_CHECKING:
    from subp_ext.fused_depthwise import FusedDepthwise
    from subp_ext.planner import Planner

# Zeros around an input, against its own size and the kernel's extent.
MAX_PADDING = 64

UINT8 = DTYPES["uint8"]

NOT_PACKED = Unsupported("the weight or another argument is not known before the run, or not float32")


def convolution_spec(
    input: MetaTensor,
    weight: MetaTensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **fused: Any,
) -> Spec:
    """The result of a convolution of any number of dimensions.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    shape, nd = weight.shape, weight.ndim - 2
    stride, dilation = (tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in (stride, dilation))
    stride, dilation = (sizes(v * nd if len(v) == 1 else v, MAX_SIZE) for v in (stride, dilation))
    if padding in ("same", "valid"):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, shape[2:], strict=True)]
    elif nd == 2:
        totals = [sum(p) for p in resolve_padding(padding, shape[2:], stride, dilation)]
    else:
        pads = tuple(padding) if isinstance(padding, (list, tuple)) else (padding,)
        totals = [2 * p for p in sizes(pads * nd if len(pads) == 1 else pads)]
    if input.ndim != nd + 2 or input.shape[1] != shape[1] * groups or shape[0] % groups:
        raise ValueError(f"input {list(input.shape)} and weight {list(shape)} in {groups} groups do not fit")
    out = []
    for size, total, kernel, step, spread in zip(input.shape[2:], totals, shape[2:], stride, dilation, strict=True):
        if size + total < spread * (kernel - 1) + 1 or total > MAX_PADDING * (size + kernel * spread):
            raise ValueError(f"{size} pixels, {total} zeros and a kernel of {kernel}, {spread} apart, do not fit")
        out.append((size + total - spread * (kernel - 1) - 1) // step + 1)
    return (input.shape[0], shape[0], *out), input.dtype


def pack(
    weight: Any,
    bias: Any = None,
    groups: int | None = None,
    activation: str | None = None,
    *,
    operands: Mapping[str, ValueType | None] | None = None,
    out_type: ValueType | None = None,
    **args: Any,
) -> Convolution | None:
    """Packs a convolution with known arguments; None where no kernel takes the weight's dtype.

    It computes with integers if weight, input and residual are quantized, and the result too or not at all; with
    bfloat16 if weight, input and residual are. Weights of other types that no kernel takes as they are become float32.

    Args:
        weight, bias, groups, activation, args: of the node.
        operands: the types of `input` and `residual`, where there are such.
        out_type: that the node declares.

    Raises:
        ValueError: arguments that do not fit.
    """
    bias = bias.to_float() if isinstance(bias, TypedArray) else bias
    scale = _weight_scale(weight)
    found: Requantization | str = ""
    if scale is not None:
        found = _not_integers(operands or {}, out_type)
        if not found:
            convolution = Convolution(_per_channel(weight, scale), groups=groups, **args)
            found = _requantization(convolution, scale, bias, activation, operands or {}, out_type)
            if isinstance(found, Requantization):
                convolution.requantize = found
                return convolution
    if _is_bfloat16(weight):
        found = _not_bfloat16(operands or {})
        if not found:
            convolution = Convolution(weight, bias, groups=groups, activation=activation, **args)
            # A residual is of the type that results are stored in.
            stored = out_type == BFLOAT16 or "residual" in (operands or {})
            convolution.out_dtype = "" if stored else "float32"
            return convolution
    if isinstance(weight, UniformBlockSparse):
        weight = weight.to_float32()
    else:
        weight = weight.to_float() if isinstance(weight, TypedArray) else weight
        if weight.dtype != np.float32:
            return None
    convolution = Convolution(weight, bias, groups=groups, activation=activation, **args)
    convolution.note = f" in float32: {found}" if found else ""
    return convolution


def _is_bfloat16(weight: Any) -> bool:
    if isinstance(weight, UniformBlockSparse):
        return weight.dtype == BFLOAT16.dtype.name
    return isinstance(weight, TypedArray) and weight.type == BFLOAT16


def _not_bfloat16(operands: Mapping[str, ValueType | None]) -> str:
    """Why a layer with a bfloat16 weight does not multiply bfloat16; empty if it does."""
    if why := no_fast_bfloat16():
        return why
    return "" if all(type == BFLOAT16 for type in operands.values()) else "an operand is no bfloat16"


def _not_integers(operands: Mapping[str, ValueType | None], out_type: ValueType | None) -> str:
    """Why a layer with an int8 weight does not compute with integers; empty if it does."""
    types = [*operands.values(), *([] if out_type is None else [out_type])]
    if any(_quantization(type) is None for type in types):
        return "an operand or the result is no quantized uint8"
    return ""


def _requantization(
    convolution: Convolution,
    scale: Array,
    bias: Array | None,
    activation: str | None,
    operands: Mapping[str, ValueType | None],
    out_type: ValueType | None,
) -> Requantization | str:
    """The constants that make outputs of sums, or why integers will not do."""
    x, out = _quantization(operands.get("input")), _quantization(out_type)
    if convolution.weight_sums is None or convolution.weight_sizes is None or x is None:
        return "the weight or the input is no integer"
    sums, sizes = convolution.weight_sums, convolution.weight_sizes
    return of_convolution(sums, sizes, scale, bias, x, out, _quantization(operands.get("residual")), activation)


def _quantization(type: ValueType | None) -> Quantization | None:
    """The scale and zero point of a quantized uint8; None for anything else."""
    return type.quantization if type is not None and type.dtype is UINT8 else None


def _weight_scale(weight: Any) -> Array | None:
    """`[O]`, if the weight is int8, symmetric, and scaled per output channel or as a whole."""
    if isinstance(weight, UniformBlockSparse):
        return weight.scale
    if not isinstance(weight, TypedArray) or weight.type.dtype is not DTYPES["int8"]:
        return None
    q = weight.type.quantization
    if q is None or q.axis not in (None, 0) or q.zero_point.any():
        return None
    return np.broadcast_to(q.scale, weight.shape[:1])


def _per_channel(weight: TypedArray | UniformBlockSparse, scale: Array) -> TypedArray | UniformBlockSparse:
    """The weight with a scale for each output channel, where it has one for all."""
    if isinstance(weight, UniformBlockSparse):
        return weight
    quantization = Quantization(scale, np.zeros(len(scale), np.int32), 0)
    return TypedArray(weight.values, ValueType(weight.type.dtype, quantization))


def pack_linear(weight: Any, **args: Any) -> Convolution | None:
    """Packs a linear layer, as a 1x1 convolution; see `pack`."""
    return pack(_as_pointwise(weight), **args)


def _as_pointwise(weight: Array | TypedArray | UniformBlockSparse) -> Any:
    """A linear layer's weight as that of a 1x1 convolution, which a sparse one is already.

    Raises:
        ValueError: it is not a matrix.
    """
    if not isinstance(weight, UniformBlockSparse):
        if len(weight.shape) != 2:
            raise ValueError(f"the weight has shape {list(weight.shape)}; a linear layer's is [O, I]")
        if isinstance(weight, TypedArray):
            return TypedArray(weight.values[:, :, None, None], weight.type)
        return weight[:, :, None, None]
    if weight.shape[2:] != (1, 1) or weight.groups != 1:
        raise ValueError(
            f"the weight has a kernel of {weight.shape[2]}x{weight.shape[3]} and {weight.groups} groups; a linear "
            "layer's has 1x1 and 1"
        )
    return weight


def lower_conv2d(
    planner: Planner,
    op: str,
    *,
    packed: Convolution | FusedDepthwise | None,
    input: Any,
    residual: Any = None,
    out_type: ValueType | None = None,
    **args: Any,
) -> Lowered | Unsupported:
    """One convolution, or two that run as one step."""
    if packed is None:
        return NOT_PACKED
    first, second = (packed, packed) if isinstance(packed, Convolution) else (packed.first, packed.second)
    if refused := no_kernel("conv2d", _operand(input, first), 4):
        return refused
    shape = between = _out_shape(planner, first.layer, input.view.shape)
    if second is not first:
        shape = _out_shape(planner, second.layer, between)
    if refused := _misfit(residual, second, shape):
        return refused
    x, residual = _ready(planner, input, first), _ready(planner, residual, second)
    if isinstance(packed, Convolution):
        return Lowered(_convolve(planner, op, packed, planner.contiguous(x), shape, residual, out_type))
    compiled, x = packed.build(*x.view.shape[2:]), planner.contiguous(x)
    if compiled is None:  # the first is faster with Winograd
        value = _convolve(planner, op, first, x, between)
        return Lowered(_convolve(planner, op, second, value, shape, residual))
    work = _work(first, between)
    for name, number in _work(second, shape).items():
        work[name] = work[name] if name in ("kept_share", "products") else work[name] + number
    work["passed_over"] = told([*first.algorithms[0].passed_over, *second.algorithms[0].passed_over])
    why = f"{'sparse' if first.kept_share < 1 else 'dense'}{first.note}, and the depthwise one after it"
    out = planner.empty(shape, _result_type(second, out_type))
    return Lowered(_plan(planner, op, compiled, packed.kernel, why, x, residual, out, work))


def lower_linear(
    planner: Planner,
    op: str,
    *,
    packed: Convolution | None,
    input: Any,
    out_type: ValueType | None = None,
    **args: Any,
) -> Lowered | Unsupported:
    """As a 1x1 convolution, the rows as its pixels. Channels that are planes in memory stay planes."""
    if packed is None:
        return NOT_PACKED
    if refused := no_kernel("conv2d", _operand(input, packed)):
        return refused
    shape, outputs = input.view.shape, packed.layer.shape[0]
    rows = math.prod(shape[:-1])
    out_shape = _out_shape(planner, packed.layer, (1, shape[-1], 1, rows))
    x = _ready(planner, input, packed)
    last_first = (0, len(shape) - 1, *range(1, len(shape) - 1))
    if len(shape) == 4 and x.view.transpose(last_first).flags.c_contiguous:
        x = viewed(planner, x, lambda v: v.transpose(last_first))
        out = _convolve(planner, op, packed, x, (shape[0], outputs, *shape[1:3]), out_type=out_type)
        return Lowered(viewed(planner, out, lambda v: v.transpose(0, 2, 3, 1)))
    flat = viewed(planner, planner.contiguous(x), lambda v: v.reshape(rows, shape[-1]))
    pixels = planner.contiguous(viewed(planner, flat, lambda v: v.T))
    x = viewed(planner, pixels, lambda v: v.reshape(1, shape[-1], 1, rows))
    out = _convolve(planner, op, packed, x, out_shape, out_type=out_type)
    return Lowered(viewed(planner, out, lambda v: v.reshape(outputs, rows).T.reshape(*shape[:-1], outputs)))


def _out_shape(planner: Planner, layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """The output's shape for an input's.

    Raises:
        ValueError: they do not fit, or the output is larger than there is room for.
    """
    if shape[1] != layer.channels:
        raise ValueError(f"input has {shape[1]} channels; the weight is for {layer.channels}")
    out, dtype = convolution_spec(
        of_shape(tuple(shape)),
        of_shape(layer.shape),
        stride=list(layer.stride),
        padding=[list(pads) for pads in layer.padding],
        dilation=list(layer.dilation),
        groups=layer.groups,
    )
    planner.check_room(out, dtype)
    return out


def _operand(value: Any, convolution: Convolution) -> Any:
    """A tensor as the convolution will get it: of a type that its kernels do not take it will be converted."""
    type = _converted_to(value, convolution)
    if type is None:
        return value
    return replace(value, type=type, view=of_shape(value.view.shape, type.dtype.storage))


def _ready(planner: Planner, value: Any, convolution: Convolution) -> Any:
    """The same value in the type that the kernels take, converted by a step of its own where it is of another."""
    type = _converted_to(value, convolution)
    if type is None:
        return value
    to_float32 = type.dtype is FLOAT32
    why = f"no {value.type.dtype.name} kernel for conv2d" if to_float32 else f"the layer computes in {type}"
    return converted(planner, value, type, why)


def _converted_to(value: Any, convolution: Convolution) -> ValueType | None:
    """The type that kernels of floats want a tensor in; None if it is of that, or of one that is not converted."""
    if not isinstance(value, Tensor) or convolution.requantize is not None:
        return None
    wanted = ValueType(DTYPES[convolution.layer.dtype])
    return wanted if value.type != wanted and (value.type.dtype is FLOAT32 or not value.type.plain) else None


def _misfit(residual: Any, convolution: Convolution, shape: Sequence[int]) -> Unsupported | None:
    """Why a residual cannot be added to an output of this shape."""
    if residual is None:
        return None
    found, wanted = _operand(residual, convolution), DTYPES[convolution.layer.dtype]
    if as_meta(found).shape == tuple(shape) and type_of(found).dtype is wanted:
        return None
    return Unsupported("the residual has another shape or dtype")


def _result_type(convolution: Convolution, declared: ValueType | None) -> ValueType:
    """What the kernels of a convolution store."""
    if convolution.requantize is not None:
        return ValueType(FLOAT32) if declared is None else declared
    return ValueType(DTYPES[convolution.out_dtype or convolution.layer.dtype])


def _convolve(
    planner: Planner,
    op: str,
    convolution: Convolution,
    x: Tensor,
    shape: tuple[int, ...],
    residual: Any = None,
    out_type: ValueType | None = None,
) -> Tensor:
    """Plans a convolution of `[B, I, H, W]` in C order to `shape`."""
    compiled, _, kernel = convolution.prepare(*x.view.shape[2:])
    algorithm = convolution.algorithm(*x.view.shape[2:])
    why = ("sparse" if convolution.kept_share < 1 else "dense") + convolution.note + algorithm.note
    facts = _work(convolution, shape) | {"passed_over": told(algorithm.passed_over)}
    out = planner.empty(shape, _result_type(convolution, out_type))
    return _plan(planner, op, compiled, kernel, why, x, residual, out, facts)


def _plan(
    planner: Planner,
    op: str,
    compiled: Any,
    kernel: str,
    why: str,
    x: Tensor,
    residual: Any,
    out: Tensor,
    work: dict[str, Any],
) -> Tensor:
    """Plans the call of a compiled convolution, or of two as one."""
    residual = None if residual is None else planner.contiguous(residual)
    threads = planner.threads
    scratch = planner.scratch(compiled.scratch * threads)

    def bind(at: At) -> Call:
        call: Call = compiled.bind(at(x), at(residual), at(out), at(scratch), threads)
        return call

    planner.step(op, kernel, why, bind, [x, residual], [out, scratch], **work)
    return out


def _work(convolution: Convolution, shape: Sequence[int]) -> dict[str, Any]:
    """What a report says of a convolution with this output."""
    macs, kept_share = convolution.macs(shape), convolution.kept_share
    dense_macs = math.prod(shape) * math.prod(convolution.layer.shape[1:])
    sparse_macs = macs if kept_share < 1 else 0
    return {
        "kept_share": kept_share,
        "macs": macs,
        "dense_macs": dense_macs,
        "sparse_macs": sparse_macs,
        "products": "int8" if convolution.requantize is not None else convolution.layer.dtype,
    }
