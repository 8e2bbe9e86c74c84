"""Work that is given up after a time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class _Late(BaseException):
    """Not an Exception: what is given up must not take it for an error of its own."""


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What a function returns; None if it takes longer.

    It is interrupted between two steps of the interpreter, in any thread, so it has to be Python code.
    """
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Late))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        timer.start()
        result = work()
        with lock:
            done = True
        return result
    except _Late:
        return None
    finally:
        timer.cancel()
