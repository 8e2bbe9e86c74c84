"""The table of layers before training: against the masks of a real pruner, the published counts, and user errors."""

import json
import sys

import pytest
import timm
import torch

from subp_dist import inspect
from subp_dist.errors import UsageError
from subp_dist.flops import count_macs
from subp_dist.inspect import inspect_model
from subp_dist.layer_report import planned_layers
from subp_dist.layer_table import format_table
from subp_dist.options import parse_args
from subp_dist.plan import plan_layers
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule


@pytest.mark.parametrize(
    "flags", [{}, {"skip": ["*conv_pwl"]}, {"layer_rates": {"*conv_pwl": 0.75}}, {"prune_linear": True}], ids=str
)
def test_planned_layers_are_what_the_masks_will_report(flags):
    model = timm.create_model("test_efficientnet")
    macs = count_macs(model, (3, 64, 64))
    planned = planned_layers(plan_layers(model, **flags), macs, 0.6, 16)
    pruner = SUBPPruner(model, PruneSchedule(0.6, 0, 0), **flags)
    pruner.step(0)
    assert planned == pruner.report(macs)


@pytest.mark.parametrize(
    ("preset", "macs", "half_digit"),
    [
        ("resnet18", 1.03e9, 0.005e9),
        ("resnet34", 2.04e9, 0.005e9),
        ("resnet50", 2.04e9, 0.005e9),
        ("resnet50-1g", 1.04e9, 0.005e9),
        ("mobilenetv1", 278e6, 0.5e6),
    ],
)
def test_presets_keep_the_published_macs(preset, macs, half_digit):
    found = inspect_model(parse_args(["--preset", preset]))
    assert sum(layer.kept_macs for layer in found.layers) == pytest.approx(macs, abs=half_digit)
    assert found.notes == []


def test_the_command_line_wins_over_the_preset():
    given = parse_args(["--preset", "resnet18", "--prune-rate", "0.25"])
    assert (given.model.name, given.pruning.prune_rate) == ("resnet18", 0.25)
    assert given.pruning.skip == ("*downsample*",)


def test_a_target_is_solved_with_fixed_layers():
    layers = inspect_model(parse_args(["resnet50", "--target-macs", "2G", "--layer-rates", "layer4*=0.75"])).layers
    kept = sum(layer.kept_macs for layer in layers)
    assert 0.99 * 2e9 < kept <= 2e9
    assert {layer.kept / layer.blocks_per_row for layer in layers if layer.name.startswith("layer4")} == {0.25}


def test_the_table_has_every_layer_and_reason():
    found = inspect_model(parse_args(["test_efficientnet"]))
    table = format_table(found.layers).splitlines()
    assert len(table) == len(found.layers) + 2
    assert "dense: stem" in table[1] and any("dense: depthwise" in line for line in table)
    assert found.shape == (1000, 3, 160)


def test_what_training_refuses_is_said():
    notes = inspect_model(parse_args(["convnext_tiny"])).notes
    assert len(notes) == 1 and "3.9 % of its MACs" in notes[0] and "--prune-linear" in notes[0]
    assert inspect_model(parse_args(["convnext_tiny", "--prune-linear"])).notes == []
    notes = inspect_model(parse_args(["vit_tiny_patch16_224"])).notes
    assert len(notes) == 1 and "refuses this: nothing to prune" in notes[0] and "patch_embed.proj: stem" in notes[0]


def test_who_names_the_layers_may_prune_few_of_them():
    assert inspect_model(parse_args(["resnet18", "--only", "layer4.0.downsample.0"])).notes == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["resnet51"], "did you mean"),
        (["resnet18", "--skip", "nope"], "--skip 'nope' matches no convolution"),
        (["resnet18", "--target-macs", "9G"], "ask for less"),
        (["resnet18", "--layer-rates", "layer4=2"], "expected PATTERN=RATE"),
        (["resnet18", "--layer-rates", "conv1=0.5"], "--layer-rates 'conv1' changes nothing: conv1 stays dense, stem"),
        (["resnet18", "--layer-rates", "*=0.5", "layer4*=0.7"], r"layer4\.0\.conv1 has its rate from '\*'"),
        (["resnet18.nope_in1k"], "no weights 'nope_in1k' of resnet18; there are .*a1_in1k"),
    ],
)
def test_bad_input_is_one_clear_error(flags, message):
    with pytest.raises(UsageError, match=message):
        inspect_model(parse_args(flags))


def test_the_command_prints_the_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["subp-inspect", "test_resnet", "--json", str(tmp_path / "rows.json")])
    inspect.cli()
    assert "layers pruned" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert torch.tensor([row["macs"] for row in rows]).sum() > 0
