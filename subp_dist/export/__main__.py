"""Export a run, a checkpoint, or a network without a training.

python -m subp_dist.export RUN_OR_CHECKPOINT --format subp|timm|onnx --output FILE
python -m subp_dist.export --model NAME --prune-rate P --block-size N --format ... --output FILE
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ..blocks import BLOCK_SIZES
from ..checkpoint import check_writable
from ..errors import UsageError, report_usage_errors
from .formats import FORMATS, export
from .network import Network

_RANDOM = {"prune_rate": 0.5, "block_size": 16, "init": "random", "skip": (), "image_size": None, "num_classes": None}
_RANDOM["seed"] = 0


def build_parser() -> argparse.ArgumentParser:
    """The parser; flags of the second form default to None, to tell whether they were given."""
    parser = argparse.ArgumentParser(prog="subp-export", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("source", nargs="?", type=Path, metavar="RUN_OR_CHECKPOINT", help="folder of a run, or one checkpoint of it")
    add("--format", choices=list(FORMATS), help="subp: for subp_ext; timm: safetensors in timm's keys; onnx")
    add("--output", type=Path, required=True, metavar="FILE", help="the file; replaced whole, or left as it was")
    group = parser.add_argument_group("a network without a training, instead of a run")
    add = group.add_argument
    add("--model", metavar="NAME", help="timm model")
    add("--prune-rate", type=float, metavar="P", help="share of blocks pruned in every row, in [0, 1); 0.5")
    add("--block-size", type=int, choices=BLOCK_SIZES, help="output channels per block; 16")
    add("--init", choices=["random"], help="weights, uniform masks, and statistics measured on random images; random")
    add("--skip", nargs="*", metavar="PATTERN", help="convolutions to keep dense, such as '*downsample*'")
    add("--image-size", type=int, metavar="PIXELS", help="square image size; the model's own by default")
    add("--num-classes", type=int, help="classes; the model's own by default")
    add("--seed", type=int, help="seed of everything random; 0")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check what needs no network.

    Raises:
        UsageError: flags contradict each other, or the output cannot be written.
    """
    args = build_parser().parse_args(argv)
    if (args.source is None) == (args.model is None):
        raise UsageError("expected either RUN_OR_CHECKPOINT or --model NAME, one of the two; --help explains")
    for flag, default in _RANDOM.items():
        if args.source is not None and getattr(args, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} belongs to --model; {args.source} has its own")
        if getattr(args, flag) is None:
            setattr(args, flag, default)
    if not 0 <= args.prune_rate < 1:
        raise UsageError(f"--prune-rate {args.prune_rate}: expected a share of blocks in [0, 1), such as 0.5")
    for flag in ("image_size", "num_classes"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected 1 or more")
    suffixes = {kind.suffix: name for name, kind in FORMATS.items()}
    args.format = args.format or suffixes.get(args.output.suffix)
    if args.format is None:
        raise UsageError(f"--output {args.output}: pass --format, or end it in {', '.join(suffixes)}")
    if suffixes.get(args.output.suffix, args.format) != args.format:
        raise UsageError(f"--output {args.output} ends like --format {suffixes[args.output.suffix]}, not {args.format}")
    check_writable(args.output)
    return args


@report_usage_errors
def cli() -> None:
    """Console entry."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("subp_dist").setLevel(logging.INFO)  # what the export found out
    args = parse_args()
    if args.source is not None:
        network = Network.open(args.source)
    else:
        network = Network.random(
            args.model,
            args.prune_rate,
            args.block_size,
            skip=args.skip,
            image_size=args.image_size,
            num_classes=args.num_classes,
            seed=args.seed,
        )
    try:
        difference = export(network, args.format, args.output)
    except OSError as error:
        raise UsageError(str(error)) from error
    checked = (
        f"largest difference from torch {difference:.1e} of the logits' range, on random images"
        if difference is not None
        else "not checked against torch: pip install 'subp-dist[onnx]' installs what runs it"
    )
    print(f"{args.output}: {args.format}, {args.output.stat().st_size / 1e6:.1f} MB; {checked}")


if __name__ == "__main__":
    cli()
