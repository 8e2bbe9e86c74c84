"""The flags of ``python -m subp_dist.train``; named as in timm's training script where the meaning is the same."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .blocks import BLOCK_SIZES
from .config import TrainConfig
from .errors import UsageError
from .flag_values import as_path_text
from .masks import PATTERNS
from .ranges import (
    COUNT,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    STRENGTH,
    WHOLE,
    Number,
    whole,
)
from .schedule import SHAPES
from .scores import CRITERIA, RANDOM

# The published choices: model, layers and rate; the other flags' defaults are the published recipe already.
PRESETS = {
    "resnet18": {"model": "resnet18", "prune_rate": 60 / 128, "skip": ["*downsample*"]},
    "resnet34": {"model": "resnet34", "prune_rate": 59 / 128, "skip": ["*downsample*"]},
    "resnet50": {"model": "resnet50", "prune_rate": 66 / 128},
    "resnet50-1g": {"model": "resnet50", "prune_rate": 98.5 / 128},
    "mobilenetv1": {"model": "mobilenetv1_100", "prune_rate": 69 / 128},
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of all flags is what --help is for."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help lists all flags")


TRAIN = "Train a timm CNN with soft uniform block pruning, from scratch, and export it for the CPU."


def build_parser(prog: str = "subp-train", description: str = TRAIN) -> argparse.ArgumentParser:
    """The parser; its defaults are those of ``subp_dist.config``."""
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="any timm model name")
    parser.add_argument("--model", dest="model_option", metavar="MODEL", help="the same, as timm's script has it")
    add = parser.add_argument
    add("-c", "--config", type=as_path_text, metavar="FILE", help="YAML file of flags; the command line wins over it")
    parser.add_argument("--preset", choices=list(PRESETS), help="a published choice; --config and the command line win")
    parser.add_argument(
        "--input-size",
        type=COUNT,
        nargs=3,
        metavar=("C", "H", "W"),
        help="--in-chans and --img-size in one, as in timm",
    )
    parser.add_argument(
        "--check-data", action="store_true", help="try all files of both splits, list what is wrong, and end"
    )
    parser.add_argument(
        "--pin-mem", action="store_true", help="as in timm; batches for GPUs are in pinned memory in any case"
    )
    _add_data_flags(parser)
    _add_pruning_flags(parser)
    _add_model_flags(parser)
    _add_optimization_flags(parser)
    _add_regularization_flags(parser)
    _add_distillation_flags(parser)
    _add_run_flags(parser)
    parser.set_defaults(**{flag: value for flag, value in TrainConfig().flags().items() if flag != "model"})
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--data-dir",
        type=as_path_text,
        metavar="DIR",
        help="train/ and val/ of class folders, or .beton files; or 'builtin': real digits",
    )
    add("--loader", choices=["auto", "ffcv", "timm"], help="ffcv for .beton files, timm for pictures")
    add("--dataset", metavar="NAME", help="timm dataset name, such as torch/cifar10; empty for folders")
    add("--train-split", help="name of the training split")
    add("--val-split", help="name of the validation split")
    add("--num-classes", type=COUNT, help="classes; counted in the data by default")
    add("--in-chans", type=COUNT, help="input channels; 3, and 1 for the built-in digits, by default")
    add(
        "--img-size",
        type=whole(1, 16384),
        metavar="PIXELS",
        help="square image size; the model's, or the digits' 28, by default",
    )
    add("--res-schedule", nargs="+", metavar="EPOCH:PIXELS", help="training image sizes, as in 0:160 30:224")
    add(
        "--crop-pct",
        type=Number(low=0.1, high=1, hint=", such as 0.875"),
        help="share of the image that the validation crop covers; the model's by default",
    )
    add(
        "--mean",
        type=Number(low=0, high=1, hint=" (of pixels from 0 to 1)"),
        nargs="+",
        help="mean per channel; the model's by default",
    )
    add(
        "--std",
        type=Number(low=0.001, high=1, hint=" (of pixels from 0 to 1)"),
        nargs="+",
        help="standard deviation per channel; the model's by default",
    )
    filters = ["box", "bilinear", "hamming", "bicubic", "lanczos"]
    add("--interpolation", choices=filters, help="resize filter; the model's by default")
    add(
        "--train-interpolation",
        choices=["random", *filters],
        help="filter of training; random: bilinear or bicubic; as --interpolation by default",
    )
    add("-b", "--batch-size", type=COUNT, help="images per rank and step")
    add("-vb", "--validation-batch-size", type=COUNT, help="images per rank in validation; the batch size by default")
    add("-j", "--workers", type=WHOLE, help="data loading processes per rank; 0 for the digits")
    add("--broken", choices=["error", "skip"], help="unreadable pictures end the run, or are found first and left out")


def _add_pruning_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pruning")
    add = group.add_argument
    add(
        "--prune-rate",
        type=Number(low=0, high=1, below=True, noun="a share of blocks", hint=", such as 0.5"),
        help="share of blocks to prune in every row, in [0, 1)",
    )
    add("--target-macs", metavar="MACS", help="find the rate for a number of MACs instead, such as 2.0G or 300M")
    add("--block-size", type=int, choices=BLOCK_SIZES, help="output channels per block (the N of 1xN)")
    add("--criterion", choices=[*CRITERIA, RANDOM], help="score of a block; random: a control")
    add("--pattern", choices=list(PATTERNS), help="blocks compete in their row, or in the layer")
    add("--alpha", type=FINITE, help="weight of the redundancy in bpar")
    add(
        "--tau",
        type=Number(low=1e-6, hint=" (1 is close to uniform, 0.01 is sharp)"),
        help="temperature of the regrowth: 1 is close to uniform, 0.01 is sharp",
    )
    add("--score-latent", action="store_true", help="score latent weights instead of masked ones")
    add("--prune-start", type=NOT_NEGATIVE, metavar="EPOCH", help="first epoch of pruning; 4 %% of the run by default")
    add(
        "--prune-end",
        type=NOT_NEGATIVE,
        metavar="EPOCH",
        help="epoch that reaches the rate; 25 %% of the run by default",
    )
    add("--prune-schedule", choices=list(SHAPES), help="course of the rate from start to end")
    add("--prune-interval", type=WHOLE, metavar="STEPS", help="optimizer steps between updates; 0: per epoch")
    add("--skip", nargs="*", metavar="PATTERN", help="convolutions to keep dense, such as '*downsample*'")
    add("--only", nargs="*", metavar="PATTERN", help="layers to prune, if not all; --skip wins over it")
    add("--layer-rates", nargs="*", metavar="PATTERN=RATE", help="rates of layers, such as 'layer4*=0.7'")
    add("--prune-linear", action="store_true", help="prune linear layers too, such as ConvNeXt's pointwise ones")
    add("--regroup", action="store_true", help="choose the output channels of a block, from trained weights")
    add("--sr-ste-decay", type=NOT_NEGATIVE, help="extra decay of masked weights")


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--pretrained", action="store_true", help="start from timm's trained weights, of its cache or the hub")
    add("--initial-checkpoint", type=as_path_text, metavar="FILE", help="weights to start from, in timm's keys")
    add("--model-kwargs", nargs="*", metavar="KEY=VALUE", help="for timm, such as channels=[32,64,128,256]")
    add("--drop", type=SHARE, help="dropout rate")
    add("--drop-path", type=SHARE, help="stochastic depth rate")
    add("--sync-bn", action="store_true", help="batch norm over the global batch, not a rank's own (GPUs only)")
    add("--dist-bn", choices=["reduce", "broadcast"], help="batch-norm statistics over ranks")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--grad-checkpointing", action="store_true", help="compute activations again instead of keeping them")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add("--amp", action="store_true", help="automatic mixed precision")
    add("--amp-dtype", choices=["float16", "bfloat16"], help="of --amp; default: float16, on a CPU bfloat16")
    add("--model-ema", action="store_true", help="keep and validate a moving average of the weights")
    add("--model-ema-decay", type=PROBABILITY, help="decay of the moving average")
    add("--model-ema-warmup", action="store_true", help="warm the decay of the moving average up")


def _add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--epochs", type=COUNT, help="epochs of training")
    add(
        "--qat-epochs",
        type=WHOLE,
        metavar="N",
        help="the last N epochs train with int8's rounding, at the masks of then; with it goes --export-dtype int8",
    )
    add("--opt", help="timm optimizer; 'momentum' is SGD without Nesterov, 'sgd' with it")
    add("--lr", type=POSITIVE, help="learning rate; by default --lr-base for a global batch of --lr-base-size, scaled")
    add("--lr-base", type=POSITIVE, help="learning rate at the base batch size")
    add("--lr-base-size", type=COUNT, help="global batch size that --lr-base is meant for")
    add("--lr-base-scale", choices=["linear", "sqrt"], help="how the learning rate grows with the global batch")
    add("--momentum", type=SHARE, help="momentum")
    add("--weight-decay", "--wd", type=NOT_NEGATIVE, help="weight decay; one-dimensional parameters have none")
    add("--opt-eps", type=NOT_NEGATIVE, help="epsilon of the optimizer")
    add("--opt-betas", type=SHARE, nargs="+", help="betas of the optimizer")
    add("--sched", help="timm learning-rate schedule")
    add("--sched-on-updates", action="store_true", help="step the learning rate per optimizer step, not per epoch")
    add("--min-lr", type=NOT_NEGATIVE, help="lowest learning rate")
    add("--warmup-lr", type=NOT_NEGATIVE, help="learning rate at the start of the warm-up")
    add("--warmup-epochs", type=WHOLE, help="epochs of warm-up")
    add("--cooldown-epochs", type=WHOLE, help="epochs after the schedule, at its last learning rate")
    add("--decay-milestones", type=whole(1, rising=True), nargs="+", help="epochs of a multistep schedule")
    add("--decay-epochs", type=Number(low=0.001), help="epochs between decays of a step schedule")
    add("--decay-rate", "--dr", type=POSITIVE, help="factor of a step schedule")
    add("--grad-accum-steps", type=COUNT, help="batches per optimizer step")
    add("--clip-grad", type=POSITIVE, help="largest gradient norm (or value, see --clip-mode)")
    add("--clip-mode", choices=["norm", "value", "agc"], help="how gradients are clipped")


def _add_regularization_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation and loss")
    add = group.add_argument
    add("--scale", type=Number(low=0, high=1, above=True, rising=True), nargs=2, help="area of the random crop")
    add("--ratio", type=Number(low=0.001, high=1000, rising=True), nargs=2, help="aspect ratio of the random crop")
    add("--no-aug", action="store_true", help="no random crop, flip or colour: the centre of the image")
    add("--hflip", type=PROBABILITY, help="probability of a horizontal flip")
    add("--vflip", type=PROBABILITY, help="probability of a vertical flip")
    add("--color-jitter", type=NOT_NEGATIVE, help="strength of colour jitter")
    add("--aa", metavar="POLICY", help="timm auto-augment policy, such as rand-m9-mstd0.5-inc1")
    add("--reprob", type=PROBABILITY, help="probability of random erasing")
    add("--remode", choices=["const", "rand", "pixel"], help="what is erased becomes 0, a colour, or noise")
    add("--recount", type=COUNT, help="largest number of erased rectangles")
    add("--smoothing", type=SHARE, help="label smoothing")
    add("--mixup", type=STRENGTH, help="alpha of mixup; 0: off")
    add("--cutmix", type=STRENGTH, help="alpha of cutmix; 0: off")
    add("--bce-loss", action="store_true", help="binary cross entropy")


def _add_distillation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    add = group.add_argument
    add("--kd-model", metavar="MODEL", help="timm model that teaches; none by default")
    add(
        "--kd-checkpoint",
        type=as_path_text,
        metavar="FILE",
        help="the teacher's weights; timm's pretrained ones by default",
    )
    add("--kd-weight", type=PROBABILITY, help="share of the distillation in the loss")
    add(
        "--kd-temperature",
        type=Number(low=0.01, high=1000),
        help="temperature of the teacher's and the student's softmax",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--output", type=as_path_text, metavar="DIR", help="folder of all runs")
    add("--experiment", metavar="NAME", help="name of this run's folder; MODEL and the rate by default")
    add(
        "--resume",
        type=as_path_text,
        metavar="FILE",
        help="last.pt of a run to go on with, or 'auto': this run's own, if there is one",
    )
    add("--recovery-interval", type=WHOLE, metavar="STEPS", help="also save every so many optimizer steps")
    add("--checkpoint-hist", type=WHOLE, metavar="N", help="also keep the checkpoints of the last N epochs")
    add(
        "--timeout",
        type=Number(low=0, high=525600, above=True),
        metavar="MINUTES",
        help="how long a rank may wait for another",
    )
    add("--seed", type=WHOLE, help="seed of initial weights, data order and masks")
    add("--device", help="cpu, cuda, or auto")
    add("--log-interval", type=COUNT, metavar="STEPS", help="optimizer steps between TensorBoard scalars")
    add("--image-interval", type=COUNT, metavar="EPOCHS", help="epochs between mask pictures")
    add("--no-export", action="store_true", help="do not write model.subp at the end")
    add("--export-dtype", choices=["float32", "bfloat16", "int8"], help="of a second file, beside model.subp: "
        "model-bfloat16.subp or model-int8.subp")  # fmt: skip


def flag_name(action: argparse.Action) -> str:
    """A flag as it is typed, in full."""
    return max(action.option_strings, key=len)
