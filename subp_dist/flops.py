"""Multiply-accumulates (MACs) of a model's convolutions and linear layers, dense and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import CondConv2d
from torch import Tensor, nn

from .torch_compat import ANY_CONVOLUTION, ANY_TRANSPOSED


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Dense MACs of every convolution and ``Linear`` of a model for one input ``(channels, height, width)``.

    One image is run through the model in evaluation mode, so layers that are never called do not count and layers
    that are called twice count twice.
    """
    macs: dict[str, int] = {}

    def count(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # conv: every output element costs one filter; linear: every output feature one row of the weight;
            # transposed: every input element is spread over one. A CondConv2d runs the mixture of its kernels.
            shape = torch.Size(module.weight_shape) if isinstance(module, CondConv2d) else module.weight.shape
            positions = inputs[0][0].numel() if isinstance(module, ANY_TRANSPOSED) else output[0].numel()
            macs[name] = macs.get(name, 0) + positions * shape[1:].numel()

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, ANY_CONVOLUTION | CondConv2d | nn.Linear)
    ]
    was_training = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in was_training.items():
            module.training = training
    return macs


def rate_for_macs(target: float, kept_macs: Callable[[float], float]) -> float:
    """The smallest uniform pruning rate that brings a model down to a number of MACs.

    Args:
        target: MACs wanted.
        kept_macs: kept MACs of the model as a function of the rate; falls as the rate rises.

    Raises:
        ValueError: no rate in [0, 1) reaches the target.
    """
    dense, floor = kept_macs(0.0), kept_macs(1 - 1e-9)
    if not target < dense:
        raise ValueError(f"target of {target:.4g} MACs: the dense model has only {dense:.4g}; ask for less")
    if target < floor:
        raise ValueError(f"target of {target:.4g} MACs: with one block left per row {floor:.4g} remain; ask for more")
    low, high = 0.0, 1 - 1e-9
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if kept_macs(middle) <= target else (middle, high)
    return high
