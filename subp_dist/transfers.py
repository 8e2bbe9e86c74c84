"""Tensors from a GPU to the host: each transfer makes the host wait for all that is queued, so there are few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of one type on the CPU, of each the same shape; those of one device travel in one piece."""
    found: dict[int, Tensor] = {}
    for device in {tensor.device for tensor in tensors}:
        numbers = [number for number, tensor in enumerate(tensors) if tensor.device == device]
        pieces = torch.cat([tensors[number].flatten() for number in numbers]).cpu()
        parts = pieces.split([tensors[number].numel() for number in numbers])
        found |= {number: part.view(tensors[number].shape) for number, part in zip(numbers, parts, strict=True)}
    return [found[number] for number in range(len(tensors))]
