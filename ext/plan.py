"""What a run does, and the memory that one run at a time does it in.

A `Plan` is steps in order and the place of every value in one arena. A `State` is an arena with the steps bound to it,
so that a run is a list of calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subp_ext.memory import aligned
from subp_ext.tensor import At, Call, Tensor


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


class PooledPlan:
    """A plan, the memory of runs that are over, and what was measured.

    Attributes:
        free: where the memory of a run goes when it is over.
        seconds: of each step, the best so far; None if nothing was measured.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.free: list[State] = []  # append and pop are atomic
        self.seconds: list[float] | None = None

    def take(self) -> State:
        """The memory of a run that is over, or new one."""
        try:
            return self.free.pop()
        except IndexError:
            return State(self.plan)

    def call(self, state: State) -> None:
        """Runs all steps.

        Raises:
            RuntimeError: one failed; the message names its node.
        """
        number = 0
        try:
            for number, call in enumerate(state.calls):  # noqa: B007 (read where a call fails)
                call()
        except Exception as error:
            raise self._failure(number, error) from error

    def measure(self, state: State) -> None:
        """Runs all steps, and takes the time of each; raises as `call`."""
        seconds = []
        try:
            for call in state.calls:
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
        except Exception as error:
            raise self._failure(len(seconds), error) from error
        before = self.seconds
        self.seconds = seconds if before is None else list(map(min, before, seconds))

    def _failure(self, number: int, error: Exception) -> RuntimeError:
        step = self.plan.steps[number]
        return RuntimeError(f"node {step.node!r} ({step.op}): {error}")
