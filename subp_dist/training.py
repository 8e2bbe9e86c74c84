"""All parts of a run, put together from the flags, and their state in a checkpoint."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from .agreement import gather, on_primary
from .checkpoint import position
from .data import Data, create_data
from .distillation import Distillation, create_distillation
from .errors import UsageError
from .export import check_exportable
from .flops import count_macs, rate_for_macs
from .layer_report import planned_layers
from .layer_table import format_table
from .models import (
    check_model_name,
    create_model,
    load_initial_weights,
    model_arguments,
    to_channels_last,
    wrong_images,
)
from .monitor import Monitor
from .options import layer_flags, parse_macs
from .plan import LayerPlan, check_prunable, check_worth, kept_macs_at, plan_layers
from .process_group import Rank, data_parallel
from .pruner import SUBPPruner
from .schedule import PruneSchedule

_logger = logging.getLogger(__name__)


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
        macs: dense MACs per layer.
        distillation: the teacher, where there is one.
        wrapped: the same model as it is called in training (compiled, in DDP).
        scaler: disabled unless the precision needs it.
        progress: how far the epoch is.
        image_rates, data_shares: images/s, and share of the time spent waiting for data, of each epoch.
        updates: optimizer steps that really happened, for the moving average.
        mask_seconds: time spent in ``mask_updates`` mask updates.
    """

    args: argparse.Namespace
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
    progress: Progress = field(default_factory=Progress)
    updates: int = 0
    mask_seconds: float = 0.0
    mask_updates: int = 0
    image_rates: list[float] = field(default_factory=list)
    data_shares: list[float] = field(default_factory=list)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return torch.autocast(self.rank.device.type, getattr(torch, self.args.amp_dtype), enabled=self.args.amp)

    def update_masks(self, epoch: float, global_step: int) -> None:
        """Update the masks for a time in epochs and record what happened."""
        start = time.perf_counter()
        update = self.pruner.step(epoch)
        if self.ema is not None:
            # Its own copy would wait for the next optimizer step that is not skipped.
            self.pruner.copy_masks_to(self.ema.module)
        self.mask_seconds += time.perf_counter() - start
        self.mask_updates += 1
        pictures = epoch == int(epoch) and int(epoch) % self.args.image_interval == 0
        layers = self.pruner.report(self.macs)
        self.monitor.mask_update(update, layers, self.pruner.masks, global_step, pictures)


def create_model_and_data(args: argparse.Namespace) -> tuple[nn.Module, Data]:
    """The timm model for the data; what the data decides is written back into ``args``.

    Raises:
        UsageError: no such model or data, or they do not fit.
    """
    check_model_name(args.model)
    data = create_data(args, timm.get_pretrained_cfg(args.model).to_dict())
    args.num_classes, args.in_chans, args.img_size = data.num_classes, data.input_size[0], data.input_size[1]
    args.mean, args.std = list(data.mean), list(data.std)
    random_seed(args.seed)
    model = create_model(args.model, **model_arguments(args))
    if args.initial_checkpoint:
        load_initial_weights(model, args.model, Path(args.initial_checkpoint))
    return model, data


