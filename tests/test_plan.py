"""`plan_layers`: which layers of timm's networks, and of one's own, are pruned, and why the others are not.

On the meta device: nothing is computed. Out of scope: what is refused where nothing can be pruned (test_pruner.py).
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import timm
import torch
from small_net import PRUNED, SmallNet
from torch import nn

from subp_dist.plan import plan_layers


@functools.cache
def meta_model(network: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(network)


def reasons(network: str, skip: tuple[str, ...] = ()) -> dict[str, str | None]:
    return {plan.name: plan.reason for plan in plan_layers(meta_model(network), skip)}


@pytest.mark.parametrize(("network", "stem"), [("resnet18", "conv1"), ("resnet34", "conv1"), ("resnet50", "conv1")])
def test_resnets_are_pruned_but_for_the_stem(network, stem):
    found = reasons(network)
    assert found.pop(stem) == "stem"
    assert set(found.values()) == {None}


def test_the_plan_holds_every_convolution_in_the_order_of_the_model():
    model = meta_model("resnet18")
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    plan = plan_layers(model)
    assert [layer.name for layer in plan] == expected
    assert all(layer.module is model.get_submodule(layer.name) for layer in plan)


def test_skipped_layers_stay_dense_and_name_their_pattern():
    found = reasons("resnet18", ("*downsample*", "layer4.1.conv2"))
    skipped = {name: reason for name, reason in found.items() if reason and reason.startswith("skipped")}
    assert skipped == {
        "layer2.0.downsample.0": "skipped by '*downsample*'",
        "layer3.0.downsample.0": "skipped by '*downsample*'",
        "layer4.0.downsample.0": "skipped by '*downsample*'",
        "layer4.1.conv2": "skipped by 'layer4.1.conv2'",
    }


def test_mobilenetv1_is_pruned_in_its_pointwise_convolutions():
    found = reasons("mobilenetv1_100")
    assert found.pop("conv_stem") == "stem"
    for name, reason in found.items():
        assert (reason is None) == name.endswith("conv_pw"), name
        assert reason is None or reason.startswith("depthwise"), name
    assert sum(reason is None for reason in found.values()) == 13


def test_grouped_convolutions_of_resnext_are_pruned():
    found = reasons("resnext50_32x4d")
    assert meta_model("resnext50_32x4d").layer1[0].conv2.groups == 32
    assert Counter(found.values()) == {None: 52, "stem": 1}


def test_a_convolution_as_classifier_stays_dense():
    found = reasons("resnetv2_50")
    assert isinstance(meta_model("resnetv2_50").head.fc, nn.Conv2d)
    assert found.pop("head.fc") == "classifier"
    assert found.pop("stem.conv") == "stem"
    assert set(found.values()) == {None}


@pytest.mark.parametrize("network", ["resnetv2_50x1_bit", "nf_resnet50"])
def test_convolutions_that_standardise_their_weight_are_pruned(network):
    found = reasons(network)
    assert found.pop("stem.conv") == "stem"
    found.pop("head.fc", None)
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("network", "stem"),
    [
        ("resnet50d", {"conv1.0", "conv1.3", "conv1.6"}),
        ("dm_nfnet_f0", {"stem.conv1", "stem.conv2", "stem.conv3", "stem.conv4"}),
        ("vit_small_r26_s32_224", {"patch_embed.backbone.stem.conv"}),
        ("densenet121", {"features.conv0"}),
        ("tresnet_m", {"body.conv1.conv"}),
        ("vgg11", {"features.0"}),
    ],
)
def test_the_stem_is_all_of_the_stem_and_no_more(network, stem):
    assert {name for name, reason in reasons(network).items() if reason == "stem"} == stem


def test_what_is_no_plain_convolution_is_named():
    found = {**reasons("efficientnet_cc_b0_4e"), **reasons("lambda_resnet26t"), **reasons("eca_nfnet_l0")}
    for kind in ("CondConv2d mixes several kernels", "Conv3d is not", "Conv1d is not"):
        assert any(reason and reason.startswith(kind) for reason in found.values()), kind


class OwnConv2d(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight + 1, self.bias)


def test_layers_whose_weight_is_not_what_they_compute_with_are_refused_by_name():
    tied, normed = nn.Conv2d(4, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    other = nn.Conv2d(4, 4, 1)
    other.weight = tied.weight
    model = nn.Sequential(nn.Conv2d(3, 4, 1), OwnConv2d(4, 4, 1), tied, other, normed, nn.Conv2d(4, 4, 1))
    assert [plan.reason for plan in plan_layers(model)] == [
        "stem", "OwnConv2d uses its weight in a way of its own, which may undo a mask",
        "shares its weight with another layer", "shares its weight with another layer",
        "its weight is computed by another parametrization", None,
    ]  # fmt: skip


def test_only_the_named_layers_are_pruned_and_skip_wins():
    found = {plan.name: plan.reason for plan in plan_layers(SmallNet(), skip=["last"], only=["la*", "tail"])}
    assert found == {
        "stem": "stem", "whole": "not among --only", "depthwise": "not among --only", "tail": None,
        "grouped": "not among --only", "last": "skipped by 'last'",
    }  # fmt: skip


def test_linear_layers_are_pruned_on_request_but_for_the_classifier():
    assert not any("mlp" in name for name in reasons("convnext_tiny"))
    plan = {layer.name: layer.reason for layer in plan_layers(meta_model("convnext_tiny"), prune_linear=True)}
    assert plan["head.fc"] == "classifier"
    assert {reason for name, reason in plan.items() if "mlp" in name} == {None}
    own = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert [layer.reason for layer in plan_layers(own, prune_linear=True)] == [None, "classifier"]


@pytest.mark.parametrize("flag", ["only", "layer_rates"])
def test_a_pattern_that_matches_nothing_is_an_error_of_its_flag(flag):
    with pytest.raises(ValueError, match=r"--(only|layer-rates) 'nope\*' matches no convolution"):
        plan_layers(SmallNet(), **{flag: {"nope*": 0.5}})


def test_a_layer_rate_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"--layer-rates tail=1: expected a share"):
        plan_layers(SmallNet(), layer_rates={"tail": 1})


@pytest.mark.parametrize("network", ["efficientnet_b0", "mobilenetv3_small_050"])
def test_depthwise_convolutions_stay_dense_and_all_others_are_pruned(network):
    found = reasons(network)
    assert found.pop("conv_stem") == "stem"
    for name, reason in found.items():
        depthwise = meta_model(network).get_submodule(name).weight.shape[1] == 1
        assert (reason is not None) == depthwise, name
        assert reason is None or reason.startswith("depthwise"), name


def test_a_model_of_ones_own_keeps_its_first_convolution_dense():
    found = {plan.name: plan.reason for plan in plan_layers(SmallNet())}
    assert {name for name, reason in found.items() if reason is None} == set(PRUNED)
    assert found["stem"] == "stem"
    assert found["depthwise"].startswith("depthwise")
