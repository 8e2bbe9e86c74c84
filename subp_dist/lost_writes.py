"""Writes into a masked weight, which would be lost: it is computed for each use, and what is written to is nobody's.

``for m in model.modules(): nn.init.kaiming_normal_(m.weight)`` after the pruner does nothing, and says nothing. So what
was handed out last is kept, and looked at when the weight is next used, and before masks are updated.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .torch_compat import count_writes, is_transformed
from .transfers import to_host

_logger = logging.getLogger(__name__)

_ADVICE = (
    "is computed from a latent weight and its mask for each use, so what is written into it is lost: initialise before "
    "SUBPPruner, or with model.apply(function), or write to parametrizations.weight.original, the latent weight"
)


@dataclass(frozen=True)
class _Handed:
    """A weight that was handed out, without its graph, and how often it and what it is made of had been written to."""

    weight: Tensor
    writes: int
    sources: tuple[object, ...]


_handed: weakref.WeakKeyDictionary[nn.Module, _Handed] = weakref.WeakKeyDictionary()


def hand_out(block_mask: nn.Module, weight: Tensor, latent: Tensor) -> Tensor:
    """The weight, kept in mind; subclasses (shards, fakes of a tracer) and compiled code are left alone.

    Raises:
        ValueError: the one before was written to, by its own methods; ``weight.data`` does not tell.
    """
    if _is_left_alone(weight):
        return weight
    before = _handed.pop(block_mask, None)
    if before is not None and count_writes(before.weight) != before.writes:
        raise ValueError(f"the weight {list(weight.shape)} of a pruned layer {_ADVICE}")
    kept = weight.detach()
    _handed[block_mask] = _Handed(kept, count_writes(kept), _sources(block_mask, latent))
    return weight


def _is_left_alone(weight: Tensor) -> bool:
    return torch.compiler.is_compiling() or type(weight) is not Tensor or is_transformed(weight)


@torch.no_grad()
def check_written(layers: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
    """Refuse to go on where a weight that a module gave was written to; warn where it may have been.

    Torch does not count what goes through ``.data``, which optimizers may use for the latent weight as well as somebody
    for the masked one. So a weight that is not what it was, without a reason, is worth a warning and no more.

    Args:
        layers: by name, the module and its mask; the host waits for a GPU once for all of them.

    Raises:
        ValueError: one was written to.
    """
    differs = {}
    for name, (module, block_mask) in layers.items():
        latent, last = module.parametrizations.weight.original, _handed.get(block_mask)
        if last is None:
            continue
        if count_writes(last.weight) != last.writes:
            raise ValueError(f"{name}: the weight of a pruned layer {_ADVICE}")
        if last.sources == _sources(block_mask, latent):
            close = torch.isclose(module.weight, last.weight, rtol=1e-3, atol=1e-6, equal_nan=True)
            differs[name] = close.logical_not().any()
    changed = to_host(list(differs.values()))
    names = [name for name, is_other in zip(differs, changed, strict=True) if is_other]
    if names:
        _logger.warning(
            "%s: the weight is not what it was when it was last used, of %d pruned layers. An optimizer that writes to "
            ".data may be the reason; else it was written to, and it %s",
            *(names[0], len(names), _ADVICE),
        )


def _sources(block_mask: nn.Module, latent: Tensor) -> tuple[object, ...]:
    """What a weight is made of: of which kind it is, and how often it was written to."""
    made_of = (latent, *block_mask.parameters(), *block_mask.buffers())
    return (latent.dtype, latent.device, *map(count_writes, made_of))
