"""Work that is given up after a time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Between two interruptions of work that went on after one.
_AGAIN = 1.0


class _Late(BaseException):
    """Not an Exception: what is given up must not take it for an error of its own."""


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What a function returns; None if that takes longer.

    It is interrupted between two steps of the interpreter, so it has to be Python code; and again each second that it
    goes on, since a finalizer or an ``except`` may swallow an interruption. Nothing is interrupted once this has ended.
    """
    thread, lock, done = threading.get_ident(), threading.Lock(), threading.Event()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set():
                    _interrupt(thread, _Late)
            wait = _AGAIN

    def end() -> None:
        with lock:  # the watcher is in no doubt whether this is over, and what it sent last is withdrawn
            done.set()
            _interrupt(thread, None)

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        watcher.start()
        return work()
    except _Late:
        return None
    finally:
        over = False
        while not over:  # no call outside of the inner try: it may be interrupted at each
            try:
                end()
                over = True
            except _Late:
                pass


def _interrupt(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in a thread at its next step, or withdraw the one that has not been raised yet."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