def prepare(args: argparse.Namespace, rank: Rank, model: nn.Module, data: Data) -> Training:
    """Everything of a run that does not depend on a checkpoint; what follows from other flags is written into ``args``.

    Raises:
        ValueError: the flags do not fit the model or each other.
    """
    _check_machine(args, rank)
    sides = {side for _, side in data.resolutions.steps} if data.resolutions else set()
    sizes = [data.input_size, *((data.input_size[0], side, side) for side in sorted(sides - {data.input_size[1]}))]
    for size in reversed(sizes):
        try:
            macs = count_macs(model, size)
        except (RuntimeError, AssertionError) as error:
            raise wrong_images(args.model, size, error) from error
    # As torch itself does: CPUs compute in float16 many times slower than in float32.
    args.amp_dtype = args.amp_dtype or ("bfloat16" if rank.device.type == "cpu" else "float16")
    updates_per_epoch = -(-(len(data.train) // rank.world_size // args.batch_size) // args.grad_accum_steps)
    plan = plan_of(args, model)
    check_plan(args, plan, macs)
    if args.target_macs:
        args.prune_rate = rate_of(args, plan, macs)
        _logger.info(
            "rate %.4f\n%s", args.prune_rate, format_table(planned_layers(plan, macs, args.prune_rate, args.block_size))
        )
    schedule = create_schedule(args, updates_per_epoch)
    if not args.no_export:
        on_primary(lambda: check_exportable(model, data.input_size))
    model.to(rank.device)
    if args.channels_last:
        to_channels_last(model)
    if args.sync_bn:
        # torch's own converter would drop the activation of timm's BatchNormAct2d.
        model = convert_sync_batchnorm(model)
    if args.grad_checkpointing:
        _enable_grad_checkpointing(model, args.model)
    distillation = create_distillation(args, sizes)
    keys = ("block_size", "criterion", "pattern", "alpha", "tau", "score_latent", "sr_ste_decay", "seed")
    pruner = SUBPPruner(model, schedule, **{key: getattr(args, key) for key in keys}, **layer_flags(args))
    optimizer = create_optimizer(args, model, rank.world_size)
    scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)
    use_scaler = args.amp and args.amp_dtype == "float16"
    return Training(
        args=args,
        rank=rank,
        model=model,
        wrapped=wrap(model, args, rank),
        pruner=pruner,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(rank.device.type, enabled=use_scaler),
        loss=create_loss(args),
        macs=macs,
        mixup=create_mixup(args),
        ema=ModelEmaV3(model, args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None,
        monitor=Monitor(None),
        distillation=distillation and distillation.to(rank.device),
    )


def plan_of(args: argparse.Namespace, model: nn.Module) -> list[LayerPlan]:
    """The plan of a model for the flags.

    Raises:
        ValueError: a pattern matches no layer.
    """
    return plan_layers(model, **layer_flags(args))


def check_plan(args: argparse.Namespace, plan: list[LayerPlan], macs: dict[str, int]) -> None:
    """Refuse a model with nothing, or next to nothing, to prune; who names the layers himself knows how few they are.

    Raises:
        ValueError: it is refused.
    """
    check_prunable(plan, args.model)
    if args.prune_rate and not args.only:
        check_worth(plan, macs, args.model)


def rate_of(args: argparse.Namespace, plan: list[LayerPlan], macs: dict[str, int]) -> float:
    """The uniform rate: ``--prune-rate``, or what reaches ``--target-macs``.

    Raises:
        ValueError: no rate reaches the target.
    """
    return (
        rate_for_macs(parse_macs(args.target_macs), kept_macs_at(plan, macs)) if args.target_macs else args.prune_rate
    )


def _enable_grad_checkpointing(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise UsageError(f"--grad-checkpointing: timm's {name} does not support it") from error


def _check_machine(args: argparse.Namespace, rank: Rank) -> None:
    if args.torchcompile and args.torchcompile not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UsageError(f"--torchcompile {args.torchcompile}: no such backend; usual ones are {known}")
    if args.pattern != "uniform" and not args.no_export:
        raise UsageError(
            f"--pattern {args.pattern} gives rows of different counts, which model.subp does not hold: add --no-export"
        )
    if args.sync_bn and rank.device.type != "cuda":
        raise UsageError(
            "--sync-bn needs GPUs: torch's synchronised batch norm takes no CPU tensors. On a CPU, leave it out: each "
            "rank normalises over its own batch, and running statistics are averaged after each epoch; or train on one "
            f"rank with the global batch: NPROC=1 and --batch-size {args.batch_size * rank.world_size}"
        )


def create_schedule(args: argparse.Namespace, updates_per_epoch: int) -> PruneSchedule:
    """The pruning schedule of the run.

    Raises:
        ValueError: the target rate cannot be reached within the run.
    """
    schedule = PruneSchedule.for_run(
        args.prune_rate, args.epochs, args.prune_start, args.prune_end, args.prune_schedule
    )
    args.prune_start, args.prune_end = schedule.start, schedule.end
    if args.prune_interval and updates_per_epoch:
        last = (args.epochs * updates_per_epoch - 1) // args.prune_interval * args.prune_interval / updates_per_epoch
        if last < schedule.end:
            raise UsageError(
                f"--prune-interval {args.prune_interval}: the last mask update falls on epoch {last:.2f}, before the "
                f"schedule's end at {schedule.end:g}; update more often, or end earlier"
            )
    return schedule


def create_optimizer(args: argparse.Namespace, model: nn.Module, world_size: int) -> torch.optim.Optimizer:
    """timm's optimizer; the learning rate is scaled with the global batch unless it is given.

    Raises:
        UsageError: no such optimizer, or it does not take the flags.
    """
    if args.lr is None:
        args.lr = args.lr_base * args.batch_size * world_size * args.grad_accum_steps / args.lr_base_size
    try:
        return create_optimizer_v2(model, **optimizer_kwargs(args))
    except (ValueError, TypeError) as error:
        raise UsageError(f"--opt {args.opt}: {error}; timm.optim.list_optimizers() has all names") from error


def wrap(model: nn.Module, args: argparse.Namespace, rank: Rank) -> nn.Module:
    """The model as it is called in training: compiled if asked, and in DDP where there are ranks."""
    wrapped = torch.compile(model, backend=args.torchcompile) if args.torchcompile else model
    return wrapped if rank.world_size == 1 else data_parallel(wrapped, rank)


def create_loss(args: argparse.Namespace) -> nn.Module:
    """The training loss for the flags."""
    mixes = args.mixup > 0 or args.cutmix > 0
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=0.0 if mixes else args.smoothing)
    if mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def create_mixup(args: argparse.Namespace) -> Mixup | None:
    """timm's mixup and cutmix on batches, or None."""
    if not (args.mixup > 0 or args.cutmix > 0):
        return None
    return Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=args.num_classes)


def restore(training: Training, checkpoint: dict) -> tuple[int, float | None]:
    """Load a checkpoint into a run; returns the epoch to go on with and the best top-1 so far.

    Raises:
        UsageError: it belongs to a run that this one cannot continue.
    """
    args, saved = training.args, checkpoint["args"]
    fixed = ("model", "model_kwargs", "num_classes", "in_chans", "block_size", "prune_rate", "skip", "only", "opt")
    for flag in (*fixed, "layer_rates", "prune_linear"):
        here = getattr(args, flag)
        if saved.get(flag, here) != here:
            raise UsageError(
                f"--resume: the checkpoint was trained with --{flag.replace('_', '-')} {saved[flag]}, this run has "
                f"{here}; use the same flag, or start anew"
            )
    if bool(training.ema) != ("ema" in checkpoint):
        raise UsageError("--resume: the run and its checkpoint must agree on --model-ema")
    in_epoch = checkpoint.get("in_epoch")
    if in_epoch:
        _check_same_steps(training, saved, in_epoch)
    ignored = ("resume", "output", "experiment", "config", "recovery_interval", "timeout")
    changed = [key for key, value in vars(args).items() if key not in ignored and saved.get(key) != value]
    if changed:
        _logger.warning(
            "resuming with other flags: %s", ", ".join(f"{k} {saved.get(k)} -> {vars(args)[k]}" for k in changed)
        )
    training.model.load_state_dict(checkpoint["model"])
    _restore_optimizer(training, checkpoint)
    training.scaler.load_state_dict(checkpoint["scaler"])
    training.updates = checkpoint["updates"]
    if training.ema:
        training.ema.module.load_state_dict(checkpoint["ema"])
    if in_epoch:
        own = in_epoch["ranks"][training.rank.rank]
        training.progress = Progress(in_epoch["step"], own["images"], own["loss_sum"])
        for buffers, values in zip(_own_buffers(training), own["buffers"], strict=True):
            for name, value in values.items():
                buffers[name].copy_(value)
    return position(checkpoint)[0], checkpoint["best"]


# What flags decide in the optimizer's groups; the rest of a group, such as a count of steps, is the optimizer's own.
_DECIDED_BY_FLAGS = ("initial_lr", "weight_decay", "momentum", "nesterov", "betas", "eps")
# What timm leaves out of the state of its plateau schedule.
_PLATEAU_COUNTERS = ("num_bad_epochs", "cooldown_counter")


def _restore_optimizer(training: Training, checkpoint: dict) -> None:
    """Load the optimizer's state, and keep what the flags of now decide: the rates, the decay, the schedule.

    timm's schedules are functions of the time, so that ``set_learning_rate`` is all they need; the one that waits for
    a plateau has a state, and the rate that it came to.
    """
    flags = [dict(group) for group in training.optimizer.param_groups]
    training.optimizer.load_state_dict(checkpoint["optimizer"])
    plateau = getattr(training.scheduler, "lr_scheduler", None)
    if plateau is not None:
        training.scheduler.load_state_dict(checkpoint["scheduler"])
        for name in _PLATEAU_COUNTERS:
            setattr(plateau, name, checkpoint["scheduler"][name])
    keeps_rate = plateau is not None and checkpoint["args"]["lr"] == training.args.lr
    for group, decided in zip(training.optimizer.param_groups, flags, strict=True):
        kept = _DECIDED_BY_FLAGS if keeps_rate else (*_DECIDED_BY_FLAGS, "lr")
        group.update({key: decided[key] for key in kept if key in decided})


def set_learning_rate(training: Training, epoch: int, global_step: int) -> None:
    """The learning rate of the schedule at a place in the run, as the steps until there would have left it."""
    if getattr(training.scheduler, "lr_scheduler", None) is not None:
        return
    if training.args.sched_on_updates:
        training.scheduler.step_update(global_step)
    elif epoch:
        training.scheduler.step(epoch)


def _scheduler_state(scheduler: Scheduler) -> dict | None:
    """What does not follow from the flags and the time."""
    plateau = getattr(scheduler, "lr_scheduler", None)
    return plateau and scheduler.state_dict() | {name: getattr(plateau, name) for name in _PLATEAU_COUNTERS}


def _check_same_steps(training: Training, saved: dict, in_epoch: dict) -> None:
    """In the middle of an epoch, a step must be what it was."""
    now = vars(training.args) | {"ranks": training.rank.world_size}
    then = saved | {"ranks": len(in_epoch["ranks"])}
    for what in ("ranks", "batch_size", "grad_accum_steps", "seed"):
        if then[what] != now[what]:
            raise UsageError(
                f"--resume: the checkpoint is from the middle of an epoch of a run with {what.replace('_', '-')} "
                f"{then[what]}, this one has {now[what]}; go on with the same, or from the end of an epoch (best.pt)"
            )


def _own_buffers(training: Training) -> list[dict[str, torch.Tensor]]:
    """Buffers that differ between ranks until an epoch ends: the batch-norm statistics, and their moving average."""
    models = [training.model] + ([training.ema.module] if training.ema else [])
    return [{name: b for name, b in model.named_buffers() if b.is_floating_point()} for model in models]


def checkpoint_state(training: Training, epoch: int, best: float | None, val_metrics: dict[str, float] | None) -> dict:
    """All that ``restore`` needs, after an epoch or in the middle of one; to be called on every rank.

    ``in_epoch`` is None after an epoch; else it has the ``step`` and what differs between ``ranks``.
    """
    in_epoch = None
    if training.progress.step:
        buffers = [{name: b.cpu() for name, b in buffers.items()} for buffers in _own_buffers(training)]
        progress = training.progress
        own = {"images": progress.images, "loss_sum": float(progress.loss_sum), "buffers": buffers}
        in_epoch = {"step": progress.step, "ranks": gather(own)}
    state = {
        "epoch": epoch,
        "in_epoch": in_epoch,
        "best": best,
        "val": val_metrics,
        "args": vars(training.args),
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": _scheduler_state(training.scheduler),
        "scaler": training.scaler.state_dict(),
        "updates": training.updates,
    }
    return state | ({"ema": training.ema.module.state_dict()} if training.ema else {})
