"""Errors that are the user's to mend, and how a command ends with one."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


EXIT_USAGE = 2


def report_usage_errors(command: Callable[[], None]) -> Callable[[], None]:
    """End a command with one line and exit code 2, instead of a traceback, when the input is at fault.

    All local ranks find the same fault; the first of each machine speaks for them.
    """

    @functools.wraps(command)
    def wrapped() -> None:
        try:
            command()
        except UsageError as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"\nerror: {error}\n", file=sys.stderr, flush=True)
            sys.exit(EXIT_USAGE)

    return wrapped
