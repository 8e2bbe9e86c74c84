"""The state of a run as a checkpoint holds it, and a run that goes on from one."""

from __future__ import annotations

import logging

import torch
from timm.scheduler.scheduler import Scheduler

from .agreement import gather
from .checkpoint import position
from .config import Resolved
from .errors import UsageError
from .training import Progress, Training

_logger = logging.getLogger(__name__)

# Flags that make another network, or an optimizer whose state does not fit.
_OF_THE_NETWORK = (
    *("model", "model_kwargs", "num_classes", "in_chans", "block_size", "prune_rate", "skip", "only", "opt"),
    *("layer_rates", "prune_linear", "regroup"),
)
# Flags that change nothing in what is learned.
_OF_THE_FOLDER = ("resume", "output", "experiment", "recovery_interval", "checkpoint_hist", "timeout")
# Flags that earlier checkpoints hold as they were given, which may be not at all.
_ONCE_OPEN = ("crop_pct", "interpolation")
# What flags decide in the optimizer's groups; the rest of a group, such as a count of steps, is the optimizer's own.
_DECIDED_BY_FLAGS = ("initial_lr", "weight_decay", "momentum", "nesterov", "betas", "eps")
# What timm leaves out of the state of its plateau schedule.
_PLATEAU_COUNTERS = ("num_bad_epochs", "cooldown_counter")


def restore(training: Training, checkpoint: dict) -> tuple[int, float | None]:
    """Load a checkpoint into a run; returns the epoch to go on with and the best top-1 so far.

    Raises:
        UsageError: it belongs to a run that this one cannot continue.
    """
    _check_resumable(training, checkpoint)
    in_epoch = checkpoint.get("in_epoch")
    training.model.load_state_dict(checkpoint["model"])
    if "quantized" in checkpoint:
        from .qat.phase import Quantized, enter

        enter(training, Quantized.of(checkpoint["quantized"], training.rank.device))
    _restore_optimizer(training, checkpoint)
    training.scaler.load_state_dict(checkpoint["scaler"])
    training.updates = checkpoint["updates"]
    training.pruner.kept_squares.update(checkpoint.get("kept_squares", {}))
    if training.ema:
        training.ema.module.load_state_dict(checkpoint["ema"])
    if in_epoch:
        own = in_epoch["ranks"][training.rank.rank]
        training.progress = Progress(in_epoch["step"], own["images"], own["loss_sum"])
        for buffers, values in zip(_own_buffers(training), own["buffers"], strict=True):
            for name, value in values.items():
                buffers[name].copy_(value)
    return position(checkpoint)[0], checkpoint["best"]


def _check_resumable(training: Training, checkpoint: dict) -> None:
    """Refuse what would be another network, or cannot go on from there; name what else is different."""
    now, then = training.config.flags(), Resolved.from_dict(checkpoint["config"]).flags()
    for flag in _OF_THE_NETWORK:
        if then[flag] != now[flag]:
            raise UsageError(
                f"--resume: the checkpoint was trained with --{flag.replace('_', '-')} {then[flag]}, this run has "
                f"{now[flag]}; use the same flag, or start anew"
            )
    if "quantized" in checkpoint or training.config.optimization.qat_epochs:
        from .qat.phase import check_resumable  # with it comes the runtime

        check_resumable(training, checkpoint)
    if "quantized" not in checkpoint and bool(training.ema) != ("ema" in checkpoint):
        raise UsageError("--resume: the run and its checkpoint must agree on --model-ema")
    epoch, step = position(checkpoint)
    if (epoch, step) > (training.config.optimization.all_epochs, 0):
        done = f"{epoch} epochs and {step} steps" if step else f"{epoch} epochs"
        raise UsageError(
            f"--epochs {now['epochs']}: the checkpoint has done {done} already; ask for more, or start anew"
        )
    if step:
        _check_same_steps(training.rank.world_size, now, then, checkpoint["in_epoch"])
    changed = [
        f"{flag} {then[flag]} -> {value}"
        for flag, value in now.items()
        if flag not in _OF_THE_FOLDER and value != then[flag] and not (flag in _ONCE_OPEN and then[flag] is None)
    ]
    if changed:
        _logger.warning("resuming with other flags: %s", ", ".join(changed))


def _check_same_steps(ranks: int, now: dict, then: dict, in_epoch: dict) -> None:
    """In the middle of an epoch, a step must be what it was."""
    now, then = now | {"ranks": ranks}, then | {"ranks": len(in_epoch["ranks"])}
    for what in ("ranks", "batch_size", "grad_accum_steps", "seed"):
        if then[what] != now[what]:
            raise UsageError(
                f"--resume: the checkpoint is from the middle of an epoch of a run with {what.replace('_', '-')} "
                f"{then[what]}, this one has {now[what]}; go on with the same, or from the end of an epoch (best.pt)"
            )


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
    saved = Resolved.from_dict(checkpoint["config"])
    keeps_rate = plateau is not None and saved.optimization.lr == training.config.optimization.lr
    for group, decided in zip(training.optimizer.param_groups, flags, strict=True):
        kept = _DECIDED_BY_FLAGS if keeps_rate else (*_DECIDED_BY_FLAGS, "lr")
        group.update({key: decided[key] for key in kept if key in decided})


def set_learning_rate(training: Training, epoch: int, global_step: int) -> None:
    """The learning rate of the schedule at a place in the run, as the steps until there would have left it."""
    if getattr(training.scheduler, "lr_scheduler", None) is not None:
        return
    if training.config.optimization.sched_on_updates:
        training.scheduler.step_update(global_step)
    elif epoch:
        training.scheduler.step(epoch)


def _scheduler_state(scheduler: Scheduler) -> dict | None:
    """What does not follow from the flags and the time."""
    plateau = getattr(scheduler, "lr_scheduler", None)
    return plateau and scheduler.state_dict() | {name: getattr(plateau, name) for name in _PLATEAU_COUNTERS}


def _own_buffers(training: Training) -> list[dict[str, torch.Tensor]]:
    """Buffers that differ between ranks until an epoch ends: the batch-norm statistics, and their moving average."""
    if training.quantized is not None:  # it has none
        return []
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
        "config": training.config.to_dict(),
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": _scheduler_state(training.scheduler),
        "scaler": training.scaler.state_dict(),
        "updates": training.updates,
    }
    if training.config.pruning.regroup:
        state["kept_squares"] = dict(training.pruner.kept_squares)
    if training.quantized is not None:
        state["quantized"] = training.quantized.state
    return state | ({"ema": training.ema.module.state_dict()} if training.ema else {})
