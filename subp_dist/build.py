"""A run, put together from its configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, get_optimizer_info, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from .agreement import on_primary
from .config import AugmentationConfig, PruningConfig, Resolved, ResolvedOptimization, TrainConfig
from .data import Data, create_data
from .distillation import create_distillation
from .errors import UsageError
from .flops import count_macs
from .layer_report import planned_layers
from .layer_table import format_table
from .models import (
    check_model_name,
    create_model,
    create_pretrained,
    load_initial_weights,
    model_arguments,
    to_channels_last,
    wrong_images,
)
from .monitor import Monitor
from .plan import LayerPlan, check_prunable, check_worth, plan_layers
from .process_group import Rank, data_parallel
from .pruner import SUBPPruner
from .resolve import uniform_rate
from .schedule import PruneSchedule
from .seeds import kept_cpu_generators
from .training import Training

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedModel:
    """A model without masks, its dense MACs by layer, and which layers are to be pruned, at which uniform rate."""

    model: nn.Module
    macs: dict[str, int]
    plan: list[LayerPlan]
    rate: float


def create_model_and_data(given: TrainConfig) -> tuple[nn.Module, Data]:
    """The data, and the timm model for it.

    Raises:
        UsageError: no such model or data, or they do not fit.
    """
    name = given.model.name
    check_model_name(name)
    model_config = timm.get_pretrained_cfg(name).to_dict()
    data = create_data(given.data, given.augmentation, model_config, given.optimization.all_epochs)
    random_seed(given.run.seed)
    arguments = model_arguments(given.model, data.num_classes, data.input_size[0])
    model = (create_pretrained if given.model.pretrained else create_model)(name, **arguments)
    if given.model.initial_checkpoint:
        load_initial_weights(model, name, Path(given.model.initial_checkpoint))
    return model, data


def plan_model(given: TrainConfig, model: nn.Module, sizes: list[tuple[int, int, int]]) -> PlannedModel:
    """Decide what is pruned in a model.

    Args:
        given: what was asked for.
        model: without masks.
        sizes: (C, H, W) of all images that it must take; MACs are those of the first.

    Raises:
        ValueError: the model does not take the images, or the flags do not fit its layers.
    """
    for size in reversed(sizes):
        try:
            macs = count_macs(model, size)
        except (RuntimeError, AssertionError) as error:
            raise wrong_images(given.model.name, size, error) from error
    pruning = given.pruning
    plan = plan_layers(model, **pruning.layers)
    check_plan(pruning, plan, macs, given.model.name)
    rate = uniform_rate(pruning, plan, macs)
    if pruning.target_macs:
        _logger.info("rate %.4f\n%s", rate, format_table(planned_layers(plan, macs, rate, pruning.block_size)))
    return PlannedModel(model, macs, plan, rate)


def check_plan(pruning: PruningConfig, plan: list[LayerPlan], macs: dict[str, int], model_name: str) -> None:
    """Refuse a model with nothing, or next to nothing, to prune; who names the layers himself knows how few they are.

    Raises:
        ValueError: it is refused.
    """
    check_prunable(plan, model_name)
    if pruning.prune_rate and not pruning.only:
        check_worth(plan, macs, model_name)


def build_training(config: Resolved, rank: Rank, planned: PlannedModel, data: Data, resumed: bool = False) -> Training:
    """Everything of a run that does not depend on a checkpoint.

    Args:
        config: of the run.
        rank: this process.
        planned: the model; it gets its masks.
        data: what is learned from.
        resumed: a checkpoint will be restored, with what its run has found out about the weights.

    Raises:
        ValueError: the flags do not fit the model or each other.
    """
    batches = len(data.train) // rank.world_size // config.data.batch_size
    updates_per_epoch = -(-batches // config.optimization.grad_accum_steps)
    schedule = create_schedule(config, updates_per_epoch)
    _check_export(config, planned, data)
    if config.optimization.qat_epochs:
        _check_qat(config, planned, data)
    model = _arrange(planned.model, config, rank)
    distillation = create_distillation(config.distillation, config.data, data.sizes)
    pruner = SUBPPruner(model, schedule, plan=planned.plan, seed=config.run.seed, **config.pruning.scoring)
    if config.pruning.regroup and not resumed:
        pruner.regroup_rows()
    optimizer = create_optimizer(config.optimization, model)
    scheduler = create_scheduler(config.optimization, optimizer, updates_per_epoch)
    precision = config.model
    use_scaler = precision.amp and precision.amp_dtype == "float16"
    return Training(
        config=config,
        rank=rank,
        model=model,
        wrapped=wrap(model, precision.torchcompile, rank),
        pruner=pruner,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(rank.device.type, enabled=use_scaler),
        loss=create_loss(config.augmentation),
        macs=planned.macs,
        mixup=create_mixup(config.augmentation, data.num_classes),
        ema=ModelEmaV3(model, precision.model_ema_decay, use_warmup=precision.model_ema_warmup)
        if precision.model_ema
        else None,
        monitor=Monitor(None),
        distillation=distillation and distillation.to(rank.device),
        updates_per_epoch=updates_per_epoch,
    )


def _check_export(config: Resolved, planned: PlannedModel, data: Data) -> None:
    """Find out before a training, not after it, whether its result can be exported as it was asked for."""
    # Imported here: without an export a training needs no runtime, which may not be built on a machine with GPUs.
    if not config.run.no_export:
        from .export import check_exportable

        on_primary(lambda: check_exportable(planned.model, data.input_size))
    if config.run.export_dtype == "int8":
        from .export.of_run import check_quantizable

        on_primary(lambda: check_quantizable(planned.model, data))


def _check_qat(config: Resolved, planned: PlannedModel, data: Data) -> None:
    """Find out before a training, not in its last epochs, whether it can go on with fake quantization.

    Raises:
        UsageError: it cannot.
    """
    from .qat.start import check_trainable

    optimization, side = config.optimization, data.input_size[1]
    first, end = optimization.float_epochs, optimization.all_epochs
    sizes = {epoch: data.resolutions.at(epoch) for epoch in range(first, end)} if data.resolutions else {}
    if other := next((epoch for epoch, pixels in sizes.items() if pixels != side), None):
        raise UsageError(
            f"--qat-epochs {optimization.qat_epochs}: they train at the size that int8 is calibrated for, {side} "
            f"pixels, and --res-schedule has {sizes[other]} in epoch {other}; reach {side} before epoch {first}"
        )
    on_primary(lambda: check_trainable(planned.model, data.input_size))


def check_machine(given: TrainConfig, rank: Rank) -> None:
    """Refuse what this machine, or the export, cannot do.

    Raises:
        UsageError: the message names the flag.
    """
    backend, pruning = given.model.torchcompile, given.pruning
    if backend and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UsageError(f"--torchcompile {backend}: no such backend; usual ones are {known}")
    if pruning.pattern != "uniform" and not given.run.no_export:
        raise UsageError(
            f"--pattern {pruning.pattern} gives rows of different counts, which model.subp does not hold: add "
            "--no-export"
        )
    if given.model.sync_bn and rank.device.type != "cuda":
        raise UsageError(
            "--sync-bn needs GPUs: torch's synchronised batch norm takes no CPU tensors. On a CPU, leave it out: each "
            "rank normalises over its own batch, and running statistics are averaged after each epoch; or train on one "
            f"rank with the global batch: NPROC=1 and --batch-size {given.data.batch_size * rank.world_size}"
        )


def _arrange(model: nn.Module, config: Resolved, rank: Rank) -> nn.Module:
    """The model on its device, in the layout and with the batch norm that were asked for."""
    model.to(rank.device)
    if config.model.channels_last:
        to_channels_last(model)
    if config.model.sync_bn:
        # torch's own converter would drop the activation of timm's BatchNormAct2d.
        model = convert_sync_batchnorm(model)
    if config.model.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            name = config.model.name
            raise UsageError(f"--grad-checkpointing: timm's {name} does not support it") from error
    return model


def create_schedule(config: Resolved, updates_per_epoch: int) -> PruneSchedule:
    """The pruning schedule of the run.

    Raises:
        UsageError: the last mask update would come before the target rate is due.
    """
    pruning, epochs = config.pruning, config.optimization.float_epochs
    schedule = PruneSchedule(pruning.prune_rate, pruning.prune_start, pruning.prune_end, pruning.prune_schedule)
    interval = pruning.prune_interval
    if interval and updates_per_epoch:
        last = (epochs * updates_per_epoch - 1) // interval * interval / updates_per_epoch
        if last < schedule.end:
            raise UsageError(
                f"--prune-interval {interval}: the last mask update falls on epoch {last:.2f}, before the "
                f"schedule's end at {schedule.end:g}; update more often, or end earlier"
            )
    if (
        config.optimization.qat_epochs
        and not interval
        and schedule.end > epochs - 1
        and (schedule.rate or pruning.layer_rates)
    ):
        raise UsageError(
            f"--qat-epochs {config.optimization.qat_epochs}: masks stay as they are from epoch {epochs} on, and their "
            f"last update, at epoch {epochs - 1}, comes before the schedule's end at {schedule.end:g}; set an earlier "
            "--prune-end, or fewer --qat-epochs"
        )
    return schedule


def create_optimizer(config: ResolvedOptimization, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer.

    Raises:
        UsageError: no such optimizer, it does not take the flags, or it cannot make a step as this training does.
    """
    try:
        _try_optimizer(config, next(model.parameters()).device)
        return create_optimizer_v2(model, **optimizer_kwargs(config))
    except Exception as error:  # whatever optimizers, and libraries that some of them need, raise for what they lack
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--opt {config.opt}: {why}; timm.optim.list_optimizers() has all names") from error


