"""One epoch of training, and one pass of validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .agreement import sum_over_ranks
from .data.guarded import worker_deaths_named
from .errors import NotFiniteError
from .seeds import derive_seed, seed_all
from .training import Progress, Training


@worker_deaths_named()
def train_epoch(
    training: Training, loader: DataLoader, epoch: int, after_step: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Train for one epoch, or for what is left of it after ``training.progress``.

    Args:
        training: the run.
        loader: delivers the batches that are left.
        epoch: this epoch, from 0.
        after_step: called after each optimizer step, with ``training.progress`` up to date.

    Returns:
        Mean ``loss`` over all ranks and images, ``img_per_s`` of all ranks together, and ``data_time``, the share of
        the time spent waiting for data.
    """
    config, device, progress = training.config, training.rank.device, training.progress
    interval, by_update = config.pruning.prune_interval, config.optimization.sched_on_updates
    training.wrapped.train()
    accumulate = config.optimization.grad_accum_steps
    batches, steps = len(loader), math.ceil(len(loader) / accumulate)
    first_step, images_before, data_seconds = progress.step, progress.images, 0.0
    loss_sum = progress.loss_sum = torch.tensor(float(progress.loss_sum), dtype=torch.float64, device=device)
    epoch_start = waiting_since = time.perf_counter()
    for batch, (images, targets) in enumerate(
        training.monitor.progress(loader, f"epoch {epoch}"), start=first_step * accumulate
    ):
        data_seconds += time.perf_counter() - waiting_since
        step, position = divmod(batch, accumulate)
        global_step = epoch * steps + step
        if position == 0:
            seed_all(derive_seed(config.run.seed, global_step, training.rank.rank))
            if interval and global_step % interval == 0:
                training.update_masks(epoch + step / steps, global_step)
        # The last step of an epoch may have fewer batches than the others.
        in_step = min(accumulate, batches - step * accumulate)
        is_last = position == in_step - 1
        images, targets = _to_device(images, targets, training)
        loss = _backward(training, images, targets, in_step, is_last)
        loss_sum += loss.double() * len(images)
        progress.images += len(images)
        if is_last:
            norm = _optimizer_step(training)
            if by_update:
                training.scheduler.step_update(global_step + 1)
            if global_step % config.run.log_interval == 0:
                _log_step(training, loss, norm, global_step, epoch)
            progress.step = step + 1
            after_step()
        waiting_since = time.perf_counter()
    seconds = time.perf_counter() - epoch_start
    new_images = progress.images - images_before
    sums = sum_over_ranks([loss_sum.item(), progress.images, new_images], device)
    training.progress = Progress()
    metrics = {"loss": sums[0] / sums[1], "img_per_s": sums[2] / seconds, "data_time": data_seconds / seconds}
    if new_images:
        training.image_rates.append(metrics["img_per_s"])
        training.data_shares.append(metrics["data_time"])
    training.monitor.speed(metrics["img_per_s"], metrics["data_time"], (epoch + 1) * steps - 1)
    return metrics


def _to_device(images: Tensor, targets: Tensor, training: Training) -> tuple[Tensor, Tensor]:
    memory_format = torch.channels_last if training.config.model.channels_last else torch.contiguous_format
    images = images.to(training.rank.device, non_blocking=True, memory_format=memory_format)
    targets = targets.to(training.rank.device, non_blocking=True)
    return training.mixup(images, targets) if training.mixup else (images, targets)


def _backward(training: Training, images: Tensor, targets: Tensor, in_step: int, is_last: bool) -> Tensor:
    """Forward and backward of one batch; gradients are averaged over ranks with the last batch of a step only."""
    keep_local = isinstance(training.wrapped, nn.parallel.DistributedDataParallel) and not is_last
    with training.wrapped.no_sync() if keep_local else nullcontext():
        with training.autocast():
            logits = training.wrapped(images)
            loss = training.loss(logits, targets)
            if training.distillation is not None:
                loss = training.distillation(loss, logits, images)
        training.scaler.scale(loss / in_step).backward()
    return loss.detach()


def _optimizer_step(training: Training) -> Tensor:
    """One optimizer step; returns the gradient norm before clipping.

    A step that the scaler skips (overflow) changes neither weights nor the moving average, so the decay of masked
    weights, which only edits gradients, is skipped with it.
    """
    optimization, scaler = training.config.optimization, training.scaler
    parameters = [p for p in training.model.parameters() if p.grad is not None]
    scaler.unscale_(training.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if optimization.clip_grad is not None:
        dispatch_clip_grad(parameters, value=optimization.clip_grad, mode=optimization.clip_mode)
    training.pruner.decay_gradients()
    scale = scaler.get_scale()
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if not scaler.is_enabled() or scaler.get_scale() >= scale:
        training.updates += 1
        if training.ema is not None:
            training.ema.update(training.model, step=training.updates)
    return norm


def _log_step(training: Training, loss: Tensor, norm: Tensor, global_step: int, epoch: int) -> None:
    rank, device = training.rank, training.rank.device
    value = sum_over_ranks([loss.item()], device)[0] / rank.world_size
    if not training.scaler.is_enabled():  # which skips such steps
        check_finite(value, f"the loss is {value} at epoch {epoch}, step {global_step}")
    lr = training.optimizer.param_groups[0]["lr"]
    training.monitor.train_step(value, lr, norm.item(), global_step)


def check_finite(loss: float, where: str) -> None:
    """Stop a training that has diverged, before it is saved over what is good.

    Raises:
        NotFiniteError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise NotFiniteError(f"{where}: lower --lr, or set --clip-grad; the last checkpoint is in last.pt")


@worker_deaths_named()
@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader, training: Training, description: str = "val") -> dict[str, float]:
    """Loss, top-1 and top-5 (percent) over the validation images of all ranks, each counted once.

    Hits are counted, not averaged, so that the figures are the same at any world size.
    """
    device = training.rank.device
    memory_format = torch.channels_last if training.config.model.channels_last else torch.contiguous_format
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for images, targets in training.monitor.progress(loader, description):
        images, targets = images.to(device, memory_format=memory_format), targets.to(device)
        with training.autocast():
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        hits = logits.topk(min(5, logits.shape[1])).indices.eq(targets.unsqueeze(1))
        sums += torch.stack([loss, hits[:, 0].sum(), hits.sum(), loss.new_tensor(len(targets))]).double()
    loss, top1, top5, count = sum_over_ranks(sums.tolist(), device)
    return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
