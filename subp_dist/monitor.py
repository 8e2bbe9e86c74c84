"""What a run shows and records, on rank 0 only: TensorBoard, ``summary.csv``, progress bars."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .checkpoint import write_atomically, write_errors_explained
from .pruner import MaskUpdate


class Monitor:
    """Writes to a run's folder; a monitor without a folder (every other rank) does nothing.

    TensorBoard writes from a thread of its own, so that any call may raise what a call before it led to: a UsageError,
    where the folder cannot be written any more.

    Args:
        folder: the run's folder, or None.
        first_epoch, first_step: where the run goes on; what an interrupted run recorded from there on is dropped.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 0, first_step: int = 0) -> None:
        self._folder, self._csv, self._board = folder, None, None
        if folder is None:
            return
        self._csv = folder / "summary.csv"
        with write_errors_explained(self._folder):
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
            if self._csv.exists():
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
            with write_errors_explained(self._folder):
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
            with write_errors_explained(self._folder):
                for name, mask in masks.items():
                    self._board.add_image(f"mask/{name}", mask.unsqueeze(0).float(), step)
                    self._board.add_histogram(f"score/{name}", update.scores[name], step)

    def hyper_parameters(self, args: argparse.Namespace, metrics: dict[str, float]) -> None:
        """The run's flags beside its final metrics, for TensorBoard's table of runs."""
        if self._board is not None:
            plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in vars(args).items()}
            with write_errors_explained(self._folder):
                self._board.add_hparams(plain, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def summary(self, row: dict) -> None:
        """Append a row to ``summary.csv``.

        Raises:
            OSError: it could not be written, and is as it was.
        """
        if self._csv is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if not self._csv.exists():
            writer.writeheader()
        writer.writerow(row)
        before = self._csv.read_text() if self._csv.exists() else ""
        write_atomically(self._csv, lambda path: path.write_text(before + text.getvalue()))

    def flush(self) -> None:
        """Bring to disk what was recorded so far, so that a checkpoint that is written next is not ahead of it.

        Raises:
            UsageError: it cannot be written.
        """
        if self._board is not None:
            with write_errors_explained(self._folder):
                self._board.flush()

    def close(self) -> None:
        """Close the files; what is worth keeping has been flushed, and an error before this is more to the point."""
        if self._board is not None:
            with suppress(OSError):
                self._board.close()
