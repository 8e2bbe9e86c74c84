"""Which implementation runs a node: the table from operators to kernels, and the reference for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from subp_ext.convolution import Convolution
from subp_ext.graph import Node, Ref
from subp_ext.reference import REFERENCE
from subp_ext.sparse import UniformBlockSparse

Constants = dict[str, np.ndarray | UniformBlockSparse]


class Implementation(Protocol):
    """A node ready to run: constants packed, arguments checked."""

    kernel: str
    kept_share: float | None
    reads: tuple[str, ...]

    def run(self, values: dict[str, Any], threads: int) -> Any:
        """Computes the node's output from the values it reads."""

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

    def run(self, values: dict[str, Any], threads: int) -> Any:
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

    def run(self, values: dict[str, Any], threads: int) -> np.ndarray:
        residual = resolve(self._residual, values)
        return self._convolution(resolve(self._input, values), residual, threads=threads)

    def macs(self, result: np.ndarray) -> int:
        return self._convolution.macs(result.shape)


def _conv2d(node: Node, constants: Constants) -> Implementation | None:
    parameters = (node.args.get("weight"), node.args.get("bias"))
    fixed = all(value is None or (isinstance(value, Ref) and value.name in constants) for value in parameters)
    return ConvolutionNode(node, constants) if fixed else None


# Each entry returns an implementation, or None where the node's arguments are beyond it.
KERNELS: dict[str, Callable[[Node, Constants], Implementation | None]] = {"conv2d": _conv2d}


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
