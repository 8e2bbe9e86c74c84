"""From a graph and the shapes of its inputs to a plan: steps in order, and the place of every value in one arena.

A planner goes through the graph with meta tensors: they have a type, a shape, strides and a buffer, but no numbers.
What depends on constants and sizes alone is computed on the way; views cost nothing; all else becomes steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from subp_ext import operators
from subp_ext.aliasing import elide_concatenations, reuse_operands
from subp_ext.dtypes import FLOAT32, TypedArray, ValueType, as_type
from subp_ext.folding import check_size, compute, compute_constant, guarded, resolve
from subp_ext.graph import Graph, Node
from subp_ext.memory import Buffer, place
from subp_ext.operators import NUMBER, OPERATORS, VIEW
from subp_ext.plan import Plan, Step
from subp_ext.tensor import At, Call, Tensor, as_meta, tensors_in


class Planner:
    """Builds a Plan; the lowerings of `operators` call its methods.

    Args:
        constants: what is known, by name; `run` adds the values it computes.
        threads: for the kernels.
        limit: bytes that the arena and each value may take.
    """

    def __init__(self, constants: Mapping[str, Any], threads: int, limit: int) -> None:
        self.values, self.threads, self.limit = dict(constants), threads, limit
        self.steps: list[Step] = []
        self.conversions: dict[tuple[Tensor, ValueType], Tensor] = {}  # made so far
        self._buffers: list[Buffer] = []
        self._meta_memory = np.empty(0, np.uint8)  # what the views of all meta tensors point to
        self._node = ""

    def plan(self, graph: Graph, shapes: Sequence[tuple[int, ...]], implement: Callable[..., Any]) -> Plan:
        """Plans a run.

        Raises:
            ValueError: names the node whose arguments do not fit, or whose result is beyond the limit.
        """
        inputs = [self.empty(shape, spec.type) for shape, spec in zip(shapes, graph.inputs, strict=True)]
        self.values.update({spec.name: tensor for spec, tensor in zip(graph.inputs, inputs, strict=True)})
        for node in graph.nodes:
            if node.output not in self.values:
                self._node = node.output
                self.values[node.output] = guarded(node, partial(self._value, node, implement))
        outputs = [self.values[spec.name] for spec in graph.outputs]
        for spec, output in zip(graph.outputs, outputs, strict=True):
            if not isinstance(output, (Tensor, np.ndarray, TypedArray, int, float)):
                raise ValueError(f"output {spec.name!r} is not a tensor")
            found = getattr(output, "type", spec.type if spec.type.plain else None)
            if found != spec.type and not (found and found.plain and spec.type.plain):
                raise ValueError(f"output {spec.name!r} is {found or 'plain'}; the graph declares {spec.type}")
        for tensor in inputs:
            tensor.buffer.first = -1
        for tensor in tensors_in(outputs):
            tensor.buffer.last = len(self.steps)
        elide_concatenations(self.steps)
        reuse_operands(self.steps, self._buffers)
        nbytes = place(self._buffers)
        if nbytes > self.limit:
            raise ValueError(f"needs {nbytes / 1e9:.1f} GB to run; this process may use {self.limit / 1e9:.1f} GB")
        return Plan(inputs, outputs, [step for step in self.steps if step.writes], nbytes)

    def _value(self, node: Node, implement: Callable[..., Any]) -> Any:
        args = resolve(node.args, self.values)
        if not tensors_in(args):
            return compute_constant(node, args, self.limit)
        if OPERATORS[node.op].shape is NUMBER:
            return compute(node.op, as_meta(args), self.limit)
        if OPERATORS[node.op].shape is VIEW:
            view = self._view(node.op, args)
            if node.type is None or not isinstance(view, Tensor) or view.type == node.type:
                return view
            return operators.converted(self, view, node.type, "the node declares another type")
        return implement(self, node, args)

    def empty(self, shape: Sequence[int], type: Any = FLOAT32, order: Sequence[int] | None = None) -> Tensor:
        """A new tensor with memory of its own.

        Args:
            shape: of the tensor.
            type: of its elements: what `as_type` takes.
            order: its axes from the outermost in memory to the innermost; C order by default.

        Raises:
            ValueError: it would take more memory than there is.
        """
        type, shape = as_type(type), tuple(int(size) for size in shape)
        storage = type.dtype.storage
        nbytes = check_size(shape, storage, self.limit)
        if nbytes > self._meta_memory.nbytes:
            self._meta_memory = np.empty(nbytes, np.uint8)
        buffer = Buffer(nbytes, len(self.steps), len(self.steps))
        self._buffers.append(buffer)
        laid = shape if order is None else tuple(shape[axis] for axis in order)
        view = np.ndarray(laid, storage, self._meta_memory)
        return Tensor(buffer, view if order is None else view.transpose(np.argsort(order)), 0, type)

    def check_room(self, shape: Sequence[int], type: Any = FLOAT32) -> None:
        """Refuses a tensor that is too large, without making it.

        Raises:
            ValueError: it is.
        """
        check_size(shape, as_type(type).dtype.storage, self.limit)

    def scratch(self, floats: int) -> Tensor:
        """Memory for the next step alone."""
        return self.empty([max(floats, 1)])

    def view(self, tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor | None:
        """The part of a tensor that an array function returns; None if it would have to copy."""
        return self._part(tensor, function(tensor.view))

    def _part(self, tensor: Tensor, result: np.ndarray) -> Tensor | None:
        """The part of a tensor that is this array of its view; None if the array is a copy."""
        if not np.may_share_memory(result, tensor.view) and result.size:
            return None
        start = result.ctypes.data - tensor.view.ctypes.data if result.size else 0
        return Tensor(tensor.buffer, result, tensor.start + start, tensor.type)

    def contiguous(self, value: Any) -> Any:
        """The tensor or array in C order, copied by a step of its own where it is not."""
        if isinstance(value, np.ndarray):
            return np.ascontiguousarray(value)
        return value if value.view.flags.c_contiguous else self.copy(value)

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor in C order in memory of its own."""
        out = self.empty(tensor.view.shape, tensor.type)
        self.step("copy", "numpy", "another memory order", _copy_into(out, tensor), [tensor], [out])
        return out

    def step(
        self,
        op: str,
        kernel: str,
        why: str,
        bind: Callable[[At], Call],
        reads: Sequence[Any],
        writes: Sequence[Tensor],
        **facts: Any,
    ) -> None:
        """Appends a step. What it reads may be constants too; scratch belongs to what it writes."""
        read, number = [value for value in reads if isinstance(value, Tensor)], len(self.steps)
        for tensor in (*read, *writes):
            tensor.buffer.last = number
        self.steps.append(Step(self._node, op, kernel, why, bind, read, list(writes), **facts))

    def _view(self, op: str, args: dict[str, Any]) -> Any:
        shown = as_meta(args)
        operators.check_pieces(op, shown)
        if op == "getitem":
            return args["self"][args["index"]]
        source, result = args.get("self", args.get("input")), OPERATORS[op].reference(**shown)
        if not isinstance(source, Tensor):
            return result  # a known one, of a size that follows the input's
        if isinstance(result, (list, tuple)):
            return [self._part(source, part) for part in result]
        found = self._part(source, result)
        # A reshape of what is not contiguous: the copy is.
        return found or self._view(op, {n: self.copy(v) if v is source else v for n, v in args.items()})


def _copy_into(out: Tensor, source: Tensor) -> Callable[[At], Call]:
    def bind(at: At) -> Call:
        target, origin = at(out), at(source)
        return lambda: np.copyto(target, origin)

    return bind
