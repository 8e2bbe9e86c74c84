"""A model in evaluation mode as a ``subp_ext.Graph`` of ATen operators, one to one, through ``torch.export``."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node as FxNode

from subp_ext import Graph, Node, Ref, TensorSpec

from ..errors import UsageError
from ..torch_compat import operator_schema
from .fuse import Argument, Shape
from .image_rules import BATCH
from .outputs import output_values

if TYPE_CHECKING:
    import sympy

# Bounds on the batch size beyond which a model is not traced again.
MAX_BOUND = 256

# Arithmetic on symbolic sizes arrives as Python operators.
_SYMBOLIC = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.floordiv: "floor_divide",
    operator.getitem: "getitem",
}


class Traced(NamedTuple):
    """A graph, with constants named like the model's state, and what else the trace knows.

    Attributes:
        shapes: of every tensor, at a batch of ``BATCH``; -1 for a size that follows from more than the batch.
        output_names: by the keys of the model's results; None where they have none.
    """

    graph: Graph
    shapes: dict[str, Shape]
    output_names: list[str | None]


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> Traced:
    """Trace a model for images ``[B, C, H, W]`` of any batch size.

    Args:
        model: on the CPU, in evaluation mode, with plain weights.
        input_size: (C, H, W).

    Raises:
        UsageError: as ``export_program``; or the model returns what is no tensor, or changes its own state.
    """
    program = export_program(model, input_size).run_decompositions({})
    try:
        return _convert(program)
    except UsageError as error:
        raise UsageError(f"{type(model).__name__} cannot be exported: {error}") from error


@torch.no_grad()
def export_program(model: nn.Module, input_size: tuple[int, int, int]) -> ExportedProgram:
    """A model through ``torch.export``, for any batch size.

    A model whose code depends on the batch size is traced for batches of one, and says so in its input's shape.

    Raises:
        UsageError: torch.export cannot follow the model's code.
    """
    try:
        program = _export_free(model, 2, input_size)
        if _takes_any_batch(model, program, input_size):
            return program
        reason = None
    except Exception as error:  # a different type for each thing it cannot follow
        reason = error
    try:
        return torch.export.export(model, (torch.zeros(1, *input_size),))
    except Exception as error:
        reason = reason or error
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    raise UsageError(f"{type(model).__name__} cannot be traced for export: {lines[0]}") from reason


def _export_free(model: nn.Module, batch: int, input_size: tuple[int, int, int]) -> ExportedProgram:
    return torch.export.export(model, (torch.zeros(batch, *input_size),), dynamic_shapes=({0: Dim.AUTO},))


def _takes_any_batch(model: nn.Module, program: ExportedProgram, input_size: tuple[int, int, int]) -> bool:
    """Whether the model does the same for every batch size, as far as torch.export bounds the one it was traced with.

    A bound may come from how torch lays tensors out; beyond it the model is traced again, and must give the same code.
    """
    code, expected = program.graph_module.code, 2
    while True:
        image = _input_node(program)
        if _shape(image) != (None, *input_size) or program.graph_module.code != code:
            return False
        batch = image.meta["val"].shape[0].node.expr
        sizes = program.range_constraints.get(batch)
        if not batch.is_Symbol or (sizes is not None and not sizes.lower <= expected <= sizes.upper):
            return False
        if sizes is None or sizes.upper >= BATCH:
            return True
        expected = int(sizes.upper) + 1
        if expected > MAX_BOUND:
            return False
        program = _export_free(model, expected, input_size)


def _input_node(program: ExportedProgram) -> FxNode:
    name = program.graph_signature.user_inputs[0]
    return next(node for node in program.graph.nodes if node.name == name)


def _shape(fx: FxNode) -> tuple[int | None, ...] | None:
    value = fx.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _sizes(fx: FxNode, batch: sympy.Expr | None) -> Shape | None:
    """The shape of a tensor at a batch of ``BATCH``; ``batch`` is the symbol, if the batch is free."""
    value = fx.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else _at_batch(size.node.expr, batch) for size in value.shape)


def _at_batch(size: sympy.Expr, batch: sympy.Expr | None) -> int:
    found = size.subs(batch, BATCH) if batch is not None else size
    return int(found) if found.is_Integer else -1


def _convert(program: ExportedProgram) -> Traced:
    constants, names = _constants(program)
    image = _input_node(program)
    size = image.meta["val"].shape[0]
    batch = None if isinstance(size, int) else size.node.expr
    nodes, shapes = [], {name: constant.shape for name, constant in constants.items()}
    for fx in program.graph.nodes:
        name = names.get(fx.name, fx.name)
        if (shape := _sizes(fx, batch)) is not None:
            shapes[name] = shape
        if fx.op == "call_function":
            nodes.append(Node(_operator_name(fx), fx.name, _arguments(fx, names)))
    by_name = {fx.name: fx for fx in program.graph.nodes}
    results = output_values(program)
    outputs = [
        TensorSpec(names.get(fx.name, fx.name), _shape(fx), _dtype_name(fx.meta["val"].dtype))
        for fx in (by_name[value] for value, _ in results)
    ]
    graph = Graph([TensorSpec(image.name, _shape(image))], outputs, nodes, constants)
    return Traced(graph, shapes, [name for _, name in results])


def _constants(program: ExportedProgram) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Parameters and buffers by their name in the model, and that name by the name of their placeholder."""
    constants, names = {}, {}
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            continue
        value = program.state_dict.get(spec.target, program.constants.get(spec.target))
        names[spec.arg.name] = spec.target
        constants[spec.target] = value.detach().contiguous().numpy()
    return constants, names


def _operator_name(fx: FxNode) -> str:
    if fx.target in _SYMBOLIC:
        return _SYMBOLIC[fx.target]
    schema = operator_schema(fx.target)
    # Only ATen's names mean what the runtime knows under them; mylib::linear stays what it is, and is refused.
    return schema.name.removeprefix("aten::").rstrip("_") if schema else str(fx.target)


def _arguments(fx: FxNode, names: dict[str, str]) -> dict[str, Argument]:
    schema = operator_schema(fx.target)
    if schema:
        arguments = [argument.name for argument in schema.arguments]
    else:
        arguments = ["self", "index"] if fx.target is operator.getitem else ["self", "other"]
    bound = dict(zip(arguments, fx.args, strict=False)) | dict(fx.kwargs)
    return {name: _value(value, names) for name, value in bound.items()}


def _value(value: Any, names: dict[str, str]) -> Argument:
    if isinstance(value, FxNode):
        return Ref(names.get(value.name, value.name))
    if isinstance(value, list | tuple):
        return [_value(item, names) for item in value]
    if isinstance(value, torch.dtype):
        return _dtype_name(value)
    if isinstance(value, torch.device | torch.layout | torch.memory_format):
        return str(value)
    return value


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
