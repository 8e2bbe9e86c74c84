"""What follows from what was given: pure functions of it, the model, the data and the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .config import DataConfig, OptimizationConfig, PruningConfig, Resolved, TrainConfig
from .data import Data
from .flag_values import parse_macs
from .flops import rate_for_macs
from .plan import LayerPlan, kept_macs_at
from .ranges import check_order
from .schedule import PruneSchedule


def resolve(given: TrainConfig, data: Data, prune_rate: float, world_size: int, device: str) -> Resolved:
    """The whole configuration of a training.

    Args:
        given: what was asked for.
        data: what is learned from.
        prune_rate: of ``uniform_rate``.
        world_size, device: number of ranks and the type of device that they train on.

    Raises:
        ValueError: the target rate would not be reached within the run, or learning rates are out of order.
    """
    pruning, optimization = given.pruning, given.optimization
    schedule = PruneSchedule.for_run(
        prune_rate, optimization.epochs, pruning.prune_start, pruning.prune_end, pruning.prune_schedule
    )
    lr = learning_rate(optimization, given.data.batch_size, world_size)
    check_order("min-lr", optimization.min_lr, "lr", lr)
    if optimization.warmup_epochs:
        check_order("warmup-lr", optimization.warmup_lr, "lr", lr)
    derived = {
        "loader": data.loader,
        "num_classes": data.num_classes,
        "in_chans": data.input_size[0],
        "img_size": data.input_size[1],
        "mean": data.mean,
        "std": data.std,
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
        "prune_rate": prune_rate,
        "prune_start": schedule.start,
        "prune_end": schedule.end,
        "lr": lr,
        # As torch itself does: CPUs compute in float16 many times slower than in float32.
        "amp_dtype": given.model.amp_dtype or ("bfloat16" if device == "cpu" else "float16"),
    }
    return Resolved.from_flags(given.flags() | derived)


class ModelShape(NamedTuple):
    """Classes of a network, and channels and pixels of a side of its images."""

    num_classes: int
    in_chans: int
    img_size: int


def shape_without_data(data: DataConfig, model_config: Mapping[str, Any]) -> ModelShape:
    """The model's own classes and images, unless others were asked for: where no data is read."""
    channels, height, _ = model_config["input_size"]
    return ModelShape(
        data.num_classes or model_config["num_classes"], data.in_chans or channels, data.img_size or height
    )


def uniform_rate(pruning: PruningConfig, plan: Sequence[LayerPlan], macs: dict[str, int]) -> float:
    """The rate of all layers without one of their own: ``--prune-rate``, or what reaches ``--target-macs``.

    Raises:
        ValueError: no rate reaches the target.
    """
    if not pruning.target_macs:
        return pruning.prune_rate
    return rate_for_macs(parse_macs(pruning.target_macs), kept_macs_at(plan, macs))


def learning_rate(optimization: OptimizationConfig, batch_size: int, world_size: int) -> float:
    """``--lr``, or ``--lr-base`` scaled with the global batch, or with its square root."""
    if optimization.lr is not None:
        return optimization.lr
    linear = optimization.lr_base * batch_size * world_size * optimization.grad_accum_steps / optimization.lr_base_size
    return linear if optimization.lr_base_scale == "linear" else math.sqrt(linear * optimization.lr_base)
