"""An int8 graph that a training with fake quantization came to, as a checkpoint holds it and as a file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import subp_ext
from subp_ext import Graph

from .int8 import check_kind, write_quantized


def as_tensor(graph: Graph) -> Tensor:
    """A graph as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.subp"
        subp_ext.save(path, graph)
        return torch.from_numpy(np.fromfile(path, np.uint8))


def as_graph(file: Tensor) -> Graph:
    """The graph of such bytes."""
    return subp_ext.load(file.numpy().tobytes())


def export_trained(
    state: Mapping[str, Any], path: Path, uint8_input: str | None = None, kind: str = "subp"
) -> dict[str, Any]:
    """Write the integers that a training saw as a file, whole or not at all; nothing is calibrated.

    Args:
        state: what the checkpoint holds of the training with fake quantization.
        path: the file.
        uint8_input, kind: as ``export_int8`` takes them.

    Returns:
        The report of the calibration that the training began with, as ``QuantizeReport.to_json`` has it.

    Raises:
        UsageError: there is no such file, or it computes something else.
        OSError: it cannot be written.
    """
    check_kind(kind, uint8_input)
    graph = as_graph(state["graph"])
    write_quantized(graph, path, state["images"].numpy(), uint8_input, kind)
    return state["report"]


def said_of(state: Mapping[str, Any]) -> str:
    """One line for people."""
    found, before = state["report"], state["float32"]
    share = f"{found['int8_macs_share']:.1%} of the MACs in int8, as trained since epoch {state['epoch']}"
    return f"{share} (float32 had {before['top1']:.2f} % top-1 then)" if "top1" in before else share
