"""A trained model as a ``.subp`` file: trace, simplify, pack, check."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

import subp_ext
from subp_ext import Graph, Node, Ref, UniformBlockSparse

from .. import __version__
from ..errors import UsageError
from ..parametrization import block_mask_of
from .deadline import within
from .example import Example
from .fuse import simplify, without_unused
from .independence import why_dependent
from .outputs import chosen_names, name_outputs
from .plain import plain_module, unwrapped
from .sizes import compare_at, first_line, free_image_size, shapes_at, tried_sizes, why_fixed
from .trace import Traced, trace, violates
from .verify import noted, verified
from .zeros import SPARSE_OPERATORS, Masks, in_output_rows, zeros_found

_logger = logging.getLogger(__name__)

# That torch.export may take for expressions of sizes.
DERIVE_SECONDS = 90


def export_subp(model: nn.Module, path: Path, input_size: tuple[int, int, int], metadata: dict[str, object]) -> Graph:
    """Write a model of images as a ``.subp`` file; see ``export_model``, which takes any inputs.

    Args:
        model: its masks, if any, become the sparsity of the file.
        path: the file; written whole or not at all.
        input_size: (C, H, W) of an image; the batch is free, and so are height and width where the network allows it.
        metadata: kept in the file, for whoever serves it.

    Raises:
        UsageError: as ``export_model``.
    """
    graph = checked_graph(model, input_size, metadata)
    subp_ext.save(path, graph)
    return graph


def checked_graph(model: nn.Module, input_size: tuple[int, int, int], metadata: dict[str, object]) -> Graph:
    """The graph that ``export_subp`` writes; arguments and errors are its own."""
    return checked(model, Example.images(input_size), metadata)


def checked(
    model: nn.Module, example: Example, metadata: Mapping[str, object], names: Sequence[str] | None = None
) -> Graph:
    """The graph of a model, once it computes what torch does: for several images and for one, and at other sizes where
    it leaves them free.

    Args:
        model: masked or plain; it stays as it is.
        example: of its inputs.
        metadata: kept in the graph. Added are ``independent_images``, by which a session may run a batch in parts, and
            ``notes``: why it may not, or why a size is fixed.
        names: of the outputs, in order; by default their keys.

    Raises:
        UsageError: the model cannot be traced, uses an operator that the runtime does not have, or would compute
            something else there.
    """
    source = Source.of(model, names)
    graph = _with_free_sizes(source, example)
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
        _checked(Source.of(model), Example.images(input_size))
    except UsageError as error:
        raise UsageError(f"{error}; pass --no-export to train without") from error


def build_graph(model: nn.Module, input_size: tuple[int, int, int], dense: bool = False) -> Graph:
    """The graph of a model with batch norms folded, operators fused and sparse weights packed.

    Args:
        model: masked or plain.
        input_size: (C, H, W) of an image.
        dense: whether all weights stay dense, zeros in place, as engines without sparse kernels have them.

    Raises:
        UsageError: the model cannot be traced, or uses an operator that the runtime does not have.
    """
    source = Source.of(model)._replace(dense=dense)
    return _build(source, trace(source.plain, Example.images(input_size)))


class Source(NamedTuple):
    """What a graph is made from.

    Attributes:
        plain: a copy of the model without masks.
        masks: that the model had.
        names: for its results.
        dense: whether zeros stay in dense weights.
    """

    plain: nn.Module
    masks: Masks
    names: Sequence[str] | None = None
    dense: bool = False

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str] | None = None) -> Source:
        """Copies the model onto the CPU, in evaluation mode and float32."""
        model = unwrapped(model)
        return cls(plain_module(model), _masks(model), names)


def _with_free_sizes(source: Source, example: Example) -> Graph:
    """The graph with every size free that may be: by trial for images, else as torch.export derives it.

    Images come first at one size, because arithmetic on sizes can take torch.export very long, and most networks have
    none in their graph.
    """
    graph = None
    if len(example.tensors) == 1 and example.tensors[0].ndim == 4:
        graph = free_image_size(_checked(source, example), source.plain, example)
        if None in graph.inputs[0].shape[2:] or _pads_by_size(source.plain):
            return graph
    derived = _derived(source, example)
    if isinstance(derived, Graph):
        return derived
    return noted(_checked(source, example), f"all sizes but the batch are fixed: {derived}") if graph is None else graph


def _derived(source: Source, example: Example) -> Graph | str:
    """The graph with the sizes free that torch.export leaves free, or why there is none."""
    try:
        traced = within(DERIVE_SECONDS, lambda: trace(source.plain, example, sizes=True))
        if traced is None:
            return f"torch.export did not get through the sizes in {DERIVE_SECONDS} s"
        graph = verified(_build(source, traced), source.plain, example)
        tried = list(tried_sizes(traced.inputs, example))
        for assumption in traced.assumptions:
            if not any(violates(assumption, values) for values in tried):  # then to try them proves something
                return f"its code goes another way for other sizes than those of which {assumption}"
        shapes = [shapes_at(traced.inputs, values) for values in tried]
        found = compare_at(graph, source.plain, example, shapes)
    except (UsageError, ValueError, RuntimeError, ImportError) as error:
        return first_line(error)
    if isinstance(found, str):
        return found
    for note in why_fixed(graph, source.plain, example):
        graph = noted(graph, note)
    return graph


def _pads_by_size(model: nn.Module) -> bool:
    """Whether layers are padded as TensorFlow does it: by sizes of which torch.export makes expressions without end."""
    return any(isinstance(module, (Conv2dSame, MaxPool2dSame, AvgPool2dSame)) for module in model.modules())


def _checked(source: Source, example: Example) -> Graph:
    """The graph of a model for inputs of these sizes, which computes what the model does.

    Raises:
        UsageError: as ``checked``.
    """
    graph = _build(source, trace(source.plain, example))
    try:
        return verified(graph, source.plain, example)
    except UsageError:
        raise
    except (ValueError, RuntimeError, ImportError) as error:
        raise UsageError(f"subp_ext does not run {type(source.plain).__name__}: {error}") from error


def _build(source: Source, traced: Traced) -> Graph:
    masks = {name: found for name, found in source.masks.items() if _is_uniform(found[0])}
    masks = {} if source.dense else masks | zeros_found(traced.graph, masks)
    graph = simplify(traced.graph, traced.shapes)
    names = chosen_names(traced.output_names, source.names)
    graph = name_outputs(_pack(graph, masks), names)
    _check_operators(graph, type(source.plain).__name__)
    reason = why_dependent(without_unused(traced.graph), traced.shapes, traced.numbers)
    if reason is None:
        graph.metadata["independent_images"] = True
        return graph
    return noted(graph, f"images of a batch run together: {reason}", independent_images=False)


def _is_uniform(mask: Tensor) -> bool:
    """Whether all rows keep as many blocks; earlier 1xN pruning leaves rows of different counts."""
    kept = mask.sum(1)
    return bool((kept == kept[0]).all())


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
        f"{name}.weight": (block_mask.mask, block_mask.block_size, block_mask.order)
        for name, module in model.named_modules()
        if (block_mask := block_mask_of(module)) is not None
    }


def _in_blocks(
    weight: np.ndarray, mask: Tensor, block_size: int, groups: int, order: Tensor | None
) -> UniformBlockSparse:
    """A dense weight in the block rows of its mask; without an order where its channels are consecutive."""
    kept, channels = mask.cpu().numpy(), np.arange(len(weight), dtype=np.int32)
    at = channels if order is None else order.cpu().numpy().astype(np.int32)
    if np.array_equal(at, channels):
        return UniformBlockSparse.from_dense(weight, block_size, groups, kept)
    return dataclasses.replace(UniformBlockSparse.from_dense(weight[at], block_size, groups, kept), order=at)


def _pack(graph: Graph, masks: Masks) -> Graph:
    """Turn masked weights that only convolutions and linear layers read into ``UniformBlockSparse``."""
    readers: dict[str, Node] = {}
    read_otherwise: set[str] = set()
    for node in graph.nodes:
        weight = node.args.get("weight") if node.op in SPARSE_OPERATORS else None
        if isinstance(weight, Ref) and readers.setdefault(weight.name, node).op != node.op:
            read_otherwise.add(weight.name)
        read_otherwise.update(ref.name for ref in node.refs() if ref is not weight)
    constants: dict[str, np.ndarray | UniformBlockSparse] = dict(graph.constants)
    for name, (mask, block_size, order) in masks.items():
        if name in readers and name not in read_otherwise:
            reader = readers[name]
            groups = reader.args.get("groups", 1)
            weight = in_output_rows(np.asarray(constants[name], np.float32), reader.op, groups)
            weight = np.ascontiguousarray(weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1))))
            constants[name] = _in_blocks(weight, mask, block_size, groups, order)
    return dataclasses.replace(graph, constants=constants)
