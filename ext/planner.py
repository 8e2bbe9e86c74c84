"""From a graph and the shapes of its inputs to a plan: steps in order, and the place of every value in one arena.

A planner goes through the graph with meta tensors: they have a type, a shape, strides and a buffer, but no numbers.
What depends on constants and sizes alone is computed on the way; views cost nothing; all else becomes steps. A `State`
is the memory for one run at a time: an arena and the plan's steps bound to places in it, so that a run is a list of
calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from subp_ext import operators
from subp_ext.dtypes import FLOAT32, TypedArray, ValueType, as_type, dtype_of
from subp_ext.graph import Graph, Node, Ref
from subp_ext.memory import Buffer, aligned, place
from subp_ext.operators import ELEMENTWISE, NUMBER, OPERATORS, VIEW, Rule
from subp_ext.tensor import At, Call, Tensor, as_meta, tensors_in

# What a graph may compute from constants when it is loaded, in bytes: more than any network's tables and weights.
MAX_CONSTANT_BYTES = 4 << 30

# Sizes and counts that a graph computes; beyond are only those of hostile files.
MAX_NUMBER = 1 << 62


@dataclass(eq=False)
class Step:
    """One call of a run, and what a report says about it."""

    node: str
    op: str
    kernel: str
    why: str
    bind: Callable[[At], Call]
    reads: list[Tensor]
    writes: list[Tensor]
    kept_share: float | None = None
    macs: int | None = None
    dense_macs: int | None = None
    sparse_macs: int = 0
    products: str = ""  # the type of the numbers that are multiplied
    passed_over: tuple[str, ...] = ()  # faster kernels that exist, each with why it does not run
    in_place: list[Tensor] = field(default_factory=list)  # those read whose memory the first written may take over
    concatenates: bool = False  # whether it writes its operands one after the other


@dataclass(eq=False)
class Plan:
    """What a run for one set of input shapes does."""

    inputs: list[Tensor]
    outputs: list[Any]  # Tensors, or arrays that do not depend on the inputs
    steps: list[Step]
    nbytes: int  # of the arena


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
        self._elide_concatenations()
        self._reuse_operands()
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

    def _elide_concatenations(self) -> None:
        """Computes what is concatenated in its place in the result, so that nothing is copied.

        The last concatenation comes first: its result may hold those of earlier ones.
        """
        for step in reversed(self.steps):
            if not step.concatenates:
                continue
            out, start, copied, parts = step.writes[0], 0, [], len(step.reads)
            for part in step.reads:
                if not _place_inside(part, out, start):
                    copied.append((part, start))
                start += part.view.nbytes
            first, begin = step.reads[0].buffer.root(), step.reads[0].start
            if len(copied) == len(step.reads) and _adjacent(step.reads) and not out.buffer.parent:
                # All of them live side by side in the result of a later concatenation already.
                out.buffer.alias(first[0], first[1] + begin)
                copied = []
            step.bind = _copies(out, copied)
            step.reads = [part for part, _ in copied]
            step.why = f"{parts - len(copied)} of {parts} parts are computed in place"
            step.kernel = "numpy" if copied else "none"

    def _reuse_operands(self) -> None:
        """Lets a result continue in the memory of an operand that nothing else reads, this step aside.

        Nor may the step itself read that memory a second time, in another order: the result may be there already.
        """
        shared = {id(b.root()[0]) for b in self._buffers if b.parent}
        for number, step in enumerate(self.steps):
            target = step.writes[0].buffer
            for operand in step.in_place:
                source, start = operand.buffer.root()
                free = source.last == number and start + operand.start == 0 and id(source) not in shared
                free &= all(_same_place(read, operand) or read.buffer.root()[0] is not source for read in step.reads)
                if free and id(target) not in shared and not target.parent and source.nbytes == target.nbytes:
                    target.alias(source, 0)
                    break


def _same_place(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same elements of one buffer, in the same order."""
    laid = [(t.buffer, t.start, t.view.shape, t.view.strides, t.view.dtype) for t in (a, b)]
    return laid[0] == laid[1]


