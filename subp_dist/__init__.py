"""Soft uniform block pruning (SUBP) of timm CNNs during training; see README.md."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .export.model import export_model
    from .mask_update import MaskUpdate
    from .pruner import SUBPPruner
    from .schedule import PruneSchedule

for _name in ("torch", "timm"):
    if find_spec(_name) is None:
        raise ImportError(
            f"subp_dist needs {_name}, which is not installed: pip install 'subp-dist[train]'. The runtime, subp_ext, "
            "needs NumPy alone"
        )

try:
    __version__ = version("subp-dist")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["MaskUpdate", "PruneSchedule", "SUBPPruner", "__version__", "export_model"]


def __getattr__(name: str) -> object:
    """Import on first use: timm takes seconds, and the launcher, which is in this package too, does not need it."""
    modules = {"MaskUpdate": ".mask_update", "PruneSchedule": ".schedule", "SUBPPruner": ".pruner"}
    modules["export_model"] = ".export.model"
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(modules[name], __name__), name)
