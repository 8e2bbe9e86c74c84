"""From a trained model to a ``.subp`` file: trace, fold and fuse, pack sparse weights."""

from .subp import build_graph, check_exportable, export_subp

__all__ = ["build_graph", "check_exportable", "export_subp"]
