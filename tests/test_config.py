"""The configuration: one list of flags, what is derived from them, and who may see a parser's result.

Learning rates, precision and epochs are computed by hand. Out of scope: what data and models decide (test_data.py,
test_train.py).
"""

import ast
import dataclasses
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from subp_dist.config import Resolved, TrainConfig, flag_of
from subp_dist.errors import UsageError
from subp_dist.flag_values import parse_kwargs, parse_layer_rates
from subp_dist.flags import build_parser
from subp_dist.options import parse_args
from subp_dist.resolve import learning_rate, resolve, shape_without_data

ROOT = Path(__file__).resolve().parent.parent
DIGITS = SimpleNamespace(
    loader="timm", num_classes=10, input_size=(1, 28, 28), mean=(0.1,), std=(0.3,), crop_pct=0.9, interpolation="box"
)


def test_every_flag_has_one_place_and_the_parser_takes_its_default_from_there():
    defaults = TrainConfig().flags()
    assert len(defaults) == sum(len(fields(kind)) for kind in TrainConfig.subjects().values())
    actions = {action.dest: action for action in build_parser()._actions}
    assert set(actions) - set(defaults) == {
        "help",
        "config",
        "preset",
        "model_option",
        "input_size",
        "pin_mem",
        "check_data",
    }
    assert set(defaults) <= set(actions)
    assert all(actions[flag].default == value for flag, value in defaults.items() if flag != "model")


def test_subjects_are_the_parsers_groups():
    groups = {group.title: {action.dest for action in group._group_actions} for group in build_parser()._action_groups}
    titles = {"augmentation": "augmentation and loss"}
    for subject, kind in TrainConfig.subjects().items():
        flags = {flag_of(field) for field in fields(kind)} - {"model"}  # the positional one
        assert groups[titles.get(subject, subject)] == flags


def test_a_configuration_goes_through_yaml_unchanged():
    given = parse_args(["resnet18", "--skip", "a", "b", "--opt-betas", "0.9", "0.99", "--lr", "0.3", "--amp"])
    assert TrainConfig.from_flags(yaml.safe_load(yaml.safe_dump(given.flags()))) == given
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(given.to_dict()))) == given


def test_flags_of_other_versions_are_ignored_and_missing_ones_get_their_default():
    given = TrainConfig.from_flags({"model": "resnet18", "of_another_version": 1, "skip": ["a"]})
    assert given == TrainConfig().replace(model="resnet18", skip=("a",))
    assert TrainConfig.from_dict({"model": {"name": "resnet18", "x": 1}, "y": {}}) == TrainConfig().replace(
        model="resnet18"
    )


def test_a_resolved_one_is_read_back_as_one():
    config = resolve(parse_args(["resnet18"]), DIGITS, 0.5, 1, "cpu")
    assert Resolved.from_dict(config.to_dict()) == config == Resolved.from_flags(config.flags())
    assert type(config.replace(lr=0.2)) is Resolved


def test_what_is_no_configuration_is_refused():
    with pytest.raises(UsageError, match="configuration, data: expected values by name, found 5"):
        Resolved.from_dict({"data": 5})


def test_a_configuration_cannot_be_changed():
    given = parse_args(["resnet18"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.data.batch_size = 3
    assert hash(given) == hash(parse_args(["resnet18"]))


def test_what_follows_from_data_and_ranks():
    given = parse_args(["resnet18", "--epochs", "100", "--batch-size", "64", "--grad-accum-steps", "2"])
    config = resolve(given, DIGITS, prune_rate=0.25, world_size=3, device="cuda")
    assert config.optimization.lr == pytest.approx(0.1 * 64 * 3 * 2 / 256)
    assert (config.pruning.prune_rate, config.pruning.prune_start, config.pruning.prune_end) == (0.25, 4, 25)
    data = config.data
    assert (data.loader, data.num_classes, data.in_chans, data.img_size) == ("timm", 10, 1, 28)
    assert (data.mean, data.std, data.crop_pct, data.interpolation) == ((0.1,), (0.3,), 0.9, "box")
    assert config.model.amp_dtype == "float16"
    assert resolve(given, DIGITS, 0.25, 3, "cpu").model.amp_dtype == "bfloat16"
    # Given and resolved stay apart.
    assert given.optimization.lr is None and given.data.num_classes is None and given.pruning.prune_rate == 0.5


def test_what_is_given_stays():
    flags = {
        "lr": 0.3, "validation_batch_size": 7, "amp_dtype": "bfloat16", "prune_start": 1.0, "prune_end": 2.0,
        "epochs": 9, "skip": ["x"],
    }  # fmt: skip
    config = resolve(TrainConfig().replace(**flags), DIGITS, 0.5, 4, "cuda")
    assert {flag: config.flags()[flag] for flag in flags} == flags


def test_resolving_twice_changes_nothing():
    config = resolve(parse_args(["resnet18"]), DIGITS, 0.5, 2, "cpu")
    assert resolve(config, DIGITS, 0.5, 4, "cuda") == config


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="last epoch is 8"):
        resolve(parse_args(["resnet18", "--epochs", "9", "--prune-end", "9"]), DIGITS, 0.5, 1, "cpu")


def test_without_data_the_models_own_images_count():
    own = {"input_size": (3, 160, 160), "num_classes": 1000}
    assert shape_without_data(parse_args(["resnet18", "--num-classes", "7"]).data, own) == (7, 3, 160)


def test_the_rate_of_a_batch_is_what_earlier_versions_computed():
    given = parse_args(["resnet18", "--lr-base", "0.3", "--batch-size", "48", "--grad-accum-steps", "7"])
    assert learning_rate(given.optimization, 48, 3) == 0.3 * 48 * 3 * 7 / 256  # in this order, to the last bit


def test_pairs_are_parsed_and_refused():
    assert parse_kwargs(["a=1", "b=x=y"]) == {"a": 1, "b": "x=y"}
    assert parse_layer_rates(["a=b=0.5"]) == {"a=b": 0.5}
    for bad in ("a", "=0.5", "a=1", "a=x"):
        with pytest.raises(UsageError, match="PATTERN=RATE"):
            parse_layer_rates([bad])


def _annotations(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [ast.unparse(node) for f in functions for a in ast.walk(f.args) if isinstance(a, ast.arg)
             for node in [a.annotation] if node is not None]  # fmt: skip
    fields_ = [ast.unparse(node.annotation) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return found + fields_


def test_no_parsers_result_is_handed_on():
    """Programs that parse a command line of their own keep it to themselves; below them there are values."""
    entries = [path for path in (ROOT / "subp_dist").rglob("*.py") if "ArgumentParser(" in path.read_text()]
    # The launcher's are torchrun's own, and timm leaves a parser's result beside weights, which is read past.
    others = {ROOT / "subp_dist" / name for name in ("options.py", "flags.py", "launch.py", "export/weights.py")}
    allowed = {*others, *entries}
    for path in sorted({*(ROOT / "subp_dist").rglob("*.py")} - allowed):
        assert not [text for text in _annotations(path) if "argparse" in text], path
        assert "import argparse" not in path.read_text(), path
