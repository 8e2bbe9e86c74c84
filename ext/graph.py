"""The graph data model: what a `.subp` file holds and a Session runs. Plain data, JSON for all but the constants."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subp_ext.sparse import UniformBlockSparse

# What a conv2d or linear node may apply before it stores, in the forms without parameters: gelu is the erf form,
# gelu_tanh its tanh approximation, leaky_relu has slope 0.01. The kernels hold the same list.
ACTIVATIONS = (
    "relu",
    "relu6",
    "silu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "mish",
    "leaky_relu",
)

# Far beyond any network: nodes of a graph, and lists within lists of an argument.
MOST_NODES, DEEPEST_LIST = 1 << 16, 8

DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True)
class Ref:
    """A value by name: a graph input, a constant, or the output of an earlier node."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: ATen base name, without namespace, overload and trailing underscore ("conv2d", "add", "getitem").
        output: name of the value it computes. An operator that returns a tuple is read by `getitem` nodes with
            args {"self": Ref, "index": i}.
        args: by the ATen schema's argument names; JSON scalars, None, Refs, and lists of these. dtypes are names of
            `DTYPES`. conv2d also takes `residual` (Ref or None, added before the activation) and `activation` (None
            or a name of `ACTIVATIONS`); linear takes `activation`.
    """

    op: str
    output: str
    args: dict[str, Any] = field(default_factory=dict)

    def refs(self) -> Iterator[Ref]:
        """Yields every Ref in the arguments, nested ones too."""
        stack = list(self.args.values())
        while stack:
            value = stack.pop()
            if isinstance(value, Ref):
                yield value
            elif isinstance(value, (list, tuple)):
                stack.extend(value)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its value's name, its shape (None where any size goes) and dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass
class Graph:
    """Inputs, outputs, nodes in execution order, constants, and a small flat dict of metadata (JSON values)."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    nodes: list[Node]
    constants: dict[str, np.ndarray | UniformBlockSparse] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Checks names, references, argument values and constants.

        Raises:
            ValueError: names what is wrong, where, and what was expected.
        """
        if not self.inputs or not self.outputs:
            raise ValueError(
                f"graph has {len(self.inputs)} inputs and {len(self.outputs)} outputs; expected one or more"
            )
        if len(self.nodes) > MOST_NODES:
            raise ValueError(f"graph has {len(self.nodes)} nodes; expected at most {MOST_NODES}")
        known: set[str] = set()
        for spec in self.inputs:
            _check_spec(spec)
            _define(spec.name, "input", known)
        for name, constant in self.constants.items():
            _check_constant(name, constant)
            _define(name, "constant", known)
        for node in self.nodes:
            self._check_node(node, known)
            _define(node.output, f"output of a {node.op} node", known)
        for spec in self.outputs:
            _check_spec(spec)
            if spec.name not in known:
                raise ValueError(
                    f"output {spec.name!r} is not a value of the graph; name an input, constant or node output"
                )
        _check_metadata(self.metadata)

    def _check_node(self, node: Node, known: set[str]) -> None:
        where = f"node {node.output!r} ({node.op})"
        if not isinstance(node.op, str) or not node.op or not isinstance(node.args, dict):
            raise ValueError(f"{where}: op must be a name and args a dict by argument name")
        for name, value in node.args.items():
            if not isinstance(name, str):
                raise ValueError(f"{where}: argument name {name!r} is not a string")
            _check_value(value, f"{where}: argument {name!r}")
        dtype = node.args.get("dtype")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"{where}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        for ref in node.refs():
            if ref.name not in known:
                raise ValueError(
                    f"{where}: reads {ref.name!r}, which is not an input, a constant or the output of an earlier node"
                )
        activation = node.args.get("activation")
        if node.op in ("conv2d", "linear") and activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"{where}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")

    def to_json(self) -> dict[str, Any]:
        """Returns all but the constants as JSON values; `from_json` reads it back."""
        inputs, outputs = (
            [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in specs]
            for specs in (self.inputs, self.outputs)
        )
        nodes = [
            {"op": n.op, "output": n.output, "args": {k: _encode(v) for k, v in n.args.items()}} for n in self.nodes
        ]
        return {"inputs": inputs, "outputs": outputs, "nodes": nodes, "metadata": self.metadata}

    @classmethod
    def from_json(cls, data: dict[str, Any], constants: dict[str, np.ndarray | UniformBlockSparse]) -> Graph:
        """Builds and validates a graph.

        Raises:
            ValueError: the data is not what `to_json` writes, or the graph is not valid.
        """
        try:
            specs = {
                side: [TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in data[side]]
                for side in ("inputs", "outputs")
            }
            nodes = [Node(n["op"], n["output"], {k: _decode(v) for k, v in n["args"].items()}) for n in data["nodes"]]
            graph = cls(specs["inputs"], specs["outputs"], nodes, constants, data["metadata"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"graph description lacks a part or has one of the wrong kind: {error!r}") from error
        graph.validate()
        return graph


def _define(name: Any, what: str, known: set[str]) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name {name!r} ({what}) is not a non-empty string")
    if name in known:
        raise ValueError(f"name {name!r} ({what}) is already taken; every value needs a name of its own")
    known.add(name)


def _check_spec(spec: TensorSpec) -> None:
    for size in spec.shape:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(
                f"{spec.name!r}: shape {spec.shape} holds {size!r}; expected sizes, or None where any goes"
            )
    if spec.dtype not in DTYPES:
        raise ValueError(f"{spec.name!r}: dtype {spec.dtype!r} is not one of {', '.join(DTYPES)}")


def _check_constant(name: str, constant: Any) -> None:
    if isinstance(constant, UniformBlockSparse):
        return
    if not isinstance(constant, np.ndarray):
        raise ValueError(f"constant {name!r} is a {type(constant).__name__}; expected an array or UniformBlockSparse")
    if constant.dtype.name not in DTYPES:
        raise ValueError(f"constant {name!r}: dtype {constant.dtype} is not one of {', '.join(DTYPES)}; convert it")


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    if isinstance(value, (list, tuple)):
        if depth == DEEPEST_LIST:
            raise ValueError(f"{where}: lists nest deeper than {DEEPEST_LIST}")
        for item in value:
            _check_value(item, where, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float, str, Ref))):
        raise ValueError(
            f"{where} is a {type(value).__name__}; expected a number, string, None, Ref or a list of these"
        )


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise ValueError("metadata must be a dict with string keys")
    for key, value in metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {key!r} is not a JSON value: {error}") from error


def _encode(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}  # JSON has no infinities
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"ref"} and isinstance(value["ref"], str):
            return Ref(value["ref"])
        if set(value) == {"float"}:
            return float(value["float"])
        raise ValueError(f"argument value {value} is neither a reference nor a number")
    return value
