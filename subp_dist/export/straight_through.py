"""Rounding with gradients: forward to integers, backward as if nothing had been rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    """To the nearest integer, ties to even, within bounds; beyond them there is no gradient."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((real >= low) & (real <= high))
        return real.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (within,) = ctx.saved_tensors
        return grad * within, None, None


class _LookedUp(torch.autograd.Function):
    """A function of one byte as a table; backward by a table of its slopes."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, table: Tensor, slopes: Tensor) -> Tensor:
        index = stored.to(torch.uint8)
        ctx.save_for_backward(index, slopes)
        return table[index.int()]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, slopes = ctx.saved_tensors
        return grad * slopes[index.int()], None, None


def rounded(real: Tensor, low: float = -float("inf"), high: float = float("inf")) -> Tensor:
    """The nearest integers from ``low`` to ``high``, ties to even, with the gradient of what lies between them."""
    return _Rounded.apply(real, low, high)


def looked_up(stored: Tensor, table: Tensor, slopes: Tensor) -> Tensor:
    """``table`` at integers from 0 to 255, and ``slopes`` there as the gradient; both are ``[256]``."""
    return _LookedUp.apply(stored, table, slopes)
