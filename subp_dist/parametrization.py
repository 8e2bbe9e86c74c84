"""A block mask on a module's weight, with a straight-through gradient.

The module stays what it is (so timm's own convolutions keep working, and so do optimizers); its ``weight`` becomes a
view of the latent weight through the mask. State-dict keys change with it: ``conv.weight`` is kept as
``conv.parametrizations.weight.original`` (latent) and ``conv.parametrizations.weight.0.mask``, so a checkpoint of a
pruned model cannot be loaded into a plain one by accident. ``plain_state_dict`` gives timm's keys back.
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .blocks import add_pruned_part, apply_mask, num_block_rows, row_of_channel
from .lost_writes import hand_out
from .torch_compat import count_writes

# timm convolutions that standardise every filter of their weight in their forward.
STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
# In keys of a state, between the name of a layer and what its masked weight is made of.
_INSIDE = ".parametrizations.weight."


def _handed_over(grad: Tensor) -> Tensor:
    """The gradient as a tensor that nobody else refers to, which autograd keeps as ``.grad`` instead of copying it."""
    return grad.view_as(grad)


class _StraightThrough(torch.autograd.Function):
    """Forward W * m; backward the identity, so that pruned blocks go on learning and may come back."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, block_size: int, groups: int, order: Tensor | None) -> Tensor:
        return apply_mask(weight, mask, block_size, groups, order)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _handed_over(grad), None, None, None, None


