"""A network in bfloat16: half the file, and products of bfloat16 where the CPU has them; nothing to calibrate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import subp_ext
from subp_ext import Graph
from subp_ext.bfloat16 import convert

from ..checkpoint import write_atomically
from ..errors import UsageError
from .example import Example
from .network import Network
from .quantize_report import sqnr
from .subp import checked_graph
from .verify import run_session

# Random images that bfloat16 is compared with float32 on, and the decibels of signal over difference that it must keep:
# rounding leaves 40 to 50, and 20 in random networks that amplify it. Of whole numbers that share may stay the same
# instead.
_IMAGES, _LEAST_SQNR, _LEAST_SAME = 8, 6.0, 0.5


def export_bfloat16(network: Network, path: Path) -> str:
    """Write a network as a ``.subp`` file in bfloat16, whole or not at all.

    It is traced and compared with torch in float32, then converted, and the file is compared with what it was.

    Returns:
        What was found, for people.

    Raises:
        UsageError: the network cannot be exported, has no layer that bfloat16 is for, or computes something else in it.
        OSError: the file cannot be written.
    """
    graph = checked_graph(network.model, network.input_size, network.metadata)
    return write_bfloat16(graph, path, Example.images(network.input_size))


def write_bfloat16(graph: Graph, path: Path, example: Example) -> str:
    """Write a graph in float32 as a file in bfloat16; results and errors as ``export_bfloat16``.

    Args:
        graph: that was compared with its model.
        path: the file.
        example: of its inputs.
    """
    converted = in_bfloat16(graph)
    said: list[str] = []

    def write(temporary: Path) -> None:
        subp_ext.save(temporary, converted)
        said.append(compared(graph, temporary, example))

    write_atomically(path, write)
    return said[0]


def in_bfloat16(graph: Graph) -> Graph:
    """The graph with weights and planes in bfloat16.

    Raises:
        UsageError: it has no layer for it.
    """
    converted = convert(graph)
    if converted is graph:
        raise UsageError(
            "bfloat16 changes nothing: the network has no convolution or linear layer with a weight in float32; export "
            "it with --dtype float32"
        )
    return converted


def compared(graph: Graph, path: Path, example: Example) -> str:
    """Says how near a file in bfloat16 is to its graph in float32, on random inputs like the example.

    Raises:
        UsageError: its results have little to do with those in float32.
    """
    images = example.of_batch(_IMAGES).fitting(graph).random()
    expected = run_session(subp_ext.Session(graph, dtype="float32"), images)
    found = run_session(subp_ext.Session(path), images)
    pairs = list(zip(expected, found, strict=True))
    real = [_decibels(exact, ours) for exact, ours in pairs if exact.dtype.kind == "f"]
    whole = [
        (float((exact == ours).mean()), _decibels(exact, ours)) for exact, ours in pairs if exact.dtype.kind != "f"
    ]
    # Whole numbers may be classes, of which most stay, or counts, which are near.
    likest = [noise if same < _LEAST_SAME else np.inf for same, noise in whole]
    said = [f"{min(real):.0f} dB of signal over the difference from float32"] if real else []
    said += [f"{100 * min(same for same, _ in whole):.1f} % of whole numbers as in float32"] if whole else []
    if not min([*real, *likest]) >= _LEAST_SQNR:
        raise UsageError(
            f"the network loses too much in bfloat16: {' and '.join(said)}, expected {_LEAST_SQNR:g} dB"
            f"{f' or {100 * _LEAST_SAME:g} %' if whole else ''} or more; it was not written, export it in float32"
        )
    return f"{' and '.join(said)} on random images"


def _decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """Signal over difference where results are finite; -inf if one alone is infinite, or not a number, anywhere."""
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return -np.inf
    return sqnr(exact[finite], found[finite])
