"""Whether a graph that was traced at some sizes computes what its model does at others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

import subp_ext
from subp_ext import Graph

from ..torch_compat import pytree
from .example import Example
from .verify import REFUSALS, describe_difference, noted, run_model, run_session

if TYPE_CHECKING:
    import sympy

Shapes = list[tuple[int, ...]]

# Sizes that are tried: of the same remainders, odd, smaller and very small, for what comes first, second and so on.
_TRIED = (
    lambda size, at: size + 32 * (at + 1),
    lambda size, at: size + (1, 18, 7, 12)[at % 4],
    lambda size, at: size * (2 + at % 3) // (3 + at % 3) + 1 + 2 * (at % 3),
    lambda size, at: size // 8 + 4 + at,
    lambda size, at: 64 * (1 + at % 3),  # halved and doubled again without a remainder
)


def free_image_size(graph: Graph, model: nn.Module, example: Example) -> Graph:
    """The graph with height and width of its input left free, if it agrees with its model at other sizes too.

    A graph that was traced at one size holds for any size unless the model's code computed with sizes. Sizes that the
    model itself refuses tell nothing. Where the size stays fixed, the graph's ``notes`` say why.

    Args:
        graph: for images ``[B, C, H, W]`` of the traced size.
        model: what was traced, on the CPU, in evaluation mode.
        example: one tensor of images.
    """
    spec = graph.inputs[0]
    free = dataclasses.replace(spec, shape=(*spec.shape[:2], None, None))
    images = example.fitting(graph)
    batch, channels, height, width = images.tensors[0].shape
    sizes = [[(batch, channels, tried(height, 0), tried(width, 1))] for tried in _TRIED]
    # Shapes of results are declared once they are known.
    found = compare_at(dataclasses.replace(graph, inputs=[free]), model, images, sizes)
    if isinstance(found, str):
        return noted(graph, f"height and width are fixed: {found}")
    shapes = [*found, *_shapes_at(model, images, (batch, channels, 5 * height, 7 * width))]
    outputs = [
        dataclasses.replace(output, shape=_declared(output.shape, [those[number] for those in shapes]))
        for number, output in enumerate(graph.outputs)
    ]
    return dataclasses.replace(graph, inputs=[free], outputs=outputs)


def tried_sizes(inputs: Sequence[Sequence[int | sympy.Expr]], example: Example) -> Iterator[dict[sympy.Symbol, int]]:
    """Sizes to try, by symbol, for what torch.export left free; that of the batch stays.

    Args:
        inputs: their sizes: numbers, and what is free as expressions.
        example: of these inputs.
    """
    values: dict[sympy.Symbol, int] = {}
    for tensor, sizes in zip(example.tensors, inputs, strict=True):
        values |= {
            s: int(n) for s, n in zip(sizes, tensor.shape, strict=True) if not isinstance(s, int) and s.is_Symbol
        }
    first = [sizes[0] for sizes, batched in zip(inputs, example.batched, strict=True) if batched]
    other = [symbol for symbol in values if symbol not in first[:1]]
    for tried in _TRIED:
        yield values | {symbol: tried(values[symbol], at) for at, symbol in enumerate(other)}


def shapes_at(inputs: Sequence[Sequence[int | sympy.Expr]], values: dict[sympy.Symbol, int]) -> list[tuple[int, ...]]:
    """The shapes of all inputs; sizes that have to be equal, or follow from others, do."""
    return [tuple(size if isinstance(size, int) else int(size.subs(values)) for size in sizes) for sizes in inputs]


def compare_at(
    graph: Graph, model: nn.Module, example: Example, sizes: Sequence[list[tuple[int, ...]]]
) -> list[Shapes] | str:
    """Compares a graph with its model at other sizes.

    Args:
        graph: whose inputs leave these sizes free.
        model: on the CPU, in evaluation mode.
        example: of its inputs.
        sizes: for every trial the shapes of all inputs.

    Returns:
        The shapes of the results, for every trial that the model does not refuse; or what is different, or why it
        refuses all, in words.
    """
    session = subp_ext.Session(graph)
    names = [output.name for output in graph.outputs]
    found: list[Shapes] = []
    refusal = ""
    for shapes in sizes:
        inputs = example.random(shapes)
        where = "at " + ", ".join("x".join(map(str, _image_size(shape))) for shape in shapes)
        try:
            expected = run_model(model, inputs)
        except REFUSALS as error:
            refusal = f"{where} the model itself fails: {first_line(error)}"
            continue
        try:
            difference = describe_difference(names, run_session(session, inputs), expected)
        except (RuntimeError, ValueError) as error:
            difference = f"it does not run: {first_line(error)}"
        if difference:
            return f"{where} {difference}"
        found.append([array.shape for array in expected])
    return found or refusal


def why_fixed(graph: Graph, model: nn.Module, example: Example) -> list[str]:
    """Why sizes of the inputs are fixed that torch.export did not leave free; channels of images aside."""
    found = []
    for at, (spec, tensor, batched) in enumerate(zip(graph.inputs, example.tensors, example.batched, strict=True)):
        for dim, size in enumerate(spec.shape):
            if size in (None, 1) or (batched and dim == 0) or (tensor.ndim == 4 and dim == 1):
                continue
            shapes = [tuple(other.shape) for other in example.tensors]
            shapes[at] = (*spec.shape[:dim], size + 32, *spec.shape[dim + 1 :])
            shapes[at] = tuple(other or own for other, own in zip(shapes[at], tensor.shape, strict=True))
            reason = "torch.export follows the code of the model for this size alone"
            try:
                run_model(model, example.random(shapes))
            except REFUSALS as error:
                reason = f"with {size + 32} there the model itself fails: {first_line(error)}"
            found.append(f"size {dim} of input {spec.name!r} is fixed at {size}: {reason}")
    return found


def _image_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[2:] if len(shape) == 4 else shape


def _declared(traced: tuple[int | None, ...], others: Shapes) -> tuple[int | None, ...]:
    """The dimensions that are the same at every size; the others are free."""
    return tuple(size if {other[dim] for other in others} == {size} else None for dim, size in enumerate(traced))


@torch.no_grad()
def _shapes_at(model: nn.Module, example: Example, size: tuple[int, ...]) -> list[Shapes]:
    """Shapes of the results on much larger images, where no stride hides that they grow, without computing them."""
    try:
        results = example.with_tensors([torch.empty(size, device="meta")]).call(copy.deepcopy(model).to("meta"))
    except Exception:  # code that computes with values, or makes tensors of its own on the CPU
        return []
    return [[tuple(leaf.shape) for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]]


def first_line(error: Exception) -> str:
    """What an error says first, or of which kind it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
