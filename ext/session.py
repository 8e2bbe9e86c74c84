"""Runs a model."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from subp_ext import operators, runtime
from subp_ext.arrays import check_input, shown, shown_like
from subp_ext.bfloat16 import NAME, as_asked, weights_rounded
from subp_ext.folding import fold, guarded
from subp_ext.format import FormatError, load, read
from subp_ext.graph import Graph
from subp_ext.operators import OPERATORS
from subp_ext.packing import pack_weights
from subp_ext.plan import PooledPlan
from subp_ext.planner import Planner
from subp_ext.report import Report, report_rows
from subp_ext.source import ModelSource, name_of

# Sets of input shapes that a session remembers, each with its memory.
KEPT_PLANS = 8

# What the images that run together may compute, in bytes: beyond it activations come back from main memory.
CACHED_ACTIVATIONS = 16 * 1024 * 1024

# Those that live, for a fork: another thread may hold the lock of one at that moment.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()

Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


class Session:
    """A model ready to run.

    Several Python threads may call `run` at once: each run takes memory of its own from a pool, which grows to as many
    as ever ran together. Weights are shared.

    Args:
        model: path of a `.subp` file or of a pipe, its bytes (a memoryview or memory map too), a file opened in binary
            mode, or a Graph.
        threads: per run; by default `SUBP_NUM_THREADS`, else `OMP_NUM_THREADS`, else the CPUs this process may use. The
            result does not depend on it. Where the system refuses to create them, fewer run, with a warning.
        profile: measures every step of every run, for `report`.
        dtype: "bfloat16" runs a network in float32 so, converted when it is loaded; "float32" computes in float32 what
            is stored in bfloat16. By default what `SUBP_DTYPE` says, else what the file says. A CPU without products of
            bfloat16 multiplies in float32; the report says so.

    Attributes:
        inputs: TensorSpecs of the inputs, in the order `run` takes them; None in a shape is any size.
        outputs: TensorSpecs of the outputs.
        threads: as resolved.
        metadata: what was stored with the model.

    Raises:
        FileNotFoundError, FormatError: see `load`; also for a graph that cannot run.
        ValueError: a Graph that is not valid, has operators this version does not know, or cannot run.
        ImportError: the compiled kernels are missing; the message says how to build them.
    """

    def __init__(
        self, model: ModelSource | Graph, threads: int | None = None, profile: bool = False, dtype: str | None = None
    ) -> None:
        runtime.kernel_set(), runtime.winograd()  # missing kernels and wrong choices show before anything is read
        self.threads, self._profile, dtype = runtime.thread_count(threads), profile, runtime.dtype(dtype)
        self._closed, self._lock = False, threading.Lock()
        self._limit = runtime.memory_limit() // 2  # as much again for weights, and what the reference takes
        self._entries: OrderedDict[tuple[tuple[int, ...], ...], PooledPlan] = OrderedDict()
        self._ran: tuple[tuple[tuple[int, ...], ...], int] | None = None  # shapes of the last run, and its images
        _sessions.add(self)
        if isinstance(model, Graph):
            model.validate()
            with np.errstate(all="ignore"):
                self._build(as_asked(model, dtype))
            return
        graph = read(model, weights_rounded) if dtype == NAME else load(model)
        try:
            with np.errstate(all="ignore"):
                graph = as_asked(graph, dtype)
                self._build(graph, owned=True)
        except ValueError as error:
            raise FormatError(f"{name_of(model)}: the network cannot run: {error}; export it again") from error
        runtime.return_memory()  # what plain weights leave free between packed ones

    def _build(self, graph: Graph, owned: bool = False) -> None:
        """Computes what depends on constants alone, packs weights, and plans a run where all sizes are known."""
        unknown = sorted({node.op for node in graph.nodes} - set(OPERATORS))
        if unknown:
            raise ValueError(f"the graph uses operators this subp_ext does not have: {', '.join(unknown)}")
        for node in graph.nodes:
            guarded(node, partial(operators.check_arguments, node.op, node.args))
        self.inputs, self.outputs, self.metadata = list(graph.inputs), list(graph.outputs), dict(graph.metadata)
        constants, nodes = fold(graph)
        if owned:
            graph.constants.clear()  # or every weight would be in memory twice, plain and packed
        nodes, self._packed = pack_weights(graph, nodes, constants)
        self._graph, self._constants = Graph(graph.inputs, graph.outputs, nodes), constants
        shapes = self._default_shapes()
        if shapes:
            self._entry(shapes)
            if all(None not in spec.shape[1:] for spec in self.inputs):
                # Every run will take the algorithms chosen now; those that may yet be chosen need plain weights.
                for packed in self._packed.values():
                    packed.release()

    def _default_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Shapes for a batch of one, images as in training; None if a size is not known."""
        trained, shapes = self.metadata.get("input_size"), []
        for spec in self.inputs:
            known = [
                1,
                *(trained if isinstance(trained, list) and len(trained) == len(spec.shape) - 1 else spec.shape[1:]),
            ]
            shapes.append(tuple(size or usual for size, usual in zip(spec.shape, known, strict=False)))
        whole = all(type(size) is int and size > 0 for shape in shapes for size in shape)
        return tuple(shapes) if whole else None

    def _entry(self, shapes: tuple[tuple[int, ...], ...]) -> PooledPlan:
        """The plan for these shapes, made now or remembered."""
        with self._lock:
            self._check_open()
            entry = self._entries.get(shapes)
            if entry is None:
                planner = Planner(self._constants, self.threads, self._limit)
                entry = PooledPlan(planner.plan(self._graph, shapes, partial(operators.lower, packed=self._packed)))
                while len(self._entries) >= KEPT_PLANS:
                    self._entries.popitem(last=False)
                self._entries[shapes] = entry
            self._entries.move_to_end(shapes)
            return entry

    def run(self, inputs: Inputs) -> Any:
        """Runs the model.

        The first run for a set of input shapes plans it and allocates its memory; later ones allocate nothing but
        their results, and what the reference takes for steps without a kernel (`report` names them).

        Args:
            inputs: one array if the model has one input, else a list in the order of `inputs` or a dict by name.
                Any memory order will do, float16 and float64 are rounded to float32; integers are refused where the
                model takes floating point, because they have not been normalised.

        Returns:
            An array, or a tuple of arrays if the model has several outputs. They are the caller's own. The images of a
            large batch may run a few at a time.

        Raises:
            ValueError: a name, shape or dtype that does not fit.
            RuntimeError: a step failed, and the message names it; or the session was closed.
        """
        self._check_open()
        # Overflow and the like are part of the arithmetic; NumPy would warn where a kernel does not.
        with np.errstate(all="ignore"):
            arrays = self._check_inputs(inputs)
            results = self._empty(arrays) if any(array.shape[:1] == (0,) for array in arrays) else self._run_all(arrays)
        return results[0] if len(results) == 1 else results

    def _run_all(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Runs a batch, in parts where that is faster."""
        step = self._images_at_once(arrays)
        shapes = tuple(array.shape if step is None else (step, *array.shape[1:]) for array in arrays)
        results = self._run(arrays) if step is None else self._run_parts(arrays, step)
        self._ran = shapes, _images(tuple(array.shape for array in arrays))
        return results

    def _run_parts(self, arrays: Sequence[np.ndarray], step: int) -> tuple[np.ndarray, ...]:
        """Runs `step` images at a time.

        Raises:
            ValueError: all results together are larger than there is room for; nothing ran.
        """
        images = len(arrays[0])
        results = self._results(arrays, images)
        for at in range(0, images, step):
            for result, part in zip(results, self._run([a[at : at + step] for a in arrays]), strict=True):
                result[at : at + step] = part
        return results

    def _results(self, arrays: Sequence[np.ndarray], images: int) -> tuple[np.ndarray, ...]:
        """Arrays for the results of so many images, as large as planning says that those of one are.

        Raises:
            ValueError: there is no room for them.
        """
        one = self._planned(tuple((1, *array.shape[1:]) for array in arrays)).plan.outputs
        results = [shown_like(output) for output in one]
        total = images * sum(array.nbytes for array in results)
        if total > self._limit:
            raise ValueError(
                f"the results of {images} images take {total / 1e9:.1f} GB; this process may use "
                f"{self._limit / 1e9:.1f} GB: run fewer at a time"
            )
        return tuple(np.empty((images, *array.shape[1:]), array.dtype) for array in results)

    def _empty(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Results for a batch without images; nothing runs.

        Raises:
            ValueError: the inputs are not all batches without images, or a result is none of a batch.
        """
        fixed = [spec.name for spec in (*self.inputs, *self.outputs) if spec.shape[:1] != (None,)]
        if fixed or any(array.shape[0] for array in arrays):
            reason = f"{fixed[0]!r} has no batch dimension" if fixed else "other inputs have images"
            raise ValueError(f"a batch without images, while {reason}; expected 1 image or more")
        return self._results(arrays, 0)

    def _images_at_once(self, arrays: Sequence[np.ndarray]) -> int | None:
        """How many images of a larger batch go through the network together: those whose activations stay in a cache.

        Returns:
            None if all do, also wherever export does not say that no image depends on another.
        """
        alone = self.metadata.get("independent_images") is True
        if not alone or any(spec.shape[:1] != (None,) for spec in (*self.inputs, *self.outputs)):
            return None
        images = len(arrays[0])
        if images == 1 or any(len(array) != images for array in arrays):
            return None
        one = self._planned(tuple((1, *array.shape[1:]) for array in arrays))
        step = max(1, CACHED_ACTIVATIONS // max(1, one.plan.nbytes))
        return step if step < images else None

    def _planned(self, shapes: tuple[tuple[int, ...], ...]) -> PooledPlan:
        try:
            return self._entry(shapes)
        except ValueError as error:
            found = ", ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"the network does not run on inputs of shape {found}: {error}") from error

    def _run(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        entry = self._planned(tuple(array.shape for array in arrays))
        state = entry.take()
        try:
            for target, array in zip(state.inputs, arrays, strict=True):
                np.copyto(target, array, casting="same_kind")
            if self._profile:
                entry.measure(state)
            else:
                entry.call(state)
            pairs = zip(state.outputs, entry.plan.outputs, strict=True)
            return tuple(shown(array, getattr(planned, "type", None)) for array, planned in pairs)
        finally:
            entry.free.append(state)

    def report(self, inputs: Inputs | None = None) -> Report:
        """Tells what runs each step, for the shapes that ran last; with `profile` also how fast.

        Of a batch that runs in parts the first one is shown.

        Args:
            inputs: runs these first, twice to have something to measure. By default what ran before, or zeros in a
                profiled session that has not run.

        Raises:
            ValueError: as `run`; or nothing ran yet, and the model leaves more than the batch size free.
        """
        if inputs is not None:
            for _ in range(2):
                self.run(inputs)
        with self._lock:
            self._check_open()
            planned = next(reversed(self._entries), None)
        ran = self._ran
        if ran is None and planned is not None:
            ran = planned, _images(planned)
        if ran is None:
            free = [f"{spec.name} {list(spec.shape)}" for spec in self.inputs]
            raise ValueError(f"the sizes of the inputs are free: {', '.join(free)}; run once, or pass inputs")
        shapes, images = ran
        entry = self._planned(shapes)
        if self._profile and entry.seconds is None:
            for _ in range(2):
                with np.errstate(all="ignore"):
                    self._run([np.zeros(t.view.shape, t.type.dtype.storage) for t in entry.plan.inputs])
        weights = sum(packed.nbytes for packed in self._packed.values())
        rows = report_rows(entry.plan, entry.seconds)
        return Report(rows, shapes, images, self.threads, runtime.kernel_set(), entry.plan.nbytes, weights)

    def _check_inputs(self, inputs: Any) -> list[np.ndarray]:
        names = [spec.name for spec in self.inputs]
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise ValueError(f"inputs are named {sorted(inputs)}; expected {names}")
            arrays = [inputs[name] for name in names]
        else:
            arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(arrays) != len(names):
                hint = "; images of a batch are one array: numpy.stack(images)" if len(names) == 1 else ""
                raise ValueError(f"{len(arrays)} inputs given; expected {len(names)}: {names}{hint}")
        return [check_input(a, spec) for a, spec in zip(arrays, self.inputs, strict=True)]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the session was closed; make another one")

    def close(self) -> None:
        """Drops weights and memory, once runs of other threads are over, and returns them to the system.

        The session cannot run any more.
        """
        with self._lock:
            self._closed = True
            self._entries.clear()
            self._packed, self._constants = {}, {}
        runtime.return_memory()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a Session holds memory and threads of its process; make one in each process, from the file")


def _images(shapes: tuple[tuple[int, ...], ...]) -> int:
    """Images of a run on inputs of these shapes."""
    return shapes[0][0] if shapes and shapes[0] else 1


def _renew_locks() -> None:
    """Gives the sessions of a forked child locks that no thread of its parent holds."""
    for session in _sessions:
        session._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
