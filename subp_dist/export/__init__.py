"""From a trained model to a file: trace, fold and fuse, pack sparse weights; or ONNX, or timm's own keys."""

from .model import export_model
from .network import Network
from .subp import build_graph, check_exportable, export_subp
from .synthetic import random_network

__all__ = ["Network", "build_graph", "check_exportable", "export_model", "export_subp", "random_network"]
