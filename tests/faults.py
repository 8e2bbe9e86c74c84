"""A training program that kills itself: ``python -m subp_dist.launch ... tests/faults.py FLAGS``, on few digits.

``FAULT=MOMENT:RANK:COUNT`` sends a real SIGKILL (or the signal that ``FAULT_SIGNAL`` names) to that rank when it gets
to that moment for the COUNT-th time. Several, with semicolons between them, come one after the other: each time the
ranks are started, the next one waits for them. ``FAULT_MARK`` is a file that has a line for each that has come.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from subp_dist import checkpoint, masks, monitor, train
from subp_dist.data import digits


def strike() -> None:
    with Path(os.environ["FAULT_MARK"]).open("a") as mark:
        print(os.environ["RANK"], file=mark)
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


def in_a_pass(act: Callable[[], None]) -> None:
    """In the forward pass of a training step, at each batch norm."""
    original = nn.BatchNorm2d.forward

    def forward(self, x):
        if self.training:
            act()
        return original(self, x)

    nn.BatchNorm2d.forward = forward


def half_written(act: Callable[[], None]) -> None:
    """Let half of a checkpoint reach its file first."""
    original = torch.save

    def save(state, file, **options) -> None:
        buffer = io.BytesIO()
        original(state, buffer, **options)
        if options:  # a tensor that is pickled for another rank
            file.write(buffer.getvalue())
            return
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
    "start": lambda act: before(train, "create_model_and_data", act),
    "resuming": lambda act: before(train, "restore", act),
    "forward": in_a_pass,  # 15 layers
    "backward": lambda act: before(torch.Tensor, "backward", act),
    "mask update": lambda act: before(masks, "uniform_mask", act),  # 12 layers
    "validation": lambda act: before(train, "evaluate", act),
    "figures": lambda act: before(monitor.Monitor, "summary", act),
    "checkpoint, half written": half_written,
    "checkpoint, before the renames": lambda act: on_rename(act, checkpoint.NEWEST, checkpoint.PREVIOUS),
    "checkpoint, between the renames": lambda act: on_rename(act, ".tmp", checkpoint.NEWEST),
    "checkpoint, done": lambda act: before(monitor.Monitor, "line", act),  # of an epoch
    "export": lambda act: before(train, "finish", act),
}


def prepare() -> None:
    pixels, labels = digits.load_digits()
    digits.load_digits = lambda: (pixels[::8], labels[::8])
    mark, faults = Path(os.environ["FAULT_MARK"]), os.environ.get("FAULT", "").split(";")
    come = len(mark.read_text().splitlines()) if mark.exists() else 0
    moment, rank, count = (faults[come] if come < len(faults) and faults[come] else "::").split(":")
    if rank == os.environ["RANK"]:
        MOMENTS[moment](counted(int(count)))


if __name__ == "__main__":
    prepare()
    train.cli()
