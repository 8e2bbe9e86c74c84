"""A model in evaluation mode as a ``subp_ext.Graph`` of ATen operators, one to one, through ``torch.export``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import Node as FxNode

from subp_ext import Graph, Node, Ref, TensorSpec

from ..errors import UsageError
from ..torch_compat import operator_schema
from .example import Example
from .fuse import Argument, Shape
from .image_state import BATCH
from .outputs import output_values

if TYPE_CHECKING:
    import sympy

# Bounds on a size beyond which a model is not traced again, or that leave no size free.
MAX_BOUND = 256

# Sizes other than the batch are taken at multiples of this, each with a prime of its own: strides and windows divide
# them, and no two are equal, or equal to a number in the model, by chance.
_DIVISIBLE, _PRIMES = 20160, (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179)

# Arithmetic on symbolic sizes arrives as functions of Python and torch.
_SYMBOLIC = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.neg: "neg",
    operator.mod: "remainder",
    operator.truediv: "div",
    operator.floordiv: "floor_divide",
    operator.getitem: "getitem",
    math.ceil: "sym_ceil",
    math.floor: "sym_floor",
    math.trunc: "sym_trunc",
    torch.sym_int: "sym_trunc",
    torch.sym_float: "sym_float",
    torch.sym_max: "sym_max",
    torch.sym_min: "sym_min",
}


class Traced(NamedTuple):
    """A graph, with constants named like the model's state, and what else the trace knows.

    Attributes:
        shapes: of every tensor, at a batch of ``BATCH`` and sizes that nothing else has; -1 for a size that does not
            follow from those of the inputs.
        numbers: values that are computed from sizes, at the same sizes, and whether the batch is among these.
        inputs: the sizes of every input: numbers, and what is free as an expression.
        output_names: by the keys of the model's results; None where they have none.
        assumptions: of the trace about free sizes, those that do not hold for all: for others the model's code goes
            another way, or computes what is no size of a tensor.
    """

    graph: Graph
    shapes: dict[str, Shape]
    numbers: dict[str, tuple[float, bool]]
    inputs: list[tuple[int | sympy.Expr, ...]]
    output_names: list[str | None]
    assumptions: list[sympy.Basic]


def trace(model: nn.Module, example: Example, sizes: bool = False) -> Traced:
    """Trace a model for any number of images, and with ``sizes`` for every size that its code leaves free.

    Args:
        model: on the CPU, in evaluation mode, with plain weights.
        example: of its inputs.
        sizes: whether sizes other than the batch are left free, too.

    Raises:
        UsageError: as ``export_program``; or the model returns what is no tensor, or changes its own state.
    """
    program = export_program(model, example, sizes)
    assumptions = _assumptions(program, example.batched) if sizes else []
    program = program.run_decompositions({})
    try:
        return _convert(program, example.batched)._replace(assumptions=assumptions)
    except UsageError as error:
        raise UsageError(f"{type(model).__name__} cannot be exported: {error}") from error


@torch.no_grad()
def export_program(model: nn.Module, example: Example, sizes: bool = False) -> ExportedProgram:
    """A model through ``torch.export``, for any batch size.

    A model whose code depends on the batch size is traced for batches of one, and says so in its input's shape; with
    ``sizes`` it is refused.

    Raises:
        UsageError: torch.export cannot follow the model's code.
    """

    def export_free(batch: int) -> ExportedProgram:
        return _export_free(model, example.of_batch(batch), sizes)

    attempts: list[Callable[[], ExportedProgram | None]] = [lambda: _of_any_batch(export_free, example)]
    if not sizes:
        attempts += [lambda: _export(model, example.of_batch(1), None), lambda: _export(model, example, None)]
    reason: Exception | None = None
    for attempt in attempts:
        try:
            if (program := attempt()) is not None:
                return program
        except Exception as error:  # a different type for each thing it cannot follow
            reason = reason or error
    lines = str(reason or "its code depends on the batch size").strip().splitlines() or [type(reason).__name__]
    raise UsageError(f"{type(model).__name__} cannot be traced for export: {lines[0]}") from reason


def _export(model: nn.Module, example: Example, free: Any) -> ExportedProgram:
    return torch.export.export(model, example.arguments, dict(example.keywords), dynamic_shapes=free)


def _export_free(model: nn.Module, example: Example, sizes: bool) -> ExportedProgram:
    free = torch.export.ShapesCollection()
    for tensor, batched in zip(example.tensors, example.batched, strict=True):
        dims = range(tensor.ndim) if sizes else range(int(batched))
        free[tensor] = {dim: Dim.AUTO for dim in dims if tensor.shape[dim] > 1}
    return _export(model, example, free)


def _of_any_batch(export_free: Callable[[int], ExportedProgram], example: Example) -> ExportedProgram | None:
    """A program, if the model does the same for every batch size, as far as torch.export bounds the one of the trace.

    A bound may come from how torch lays tensors out; beyond it the model is traced again, and must give the same code.
    """
    first = program = export_free(2)
    expected = 2
    while True:
        inputs = _input_nodes(program)
        if program.graph_module.code != first.graph_module.code or [_shape(fx) for fx in inputs] != [
            _shape(fx) for fx in _input_nodes(first)
        ]:
            return None
        batch = _batch_of([_symbolic(fx) for fx in inputs], example.batched)
        sizes = program.range_constraints.get(batch)
        if batch is None or (sizes is not None and not sizes.lower <= expected <= sizes.upper):
            return None
        if sizes is None or sizes.upper >= BATCH:
            return first
        expected = int(sizes.upper) + 1
        if expected > MAX_BOUND:
            return None
        program = export_free(expected)


def _assumptions(program: ExportedProgram, batched: tuple[bool, ...]) -> list[sympy.Basic]:
    """What a program takes for granted of the sizes that it leaves free, where it does not hold for generic ones."""
    inputs = _input_nodes(program)
    values = _generic(symbolic := [_symbolic(fx) for fx in inputs], _batch_of(symbolic, batched))
    free = [size for fx in inputs for size in fx.meta["val"].shape if isinstance(size, torch.SymInt)]
    guards = free[0].node.shape_env.guards if free else ()
    return [guard.expr for guard in guards if violates(guard.expr, values)]


def violates(assumption: sympy.Basic, values: dict[sympy.Symbol, int]) -> bool:
    """Whether an assumption is false for these sizes."""
    return assumption.subs(values) == False  # noqa: E712 - of sympy, which has a False of its own


def _input_nodes(program: ExportedProgram) -> list[FxNode]:
    names = [
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    ]
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[name] for name in names]


def _batch_of(inputs: list[tuple[int | sympy.Expr, ...]], batched: tuple[bool, ...]) -> sympy.Symbol | None:
    """The free size that stands for the images: of the first input that has some."""
    first = next((sizes[0] for sizes, is_batched in zip(inputs, batched, strict=True) if is_batched), None)
    return None if first is None or isinstance(first, int) or not first.is_Symbol else first


def _symbolic(fx: FxNode) -> tuple[int | sympy.Expr, ...]:
    sizes = (size if isinstance(size, int) else size.node.expr for size in fx.meta["val"].shape)
    return tuple(size if isinstance(size, int) or not size.is_Integer else int(size) for size in sizes)


def _shape(fx: FxNode) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in _symbolic(fx))


def _generic(inputs: list[tuple[int | sympy.Expr, ...]], batch: sympy.Symbol | None) -> dict[sympy.Symbol, int]:
    """Sizes for all that is free."""
    symbols = [s for sizes in inputs for size in sizes if not isinstance(size, int) for s in size.free_symbols]
    others = [symbol for symbol in dict.fromkeys(symbols) if symbol != batch]
    values = {symbol: _DIVISIBLE * _PRIMES[at % len(_PRIMES)] for at, symbol in enumerate(others)}
    return values if batch is None else values | {batch: BATCH}


def _evaluate(size: Any, values: dict[sympy.Symbol, int]) -> float:
    if not isinstance(size, torch.SymInt | torch.SymFloat):
        return size
    found = size.node.expr.subs(values)
    return (int(found) if found.is_Integer else float(found)) if found.is_number else -1


def _convert(program: ExportedProgram, batched: tuple[bool, ...]) -> Traced:
    constants, names = _constants(program)
    inputs = _input_nodes(program)
    symbolic = [_symbolic(fx) for fx in inputs]
    batch = _batch_of(symbolic, batched)
    values = _generic(symbolic, batch)
    nodes, shapes = [], {name: constant.shape for name, constant in constants.items()}
    numbers: dict[str, tuple[float, bool]] = {}
    for fx in program.graph.nodes:
        name, value = names.get(fx.name, fx.name), fx.meta.get("val")
        if isinstance(value, torch.Tensor):
            shapes[name] = tuple(int(_evaluate(size, values)) for size in value.shape)
        elif isinstance(value, torch.SymInt | torch.SymFloat):
            numbers[name] = (_evaluate(value, values), batch in value.node.expr.free_symbols)
        if fx.op == "call_function":
            nodes.append(Node(_operator_name(fx), fx.name, _arguments(fx, names)))
    by_name = {fx.name: fx for fx in program.graph.nodes}
    results = output_values(program)
    outputs = [_spec(by_name[value], names) for value, _ in results]
    graph = Graph([_spec(fx, names) for fx in inputs], outputs, nodes, constants)
    return Traced(graph, shapes, numbers, symbolic, [name for _, name in results], [])


def _spec(fx: FxNode, names: dict[str, str]) -> TensorSpec:
    return TensorSpec(names.get(fx.name, fx.name), _shape(fx), _dtype_name(fx.meta["val"].dtype))


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
    # Only ATen's names mean what the runtime knows under them; others::linear stays what it is, and is refused.
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
