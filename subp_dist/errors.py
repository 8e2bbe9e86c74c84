"""Errors that are the user's to mend, and how a command ends with one."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


EXIT_USAGE = 2


def _say(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"\n{text}\n", file=sys.stderr, flush=True)


def report_usage_errors(command: Callable[[], None]) -> Callable[[], None]:
    """End a command with one line instead of a traceback when the input is at fault (exit code 2) or on Ctrl-C (130).

    All local ranks find the same fault; the first of each machine speaks for them.
    """

    @functools.wraps(command)
    def wrapped() -> None:
        try:
            command()
        except UsageError as error:
            _say(f"error: {error}")
            sys.exit(EXIT_USAGE)
        except KeyboardInterrupt:
            _say("interrupted; a training goes on from its last complete epoch with --resume auto")
            sys.exit(128 + signal.SIGINT)

    return wrapped
