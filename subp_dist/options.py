"""What the command line says, over a YAML file over a preset over the defaults, and what of it is refused."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from .config import TrainConfig
from .errors import UsageError
from .flag_values import parse_layer_rates, parse_macs, plain_name
from .flags import PRESETS, build_parser, flag_name
from .ranges import Number, check_order, check_range
from .timm_flags import FOREIGN, is_off, translated

_logger = logging.getLogger(__name__)


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """What the command line gives, over the ``--config`` file over the ``--preset`` over the defaults.

    Raises:
        UsageError: as ``parse_flags``.
    """
    return TrainConfig.from_flags(vars(parse_flags(build_parser(), argv)))


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """As ``parse_args``, for a parser with flags besides those of the training.

    Checks what needs no model or data.

    Raises:
        UsageError: the file cannot be read or has an unknown key, or a value is out of range.
    """
    first = parser.parse_known_args(argv)[0]
    if first.model and first.model_option and first.model != first.model_option:
        raise UsageError(f"--model {first.model_option}: the model is {first.model} already; name one")
    config = _read_config(Path(first.config), parser) if first.config else {}
    parser.set_defaults(**PRESETS.get(first.preset or config.get("preset"), {}) | config)
    args = parser.parse_args(argv)
    args.model = plain_name(args.model_option or args.model or "")
    args.kd_model = plain_name(args.kd_model)
    if not args.model:
        raise UsageError("no model given: name any timm model, such as resnet50 (see timm.list_models())")
    _check(parser, args)
    _take_input_size(args)
    return args


def _take_input_size(args: argparse.Namespace) -> None:
    """What ``--input-size`` says, as the flags that it stands for."""
    if args.input_size is None:
        return
    channels, height, width = args.input_size
    text = f"--input-size {channels} {height} {width}"
    if height != width:
        raise UsageError(f"{text}: expected a square image, H equal to W")
    for flag, value in (("in_chans", channels), ("img_size", height)):
        if getattr(args, flag) not in (None, value):
            raise UsageError(f"{text}: --{flag.replace('_', '-')} says {getattr(args, flag)}; give one of them")
        setattr(args, flag, value)


def _read_config(path: Path, parser: argparse.ArgumentParser) -> dict:
    """Values by flag; all that is wrong with a file is told at once."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path}: expected lines of 'flag: value', found {type(values).__name__}")
    actions = {
        option[2:]: action for action in parser._actions for option in action.option_strings if option[:2] == "--"
    }
    actions["model"] = next(action for action in parser._actions if action.dest == "model")
    checked, unknown, idle, problems = {}, [], [], []
    for key, value in translated(values).items():
        action = actions.get(str(key).replace("_", "-"))
        if action is None or action.dest in ("help", "config"):
            foreign = FOREIGN.get(str(key))
            if foreign.asks_for_nothing(value) if foreign else is_off(value):
                idle.append(repr(key))
            elif foreign:
                problems.append(f"{key}: {value!r} would change the training, and is not to be had: {foreign.why}")
            else:
                unknown.append(repr(key))
            continue
        try:
            checked[action.dest] = _convert(action, value, f"{key}: {value!r}")
        except UsageError as error:
            problems.append(str(error))
    if unknown:
        problems.append(f"there {'is no flag' if len(unknown) == 1 else 'are no flags'} {', '.join(unknown)}")
    if problems:
        raise UsageError(f"--config {path}: {'; '.join(problems)}; --help lists all flags")
    if idle:
        _logger.warning("--config %s: passed over, for they change nothing here: %s", path, ", ".join(idle))
    return checked


