"""Runs a model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.format import load
from subp_ext.graph import Graph, TensorSpec
from subp_ext.memory import Arena
from subp_ext.operators import Implementation, implement, supported_ops

# Called after each node with its position, its output and the seconds it took.
_Observer = Callable[[int, Any, float], None]


@dataclass(frozen=True)
class ReportRow:
    """What ran one node: `kernel` is its name or "reference"; MACs are those on kept weights; ms if profiled."""

    node: str
    op: str
    kernel: str
    kept_share: float | None
    macs: int | None
    output_shape: tuple[int, ...] | None
    ms: float | None


@dataclass(frozen=True)
class _Step:
    output: str
    op: str
    implementation: Implementation
    dead: tuple[str, ...]  # values that no later step reads


class Session:
    """A model ready to run. Several Python threads may call `run` at once.

    Args:
        model: path of a `.subp` file, or a Graph.
        threads: per run; by default `SUBP_NUM_THREADS`, else the CPUs this process may use. The result does not
            depend on it.

    Attributes:
        inputs: TensorSpecs of the inputs, in the order `run` takes them; None in a shape is any size.
        outputs: TensorSpecs of the outputs.
        threads: as resolved.
        metadata: what was stored with the model.

    Raises:
        FileNotFoundError, FormatError: see `load`.
        ValueError: the graph is not valid, or has operators this version does not know.
        ImportError: the compiled kernels are missing; the message says how to build them.
    """

    def __init__(self, model: str | os.PathLike[str] | Graph, threads: int | None = None) -> None:
        runtime.kernel_set()  # missing kernels and a wrong SUBP_KERNEL show before anything is read
        self.threads = runtime.thread_count(threads)
        if isinstance(model, Graph):
            model.validate()
        graph = model if isinstance(model, Graph) else load(model)
        unknown = sorted({node.op for node in graph.nodes} - set(supported_ops()))
        if unknown:
            raise ValueError(f"the graph uses operators this subp_ext does not have: {', '.join(unknown)}")
        self.inputs, self.outputs, self.metadata = list(graph.inputs), list(graph.outputs), dict(graph.metadata)
        self._closed, self._local = False, threading.local()
        self._build(graph)

    @property
    def _arena(self) -> Arena:
        """The calling thread's own."""
        if not hasattr(self._local, "arena"):
            self._local.arena = Arena()
        return self._local.arena

    def _build(self, graph: Graph) -> None:
        """Computes what depends on constants alone, packs the rest and plans when values die."""
        constants: dict[str, Any] = dict(graph.constants)
        pending: list[tuple[str, str, Implementation]] = []
        for node in graph.nodes:
            try:
                implementation = implement(node, constants)
                if implementation.reads:
                    pending.append((node.output, node.op, implementation))
                else:
                    constants[node.output] = implementation.run({}, self.threads, self._arena)
            except Exception as error:
                raise ValueError(f"node {node.output!r} ({node.op}): {error}") from error
        outputs = {spec.name for spec in self.outputs}
        self._fixed = {name: constants[name] for name in outputs & constants.keys()}
        seen, steps = set(outputs), []
        for output, op, implementation in reversed(pending):
            dead = tuple(name for name in {*implementation.reads, output} if name not in seen)
            seen.update(dead)
            steps.append(_Step(output, op, implementation, dead))
        self._steps = steps[::-1]

    def run(self, inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]) -> Any:
        """Runs the model.

        Args:
            inputs: one array if the model has one input, else a list in the order of `inputs` or a dict by name.
                Arrays of another memory order are copied, float64 is rounded to float32; integers are refused
                where the model takes floating point, because they have not been normalised.

        Returns:
            An array, or a tuple of arrays if the model has several outputs. They are the caller's own.

        Raises:
            ValueError: a name, shape or dtype that does not fit.
            RuntimeError: a node failed; the message names it.
        """
        return self._run(self._check_inputs(inputs), None)

    def report(
        self,
        inputs: np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray] | None = None,
        profile: bool = False,
    ) -> list[ReportRow]:
        """Runs once and tells what ran each node, so that nothing is slow in silence.

        Args:
            inputs: as `run`; by default zeros, with 1 wherever any size goes.
            profile: also measure ms per node, after one run to warm up.
        """
        if inputs is None:
            inputs = [np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in self.inputs]
        values = self._check_inputs(inputs)
        rows: list[ReportRow] = []

        def observe(position: int, result: Any, seconds: float) -> None:
            step, shape = self._steps[position], getattr(result, "shape", None)
            implementation = step.implementation
            ms = seconds * 1e3 if profile else None
            macs = implementation.macs(result)
            rows.append(
                ReportRow(step.output, step.op, implementation.kernel, implementation.kept_share, macs, shape, ms)
            )

        if profile:
            self._run(dict(values), None)
        self._run(values, observe)
        return rows

    def _run(self, values: dict[str, Any], observe: _Observer | None) -> Any:
        if self._closed:
            raise RuntimeError("the session was closed at the end of its `with` block; make another one")
        given, arena = list(values.values()), self._arena
        for position, step in enumerate(self._steps):
            start = time.perf_counter()
            try:
                result = values[step.output] = step.implementation.run(values, self.threads, arena)
            except Exception as error:
                raise RuntimeError(f"node {step.output!r} ({step.op}): {error}") from error
            if observe:
                observe(position, result, time.perf_counter() - start)
            for name in step.dead:
                del values[name]
        values.update(self._fixed)
        results = tuple(self._own(values[spec.name], given) for spec in self.outputs)
        return results[0] if len(results) == 1 else results

    def _own(self, result: Any, given: list[np.ndarray]) -> np.ndarray:
        """A contiguous array that shares no memory with the caller's inputs or the model's constants."""
        result = np.asarray(result)
        shared = not result.flags.owndata or any(result is array for array in [*given, *self._fixed.values()])
        return np.array(result, order="C") if shared else np.ascontiguousarray(result)

    def _check_inputs(self, inputs: Any) -> dict[str, Any]:
        names = [spec.name for spec in self.inputs]
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise ValueError(f"inputs are named {sorted(inputs)}; expected {names}")
            arrays = [inputs[name] for name in names]
        else:
            arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(arrays) != len(names):
                raise ValueError(f"{len(arrays)} inputs given; expected {len(names)}: {names}")
        sizes = [_check_input(np.asarray(a), spec) for a, spec in zip(arrays, self.inputs, strict=True)]
        return dict(zip(names, sizes, strict=True))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drops the weights; the session cannot run any more."""
        self._steps, self._fixed, self._closed, self._local = [], {}, True, threading.local()


def _check_input(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    expected = "[" + ", ".join("any" if size is None else str(size) for size in spec.shape) + "]"
    fits = len(spec.shape) == array.ndim and all(
        size in (None, found) for size, found in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"input {spec.name!r} has shape {list(array.shape)}; expected {expected}")
    if 0 in array.shape:
        raise ValueError(
            f"input {spec.name!r} has shape {list(array.shape)}, which is empty; expected a batch of 1 or more"
        )
    wanted = np.dtype(spec.dtype)
    if wanted.kind == "f" and array.dtype.kind != "f":
        raise ValueError(
            f"input {spec.name!r} is {array.dtype}; expected {wanted}: normalise it first, as in training "
            "(scale to 0..1, subtract the mean, divide by the standard deviation)"
        )
    if wanted.kind != "f" and array.dtype != wanted:
        raise ValueError(f"input {spec.name!r} is {array.dtype}; expected {wanted}")
    return np.ascontiguousarray(array, wanted)
