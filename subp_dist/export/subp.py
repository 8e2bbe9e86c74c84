"""A trained model as a ``.subp`` file: trace, simplify, pack, check."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import timm
from torch import Tensor, nn

import subp_ext
from subp_ext import Graph, Node, Ref, UniformBlockSparse

from .. import __version__
from ..errors import UsageError
from ..parametrization import block_mask_of, plain_copy
from .fuse import simplify, without_unused
from .independence import why_dependent
from .outputs import name_outputs
from .sizes import free_image_size
from .trace import trace
from .verify import noted, verified

_logger = logging.getLogger(__name__)

Masks = dict[str, tuple[Tensor, int]]  # by the weight's name: mask, block size


def export_subp(model: nn.Module, path: Path, input_size: tuple[int, int, int], metadata: dict[str, object]) -> Graph:
    """Write a model, masked or plain, as a ``.subp`` file; the model itself stays as it is.

    The file is written once it computes what torch does: at this size for several images and for one, and at other
    sizes where it leaves them free.

    Args:
        model: its masks, if any, become the sparsity of the file; its results may be nested.
        path: the file; written whole or not at all.
        input_size: (C, H, W) of an image; the batch is free, and so are height and width where the network allows it.
        metadata: kept in the file, for whoever serves it. Added are ``independent_images``, by which a session may
            run a batch in parts, and ``notes``: why it may not, or why the image size is fixed.

    Raises:
        UsageError: the model cannot be traced, uses an operator that the runtime does not have, or would compute
            something else there.
    """
    graph = checked_graph(model, input_size, metadata)
    subp_ext.save(path, graph)
    return graph


def checked_graph(model: nn.Module, input_size: tuple[int, int, int], metadata: dict[str, object]) -> Graph:
    """The graph that ``export_subp`` writes; arguments and errors are its own."""
    graph, plain = _checked(model, input_size)
    graph = free_image_size(graph, plain, input_size)
    for note in graph.metadata.get("notes", []):
        _logger.info("exported: %s", note)
    given = {key: value for key, value in metadata.items() if value is not None}
    # What was found out stands above what was given: batches are split by it.
    graph.metadata = {"subp_dist": __version__, "timm": timm.__version__} | given | graph.metadata
    return graph


def check_exportable(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Find out before a training, not after it, whether its result can be exported.

    Raises:
        UsageError: it cannot; the message names the operator, or says why the runtime does not run it.
    """
    try:
        _checked(model, input_size)
    except UsageError as error:
        raise UsageError(f"{error}; pass --no-export to train without") from error


def build_graph(model: nn.Module, input_size: tuple[int, int, int]) -> Graph:
    """The graph of a model with batch norms folded, operators fused and masked weights packed.

    Raises:
        UsageError: the model cannot be traced, or uses an operator that the runtime does not have.
    """
    return _build(_plain(model), _masks(model), input_size)


def _checked(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[Graph, nn.Module]:
    """The graph of a model, which computes what the model does, and the model without masks.

    Raises:
        UsageError: as ``export_subp``.
    """
    plain = _plain(model)
    graph = _build(plain, _masks(model), input_size)
    try:
        return verified(graph, plain, input_size), plain
    except UsageError:
        raise
    except (ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"subp_ext does not run {type(model).__name__}: {error}") from error


def _build(plain: nn.Module, masks: Masks, input_size: tuple[int, int, int]) -> Graph:
    traced = trace(plain, input_size)
    graph = simplify(traced.graph, traced.shapes)
    graph = name_outputs(_pack(graph, masks), traced.output_names)
    _check_operators(graph, type(plain).__name__)
    reason = why_dependent(without_unused(traced.graph), traced.shapes)
    if reason is None:
        graph.metadata["independent_images"] = True
        return graph
    return noted(graph, f"images of a batch run together: {reason}", independent_images=False)


def _check_operators(graph: Graph, model: str) -> None:
    """Refuse what the runtime has no operator for, or would leave out.

    Raises:
        UsageError: it names the nodes.
    """
    unknown = {node.op: node.output for node in graph.nodes if node.op not in subp_ext.supported_ops()}
    if unknown:
        found = ", ".join(f"{op} (node {output})" for op, output in unknown.items())
        raise UsageError(f"{model} cannot be exported: subp_ext has no operator {found}")
    for node in graph.nodes:
        if _drops_at_random(node):
            raise UsageError(
                f"{model} cannot be exported: {node.op} (node {node.output}) drops at random, also after eval(); pass "
                "training=self.training to it, or use nn.Dropout"
            )
        if node.args.get("training") and isinstance(node.args.get("running_mean"), Ref):
            raise UsageError(
                f"{model} cannot be exported: {node.op} (node {node.output}) is in training mode, also after eval(); "
                "pass training=self.training to it, or use nn.BatchNorm2d"
            )


def _drops_at_random(node: Node) -> bool:
    chance = node.args.get("p", 0.5) if "dropout" in node.op else node.args.get("dropout_p", 0)
    return chance != 0 and ("dropout" not in node.op or node.args.get("train") is not False)


def _masks(model: nn.Module) -> Masks:
    return {
        f"{name}.weight": (block_mask.mask, block_mask.block_size)
        for name, module in model.named_modules()
        if (block_mask := block_mask_of(module)) is not None
    }


def _plain(model: nn.Module) -> nn.Module:
    """A copy without masks, as export needs it."""
    return plain_copy(model).cpu().float().eval().requires_grad_(False)


def _pack(graph: Graph, masks: Masks) -> Graph:
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
