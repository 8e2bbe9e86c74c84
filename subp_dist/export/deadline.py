"""Work that is given up after a time."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class _Late(BaseException):
    """Not an Exception: what is given up must not take it for an error of its own."""


def within(seconds: float, work: Callable[[], Result]) -> Result | None:
    """What a function returns; None if it takes more of the processor's time, whatever else the machine does.

    It is interrupted between two steps of the interpreter, in any thread, so it has to be Python code.
    """
    thread, started = threading.get_ident(), time.process_time()
    lock, done = threading.Lock(), threading.Event()

    def watch() -> None:
        while not done.wait(min(1.0, seconds / 10)):
            with lock:
                if time.process_time() - started > seconds and not done.is_set():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Late))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        watcher.start()
        result = work()
        with lock:
            done.set()
        return result
    except _Late:
        return None
    finally:
        done.set()
