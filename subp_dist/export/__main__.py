"""Export a run, a checkpoint, weights of another training, or a network without a training.

python -m subp_dist.export RUN_OR_CHECKPOINT --format subp|timm|onnx --output FILE
python -m subp_dist.export --model NAME --prune-rate P --block-size N --format ... --output FILE
python -m subp_dist.export weights.safetensors --model NAME [--features-only] --output FILE
python -m subp_dist.export RUN_OR_CHECKPOINT --dtype bfloat16|int8 --output FILE
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import numpy as np

from ..blocks import BLOCK_SIZES
from ..checkpoint import check_writable
from ..errors import UsageError, report_usage_errors
from ..flag_values import as_path
from .bfloat16 import export_bfloat16
from .calibrate import FEWEST_IMAGES
from .example import Example
from .formats import FORMATS, export
from .int8 import KINDS, export_int8, images_of_folder, images_of_run, random_images
from .network import Network
from .quantize import QuantizeOptions
from .scales import RANGES
from .summary import summarize
from .tables import LAYOUTS
from .trained import export_trained, said_of

# Flags of --dtype int8, with their defaults.
_INT8 = {"data_dir": None, "calibration_images": 512, "range": "auto", "keep_float": (), "max_drop": None}
_INT8["uint8_input"] = None

# Points of top-1 that int8 may lose where there are labels to tell.
_MAX_DROP = 1.0

_SOURCE_HELP = "folder of a run, one checkpoint of it, or, with --model, weights in timm's keys"
_MAX_DROP_HELP = (
    "top-1 that may be lost on calibration images (agreement with float32 if they have no labels); the most sensitive "
    "layers stay in float32 for it; 1 with labels, else any"
)
_UINT8_INPUT_HELP = (
    "the file takes raw pixels from 0 to 255 in this layout, nchw by default; normalisation is a table in it"
)

# Flags of a timm model, and of one without a training, with their defaults.
_MODEL = {"image_size": None, "num_classes": None, "in_chans": None, "features_only": None}
_RANDOM = {"prune_rate": 0.5, "block_size": 16, "init": "random", "skip": (), "seed": 0}


def build_parser() -> argparse.ArgumentParser:
    """The parser; flags of the second form default to None, to tell whether they were given."""
    parser = argparse.ArgumentParser(prog="subp-export", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        type=as_path,
        metavar="RUN_OR_CHECKPOINT",
        help=_SOURCE_HELP,
    )
    add("--format", choices=list(FORMATS), help="subp: for subp_ext; timm: safetensors in timm's keys; onnx")
    add("--output", type=as_path, required=True, metavar="FILE", help="the file; replaced whole, or left as it was")
    group = parser.add_argument_group("a timm model, with weights of another training or without any")
    add = group.add_argument
    add("--model", metavar="NAME", help="timm model")
    add("--image-size", type=int, metavar="PIXELS", help="square image size; the model's own by default")
    add("--num-classes", type=int, help="classes, 0 for none; those of the weights, or the model's own, by default")
    add("--in-chans", type=int, help="channels of the images; those of the weights, or the model's own, by default")
    add("--features-only", action="store_const", const=True, help="the feature maps of a backbone, in place of logits")
    group = parser.add_argument_group("a network without a training")
    add = group.add_argument
    add("--prune-rate", type=float, metavar="P", help="share of blocks pruned in every row, in [0, 1); 0.5")
    add("--block-size", type=int, choices=BLOCK_SIZES, help="output channels per block; 16")
    add("--init", choices=["random"], help="weights, uniform masks, and statistics measured on random images; random")
    add("--skip", nargs="*", metavar="PATTERN", help="convolutions to keep dense, such as '*downsample*'")
    add("--seed", type=int, help="seed of everything random; 0")
    group = parser.add_argument_group("bfloat16, or int8 by static quantization after training")
    add = group.add_argument
    add("--dtype", choices=["float32", "bfloat16", "int8"], default="float32", help="of weights and activations; "
        "bfloat16 halves the file and needs no calibration, which the other flags here are for; float32")  # fmt: skip
    add(
        "--data-dir",
        type=as_path,
        help="pictures to calibrate on; the run's training data, or random pixels with --model",
    )
    add("--calibration-images", type=int, metavar="N", help="how many of them, spread over all; 512")
    add("--range", choices=RANGES, help="what the range of a value follows from: all that is seen, all but 0.01 %% at "
        "each end, the least squared error, or of these two what suits each value; auto")  # fmt: skip
    add("--keep-float", nargs="+", metavar="PATTERN", help="layers to leave in float32, such as conv1 fc '*.se.*'")
    add("--max-drop", type=float, metavar="POINTS", help=_MAX_DROP_HELP)
    add("--uint8-input", nargs="?", const="nchw", choices=LAYOUTS, help=_UINT8_INPUT_HELP)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and check what needs no network.

    Raises:
        UsageError: flags contradict each other, or the output cannot be written.
    """
    args = build_parser().parse_args(argv)
    if args.source is None and args.model is None:
        raise UsageError("expected RUN_OR_CHECKPOINT, --model NAME, or weights and their --model; --help explains")
    if args.source is not None and args.model is not None and args.source.is_dir():
        raise UsageError(f"--model belongs to a file of weights; {args.source} is a folder, and a run has its own")
    for flag, default in (_MODEL | _RANDOM).items():
        allowed = args.source is None or (flag in _MODEL and args.model is not None)
        if not allowed and getattr(args, flag) is not None:
            whose = "--model" if flag in _MODEL else "--model without weights"
            raise UsageError(f"--{flag.replace('_', '-')} belongs to {whose}; {args.source} has its own")
        if getattr(args, flag) is None:
            setattr(args, flag, default)
    if not 0 <= args.prune_rate < 1:
        raise UsageError(f"--prune-rate {args.prune_rate}: expected a share of blocks in [0, 1), such as 0.5")
    for flag, least in (("image_size", 1), ("num_classes", 0), ("in_chans", 1)):
        if getattr(args, flag) is not None and getattr(args, flag) < least:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected {least} or more")
    if args.features_only and args.num_classes is not None:
        raise UsageError("--features-only has no classes: leave --num-classes out")
    suffixes = {kind.suffix: name for name, kind in FORMATS.items()}
    args.format = args.format or suffixes.get(args.output.suffix)
    if args.format is None:
        raise UsageError(f"--output {args.output}: pass --format, or end it in {', '.join(suffixes)}")
    if suffixes.get(args.output.suffix, args.format) != args.format:
        raise UsageError(f"--output {args.output} ends like --format {suffixes[args.output.suffix]}, not {args.format}")
    _check_int8(args)
    check_writable(args.output)
    return args


