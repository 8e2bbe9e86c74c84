"""How much the choice of blocks can matter: ``python -m subp_dist.study.evenness MODEL [--initial-checkpoint FILE]``.

Norms of large blocks even out: the sum of N kernels' squares varies less from block to block than one kernel's. The
closer the share of the squared weights in the best blocks comes to that of any blocks, the less a criterion by
magnitude has to choose from. Takes the flags of the training that concern the layers.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import timm
from torch import Tensor

from ..blocks import BLOCK_SIZES, to_blocks
from ..config import TrainConfig
from ..errors import UsageError, report_usage_errors
from ..flags import build_parser
from ..masks import num_candidates
from ..models import check_model_name, create_model, load_initial_weights, model_arguments
from ..options import parse_flags
from ..plan import LayerPlan, check_prunable, plan_layers
from ..resolve import shape_without_data

# A single kernel, too, for comparison.
SIZES = (1, *BLOCK_SIZES)


def share_of_best(weight: Tensor, block_size: int, rate: float, groups: int = 1) -> float:
    """Share of a weight's squares in the blocks of largest norm that pruning each row at ``rate`` would leave."""
    squares = to_blocks(weight.detach().double(), block_size, groups).square().sum(-1)
    kept = squares.shape[1] - num_candidates(rate, squares.shape[1])
    return (squares.topk(kept, dim=1).values.sum() / squares.sum()).item()


def shares_of_best(plan: Sequence[LayerPlan], rate: float) -> dict[int, float]:
    """By block size, the mean of ``share_of_best`` over the layers to be pruned."""
    layers = [
        (layer.module.weight, rate if layer.rate is None else layer.rate, getattr(layer.module, "groups", 1))
        for layer in plan
        if layer.reason is None
    ]
    return {size: statistics.fmean(share_of_best(weight, size, *rest) for weight, *rest in layers) for size in SIZES}


@report_usage_errors
def cli() -> None:
    """Console entry."""
    given = TrainConfig.from_flags(vars(parse_flags(build_parser("subp-evenness", __doc__.split("\n\n")[0]))))
    name, pruning, weights = given.model.name, given.pruning, given.model.initial_checkpoint
    if pruning.target_macs:
        raise UsageError("--target-macs: expected --prune-rate here; subp_dist.inspect says which one it comes to")
    check_model_name(name)
    shape = shape_without_data(given.data, timm.get_pretrained_cfg(name).to_dict())
    model = create_model(name, **model_arguments(given.model, shape.num_classes, shape.in_chans))
    try:
        plan = plan_layers(model, **pruning.layers)
        check_prunable(plan, name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = {"at random": shares_of_best(plan, pruning.prune_rate)}
    if weights:
        load_initial_weights(model, name, Path(weights))
        rows["trained"] = shares_of_best(plan, pruning.prune_rate)
    rate = 100 * pruning.prune_rate
    print(f"{name}: share of squared weights in the best blocks of each row, {rate:g} % pruned; mean of layers")
    print("| weights | " + " | ".join(f"1x{size}" for size in SIZES) + " |")
    print("|---" * (1 + len(SIZES)) + "|")
    for label, shares in rows.items():
        print(f"| {label} | " + " | ".join(f"{share:.3f}" for share in shares.values()) + " |")


if __name__ == "__main__":
    cli()
