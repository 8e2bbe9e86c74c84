"""Whether a graph that was traced at one image size computes what its model does at others."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

import subp_ext
from subp_ext import Graph

# Of the largest logit; a size that is baked in changes far more.
TOLERANCE = 1e-3


def free_image_size(graph: Graph, model: nn.Module, input_size: tuple[int, int, int]) -> Graph:
    """The graph with height and width of its input left free, if it agrees with its model at other sizes too.

    A traced graph holds for any size unless the model's code computed with sizes (position embeddings, padding that
    depends on the remainder, interpolation to a given size). Tried are a size of the same remainders, an odd one and a
    small one, which tells these apart; sizes that the model itself refuses tell nothing.

    Args:
        graph: for images ``[B, C, H, W]`` of the traced size.
        model: what was traced, on the CPU, in evaluation mode.
        input_size: (C, H, W).
    """
    spec = graph.inputs[0]
    free = dataclasses.replace(spec, shape=(*spec.shape[:2], None, None))
    outputs = [dataclasses.replace(o, shape=(*o.shape[:2], *[None] * len(o.shape[2:]))) for o in graph.outputs]
    generic = dataclasses.replace(graph, inputs=[free], outputs=outputs)
    channels, height, width = input_size
    agreed = False
    for size in ((height + 32, width + 64), (height + 1, width + 18), (height * 2 // 3 + 1, width * 3 // 4 + 3)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(spec.shape[0] or 2, channels, *size, generator=generator)
        try:
            with torch.inference_mode():
                expected = model(images).numpy()
        except (RuntimeError, AssertionError, ValueError, IndexError):
            continue
        try:
            found = subp_ext.Session(generic).run(images.numpy())
        except (RuntimeError, ValueError):
            return graph
        if found.shape != expected.shape or np.abs(found - expected).max() > TOLERANCE * np.abs(expected).max():
            return graph
        agreed = True
    return generic if agreed else graph
