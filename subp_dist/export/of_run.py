"""The file in bfloat16 or int8 that a training writes beside its float32 one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from ..data import Data
from ..errors import UsageError
from .bfloat16 import export_bfloat16
from .calibrate import FEWEST_IMAGES, value_shapes
from .int8 import calibration_images, export_int8
from .network import Network
from .placement import place
from .quantize import QuantizeOptions
from .quantize_report import QuantizeReport
from .subp import build_graph
from .trained import export_trained, said_of

_logger = logging.getLogger(__name__)
_Found = TypeVar("_Found")

# Pictures to calibrate on, and points of top-1 that may be lost on them, as `python -m subp_dist.export` has them.
CALIBRATION_IMAGES, MAX_DROP = 512, 1.0


def check_quantizable(model: nn.Module, data: Data) -> None:
    """Find out before a training, not after it, whether its result can be quantized.

    Raises:
        UsageError: it cannot: the model has no layer for integers, or there are too few pictures to calibrate on.
    """
    if len(data.train) < FEWEST_IMAGES:
        raise UsageError(
            f"--export-dtype int8: {len(data.train)} training images are too few to calibrate on; expected "
            f"{FEWEST_IMAGES} or more, better hundreds, or --export-dtype float32"
        )
    graph = build_graph(model, data.input_size)
    try:
        place(graph, value_shapes(graph, np.zeros((1, *data.input_size), np.float32)))
    except UsageError as error:
        raise UsageError(f"--export-dtype int8: {error}") from error


def export_run_int8(network: Network, data: Data, path: Path) -> dict | None:
    """Quantize a trained network on its training pictures; a failure is told, and does not end the run.

    Returns:
        The report, as ``QuantizeReport.to_json`` has it; None without a file.

    Raises:
        OSError: the file cannot be written.
    """
    images, labels = calibration_images(data, CALIBRATION_IMAGES)
    options = QuantizeOptions(max_drop=MAX_DROP)
    hint = "; python -m subp_dist.export --dtype int8 has more flags"
    report = _told(path, lambda: export_int8(network, path, images, labels, options), QuantizeReport.summary, hint)
    return None if report is None else report.to_json()


def export_run_trained(state: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Write the integers that a run was trained with; a failure is told, and does not end the run.

    Args:
        state: what its checkpoint holds of the training with fake quantization.
        path: the file.

    Returns:
        The report of the calibration that this training began with; None without a file.

    Raises:
        OSError: the file cannot be written.
    """
    return _told(path, lambda: export_trained(state, path), lambda _: said_of(state))


def export_run_bfloat16(network: Network, path: Path) -> None:
    """Write a trained network in bfloat16; a failure is told, and does not end the run.

    Raises:
        OSError: the file cannot be written.
    """
    _told(path, lambda: export_bfloat16(network, path), str)


def _told(path: Path, export: Callable[[], _Found], summary: Callable[[_Found], str], hint: str = "") -> _Found | None:
    """What an export returns, summed up in the log; None if there cannot be such a file, with the reason there."""
    try:
        found = export()
    except UsageError as error:
        _logger.warning("there is no %s: %s%s", path.name, error, hint)
        return None
    _logger.info("%s: %s", path.name, summary(found))
    return found