class BlockMask(nn.Module):
    """The parametrization: holds the mask ``[R, I]`` of one weight and applies it.

    The mask is a bool buffer that is only ever written in place: weight averages copy it instead of averaging it,
    and compiled code sees the change.

    So is the ``order`` ``[O]`` int64 of the output channels, which an ``ordered`` mask has: consecutive ones at first.
    """

    mask: Tensor
    order: Tensor | None

    def __init__(self, weight: Tensor, block_size: int, groups: int = 1, ordered: bool = False) -> None:
        super().__init__()
        self.block_size, self.groups = block_size, groups
        self.register_buffer("order", torch.arange(weight.shape[0], device=weight.device) if ordered else None)
        rows = num_block_rows(weight.shape[0], block_size, groups)
        self.register_buffer("mask", torch.ones(rows, weight.shape[1], dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return hand_out(self, _StraightThrough.apply(weight, *self.where()), weight)

    def where(self) -> tuple[Tensor, int, int, Tensor | None]:
        """What says which weights are masked, as ``apply_mask`` takes it."""
        return self.mask, self.block_size, self.groups, self.order

    def add_pruned_part(self, target: Tensor, weight: Tensor, factor: float) -> None:
        """Add ``factor`` times the latent weight to ``target``, in place, where the weight is masked."""
        add_pruned_part(target, weight, self.mask, self.block_size, self.groups, factor, self.order)

    def extra_repr(self) -> str:
        rows, channels = self.mask.shape
        return f"block_rows={rows}, in_channels={channels}, block_size={self.block_size}, groups={self.groups}"

    def __deepcopy__(self, memo: dict) -> BlockMask:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        _copies.setdefault(self, weakref.WeakKeyDictionary())[copied] = count_writes(copied.mask)
        return copied


# Averages of a model are copies of it; who updates masks looks at what has become of theirs. With each copy the number
# of writes into its mask when it was last looked at.
_copies: weakref.WeakKeyDictionary[BlockMask, weakref.WeakKeyDictionary[BlockMask, int]] = weakref.WeakKeyDictionary()


def written_copies(block_mask: BlockMask) -> list[BlockMask]:
    """Copies made of a mask, with its model, whose masks were written to since this was last asked."""
    copies = _copies.get(block_mask, {})
    written = [copied for copied, seen in copies.items() if count_writes(copied.mask) > seen]
    for copied in list(copies):
        copies[copied] = count_writes(copied.mask)
    return written


class StandardisedBlockMask(BlockMask):
    """The mask of a convolution that standardises its weight: each filter to mean 0, variance 1, times a gain.

    Masking before timm's standardisation would turn the zeros into a constant, and masking after it alone could not be
    written back as a weight of timm's module. So the filter is first centred over the blocks that it keeps: zeros in
    the place of the others then leave its mean at 0, standardisation only scales it, and its variance stays what the
    network was designed for. The mask once more makes the zeros exact, as a mean of floats is not quite 0.

    Takes the convolution's ``gain`` over, if it has one, because the weight is complete when it leaves here.
    """

    def __init__(self, module: nn.Conv2d, block_size: int, ordered: bool = False) -> None:
        super().__init__(module.weight, block_size, module.groups, ordered)
        self.eps, self.scale = module.eps, getattr(module, "scale", 1.0)
        self.gain = getattr(module, "gain", None)

    def forward(self, weight: Tensor) -> Tensor:
        standardised = _standardise(_CentredStraightThrough.apply(weight, *self.where()), self)
        return hand_out(self, _StraightThrough.apply(standardised, *self.where()), weight)

    @torch.no_grad()
    def timm_weight(self, weight: Tensor) -> Tensor:
        """What to give timm's module as its weight: zero where masked, and standardised it is this one's result."""
        return _centred(weight, *self.where())


class _CentredStraightThrough(_StraightThrough):
    """Forward the masked weight, each filter centred over what it keeps; backward the identity.

    The gradient that arrives has passed the standardisation and so has mean 0 in each filter; to centre it once more
    would change nothing.
    """

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, block_size: int, groups: int, order: Tensor | None) -> Tensor:
        return _centred(weight, mask, block_size, groups, order)


def _centred(weight: Tensor, mask: Tensor, block_size: int, groups: int, order: Tensor | None) -> Tensor:
    """The weight ``[O, I, kh, kw]``, masked, with mean 0 over the kept blocks of each filter."""
    row = row_of_channel(weight.shape[0], block_size, groups, mask.device, order)
    kept = mask.sum(1)[row] * weight[0, 0].numel()
    sums = apply_mask(weight, mask, block_size, groups, order).flatten(1).sum(1)
    return apply_mask(weight - (sums / kept).view(-1, 1, 1, 1), mask, block_size, groups, order)


def _standardise(weight: Tensor, of: nn.Module) -> Tensor:
    """Each filter with mean 0 and variance 1, times the gain and scale of a convolution or its mask, as timm does."""
    gain = getattr(of, "gain", None)
    gain = None if gain is None else (gain * of.scale).view(-1)
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=of.eps).reshape_as(weight)


def _become_plain(module: nn.Conv2d) -> None:
    """Make a standardising convolution one that uses its weight as it is, with the same padding."""
    module.__class__ = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d


def mask_weight(module: nn.Module, block_size: int, ordered: bool = False) -> BlockMask:
    """Put an all-ones block mask on ``module.weight``, with an order of its channels if asked, and return it.

    From then on the module also loads a plain ``weight`` (and ``gain``) of a state dict: it becomes the latent one. The
    mask stays what it is, and is among the missing keys, so that a strict load still refuses such a state. What
    ``model.apply`` does to the module's weight is done to the latent one, too.

    Raises:
        ValueError: there is one already.
    """
    if block_mask_of(module) is not None:
        raise ValueError("the module has a block mask already: one SUBPPruner per model")
    if isinstance(module, STANDARDISED):
        block_mask = StandardisedBlockMask(module, block_size, ordered)
        if block_mask.gain is not None:
            del module.gain
        _become_plain(module)
    else:
        block_mask = BlockMask(module.weight, block_size, getattr(module, "groups", 1), ordered)
    parametrize.register_parametrization(module, "weight", block_mask, unsafe=True)
    type(module).apply = _apply_to_latent  # of the class that torch has made for this module alone
    module.register_load_state_dict_pre_hook(_load_plain_weight)
    return block_mask


