"""Counting MACs, against the oracle and the published numbers.

Sizes: a small network on 3 x 16 x 16 images; timm's networks on the meta device at 224 x 224, which computes nothing.
Tolerances: counts are exact integers; published numbers are compared to the digits that were printed.
Out of scope: which layers are pruned (test_plan.py).
"""

from __future__ import annotations

import functools

import oracle
import pytest
import timm
import torch
from torch import nn

from subp_dist.flops import count_macs, rate_for_macs
from subp_dist.plan import kept_macs_at, plan_layers
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

# timm model, skip, rate, printed kept MACs; then the half of its last digit. Table of method.md.
PUBLISHED = [
    ("resnet18", ("*downsample*",), 60 / 128, 1.03e9, 0.005e9),
    ("resnet34", ("*downsample*",), 59 / 128, 2.04e9, 0.005e9),
    ("resnet50", (), 66 / 128, 2.04e9, 0.005e9),
    ("resnet50", (), 98.5 / 128, 1.04e9, 0.005e9),
    ("mobilenetv1_100", (), 69 / 128, 278e6, 0.5e6),
]


class SmallNet(nn.Module):
    """Stem, a convolution of every kind, one that runs twice, one that never runs, a linear layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, groups=12)
        self.bn = nn.BatchNorm2d(12)
        self.twice = nn.Conv2d(12, 12, (1, 3), padding=(0, 1), bias=False)
        self.never = nn.Conv2d(12, 12, 1)
        self.tail = nn.Conv2d(12, 9, 1)
        self.fc = nn.Linear(9, 5)

    def forward(self, x):
        x = self.bn(self.depthwise(self.grouped(self.stem(x))))
        x = self.tail(self.twice(self.twice(x)))
        return self.fc(x.flatten(2).transpose(1, 2)).mean(1)


# name: (output height and width, calls) of the convolutions that run, on 16 x 16 images.
SMALL_OUTPUTS = {"stem": (8, 1), "grouped": (8, 1), "depthwise": (3, 1), "twice": (3, 2), "tail": (3, 1)}


@functools.cache
def meta_model(network: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(network)


@functools.cache
def network_macs(network: str) -> dict[str, int]:
    return count_macs(meta_model(network), (3, 224, 224))


def test_dense_macs_of_a_small_net_equal_the_oracle():
    model = SmallNet()
    expected = {}
    for name, (size, calls) in SMALL_OUTPUTS.items():
        conv = model.get_submodule(name)
        dense, _ = oracle.conv_macs(tuple(conv.weight.shape), (size, size), None, 4, conv.groups)
        expected[name] = dense * calls
    expected["fc"] = 9 * 5 * 9  # nine tokens
    assert count_macs(model, (3, 16, 16)) == expected


def test_kept_macs_of_a_small_net_equal_the_oracle():
    model = SmallNet()
    pruner = SUBPPruner(model, PruneSchedule(0.6, 0, 0), block_size=4)
    pruner.step(0)
    report = {layer.name: layer for layer in pruner.report(count_macs(model, (3, 16, 16)))}
    for name in ("grouped", "twice", "tail"):
        (size, calls), conv = SMALL_OUTPUTS[name], model.get_submodule(name)
        mask = pruner.masks[name].numpy()
        dense, kept = oracle.conv_macs(tuple(conv.weight.shape), (size, size), mask, 4, conv.groups)
        assert kept < dense
        assert (report[name].macs, report[name].kept_macs) == (dense * calls, kept * calls)


def test_kept_macs_at_a_rate_are_those_the_masks_leave():
    model = SmallNet()
    macs = count_macs(model, (3, 16, 16))
    kept_macs = kept_macs_at(plan_layers(model), macs)
    pruner = SUBPPruner(model, PruneSchedule(0.6, 0, 0), block_size=4)
    pruner.step(0)
    assert kept_macs(0.6) == pytest.approx(sum(layer.kept_macs for layer in pruner.report(macs)), rel=1e-12)


def test_masks_do_not_change_the_dense_count():
    model = SmallNet()
    before = count_macs(model, (3, 16, 16))
    SUBPPruner(model, PruneSchedule(0.6, 0, 0), block_size=4).step(0)
    assert count_macs(model, (3, 16, 16)) == before


def test_counting_leaves_the_model_as_it_was():
    model = SmallNet().train()
    model.bn.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, (3, 16, 16))
    assert [name for name, module in model.named_modules() if not module.training] == ["bn"]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_failed_count_leaves_the_model_as_it_was():
    model = SmallNet().train()
    with pytest.raises(RuntimeError):
        count_macs(model, (4, 16, 16))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_type_and_memory_format_counts(dtype, memory_format):
    model = SmallNet().to(dtype).to(memory_format=memory_format)
    assert count_macs(model, (3, 16, 16)) == count_macs(SmallNet(), (3, 16, 16))


@pytest.mark.parametrize(
    ("network", "macs", "half_digit"),
    [
        ("resnet18", 1.814e9, 0.0005e9),
        ("resnet34", 3.664e9, 0.0005e9),
        ("resnet50", 4.089e9, 0.0005e9),
        ("mobilenetv1_100", 569e6, 0.5e6),
    ],
)
def test_dense_macs_are_the_published_ones(network, macs, half_digit):
    assert sum(network_macs(network).values()) == pytest.approx(macs, rel=0, abs=half_digit)


@pytest.mark.parametrize(("network", "skip", "rate", "macs", "half_digit"), PUBLISHED)
def test_kept_macs_at_the_published_rates_are_the_published_ones(network, skip, rate, macs, half_digit):
    kept_macs = kept_macs_at(plan_layers(meta_model(network), skip), network_macs(network))
    assert kept_macs(rate) == pytest.approx(macs, rel=0, abs=half_digit)


@pytest.mark.parametrize(("network", "skip"), sorted({(network, skip) for network, skip, *_ in PUBLISHED}))
def test_kept_macs_at_rate_zero_are_the_dense_ones(network, skip):
    kept_macs = kept_macs_at(plan_layers(meta_model(network), skip), network_macs(network))
    assert kept_macs(0) == sum(network_macs(network).values())


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.3])
@pytest.mark.parametrize(("network", "skip"), sorted({(network, skip) for network, skip, *_ in PUBLISHED}))
def test_the_rate_for_a_target_is_the_smallest_that_reaches_it(network, skip, share):
    kept_macs = kept_macs_at(plan_layers(meta_model(network), skip), network_macs(network))
    target = share * kept_macs(0)
    rate = rate_for_macs(target, kept_macs)
    assert 0 <= rate < 1
    assert kept_macs(rate) <= target < kept_macs(rate - 1e-9)


@pytest.mark.parametrize(("network", "skip", "rate", "macs", "half_digit"), PUBLISHED)
def test_the_rate_for_the_published_macs_reaches_them(network, skip, rate, macs, half_digit):
    kept_macs = kept_macs_at(plan_layers(meta_model(network), skip), network_macs(network))
    found = rate_for_macs(kept_macs(rate), kept_macs)
    assert found <= rate + 1e-9
    assert kept_macs(found) == kept_macs(rate)


def test_the_lowest_reachable_target_is_reached():
    kept_macs = kept_macs_at(plan_layers(meta_model("resnet18")), network_macs("resnet18"))
    floor = kept_macs(1 - 1e-9)
    assert kept_macs(rate_for_macs(floor, kept_macs)) == floor


@pytest.mark.parametrize("target", [1.814e10, 1.815e9])
def test_a_target_above_the_dense_count_is_an_error_that_names_both(target):
    kept_macs = kept_macs_at(plan_layers(meta_model("resnet18")), network_macs("resnet18"))
    with pytest.raises(
        ValueError, match=f"target of {target:.4g} MACs.* has only 1.814e.09; ask for less".replace("+", ".")
    ):
        rate_for_macs(target, kept_macs)


@pytest.mark.parametrize("target", [1e8, 0, -5])
def test_a_target_below_one_block_per_row_is_an_error_that_names_both(target):
    kept_macs = kept_macs_at(plan_layers(meta_model("resnet18")), network_macs("resnet18"))
    floor = f"{kept_macs(1 - 1e-9):.4g}".replace("+", ".")
    with pytest.raises(ValueError, match=f"one block left per row {floor} remain; ask for more"):
        rate_for_macs(target, kept_macs)
