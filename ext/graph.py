"""The graph data model: what a `.subp` file holds and a Session runs. Plain data, JSON for all but the constants."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subp_ext.dtypes import DTYPES, Quantization, TypedArray, ValueType, dtype_named, dtype_of
from subp_ext.operators import fused_activations
from subp_ext.sparse import UniformBlockSparse

Constant = np.ndarray | TypedArray | UniformBlockSparse

# What a conv2d or linear node may apply before it stores, in the forms without parameters: gelu is the erf form,
# gelu_tanh its tanh approximation, leaky_relu has slope 0.01.
ACTIVATIONS = fused_activations()

# Far beyond any network: nodes of a graph, and lists within lists of an argument.
MAX_NODES, MAX_LIST_DEPTH = 1 << 16, 8


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
        type: of the value, where that does not follow from the operator: a result of bfloat16, or quantized with one
            scale and zero point. None else.
    """

    op: str
    output: str
    args: dict[str, Any] = field(default_factory=dict)
    type: ValueType | None = None

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
    """An input or output.

    Attributes:
        name: of its value.
        shape: None where any size goes.
        dtype: a name of `DTYPES`. A bfloat16 value is passed and returned as float32, and rounded on its way in.
        quantization: of integers that stand for real numbers, which are passed and returned as stored; None else.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    quantization: Quantization | None = None

    @property
    def type(self) -> ValueType:
        """The type of its elements."""
        return ValueType(dtype_named(self.dtype), self.quantization)


@dataclass
class Graph:
    """Inputs, outputs, nodes in execution order, constants, and a small flat dict of metadata (JSON values)."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    nodes: list[Node]
    constants: dict[str, Constant] = field(default_factory=dict)
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
        if len(self.nodes) > MAX_NODES:
            raise ValueError(f"graph has {len(self.nodes)} nodes; expected at most {MAX_NODES}")
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
        if node.type is not None and (not isinstance(node.type, ValueType) or _per_channel(node.type.quantization)):
            raise ValueError(f"{where}: type {node.type!r} is no ValueType with one scale at most")
        for ref in node.refs():
            if ref.name not in known:
                raise ValueError(
                    f"{where}: reads {ref.name!r}, which is not an input, a constant or the output of an earlier node"
                )
        activation = node.args.get("activation")
        if (
            node.op in ("conv2d", "conv_transpose2d", "linear")
            and activation is not None
            and activation not in ACTIVATIONS
        ):
            raise ValueError(f"{where}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")

    def to_json(self) -> dict[str, Any]:
        """Returns all but the constants as JSON values; `from_json` reads it back."""
        inputs, outputs = (
            [{"name": s.name, "shape": list(s.shape)} | s.type.to_json() for s in specs]
            for specs in (self.inputs, self.outputs)
        )
        nodes = [
            {"op": n.op, "output": n.output, "args": {k: _encode(v) for k, v in n.args.items()}}
            | ({} if n.type is None else {"type": n.type.to_json()})
            for n in self.nodes
        ]
        return {"inputs": inputs, "outputs": outputs, "nodes": nodes, "metadata": self.metadata}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Graph:
        """Builds a graph without its constants, which is to be validated once it has them.

        Raises:
            ValueError: the data is not what `to_json` writes.
        """
        try:
            specs = {side: [_read_spec(entry) for entry in data[side]] for side in ("inputs", "outputs")}
            nodes = [_read_node(entry) for entry in data["nodes"]]
            return cls(specs["inputs"], specs["outputs"], nodes, {}, data["metadata"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"graph description lacks a part or has one of the wrong kind: {error!r}") from error


def _define(name: Any, what: str, known: set[str]) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name {name!r} ({what}) is not a non-empty string")
    if name in known:
        raise ValueError(f"name {name!r} ({what}) is already taken; every value needs a name of its own")
    known.add(name)


def _read_spec(entry: dict[str, Any]) -> TensorSpec:
    found = ValueType.from_json(entry)
    return TensorSpec(entry["name"], tuple(entry["shape"]), found.dtype.name, found.quantization)


def _read_node(entry: dict[str, Any]) -> Node:
    args = {name: _decode(value) for name, value in entry["args"].items()}
    return Node(entry["op"], entry["output"], args, ValueType.from_json(entry["type"]) if "type" in entry else None)


def _per_channel(quantization: Quantization | None) -> bool:
    return quantization is not None and quantization.axis is not None


def _check_spec(spec: TensorSpec) -> None:
    for size in spec.shape:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(
                f"{spec.name!r}: shape {spec.shape} holds {size!r}; expected sizes, or None where any goes"
            )
    if spec.dtype not in DTYPES:
        raise ValueError(f"{spec.name!r}: dtype {spec.dtype!r} is not one of {', '.join(DTYPES)}")
    try:
        found = spec.type
    except ValueError as error:
        raise ValueError(f"{spec.name!r}: {error}") from error
    if _per_channel(found.quantization):
        raise ValueError(f"{spec.name!r}: quantized per channel; expected one scale and zero point")


def _check_constant(name: str, constant: Any) -> None:
    if isinstance(constant, (UniformBlockSparse, TypedArray)):
        return
    if not isinstance(constant, np.ndarray):
        kinds = "an array, TypedArray or UniformBlockSparse"
        raise ValueError(f"constant {name!r} is a {type(constant).__name__}; expected {kinds}")
    try:
        dtype_of(constant)
    except ValueError as error:
        raise ValueError(f"constant {name!r}: {error}") from error


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    if isinstance(value, (list, tuple)):
        if depth == MAX_LIST_DEPTH:
            raise ValueError(f"{where}: lists nest deeper than {MAX_LIST_DEPTH}")
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