def _convert(action: argparse.Action, value, where: str):
    """A YAML value as the flag's type; argparse itself would take defaults from a file unchecked."""
    if value is None and action.default is None:
        return None
    if value is None:
        raise UsageError(f"{where}: expected a value; leave the line out for the default, {action.default}")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: expected true or false")
        return value
    if value == {} and action.nargs == "*":
        value = []  # timm's model_kwargs
    if value == "" and action.choices and action.default is None:
        return None
    many = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    if many != isinstance(value, list):
        raise UsageError(f"{where}: expected {'a list' if many else 'a single value'}")
    if isinstance(action.nargs, int) and len(value) != action.nargs:
        raise UsageError(f"{where}: expected {action.nargs} values")
    if action.nargs == "+" and not value and action.default != []:
        raise UsageError(f"{where}: expected one or more values")
    convert = action.type or str
    try:
        items = [convert(str(item)) for item in (value if many else [value])]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{where}: {error}") from None
    except ValueError:
        raise UsageError(f"{where}: expected {convert.__name__}") from None
    if action.choices and any(item not in action.choices for item in items):
        raise UsageError(f"{where}: expected one of {', '.join(map(str, action.choices))}")
    return items if many else items[0]


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse numbers out of their ranges, and flags that contradict each other."""
    for action in parser._actions:
        if isinstance(action.type, Number):
            check_range(flag_name(action), action.type, getattr(args, action.dest))
    parse_layer_rates(args.layer_rates)
    if args.target_macs:
        parse_macs(args.target_macs)
    if args.kd_checkpoint and not args.kd_model:
        raise UsageError("--kd-checkpoint without --kd-model: name the teacher as well")
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise UsageError(f"--batch-size {args.batch_size}: mixup and cutmix pair images up; expected an even number")
    if args.data_dir == "builtin":
        _check_for_digits(args)
    _check_qat(args)
    _check_regroup(args)
    if args.export_dtype != "float32" and args.no_export:
        raise UsageError(
            f"--export-dtype {args.export_dtype} with --no-export: {args.export_dtype} is made of what is exported; "
            "leave one of them out"
        )
    check_order("prune-start", args.prune_start, "prune-end", args.prune_end)
    check_order("min-lr", args.min_lr, "lr", args.lr)
    if args.warmup_epochs:
        check_order("warmup-lr", args.warmup_lr, "lr", args.lr)
    if args.warmup_epochs >= args.epochs:
        raise UsageError(f"--warmup-epochs {args.warmup_epochs}: expected fewer than the run's {args.epochs} epochs")
    if args.sched == "none" and args.warmup_epochs:
        raise UsageError(f"--warmup-epochs {args.warmup_epochs}: --sched none has no warm-up; use --sched constant")
    if args.decay_rate > 1 and args.sched != "poly":
        raise UsageError(f"--decay-rate {args.decay_rate}: expected a factor in (0, 1]; it is a power for --sched poly")


def _check_qat(args: argparse.Namespace) -> None:
    """Refuse what does not go with epochs of fake quantization, which imply an export in int8."""
    epochs = TrainConfig.from_flags(vars(args)).optimization.all_epochs
    if not args.qat_epochs:
        return
    flag = f"--qat-epochs {args.qat_epochs}"
    if args.qat_epochs >= epochs:
        raise UsageError(f"{flag}: expected fewer than the run's {epochs} epochs, for the masks are found before them")
    if args.no_export:
        raise UsageError(f"{flag} with --no-export: its integers are for model-int8.subp; leave one of them out")
    if args.export_dtype == "bfloat16":
        raise UsageError(f"{flag} with --export-dtype bfloat16: it trains for int8; leave one of them out")
    if args.sched == "plateau":
        raise UsageError(f"{flag} with --sched plateau: the learning rate has to follow from the epoch; use another")
    args.export_dtype = "int8"


def _check_regroup(args: argparse.Namespace) -> None:
    """Refuse to regroup what tells nothing about the channels, or has no rows of its own."""
    if not args.regroup:
        return
    if not (args.initial_checkpoint or args.pretrained):
        raise UsageError(
            "--regroup without trained weights: blocks are chosen by what the weights have learned; add "
            "--initial-checkpoint FILE or --pretrained, or leave it out"
        )
    if args.pattern != "uniform":
        raise UsageError(
            f"--regroup with --pattern {args.pattern}: it needs to know how many blocks each row keeps; use --pattern "
            "uniform, or leave one of them out"
        )


def _check_for_digits(args: argparse.Namespace) -> None:
    """Refuse what is done to pictures, and not to the built-in digits."""
    defaults = TrainConfig().flags()
    given = [flag for flag in ("scale", "ratio", "hflip", "vflip", "crop_pct") if getattr(args, flag) != defaults[flag]]
    if given:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in given)
        raise UsageError(f"{flags}: the built-in digits are shifted, not cropped or flipped; leave it out")
