"""The files a network can become, each checked against torch before it gets its name."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import subp_ext

from ..checkpoint import save_plain_weights, write_atomically
from ..errors import UsageError
from ..models import create_model
from ..parametrization import plain_copy, plain_state_dict
from .example import Example
from .network import Network
from .outputs import output_values
from .subp import export_subp
from .trace import export_program
from .verify import TOLERANCE, largest_difference, run_model

Results = np.ndarray | Sequence[np.ndarray]


@dataclass(frozen=True)
class Format:
    """A kind of file: the end of its name, how to write it, and how to run it for a check.

    ``engine(network, path)`` returns a function from images ``[B, C, H, W]`` to the model's result, or to all of
    several; None where the package that runs the file is not installed.
    """

    suffix: str
    write: Callable[[Network, Path], None]
    engine: Callable[[Network, Path], Callable[[np.ndarray], Results] | None]


def export(network: Network, kind: str, output: Path) -> float | None:
    """Write a network as a file of one of ``FORMATS``, whole or not at all.

    Returns:
        The largest difference of the file's results from torch, relative to the range of the logits; None if what
        runs such files is not installed.

    Raises:
        UsageError: the network cannot be written in this format, or the file would compute something else.
        OSError: the file cannot be written.
    """
    found: list[float | None] = []

    def write(path: Path) -> None:
        FORMATS[kind].write(network, path)
        engine = FORMATS[kind].engine(network, path)
        found.append(None if engine is None else difference_from_torch(network, engine))
        if found[0] is not None and not found[0] <= TOLERANCE:
            raise UsageError(
                f"the {kind} file of {type(network.model).__name__} differs from torch by {found[0]:.1e} of the "
                f"logits' range, more than {TOLERANCE:g}; it was not written"
            )

    write_atomically(output, write)
    return found[0]


def difference_from_torch(network: Network, engine: Callable[[np.ndarray], Results], images: int = 2) -> float:
    """The largest difference of any result on random images, relative to its range (``largest_difference``)."""
    batch = torch.randn(images, *network.input_size, generator=torch.Generator().manual_seed(0))
    expected = run_model(network.model.eval(), batch)
    try:
        found = _as_list(engine(batch.numpy()))
    except ValueError:  # traced for batches of one
        parts = [_as_list(engine(image[None])) for image in batch.numpy()]
        found = list(map(np.concatenate, zip(*parts, strict=True)))
    if [part.shape for part in found] != [part.shape for part in expected]:
        return float("inf")
    return max(map(largest_difference, found, expected))


def _as_list(results: Results) -> list[np.ndarray]:
    return [results] if isinstance(results, np.ndarray) else list(results)


def _one_or_all(results: list[np.ndarray]) -> Results:
    return results[0] if len(results) == 1 else results


def _write_subp(network: Network, path: Path) -> None:
    export_subp(network.model, path, network.input_size, network.metadata)


def _subp_engine(network: Network, path: Path) -> Callable[[np.ndarray], Results]:
    try:
        return subp_ext.Session(path).run
    except ImportError as error:
        raise UsageError(f"the file cannot be checked: {error}") from error


def _write_timm(network: Network, path: Path) -> None:
    text = {key: json.dumps(value) for key, value in network.metadata.items() if value is not None}
    save_plain_weights(path, plain_state_dict(network.model), text)


def _timm_engine(network: Network, path: Path) -> Callable[[np.ndarray], Results]:
    """A fresh timm model with the file's weights."""
    model = create_model(str(network.metadata["model"]), **network.arguments)
    model.load_state_dict(load_file(path))
    model.eval()

    return lambda images: _one_or_all(run_model(model, torch.from_numpy(images)))


def _write_onnx(network: Network, path: Path) -> None:
    plain = plain_copy(network.model).cpu().float().eval().requires_grad_(False)
    write_onnx(plain, network.input_size, path, network.metadata)


def write_onnx(model: nn.Module, input_size: tuple[int, int, int], path: Path, metadata: dict | None = None) -> None:
    """Write a plain model as ONNX: ``input [batch, C, H, W]`` to ``output``; any batch where the model allows it.

    Several results are outputs of their own, named by their keys.

    Raises:
        UsageError: a package is missing, or torch's exporter cannot translate the model.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"ONNX export needs {error.name}: pip install 'subp-dist[onnx]'") from error
    program = export_program(model, Example.images(input_size))
    results = [name for _, name in output_values(program)]
    names = ["output"] if len(results) == 1 else [name or f"output.{at}" for at, name in enumerate(results)]
    # The exporter narrates; a failure says enough.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = torch.onnx.export(program, input_names=["input"], output_names=names, dynamo=True, verbose=False)
    except Exception as error:  # the exporter's own types are many, and say it in their first line
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"torch.onnx cannot export {type(model).__name__}: {first}") from error
    if result.model.graph.inputs[0].shape is not None and not isinstance(result.model.graph.inputs[0].shape[0], int):
        result.model.graph.inputs[0].shape[0] = "batch"
    for key, value in (metadata or {}).items():
        if value is not None:
            result.model.metadata_props[key] = json.dumps(value)
    try:
        result.save(path, external_data=False)
    except ValueError as error:
        raise UsageError(f"{type(model).__name__} is larger than the 2 GB that one ONNX file can hold") from error


def _onnx_engine(network: Network, path: Path) -> Callable[[np.ndarray], Results] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    is_single = session.get_inputs()[0].shape[0] == 1

    def run(images: np.ndarray) -> Results:
        if is_single and len(images) != 1:
            raise ValueError(f"a batch of {len(images)}: the model was traced for 1")
        return _one_or_all(session.run(None, {"input": images}))

    return run


FORMATS = {
    "subp": Format(".subp", _write_subp, _subp_engine),
    "timm": Format(".safetensors", _write_timm, _timm_engine),
    "onnx": Format(".onnx", _write_onnx, _onnx_engine),
}
