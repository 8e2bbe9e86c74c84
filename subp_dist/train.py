"""Train a timm CNN with soft uniform block pruning; the entry that torchrun starts on every rank.

``python -m subp_dist.train MODEL --data-dir DIR`` runs on one process; ``launch/train.sh`` starts one per GPU.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from timm.utils import distribute_bn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

from .agreement import on_primary
from .build import build_training, check_machine, create_model_and_data, plan_model
from .checkpoint import (
    BEST,
    NEWEST,
    PREVIOUS,
    keep_history,
    load_checkpoint,
    save_checkpoint,
    save_plain_weights,
    write_errors_explained,
)
from .config import TrainConfig
from .data import Data, ResumableLoader
from .data.check import check_data
from .errors import DataCheckError, Stopped, UnreadError, UsageError, report_usage_errors
from .flags import build_parser
from .folder_lock import FolderLock
from .loop import check_finite, train_epoch, validate
from .memory import keep_freed_memory
from .models import model_arguments
from .monitor import Monitor
from .opening import opening_lines
from .options import parse_flags
from .parametrization import plain_state_dict
from .process_group import Rank, closing_process_group, init_process_group, lost_ranks_named
from .report import run_report
from .resolve import resolve
from .resume import checkpoint_state, restore, set_learning_rate
from .run_folder import claim_folder, find_checkpoint, folder_of, start_folder
from .stopping import StopRequest, end_with_launcher
from .training import Training, about_network

_logger = logging.getLogger(__name__)


@record
@report_usage_errors
def cli() -> None:
    """Console entry: parse the command line and train."""
    end_with_launcher()
    keep_freed_memory()
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_primary else logging.ERROR)
    try:
        flags = parse_flags(build_parser())
        given = TrainConfig.from_flags(vars(flags))
        if not flags.check_data:
            main(given)
        elif is_primary:
            check(given)
    except KeyboardInterrupt as interrupt:
        hint = "interrupted; it goes on from its last checkpoint with --resume auto"
        raise KeyboardInterrupt(hint) from interrupt


def check(given: TrainConfig) -> None:
    """Try all data instead of training with it.

    Raises:
        DataCheckError: something is wrong with it, which has been listed.
    """
    wrong = check_data(given.data)
    if wrong:
        raise DataCheckError(
            f"--check-data: {wrong} {'thing is' if wrong == 1 else 'things are'} wrong, named above; pictures that "
            "cannot be read are left out of a training by --broken skip"
        )
    print("--check-data: nothing is wrong")


def main(given: TrainConfig) -> Path:
    """Run one training from what was asked for to the exported model; returns the run's folder.

    Raises:
        UsageError: the input is at fault, and nothing has been written; or the run's folder cannot be written any more.
        DivergedError, LostRankError: the ranks do not agree, or one is gone.
        Stopped: SIGTERM was received, and the run has been saved.
    """
    folder = folder_of(given)
    with lost_ranks_named(), closing_process_group(), FolderLock(folder) as lock:
        try:
            rank = init_process_group(given.run.device, given.run.timeout)
            on_primary(lock.take)
            checkpoint = find_checkpoint(folder, given.run.resume)
            training, data = set_up(given, rank, resumed=checkpoint is not None)
            seed, channels_last = given.run.seed, given.model.channels_last
            loaders = data.train_loader(rank, seed, channels_last), data.val_loader(rank, channels_last)
            first_epoch, best = restore(training, checkpoint) if checkpoint else (0, None)
            on_primary(lambda: claim_folder(folder, lock))
            best = start_folder(folder, given, training.config, checkpoint, best)
        except ValueError as error:
            raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
        run = Run(training, data, loaders, folder, best, checkpoint["val"] if checkpoint else None)
        if checkpoint:
            set_learning_rate(training, first_epoch, run.global_step(first_epoch))
        for line in opening_lines(training, given, run.steps, folder):
            _logger.info("%s", line)
        training.monitor = Monitor(folder if rank.is_primary else None, first_epoch, run.global_step(first_epoch))
        try:
            run.epochs(first_epoch)
            on_primary(lambda: finish(training, data, folder))
        finally:
            training.monitor.close()
    return folder


def set_up(given: TrainConfig, rank: Rank, resumed: bool = False) -> tuple[Training, Data]:
    """A run before its first step, and its data: here the configuration becomes a whole.

    Raises:
        ValueError: the input is at fault.
    """
    model, data = create_model_and_data(given)
    check_machine(given, rank)
    planned = plan_model(given, model, data.sizes)
    config = resolve(given, data, planned.rate, rank.world_size, rank.device.type)
    return build_training(config, rank, planned, data, resumed), data


class Run:
    """Trains, validates and saves, epoch by epoch.

    Args:
        training: all parts of the run.
        data: what is learned from.
        loaders: for training and validation.
        folder: where checkpoints go.
        best: the best top-1 so far, at the target rate.
        val_metrics: of the last validation.
    """

    def __init__(
        self,
        training: Training,
        data: Data,
        loaders: tuple[ResumableLoader, DataLoader],
        folder: Path,
        best: float | None,
        val_metrics: dict[str, float] | None,
    ) -> None:
        self.training, self.data, self.folder = training, data, folder
        self.train_loader, self.val_loader = loaders
        self.best, self.val_metrics = best, val_metrics
        self.steps = -(-len(self.train_loader) // training.config.optimization.grad_accum_steps)

    def global_step(self, epoch: int) -> int:
        """Optimizer steps of the whole run that are done, in an epoch."""
        return epoch * self.steps + self.training.progress.step

    def epochs(self, first_epoch: int) -> None:
        """Run from an epoch, or from where ``training.progress`` is in it, to the end.

        Raises:
            Stopped: SIGTERM was received by a rank; the run has been saved.
        """
        config = self.training.config
        with StopRequest(config.run.timeout) as stop:
            for epoch in range(first_epoch, config.optimization.all_epochs):
                if epoch == config.optimization.float_epochs and self.training.quantized is None:
                    self._quantize(epoch)
                self._epoch(epoch, stop)
                if epoch + 1 < config.optimization.all_epochs and stop.poll():
                    raise Stopped(f"stopped and saved after epoch {epoch}; --resume auto goes on there")

    def _quantize(self, epoch: int) -> None:
        """Begin the epochs with fake quantization, of which the best is no worse than what they begin with."""
        from .qat import phase  # with it comes the runtime

        assert self.val_metrics is not None
        about = about_network(self.training.config, self.data)
        quantized = phase.begin(self.training, self.data, about, epoch, self.val_metrics)
        phase.enter(self.training, quantized)
        set_learning_rate(self.training, epoch, self.global_step(epoch))
        self.val_metrics = evaluate(self.training, self.val_loader)
        self.best = self.val_metrics["top1"]
        self._save(epoch - 1, is_best=True)
        self.training.monitor.line(
            f"fake quantization from epoch {epoch} on: {phase.said_of(quantized)}; top-1 {self.best:.2f} %, untrained"
        )

    def _epoch(self, epoch: int, stop: StopRequest) -> None:
        training, monitor = self.training, self.training.monitor
        config, progress = training.config, training.progress
        started = time.perf_counter()
        self.train_loader.set_epoch(epoch, first_batch=progress.step * config.optimization.grad_accum_steps)
        if not config.pruning.prune_interval and progress.step == 0 and training.quantized is None:
            training.update_masks(epoch, self.global_step(epoch))
        train_metrics = train_epoch(training, self.train_loader, epoch, lambda: self._after_step(epoch, stop))
        self.val_metrics = evaluate(training, self.val_loader)
        loss = self.val_metrics["loss"]
        check_finite(loss, f"the validation loss is {loss} after epoch {epoch}")
        training.scheduler.step(epoch + 1, self.val_metrics["top1"])
        # A model that is denser than asked for must not become the best one.
        top1 = self.val_metrics["top1"]
        is_best = training.pruner.at_target and (self.best is None or top1 >= self.best)
        self.best = top1 if is_best else self.best
        row = {"epoch": epoch}
        row |= {f"train_{key}": value for key, value in train_metrics.items()}
        row |= {f"val_{key}": value for key, value in self.val_metrics.items()}
        row |= {"sparsity": training.pruner.pruned_share(), "lr": training.optimizer.param_groups[0]["lr"]}
        row["seconds"] = time.perf_counter() - started
        monitor.validation(self.val_metrics, self.global_step(epoch + 1) - 1)
        self._save(epoch, is_best, row)
        monitor.line(
            f"epoch {epoch:3d}  loss {row['train_loss']:.3f}  val {row['val_loss']:.3f}  "
            f"top-1 {row['val_top1']:.2f} %  pruned {100 * row['sparsity']:.1f} %  "
            f"{row['train_img_per_s']:.0f} images/s  {row['seconds']:.1f} s{'  best' if is_best else ''}"
        )

    def _after_step(self, epoch: int, stop: StopRequest) -> None:
        step, interval = self.training.progress.step, self.training.config.run.recovery_interval
        if stop.poll():
            self._save(epoch)
            raise Stopped(
                f"stopped and saved in epoch {epoch}, after {step} of {self.steps} steps; --resume auto goes on there"
            )
        if interval and self.global_step(epoch) % interval == 0 and step < self.steps:
            self._save(epoch)

    def _save(self, epoch: int, is_best: bool = False, row: dict | None = None) -> None:
        """Write the checkpoint, after an epoch with its row of figures, on rank 0; if that fails, every rank ends."""
        state = checkpoint_state(self.training, epoch, self.best, self.val_metrics)

        @write_errors_explained(self.folder)
        def write() -> None:
            # The newest checkpoint last: a run that is killed before it does the work since the one before again, to
            # the same end, and drops what it had recorded of it.
            if row is not None:
                self.training.monitor.summary(row)
            self.training.monitor.flush()
            if is_best:
                save_checkpoint(self.folder / BEST, state)
            save_checkpoint(self.folder / NEWEST, state, self.folder / PREVIOUS)
            if row is not None:
                keep_history(self.folder, epoch, self.training.config.run.checkpoint_hist)

        on_primary(write)


def evaluate(training: Training, val_loader: DataLoader) -> dict[str, float]:
    """Validate the network that would be exported: the moving average where there is one, or the integers.

    Returns:
        ``loss``, ``top1`` and ``top5``; with a moving average also those of the model itself, as ``raw_*``.
    """
    if training.quantized is not None:
        metrics = validate(training.learner, val_loader, training, "val int8")
        # The columns of the epochs before.
        return metrics | ({f"raw_{key}": v for key, v in metrics.items()} if training.config.model.model_ema else {})
    world_size, reduce = training.rank.world_size, training.config.model.dist_bn == "reduce"
    if world_size > 1:
        distribute_bn(training.model, world_size, reduce)
    metrics = validate(training.model, val_loader, training)
    if training.ema is None:
        return metrics
    if world_size > 1:
        distribute_bn(training.ema.module, world_size, reduce)
    raw = {f"raw_{key}": value for key, value in metrics.items()}
    return validate(training.ema.module, val_loader, training, "val ema") | raw


def finish(training: Training, data: Data, folder: Path) -> None:
    """Export the best model of the run and write its report, on rank 0.

    Raises:
        UsageError: the folder cannot be written any more.
    """
    with write_errors_explained(folder):
        _finish(training, data, folder)


def _finish(training: Training, data: Data, folder: Path) -> None:
    config = training.config
    try:
        checkpoint = load_checkpoint(folder / (BEST if (folder / BEST).exists() else NEWEST))
    except UsageError as error:
        _logger.warning("%s; exporting the last epoch instead", error)
        checkpoint = load_checkpoint(folder / NEWEST)
    model = training.model
    model.load_state_dict(checkpoint["ema" if training.ema else "model"])
    model.to("cpu").eval()
    metadata = about_network(config, data)
    text = {key: json.dumps(value) for key, value in metadata.items() if value is not None}
    save_plain_weights(folder / "model.safetensors", plain_state_dict(model), text)
    for name in ("model-int8.subp", "model-bfloat16.subp"):
        (folder / name).unlink(missing_ok=True)  # of the weights before this part of the run
    quantization = None if config.run.no_export else _export(training, data, folder, checkpoint, metadata)
    report = run_report(training, folder, checkpoint, quantization)
    monitor = training.monitor
    results = {"top1": report["accuracy"]["top1"], "kept_macs": report["macs"]["kept"]}
    monitor.finish(training.pruner.report(training.macs), training.pruner.masks, config.flags(), results)
    monitor.flush()
    with suppress(UnreadError):  # the run is complete
        _tell_end(monitor, report, checkpoint, folder)


def _tell_end(monitor: Monitor, report: dict, checkpoint: dict, folder: Path) -> None:
    if checkpoint["epoch"] + 1 == checkpoint.get("quantized", {}).get("epoch"):
        monitor.line(
            f"no epoch with fake quantization came up to int8 after training, top-1 {checkpoint['val']['top1']:.2f} %, "
            "which is exported; begin them at a lower learning rate: a lower --lr, or more --epochs before them"
        )
    monitor.line(
        f"kept {report['macs']['kept'] / 1e6:.1f} of {report['macs']['dense'] / 1e6:.1f} M MACs; best top-1 "
        f"{report['accuracy']['top1']:.2f} % (epoch {checkpoint['epoch']}); everything is in {folder}"
    )


def _export(training: Training, data: Data, folder: Path, checkpoint: dict, metadata: dict) -> dict | None:
    """Write the network in float32, and in the second type that was asked for; returns what int8 came to, if that."""
    # With them comes the runtime, which a training without an export does not need.
    from .export import Network, export_model
    from .export.of_run import export_run_bfloat16, export_run_int8, export_run_trained

    config, model = training.config, training.model
    export_model(model, torch.zeros(2, *data.input_size), folder / "model.subp", metadata=metadata)
    arguments = model_arguments(config.model, data.num_classes, config.data.in_chans)
    network = Network(model, data.input_size, arguments, metadata)
    if "quantized" in checkpoint:
        return export_run_trained(checkpoint["quantized"], folder / "model-int8.subp")
    if config.run.export_dtype == "bfloat16":
        export_run_bfloat16(network, folder / "model-bfloat16.subp")
    if config.run.export_dtype == "int8":
        return export_run_int8(network, data, folder / "model-int8.subp")
    return None


if __name__ == "__main__":
    cli()
