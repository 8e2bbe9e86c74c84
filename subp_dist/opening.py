"""What a run says of itself before its first step: what will be done, with which numbers, and where it goes."""

from __future__ import annotations

from pathlib import Path

from .config import Resolved, TrainConfig
from .layer_report import planned_layers, total_macs
from .training import Training

_ROOT = {"linear": "", "sqrt": " with its square root"}


def opening_lines(training: Training, given: TrainConfig, steps: int, folder: Path) -> list[str]:
    """One line for each subject: ranks and batches, learning rate, pruning, the folder.

    Args:
        training: the run, as it starts or goes on.
        given: what was asked for: it tells what was derived.
        steps: of the optimizer in an epoch.
        folder: where the results go.
    """
    config = training.config
    return [
        _batches(training, steps),
        _learning_rate(config, given),
        _pruning(training),
        *_quantization(config),
        f"results: {folder.resolve()}",
    ]


def _batches(training: Training, steps: int) -> str:
    config, rank = training.config, training.rank
    size, accumulated = config.data.batch_size, config.optimization.grad_accum_steps
    factors = [f"{size} images", f"{_count(rank.world_size, 'rank')} ({rank.device.type})"]
    if accumulated > 1:
        factors.append(f"{accumulated} batches")
    return (
        f"batch: {' x '.join(factors)} = {size * rank.world_size * accumulated} images a step; "
        f"{_count(steps, 'step')} an epoch, {_count(config.optimization.all_epochs, 'epoch')}"
    )


def _learning_rate(config: Resolved, given: TrainConfig) -> str:
    own, asked = config.optimization, given.optimization
    source = (
        "as given"
        if asked.lr is not None
        else f"{asked.lr_base:g} for {asked.lr_base_size} images a step, scaled{_ROOT[asked.lr_base_scale]}"
    )
    warmup = f", warm-up from {own.warmup_lr:g} over {_count(own.warmup_epochs, 'epoch')}" if own.warmup_epochs else ""
    return f"learning rate: {own.lr:g} ({source}); schedule {own.sched}{warmup}; optimizer {own.opt}"


def _pruning(training: Training) -> str:
    pruning, pruner = training.config.pruning, training.pruner
    layers = planned_layers(pruner.plan, training.macs, pruning.prune_rate, pruning.block_size)
    dense, kept = total_macs(layers)
    pruned = [layer for layer in layers if layer.is_pruned]
    own_rates = sum(layer.rate != pruning.prune_rate for layer in pruned)
    others = f" ({own_rates} at rates of their own)" if own_rates else ""
    return (
        f"pruning: {len(pruned)} of {len(pruner.plan)} layers{others}, {100 * pruning.prune_rate:g} % of their "
        f"1x{pruning.block_size} blocks, {pruning.prune_schedule} over epochs {pruning.prune_start:g} to "
        f"{pruning.prune_end:g}; {kept / 1e6:.1f} of {dense / 1e6:.1f} M MACs remain"
    )


def _quantization(config: Resolved) -> list[str]:
    optimization = config.optimization
    if not optimization.qat_epochs:
        return []
    return [
        f"fake quantization: the last {_count(optimization.qat_epochs, 'epoch')}, from epoch "
        f"{optimization.float_epochs} on, at the masks of then"
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
