"""Where fake quantization starts: a trained network, calibrated, as a module that goes on learning.

Its state is plain enough for checkpoints and for other ranks: the bytes of the calibrated graph, and trained values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subp_ext import Graph, UniformBlockSparse

from ..errors import UsageError
from ..export.calibrate import FEWEST_IMAGES
from ..export.calibration_images import random_images
from ..export.integers import FakeQuantized
from ..export.network import Network
from ..export.quantize import QuantizeOptions, quantize_from
from ..export.sizes import first_line
from ..export.subp import checked_graph
from ..export.trained import as_graph, as_tensor
from ..parametrization import plain_state_dict

# Of a channel whose weights say nothing about its size.
_NO_UNIT = 1.0

# Pictures that an exported file is checked on.
_CHECKED_ON = 4


def calibrated(network: Network, images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Quantize a network as int8 export does, all layers that can be, and keep what it was rounded from.

    Args:
        network: masked or plain; it stays as it is.
        images: for calibration, [n, C, H, W] float32, normalised.
        labels: [n] their classes.

    Returns:
        The state that ``restored`` takes, and the ``report`` of the calibration, and ``images`` to check files on.

    Raises:
        UsageError: it cannot be quantized.
    """
    exact = checked_graph(network.model, network.input_size, network.metadata)
    named, report, source = quantize_from(exact, images, QuantizeOptions(), labels)
    about = {key: value for key, value in report.to_json().items() if key != "layers"}
    named.metadata = named.metadata | {"quantization": about | {"kept_float": report.kept}}
    module = FakeQuantized(named)
    _assign(module, named, source, exact, plain_state_dict(network.model))
    few = torch.from_numpy(images[:_CHECKED_ON].copy())
    return state_of(module) | {"report": report.to_json(), "images": few}


def check_trainable(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Try a step of what the last epochs will do, on random pictures.

    Raises:
        UsageError: torch cannot compute the graph that the runtime would run, or the network cannot be quantized.
    """
    images = random_images(input_size, FEWEST_IMAGES)
    try:
        module = restored(calibrated(Network(model, input_size, {}, {}), images)).train()
        result = module(torch.from_numpy(images[:2]))
        if not isinstance(result, Tensor):
            raise UsageError("the network has several results; expected one, the logits")
        result.square().sum().backward()
    except UsageError as error:
        raise UsageError(f"--qat-epochs: {error}") from error
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"--qat-epochs: torch does not run the graph of this network: {first_line(error)}") from error


def restored(state: Mapping[str, Any]) -> FakeQuantized:
    """The module of a state."""
    module = FakeQuantized(as_graph(state["graph"]))
    module.load_state_dict(state["module"])
    return module


def state_of(module: FakeQuantized) -> dict[str, Any]:
    """The integers that the module has come to, as a graph, and what it trains."""
    return {"graph": as_tensor(module.integers()), "module": module.state_dict()}


def _assign(module: FakeQuantized, named: Graph, source: Graph, exact: Graph, trained: Mapping[str, Tensor]) -> None:
    """Give the module the weights that were rounded, in units that make them as large as they were in training.

    Args:
        module: of the int8 graph ``named``; it takes that one's biases, which are corrected.
        source: the graph in float32 that was rounded: with channels that depthwise layers read brought to one range.
        exact: the same before that.
        trained: the network's own weights by name, before batch norms were folded into them.
    """
    rounded_from = {node.output: node for node in source.nodes}
    constants: dict[str, Tensor] = {}
    units: dict[str, Tensor] = {}
    for node in module.layers:
        own = rounded_from[node.output.removesuffix(".uint8")].args["weight"].name
        weight = _dense(source.constants[own])
        name, bias = node.args["weight"].name, node.args.get("bias")
        constants[name] = weight
        units[name] = _ratio(weight, trained.get(own))
        if bias is not None:
            constants[bias.name] = torch.from_numpy(np.array(named.constants[bias.name], np.float32))
            units[bias.name] = _ratio(weight, _dense(exact.constants[own]))
    module.assign(constants, units)


def _dense(constant: Any) -> Tensor:
    dense = constant.to_dense() if isinstance(constant, UniformBlockSparse) else constant
    return torch.from_numpy(np.array(dense, np.float32))


def _ratio(weight: Tensor, before: Tensor | None) -> Tensor:
    """``[O]``, by how much each output channel of a weight is larger than it was; 1 where that cannot be said."""
    if before is None or before.numel() != weight.numel():
        return torch.full((len(weight),), _NO_UNIT)
    now, then = (part.detach().cpu().double().reshape(len(weight), -1).norm(dim=1) for part in (weight, before))
    ratio = (now / then).float()
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, _NO_UNIT)
