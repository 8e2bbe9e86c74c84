"""A block mask on a module's weight, with a straight-through gradient.

The module stays what it is (so timm's own convolutions keep working, and so do optimizers); its ``weight`` becomes a
view of the latent weight through the mask. State-dict keys change with it: ``conv.weight`` is kept as
``conv.parametrizations.weight.original`` (latent) and ``conv.parametrizations.weight.0.mask``, so a checkpoint of a
pruned model cannot be loaded into a plain one by accident. ``plain_state_dict`` gives timm's keys back.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .blocks import apply_mask, num_block_rows


class _StraightThrough(torch.autograd.Function):
    """Forward W * m; backward the identity, so that pruned blocks go on learning and may come back."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, block_size: int, groups: int) -> Tensor:
        return apply_mask(weight, mask, block_size, groups)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None, None


class BlockMask(nn.Module):
    """The parametrization: holds the mask ``[R, I]`` of one weight and applies it.

    The mask is a bool buffer that is only ever written in place: weight averages copy it instead of averaging it,
    and compiled code sees the change.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, block_size: int, groups: int = 1) -> None:
        super().__init__()
        self.block_size, self.groups = block_size, groups
        rows = num_block_rows(weight.shape[0], block_size, groups)
        self.register_buffer("mask", torch.ones(rows, weight.shape[1], dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return _StraightThrough.apply(weight, self.mask, self.block_size, self.groups)

    def pruned_part(self, weight: Tensor) -> Tensor:
        """The latent weight where it is masked, zero elsewhere."""
        return apply_mask(weight, ~self.mask, self.block_size, self.groups)

    def extra_repr(self) -> str:
        rows, channels = self.mask.shape
        return f"block_rows={rows}, in_channels={channels}, block_size={self.block_size}, groups={self.groups}"


def mask_weight(module: nn.Module, block_size: int) -> BlockMask:
    """Put an all-ones block mask on ``module.weight`` and return it.

    Raises:
        ValueError: there is one already.
    """
    if block_mask_of(module) is not None:
        raise ValueError("the module has a block mask already: one SUBPPruner per model")
    block_mask = BlockMask(module.weight, block_size, getattr(module, "groups", 1))
    parametrize.register_parametrization(module, "weight", block_mask, unsafe=True)
    return block_mask


def block_mask_of(module: nn.Module) -> BlockMask | None:
    """The block mask on a module's weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    return next((p for p in module.parametrizations.weight if isinstance(p, BlockMask)), None)


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model whose masked weights are plain parameters, zeros baked in; the model stays as it is.

    A copied module shares the class that torch made for its parametrized original, and torch's own removal edits that
    class; so the copy gets the module's first class back instead.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if block_mask_of(module) is not None:
            weight = module.weight
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            module.weight = nn.Parameter(weight)
    return model


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict with the keys that the model had without masks, and zeros where blocks are pruned."""
    plain = {}
    for key, value in model.state_dict().items():
        if key.endswith(".parametrizations.weight.original"):
            name = key.removesuffix(".parametrizations.weight.original")
            plain[f"{name}.weight"] = model.get_submodule(name).weight.detach()
        elif not key.endswith(".parametrizations.weight.0.mask"):
            plain[key] = value
    return plain