def _try_optimizer(config: ResolvedOptimization, device: torch.device) -> None:
    """Make one step of a small model: much of what optimizers need (betas, closures, libraries) shows only then."""
    betas, info = config.opt_betas, get_optimizer_info(config.opt.lower().split("_")[-1])
    if betas and len(betas) != (expected := info.num_betas if info.has_betas else 0):
        raise ValueError(f"--opt-betas {' '.join(map(str, betas))}: this optimizer has {expected}")
    with kept_cpu_generators():
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).to(device)
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(config))
        if getattr(optimizer, "is_second_order", False):
            raise ValueError("it needs second derivatives, which this training does not compute")
        model(torch.randn(4, 2, 3, 3, device=device)).square().sum().backward()
        optimizer.step()


def create_scheduler(
    config: ResolvedOptimization, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> Scheduler:
    """timm's learning-rate schedule; ``none`` is one that changes nothing.

    Raises:
        UsageError: no such schedule, or it does not take the flags.
    """
    timing = scheduler_kwargs(config)
    if config.sched == "none":
        timing |= {"sched": "step", "decay_rate": 1.0, "warmup_epochs": 0}
    try:
        scheduler, _ = create_scheduler_v2(optimizer, **timing, updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"--sched {config.sched}: {str(error) or 'timm refuses its flags'}") from error
    if scheduler is None:  # earlier versions of timm say nothing
        raise UsageError(f"--sched {config.sched}: timm {timm.__version__} has no such schedule")
    return scheduler


def wrap(model: nn.Module, backend: str | None, rank: Rank) -> nn.Module:
    """The model as it is called in training: compiled if asked, and in DDP where there are ranks."""
    wrapped = torch.compile(model, backend=backend) if backend else model
    return wrapped if rank.world_size == 1 else data_parallel(wrapped, rank)


def create_loss(config: AugmentationConfig) -> nn.Module:
    """The training loss."""
    if config.bce_loss:
        return BinaryCrossEntropy(smoothing=0.0 if config.mixes else config.smoothing)
    if config.mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.smoothing) if config.smoothing else nn.CrossEntropyLoss()


def create_mixup(config: AugmentationConfig, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix on batches, or None."""
    if not config.mixes:
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=num_classes)
