"""Train a timm CNN with soft uniform block pruning; the entry that torchrun starts on every rank.

``python -m subp_dist.train MODEL --data-dir DIR`` runs on one process; ``launch/train.sh`` starts one per GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path

import torch.distributed as dist
import yaml
from timm.utils import distribute_bn, random_seed
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import DataLoader

from .checkpoint import load_checkpoint, save_checkpoint, save_plain_weights
from .data import Data
from .distributed import init_process_group, on_primary
from .errors import UsageError, report_usage_errors
from .export import export_subp
from .loop import train_epoch, validate
from .monitor import Monitor
from .options import parse_args
from .parametrization import plain_state_dict
from .report import run_report
from .training import Training, checkpoint_state, create_model_and_data, prepare, restore


@record
@report_usage_errors
def cli() -> None:
    """Console entry: parse the command line and train."""
    is_primary = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.INFO if is_primary else logging.ERROR)
    main(parse_args())


def main(args: argparse.Namespace) -> Path:
    """Run one training from the flags to the exported model; returns the run's folder.

    Raises:
        UsageError: the input is at fault; nothing has been written.
    """
    try:
        rank = init_process_group(args.device)
        folder, resume_from = on_primary(lambda: locate_run(args))
        checkpoint = on_primary(lambda: load_checkpoint(resume_from)) if resume_from else None
        model, data = create_model_and_data(args)
        training = prepare(args, rank, model, data)
        loaders = data.train_loader(args, rank), data.val_loader(args, rank)
        first_epoch, best = restore(training, checkpoint) if checkpoint else (0, None)
        on_primary(lambda: start_folder(folder, args))
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    steps = -(-len(loaders[0]) // args.grad_accum_steps)
    training.monitor = Monitor(folder if rank.is_primary else None, first_epoch, first_epoch * steps)
    try:
        run_epochs(training, loaders, folder, first_epoch, best)
        if rank.is_primary:
            finish(training, data, folder)
        if dist.is_initialized():
            dist.barrier()
    finally:
        training.monitor.close()
        if dist.is_initialized():
            dist.destroy_process_group()
    return folder


def locate_run(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to go on with if there is one.

    After torchrun restarted the ranks, the run goes on from its own last checkpoint without being told.

    Raises:
        UsageError: the folder holds another run.
    """
    name = args.experiment or f"{args.model}-{args.target_macs or format(args.prune_rate, 'g')}"
    folder = Path(args.output) / name.replace("/", "_")
    own = folder / "last.pt"
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if args.resume == "auto" or (restarted and own.exists()):
        return folder, own if own.exists() else None
    if args.resume:
        return folder, Path(args.resume)
    if (folder / "args.yaml").exists() and not restarted:
        raise UsageError(
            f"{folder} already holds a run: pass --resume auto to go on with it, or another --experiment name"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; the run needs a folder of that name")
    return folder, None


def start_folder(folder: Path, args: argparse.Namespace) -> None:
    """Create the run's folder with its flags; called only once everything else has been checked.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = {flag: value for flag, value in vars(args).items() if flag not in ("config", "resume")}
        (folder / "args.yaml").write_text(yaml.safe_dump(flags, sort_keys=False))
    except OSError as error:
        raise UsageError(f"cannot write the run's folder {folder}: {error}") from error


def run_epochs(
    training: Training, loaders: tuple[DataLoader, DataLoader], folder: Path, first_epoch: int, best: float | None
) -> None:
    """Train, validate and checkpoint, epoch by epoch."""
    args, pruner, monitor = training.args, training.pruner, training.monitor
    train_loader, val_loader = loaders
    steps = -(-len(train_loader) // args.grad_accum_steps)
    for epoch in range(first_epoch, args.epochs):
        started = time.perf_counter()
        # Stands for saved random states: an epoch draws the same numbers whether or not the run was interrupted.
        random_seed((args.seed + 1_000_003 * epoch) % 2**31, training.rank.rank)
        train_loader.sampler.set_epoch(epoch)
        if not args.prune_interval:
            training.update_masks(epoch, epoch * steps)
        train_metrics = train_epoch(training, train_loader, epoch)
        val_metrics = evaluate(training, val_loader)
        training.scheduler.step(epoch + 1, val_metrics["top1"])
        # A model that is denser than asked for must not become the best one.
        is_best = pruner.at_target and (best is None or val_metrics["top1"] >= best)
        best = val_metrics["top1"] if is_best else best
        if training.rank.is_primary:
            state = checkpoint_state(training, epoch, best, val_metrics)
            save_checkpoint(folder / "last.pt", state)
            if is_best:
                save_checkpoint(folder / "best.pt", state)
        row = {"epoch": epoch}
        row |= {f"train_{key}": value for key, value in train_metrics.items()}
        row |= {f"val_{key}": value for key, value in val_metrics.items()}
        row |= {"sparsity": pruner.pruned_share(), "lr": training.optimizer.param_groups[0]["lr"]}
        row["seconds"] = time.perf_counter() - started
        monitor.summary(row)
        monitor.scalars({f"val/{key}": value for key, value in val_metrics.items()}, (epoch + 1) * steps)
        monitor.line(
            f"epoch {epoch:3d}  loss {row['train_loss']:.3f}  val {row['val_loss']:.3f}  "
            f"top-1 {row['val_top1']:.2f} %  pruned {100 * row['sparsity']:.1f} %  "
            f"{row['train_img_per_s']:.0f} images/s  {row['seconds']:.1f} s{'  best' if is_best else ''}"
        )


def evaluate(training: Training, val_loader: DataLoader) -> dict[str, float]:
    """Validate the weights that would be exported: the moving average where there is one.

    Returns:
        ``loss``, ``top1`` and ``top5``; with a moving average also those of the model itself, as ``raw_*``.
    """
    world_size, reduce = training.rank.world_size, training.args.dist_bn == "reduce"
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
    """Export the best model of the run and write its report, on rank 0."""
    args = training.args
    chosen = folder / "best.pt" if (folder / "best.pt").exists() else folder / "last.pt"
    checkpoint = load_checkpoint(chosen)
    model = training.model
    model.load_state_dict(checkpoint["ema" if training.ema else "model"])
    model.to("cpu").eval()
    metadata = {
        "model": args.model, "num_classes": data.num_classes, "input_size": list(data.input_size),
        "mean": list(data.mean), "std": list(data.std), "class_names": data.class_names,
        "block_size": args.block_size, "prune_rate": args.prune_rate,
    }  # fmt: skip
    text = {key: json.dumps(value) for key, value in metadata.items() if value is not None}
    save_plain_weights(folder / "model.safetensors", plain_state_dict(model), text)
    if not args.no_export:
        export_subp(model, folder / "model.subp", data.input_size, metadata)
    report = run_report(training, folder, checkpoint)
    monitor = training.monitor
    monitor.hyper_parameters(args, {"top1": report["accuracy"]["top1"], "kept_macs": report["macs"]["kept"]})
    monitor.line(
        f"kept {report['macs']['kept'] / 1e6:.1f} of {report['macs']['dense'] / 1e6:.1f} M MACs; best top-1 "
        f"{report['accuracy']['top1']:.2f} % (epoch {checkpoint['epoch']}); everything is in {folder}"
    )


if __name__ == "__main__":
    cli()
