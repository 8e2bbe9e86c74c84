"""Errors that end a command, and how it ends with one: a line instead of a traceback, and an exit code of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO


class UsageError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class DataError(UsageError):
    """A picture cannot be loaded, which one rank alone has found; the message names both."""


class DataCheckError(Exception):
    """``--check-data`` has found something, and listed it; the message says how much."""


class LoaderError(Exception):
    """What loads the data failed on one rank, not for a picture; the message names the rank."""


class DivergedError(RuntimeError):
    """The ranks hold different masks or weights; raised on every rank, with the same message."""


class NotFiniteError(UsageError):
    """The training has diverged, on every rank alike; the message says where, and what to try."""


class LostRankError(RuntimeError):
    """Another rank does not answer any more: it failed, or its machine or the network did."""


class UnreadError(Exception):
    """Nobody reads the output of a run any more, so the run ends; the message says what there is, and how to go on."""


class Stopped(Exception):
    """SIGTERM was obeyed: a run was saved on every rank, or what was not complete has been removed."""


EXIT_CHECKED = 1
EXIT_USAGE, EXIT_DIVERGED, EXIT_LOST_RANK, EXIT_LOADER = 2, 3, 4, 5
EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_STOPPED = 128 + signal.SIGINT, 128 + signal.SIGPIPE, 128 + signal.SIGTERM

_LOST_RANK_PATIENCE = 2.0  # seconds

DEBUG = "SUBP_DEBUG"  # 1 in the environment: errors that are told in one line show their traceback, too
LAUNCHER = "SUBP_LAUNCHER"  # the process that starts the ranks of a machine, in their environment


def _say(text: str, alone: bool = False) -> None:
    if alone or os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(BrokenPipeError):
            print(f"\n{text}\n", file=sys.stderr, flush=True)


def _fail(error: Exception, exit_code: int) -> NoReturn:
    """End with an error that every rank has: the launcher tells it, where there is ours, for ranks end each other.

    The first of them may be any one, and the others are ended before they can speak; it is left in torchrun's file. An
    error that one rank alone has is told by that rank.
    """
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if not _left_to_launcher(str(error)):
        _say(f"error: {error}", alone=isinstance(error, DataError | LoaderError))
    sys.exit(exit_code)


def _left_to_launcher(text: str) -> bool:
    """Leave what is to be told in torchrun's file, if our launcher is there to read it."""
    if LAUNCHER not in os.environ or "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    told = {"message": text, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told))
    return True


def _write_output() -> None:
    """Write what standard output still holds.

    Raises:
        BrokenPipeError: nobody reads it any more.
        UsageError: it cannot be written.
    """
    try:
        if sys.stdout is not None:  # as it is where the descriptor was closed
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write to standard output: {error.strerror}") from error


def _unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        if stream is not None:
            poll = select.poll()
            poll.register(stream, 0)
            return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _drop_what_cannot_be_written() -> None:
    """Leave nothing that the interpreter would fail to write at its end, for which it has an exit code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def report_usage_errors(command: Callable[[], None]) -> Callable[[], None]:
    """End a command with one line and an exit code where the error has been explained; others keep their traceback.

    All ranks of a machine have the same to say; the first speaks for them. Where nobody reads standard output or error
    any more, the command ends without a word, with the exit code that SIGPIPE gives other programs.
    """

    @functools.wraps(command)
    def wrapped() -> None:
        try:
            command()
            _write_output()
        except UsageError as error:
            _fail(error, EXIT_USAGE)
        except LoaderError as error:
            _fail(error, EXIT_LOADER)
        except DataCheckError as error:
            _fail(error, EXIT_CHECKED)
        except DivergedError as error:
            _fail(error, EXIT_DIVERGED)
        except LostRankError as error:
            # Beside the error of the other one this would be a second line; the launcher tells it where it is the only.
            if not _left_to_launcher(str(error)):
                _say(f"lost another rank: {error}")
            # The rank with an error of its own leaves the group before it ends, and the first to end is named.
            time.sleep(_LOST_RANK_PATIENCE)
            sys.exit(EXIT_LOST_RANK)
        except UnreadError as error:
            _say(str(error))
            sys.exit(EXIT_UNREAD)
        except BrokenPipeError:
            if not any(map(_unread, (sys.stdout, sys.stderr))):
                raise
            sys.exit(EXIT_UNREAD)
        except Stopped as stopped:
            _say(str(stopped))
            sys.exit(EXIT_STOPPED)
        except KeyboardInterrupt as interrupt:
            _say(str(interrupt) or "interrupted")
            sys.exit(EXIT_INTERRUPTED)
        finally:
            _drop_what_cannot_be_written()

    return wrapped
