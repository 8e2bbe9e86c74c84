"""A training program in which one thing goes wrong: ``python tests/failing.py FLAGS``, one rank of several.

``FAIL`` says what, by a name of ``FAILURES``. The file ``FAILED`` gets a line when it happens: the time, and the rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import torch
from tensorboard.summary.writer import record_writer
from torch import nn

from subp_dist import loop, masks, monitor, train
from subp_dist.data import guarded, pictures

PICTURE = "train/dog/00.png"


def note() -> None:
    with Path(os.environ["FAILED"]).open("a") as file:
        print(time.time(), os.environ["RANK"], file=file)


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise error

    return act


def sending(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


ODD, FULL = raising(ArithmeticError("odd")), raising(OSError(28, "No space left on device"))


def at(owner, name: str, act: Callable[[], object], rank: str | None = None, count: int = 1) -> Callable[[], None]:
    """Have something happen when a function is called for the count-th time, on one rank or on all."""

    def prepare() -> None:
        original, calls = getattr(owner, name), iter(range(1, count + 1))

        def failing(*args, **kwargs):
            if rank in (None, os.environ["RANK"]) and next(calls, 0) == count:
                note()
                act()
            return original(*args, **kwargs)

        setattr(owner, name, failing)

    return prepare


def reading(act: Callable[[str], object], picture: str = PICTURE) -> Callable[[], None]:
    """Have something happen when a picture is read, by whatever process of whichever rank."""

    def prepare() -> None:
        read = pictures.Pictures.read

        def worse(self, index):
            if self.name(index).endswith(picture):
                note()
                act(self.name(index))
            return read(self, index)

        pictures.Pictures.read = worse

    return prepare


def cut(name: str) -> None:
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])


def transforming(act: Callable[[], object]) -> Callable[[], None]:
    """Have something happen when that picture is transformed."""

    def prepare() -> None:
        item = pictures.Pictures.__getitem__

        def worse(self, index):
            if self.name(index).endswith(PICTURE):
                self.transform = lambda _: (note(), act())
            return item(self, index)

        pictures.Pictures.__getitem__ = worse

    return prepare


def hooked() -> None:
    """A hook of the user's own fails, in a forward pass of rank 1."""
    at(nn.BatchNorm2d, "forward", ODD, "1", 5)()


CUDA_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
SHARED_MEMORY = RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)")
FAILURES: dict[str, Callable[[], None]] = {
    # A picture, or the process that loads it.
    "decode": reading(lambda _: ODD()),
    "cut picture": reading(cut),
    "missing picture": reading(lambda name: Path(name).unlink()),
    "forbidden picture": reading(lambda name: raising(PermissionError(13, "Permission denied", name))()),
    "memory of a picture": reading(lambda _: raising(MemoryError())()),
    "validation picture": reading(cut, "val/dog/00.png"),
    "transform": transforming(ODD),
    "transform exits": transforming(lambda: sys.exit(3)),
    "worker killed": reading(lambda _: sending(signal.SIGKILL)()),
    "worker crashes": reading(lambda _: sending(signal.SIGSEGV)()),
    "worker exits": reading(lambda _: os._exit(7)),
    "collate": at(guarded, "default_collate", ODD),
    "shared memory": at(guarded, "default_collate", raising(SHARED_MEMORY)),
    "no process": at(BaseProcess, "start", raising(BlockingIOError(11, "Resource temporarily unavailable")), "1", 2),
    "length": at(pictures.Pictures, "__len__", ODD, "1"),
    # A rank.
    "hook": hooked,
    "memory of a GPU": at(loop, "_backward", raising(CUDA_MEMORY), "1", 2),
    "optimizer": at(loop, "_optimizer_step", ODD, "0", 3),
    "mask update": at(masks, "uniform_mask", ODD, "1", 4),
    "validation of rank 1": at(loop.nn.functional, "cross_entropy", ODD, "1"),
    "validation": at(train, "validate", ODD),
    "checkpoint": at(torch, "save", FULL, "0"),
    "figures": at(monitor.Monitor, "summary", FULL, "0"),
    "TensorBoard": at(record_writer.RecordWriter, "write", FULL, "0", 12),
    "export": at(train, "_finish", FULL),
    "report": at(train, "run_report", ODD, "0"),
    "rank killed": at(loop, "_backward", sending(signal.SIGKILL), "1", 3),
    "rank crashes": at(loop, "_backward", sending(signal.SIGSEGV), "0", 3),
    "rank exits": at(loop, "_backward", lambda: os._exit(9), "1", 3),
    "rank told to stop": at(loop, "_backward", sending(signal.SIGTERM), "1", 2),
    # Nothing but what the flags ask for.
    "flags": lambda: None,
}


if __name__ == "__main__":
    os.sched_getaffinity = lambda _: set(range(4))  # loaders have no more workers than there are cores
    FAILURES[os.environ["FAIL"]]()
    train.cli()