def _place_inside(part: Tensor, out: Tensor, start: int) -> bool:
    """Makes a part of a concatenation live inside its result, if it is a buffer of its own."""
    if part.buffer.parent or not part.whole or part.buffer is out.buffer.root()[0]:
        return False
    part.buffer.alias(out.buffer, start)
    return True


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether they follow each other in one buffer."""
    places = [(root, start + part.start) for part in parts for root, start in [part.buffer.root()]]
    ends = [at + part.view.nbytes for part, (_, at) in zip(parts, places, strict=True)]
    same = all(root is places[0][0] for root, _ in places) and all(part.view.flags.c_contiguous for part in parts)
    return same and all(end == at for end, (_, at) in zip(ends[:-1], places[1:], strict=True))


def _copy_into(out: Tensor, source: Tensor) -> Callable[[At], Call]:
    def bind(at: At) -> Call:
        target, origin = at(out), at(source)
        return lambda: np.copyto(target, origin)

    return bind


def _copies(out: Tensor, parts: Sequence[tuple[Tensor, int]]) -> Callable[[At], Call]:
    """Copies contiguous parts into a contiguous whole, each at its byte."""

    def bind(at: At) -> Call:
        whole = at(out).reshape(-1)
        size = whole.itemsize
        pairs = [
            (whole[start // size : (start + part.view.nbytes) // size], at(part).reshape(-1)) for part, start in parts
        ]

        def call() -> None:
            for target, source in pairs:
                np.copyto(target, source)

        return call

    return bind


class State:
    """Memory for one run at a time of a plan.

    Attributes:
        inputs: arrays to fill before a run.
        outputs: arrays to read after it.
        calls: one per step of the plan.
    """

    def __init__(self, plan: Plan) -> None:
        memory = aligned(-(-plan.nbytes // 4)).view(np.uint8)

        def at(value: Any) -> Any:
            if isinstance(value, Tensor):
                view, offset = value.view, value.buffer.offset + value.start
                return np.ndarray(view.shape, view.dtype, memory, offset, view.strides)
            if isinstance(value, (list, tuple)):
                return [at(item) for item in value]
            return value

        self.inputs, self.outputs = at(plan.inputs), at(plan.outputs)
        self.calls = [_bound(step, at) for step in plan.steps]


def _bound(step: Step, at: At) -> Call:
    """The call of a step on the memory of one run.

    Raises:
        RuntimeError: an array or parameter does not fit the kernel; the message names the node.
    """
    try:
        return step.bind(at)
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"node {step.node!r} ({step.op}): {error}") from error


def guarded(node: Node, function: Callable[[], Any]) -> Any:
    """Calls, with the node's name in front of what goes wrong.

    Raises:
        ValueError: anything did.
    """
    try:
        return function()
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError) as error:
        text = str(error) or type(error).__name__
        raise ValueError(f"node {node.output!r} ({node.op}): {text}") from error


def check_size(shape: Sequence[int], dtype: np.dtype, limit: int) -> int:
    """Returns the bytes of a tensor.

    Raises:
        ValueError: they are more than `limit`, or no numbers.
    """
    if dtype != np.uint16:  # which holds bfloat16
        dtype_of(dtype)
    nbytes = math.prod(int(size) for size in shape) * dtype.itemsize
    if nbytes > limit or len(shape) > 32:
        sizes = ", ".join(str(size) for size in shape)
        raise ValueError(
            f"a {dtype} tensor of shape [{sizes}] takes {nbytes / 1e9:.3g} GB; there is room for {limit / 1e9:.1f} GB"
        )
    return nbytes


def compute(op: str, args: dict[str, Any], limit: int) -> Any:
    """Runs the reference on known values, after a check that the result has a reasonable size.

    Raises:
        ValueError: it has not; and whatever the reference raises.
    """
    rule = OPERATORS[op].shape
    if rule is ELEMENTWISE and any(isinstance(args.get(name), (str, list)) for name in ("self", "other")):
        raise ValueError("takes tensors and numbers")
    if rule is VIEW:
        operators.check_pieces(op, args)
    elif rule is not NUMBER and (operators.arrays_in(args) or not isinstance(rule, Rule)) and not _masks(op, args):
        found = operators.infer(op, as_meta(args))
        for shape, dtype in found if isinstance(found, list) else [found]:
            check_size(shape, as_type(dtype).dtype.storage, limit)
    with np.errstate(all="ignore"):
        result = OPERATORS[op].reference(**args)
    if isinstance(result, (int, float, np.number)) and abs(float(result)) > MAX_NUMBER and math.isfinite(result):
        raise ValueError(f"computes {result:.3g}, which is no size of a tensor")
    return result


def compute_constant(node: Node, args: dict[str, Any], limit: int) -> Any:
    """Runs a node whose arguments are known: typed ones as real numbers, the result in the type the node declares.

    Raises:
        ValueError: as `compute`.
    """
    value = compute(node.op, _real(args), limit)
    if node.type is None or node.type.plain or isinstance(value, TypedArray):
        return value
    return TypedArray(node.type.from_float(value), node.type)


def _real(value: Any) -> Any:
    """The argument with float32 arrays in place of typed constants."""
    if isinstance(value, TypedArray):
        return value.to_float()
    if isinstance(value, dict):
        return {name: _real(item) for name, item in value.items()}
    return [_real(item) for item in value] if isinstance(value, (list, tuple)) else value


def _masks(op: str, args: dict[str, Any]) -> bool:
    """Whether known masks select: the result is then no larger than what they select from."""
    return op == "index" and all(i is None or i.dtype.kind == "b" for i in args["indices"])


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """Replaces references, nested ones too, by what they name."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, dict):
        return {name: resolve(item, values) for name, item in value.items()}
    return [resolve(item, values) for item in value] if isinstance(value, (list, tuple)) else value
