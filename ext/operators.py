"""Which implementation runs a node: the table from operators to kernels, and the reference for the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from subp_ext import planes, runtime
from subp_ext.convolution import Convolution
from subp_ext.graph import ACTIVATIONS, Node, Ref
from subp_ext.memory import Arena
from subp_ext.reference import REFERENCE
from subp_ext.sparse import UniformBlockSparse

Constants = dict[str, np.ndarray | UniformBlockSparse]


class Implementation(Protocol):
    """A node ready to run: constants packed, arguments checked."""

    kernel: str
    kept_share: float | None
    reads: tuple[str, ...]

    def run(self, values: dict[str, Any], threads: int, arena: Arena) -> Any:
        """Computes the node's output from the values it reads; large results take their memory from the arena."""

    def macs(self, result: Any) -> int | None:
        """Multiply-accumulates that led to this result; None where they are not counted."""


class ReferenceNode:
    """Runs a node on NumPy."""

    kernel = "reference"
    kept_share = None

    def __init__(self, node: Node, constants: Constants) -> None:
        self._run = REFERENCE[node.op]
        self._args = {name: resolve(value, constants, partial=True) for name, value in node.args.items()}
        self.reads = _unresolved(node, constants)
        self._weight = self._args.get("weight") if node.op == "linear" else None

    def run(self, values: dict[str, Any], threads: int, arena: Arena) -> Any:
        return self._run(**{name: resolve(value, values) for name, value in self._args.items()})

    def macs(self, result: Any) -> int | None:
        if not isinstance(self._weight, np.ndarray):
            return None
        return result.size * self._weight.shape[1]


class ConvolutionNode:
    """Runs a conv2d node with constant weights on the kernels."""

    def __init__(self, node: Node, constants: Constants) -> None:
        args = {name: resolve(value, constants, partial=True) for name, value in node.args.items()}
        self._input, self._residual = args.pop("input"), args.pop("residual", None)
        self._convolution = Convolution(**args)
        self.kernel, self.kept_share = self._convolution.kernel, self._convolution.kept_share
        self.reads = _unresolved(node, constants)

    def run(self, values: dict[str, Any], threads: int, arena: Arena) -> np.ndarray:
        x, residual = resolve(self._input, values), resolve(self._residual, values)
        return self._convolution(x, residual, threads=threads, empty=arena.empty)

    def macs(self, result: np.ndarray) -> int:
        return self._convolution.macs(result.shape)


class LinearNode:
    """Runs a linear node with constant weights as a 1x1 convolution, the batch as its pixels."""

    kept_share = None

    def __init__(self, node: Node, constants: Constants) -> None:
        args = {name: resolve(value, constants, partial=True) for name, value in node.args.items()}
        self._input, weight = args["input"], args["weight"]
        self._convolution = Convolution(weight[:, :, None, None], args.get("bias"), activation=args.get("activation"))
        self.kernel, self._inputs = self._convolution.kernel, weight.shape[1]
        self.reads = _unresolved(node, constants)

    def run(self, values: dict[str, Any], threads: int, arena: Arena) -> np.ndarray:
        x = np.asarray(resolve(self._input, values))
        pixels = np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)
        out = self._convolution(pixels[None, :, None, :], threads=threads)
        return np.ascontiguousarray(out[0, :, 0, :].T).reshape(*x.shape[:-1], -1)

    def macs(self, result: np.ndarray) -> int:
        return result.size * self._inputs


class PlanesNode(ReferenceNode):
    """Runs a node on one of the functions of `planes`, or on the reference where that has no kernel.

    `kernel` says which of them ran last.
    """

    def __init__(self, function: Callable[..., np.ndarray | None], node: Node, constants: Constants) -> None:
        super().__init__(node, constants)
        self._function, self._kernel = function, f"f32_{node.op}__{runtime.kernel_set()}"
        self.kernel = self._kernel

    def run(self, values: dict[str, Any], threads: int, arena: Arena) -> Any:
        args = {name: resolve(value, values) for name, value in self._args.items()}
        result = self._function(arena, threads, **args)
        self.kernel = "reference" if result is None else self._kernel
        return self._run(**args) if result is None else result


def _conv2d(node: Node, constants: Constants) -> Implementation | None:
    parameters = (node.args.get("weight"), node.args.get("bias"))
    fixed = all(value is None or (isinstance(value, Ref) and value.name in constants) for value in parameters)
    return ConvolutionNode(node, constants) if fixed else None


def _linear(node: Node, constants: Constants) -> Implementation | None:
    weight = constants.get(node.args["weight"].name) if isinstance(node.args.get("weight"), Ref) else None
    bias = node.args.get("bias")
    fixed = bias is None or (isinstance(bias, Ref) and bias.name in constants)
    is_matrix = isinstance(weight, np.ndarray) and weight.dtype == np.float32 and weight.ndim == 2
    return LinearNode(node, constants) if is_matrix and fixed else None


def _planes(function: Callable[..., np.ndarray | None], *names: str) -> Callable[..., Implementation | None]:
    """An entry for nodes with none but the named arguments."""

    def make(node: Node, constants: Constants) -> Implementation | None:
        return PlanesNode(function, node, constants) if set(node.args) <= set(names) else None

    return make


_WINDOW = ("self", "kernel_size", "stride", "padding", "ceil_mode")

# Each entry returns an implementation, or None where the node's arguments are beyond it.
KERNELS: dict[str, Callable[[Node, Constants], Implementation | None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _planes(planes.max_pool2d, *_WINDOW, "dilation"),
    "avg_pool2d": _planes(planes.avg_pool2d, *_WINDOW, "count_include_pad", "divisor_override"),
    "adaptive_avg_pool2d": _planes(planes.adaptive_avg_pool2d, "self", "output_size"),
    "mean": _planes(planes.mean, "self", "dim", "keepdim"),
    "add": _planes(planes.add, "self", "other", "alpha"),
    "mul": _planes(planes.mul, "self", "other"),
    **{name: _planes(partial(planes.activate, name), "self") for name in ACTIVATIONS if name in REFERENCE},
}


def supported_ops() -> tuple[str, ...]:
    """Returns the names of all operators a graph may use, sorted."""
    return tuple(sorted(REFERENCE))


def implement(node: Node, constants: Constants) -> Implementation:
    """Returns the best implementation of a node."""
    found = KERNELS[node.op](node, constants) if node.op in KERNELS else None
    return found or ReferenceNode(node, constants)


def resolve(value: Any, values: dict[str, Any], partial: bool = False) -> Any:
    """Replaces references, nested ones too, by what they name; `partial` leaves the unknown ones."""
    if isinstance(value, Ref):
        return values.get(value.name, value) if partial else values[value.name]
    if isinstance(value, (list, tuple)):
        return [resolve(item, values, partial) for item in value]
    return value


def _unresolved(node: Node, constants: Constants) -> tuple[str, ...]:
    return tuple({ref.name for ref in node.refs() if ref.name not in constants})
