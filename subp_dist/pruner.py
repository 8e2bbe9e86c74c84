"""``SUBPPruner``: soft uniform block pruning of any timm CNN during training."""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import masks
from .blocks import BLOCK_SIZES, to_blocks
from .distributed import compute_shared, verify_identical_masks
from .parametrization import BlockMask, mask_weight
from .schedule import PruneSchedule
from .scores import CRITERIA, RANDOM

_logger = logging.getLogger(__name__)

# timm convolutions that standardise their weight after any parametrization: the zeros would be shifted away.
_STANDARDISED = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one convolution: pruned if ``reason`` is None, else kept dense because of it."""

    name: str
    module: nn.Module
    reason: str | None


@dataclass(frozen=True)
class MaskUpdate:
    """What one ``SUBPPruner.step`` did.

    Attributes:
        target: share of blocks that the schedule asks to be pruned now.
        actual: share of blocks of the pruned layers that is pruned now.
        flip_rate: share of blocks whose mask bit changed.
        regrown: blocks that were pruned before and are kept now.
        scores: block scores ``[R, I]`` per layer, as they were before the update.
    """

    target: float
    actual: float
    flip_rate: float
    regrown: int
    scores: dict[str, Tensor]


def plan_layers(model: nn.Module, skip: Sequence[str] = ()) -> list[LayerPlan]:
    """Decide for every convolution of a model whether it is pruned.

    Pruned is every ``Conv2d`` with more than one input channel per group, except the stem, the classifier, and names
    that match a ``skip`` pattern (shell style, such as ``*downsample*``).

    Raises:
        ValueError: a skip pattern matches no convolution.
    """
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for pattern in skip:
        if not fnmatch.filter(convolutions, pattern):
            raise ValueError(
                f"--skip {pattern!r} matches no convolution; names look like {', '.join(list(convolutions)[:3])}"
            )
    config = getattr(model, "pretrained_cfg", None) or {}
    stem = _as_tuple(config.get("first_conv")) or tuple(list(convolutions)[:1])
    classifier = _as_tuple(config.get("classifier"))

    def reason(name: str, module: nn.Conv2d) -> str | None:
        if name in stem:
            return "stem"
        if name in classifier or any(name.startswith(f"{c}.") for c in classifier):
            return "classifier"
        pattern = next((p for p in skip if fnmatch.fnmatchcase(name, p)), None)
        if pattern is not None:
            return f"skipped by {pattern!r}"
        if module.in_channels == module.groups:
            return "depthwise: one input channel per group"
        if type(module).__name__ in _STANDARDISED:
            return f"{type(module).__name__} standardises its weight after the mask"
        return None

    return [LayerPlan(name, module, reason(name, module)) for name, module in convolutions.items()]


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def kept_macs_at(plan: Sequence[LayerPlan], macs: dict[str, int]) -> Callable[[float], float]:
    """Kept MACs of a model as a function of the uniform rate; every row of a layer keeps the same share."""
    channels = {layer.name: layer.module.weight.shape[1] for layer in plan if layer.reason is None}

    def kept(rate: float) -> float:
        shares = {name: 1 - masks.num_candidates(rate, count) / count for name, count in channels.items()}
        return sum(dense * shares.get(name, 1.0) for name, dense in macs.items())

    return kept


class SUBPPruner:
    """Puts uniform 1xN block masks on a model's convolutions and updates them on a schedule.

    Build it before DDP and torch.compile wrap the model, call ``step`` with the time before the training steps of
    each epoch (or more often), and ``decay_gradients`` once per optimizer step, after gradients are unscaled::

        pruner = SUBPPruner(model, PruneSchedule.for_run(0.5, epochs=250))
        for epoch in range(250):
            pruner.step(epoch)
            for ...:
                loss.backward()
                pruner.decay_gradients()
                optimizer.step()

    The masks are buffers of the model and the schedule is stateless, so the model's state dict and the epoch are all
    that a resume needs. All ranks must call ``step`` together.

    Args:
        model: any model; its weights' parameters stay the same objects.
        schedule: target rate and its course over time.
        block_size: N, output channels per block.
        criterion: ``bpar``, ``l1`` or ``l2``; ``random`` scores are drawn once, as a control.
        pattern: ``uniform``: every block row keeps the same count; ``layer``: the blocks of a layer compete, as in
            earlier 1xN pruning, which gives nothing that the runtime could use: for comparisons.
        alpha: weight of the redundancy in ``bpar``.
        tau: temperature of the regrowth.
        score_latent: score the latent weights instead of the masked ones.
        sr_ste_decay: extra decay of masked weights per optimizer step.
        skip: name patterns of convolutions that stay dense.
        seed: seed of the draws, the same on every rank.

    Raises:
        ValueError: an argument is out of range, or nothing in the model can be pruned (with the reasons).
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: PruneSchedule,
        *,
        block_size: int = 16,
        criterion: str = "bpar",
        pattern: str = "uniform",
        alpha: float = 1.0,
        tau: float = 1.0,
        score_latent: bool = False,
        sr_ste_decay: float = 2e-4,
        skip: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block size {block_size}: expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if criterion not in (*CRITERIA, RANDOM):
            raise ValueError(f"criterion {criterion!r}: expected one of {', '.join((*CRITERIA, RANDOM))}")
        if pattern not in masks.PATTERNS:
            raise ValueError(f"pattern {pattern!r}: expected one of {', '.join(masks.PATTERNS)}")
        if not tau > 0:
            raise ValueError(f"tau {tau}: expected a temperature above 0 (1 is close to uniform, 0.01 is sharp)")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha {alpha}: expected a finite weight of the redundancy, such as 1")
        self.schedule, self.block_size, self.criterion, self.pattern = schedule, block_size, criterion, pattern
        self.alpha, self.tau, self.score_latent = alpha, tau, score_latent
        self.sr_ste_decay, self.seed = sr_ste_decay, seed
        self.plan = plan_layers(model, skip)
        self.layers = {plan.name: plan.module for plan in self.plan if plan.reason is None}
        if not self.layers:
            reasons = "; ".join(f"{plan.name}: {plan.reason}" for plan in self.plan[:8]) or "it has no convolutions"
            raise ValueError(f"nothing to prune in {type(model).__name__}: {reasons}")
        self._masks: dict[str, BlockMask] = {name: mask_weight(m, block_size) for name, m in self.layers.items()}
        _logger.info(
            "1x%d masks on %d of %d convolutions, target rate %g", block_size, len(self.layers), len(self.plan),
            schedule.rate,
        )  # fmt: skip

    @property
    def masks(self) -> dict[str, Tensor]:
        """The mask ``[R, I]`` of every pruned layer, by module name."""
        return {name: block_mask.mask for name, block_mask in self._masks.items()}

    @property
    def at_target(self) -> bool:
        """Whether every row of every layer is down to the blocks that the target rate leaves."""
        competing = [masks.competing(mask, self.pattern) for mask in self.masks.values()]
        return all(
            bool((mask.sum(1) == mask.shape[1] - masks.num_candidates(self.schedule.rate, mask.shape[1])).all())
            for mask in competing
        )

    @torch.no_grad()
    def step(self, epoch: float) -> MaskUpdate:
        """Update all masks for a time in epochs; fractions are fine, for updates within an epoch.

        Every rank scores its share of the layers, all draw the same masks, and a checksum proves it.

        Raises:
            RuntimeError: the ranks' masks differ.
        """
        rate, pruned_rate = self.schedule.rate, self.schedule.pruned_rate(epoch)
        scores = self._scores()
        flipped = regrown = 0
        for name, score in scores.items():
            generator = masks.draw_generator(self.seed, epoch, name)
            old = self._masks[name].mask
            new = masks.uniform_mask(masks.competing(score, self.pattern), rate, pruned_rate, self.tau, generator)
            new = new.view(old.shape).to(old.device)
            flipped += int((new != old).sum())
            regrown += int((new & ~old).sum())
            old.copy_(new)
        verify_identical_masks(self.masks, next(iter(scores.values())).device)
        blocks = sum(mask.numel() for mask in self.masks.values())
        return MaskUpdate(pruned_rate, self.pruned_share(), flipped / blocks, regrown, scores)

    def _scores(self) -> dict[str, Tensor]:
        """Scores ``[R, I]`` of every pruned layer."""
        names = list(self.layers)

        def score(index: int) -> Tensor:
            module, block_mask = self.layers[names[index]], self._masks[names[index]]
            if self.criterion == RANDOM:
                generator = masks.draw_generator(self.seed, -1.0, names[index])
                return torch.rand(block_mask.mask.shape, generator=generator, dtype=torch.float64).to(device)
            weight = module.parametrizations.weight.original if self.score_latent else module.weight
            return CRITERIA[self.criterion](to_blocks(weight.float(), self.block_size, block_mask.groups), self.alpha)

        # bpar compares each block of a row with all others of it; l1 and l2 are cheap whatever their shape.
        latents = [module.parametrizations.weight.original for module in self.layers.values()]
        costs = [latent.numel() * latent.shape[1] for latent in latents]
        shapes = [tuple(mask.shape) for mask in self.masks.values()]
        device = next(iter(self.masks.values())).device
        return dict(zip(names, compute_shared(score, shapes, costs, device), strict=True))

    @torch.no_grad()
    def decay_gradients(self) -> None:
        """SR-STE: add ``sr_ste_decay * W`` to the gradient of every masked weight.

        To be called once per optimizer step, after gradients are averaged over ranks, unscaled and clipped.
        """
        if self.sr_ste_decay == 0:
            return
        for name, module in self.layers.items():
            latent = module.parametrizations.weight.original
            if latent.grad is not None:
                latent.grad.add_(self._masks[name].pruned_part(latent), alpha=self.sr_ste_decay)

    def pruned_share(self) -> float:
        """Share of the blocks of all pruned layers that is pruned now."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())

    def report(self, macs: dict[str, int]) -> list[dict]:
        """One row per convolution and linear layer that ``macs`` counts, in the order of the model.

        Keys: ``name``, ``macs``, ``kept_macs``, ``reason`` (why the layer is dense, or None); of pruned layers also
        ``shape`` of the weight, ``groups``, ``block_rows``, ``blocks_per_row`` (I), ``kept_asked`` (what the target
        rate leaves of I, unrounded) and ``kept`` (achieved, the same in every row; the mean with pattern ``layer``).
        """
        reasons = {plan.name: plan for plan in self.plan}
        rows = []
        for name, dense in macs.items():
            plan = reasons.get(name)
            row = {"name": name, "macs": dense, "kept_macs": dense, "reason": plan.reason if plan else "linear layer"}
            if name in self.layers:
                module, block_mask = self.layers[name], self._masks[name]
                mask = block_mask.mask
                shape = module.parametrizations.weight.original.shape
                kept = mask.sum(1)
                if self.pattern == "uniform" and kept.min() != kept.max():
                    raise RuntimeError(f"{name}: rows keep between {kept.min()} and {kept.max()} blocks; not uniform")
                row |= {
                    "shape": list(shape),
                    "groups": block_mask.groups,
                    "block_rows": mask.shape[0],
                    "blocks_per_row": mask.shape[1],
                    "kept_asked": (1 - self.schedule.rate) * mask.shape[1],
                    "kept": kept.double().mean().item() if self.pattern == "layer" else int(kept[0]),
                    "kept_macs": dense * int(kept.sum()) // mask.numel(),
                }
            rows.append(row)
        return rows
