"""A training program that kills itself: ``python -m subp_dist.launch ... tests/faults.py FLAGS``, on few digits.

``FAULT=MOMENT:RANK:COUNT`` sends a real SIGKILL (or the signal that ``FAULT_SIGNAL`` names) to that rank when it gets
to that moment for the COUNT-th time, once: ``FAULT_MARK`` is a file that remembers it over restarts.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from subp_dist import checkpoint, masks, train
from subp_dist.data import digits


def strike() -> None:
    Path(os.environ["FAULT_MARK"]).touch()
    signal.raise_signal(getattr(signal, os.environ.get("FAULT_SIGNAL", "SIGKILL")))


def counted(count: int) -> Callable[[], None]:
    """A function that strikes when it is called for the count-th time."""
    calls = iter(range(1, count + 1))
    return lambda: strike() if next(calls, 0) == count else None


def before(owner, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        act()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def half_written(act: Callable[[], None]) -> None:
    """Let half of a checkpoint reach its file first."""
    original = torch.save

    def save(state, file) -> None:
        buffer = io.BytesIO()
        original(state, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        act()
        file.write(buffer.getvalue()[buffer.tell() // 2 :])

    torch.save = save


def on_rename(act: Callable[[], None], source: str, target: str) -> None:
    original = Path.replace

    def replace(self, to):
        if self.name.endswith(source) and Path(to).name == target:
            act()
        return original(self, to)

    Path.replace = replace


MOMENTS = {
    "forward": lambda act: before(nn.BatchNorm2d, "forward", act),  # 7 layers of 24 into a pass, for example
    "backward": lambda act: before(torch.Tensor, "backward", act),
    "mask update": lambda act: before(masks, "uniform_mask", act),
    "validation": lambda act: before(train, "evaluate", act),
    "checkpoint, half written": half_written,
    "checkpoint, before the renames": lambda act: on_rename(act, checkpoint.NEWEST, checkpoint.PREVIOUS),
    "checkpoint, between the renames": lambda act: on_rename(act, ".tmp", checkpoint.NEWEST),
    "resuming": lambda act: before(torch, "load", act),
}


def prepare() -> None:
    pixels, labels = digits.load_digits()
    digits.load_digits = lambda: (pixels[::8], labels[::8])
    moment, rank, count = os.environ.get("FAULT", "::").split(":")
    if moment and rank == os.environ["RANK"] and not Path(os.environ["FAULT_MARK"]).exists():
        MOMENTS[moment](counted(int(count)))


if __name__ == "__main__":
    prepare()
    train.cli()
