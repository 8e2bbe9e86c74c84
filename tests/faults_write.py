"""A writer of ``.beton`` that is sent a signal: ``python tests/faults_write.py SRC DST FLAGS``.

``FAULT=MOMENT`` says when, ``FAULT_SIGNAL`` which. ``FAULT_SEGMENTS`` is a file that gets the names of the shared
memory that the writer creates.
"""

from __future__ import annotations

import os
import signal
from multiprocessing import shared_memory
from pathlib import Path

from ffcv import writer

from subp_dist.data import write

MAIN, PICTURE = os.getpid(), 1000
done, writing = [], []


def strike() -> None:
    if not done:
        done.append(True)
        os.kill(MAIN, getattr(signal, os.environ["FAULT_SIGNAL"]))


def before(owner, name: str, act) -> None:
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def at_a_picture(phase: list) -> None:
    before(write.Pictures, "__getitem__", lambda _, index: strike() if writing == phase and index == PICTURE else None)


def at_a_fork(phase: list) -> None:
    """Python drops exceptions there: those of a signal's handler too."""
    os.register_at_fork(after_in_parent=lambda: strike() if writing == phase else None)


MOMENTS = {
    "a decoder starts": lambda: at_a_fork([]),
    "decoding": lambda: at_a_picture([]),
    "memory is shared": lambda: before(writer.DatasetWriter, "prepare", lambda _: strike()),
    "a writer starts": lambda: at_a_fork([True]),
    "writing": lambda: at_a_picture([True]),
    "the file is renamed": lambda: before(os, "fsync", lambda _: strike()),
}


class Recorded(shared_memory.SharedMemory):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with Path(os.environ["FAULT_SEGMENTS"]).open("a") as file:
            print(self.name, file=file)


if __name__ == "__main__":
    shared_memory.SharedMemory = Recorded
    before(write, "write", lambda *_: writing.append(True))
    MOMENTS[os.environ["FAULT"]]()
    write.cli()
