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
from ..errors import UsageError, report_usage_errors
from ..masks import num_candidates
from ..models import check_model_name, create_model, load_initial_weights, model_arguments
from ..options import build_parser, parse_args
from ..plan import LayerPlan, check_prunable
from ..training import plan_of

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
    args = parse_args(parser=build_parser("subp-evenness", __doc__.split("\n\n")[0]))
    if args.target_macs:
        raise UsageError("--target-macs: expected --prune-rate here; subp_dist.inspect says which one it comes to")
    check_model_name(args.model)
    config = timm.get_pretrained_cfg(args.model).to_dict()
    args.in_chans = args.in_chans or config["input_size"][0]
    args.num_classes = args.num_classes or config["num_classes"]
    model = create_model(args.model, **model_arguments(args))
    try:
        plan = plan_of(args, model)
        check_prunable(plan, args.model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = {"at random": shares_of_best(plan, args.prune_rate)}
    if args.initial_checkpoint:
        load_initial_weights(model, args.model, Path(args.initial_checkpoint))
        rows["trained"] = shares_of_best(plan, args.prune_rate)
    rate = 100 * args.prune_rate
    print(f"{args.model}: share of squared weights in the best blocks of each row, {rate:g} % pruned; mean of layers")
    print("| weights | " + " | ".join(f"1x{size}" for size in SIZES) + " |")
    print("|---" * (1 + len(SIZES)) + "|")
    for label, shares in rows.items():
        print(f"| {label} | " + " | ".join(f"{share:.3f}" for share in shares.values()) + " |")


if __name__ == "__main__":
    cli()
