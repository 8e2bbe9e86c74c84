"""Which implementation runs a node: the table from operators to kernels, and the reference for the rest.

A maker takes the planner, the node's resolved arguments and what was packed for the node at load. It appends steps and
returns the node's value, or None where the arguments are beyond it; the reason is then kept for the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from subp_ext import infer, planes
from subp_ext.convolution import Convolution
from subp_ext.geometry import Layer
from subp_ext.graph import Node, Ref
from subp_ext.planner import At, Call, Planner, Tensor, phantoms, tensors_in
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


def implement(packed: dict[str, Convolution], planner: Planner, node: Node, args: dict[str, Any]) -> Any:
    """Plans a node on the best implementation there is; returns its value."""
    why = "no kernel for this operator"
    if node.output in packed:
        maker: Callable[..., Any] | None = partial(_MAKERS[node.op], packed[node.output])
    else:
        maker = planes.MAKERS.get(node.op)
    if maker:
        found = maker(planner, **args)
        if not isinstance(found, str):
            return found
        why = found
    return _reference(planner, node.op, args, why)


def _reference(planner: Planner, op: str, args: dict[str, Any], why: str) -> Any:
    """The operator on NumPy, in memory that NumPy allocates, copied to its place."""
    specs = infer.infer(op, phantoms(args))
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
        macs = math.prod(outs[0].view.shape) * math.prod(phantoms(args["weight"]).shape[1:])
    planner.step(op, "reference", why, bind, tensors_in(args), outs, macs=macs, dense_macs=macs)
    return outs if several else outs[0]


def _convolve(convolution: Convolution, planner: Planner, op: str, x: Tensor, residual: Any = None) -> Tensor | str:
    """`[B, I, H, W]` in C order to `[B, O, Ho, Wo]`."""
    batch, channels, height, width = x.view.shape
    layer = convolution.layer
    if channels != layer.channels:
        raise ValueError(f"input has {channels} channels; the weight is for {layer.channels}")
    shape, _ = infer.infer("conv2d", _geometry_args(layer, x))
    out = planner.empty(shape)  # the first to refuse what is too large
    compiled, _, kernel = convolution.prepare(height, width)
    if residual is not None:
        form = residual.view if isinstance(residual, Tensor) else residual
        if form.shape != shape or form.dtype != np.float32:
            return "the residual has another shape or dtype"
        residual = planner.contiguous(residual)
    planes_memory = planner.scratch(compiled.scratch * planner.threads)
    threads = planner.threads

    def bind(at: At) -> Call:
        return partial(compiled.run, at(x), at(residual), at(out), at(planes_memory), threads)

    macs = convolution.macs(shape)
    planner.step(
        op,
        kernel,
        "sparse" if convolution.kept_share < 1 else "dense",
        bind,
        [x, residual],
        [out, planes_memory],
        kept_share=convolution.kept_share,
        macs=macs,
        dense_macs=math.prod(shape) * math.prod(layer.shape[1:]),
    )
    return out


def _geometry_args(layer: Layer, x: Tensor) -> dict[str, Any]:
    return {
        "input": x.view,
        "weight": np.broadcast_to(np.zeros((), np.float32), layer.shape),
        "stride": list(layer.stride),
        "padding": [list(pads) for pads in layer.padding],
        "dilation": list(layer.dilation),
        "groups": layer.groups,
    }


def _conv2d(
    convolution: Convolution, planner: Planner, input: Any, residual: Any = None, **packed: Any
) -> Tensor | str:
    if not isinstance(input, Tensor) or input.view.dtype != np.float32 or input.view.ndim != 4:
        return "the input is not a float32 tensor of four dimensions"
    if 0 in input.view.shape:
        return "the input is empty"
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
