"""A trained model as a ``.subp`` file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import timm
from torch import Tensor, nn

import subp_ext
from subp_ext import Graph, Ref, UniformBlockSparse

from ..errors import UsageError
from ..parametrization import block_mask_of, plain_copy
from .fuse import simplify
from .sizes import free_image_size
from .trace import trace


def export_subp(model: nn.Module, path: Path, input_size: tuple[int, int, int], metadata: dict[str, Any]) -> Graph:
    """Write a model, masked or plain, as a ``.subp`` file; the model itself stays as it is.

    Args:
        model: a timm model; its masks, if any, become the sparsity of the file.
        path: the file; written whole or not at all.
        input_size: (C, H, W) of an image; the batch is free, and so are height and width where the network allows it.
        metadata: kept in the file, for whoever serves it.

    Raises:
        UsageError: the model cannot be traced, or uses an operator that the runtime does not have.
    """
    graph = free_image_size(build_graph(model, input_size), _plain(model), input_size)
    graph.metadata.update({"timm": timm.__version__, **{k: v for k, v in metadata.items() if v is not None}})
    subp_ext.save(path, graph)
    return graph


def check_exportable(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Find out before a training, not after it, whether its result can be exported.

    Raises:
        UsageError: it cannot; the message names the operator, or says why the runtime does not run it.
    """
    try:
        graph = build_graph(model, input_size)
        subp_ext.Session(graph).run(np.zeros((1, *input_size), np.float32))
    except UsageError as error:
        raise UsageError(f"{error}; pass --no-export to train without") from error
    except (ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"subp_ext does not run {type(model).__name__}: {error}; pass --no-export to train") from error


def build_graph(model: nn.Module, input_size: tuple[int, int, int]) -> Graph:
    """The graph of a model with batch norms folded, operators fused and masked weights packed.

    Raises:
        UsageError: as ``export_subp``.
    """
    masks = {
        f"{name}.weight": (block_mask.mask, block_mask.block_size)
        for name, module in model.named_modules()
        if (block_mask := block_mask_of(module)) is not None
    }
    graph, shapes = trace(_plain(model), input_size)
    graph = simplify(graph, shapes)
    unknown = {node.op: node.output for node in graph.nodes if node.op not in subp_ext.supported_ops()}
    if unknown:
        found = ", ".join(f"{op} (node {output})" for op, output in unknown.items())
        raise UsageError(f"{type(model).__name__} cannot be exported: subp_ext has no operator {found}")
    # In evaluation mode no image of timm's models depends on another: the runtime may run a batch in parts.
    graph.metadata["independent_images"] = True
    return _pack(graph, masks)


def _plain(model: nn.Module) -> nn.Module:
    """A copy without masks, as export needs it."""
    return plain_copy(model).cpu().float().eval().requires_grad_(False)


def _pack(graph: Graph, masks: dict[str, tuple[Tensor, int]]) -> Graph:
    """Turn masked weights that only convolutions and linear layers read into ``UniformBlockSparse``."""
    groups: dict[str, int] = {}
    read_otherwise: set[str] = set()
    for node in graph.nodes:
        weight = node.args.get("weight") if node.op in ("conv2d", "linear") else None
        if isinstance(weight, Ref):
            groups[weight.name] = node.args.get("groups", 1)
        read_otherwise.update(ref.name for ref in node.refs() if ref is not weight)
    constants: dict[str, np.ndarray | UniformBlockSparse] = dict(graph.constants)
    for name, (mask, block_size) in masks.items():
        if name in groups and name not in read_otherwise:
            kept = mask.sum(1)
            if kept.min() != kept.max():
                raise UsageError(
                    f"{name}: rows keep between {kept.min()} and {kept.max()} blocks; a .subp file needs uniform rows"
                )
            weight = np.ascontiguousarray(constants[name], dtype=np.float32)
            weight = weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
            constants[name] = UniformBlockSparse.from_dense(weight, block_size, groups[name], mask.cpu().numpy())
    return dataclasses.replace(graph, constants=constants)
