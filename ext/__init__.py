"""Runs uniform 1xN block-sparse CNNs on CPUs; needs NumPy only."""

from importlib.metadata import PackageNotFoundError, version

from subp_ext.convolution import conv2d
from subp_ext.format import FormatError, load, save
from subp_ext.graph import Graph, Node, Ref, TensorSpec
from subp_ext.operators import supported_ops
from subp_ext.runtime import cpu_info
from subp_ext.session import Session
from subp_ext.sparse import UniformBlockSparse

try:
    __version__ = version("subp-dist")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "FormatError",
    "Graph",
    "Node",
    "Ref",
    "Session",
    "TensorSpec",
    "UniformBlockSparse",
    "__version__",
    "conv2d",
    "cpu_info",
    "load",
    "save",
    "supported_ops",
]
