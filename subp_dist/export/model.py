"""Any model as a ``.subp`` file, in one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import subp_ext
from subp_ext import Graph

from ..checkpoint import check_writable, write_atomically
from ..errors import UsageError
from ..flag_values import check_several
from .bfloat16 import write_bfloat16
from .example import Example, ExampleInputs
from .int8 import export_int8
from .plain import unwrapped
from .subp import checked
from .summary import ExportSummary, summarize
from .verify import run_session

_logger = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """What `export_model` was asked for, its arguments checked."""

    model: nn.Module
    example: Example
    path: Path
    metadata: Mapping[str, object]
    names: Sequence[str] | None
    calibration: Iterable[Any] | None

    def graph(self) -> Graph:
        """The model's graph in float32, compared with torch."""
        return checked(self.model, self.example, self.metadata, self.names)


def export_model(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | PathLike[str],
    *,
    dtype: str = "float32",
    calibration: Iterable[Any] | None = None,
    metadata: Mapping[str, object] | None = None,
    names: Sequence[str] | None = None,
) -> ExportSummary:
    """Write a model as a ``.subp`` file, which ``subp_ext.Session`` runs without torch.

    Any module that ``torch.export`` follows: with or without a pruner, in either mode, on any device, inside of
    DistributedDataParallel or ``torch.compile``; it stays as it is. What runs is the model after ``eval()``. Masks
    become the sparsity of the file, and so do zeros in blocks of 1xN that somebody else's training left.

    The results of the file are compared with those of torch: for the example, one image, several and many, and at other
    sizes where it leaves them free. The file has its name only then.

    Args:
        model: returns tensors, nested in lists, tuples and dicts as it likes.
        example_inputs: a tensor or NumPy array; a tuple or list of the model's arguments, each nested as the model
            takes it; or a dict of them by name. The first dimension of the first tensor is the batch, and that of those
            with as many entries. A size of 1 stays 1, that of the batch aside.
        path: the file; written whole or not at all.
        dtype: a name in ``DTYPES``.
        calibration: for int8: a dataset, a loader or any iterable of images `[C, H, W]` or batches `[B, C, H, W]`,
            normalised, or of tuples that start with them; hundreds of images.
        metadata: JSON values kept in the file for whoever serves it, such as ``mean`` and ``class_names``.
        names: of the outputs, in order; by default the keys under which the model returns them.

    Returns:
        What the file takes, returns and runs on; as text it is a few lines.

    Raises:
        UsageError: torch.export cannot follow the model, the runtime has no operator for a part of it, its results
            would be others than torch's, or an argument does not fit.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_writable(path)
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if (calibration is not None) != (dtype == "int8"):
        raise UsageError(
            "dtype 'int8' needs calibration: an iterable of images or batches, hundreds of images"
            if dtype == "int8"
            else f"calibration belongs to dtype 'int8'; {dtype} needs none"
        )
    check_several(names, "names")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UsageError(f"metadata {metadata!r}: expected a dict of JSON values")
    model = unwrapped(model)
    example = Example.of(example_inputs, model)
    given = {"input_size": list(example.tensors[0].shape[1:])} if len(example.tensors) == 1 else {}
    DTYPES[dtype](_Wanted(model, example, path, given | dict(metadata or {}), names, calibration))
    summary = summarize(path, example)
    _logger.info("%s", summary)
    return summary


def _write_float32(wanted: _Wanted) -> None:
    write_graph(wanted.graph(), wanted.path, wanted.example)


def write_graph(graph: Graph, path: Path, example: Example) -> None:
    """Write a graph that was compared with its model, and compare what is read from the file with it.

    Raises:
        UsageError: the file computes other results than the graph.
        OSError: it cannot be written.
    """
    inputs = example.fitting(graph)
    expected = run_session(subp_ext.Session(graph), inputs)

    def write(temporary: Path) -> None:
        subp_ext.save(temporary, graph)
        found = run_session(subp_ext.Session(temporary), inputs)
        if not all(np.array_equal(ours, theirs, equal_nan=True) for ours, theirs in zip(found, expected, strict=True)):
            raise UsageError(f"{path}: the file computes other results than its graph; please report it with the model")

    write_atomically(path, write)


def _write_bfloat16(wanted: _Wanted) -> None:
    _logger.info("%s: %s", wanted.path.name, write_bfloat16(wanted.graph(), wanted.path, wanted.example))


def _write_int8(wanted: _Wanted) -> None:
    """Static quantization after training.

    Raises:
        UsageError: as ``export_int8``, or the model takes something else than images.
    """
    tensors = wanted.example.tensors
    if len(tensors) != 1 or tensors[0].ndim != 4 or not tensors[0].is_floating_point():
        raise UsageError(
            "dtype 'int8' takes models that are called with images [B, C, H, W] and no other tensor; this one is "
            f"called with {wanted.example.described}: export it as float32 or bfloat16"
        )
    assert wanted.calibration is not None
    images = calibration_array(wanted.calibration)
    _logger.info("%s: %s", wanted.path.name, export_int8(wanted.graph(), wanted.path, images).summary())


def calibration_array(calibration: Iterable[Any]) -> np.ndarray:
    """Images [n, C, H, W] float32 of a dataset, a loader or any other iterable.

    Raises:
        UsageError: an entry is no image and no batch, or they differ in size.
    """
    parts = []
    # Datasets need not end an iteration over their indices by themselves.
    entries = islice(calibration, len(calibration)) if isinstance(calibration, Sized) else calibration
    for entry in entries:
        images = entry[0] if isinstance(entry, (tuple, list)) and len(entry) else entry
        array = np.asarray(images.detach().cpu().float() if isinstance(images, torch.Tensor) else images)
        if array.ndim not in (3, 4) or array.dtype.kind != "f":
            raise UsageError(
                f"calibration holds {array.dtype} of shape {list(array.shape)}; expected normalised images [C, H, W] "
                "or batches [B, C, H, W] in floating point"
            )
        parts.append(array[None] if array.ndim == 3 else array)
    if not parts or len({part.shape[1:] for part in parts}) > 1:
        found = ", ".join(sorted({str(list(part.shape[1:])) for part in parts})) or "nothing"
        raise UsageError(f"calibration holds {found}; expected images of one size")
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


# How a model is written, by the type of its weights and activations.
DTYPES: dict[str, Callable[[_Wanted], None]] = {
    "float32": _write_float32,
    "bfloat16": _write_bfloat16,
    "int8": _write_int8,
}
