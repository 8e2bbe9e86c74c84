"""A network as an int8 file: quantized, checked against float32 and against torch, then written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import subp_ext
from subp_ext import Graph, UniformBlockSparse
from subp_ext.dtypes import TypedArray

from ..checkpoint import write_atomically
from ..errors import UsageError
from .calibrate import batches
from .calibration_images import calibration_images, images_of_folder, images_of_run, random_images
from .integers import FakeQuantized
from .network import Network
from .outputs import name_outputs
from .qdq import write_qdq_onnx
from .quantize import QuantizeOptions, quantize_by_name
from .quantize_report import QuantizeReport, agreement, sqnr
from .subp import checked_graph
from .tables import LAYOUTS, with_tables, with_uint8_input

__all__ = ["calibration_images", "export_int8", "images_of_folder", "images_of_run", "random_images"]

KINDS = ("subp", "onnx")

# Images that a file is checked on.
_CHECKED_ON = 4

# Of a file against an oracle, in dB. Another order of sums flips single steps of 256 where a value lies between two of
# them; a wrong scale, table or kernel is at 10 dB or below.
_SAME = 20.0

# Of other engines, which keep residuals in int8 too.
_SAME_ELSEWHERE = 10.0


def export_int8(
    network: Network | Graph,
    path: Path,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    options: QuantizeOptions | None = None,
    uint8_input: str | None = None,
    kind: str = "subp",
) -> QuantizeReport:
    """Write a network as an int8 file, whole or not at all.

    Args:
        network: is traced and compared with torch in float32; or its graph, of images [B, C, H, W], for which that was
            done.
        path: the file.
        images: for calibration, [n, C, H, W] float32, normalised; hundreds.
        labels: [n] their classes, to say what is lost of top-1.
        options: how to quantize.
        uint8_input: the file takes raw pixels, uint8, ``nchw`` or ``nhwc``, in place of normalised images.
        kind: ``subp``, or ``onnx`` with QuantizeLinear and DequantizeLinear.

    Returns:
        What became of each layer. Its ``to_json`` without the layers is in the file's metadata, as ``quantization``.

    Raises:
        UsageError: the network cannot be quantized or written so, or the file computes something else.
        OSError: it cannot be written.
    """
    check_kind(kind, uint8_input)
    if isinstance(network, Network):
        network = checked_graph(network.model, network.input_size, network.metadata)
    names = [spec.name for spec in network.outputs]
    # Names of values that are added have dots in them; the results' own come back at the end.
    graph = name_outputs(network, [name.replace(".", "_") for name in names])
    named, report = quantize_by_name(graph, images, options or QuantizeOptions(), labels)
    _check_zeros(graph, named)
    about = {key: value for key, value in report.to_json().items() if key != "layers"}
    named.metadata = named.metadata | {"quantization": about | {"kept_float": report.kept}}
    write_quantized(named, path, next(batches(images, named, _CHECKED_ON)), uint8_input, kind, names)
    return report


def check_kind(kind: str, uint8_input: str | None) -> None:
    """Refuse what there is no such file of.

    Raises:
        UsageError: the message names the flag.
    """
    if kind not in KINDS:
        raise UsageError(f"--format {kind} --dtype int8: expected --format {' or '.join(KINDS)}")
    if uint8_input is not None and kind != "subp":
        raise UsageError(f"--uint8-input belongs to --format subp; {kind} files take normalised images")
    if uint8_input not in (None, *LAYOUTS):
        raise UsageError(f"--uint8-input {uint8_input}: expected one of {', '.join(LAYOUTS)}")


def write_quantized(
    named: Graph,
    path: Path,
    few: np.ndarray,
    uint8_input: str | None = None,
    kind: str = "subp",
    names: Sequence[str] | None = None,
) -> None:
    """Write an int8 graph, its activations by their names, once it computes on a few images what torch does.

    Args:
        named: the graph.
        path: the file.
        few: [n, C, H, W] float32, normalised.
        uint8_input: as for ``export_int8``.
        kind: as for ``export_int8``.
        names: of the results in the file, if not the graph's.

    Raises:
        UsageError: the file computes something else.
        OSError: it cannot be written.
    """
    names = names or [spec.name for spec in named.outputs]
    tabled = with_tables(named)
    found = _first(subp_ext.Session(tabled).run(few))
    _check_oracle(named, few, found)
    if kind == "onnx":
        write_atomically(path, lambda file: _write_onnx(name_outputs(named, names), file, few, found))
    else:
        final = name_outputs(tabled if uint8_input is None else _with_pixels(tabled, uint8_input), names)
        write_atomically(path, lambda file: _write_subp(final, file, tabled, few, found))


def _first(results: object) -> np.ndarray:
    return np.asarray(results[0] if isinstance(results, (tuple, list)) else results)


def _check_zeros(exact: Graph, quantized: Graph) -> None:
    """What is 0 in a weight, as all of a pruned block is, has to be 0 in int8."""
    for name, constant in quantized.constants.items():
        if not isinstance(constant, (TypedArray, UniformBlockSparse)) or name not in exact.constants:
            continue
        before = exact.constants[name]
        if isinstance(constant, UniformBlockSparse) and isinstance(before, UniformBlockSparse):
            assert np.array_equal(constant.indices, before.indices), f"{name}: other blocks are kept in int8"
            before, constant = before.values, constant.values
        else:
            assert isinstance(constant, TypedArray) and isinstance(before, np.ndarray)
            constant = constant.values
        assert not constant[before == 0].any(), f"{name}: a zero is not 0 in int8"


def _check_oracle(named: Graph, images: np.ndarray, found: np.ndarray) -> None:
    """Compares with torch, which computes with the same integers.

    Raises:
        UsageError: they are different networks.
    """
    module = FakeQuantized(named).eval()
    with torch.inference_mode():
        result = module(torch.from_numpy(images))
    expected = next(iter(result.values())) if isinstance(result, dict) else result
    noise = sqnr(expected.numpy(), found)
    if not noise >= _SAME:
        raise UsageError(
            f"int8 is not exported: subp_ext and torch compute different results of the quantized network ({noise:.0f} "
            f"dB, expected {_SAME:g} or more); please report it with the model"
        )


def _with_pixels(graph: Graph, layout: str) -> Graph:
    mean, std = graph.metadata.get("mean"), graph.metadata.get("std")
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        raise UsageError("--uint8-input needs the mean and std that images are normalised with; the network has none")
    return with_uint8_input(graph, layout, list(mean), list(std))


def _write_subp(graph: Graph, file: Path, normalised: Graph, images: np.ndarray, found: np.ndarray) -> None:
    """Writes the file, and compares what is read from it with the graph it was written from.

    Raises:
        UsageError: it computes something else.
    """
    subp_ext.save(file, graph)
    session = subp_ext.Session(file)
    if graph.inputs[0].dtype != "uint8":
        same = np.array_equal(_first(session.run(images)), found)
    else:
        layout, shape = graph.metadata["uint8_input"], images.shape
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        mean, std = graph.metadata["mean"], graph.metadata["std"]
        real = _normalise(pixels, mean, std)
        given = pixels if layout == "nchw" else np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        same = np.array_equal(_first(session.run(given)), _first(subp_ext.Session(normalised).run(real)))
    if not same:
        raise UsageError("int8 is not exported: the file computes other results than its graph; please report it")


def _normalise(pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    images = torch.from_numpy(pixels).float() / 255
    shape = (1, -1, 1, 1)
    return ((images - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)).numpy()


def _write_onnx(named: Graph, file: Path, images: np.ndarray, found: np.ndarray) -> None:
    """Writes the file, and runs it where ONNX Runtime is installed.

    Raises:
        UsageError: its results have little to do with the graph's.
    """
    write_qdq_onnx(named, file, images.shape[1:])
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    result = _first(session.run(None, {"input": images}))
    noise = sqnr(found, result)
    if not noise >= _SAME_ELSEWHERE:
        raise UsageError(
            f"int8 is not exported: ONNX Runtime computes other results of the QDQ file ({noise:.0f} dB, same "
            f"prediction on {agreement(found, result):.0f} % of {len(found)} images); please report it with the model"
        )
