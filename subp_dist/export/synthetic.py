"""Networks without a training: random weights, random uniform masks, and batch-norm statistics that are alive.

For benchmarks and tests. A freshly created timm network computes little: residual branches end in zero scales, layer
scales are 1e-6, and running statistics of 0 and 1 let activations explode or fade. Here every part of the network has
a say in the result, so a wrong operator shows, and activations keep their scale through any depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import timm
import torch
from torch import nn

from ..errors import UsageError
from ..models import check_model_name, create_model
from ..pruner import SUBPPruner
from ..schedule import PruneSchedule
from ..scores import RANDOM
from ..torch_compat import ANY_BATCH_NORM

# Random images of a batch that statistics are measured on, and such batches.
_MEASURED_ON, _BATCHES = 8, 2


def random_network(
    name: str,
    rate: float,
    block_size: int,
    *,
    skip: Sequence[str] = (),
    image_size: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    **others: object,
) -> tuple[nn.Module, tuple[int, int, int], dict[str, object]]:
    """A timm network in evaluation mode with random uniform masks.

    Args:
        name: timm model name.
        rate: share of blocks pruned in every row; 0 puts no masks on.
        block_size: N of the 1xN blocks.
        skip: name patterns of convolutions that stay dense.
        image_size: height and width; the model's own by default.
        num_classes: the model's own by default.
        seed: of weights, masks and the images that the statistics are measured on.
        others: more arguments of ``timm.create_model``, such as ``in_chans`` and ``features_only``.

    Returns:
        The network, the size (C, H, W) of its images, and the arguments that timm creates its like with.

    Raises:
        UsageError: there is no such model, it cannot be pruned as asked, or it does not run on such images.
    """
    check_model_name(name)
    arguments = ({} if num_classes is None else {"num_classes": num_classes}) | others
    if image_size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
        arguments["img_size"] = image_size  # its parameters depend on the size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(name, **arguments)
        channels, height, width = timm.get_pretrained_cfg(name).input_size
        input_size = (others.get("in_chans", channels), image_size or height, image_size or width)
        _vary_constants(model)
        if rate > 0:
            _put_random_masks(model, rate, block_size, skip, seed)
        try:
            measure_statistics(model, (torch.randn(_MEASURED_ON, *input_size) for _ in range(_BATCHES)))
            with torch.no_grad():
                model(torch.randn(1, *input_size))  # whether it runs, where it has no batch norm
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UsageError(f"{name} does not run on images of {input_size}: {error}") from error
    return model, input_size, arguments


@torch.no_grad()
def _vary_constants(model: nn.Module) -> None:
    """Draw parameters that start as one constant (scales, biases, gains) around it, so that none is 0 or 1."""
    for parameter in model.parameters():
        if parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def _put_random_masks(model: nn.Module, rate: float, block_size: int, skip: Sequence[str], seed: int) -> None:
    try:
        schedule = PruneSchedule(rate, 0, 0)
        pruner = SUBPPruner(model, schedule, block_size=block_size, criterion=RANDOM, skip=skip, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    pruner.step(0)


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set all running statistics to those of some images, and the model to evaluation mode.

    Args:
        model: with batch norms, or without any, which makes nothing of the images.
        batches: of images ``[B, C, H, W]``; the statistics are plain averages over them.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, ANY_BATCH_NORM)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # a plain average
    try:
        for batch in batches if norms else ():
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
