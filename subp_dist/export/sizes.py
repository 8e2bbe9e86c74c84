"""Whether a graph that was traced at one image size computes what its model does at others."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import nn

import subp_ext
from subp_ext import Graph

from ..torch_compat import pytree
from .verify import REFUSALS, describe_difference, noted, random_images, run_model, run_session

Size = tuple[int, int]
Shapes = list[tuple[int, ...]]


def free_image_size(graph: Graph, model: nn.Module, input_size: tuple[int, int, int]) -> Graph:
    """The graph with height and width of its input left free, if it agrees with its model at other sizes too.

    A traced graph holds for any size unless the model's code computed with sizes (position embeddings, padding that
    depends on the remainder, interpolation to a given size). Tried are a size of the same remainders, an odd one and a
    small one, which tells these apart; sizes that the model itself refuses tell nothing. Where the size stays fixed,
    the graph's ``notes`` say why.

    Args:
        graph: for images ``[B, C, H, W]`` of the traced size.
        model: what was traced, on the CPU, in evaluation mode.
        input_size: (C, H, W).
    """
    spec = graph.inputs[0]
    free = dataclasses.replace(spec, shape=(*spec.shape[:2], None, None))
    # Shapes of results are declared once they are known.
    session = subp_ext.Session(dataclasses.replace(graph, inputs=[free]))
    names = [output.name for output in graph.outputs]
    channels, height, width = input_size
    found: list[Shapes] = []
    refusal = ""
    for size in ((height + 32, width + 64), (height + 1, width + 18), (height * 2 // 3 + 1, width * 3 // 4 + 3)):
        images = random_images(spec.shape[0] or 2, (channels, *size))
        try:
            expected = run_model(model, images)
        except REFUSALS as error:
            refusal = f"at {size[0]}x{size[1]} the model itself fails: {_first_line(error)}"
            continue
        try:
            difference = describe_difference(names, run_session(session, images), expected)
        except (RuntimeError, ValueError) as error:
            difference = f"it does not run: {_first_line(error)}"
        if difference:
            return noted(graph, f"height and width are fixed: at {size[0]}x{size[1]} {difference}")
        found.append([array.shape for array in expected])
    if not found:
        return noted(graph, f"height and width are fixed: {refusal}")
    shapes = [*found, *_shapes_at(model, (channels, 5 * height, 7 * width), spec.shape[0] or 2)]
    outputs = [
        dataclasses.replace(output, shape=_declared(output.shape, [those[number] for those in shapes]))
        for number, output in enumerate(graph.outputs)
    ]
    return dataclasses.replace(graph, inputs=[free], outputs=outputs)


def _declared(traced: tuple[int | None, ...], others: Shapes) -> tuple[int | None, ...]:
    """The dimensions that are the same at every size; the others are free."""
    return tuple(size if {other[dim] for other in others} == {size} else None for dim, size in enumerate(traced))


@torch.no_grad()
def _shapes_at(model: nn.Module, size: tuple[int, int, int], batch: int) -> list[Shapes]:
    """Shapes of the results on much larger images, where no stride hides that they grow, without computing them."""
    try:
        results = copy.deepcopy(model).to("meta")(torch.empty(batch, *size, device="meta"))
    except Exception:  # code that computes with values, or makes tensors of its own on the CPU
        return []
    return [[tuple(leaf.shape) for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
