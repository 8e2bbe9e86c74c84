"""What the flags of benchmarks take, and how their commands end."""

from __future__ import annotations

import signal
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


def end_unread() -> None:
    """Lets SIGPIPE end the process where nobody reads its output any more, as in `| head`, in place of an error."""
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
