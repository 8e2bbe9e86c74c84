"""Averages of integers as exact sums and what they are divided by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_OF_WINDOWS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")


def summed(op: str, args: Mapping[str, Any]) -> tuple[Tensor, Tensor | int] | None:
    """The sums of the pixels in the windows of an average over planes, and the counts that divide them.

    Args:
        op: its operator.
        args: of it, ``self`` being ``[B, C, H, W]``.

    Returns:
        None for windows of different sizes.
    """
    planes = args["self"]
    height, width = planes.shape[-2:]
    if op == "mean":
        return planes.sum((-2, -1), keepdim=bool(args.get("keepdim"))), height * width
    if op == "avg_pool2d":
        return _windows(
            planes, {name: args[name] for name in _OF_WINDOWS if name in args}, args.get("divisor_override")
        )
    rows, columns = args["output_size"]
    if height % rows or width % columns:
        return None
    return _windows(planes, {"kernel_size": [height // rows, width // columns]}, None)


def _windows(planes: Tensor, window: dict[str, Any], divisor: int | None) -> tuple[Tensor, Tensor | int]:
    sums = functional.avg_pool2d(planes, divisor_override=1, **window)
    if divisor is not None:
        return sums, divisor
    ones = torch.ones_like(planes[:1, :1])
    pixels = functional.avg_pool2d(ones, divisor_override=1, **window)
    return sums, (pixels / functional.avg_pool2d(ones, **window)).round()
