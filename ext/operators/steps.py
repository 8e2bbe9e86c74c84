"""What lowerings share: which kernel there is for a value, the step that runs it, and memory order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subp_ext import runtime
from subp_ext.dtypes import FLOAT32, Array
from subp_ext.operators.record import Lowered, Lowering, Unsupported
from subp_ext.tensor import At, Call, Tensor, as_meta, type_of

if TYPE_CHECKING:
    from subp_ext.planner import Planner


class Kernel(NamedTuple):
    """What runs a step."""

    name: str
    passed_over: tuple[str, ...]  # faster kernels, each with the reason why it does not


def no_kernel(operator: str, value: Any, ndim: int | None = None) -> Unsupported | None:
    """Why no kernel of an operator takes a value; None if one does.

    Args:
        operator: as kernels name it.
        value: an argument of a node.
        ndim: dimensions that the kernels expect.
    """
    if not isinstance(value, Tensor):
        return Unsupported(f"a {type(value).__name__} is no tensor of the run")
    dtype = value.type.dtype.name
    if find_kernel(operator, dtype) is None:
        return Unsupported(f"no {dtype} kernel for {operator}")
    if ndim not in (None, value.view.ndim):
        return Unsupported(f"the kernels take {ndim} dimensions; this has {value.view.ndim}")
    return None if value.view.size else Unsupported("the input is empty")


def find_kernel(operator: str, dtype: str) -> Kernel | None:
    """The best kernel of an operator for a data type; None if there is none."""
    found = runtime.kernels().choose(runtime.forced_kernel_set(), operator, dtype)
    return None if found is None else Kernel(found[0], told(found[1]))


def no_fast_bfloat16() -> str:
    """Why products of bfloat16 are slower here than those of float32; empty if they are not.

    Kernels that every CPU runs emulate them.
    """
    forced = runtime.forced_kernel_set()
    found = runtime.kernels().choose(forced, "conv2d", "bfloat16")
    row = None if found is None else next(row for row in runtime.rows() if row["name"] == found[0])
    if row is not None and row["features"]:
        return ""
    return f"SUBP_KERNEL={forced} has no products of bfloat16" if forced else "this CPU has no products of bfloat16"


def told(better: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What a report says of faster kernels that do not run."""
    return tuple(f"{name}: {why}" for name, why in better)


def plan_kernel(
    planner: Planner,
    op: str,
    operator: str,
    bind: Callable[[At], Call],
    reads: Sequence[Any],
    out: Tensor,
    in_place: Sequence[Tensor] = (),
    dtype: str | None = None,
    why: str = "kernel",
) -> Lowered:
    """Appends a step on a kernel that `no_kernel` has nothing against.

    Args:
        planner: gets the step.
        op: of the node.
        operator: as kernels name it.
        bind: makes the call for one state.
        reads: tensors and arrays.
        out: what it writes, and returns.
        in_place: those read whose memory the result may take over.
        dtype: of the kernels; by default that of the result.
        why: of the step, for the report.
    """
    kernel = find_kernel(operator, dtype or out.type.dtype.name)
    if kernel is None:
        raise RuntimeError(f"no {dtype or out.type} kernel for {operator}")
    planner.step(op, kernel.name, why, bind, reads, [out], in_place=list(in_place), passed_over=kernel.passed_over)
    return Lowered(out)


def bound(function: str, *args: Any) -> Call:
    """A call that a function of the compiled module binds to the arrays of one state, with all checks made."""
    call: Call = getattr(runtime.kernels(), function)(runtime.forced_kernel_set(), *args)
    return call


def viewed(planner: Planner, tensor: Tensor, function: Callable[[Array], Array]) -> Tensor:
    """A view that never takes a copy, such as another shape of what is without gaps.

    Raises:
        RuntimeError: it would.
    """
    found = planner.view(tensor, function)
    if found is None:
        raise RuntimeError(f"a view of {list(tensor.view.shape)} would be a copy")
    return found


def memory_order(view: Array) -> tuple[int, ...] | None:
    """Its axes from the outermost in memory to the innermost, if it is without gaps; None if it has any."""
    order = tuple(sorted(range(view.ndim), key=lambda axis: (-view.strides[axis], axis)))
    if view.flags.c_contiguous:
        return tuple(range(view.ndim))
    return order if view.transpose(order).flags.c_contiguous else None


def flat(array: Array, order: Sequence[int], *shape: int) -> Array:
    """The array in its memory order, as another shape."""
    return array.transpose(order).reshape(shape)


def ordered(planner: Planner, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor, copied if it has gaps, and its memory order."""
    order = memory_order(tensor.view)
    return (planner.copy(tensor), tuple(range(tensor.view.ndim))) if order is None else (tensor, order)


def ufunc(function: Callable[..., Any]) -> Lowering:
    """The lowering of an operator of one operand or two, `self` and any other, that is a function of NumPy's."""

    def lowering(planner: Planner, op: str, *, self: Any, **other: Any) -> Lowered | Unsupported:
        return on_numpy(planner, op, function, self, *other.values())

    return lowering


def on_numpy(planner: Planner, op: str, function: Callable[..., Any], *operands: Any) -> Lowered | Unsupported:
    """NumPy's own loop, which takes any memory order and broadcast, writing into the arena."""
    arrays = [value for value in operands if isinstance(value, (Tensor, np.ndarray))]
    for value in arrays:
        if type_of(value).dtype is not FLOAT32:
            return Unsupported(f"NumPy's loop is for float32; an operand is {type_of(value)}")
    shape = np.broadcast_shapes(*(as_meta(value).shape for value in arrays))
    largest = as_meta(max(arrays, key=lambda value: as_meta(value).size))
    out = planner.empty(shape, order=memory_order(largest) if largest.shape == shape else None)

    def bind(at: At) -> Call:
        return partial(function, *at(operands), out=at(out))

    whole = [value for value in arrays if isinstance(value, Tensor) and value.view.strides == out.view.strides]
    planner.step(op, "numpy", "any memory order", bind, arrays, [out], in_place=whole)
    return Lowered(out)
