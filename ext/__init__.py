"""Runs uniform 1xN block-sparse CNNs on CPUs; needs NumPy only."""

from subp_ext.convolution import conv2d
from subp_ext.format import FormatError, load, save
from subp_ext.graph import Graph, Node, Ref, TensorSpec
from subp_ext.operators import supported_ops
from subp_ext.runtime import cpu_info
from subp_ext.session import Session
from subp_ext.sparse import UniformBlockSparse

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


def __getattr__(name: str) -> str:
    """The version, once somebody asks: what finds it takes 3 MB of memory."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("subp-dist")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
