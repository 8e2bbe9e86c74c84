"""What pruning costs a training step: ``python -m subp_dist.bench.training [MODEL ...]``.

A step is forward, backward and optimizer (SGD with momentum), of the dense model and of the same model at half of its
1xN blocks, in turns, so that a change in the machine's speed meets both. Convolutions limit the step; masks add passes
over the weights alone, so their share falls with the batch and the image. One JSON document follows the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from subp_ext.bench.__main__ import peak_rss_mb

from ..blocks import BLOCK_SIZES
from ..memory import keep_freed_memory
from ..pruner import SUBPPruner
from ..schedule import PruneSchedule

RATE = 0.5


class Side:
    """A model with its optimizer, dense or pruned, and the times of its steps."""

    def __init__(self, model: nn.Module, pruned: bool, block_size: int) -> None:
        self.model = model.train()
        self.pruner = SUBPPruner(model, PruneSchedule(RATE, 0, 1, "linear"), block_size=block_size) if pruned else None
        self.update_seconds = self._update_masks() if pruned else 0.0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.seconds: list[float] = []

    def _update_masks(self) -> float:
        start = time.perf_counter()
        self.pruner.step(1.0)
        return time.perf_counter() - start

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = time.perf_counter()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        if self.pruner is not None:
            self.pruner.decay_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)


@dataclass(frozen=True)
class Step:
    """What a training step works on: images ``[batch_size, 3, img_size, img_size]``, blocks of ``block_size``."""

    batch_size: int
    img_size: int
    block_size: int
    channels_last: bool

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random images and labels."""
        images = torch.randn(self.batch_size, 3, self.img_size, self.img_size)
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return images, torch.randint(0, 1000, (self.batch_size,))

    def model(self, name: str) -> nn.Module:
        """A timm model with weights that are the same in every process."""
        torch.manual_seed(0)
        model = timm.create_model(name)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model


def measure_times(name: str, step: Step, steps: int, warmup: int) -> dict:
    """Median and best step of both, their ratios, also turn by turn, and the time of a mask update; in seconds.

    Args:
        name: timm model.
        step: what is measured.
        steps: steps of each side that are counted.
        warmup: steps of each side before them.
    """
    model = step.model(name)
    sides = [Side(copy.deepcopy(model), pruned, step.block_size) for pruned in (False, True)]
    images, labels = step.batch()
    for turn in range(warmup + steps):
        # Who comes first changes with the turn: the second of two finds warmer caches.
        for side in sides if turn % 2 else sides[::-1]:
            side.step(images, labels)
    dense, pruned = (side.seconds[warmup:] for side in sides)
    return {
        "dense_s": statistics.median(dense),
        "pruned_s": statistics.median(pruned),
        "ratio": statistics.median(pruned) / statistics.median(dense),
        "dense_best_s": min(dense),
        "pruned_best_s": min(pruned),
        "ratio_of_best": min(pruned) / min(dense),
        "ratio_of_turns": statistics.median(p / d for p, d in zip(pruned, dense, strict=True)),
        "mask_update_s": sides[1].update_seconds,
    }


def measure_memory(name: str, step: Step, threads: int, pruned: bool) -> int:
    """Peak resident memory in bytes of a process that does nothing but three steps."""
    flags = ["--batch-size", str(step.batch_size), "--img-size", str(step.img_size), "--threads", str(threads)]
    flags += ["--block-size", str(step.block_size), "--peak", "pruned" if pruned else "dense"]
    flags += ["--channels-last"] if step.channels_last else []
    command = [sys.executable, "-m", "subp_dist.bench.training", name, *flags]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, step: Step, pruned: bool) -> None:
    """What the child of ``measure_memory`` does."""
    side = Side(step.model(name), pruned, step.block_size)
    images, labels = step.batch()
    for _ in range(3):
        side.step(images, labels)
    print(round(1e6 * (peak_rss_mb() or 0)))


def cli() -> None:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="subp-bench-training", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("models", nargs="*", default=["resnet50"], metavar="MODEL", help="timm models")
    add("-b", "--batch-size", type=int, default=32, help="images per step")
    add("--img-size", type=int, default=224, help="square image size")
    add("--block-size", type=int, default=16, choices=BLOCK_SIZES, help="output channels per block")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    add("--steps", type=int, default=10, help="steps of each side that are counted")
    add("--warmup", type=int, default=2, help="steps of each side before them")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--no-memory", action="store_true", help="do not measure the peak memory")
    add("--no-time", action="store_true", help="measure the peak memory alone")
    add("--peak", choices=["dense", "pruned"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as training does
    step = Step(args.batch_size, args.img_size, args.block_size, args.channels_last)
    if args.peak:
        print_peak(args.models[0], step, pruned=args.peak == "pruned")
        return
    results = []
    print(f"batch {args.batch_size}, {args.img_size} pixels, 1x{args.block_size} at {RATE:.0%}, {args.threads} threads")
    print(f"{'model':24} {'dense':>9} {'pruned':>9} {'ratio':>6} {'update':>8} {'peak MB':>14} {'ratio':>6}")
    for name in args.models:
        row = {"model": name}
        if not args.no_time:
            row |= measure_times(name, step, args.steps, args.warmup)
        if not args.no_memory:
            peaks = [measure_memory(name, step, args.threads, pruned) for pruned in (False, True)]
            row |= {"dense_peak_bytes": peaks[0], "pruned_peak_bytes": peaks[1], "peak_ratio": peaks[1] / peaks[0]}
        print(_line(row), flush=True)
        results.append(row)
    print(json.dumps({"torch": torch.__version__, "flags": vars(args), "results": results}))


def _line(row: dict) -> str:
    line = f"{row['model']:24}"
    if "ratio" in row:
        line += f" {1e3 * row['dense_s']:6.0f} ms {1e3 * row['pruned_s']:6.0f} ms {row['ratio']:6.3f}"
        line += f" {1e3 * row['mask_update_s']:5.0f} ms"
    if "peak_ratio" in row:
        line += f" {row['dense_peak_bytes'] / 1e6:6.0f} {row['pruned_peak_bytes'] / 1e6:7.0f} {row['peak_ratio']:6.3f}"
    return line


if __name__ == "__main__":
    cli()
