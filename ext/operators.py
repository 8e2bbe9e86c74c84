"""Which implementation runs a node: the table from operators to kernels, and the reference for the rest.

A maker takes the planner, the node's resolved arguments and what was packed for the node at load. It appends steps and
returns the node's value, or None where the arguments are beyond it; the reason is then kept for the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from subp_ext import infer, planes
from subp_ext.chain import Chain
from subp_ext.convolution import Convolution
from subp_ext.geometry import Layer
from subp_ext.graph import Node, Ref
from subp_ext.planner import At, Call, Planner, Tensor, as_meta, tensors_in
from subp_ext.reference import REFERENCE
from subp_ext.sparse import UniformBlockSparse

Constants = dict[str, Any]


def supported_ops() -> tuple[str, ...]:
    """Returns the names of all operators a graph may use, sorted."""
    return tuple(sorted(REFERENCE))


def pack(node: Node, constants: Constants) -> Convolution | None:
    """Packs the weights of a convolution or linear layer, once for all plans; None if they are not constants.

    Raises:
        ValueError: arguments that do not fit.
    """
    if node.op not in ("conv2d", "linear"):
        return None
    args = {name: value for name, value in node.args.items() if name not in ("input", "residual")}
    if any(isinstance(value, Ref) and value.name not in constants for value in args.values()):
        return None
    args = {name: constants[value.name] if isinstance(value, Ref) else value for name, value in args.items()}
    weight = args.pop("weight", None)
    if node.op == "linear":
        weight = _as_pointwise(weight)
    is_floating = isinstance(weight, UniformBlockSparse) or getattr(weight, "dtype", None) == np.float32
    return Convolution(weight, **args) if is_floating else None


def _as_pointwise(weight: Any) -> Any:
    """A linear layer's weight as that of a 1x1 convolution, which a sparse one is already.

    Raises:
        ValueError: it is not a matrix.
    """
    if isinstance(weight, UniformBlockSparse):
        if weight.shape[2:] != (1, 1) or weight.groups != 1:
            raise ValueError(
                f"the weight has a kernel of {weight.shape[2]}x{weight.shape[3]} and {weight.groups} groups; a linear "
                "layer's has 1x1 and 1"
            )
        return weight
    if isinstance(weight, np.ndarray):
        if weight.ndim != 2:
            raise ValueError(f"the weight has shape {list(weight.shape)}; a linear layer's is [O, I]")
        return weight[:, :, None, None]
    return weight


def implement(packed: dict[str, Convolution | Chain], planner: Planner, node: Node, args: dict[str, Any]) -> Any:
    """Plans a node on the best implementation there is; returns its value."""
    why = "no kernel for this operator"
    if node.output in packed:
        form = packed[node.output]
        maker: Callable[..., Any] | None = partial(_chain if isinstance(form, Chain) else _MAKERS[node.op], form)
    else:
        maker = planes.MAKERS.get(node.op)
    if maker:
        found = maker(planner, **args)
        if not isinstance(found, str):
            return found
        if node.output in packed:  # its weight is in no form that the reference knows
            raise ValueError(found)
        why = found
    return _reference(planner, node.op, args, why)


def _reference(planner: Planner, op: str, args: dict[str, Any], why: str) -> Any:
    """The operator on NumPy, in memory that NumPy allocates, copied to its place."""
    specs = infer.infer(op, as_meta(args))
    several = isinstance(specs, list)
    outs = [planner.empty(*spec) for spec in (specs if several else [specs])]

    def bind(at: At) -> Call:
        bound, targets = {name: at(value) for name, value in args.items()}, at(outs)

        def call() -> None:
            result = REFERENCE[op](**bound)
            for target, part in zip(targets, result if several else [result], strict=True):
                assert target.shape == part.shape, (op, target.shape, part.shape)
                np.copyto(target, part)

        return call

    macs = math.prod(outs[0].view.shape) * args["self"].view.shape[-1] if op in ("matmul", "mm", "bmm") else None
    if op in ("conv2d", "linear"):
        macs = math.prod(outs[0].view.shape) * math.prod(as_meta(args["weight"]).shape[1:])
    planner.step(op, "reference", why, bind, tensors_in(args), outs, macs=macs, dense_macs=macs)
    return outs if several else outs[0]


def _convolve(convolution: Convolution, planner: Planner, op: str, x: Tensor, residual: Any = None) -> Tensor | str:
    """`[B, I, H, W]` in C order to `[B, O, Ho, Wo]`."""
    shape = _out_shape(convolution.layer, x.view.shape)
    out = planner.empty(shape)  # the first to refuse what is too large
    compiled, _, kernel = convolution.prepare(*x.view.shape[2:])
    why = "sparse" if convolution.kept_share < 1 else "dense"
    return _compiled(planner, op, compiled, kernel, why, x, residual, out, **_work(convolution, shape))


def _chain(chain: Chain, planner: Planner, input: Any, residual: Any = None) -> Tensor | str:
    first, second = chain.first, chain.second
    if not _is_image(input):
        return "the input is not a float32 tensor of four dimensions, or empty"
    x = planner.contiguous(input)
    between = _out_shape(first.layer, x.view.shape)
    shape = _out_shape(second.layer, between)
    out = planner.empty(shape)
    compiled = chain.build(*x.view.shape[2:])
    if compiled is None:
        return _convolve(second, planner, "conv2d", _convolve(first, planner, "conv2d", x), residual)
    work = _work(first, between)
    for name, number in _work(second, shape).items():
        work[name] = work[name] if name == "kept_share" else work[name] + number
    why = f"{'sparse' if first.kept_share < 1 else 'dense'}, and the depthwise one after it"
    return _compiled(planner, "conv2d", compiled, chain.kernel, why, x, residual, out, **work)


def _compiled(
    planner: Planner, op: str, compiled: Any, kernel: str, why: str, x: Tensor, residual: Any, out: Tensor, **work: Any
) -> Tensor | str:
    """Plans the call of a compiled convolution or chain."""
    shape = out.view.shape
    if residual is not None:
        form = residual.view if isinstance(residual, Tensor) else residual
        if form.shape != shape or form.dtype != np.float32:
            return "the residual has another shape or dtype"
        residual = planner.contiguous(residual)
    planes_memory = planner.scratch(compiled.scratch * planner.threads)
    threads = planner.threads

    def bind(at: At) -> Call:
        return compiled.bind(at(x), at(residual), at(out), at(planes_memory), threads)

    planner.step(op, kernel, why, bind, [x, residual], [out, planes_memory], **work)
    return out


def _work(convolution: Convolution, shape: Sequence[int]) -> dict[str, Any]:
    """What a report says of a convolution with this output."""
    macs, kept_share = convolution.macs(shape), convolution.kept_share
    dense_macs = math.prod(shape) * math.prod(convolution.layer.shape[1:])
    sparse_macs = macs if kept_share < 1 else 0
    return {"kept_share": kept_share, "macs": macs, "dense_macs": dense_macs, "sparse_macs": sparse_macs}


def _out_shape(layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """The output's shape for an input's.

    Raises:
        ValueError: they do not fit.
    """
    if shape[1] != layer.channels:
        raise ValueError(f"input has {shape[1]} channels; the weight is for {layer.channels}")
    geometry = {
        "input": np.broadcast_to(np.zeros((), np.float32), shape),
        "weight": np.broadcast_to(np.zeros((), np.float32), layer.shape),
        "stride": list(layer.stride),
        "padding": [list(pads) for pads in layer.padding],
        "dilation": list(layer.dilation),
        "groups": layer.groups,
    }
    return infer.infer("conv2d", geometry)[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.view.dtype == np.float32 and value.view.ndim == 4 and value.view.size > 0


def _conv2d(
    convolution: Convolution, planner: Planner, input: Any, residual: Any = None, **packed: Any
) -> Tensor | str:
    if not _is_image(input):
        return "the input is not a float32 tensor of four dimensions, or empty"
    return _convolve(convolution, planner, "conv2d", planner.contiguous(input), residual)


def _linear(convolution: Convolution, planner: Planner, input: Any, **packed: Any) -> Tensor | str:
    """As a 1x1 convolution, the rows as its pixels. Channels that are planes in memory stay planes."""
    if not isinstance(input, Tensor) or input.view.dtype != np.float32 or input.view.size == 0:
        return "the input is not a float32 tensor, or empty"
    shape, outputs = input.view.shape, convolution.layer.shape[0]
    last_first = (0, len(shape) - 1, *range(1, len(shape) - 1))
    if len(shape) == 4 and input.view.transpose(last_first).flags.c_contiguous:
        x = planner.view(input, lambda v: v.transpose(last_first))
        out = _convolve(convolution, planner, "linear", x)
        return planner.view(out, lambda v: v.transpose(0, 2, 3, 1))
    rows = math.prod(shape[:-1])
    flat = planner.view(planner.contiguous(input), lambda v: v.reshape(rows, shape[-1]))
    pixels = planner.contiguous(planner.view(flat, lambda v: v.T))
    x = planner.view(pixels, lambda v: v.reshape(1, shape[-1], 1, rows))
    out = _convolve(convolution, planner, "linear", x)
    return planner.view(out, lambda v: v.reshape(outputs, rows).T.reshape(*shape[:-1], outputs))


_MAKERS: dict[str, Callable[..., Any]] = {"conv2d": _conv2d, "linear": _linear}
