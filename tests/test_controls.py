"""What the method is compared with: random scores, and blocks that compete in the whole layer (`--pattern layer`).

Sizes: two convolutions of at most 24 x 16 channels, and timm's `test_resnet` for one epoch of the digits. Counts and
masks are exact. Out of scope: whether these learn worse, which is what the study is for.
"""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from subp_dist import train
from subp_dist.data import digits
from subp_dist.errors import UsageError
from subp_dist.flag_values import parse_kwargs
from subp_dist.options import parse_args
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule
from subp_dist.validate import Run

STEP = PruneSchedule(0.4, 0, 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 16, 1), nn.Conv2d(16, 16, 1))


@pytest.fixture
def few_digits(monkeypatch):
    pixels, labels = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (pixels[::10], labels[::10]))


def test_in_a_layer_the_lowest_blocks_of_all_rows_go():
    pruner = SUBPPruner(network(), STEP, block_size=8, criterion="l1", pattern="layer", skip=["3"])
    weight = pruner.layers["1"].parametrizations.weight.original.detach().double().numpy()
    magnitude = np.abs(weight).reshape(3, 8, 16, 9).sum((1, 3))
    lowest = np.argsort(magnitude, axis=None, kind="stable")[: int(0.4 * 48)]
    expected = np.ones(48, bool)
    expected[lowest] = False
    pruner.step(0)
    mask = pruner.masks["1"].numpy()
    assert (mask.ravel() == expected).all()
    assert len(set(mask.sum(1))) > 1, "this weight was meant to give rows of different counts"
    assert pruner.at_target
    layer = pruner.report({"1": 4800})[0]
    assert layer.kept == pytest.approx(29 / 3)
    assert layer.kept_macs == 4800 * 29 // 48


def test_random_scores_stay_the_same_whatever_the_weights():
    first = SUBPPruner(network(), STEP, block_size=8, criterion="random")
    second = SUBPPruner(network(), STEP, block_size=8, criterion="random")
    with torch.no_grad():
        second.layers["1"].parametrizations.weight.original.normal_()
    first.step(0), second.step(3)
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
    assert set(first.masks["1"].sum(1).tolist()) == {10}
    other = SUBPPruner(network(), STEP, block_size=8, criterion="random", seed=1)
    other.step(0)
    assert not torch.equal(first.masks["1"], other.masks["1"])


def test_random_masks_differ_between_layers_of_one_shape():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))
    pruner = SUBPPruner(model, STEP, block_size=8, criterion="random")
    pruner.step(0)
    assert not torch.equal(pruner.masks["1"], pruner.masks["2"])


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="pattern 'rows': expected one of uniform, layer"):
        SUBPPruner(network(), STEP, pattern="rows")


def test_a_layer_pattern_trains_and_is_not_exported(few_digits, tmp_path):
    flags = ["test_resnet", "--data-dir", "builtin", "--batch-size", "64", "--epochs", "1", "--prune-start", "0"]
    flags += ["--prune-end", "0", "--pattern", "layer", "--criterion", "l1", "--output", str(tmp_path)]
    with pytest.raises(UsageError, match="--no-export"):
        train.main(parse_args(flags))
    assert not list(tmp_path.iterdir())
    folder = train.main(parse_args([*flags, "--no-export"]))
    assert (folder / "model.safetensors").exists()
    assert not (folder / "model.subp").exists()


def test_keyword_arguments_reach_the_model_and_its_export(few_digits, tmp_path):
    flags = ["resnet10t", "--data-dir", "builtin", "--batch-size", "64", "--epochs", "1", "--output", str(tmp_path)]
    folder = train.main(parse_args([*flags, "--model-kwargs", "channels=[32,32,32,48]", "stem_width=16"]))
    assert Run.open(folder).model.layer4[0].conv1.weight.shape == (48, 32, 3, 3)
    plain = timm.create_model("resnet10t", in_chans=1, num_classes=10, channels=[32, 32, 32, 48], stem_width=16)
    assert len(plain.state_dict()) == len(Run.open(folder).model.state_dict())


def test_keyword_arguments_are_literals_or_text():
    assert parse_kwargs(["a=1", "b=[1, 2]", "c=silu", "d=x=y", "e=None"]) == {
        "a": 1, "b": [1, 2], "c": "silu", "d": "x=y", "e": None,
    }  # fmt: skip
    for bad in ("width", "=3", "a b=1"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_kwargs([bad])


def test_keyword_arguments_that_timm_does_not_take_are_refused(tmp_path):
    flags = ["resnet10t", "--data-dir", "builtin", "--output", str(tmp_path), "--model-kwargs", "no_such_thing=1"]
    with pytest.raises(UsageError, match="timm cannot create resnet10t"):
        train.main(parse_args(flags))
    with pytest.raises(UsageError, match="--model-kwargs"):
        train.main(parse_args([*flags[:-1], "oops"]))
