"""What the flags of benchmarks take."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path


def as_path(text: str) -> Path:
    """A path with the home folder that `~` stands for; shells leave it in `--flag=~/x`.

    Raises:
        ArgumentTypeError: there is no such home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ArgumentTypeError(f"{text!r}: there is no such home folder; write the path in full") from None
