"""subp_dist.options: the command line over a YAML file over the defaults, and what is refused."""

import pytest

from subp_dist.errors import UsageError
from subp_dist.flag_values import parse_macs
from subp_dist.options import build_parser, parse_args


def test_defaults_are_the_published_recipe():
    given = parse_args(["resnet50"])
    optimization, pruning, augmentation = given.optimization, given.pruning, given.augmentation
    assert (optimization.lr_base, optimization.lr_base_size) == (0.1, 256)
    assert (optimization.momentum, optimization.weight_decay) == (0.9, 1e-4)
    assert (optimization.opt, optimization.sched) == ("momentum", "cosine")
    assert (optimization.warmup_epochs, optimization.epochs) == (0, 250)
    assert (pruning.criterion, pruning.tau, pruning.alpha, pruning.prune_schedule) == ("bpar", 1.0, 1.0, "cubic")
    assert (pruning.block_size, pruning.sr_ste_decay) == (16, 2e-4)
    assert (augmentation.smoothing, augmentation.color_jitter) == (0.1, 0.0)


def test_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: resnet18\nlr: 0.3\nprune-rate: 0.25\nskip: ['*downsample*']\namp: true\n"
    )
    given = parse_args(["--config", str(tmp_path / "run.yaml"), "--lr", "0.2"])
    assert (given.model.name, given.optimization.lr, given.model.amp) == ("resnet18", 0.2, True)
    assert (given.pruning.prune_rate, given.pruning.skip) == (0.25, ("*downsample*",))
    assert parse_args(["resnet34", "--config", str(tmp_path / "run.yaml")]).model.name == "resnet34"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prun_rate: 0.5", "no flag 'prun_rate'"),
        ("lr: fast", "lr: 'fast': expected float"),
        ("amp: 1", "expected true or false"),
        ("skip: conv1", "expected a list"),
        ("lr: [1]", "expected a single value"),
        ("criterion: l3", "expected one of l1, l2, bpar"),
        ("epochs: 2.5", "expected int"),
        ("- a", "expected lines of"),
        ("a: [", "run.yaml"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_args(["resnet18", "--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune-rate", "-0.1"],
        ["--prune-rate", "1"],
        ["--prune-rate", "nan"],
        ["--epochs", "0"],
        ["--batch-size", "0"],
        ["--tau", "0"],
        ["--smoothing", "1"],
        ["--mixup", "0.2", "--batch-size", "7"],
        ["--warmup-epochs", "5", "--epochs", "5"],
        ["--workers", "-1"],
        ["--block-size", "12"],
        ["--model-ema-decay", "2"],
        ["--model-ema-decay", "nan"],
        ["--momentum", "1"],
        ["--drop", "7"],
        ["--drop-path", "-0.1"],
        ["--clip-grad", "0"],
        ["--sr-ste-decay", "nan"],
        ["--weight-decay", "-1"],
        ["--lr", "nan"],
        ["--lr-base", "inf"],
        ["--alpha", "nan"],
        ["--no-such-flag"],
        ["--prune", "0.5"],
        ["--config", "nowhere.yaml"],
    ],
)
def test_bad_values_are_usage_errors(flags):
    with pytest.raises(UsageError):
        parse_args(["resnet18", *flags])


def test_every_flag_is_explained():
    assert all(action.help for action in build_parser()._actions)


@pytest.mark.parametrize(("text", "macs"), [("2.0G", 2e9), ("300M", 3e8), ("5k", 5e3), ("1000", 1e3)])
def test_macs_with_suffix(text, macs):
    assert parse_macs(text) == macs


@pytest.mark.parametrize("text", ["", "G", "-1G", "two", "0", "nan"])
def test_bad_macs(text):
    with pytest.raises(UsageError, match="--target-macs"):
        parse_macs(text)


@pytest.mark.parametrize(
    "line, message",
    [
        ("skip:", "skip: None: expected a value; leave the line out for the default"),
        ("prune-rate:", "expected a value.*0.5"),
        ("weight_decay: null", "expected a value"),
        ("scale: [0.08]", "expected 2 values"),
        ("mean: []", "expected one or more values"),
    ],
)
def test_empty_values_in_a_file_are_refused(tmp_path, line, message):
    (tmp_path / "run.yaml").write_text(f"model: resnet18\n{line}\n")
    with pytest.raises(UsageError, match=message):
        parse_args(["--config", str(tmp_path / "run.yaml")])


def test_an_empty_value_is_the_default_where_that_is_none(tmp_path):
    (tmp_path / "run.yaml").write_text("model: resnet18\nlr:\n")
    assert parse_args(["--config", str(tmp_path / "run.yaml")]).optimization.lr is None
