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
            if interval and global_step % interval == 0 and training.quantized is None:
                training.update_masks(epoch + step / steps, global_step)
        # The last step of an epoch may have fewer batches than the others.
        in_step = min(accumulate, batches - step * accumulate)
        is_last = position == in_step - 1
        images, targets = _to_device(images, targets, training)
        if training.mixup is not None:
            images, targets = training.mixup(images, targets)
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
    new_images = progress.images - images_before
    # A GPU is behind; it is done where its numbers arrive.
    own = [loss_sum.item(), progress.images, new_images]
    seconds = time.perf_counter() - epoch_start
    sums = sum_over_ranks(own, device)
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
    return images, targets.to(training.rank.device, non_blocking=True)


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


class _Attempt:
    """An optimizer for one step of a GradScaler, which makes it, or leaves it out where gradients overflowed.

    It tells which; the scale would tell, too, but the host would have to wait for the device to read it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self.param_groups, self.taken = optimizer, optimizer.param_groups, False

    def step(self) -> None:
        self.taken = True
        self._optimizer.step()


def _optimizer_step(training: Training) -> Tensor:
    """One optimizer step; returns the gradient norm before clipping.

    A step that the scaler skips (overflow) changes neither weights nor the moving average, so the decay of masked
    weights, which only edits gradients, is skipped with it.
    """
    optimization, scaler, attempt = training.config.optimization, training.scaler, _Attempt(training.optimizer)
    parameters = [p for p in training.learner.parameters() if p.grad is not None]
    scaler.unscale_(attempt)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if optimization.clip_grad is not None:
        dispatch_clip_grad(parameters, value=optimization.clip_grad, mode=optimization.clip_mode)
    if training.quantized is None:
        training.pruner.decay_gradients()
    scaler.step(attempt)
    scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if attempt.taken:
        training.updates += 1
        if training.ema is not None:
            training.ema.update(training.model, step=training.updates)
    return norm


def _log_step(training: Training, loss: Tensor, norm: Tensor, global_step: int, epoch: int) -> None:
    rank = training.rank
    # All ranks have the same norm. They go together, for the host waits for the device with each transfer.
    sums = sum_over_ranks(torch.stack([loss.double(), norm.double()]), rank.device)
    value, norm_value = (total / rank.world_size for total in sums)
    if not training.scaler.is_enabled():  # which skips such steps
        check_finite(value, f"the loss is {value} at epoch {epoch}, step {global_step}")
    lr = training.optimizer.param_groups[0]["lr"]
    training.monitor.train_step(value, lr, norm_value, global_step)


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
    model.eval()
    sums, count = torch.zeros(4, dtype=torch.float64, device=device), 0
    for images, targets in training.monitor.progress(loader, description):
        images, targets = _to_device(images, targets, training)
        with training.autocast():
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        hits = logits.topk(min(5, logits.shape[1])).indices.eq(targets.unsqueeze(1))
        sums[:3] += torch.stack([loss, hits[:, 0].sum(), hits.sum()]).double()
        count += len(targets)
    sums[3] = count
    loss, top1, top5, count = sum_over_ranks(sums, device)
    return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
