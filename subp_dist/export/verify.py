"""An exported graph against the model it was traced from: no file gets its name before they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import subp_ext
from subp_ext import Graph

from ..errors import UsageError
from .example import Example
from .outputs import flatten_outputs

# Largest difference in float32, relative to the scale of the results. Sums in another order cost about 1e-6; a wrong
# operator, or a size that is baked in, costs 1e-2 and more.
TOLERANCE = 1e-3

# Images of a large batch, and multiply-accumulates that trying it may take: seconds.
LARGE_BATCH, LARGE_WORK = 33, 30_000_000_000

# What a model refuses an image with.
REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two results of one shape, relative to their scale.

    The scale is the range of what is expected, or a tenth of its largest value where that is more, because rounding
    errors grow with the values; zeros alone are compared absolutely. Equal infinities and NaN on both sides agree. Of
    whole numbers, such as classes, it is the share that differs.
    """
    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f":
        return float((found != expected).mean())
    finite = expected[np.isfinite(expected)].astype(np.float64)
    scale = max(np.ptp(finite), np.abs(finite).max() / 10) if finite.size else 0.0
    return absolute_difference(found, expected) / (scale or 1.0)


def absolute_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two floating-point results; infinite where one of them alone is not a number."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(all="ignore"):
        largest = float(np.abs(found - expected)[~same].max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def describe_difference(
    names: Sequence[str], found: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> str | None:
    """What is wrong with results, in words; None if they agree."""
    if len(found) != len(expected):
        return f"there are {len(found)} outputs instead of {len(expected)}"
    of_several = len(names) > 1
    for name, ours, theirs in zip(names, found, expected, strict=True):
        what = f"output {name!r}" if of_several else "the result"
        if ours.shape != theirs.shape:
            return f"{what} has shape {list(ours.shape)} instead of {list(theirs.shape)}"
        if not (difference := largest_difference(ours, theirs)) <= TOLERANCE:
            return f"{what} differs by {difference:.1e} of its range, more than {TOLERANCE:g}"
    return None


def random_images(count: int, size: tuple[int, int, int]) -> torch.Tensor:
    """Images ``[count, C, H, W]``, each on another scale, so that statistics over all of them show."""
    return Example.images(size, count).random().tensors[0]


@torch.inference_mode()
def run_model(model: nn.Module, inputs: torch.Tensor | Example) -> list[np.ndarray]:
    """A model's results as arrays, in the order of its file's outputs."""
    return flatten_outputs(inputs.call(model) if isinstance(inputs, Example) else model(inputs))


def run_session(session: subp_ext.Session, inputs: torch.Tensor | Example) -> list[np.ndarray]:
    """A session's results, one or several; overflow in a step shows in the result, not in warnings."""
    with np.errstate(all="ignore"):
        results = session.run(inputs.arrays if isinstance(inputs, Example) else [inputs.numpy()])
    return list(results) if isinstance(results, tuple) else [results]


def noted(graph: Graph, note: str, **metadata: object) -> Graph:
    """The graph with more metadata, and a sentence for people among its ``notes``."""
    notes = [*graph.metadata.get("notes", []), note]
    return replace(graph, metadata=graph.metadata | metadata | {"notes": notes})


def verified(graph: Graph, model: nn.Module, example: Example) -> Graph:
    """The graph, once it computes what its model does at the example's sizes: for it, for one image, several and many.

    Where images turn out to depend on each other, the graph no longer says that they are independent.

    Args:
        graph: of the model.
        model: what was traced, on the CPU, in evaluation mode.
        example: of its inputs.

    Raises:
        UsageError: a result differs; the message says by how much.
        ValueError, RuntimeError, ImportError: as ``subp_ext.Session`` and its ``run``.
    """
    session = subp_ext.Session(graph)
    names = [spec.name for spec in graph.outputs]
    if not is_batch_free(graph, example):
        images = example.fitting(graph)
        for inputs in (images.random(), *([] if images.is_flat else [images])):
            _check(model, inputs, describe_difference(names, run_session(session, inputs), run_model(model, inputs)))
        return graph
    images = example.of_batch(3).random()
    together = run_model(model, images)
    _check(model, images, describe_difference(names, run_session(session, images), together))
    for inputs in (images.one(0), example.random() if example.is_flat else example):
        try:
            expected = run_model(model, inputs)
        except REFUSALS:
            continue  # one image is too few for its statistics
        _check(model, inputs, describe_difference(names, run_session(session, inputs), expected))
    _check_large_batch(session, model, example, names)
    if not graph.metadata.get("independent_images"):
        return graph
    for number in range(images.batch):
        part = slice(number, number + 1)
        found = run_session(session, images.one(number))
        if difference := describe_difference(names, found, [whole[part] for whole in together]):
            note = f"images of a batch run together: alone, {difference}"
            return noted(graph, note, independent_images=False)
    return graph


def is_batch_free(graph: Graph, example: Example) -> bool:
    """Whether a graph takes any number of images."""
    first = (spec.shape[0] for spec, batched in zip(graph.inputs, example.batched, strict=True) if batched)
    return next(first, 1) is None


def _check_large_batch(session: subp_ext.Session, model: nn.Module, example: Example, names: list[str]) -> None:
    """Compares as many images as a session may run in parts, and no more than take a moment."""
    report = session.report()
    work = sum(row.macs or 0 for row in report.rows) // max(1, report.input_shapes[example.batched.index(True)][0])
    images = example.of_batch(min(LARGE_BATCH, max(5, LARGE_WORK // max(1, work)))).random()
    _check(model, images, describe_difference(names, run_session(session, images), run_model(model, images)))


def _check(model: nn.Module, inputs: Example, difference: str | None) -> None:
    if difference is not None:
        raise UsageError(
            f"{type(model).__name__} is not exported: on {inputs.described} {difference} when subp_ext runs it instead "
            "of torch; please report it with the model"
        )
