"""Errors that end a command, and how it ends with one: a line instead of a traceback, and an exit code of its own."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class DivergedError(RuntimeError):
    """The ranks hold different masks or weights; raised on every rank, with the same message."""


class LostRankError(RuntimeError):
    """Another rank does not answer any more: it failed, or its machine or the network did."""


class Stopped(Exception):
    """SIGTERM was obeyed: a run was saved on every rank, or what was not complete has been removed."""


EXIT_USAGE, EXIT_DIVERGED, EXIT_LOST_RANK = 2, 3, 4
EXIT_INTERRUPTED, EXIT_STOPPED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def _say(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"\n{text}\n", file=sys.stderr, flush=True)


def report_usage_errors(command: Callable[[], None]) -> Callable[[], None]:
    """End a command with one line and an exit code where the error has been explained; others keep their traceback.

    All ranks of a machine have the same to say; the first speaks for them.
    """

    @functools.wraps(command)
    def wrapped() -> None:
        try:
            command()
        except UsageError as error:
            _say(f"error: {error}")
            sys.exit(EXIT_USAGE)
        except DivergedError as error:
            _say(f"error: {error}")
            sys.exit(EXIT_DIVERGED)
        except LostRankError as error:
            _say(f"lost another rank: {error}")
            sys.exit(EXIT_LOST_RANK)
        except Stopped as stopped:
            _say(str(stopped))
            sys.exit(EXIT_STOPPED)
        except KeyboardInterrupt as interrupt:
            _say(str(interrupt) or "interrupted")
            sys.exit(EXIT_INTERRUPTED)

    return wrapped
