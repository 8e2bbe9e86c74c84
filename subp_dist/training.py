"""The parts of a run that take part in a step; ``build`` puts them together, ``resume`` saves and restores them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from .config import Resolved
from .distillation import Distillation
from .monitor import Monitor
from .process_group import Rank
from .pruner import SUBPPruner

if TYPE_CHECKING:
    from .data import Data
    from .qat.phase import Quantized


@dataclass
class Progress:
    """How far this rank is in an epoch: optimizer ``step``s done, ``images`` seen, and the sum of their losses."""

    step: int = 0
    images: int = 0
    loss_sum: float | torch.Tensor = 0.0


@dataclass
class Training:
    """All parts of a run that take part in a step.

    Attributes:
        model: the bare model, masks included; its state is what checkpoints hold.
        quantized: in epochs with fake quantization, what is trained in place of the model, which stays as it is.
        macs: dense MACs per layer.
        distillation: the teacher, where there is one.
        wrapped: what is trained, as it is called in training (compiled, in DDP).
        updates_per_epoch: optimizer steps.
        scaler: disabled unless the precision needs it.
        progress: how far the epoch is.
        image_rates, data_shares: images/s, and share of the time spent waiting for data, of each epoch.
        updates: optimizer steps that really happened, for the moving average.
        mask_seconds: time spent in ``mask_updates`` mask updates.
    """

    config: Resolved
    rank: Rank
    model: nn.Module
    wrapped: nn.Module
    pruner: SUBPPruner
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    scaler: torch.amp.GradScaler
    loss: nn.Module
    macs: dict[str, int]
    mixup: Mixup | None
    ema: ModelEmaV3 | None
    monitor: Monitor
    distillation: Distillation | None = None
    quantized: Quantized | None = None
    updates_per_epoch: int = 0
    progress: Progress = field(default_factory=Progress)
    updates: int = 0
    mask_seconds: float = 0.0
    mask_updates: int = 0
    image_rates: list[float] = field(default_factory=list)
    data_shares: list[float] = field(default_factory=list)

    @property
    def learner(self) -> nn.Module:
        """The bare module that is trained."""
        return self.model if self.quantized is None else self.quantized.module

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass; integers need float32."""
        enabled = self.config.model.amp and self.quantized is None
        return torch.autocast(self.rank.device.type, getattr(torch, self.config.model.amp_dtype), enabled=enabled)

    def update_masks(self, epoch: float, global_step: int) -> None:
        """Update the masks for a time in epochs and record what happened."""
        start = time.perf_counter()
        update = self.pruner.step(epoch)
        if self.ema is not None:
            # Its own copy would wait for the next optimizer step that is not skipped.
            self.pruner.copy_masks_to(self.ema.module)
        self.mask_seconds += time.perf_counter() - start
        self.mask_updates += 1
        pictures = epoch == int(epoch) and int(epoch) % self.config.run.image_interval == 0
        layers = self.pruner.report(self.macs)
        self.monitor.mask_update(update, layers, self.pruner.masks, global_step, pictures)


def about_network(config: Resolved, data: Data) -> dict[str, object]:
    """What the files of a run's network say of it."""
    return {
        "model": config.model.name, "num_classes": data.num_classes, "input_size": list(data.input_size),
        "mean": list(data.mean), "std": list(data.std), "class_names": data.class_names,
        "block_size": config.pruning.block_size, "prune_rate": config.pruning.prune_rate,
    }  # fmt: skip
