"""``SUBPPruner``: soft uniform block pruning of any timm CNN during training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from . import masks
from .agreement import compute_shared, on_primary, verify_identical
from .blocks import BLOCK_SIZES, to_blocks
from .layer_report import LayerReport
from .lost_writes import check_written
from .mask_update import MaskUpdate, pruned_share
from .parametrization import BlockMask, block_mask_of, find_copy, is_sharded, mask_weight, written_copies
from .plan import LayerPlan, check_prunable, plan_layers, reparametrised
from .process_group import is_in_ddp
from .regroup import Regrouping, regroup
from .schedule import PruneSchedule
from .scores import CRITERIA, RANDOM
from .torch_compat import compiled_from
from .transfers import to_host

_logger = logging.getLogger(__name__)
SHARDED = (
    "the weights are DTensors, shards of FSDP2 (fully_shard), which block masks and their scores do not know: use "
    "DistributedDataParallel, or FSDP1 (FullyShardedDataParallel with use_orig_params=True), after the pruner"
)


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

    A masked ``module.weight`` is computed anew at each use. So loops that write into weights (``nn.init``) come before
    the pruner; ``model.apply`` and ``load_state_dict`` of weights without masks reach the latent ones at any time, see
    ``mask_weight``.

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
        skip, only, layer_rates, prune_linear: which layers are pruned, and how much: see ``plan_layers``.
        plan: what ``plan_layers`` said of this model, where it has been asked already; the four before are not read.
        regroup: convolutions have an order of their output channels, for ``regroup_rows``.
        seed: seed of the draws, the same on every rank.

    Raises:
        ValueError: an argument is out of range, or nothing in the model can be pruned (with the reasons), or DDP has
            the model already.
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
        only: Sequence[str] = (),
        layer_rates: Mapping[str, float] | None = None,
        prune_linear: bool = False,
        plan: Sequence[LayerPlan] | None = None,
        regroup: bool = False,
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
        model = compiled_from(model) or model
        if any(block_mask_of(module) is not None for module in model.modules()):
            raise ValueError(
                f"{type(model).__name__} has block masks already: one SUBPPruner per model; go on with the first, or "
                "build another model"
            )
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise ValueError(SHARDED)
        if is_in_ddp(model):
            raise ValueError(
                f"{type(model).__name__} is in DistributedDataParallel already, which would wait in vain for the "
                "gradients of masked weights, and fail in its second step: build SUBPPruner(model, ...) first, then "
                "DistributedDataParallel(model)"
            )
        self.schedule, self.block_size, self.criterion, self.pattern = schedule, block_size, criterion, pattern
        self.alpha, self.tau, self.score_latent = alpha, tau, score_latent
        self.sr_ste_decay, self.seed = sr_ste_decay, seed
        self.plan = plan_layers(model, skip, only, layer_rates, prune_linear) if plan is None else list(plan)
        self.schedules = {
            layer.name: schedule if layer.rate is None else replace(schedule, rate=layer.rate)
            for layer in self.plan
            if layer.reason is None
        }
        self.layers = {layer.name: layer.module for layer in self.plan if layer.reason is None}
        check_prunable(self.plan, type(model).__name__)
        self._drawn_by = {layer.name: layer.drawn_by for layer in self.plan}
        self._copies_seen = False
        ordered = self._regroupable() if regroup else []
        self._masks: dict[str, BlockMask] = {
            name: mask_weight(module, block_size, name in ordered) for name, module in self.layers.items()
        }
        self.kept_squares: dict[str, tuple[float, float]] = {}
        _logger.info(
            "1x%d masks on %d of %d %s, target rate %g", block_size, len(self.layers), len(self.plan),
            "convolutions and linear layers" if self._has_linear() else "convolutions", schedule.rate,
        )  # fmt: skip
        if fusing := reparametrised(self.plan, model):
            _logger.warning(
                "%s can be fused after the training: the sum of branches is denser than each of them; exported files "
                "keep them apart", ", ".join(fusing),
            )  # fmt: skip

    def _regroupable(self) -> list[str]:
        """Convolutions that lose blocks.

        Raises:
            ValueError: there are none, or their rows do not keep a known count.
        """
        if self.pattern != "uniform":
            raise ValueError(f"regroup with pattern {self.pattern!r}: expected 'uniform', where rows keep equal counts")
        found = [
            name
            for name, module in self.layers.items()
            if not isinstance(module, nn.Linear) and self._kept_at_target(name, module.weight) < module.weight.shape[1]
        ]
        if not found:
            rate = self.schedule.rate
            raise ValueError(
                f"--regroup: no convolution loses blocks at the target rate {rate:g}; raise --prune-rate or "
                "--layer-rates, or leave it out"
            )
        return found

    def _kept_at_target(self, name: str, weight: Tensor) -> int:
        return weight.shape[1] - masks.num_candidates(self.schedules[name].rate, weight.shape[1])

    @torch.no_grad()
    def regroup_rows(self) -> None:
        """Choose which output channels share a block row, so that target rates keep the most of the squared weights.

        To be called with trained weights, before the first ``step`` and before copies of the model are made; on all
        ranks together, of which the first does the work. ``kept_squares`` has what it came to.

        Raises:
            ValueError: the pruner was made without ``regroup``.
        """
        ordered = {name: block_mask for name, block_mask in self._masks.items() if block_mask.order is not None}
        if not ordered:
            raise ValueError("regroup_rows: the masks have no order; build SUBPPruner(model, ..., regroup=True)")
        start = time.perf_counter()
        found = on_primary(lambda: {name: self._regrouped(name) for name in ordered})
        for name, block_mask in ordered.items():
            block_mask.order.copy_(torch.from_numpy(found[name].order))
        self.kept_squares = {name: (own.before, own.after) for name, own in found.items()}
        before, after = (sum(shares) / len(found) for shares in zip(*self.kept_squares.values(), strict=True))
        _logger.info(
            "regrouped the block rows of %d convolutions in %.1f s: at the target rate they keep %.1f %% of squared "
            "weights, %.1f %% with consecutive channels (mean of layers)",
            len(found), time.perf_counter() - start, 100 * after, 100 * before,
        )  # fmt: skip

    def _regrouped(self, name: str) -> Regrouping:
        weight, groups = self.layers[name].weight.float().cpu(), self._masks[name].groups
        seed = masks.draw_generator(self.seed, -2.0, self._drawn_by[name]).initial_seed()
        return regroup(weight.numpy(), self._kept_at_target(name, weight), self.block_size, groups, seed)

    def _has_linear(self) -> bool:
        return any(isinstance(layer.module, nn.Linear) for layer in self.plan)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The mask ``[R, I]`` of every pruned layer, by module name."""
        return {name: block_mask.mask for name, block_mask in self._masks.items()}

    @property
    def at_target(self) -> bool:
        """Whether every row of every layer is down to the blocks that its target rate leaves."""
        return self._all_at_rate(self._masks_on_host())

    def _all_at_rate(self, host_masks: Mapping[str, Tensor]) -> bool:
        return all(masks.at_rate(mask, self.schedules[name].rate, self.pattern) for name, mask in host_masks.items())

    def _masks_on_host(self) -> dict[str, Tensor]:
        """All masks on the CPU; the host waits for the device once, whatever it then asks of them."""
        return dict(zip(self.layers, to_host(list(self.masks.values())), strict=True))

    @torch.no_grad()
    def step(self, epoch: float) -> MaskUpdate:
        """Update all masks for a time in epochs; fractions are fine, for updates within an epoch.

        Every rank scores its share of the layers, all draw the same masks, and a checksum proves it; so it does for
        the weights, which would be scored differently by another rank.

        Raises:
            DivergedError: the ranks' weights or masks differ.
            ValueError: a masked weight was written to, or masks of a copy were mixed, both of which would be lost.
        """
        check_written({name: (module, self._masks[name]) for name, module in self.layers.items()})
        self._check_copies()
        self._copies_seen = False
        latents = {name: self._latent(name) for name in self.layers}
        device = next(iter(latents.values())).device
        verify_identical(latents, "weights", device)
        old, scores = self._masks_on_host(), self._scores()
        for name, score in scores.items():
            rate, pruned_rate = self.schedules[name].rate, self.schedules[name].pruned_rate(epoch)
            generator = masks.draw_generator(self.seed, epoch, self._drawn_by[name])
            new = masks.uniform_mask(masks.competing(score, self.pattern), rate, pruned_rate, self.tau, generator)
            self._masks[name].mask.copy_(new.view(score.shape))
        new = self._masks_on_host()
        verify_identical(new, "masks", device)
        if orders := {name: own.order for name, own in self._masks.items() if own.order is not None}:
            verify_identical(orders, "orders of channels", device)
        return MaskUpdate.between(
            old,
            new,
            target=self.schedule.pruned_rate(epoch),
            final_rates={name: own.rate for name, own in self.schedules.items()},
            reached=self._all_at_rate(new) and not self._all_at_rate(old),
            scores=scores,
        )

    def _scores(self) -> dict[str, Tensor]:
        """Scores ``[R, I]`` of every pruned layer."""
        names = list(self.layers)

        def score(index: int) -> Tensor:
            module, block_mask = self.layers[names[index]], self._masks[names[index]]
            if self.criterion == RANDOM:
                generator = masks.draw_generator(self.seed, -1.0, self._drawn_by[names[index]])
                drawn = torch.rand(block_mask.mask.shape, generator=generator, dtype=torch.float64, device="cpu")
                return drawn.to(device, non_blocking=True)
            weight = self._latent(names[index]) if self.score_latent else module.weight
            blocks = to_blocks(weight.float(), self.block_size, block_mask.groups, block_mask.order)
            return CRITERIA[self.criterion](blocks, self.alpha)

        # bpar compares each block of a row with all others of it; l1 and l2 are cheap whatever their shape.
        latents = [self._latent(name) for name in names]
        costs = [latent.numel() * latent.shape[1] for latent in latents]
        shapes = [tuple(mask.shape) for mask in self.masks.values()]
        device = next(iter(self.masks.values())).device
        return dict(zip(names, compute_shared(score, shapes, costs, device), strict=True))

    @torch.no_grad()
    def decay_gradients(self) -> None:
        """SR-STE: add ``sr_ste_decay * W`` to the gradient of every masked weight.

        To be called once per optimizer step, after gradients are averaged over ranks, unscaled and clipped.

        Raises:
            ValueError: masks of a copy were mixed by an average of buffers.
        """
        if not self._copies_seen:  # once an update, for it costs a GPU a wait
            self._copies_seen = self._check_copies()
        if self.sr_ste_decay == 0:
            return
        for name in self.layers:
            latent = self._latent(name)
            if latent.grad is not None:
                self._masks[name].add_pruned_part(latent.grad, latent, self.sr_ste_decay)

    def copy_masks_to(self, model: nn.Module) -> None:
        """Give a copy of the model, such as a moving average (torch's ``AveragedModel`` or its module), the masks."""
        for name, block_mask in self._masks.items():
            copied = find_copy(model, name)
            copied.mask.copy_(block_mask.mask)
            if block_mask.order is not None:
                copied.order.copy_(block_mask.order)

    def pruned_share(self) -> float:
        """Share of the blocks of all pruned layers that is pruned now."""
        return pruned_share(self._masks_on_host())

    def report(self, macs: dict[str, int]) -> list[LayerReport]:
        """What the masks of now keep of each convolution and linear layer that ``macs`` counts, in the model's order.

        Raises:
            RuntimeError: the rows of a layer keep different counts, which pattern ``uniform`` rules out.
        """
        plans, host_masks = {plan.name: plan for plan in self.plan}, self._masks_on_host()

        def layer(name: str, dense: int) -> LayerReport:
            if name not in self.layers:
                return LayerReport.dense(name, dense, plans.get(name))
            kept, is_uniform = host_masks[name].sum(1), self.pattern == "uniform"
            if is_uniform and kept.min() != kept.max():
                raise RuntimeError(f"{name}: rows keep between {kept.min()} and {kept.max()} blocks; not uniform")
            shape, rate = tuple(self._latent(name).shape), self.schedules[name].rate
            layer = LayerReport.pruned(plans[name], dense, shape, self.block_size, rate, int(kept.sum()), is_uniform)
            return replace(layer, kept_squares=self.kept_squares.get(name))

        return [layer(name, dense) for name, dense in macs.items()]

    def _check_copies(self) -> bool:
        """Refuse to go on where a copy of the model has masks that an average of buffers has mixed.

        Such a mask was written to since this was last looked at, and keeps all that the model keeps, and more.

        Returns:
            Whether any mask of a copy was written to.

        Raises:
            ValueError: in place of an average that is denser than the model, found out at the end.
        """
        written = [(name, copied.mask) for name, mask in self._masks.items() for copied in written_copies(mask)]
        if not written:
            return False
        own_masks, others = self._masks_on_host(), to_host([other for _, other in written])
        for (name, _), other in zip(written, others, strict=True):
            own = own_masks[name]
            if (other >= own).all() and (other != own).any():
                raise ValueError(
                    f"{name}: a copy of the model keeps {int(other.sum())} blocks where the model keeps "
                    f"{int(own.sum())}: an average of buffers has mixed masks. Average the parameters alone "
                    "(AveragedModel(use_buffers=False)) and call pruner.copy_masks_to(average) after each "
                    "pruner.step, or use timm's ModelEmaV3"
                )
        return True

    def _latent(self, name: str) -> Tensor:
        latent = self.layers[name].parametrizations.weight.original
        if is_sharded(latent):
            raise ValueError(SHARDED)
        return latent
