"""Soft uniform block pruning (SUBP) of timm CNNs during training; see README.md."""

from .pruner import MaskUpdate, SUBPPruner
from .schedule import PruneSchedule

__all__ = ["MaskUpdate", "PruneSchedule", "SUBPPruner"]
