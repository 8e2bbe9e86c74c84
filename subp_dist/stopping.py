"""Stopping a run from outside (SIGTERM, as schedulers send it): on all ranks, after the same step."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import EXIT_LOST_RANK, LAUNCHER, Stopped

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_launcher() -> None:
    """Let the kernel kill this rank when its launcher is gone: it would train on, beside the run that is started next.

    A launcher that ends in any other way than by SIGKILL stops its ranks itself.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    end_with_parent()
    if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
        sys.exit(EXIT_LOST_RANK)  # it was gone before


class StopRequest:
    """Notes a SIGTERM and lets all ranks agree on it, while a ``with`` block lasts.

    The ranks exchange one number per ``poll``, in the background: each call waits for what the call before it sent, so
    that the exchange costs no waiting, and a signal is acted upon at most two calls later.

    Args:
        timeout_minutes: how long the exchange may wait for another rank.
    """

    def __init__(self, timeout_minutes: float) -> None:
        self._received = False
        self._flag = torch.zeros((), dtype=torch.int32)
        self._exchange: dist.Work | None = None
        # NCCL would have the host wait for the GPU in every step.
        timeout = timedelta(minutes=timeout_minutes)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None

    def __enter__(self) -> StopRequest:
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_) -> None:
        self._received = True

    def poll(self) -> bool:
        """Whether to stop now: the same answer on every rank. To be called equally often on all of them."""
        if self._group is None:
            return self._received
        stop = False
        if self._exchange is not None:
            self._exchange.wait()
            stop = bool(self._flag)
        self._flag = torch.tensor(int(self._received), dtype=torch.int32)
        self._exchange = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop

    def __exit__(self, error_type, *_) -> None:
        # All ranks get here, unless one of them failed.
        if self._exchange is not None and error_type in (None, Stopped):
            self._exchange.wait()
        # The first rank that ends has torchrun send SIGTERM to the others, which are about to end, too.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if error_type is Stopped else self._previous)
