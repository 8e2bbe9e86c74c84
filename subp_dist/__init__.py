"""Soft uniform block pruning (SUBP) of timm CNNs during training; see README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pruner import MaskUpdate, SUBPPruner
    from .schedule import PruneSchedule

__all__ = ["MaskUpdate", "PruneSchedule", "SUBPPruner"]


def __getattr__(name: str) -> object:
    """Import on first use: timm takes seconds, and the launcher, which is in this package too, does not need it."""
    modules = {"MaskUpdate": ".pruner", "PruneSchedule": ".schedule", "SUBPPruner": ".pruner"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(modules[name], __name__), name)
