"""What becomes of each layer: one record for the pruner's report, ``report.json``, ``inspect`` and TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import masks
from .blocks import num_block_rows
from .plan import LayerPlan


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer: as its masks are now, or as a plan says they will be.

    Attributes:
        name: of the module in the model.
        kind: ``convolution`` or ``linear``.
        macs: dense multiply-accumulates for one image.
        reason: why it stays dense, None if it is pruned; only then what follows is set, but for ``shape``.
        shape: of the weight, ``[O, I / groups, kh, kw]``; None for linear layers that nobody asked to prune.
        groups: of the convolution.
        block_size: N, output channels per block.
        block_rows: R, of all groups together.
        rate: share of blocks that is to be pruned in the end.
        kept_blocks: of all rows together.
        is_uniform: whether every row keeps the same number of blocks.
        kept_squares: shares of the squared weights that the target rate kept in rows of consecutive channels and in
            the regrouped ones, as both were found; None where rows are not regrouped.
    """

    name: str
    kind: str
    macs: int
    reason: str | None
    shape: tuple[int, ...] | None = None
    groups: int = 1
    block_size: int = 1
    block_rows: int = 0
    rate: float = 0.0
    kept_blocks: int = 0
    is_uniform: bool = True
    kept_squares: tuple[float, float] | None = None

    @classmethod
    def dense(cls, name: str, macs: int, layer: LayerPlan | None) -> LayerReport:
        """A layer that stays dense; None as its plan for a linear layer that nobody asked to prune."""
        if layer is None:
            return cls(name, "linear", macs, "linear layer")
        weight = getattr(layer.module, "weight", None)
        return cls(name, _kind(layer.module), macs, layer.reason, None if weight is None else tuple(weight.shape))

    @classmethod
    def pruned(
        cls, layer: LayerPlan, macs: int, shape: tuple[int, ...], block_size: int, rate: float, kept_blocks: int,
        is_uniform: bool = True,
    ) -> LayerReport:  # fmt: skip
        """A layer with masks on a weight of this shape; the arguments are those of the class."""
        groups = getattr(layer.module, "groups", 1)
        rows = num_block_rows(shape[0], block_size, groups)
        return cls(
            layer.name, _kind(layer.module), macs, None, shape, groups, block_size, rows, rate, kept_blocks, is_uniform
        )

    @property
    def is_pruned(self) -> bool:
        """Whether there are masks on it, whatever they keep."""
        return self.reason is None

    @property
    def blocks_per_row(self) -> int:
        """I / groups; 0 of a dense layer."""
        return self.shape[1] if self.is_pruned and self.shape else 0

    @property
    def kept(self) -> float:
        """Blocks kept in every row, a whole number; the mean of the rows where they differ."""
        return self.kept_blocks // self.block_rows if self.is_uniform else self.kept_blocks / self.block_rows

    @property
    def kept_asked(self) -> float:
        """What the rate leaves of a row, unrounded; whole blocks are kept, so that a little more may remain."""
        return (1 - self.rate) * self.blocks_per_row

    @property
    def kept_share(self) -> float:
        """Of the blocks; 1 of a dense layer."""
        return self.kept_blocks / (self.block_rows * self.blocks_per_row) if self.is_pruned else 1.0

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates that remain, for one image."""
        return self.macs * self.kept_blocks // (self.block_rows * self.blocks_per_row) if self.is_pruned else self.macs

    @property
    def parameters(self) -> int | None:
        """Of the dense weight, without bias; None where its shape is not known."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def pruned_parameters(self) -> float:
        """Parameters in blocks that are pruned."""
        if not self.is_pruned or self.parameters is None:
            return 0
        return (self.blocks_per_row - self.kept) * self.parameters // self.blocks_per_row

    def as_row(self, all_shapes: bool = False) -> dict[str, Any]:
        """The layer in ``report.json``; shapes of dense layers are left out unless they are asked for.

        Keys: ``name``, ``macs``, ``kept_macs``, ``reason``; of pruned layers also ``shape``, ``groups``,
        ``block_rows``, ``blocks_per_row``, ``kept_asked`` and ``kept``; of
        regrouped ones ``kept_squares``.
        """
        row = {"name": self.name, "macs": self.macs, "kept_macs": self.kept_macs, "reason": self.reason}
        if self.shape is not None and (self.is_pruned or all_shapes):
            row["shape"] = list(self.shape)
        if self.is_pruned:
            row |= {key: getattr(self, key) for key in _OF_PRUNED}
        if self.kept_squares is not None:
            row["kept_squares"] = dict(zip(("consecutive", "regrouped"), self.kept_squares, strict=True))
        return row


_OF_PRUNED = ("groups", "block_rows", "blocks_per_row", "kept_asked", "kept")


def _kind(module: nn.Module) -> str:
    return "linear" if isinstance(module, nn.Linear) else "convolution"


def planned_layers(plan: Sequence[LayerPlan], macs: dict[str, int], rate: float, block_size: int) -> list[LayerReport]:
    """What ``SUBPPruner.report`` will say at the end of the schedule; nothing is masked for it.

    Layers of the plan that the count of MACs has not seen, as the model never calls them, come last with 0 MACs.
    """
    layers = {layer.name: layer for layer in plan}

    def planned(name: str) -> LayerReport:
        layer, dense = layers.get(name), macs.get(name, 0)
        if layer is None or layer.reason is not None:
            return LayerReport.dense(name, dense, layer)
        weight = layer.module.weight
        assert isinstance(weight, Tensor)  # of a layer that the plan found prunable
        shape, own_rate = tuple(weight.shape), rate if layer.rate is None else layer.rate
        rows = num_block_rows(shape[0], block_size, getattr(layer.module, "groups", 1))
        kept = shape[1] - masks.num_candidates(own_rate, shape[1])
        return LayerReport.pruned(layer, dense, shape, block_size, own_rate, rows * kept)

    return [planned(name) for name in [*macs, *(name for name in layers if name not in macs)]]


def total_macs(layers: Sequence[LayerReport]) -> tuple[int, int]:
    """Multiply-accumulates of all layers, dense and kept."""
    return sum(layer.macs for layer in layers), sum(layer.kept_macs for layer in layers)
