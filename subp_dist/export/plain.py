"""A model as export needs it: a copy of its own, its masks, norms of weights and wrappers folded into plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..parametrization import plain_copy
from ..torch_compat import compiled_from, pre_hooks

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel, DataParallel and ``torch.compile``."""
    while (inner := model.module if isinstance(model, _WRAPPERS) else compiled_from(model)) is not None:
        model = inner
    return model


def plain_module(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode and float32, whose weights are what its parametrizations compute."""
    with _no_computed_tensors(model):
        plain = plain_copy(model).cpu().float().eval()
    with torch.no_grad():
        for module in plain.modules():
            _remove_hooks(module)
            if parametrize.is_parametrized(module):
                _remove_parametrizations(module)
    return plain.requires_grad_(False)


@contextmanager
def _no_computed_tensors(model: nn.Module) -> Iterator[None]:
    """Detach what norms of weights leave in a module between two runs, which no copy can hold."""
    computed = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    try:
        for attributes, name, value in computed:
            attributes[name] = value.detach()
        yield
    finally:
        for attributes, name, value in computed:
            attributes[name] = value


def _remove_hooks(module: nn.Module) -> None:
    """Norms of weights that are hooks."""
    for hook in pre_hooks(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)


def _remove_parametrizations(module: nn.Module) -> None:
    """Norms of weights, and other parametrizations; torch's own removal would edit the class of the module copied."""
    values = {name: getattr(module, name) for name in module.parametrizations}
    buffers = {
        name for name, of in module.parametrizations.items() if "original" in dict(of.named_buffers(recurse=False))
    }
    module_class = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = module_class
    for name, value in values.items():
        if name in buffers:
            module.register_buffer(name, value.detach())
        else:
            module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