def _apply_to_latent(module: nn.Module, function: Callable[[nn.Module], None]) -> nn.Module:
    """``nn.Module.apply`` of a masked layer: the function sees the latent weight as its parameter.

    A function that initialises would else write into a tensor that is computed for it alone.
    """
    masked_class, parametrizations = module.__class__, module.parametrizations
    del module.parametrizations
    module.__class__ = masked_class.__bases__[0]
    module.weight = parametrizations.weight.original
    try:
        function(module)
    finally:
        latent = module.weight
        del module.weight
        module.__class__ = masked_class
        module.parametrizations = parametrizations
        parametrizations.weight.original = latent
    return module


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which a rank has a part."""
    return "torch.distributed.tensor" in sys.modules and isinstance(tensor, torch.distributed.tensor.DTensor)


def find_copy(model: nn.Module, name: str) -> BlockMask:
    """The mask of a layer, by the name it has in the first model, in a copy of that which may be wrapped.

    Raises:
        ValueError: the copy has no such mask.
    """
    places = {place: module for place, module in model.named_modules() if block_mask_of(module) is not None}
    found = [module for place, module in places.items() if place == name or place.endswith(f".{name}")]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} is no copy of the pruned model: it has no mask of {name}")
    return block_mask_of(found[0])


def _load_plain_weight(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Give a plain weight the key of the latent one. Else a load that is not strict would leave it out in silence."""
    block_mask = block_mask_of(module)
    if block_mask is None:
        return  # a plain copy
    names = {"weight": "original"} | ({"gain": "0.gain"} if getattr(block_mask, "gain", None) is not None else {})
    for plain, masked in names.items():
        if f"{prefix}{plain}" in state:
            state.setdefault(f"{prefix}parametrizations.weight.{masked}", state.pop(f"{prefix}{plain}"))


def block_mask_of(module: nn.Module) -> BlockMask | None:
    """The block mask on a module's weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    return next((p for p in module.parametrizations.weight if isinstance(p, BlockMask)), None)


def load_masked(model: nn.Module, state: dict[str, Tensor], block_size: int) -> None:
    """Load the state of a masked model into a plain one, which gets the masks where the state has some.

    Raises:
        AttributeError, IndexError, RuntimeError: the state is of another model.
    """
    suffix = f"{_INSIDE}0.mask"
    for key in state:
        if key.endswith(suffix):
            name = key.removesuffix(suffix)
            mask_weight(model.get_submodule(name), block_size, f"{name}{_INSIDE}0.order" in state)
    model.load_state_dict(state)


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model whose masked weights are plain parameters, zeros baked in; the model stays as it is.

    Convolutions that standardise their weight become ordinary ones of the standardised weight, masked or not.

    A copied module shares the class that torch made for its parametrized original, and torch's own removal edits that
    class; so the copy gets the module's first class back instead.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if block_mask_of(module) is not None:
            weight, module_class = module.weight, parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.__class__ = module_class
            module.weight = nn.Parameter(weight)
        elif isinstance(module, STANDARDISED):
            module.weight = nn.Parameter(_standardise(module.weight, module))
            _become_plain(module)
    return model


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict with the keys that the model had without masks, and zeros where blocks are pruned.

    It loads strictly into timm's own model, with the same outputs. A convolution that standardises its weight does so
    again there: its pruned blocks, zeros in this dict, are zeros up to rounding when it runs (``plain_copy`` and
    ``.subp`` files hold exact ones).
    """
    plain = {}
    for key, value in model.state_dict().items():
        name, _, part = key.partition(_INSIDE)
        if part == "original":
            module = model.get_submodule(name)
            block_mask = block_mask_of(module)
            is_standardised = isinstance(block_mask, StandardisedBlockMask)
            plain[f"{name}.weight"] = block_mask.timm_weight(value) if is_standardised else module.weight.detach()
        elif part == "0.gain":
            plain[f"{name}.gain"] = value
        elif part not in ("0.mask", "0.order"):
            plain[key] = value
    return plain
