"""What a run shows and records, on rank 0 only: TensorBoard, ``summary.csv``, progress bars."""

from __future__ import annotations

import csv
import io
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .checkpoint import output_errors_explained, write_atomically, write_errors_explained
from .layer_report import LayerReport, total_macs
from .mask_picture import draw_mask
from .mask_update import MaskUpdate

# What TensorBoard shows in its custom scalars. Its other pages sort by name, open the first two groups, and fit two
# rows of three cards on a screen: so what was learned and how sparse it is are those, and the other names follow the
# story, how the masks change, how it was done, what came of it.
LAYOUT = {
    "learning": {
        "loss": ["Multiline", ["learning/loss_train", "learning/loss_val"]],
        "accuracy, %": ["Multiline", ["learning/top1", "validation/top5"]],
    },
    "sparsity": {
        "share of blocks pruned, asked and actual": ["Multiline", ["sparsity/target", "sparsity/actual"]],
        "share of blocks that changed": ["Multiline", ["sparsity_change/flip_rate"]],
        "blocks that came back": ["Multiline", ["sparsity_change/regrown"]],
        "multiply-accumulates": ["Multiline", ["sparsity_macs/dense", "sparsity_macs/kept"]],
    },
    "training": {
        "learning rate": ["Multiline", ["training/lr"]],
        "images per second": ["Multiline", ["training/img_per_s"]],
        "share of the time spent waiting for data": ["Multiline", ["training/data_time"]],
        "norm of the gradient": ["Multiline", ["training/grad_norm"]],
    },
}


class Monitor:
    """Writes to a run's folder; a monitor without a folder (every other rank) does nothing.

    TensorBoard writes from a thread of its own, so that any call may raise what a call before it led to: a UsageError,
    where the folder cannot be written any more.

    Args:
        folder: the run's folder, or None.
        first_epoch, first_step: where the run goes on; what an interrupted run recorded from there on is dropped.
    """

    def __init__(self, folder: Path | None, first_epoch: int = 0, first_step: int = 0) -> None:
        self._folder, self._csv, self._board, self._last_step = folder, None, None, max(0, first_step - 1)
        if folder is None:
            return
        self._csv = folder / "summary.csv"
        with write_errors_explained(self._folder):
            threading.excepthook = _left_to_the_next_call
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
            self._board.add_custom_scalars(LAYOUT)
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
        """Print one line above the progress bars.

        Raises:
            UnreadError, UsageError: see ``output_errors_explained``.
        """
        if self._board is not None:
            with output_errors_explained():
                tqdm.write(text, file=sys.stdout)
                if sys.stdout is not None:
                    sys.stdout.flush()

    def train_step(self, loss: float, lr: float, grad_norm: float, step: int) -> None:
        """Figures of one optimizer step, counted over the whole run."""
        self._scalars({"learning/loss_train": loss, "training/lr": lr, "training/grad_norm": grad_norm}, step)

    def speed(self, img_per_s: float, data_time: float, step: int) -> None:
        """Of an epoch: images/s of all ranks, and the share of the time that was spent waiting for data."""
        self._scalars({"training/img_per_s": img_per_s, "training/data_time": data_time}, step)

    def validation(self, metrics: Mapping[str, float], step: int) -> None:
        """What ``evaluate`` found: ``loss``, ``top1``, ``top5``, and ``raw_*`` of the model beside its average."""
        first = {"loss": "learning/loss_val", "top1": "learning/top1"}
        self._scalars({first.get(key, f"validation/{key}"): value for key, value in metrics.items()}, step)

    def mask_update(
        self,
        update: MaskUpdate,
        layers: Sequence[LayerReport],
        masks: Mapping[str, Tensor],
        step: int,
        pictures: bool = False,
    ) -> None:
        """Sparsity, flips and regrowth of one mask update, of the layers too, and at its milestones their pictures.

        Args:
            update: what it did.
            layers: all layers as they are now.
            masks: of the pruned ones.
            step: the optimizer step that comes next, counted over the whole run.
            pictures: draw masks, if anything is pruned, and record histograms of the scores, milestone or not.
        """
        if self._board is None:
            return
        dense, kept = total_macs(layers)
        self._scalars(
            {
                "sparsity/target": update.target,
                "sparsity/actual": update.actual,
                "sparsity_change/flip_rate": update.flip_rate,
                "sparsity_change/regrown": update.regrown,
                "sparsity_macs/dense": dense,
                "sparsity_macs/kept": kept,
                **{f"sparsity_per_layer/{layer.name}": 1 - layer.kept_share for layer in layers if layer.is_pruned},
            },
            step,
        )
        if update.milestone or (pictures and update.actual):
            self._draw(layers, masks, step)
        if update.milestone or pictures:
            with write_errors_explained(self._folder):
                for name, scores in update.scores.items():
                    self._board.add_histogram(f"sparsity_scores/{name}", scores, step)

    def finish(
        self,
        layers: Sequence[LayerReport],
        masks: Mapping[str, Tensor],
        flags: Mapping[str, object],
        metrics: Mapping[str, float],
    ) -> None:
        """What became of the run: pictures of the masks that are exported, and its flags beside its final metrics."""
        if self._board is None:
            return
        if any(layer.kept_share < 1 for layer in layers):
            self._draw(layers, masks, self._last_step)
        plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in flags.items()}
        with write_errors_explained(self._folder):
            results = {f"training_result/{k}": v for k, v in metrics.items()}
            self._board.add_hparams(plain, results, run_name=".")

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._board is None:
            return
        self._last_step = max(self._last_step, step)
        with write_errors_explained(self._folder):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def _draw(self, layers: Sequence[LayerReport], masks: Mapping[str, Tensor], step: int) -> None:
        with write_errors_explained(self._folder):
            for layer in layers:
                if layer.is_pruned:
                    picture = draw_mask(masks[layer.name], layer)
                    self._board.add_image(f"sparsity_masks/{layer.name}", picture, step, dataformats="HWC")

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
            threading.excepthook = threading.__excepthook__


def _left_to_the_next_call(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback of TensorBoard's thread: it keeps its error, and the next call raises it."""
    if getattr(failed.thread, "exception", None) is not failed.exc_value:
        threading.__excepthook__(failed)