def _check_int8(args: argparse.Namespace) -> None:
    """Checks the flags of int8 against each other, and sets their defaults.

    Raises:
        UsageError: one is given without int8, or has a value that cannot be.
    """
    for flag, default in _INT8.items():
        if args.dtype != "int8" and getattr(args, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} belongs to --dtype int8; {args.dtype} needs no calibration")
        if getattr(args, flag) is None:
            setattr(args, flag, default)
    if args.dtype == "bfloat16" and args.format != "subp":
        raise UsageError(f"--dtype bfloat16 --format {args.format}: expected --format subp")
    if args.dtype != "int8":
        return
    if args.format not in KINDS:
        raise UsageError(f"--dtype int8 --format {args.format}: expected --format {' or '.join(KINDS)}")
    if args.calibration_images < FEWEST_IMAGES:
        raise UsageError(f"--calibration-images {args.calibration_images}: expected {FEWEST_IMAGES} or more")


def _calibration(args: argparse.Namespace, network: Network) -> tuple[np.ndarray, np.ndarray | None]:
    """Images, and their labels where they have any."""
    count = args.calibration_images
    if network.config is not None:
        return images_of_run(network.config, network.model, args.data_dir, count)
    if args.source is not None and args.data_dir is None:
        raise UsageError("--dtype int8 of weights needs pictures to calibrate on: pass --data-dir")
    if args.data_dir is not None:
        return images_of_folder(args.data_dir, network.model, network.input_size, count), None
    return random_images(network.input_size, count, args.seed), None


def _check_trained(args: argparse.Namespace) -> None:
    """Refuse flags of a calibration for a run that has its integers from its training.

    Raises:
        UsageError: the message names the flag.
    """
    for flag, default in _INT8.items():
        if flag != "uint8_input" and getattr(args, flag) != default:
            raise UsageError(
                f"--{flag.replace('_', '-')}: {args.source} was trained with fake quantization (--qat-epochs), and its "
                "integers stay; leave the flag out, or calibrate its model.safetensors with --model"
            )


def _export_int8(args: argparse.Namespace, network: Network) -> str:
    """Writes an int8 file, and says what became of the network."""
    if network.quantized is not None:
        _check_trained(args)
        export_trained(network.quantized, args.output, args.uint8_input, args.format)
        return said_of(network.quantized)
    images, labels = _calibration(args, network)
    max_drop = _MAX_DROP if args.max_drop is None and labels is not None else args.max_drop
    options = QuantizeOptions(args.range, keep_float=tuple(args.keep_float), max_drop=max_drop)
    return export_int8(network, args.output, images, labels, options, args.uint8_input, args.format).summary()


def _export_bfloat16(args: argparse.Namespace, network: Network) -> str:
    """Writes a file in bfloat16, and says how near it is to float32."""
    return export_bfloat16(network, args.output)


def _export_float32(args: argparse.Namespace, network: Network) -> str:
    """Writes a file in float32, and says how it was checked."""
    difference = export(network, args.format, args.output)
    if args.format == "subp":
        print(summarize(args.output, Example.images(network.input_size)))
    if difference is None:
        return "not checked against torch: pip install 'subp-dist[onnx]' installs what runs it"
    return f"largest difference from torch {difference:.1e} of the logits' range, on random images"


def _network(args: argparse.Namespace) -> Network:
    if args.model is None:
        return Network.open(args.source)
    given = {key: getattr(args, key) for key in ("num_classes", "in_chans", "features_only")}
    given = {key: value for key, value in given.items() if value is not None}
    if args.source is not None:
        return Network.of_weights(args.source, args.model, args.image_size, **given)
    image_size, skip, seed = args.image_size, args.skip, args.seed
    return Network.random(
        args.model, args.prune_rate, args.block_size, skip=skip, image_size=image_size, seed=seed, **given
    )


_EXPORTS = {"float32": _export_float32, "bfloat16": _export_bfloat16, "int8": _export_int8}


@report_usage_errors
def cli() -> None:
    """Console entry."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("subp_dist").setLevel(logging.INFO)  # what the export found out
    args = parse_args()
    network = _network(args)
    try:
        said = _EXPORTS[args.dtype](args, network)
    except OSError as error:
        raise UsageError(str(error)) from error
    kind = args.format if args.dtype == "float32" else f"{args.format}, {args.dtype}"
    print(f"{args.output}: {kind}, {args.output.stat().st_size / 1e6:.1f} MB; {said}")


if __name__ == "__main__":
    cli()
