"""The record of an operator: its reference, the rule for its result's shape and its lowering, in one place.

    @operator("square", shape=ELEMENTWISE, lower=ufunc(np.square))
    def square(self: Array) -> Array:
        return self * self

A reference takes the arguments of the ATen schema by name and computes with NumPy: it is the oracle of the tests, and
runs what no kernel covers. A lowering plans steps on the kernels.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from subp_ext.dtypes import Array, ValueType
from subp_ext.operators.arguments import describe, fits

if TYPE_CHECKING:
    from subp_ext.convolution import Convolution
    from subp_ext.tensor import Tensor
    from subp_ext.transposed import Transposed

MetaTensor = npt.NDArray[Any]  # shape and dtype count; its elements are never read
Spec = tuple[tuple[int, ...], np.dtype[Any] | ValueType]  # of a result


class Rule(enum.Enum):
    """How the shapes of results follow where they need no function of their own."""

    VIEW = "parts of what it is given, without a copy"
    ELEMENTWISE = "tensors and numbers, broadcast"
    DRY_RUN = "no more than it is given: cheap enough to be run once on zeros"
    NUMBER = "says something about sizes alone, or nothing at all"


VIEW, ELEMENTWISE, DRY_RUN, NUMBER = Rule.VIEW, Rule.ELEMENTWISE, Rule.DRY_RUN, Rule.NUMBER
ShapeRule = Rule | Callable[..., Any]  # a function takes the arguments of the reference, and returns Spec or list[Spec]


class Lowered(NamedTuple):
    """The value of a node whose steps are planned."""

    value: Tensor


class Unsupported(NamedTuple):
    """Why no kernel runs a node; nothing was planned or allocated for it."""

    reason: str


# Takes the planner, the operator's name, and the node's resolved arguments by name. It makes all its checks before it
# plans or allocates anything.
Lowering = Callable[..., Lowered | Unsupported]


@dataclass(frozen=True)
class Operator:
    """All there is to know about an operator.

    Attributes:
        names: ATen base names.
        reference: NumPy; arguments by name.
        shape: of results, and their dtypes.
        lower: onto kernels; None where there are none.
        fused: activations that convolutions apply before they store: by the kernel's name, the parameters it holds as
            constants. A parameter that is not named has its default.
        pack: turns the constant arguments of a node into the form that its lowering takes as `packed`, once for all
            plans; None where it has none.
    """

    names: tuple[str, ...]
    reference: Callable[..., Any]
    shape: ShapeRule
    lower: Lowering | None = None
    fused: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pack: Callable[..., Convolution | Transposed | None] | None = None


OPERATORS: dict[str, Operator] = {}

# Every activation that convolutions fuse, by the kernel's name.
FUSED: dict[str, Callable[[Array], Array]] = {}

# Schema arguments that say where and how a framework stores a tensor: without meaning here.
STORAGE_ARGS = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit")

Function = TypeVar("Function", bound=Callable[..., Any])


def operator(
    *names: str,
    shape: ShapeRule,
    lower: Lowering | None = None,
    fused: str | Mapping[str, Mapping[str, Any]] | None = None,
    pack: Callable[..., Convolution | Transposed | None] | None = None,
) -> Callable[[Function], Function]:
    """Records a function as the reference of an operator; arguments as `Operator`.

    A `fused` name alone stands for the kernel of that name with every parameter at its default.
    """
    kernels = {fused: {}} if isinstance(fused, str) else dict(fused or {})

    def add(function: Function) -> Function:
        @wraps(function)
        def run(**args: Any) -> Any:
            return function(**{name: value for name, value in args.items() if name not in STORAGE_ARGS})

        record = Operator(names, run, shape, lower, kernels, pack)
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"operator {name!r} has two records")
            OPERATORS[name] = record
        for kernel, parameters in kernels.items():
            FUSED.setdefault(kernel, partial(function, **parameters))
        return function

    return add


@dataclass(frozen=True)
class _Parameter:
    hint: Any
    default: Any


@cache
def _parameters(op: str) -> tuple[dict[str, _Parameter], bool]:
    """An operator's parameters by name, and whether it takes others too."""
    function = inspect.unwrap(OPERATORS[op].reference)
    hints, found, others = get_type_hints(function), {}, False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            others = True
        else:
            found[name] = _Parameter(hints.get(name, Any), parameter.default)
    return found, others


def check_arguments(op: str, args: Mapping[str, Any]) -> None:
    """Checks the arguments of a node against the signature of the reference.

    Args:
        op: a name in `OPERATORS`.
        args: by name. What a reference stands for is not known yet, and fits anywhere.

    Raises:
        ValueError: an argument that is unknown, missing or of another kind; the message names it.
    """
    parameters, others = _parameters(op)
    for name, value in args.items():
        if name in STORAGE_ARGS or (others and name not in parameters):
            continue
        if name not in parameters:
            raise ValueError(f"has no argument {name!r}; expected some of {', '.join(parameters)}")
        if not fits(value, parameters[name].hint):
            shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
            raise ValueError(f"argument {name!r} is {shown}; expected {describe(parameters[name].hint)}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in args:
            raise ValueError(f"lacks its argument {name!r}")


def fused_activation(op: str, args: Mapping[str, Any]) -> str | None:
    """The name under which convolutions apply a node of this operator in their store; None if they cannot."""
    record = OPERATORS.get(op)
    if record is None or not record.fused:
        return None
    parameters, _ = _parameters(op)
    free = [name for name in parameters if name not in ("self", "input")]
    for kernel, held in record.fused.items():
        wanted = {name: held.get(name, parameters[name].default) for name in free}
        given = {name: args.get(name, parameters[name].default) for name in free}
        if all(type(given[name]) in (int, float, str, type(None)) and given[name] == wanted[name] for name in free):
            return kernel
    return None


def activations() -> tuple[str, ...]:
    """The names of all activations that convolutions fuse."""
    return tuple(FUSED)


def activate(x: Array, activation: str | None) -> Array:
    """Applies a fused activation by its name."""
    return x if activation is None else FUSED[activation](x)
