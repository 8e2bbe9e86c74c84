"""What would be pruned in a model, layer by layer, before any training: ``python -m subp_dist.inspect MODEL``.

Takes the flags of the training (``--prune-rate``, ``--target-macs``, ``--skip``, ``--preset``, ``--config``, ...), so
that the same command line shows first what it will do; flags that do not concern the layers are not looked at. No data
and no weights are read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch

from .checkpoint import write_atomically
from .errors import UsageError, report_usage_errors
from .flops import count_macs
from .layer_report import LayerReport, planned_layers
from .layer_table import format_table
from .models import check_model_name, create_model, model_arguments, wrong_images
from .options import build_parser, parse_args
from .plan import reparametrised
from .training import check_plan, plan_of, rate_of


@report_usage_errors
def cli() -> None:
    """Console entry."""
    parser = build_parser("subp-inspect", __doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table to a file, too")
    args = parse_args(parser=parser)
    layers, notes = inspect_model(args)
    print(f"{args.model}: 1x{args.block_size} blocks, {100 * args.prune_rate:.2f} % to prune, image {args.img_size}")
    print(format_table(layers))
    print("".join(f"\n{note}" for note in notes), end="\n" if notes else "")
    if args.json:
        rows = [layer.as_row(all_shapes=True) for layer in layers]
        try:
            write_atomically(args.json, lambda path: path.write_text(json.dumps(rows, indent=1) + "\n"))
        except OSError as error:
            raise UsageError(str(error)) from error


def inspect_model(args: argparse.Namespace) -> tuple[list[LayerReport], list[str]]:
    """The layers for the training's flags, and remarks on the model.

    What the model decides, or ``--target-macs``, is written back into ``args``.

    Raises:
        UsageError: no such model, or the flags do not fit it.
    """
    check_model_name(args.model)
    config = timm.get_pretrained_cfg(args.model).to_dict()
    args.in_chans = args.in_chans or config["input_size"][0]
    args.num_classes = args.num_classes or config["num_classes"]
    args.img_size = args.img_size or config["input_size"][1]
    input_size = (args.in_chans, args.img_size, args.img_size)
    # Shapes are all that counts; the meta device has them without memory or time. Some models compute with values.
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = create_model(args.model, **model_arguments(args))
        try:
            macs = count_macs(model, input_size)
            break
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
            if device == "cpu":
                raise wrong_images(args.model, input_size, error) from error
    try:
        plan = plan_of(args, model)
        args.prune_rate = rate_of(args, plan, macs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    notes = []
    try:
        check_plan(args, plan, macs)
    except ValueError as error:
        notes.append(f"a training refuses this: {error}")
    if fusing := reparametrised(plan, model):
        notes.append(f"{', '.join(fusing)} can be fused after the training: the sum of branches is denser than each")
    return planned_layers(plan, macs, args.prune_rate, args.block_size), notes


if __name__ == "__main__":
    cli()
