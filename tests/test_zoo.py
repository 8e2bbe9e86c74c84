"""timm's architectures through masks, a training step and plain weights, as `zoo.py` checks one.

Fast: one small member of each family whose weights are used in a way of their own. Slow: every model of timm, with a
printed summary; models that do not fit into the memory that is free are named there as skipped. Out of scope: accuracy.
"""

import pytest
import timm
import zoo

SAMPLE = [
    "test_resnet",  # deep stem
    "test_byobnet",
    "test_coatnet",  # hybrid
    "test_efficientnet_evos",
    "test_nfnet",  # ScaledStdConv2dSame
    "resnetv2_18",
    "mobileone_s0",  # branches that can be fused
    "ghostnet_050",
    "mobilenetv3_small_050",  # widths that 16 does not divide
    "starnet_s050",
    "efficientvit_m0",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_small_model_of_a_family(name):
    outcome = zoo.check(name)
    assert (outcome.status, outcome.reason) == ("passed", "")
    assert outcome.pruned_layers > 0


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_linear_layers_are_pruned_on_request_only(name):
    prunable = zoo.check(name, prune_linear=True)
    assert prunable.status == "passed" and prunable.prunable_share > 0.7


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_vit", "nothing to prune in VisionTransformer: patch_embed.proj: stem"),
        ("convnextv2_atto", None),
        ("coat_tiny", "hold 2.* % of its MACs, too little to be worth it.*--prune-linear"),
    ],
)
def test_models_without_convolutions_to_prune_are_refused_with_the_reason(name, reason):
    outcome = zoo.check(name)
    if reason is None:
        assert outcome.status == "passed"
    else:
        assert outcome.status == "refused"
        pytest.raises(ValueError, _raise, outcome.reason).match(reason)


def _raise(message: str) -> None:
    raise ValueError(message)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_whole_zoo(capsys):
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    found = zoo.sweep(timm.list_models(), say)
    assert not [name for name, outcome in found.items() if outcome.status == "failed"]
    cnns = [outcome.status for outcome in found.values() if outcome.convolution_share >= 0.5]
    assert len(cnns) > 600
    assert cnns.count("refused") <= 0.02 * len(cnns)
