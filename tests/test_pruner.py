"""`SUBPPruner`: what an update does to the layers that it prunes, against the oracle.

Sizes: a network of six convolutions of at most 40 x 12 channels, pruned over 6 epochs. Tolerances: masks and counts are
exact; the weights' seed leaves every boundary between candidates and others wider than `4 D` units of float32 rounding,
which is asserted; gradients are compared to 4 roundings. Out of scope: which layers are pruned (test_plan.py), several
processes (test_agreement.py), MACs (test_flops.py).
"""

from __future__ import annotations

import copy
import logging

import numpy as np
import oracle
import pytest
import timm
import torch
from small_net import SmallNet, small_net
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

from subp_dist.parametrization import block_mask_of
from subp_dist.plan import plan_layers
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

UNIT = 2.0**-24
SCHEDULE = PruneSchedule(0.6, 1, 5)


def small_pruner(model: nn.Module | None = None, schedule: PruneSchedule = SCHEDULE, **options) -> SUBPPruner:
    return SUBPPruner(small_net() if model is None else model, schedule, **{"block_size": 4, **options})


def latent(pruner: SUBPPruner, name: str) -> torch.Tensor:
    return pruner.layers[name].parametrizations.weight.original


def train_a_little(pruner: SUBPPruner, seed: int) -> None:
    """Move the latent weights as if some steps of training had passed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in pruner.layers:
            weight = latent(pruner, name)
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() / 4)


def copied_masks(pruner: SUBPPruner) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in pruner.masks.items()}


def same_masks(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Layers and masks


def test_layers_with_a_rate_of_their_own_keep_to_it():
    pruner = small_pruner(layer_rates={"ta*": 0.25, "whole": 0.0, "*": 0.6})  # the first that matches
    for epoch in (0, 3, 5):
        pruner.step(epoch)
        shares = {"whole": 0.0, "tail": 0.25, "grouped": 0.6, "last": 0.6}
        for name, rate in shares.items():
            channels = pruner.masks[name].shape[1]
            due = oracle.pruned_rate(rate, epoch, 1, 5, "cubic") if rate else 0
            pruned = oracle.candidate_count(rate, channels) - oracle.regrown_count(rate, due, channels)
            assert set(pruner.masks[name].sum(1).tolist()) == {channels - pruned}, (name, epoch)
    assert pruner.at_target
    layers = {layer.name: layer for layer in pruner.report(MACS)}
    assert layers["tail"].kept_asked == 0.75 * 12
    pruner.masks["tail"][:, 0] = False
    assert not pruner.at_target


def test_fusing_branches_is_warned_about_by_name(caplog):
    model = timm.create_model("repvgg_a0")
    SUBPPruner(model, SCHEDULE)
    assert "RepVggBlock can be fused" in caplog.text


def test_only_planned_layers_get_masks():
    model = small_net()
    pruner = small_pruner(model, skip=["tail"])
    masked = [name for name, module in model.named_modules() if block_mask_of(module) is not None]
    assert set(masked) == set(pruner.layers) == set(pruner.masks) == {"whole", "grouped", "last"}
    assert {name: tuple(mask.shape) for name, mask in pruner.masks.items()} == {
        "whole": (3, 8), "grouped": (4, 11), "last": (10, 12),
    }  # fmt: skip


def test_building_a_pruner_says_how_many_layers_it_masked(caplog):
    with caplog.at_level(logging.INFO, logger="subp_dist.pruner"):
        small_pruner()
    assert "1x4 masks on 4 of 6 convolutions, target rate 0.6" in caplog.text


# Errors


@pytest.mark.parametrize(
    ("build", "because"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4)), "Sequential: it has no convolutions"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)), "0: stem; 1: depthwise"),
        (lambda: timm.create_model("test_vit"), "patch_embed.proj: stem .linear layers are pruned with --prune-linear"),
    ],
    ids=["linear", "depthwise", "transformer"],
)
def test_nothing_to_prune_is_an_error_with_the_reasons(build, because):
    with pytest.raises(ValueError, match=f"nothing to prune in .*{because}"):
        SUBPPruner(build(), SCHEDULE)


def test_skipping_everything_is_an_error_with_the_reasons():
    with pytest.raises(ValueError, match=r"nothing to prune in SmallNet: stem: stem; whole: skipped by '\*'"):
        small_pruner(skip=["*"])


def test_a_skip_pattern_that_matches_nothing_is_an_error_that_shows_names():
    with pytest.raises(ValueError, match=r"--skip '\*downsmple\*' matches no convolution.*stem, whole, depthwise"):
        small_pruner(skip=["tail", "*downsmple*"])


@pytest.mark.parametrize("argument", ["skip", "only", "layer_rates"])
def test_one_text_in_place_of_several_is_not_taken_letter_by_letter(argument):
    with pytest.raises(ValueError, match=f"^{argument} 'whole': expected a (list|dict)"):
        plan_layers(nn.Sequential(SmallNet()), **{argument: "whole"})


def test_a_skip_pattern_of_a_layer_that_is_no_convolution_is_an_error():
    with pytest.raises(ValueError, match="--skip 'fc' matches no convolution"):
        small_pruner(skip=["fc"])


@pytest.mark.parametrize("block_size", [0, 1, 3, 24, 128, -2])
def test_a_bad_block_size_is_an_error_that_lists_the_good_ones(block_size):
    with pytest.raises(ValueError, match=f"block size {block_size}: expected one of 2, 4, 8, 16, 32, 64"):
        small_pruner(block_size=block_size)


def test_a_bad_criterion_is_an_error_that_lists_the_good_ones():
    with pytest.raises(ValueError, match="criterion 'l3': expected one of l1, l2, bpar"):
        small_pruner(criterion="l3")


@pytest.mark.parametrize("tau", [0, -1, float("nan")])
def test_a_bad_tau_is_an_error(tau):
    with pytest.raises(ValueError, match=f"tau {tau}: expected a temperature above 0"):
        small_pruner(tau=tau)


@pytest.mark.parametrize(
    "option", [{"block_size": 3}, {"criterion": "l3"}, {"tau": 0}, {"skip": ["x"]}, {"skip": ["*"]}]
)
def test_an_error_leaves_the_model_without_masks(option):
    model = small_net()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"\w"):
        small_pruner(model, **option)
    assert list(model.state_dict()) == keys


# Updates


@pytest.mark.parametrize("criterion", ["l1", "l2", "bpar"])
@pytest.mark.parametrize("block_size", [2, 16, 64])
def test_every_row_keeps_the_same_count_after_every_step(block_size, criterion):
    pruner = small_pruner(block_size=block_size, criterion=criterion)
    for epoch in range(8):
        train_a_little(pruner, epoch)
        pruner.step(epoch)
        due = oracle.pruned_rate(0.6, epoch, 1, 5, "cubic")
        for name, mask in pruner.masks.items():
            channels = mask.shape[1]
            pruned = oracle.candidate_count(0.6, channels) - oracle.regrown_count(0.6, due, channels)
            assert set(mask.sum(1).tolist()) == {channels - pruned}, (name, epoch)


@pytest.mark.parametrize("score_latent", [False, True])
@pytest.mark.parametrize("criterion", ["l1", "l2", "bpar"])
def test_candidates_are_those_of_the_oracle(criterion, score_latent):
    pruner = small_pruner(criterion=criterion, score_latent=score_latent)
    changed = 0
    for epoch in range(8):
        train_a_little(pruner, epoch)
        before = copied_masks(pruner)
        pruner.step(epoch)
        for name, mask in pruner.masks.items():
            groups, weight = pruner.layers[name].groups, latent(pruner, name).detach().numpy()
            if not score_latent:
                weight = weight * oracle.expand_mask(before[name].numpy(), weight.shape, 4, groups)
            scores = oracle.scores(weight, 4, groups, criterion)
            candidates = oracle.candidates(scores, 0.6)
            gap = np.where(candidates, np.inf, scores).min(1) - np.where(candidates, scores, -np.inf).max(1)
            assert (gap > 4 * weight[0, 0].size * 4 * UNIT * np.abs(scores).max()).all(), "choose another seed"
            assert mask.numpy()[~candidates].all(), (name, epoch)
            if epoch >= 5:
                assert not mask.numpy()[candidates].any(), (name, epoch)
            changed += int((mask != before[name]).sum())
    assert changed > 0


def test_latent_and_masked_weights_lead_to_different_masks():
    pruners = [small_pruner(score_latent=score_latent, criterion="l1") for score_latent in (False, True)]
    for pruner in pruners:
        for epoch in range(6):
            train_a_little(pruner, epoch)
            pruner.step(epoch)
    assert not same_masks(*(pruner.masks for pruner in pruners))


def test_alpha_reaches_the_scores():
    pruner = small_pruner(alpha=0.0)
    update = pruner.step(0)
    weight = latent(pruner, "whole").detach().numpy()
    expected = oracle.scores(weight, 4, 1, "bpar", alpha=0.0)
    np.testing.assert_allclose(update.scores["whole"].numpy(), expected, rtol=4 * 36 * UNIT, atol=0)


def test_a_small_tau_regrows_the_best_candidates():
    pruner = small_pruner(schedule=PruneSchedule(0.6, 0, 10, "linear"), tau=1e-6, criterion="l1")
    update = pruner.step(5)
    for name, mask in pruner.masks.items():
        count = mask.shape[1] - int(mask[0].sum())
        assert not mask.numpy()[oracle.candidates(update.scores[name].numpy(), count / mask.shape[1])].any()


def test_nothing_is_pruned_before_the_schedule_starts():
    pruner = small_pruner()
    for epoch in (0, 0.5, 1):
        assert pruner.step(epoch).actual == 0
        assert all(mask.all() for mask in pruner.masks.values())


def test_the_target_is_met_from_the_end_of_the_schedule_on():
    pruner = small_pruner()
    found = []
    for epoch in (0, 4, 5, 6):
        pruner.step(epoch)
        found.append(pruner.at_target)
    assert found == [False, False, True, True]


@pytest.mark.parametrize("kept", [True, False])
def test_one_bit_more_or_less_in_one_row_misses_the_target(kept):
    pruner = small_pruner()
    pruner.step(5)
    row = pruner.masks["last"][3]
    row[int((row != kept).nonzero()[0])] = kept
    assert not pruner.at_target


def test_pruned_blocks_come_back_during_the_schedule():
    pruner = small_pruner(schedule=PruneSchedule(0.6, 0, 100))
    pruner.step(60)
    before = copied_masks(pruner)
    assert pruner.step(61).regrown > 0
    assert any((pruner.masks[name] & ~before[name]).any() for name in before)


def test_masks_are_written_in_place():
    pruner = small_pruner()
    before = dict(pruner.masks)
    pruner.step(5)
    assert all(pruner.masks[name] is before[name] for name in before)


def test_a_step_leaves_weights_gradients_and_the_global_generator_alone():
    pruner = small_pruner()
    before = {name: latent(pruner, name).detach().clone() for name in pruner.layers}
    state = torch.get_rng_state()
    pruner.step(3)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in before.items():
        assert torch.equal(latent(pruner, name), weight)
        assert latent(pruner, name).grad is None
        assert latent(pruner, name).requires_grad


def test_an_update_tells_what_changed():
    pruner = small_pruner()
    for epoch in (0, 2, 2.5, 3, 4, 5, 6):
        train_a_little(pruner, int(2 * epoch))
        before = copied_masks(pruner)
        update = pruner.step(epoch)
        flips = sum(int((mask != before[name]).sum()) for name, mask in pruner.masks.items())
        pruned = sum(int((~mask).sum()) for mask in pruner.masks.values())
        blocks = sum(mask.numel() for mask in pruner.masks.values())
        assert update.target == SCHEDULE.pruned_rate(epoch)
        assert update.actual == pytest.approx(pruned / blocks, rel=0, abs=1e-15)
        assert update.flip_rate == flips / blocks
        assert update.regrown == sum(int((mask & ~before[name]).sum()) for name, mask in pruner.masks.items())


def test_the_numbers_of_an_update_that_can_be_counted_by_hand():
    # One row of four blocks, then the opposite order: two leave, then these two come back for the other two.
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, bias=False))
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0), block_size=2, criterion="l1", score_latent=True)
    weight = latent(pruner, "1")
    with torch.no_grad():
        weight.copy_(torch.tensor([4.0, -3, 2, -1]).view(1, 4, 1, 1).expand(2, -1, -1, -1))
    first = pruner.step(0)
    assert pruner.masks["1"].tolist() == [[True, True, False, False]]
    assert (first.target, first.actual, first.flip_rate, first.regrown) == (0.5, 0.5, 0.5, 0)
    assert first.scores["1"].tolist() == [[8, 6, 4, 2]]
    with torch.no_grad():
        weight.copy_(weight.flip(1))
    second = pruner.step(1)
    assert pruner.masks["1"].tolist() == [[False, False, True, True]]
    assert (second.target, second.actual, second.flip_rate, second.regrown) == (0.5, 0.5, 1.0, 2)
    third = pruner.step(2)
    assert (third.flip_rate, third.regrown) == (0, 0)


def test_scores_are_those_before_the_update():
    pruner = small_pruner(criterion="l1")
    pruner.step(5)
    train_a_little(pruner, 1)
    masked = pruner.layers["whole"].weight.detach().numpy().copy()
    np.testing.assert_allclose(
        pruner.step(6).scores["whole"].numpy(), oracle.scores(masked, 4, 1, "l1"), rtol=2 * 36 * UNIT, atol=0
    )


def test_half_precision_weights_are_scored_in_float32():
    pruner = small_pruner(small_net().bfloat16(), criterion="l1")
    weight = latent(pruner, "whole").detach().double().numpy()
    np.testing.assert_allclose(
        pruner.step(0).scores["whole"].numpy(), oracle.scores(weight, 4, 1, "l1"), rtol=2 * 36 * UNIT, atol=0
    )


# Determinism


def run(pruner: SUBPPruner, epochs) -> list[dict[str, torch.Tensor]]:
    history = []
    for epoch in epochs:
        train_a_little(pruner, int(10 * epoch))
        pruner.step(epoch)
        history.append(copied_masks(pruner))
    return history


def test_two_pruners_agree_whatever_the_global_generator():
    histories = []
    for seed in (1, 2):
        pruner = small_pruner(small_net(0))
        torch.manual_seed(seed)
        histories.append(run(pruner, range(7)))
    assert all(same_masks(*pair) for pair in zip(*histories, strict=True))


def test_another_seed_draws_other_masks():
    first, second = (run(small_pruner(seed=seed), range(7)) for seed in (0, 1))
    assert not same_masks(first[3], second[3])


def test_layers_with_the_same_weights_draw_different_masks():
    model = nn.Sequential(*(nn.Conv2d(16, 16, 1) for _ in range(3)))
    model[2].load_state_dict(model[1].state_dict())
    pruner = small_pruner(model, PruneSchedule(0.5, 0, 2, "linear"))
    pruner.step(1)
    assert not torch.equal(pruner.masks["1"], pruner.masks["2"])


@pytest.mark.parametrize("first", [0, 2, 4, 6])
def test_a_model_restored_from_its_state_dict_continues_identically(first):
    model, other = small_net(), small_net(seed=9)
    pruner, restored = small_pruner(model), small_pruner(other)
    run(pruner, range(first))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    rest = np.arange(first, 8, 0.5).tolist()
    for expected, found in zip(run(pruner, rest), run(restored, rest), strict=True):
        assert same_masks(expected, found)


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"exclude_buffers": True}], ids=str)
def test_a_weight_average_copies_masks_and_averages_latent_weights(options):
    model = small_net()
    pruner = small_pruner(model)
    average = ModelEmaV3(model, decay=0.75, **options)
    before = {name: latent(pruner, name).detach().clone() for name in pruner.layers}
    run(pruner, [0, 3, 6])
    average.update(model)
    for name, start in before.items():
        module = average.module.get_submodule(name)
        mask = block_mask_of(module).mask
        assert mask.dtype == torch.bool
        assert torch.equal(mask, pruner.masks[name])
        assert mask is not pruner.masks[name]
        expected = 0.75 * start.double() + 0.25 * latent(pruner, name).detach().double()
        found = module.parametrizations.weight.original.double()
        assert ((found - expected).abs() <= 4 * UNIT * (start.abs() + latent(pruner, name).abs())).all()
        keep = oracle.expand_mask(mask.numpy(), tuple(start.shape), 4, module.groups)
        assert not module.weight.detach().numpy()[~keep].any()


# With what people train with


@pytest.mark.parametrize("order", ["compile-ddp", "ddp-compile"])
def test_compile_and_ddp_in_either_order_train_as_the_bare_model(order, tmp_path):
    torch.compiler.reset()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        grads = []
        for wrap in (False, True):
            model = small_net()
            pruner = small_pruner(model)
            wrapped = model
            if wrap:
                steps = [
                    lambda m: torch.compile(m, backend="aot_eager"),
                    lambda m: nn.parallel.DistributedDataParallel(m, broadcast_buffers=False),
                ]
                for step in steps if order == "compile-ddp" else steps[::-1]:
                    wrapped = step(wrapped)
            for epoch in (3, 5):
                pruner.step(epoch)
                model.zero_grad()
                images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
                wrapped(images).square().sum().backward()
                pruner.decay_gradients()
            grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("which", ["the model", "the wrapper"])
def test_a_model_that_ddp_has_already_is_refused_with_what_to_do(which, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = small_net()
        wrapper = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        with pytest.raises(ValueError, match="in DistributedDataParallel already.*build SUBPPruner.* first"):
            small_pruner(model if which == "the model" else wrapper)
        small_pruner()  # another network
        wrapper.itself = [wrapper]
        del wrapper
        small_pruner(model)  # which nobody wraps any more
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("network", ["test_efficientnet", "test_resnet"])
def test_synchronised_batch_norm_keeps_activations_and_masks(network):
    model = timm.create_model(network).eval()
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0))
    pruner.step(0)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        found = convert_sync_batchnorm(model)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["test_resnet", "test_nfnet", "test_efficientnet"])
def test_checkpointed_activations_give_the_same_gradients(network):
    torch.manual_seed(0)
    grads = []
    model = timm.create_model(network)
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0))
    pruner.step(0)
    state = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for checkpointing in (False, True):
        model.load_state_dict(state)
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model.train()(images).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_the_gradient_of_autograd_becomes_the_parameters_without_a_copy():
    model = small_net()
    pruner = small_pruner(model)
    seen = []
    # The gradient as it leaves the masked weight, before it is accumulated.
    weight = pruner.layers["whole"].weight
    weight.register_hook(lambda grad: seen.append(grad.data_ptr()))
    weight.backward(torch.randn_like(weight))
    assert latent(pruner, "whole").grad.data_ptr() == seen[0]


# Decay of masked weights


def backward(model: nn.Module) -> None:
    model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))).square().sum().backward()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_decay_gradients_equals_the_oracle(memory_format):
    model = small_net().to(memory_format=memory_format)
    pruner = small_pruner(model, sr_ste_decay=2e-2)
    pruner.step(5)
    backward(model)
    before = {name: latent(pruner, name).grad.clone() for name in pruner.layers}
    pruner.decay_gradients()
    for name, module in pruner.layers.items():
        weight, mask = latent(pruner, name).detach().numpy(), pruner.masks[name].numpy()
        keep = oracle.expand_mask(mask, weight.shape, 4, module.groups)
        expected = oracle.sr_ste(before[name].numpy(), weight, keep, 2e-2)
        found = latent(pruner, name).grad.numpy()
        assert (np.abs(found - expected) <= 4 * UNIT * (np.abs(before[name].numpy()) + 2e-2 * np.abs(weight))).all()
        np.testing.assert_array_equal(found[keep], before[name].numpy()[keep])
        assert (found != before[name].numpy()).any()


def test_the_default_decay_is_that_of_the_method():
    assert small_pruner().sr_ste_decay == 2e-4


def test_decay_gradients_leaves_dense_layers_alone():
    model = small_net()
    pruner = small_pruner(model)
    pruner.step(5)
    backward(model)
    dense = {name: p.grad.clone() for name, p in model.named_parameters() if "parametrizations" not in name}
    pruner.decay_gradients()
    assert len(dense) == 9  # weight and bias of three dense layers, and the biases of three pruned ones
    assert all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in dense.items())


def test_decay_gradients_ignores_layers_without_gradient():
    pruner = small_pruner()
    pruner.step(5)
    pruner.decay_gradients()
    assert all(latent(pruner, name).grad is None for name in pruner.layers)


def test_no_decay_changes_no_gradient():
    model = small_net()
    pruner = small_pruner(model, sr_ste_decay=0.0)
    pruner.step(5)
    backward(model)
    before = {name: latent(pruner, name).grad.clone() for name in pruner.layers}
    pruner.decay_gradients()
    assert all(torch.equal(latent(pruner, name).grad, grad) for name, grad in before.items())


# Report


MACS = {"stem": 100, "whole": 8 * 300, "depthwise": 50, "tail": 12 * 70, "grouped": 11 * 90, "last": 12 * 5, "fc": 200}


def test_the_report_has_a_row_per_counted_layer_in_their_order():
    pruner = small_pruner(skip=["last"])
    layers = pruner.report(MACS)
    assert [layer.name for layer in layers] == list(MACS)
    assert [layer.macs for layer in layers] == list(MACS.values())
    assert [layer.kind for layer in layers] == ["convolution"] * 6 + ["linear"]
    assert [layer.reason for layer in layers] == [
        "stem", None, "depthwise: one input channel per group", None, None, "skipped by 'last'", "linear layer",
    ]  # fmt: skip


def test_the_report_of_dense_layers_keeps_all_their_macs():
    pruner = small_pruner()
    pruner.step(5)
    for layer in pruner.report(MACS):
        if not layer.is_pruned:
            assert layer.kept_macs == layer.macs and layer.kept_share == 1 and layer.pruned_parameters == 0
            assert layer.as_row().keys() == {"name", "macs", "kept_macs", "reason"}


def test_the_report_of_a_pruned_layer_says_what_was_asked_and_achieved():
    pruner = small_pruner()
    pruner.step(5)
    layer = next(layer for layer in pruner.report(MACS) if layer.name == "grouped")
    row, kept = layer.as_row(), 11 - oracle.candidate_count(0.6, 11)
    assert (layer.block_size, layer.rate, layer.parameters) == (4, 0.6, 12 * 11 * 9)
    assert layer.kept_share == kept / 11 and layer.pruned_parameters == 12 * (11 - kept) * 9
    assert row.pop("kept_asked") == pytest.approx(0.4 * 11)
    assert row == {
        "name": "grouped", "shape": [12, 11, 3, 3], "groups": 2, "block_rows": 4, "blocks_per_row": 11,
        "kept": kept, "macs": 11 * 90, "kept_macs": kept * 90, "reason": None,
    }  # fmt: skip


def test_the_report_tells_the_masks_of_now_and_not_the_target():
    pruner = small_pruner()
    pruner.step(3)
    for layer in pruner.report(MACS):
        if layer.is_pruned:
            assert layer.kept == int(pruner.masks[layer.name][0].sum())
            assert layer.kept > layer.kept_asked


def test_the_report_refuses_rows_that_are_not_uniform():
    pruner = small_pruner()
    pruner.step(5)
    pruner.masks["tail"][0] = True
    with pytest.raises(RuntimeError, match="tail: rows keep between 5 and 12 blocks; not uniform"):
        pruner.report(MACS)


UNDERWAY = [None, None, None, "first", "underway", "target", None]


@pytest.mark.parametrize(
    ("schedule", "epochs", "milestones"),
    [
        (SCHEDULE, (0, 1, 2, 3, 4, 5, 6), UNDERWAY),
        (PruneSchedule(0.6, 1, 1), range(3), [None, "target", None]),
        (PruneSchedule(0.0, 1, 2), range(4), [None] * 4),
    ],
    ids=["gradual", "at once", "dense"],
)
def test_an_update_says_where_pruning_starts_and_is_complete(schedule, epochs, milestones):
    pruner = small_pruner(schedule=schedule)
    assert [pruner.step(epoch).milestone for epoch in epochs] == milestones


@pytest.mark.parametrize("epoch", [0, 3, 5])
def test_pruned_share_is_the_share_of_masked_blocks(epoch):
    pruner = small_pruner()
    pruner.step(epoch)
    bits = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert pruner.pruned_share() == pytest.approx(1 - bits.double().mean().item(), rel=0, abs=1e-15)
