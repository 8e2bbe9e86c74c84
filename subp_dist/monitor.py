"""What a run shows and records, on rank 0 only: TensorBoard, ``summary.csv``, progress bars."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .checkpoint import write_atomically
from .pruner import MaskUpdate


class Monitor:
    """Writes to a run's folder; a monitor without a folder (every other rank) does nothing.

    Args:
        folder: the run's folder, or None.
        first_epoch, first_step: where the run goes on; what an interrupted run recorded from there on is dropped.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 0, first_step: int = 0) -> None:
        self._csv = folder / "summary.csv" if folder else None
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step) if folder else None
        if self._csv and self._csv.exists():
            header, *rows = self._csv.read_text().splitlines(keepends=True)
            kept = [row for row in rows if int(row.split(",")[0]) < first_epoch]
            write_atomically(self._csv, lambda path: path.write_text("".join([header, *kept])))

    def progress(self, batches: Iterable, description: str) -> Iterable:
        """Wrap batches in a progress bar; in a log, where it cannot be redrawn, only what takes long gets one."""
        if self._board is None:
            return batches
        pause = 0.2 if sys.stderr.isatty() else 10
        return tqdm(batches, desc=description, leave=False, dynamic_ncols=True, mininterval=pause, delay=pause)

    def line(self, text: str) -> None:
        """Print one line above the progress bars."""
        if self._board is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """TensorBoard scalars at a global optimizer step."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def mask_update(self, update: MaskUpdate, masks: dict[str, Tensor], step: int, pictures: bool) -> None:
        """Sparsity, flips and regrowth of one mask update; per layer too, with pictures and histograms if asked."""
        if self._board is None:
            return
        self.scalars(
            {
                "sparsity/target": update.target,
                "sparsity/actual": update.actual,
                "mask/flip_rate": update.flip_rate,
                "mask/regrown": update.regrown,
                **{f"sparsity_per_layer/{name}": 1 - mask.float().mean().item() for name, mask in masks.items()},
            },
            step,
        )
        if pictures:
            for name, mask in masks.items():
                self._board.add_image(f"mask/{name}", mask.unsqueeze(0).float(), step)
                self._board.add_histogram(f"score/{name}", update.scores[name], step)

    def hyper_parameters(self, args: argparse.Namespace, metrics: dict[str, float]) -> None:
        """The run's flags beside its final metrics, for TensorBoard's table of runs."""
        if self._board is not None:
            plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in vars(args).items()}
            self._board.add_hparams(plain, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def summary(self, row: dict) -> None:
        """Append a row to ``summary.csv``."""
        if self._csv is None:
            return
        new = not self._csv.exists()
        with self._csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()
