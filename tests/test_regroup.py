"""subp_dist.regroup, and masks with an order: permutations in groups, shares never below consecutive rows, exact masks.

Oracles: shares and masks by loops over channels; the best of all orders of a small weight by trying every one.
"""

import itertools
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from subp_dist.blocks import add_pruned_part, apply_mask, to_blocks
from subp_dist.errors import UsageError
from subp_dist.export.subp import build_graph
from subp_dist.options import parse_args
from subp_dist.pruner import SUBPPruner
from subp_dist.regroup import kept_share, regroup
from subp_dist.schedule import PruneSchedule
from subp_ext.format import load, save

SHAPES = [(32, 12, 3, 3, 16, 1), (40, 8, 1, 1, 16, 1), (24, 6, 3, 3, 4, 3), (30, 5, 1, 1, 8, 2), (8, 4, 1, 1, 16, 1)]


def share_by_loops(weight, order, kept, block_size, groups):
    per_group, total = len(weight) // groups, 0.0
    for group in range(groups):
        for first in range(0, per_group, block_size):
            last = min(first + block_size, per_group)
            channels = [order[group * per_group + at] for at in range(first, last)]
            sums = [sum((weight[o, i] ** 2).sum() for o in channels) for i in range(weight.shape[1])]
            total += sum(sorted(sums)[-kept:])
    return total / (weight**2).sum()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_order_permutes_within_groups_and_never_keeps_less(shape):
    *dims, block_size, groups = shape
    weight = np.random.default_rng(1).normal(size=dims) * np.random.default_rng(2).gamma(0.3, size=(*dims[:2], 1, 1))
    for kept in range(1, dims[1] + 1):
        found = regroup(weight, kept, block_size, groups, 5)
        per_group = dims[0] // groups
        assert np.array_equal(np.sort(found.order), np.arange(dims[0]))
        assert np.array_equal(found.order // per_group, np.arange(dims[0]) // per_group)
        assert found.after >= found.before
        for order, share in ((np.arange(dims[0]), found.before), (found.order, found.after)):
            assert share == pytest.approx(share_by_loops(weight, order, kept, block_size, groups), rel=1e-5)
        assert np.array_equal(found.order, regroup(weight, kept, block_size, groups, 5).order)


def test_interleaved_channels_of_two_kinds_are_told_apart():
    weight = np.full((32, 8, 1, 1), 0.01)
    weight[::2, :4], weight[1::2, 4:] = 1, 1
    found = regroup(weight, 4, 16, 1, 0)
    assert found.before == pytest.approx(0.5, abs=0.01)
    assert found.after == pytest.approx(1, abs=0.01)
    assert {frozenset(found.order[:16]), frozenset(found.order[16:])} == {
        frozenset(range(0, 32, 2)),
        frozenset(range(1, 32, 2)),
    }


def test_small_weights_come_close_to_the_best_of_all_orders():
    random = np.random.default_rng(3)
    gaps = []
    for _ in range(10):
        weight = random.gamma(0.3, size=(8, 6, 1, 1))
        importance = (weight**2).reshape(8, 6)
        best = max(
            kept_share(importance, np.array([0, *first, *(c for c in range(1, 8) if c not in first)]), 2, 4, 1)
            for first in itertools.combinations(range(1, 8), 3)
        )
        found = regroup(weight, 2, 4, 1, 0)
        assert found.after <= best + 1e-6
        gaps.append(best - found.before and (best - found.after) / (best - found.before))
    assert np.mean(gaps) < 0.3


def test_a_zero_weight_stays_consecutive():
    found = regroup(np.zeros((32, 4, 1, 1), np.float32), 2, 16, 1, 0)
    assert np.array_equal(found.order, np.arange(32))
    assert (found.before, found.after) == (1, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_follow_the_order(shape):
    *dims, block_size, groups = shape
    per_group = dims[0] // groups
    order = torch.cat([torch.randperm(per_group) + group * per_group for group in range(groups)])
    weight = torch.randn(dims)
    blocks = to_blocks(weight, block_size, groups, order)
    mask = torch.rand(blocks.shape[:2]) < 0.5
    rows = -(-per_group // block_size)
    expected, sums = torch.zeros_like(weight), torch.zeros(blocks.shape[:2])
    for position, channel in enumerate(order.tolist()):
        row = position // per_group * rows + position % per_group // block_size
        sums[row] += weight[channel].square().flatten(1).sum(1)
        for i in range(dims[1]):
            if mask[row, i]:
                expected[channel, i] = weight[channel, i]
    assert torch.equal(apply_mask(weight, mask, block_size, groups, order), expected)
    torch.testing.assert_close(blocks.square().sum(-1), sums)
    target = torch.zeros_like(weight)
    add_pruned_part(target, weight, mask, block_size, groups, 2.0, order)
    torch.testing.assert_close(target, 2 * (weight - expected))


def small_model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 32, 3, bias=False), nn.Conv2d(32, 32, 1, groups=32))
    return nn.Sequential(*layers, nn.Conv2d(32, 40, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10))


def test_the_pruner_keeps_what_the_order_promised_and_its_state_restores_it():
    model = small_model()
    schedule = PruneSchedule(0.5, 0, 0)
    pruner = SUBPPruner(model, schedule, criterion="l2", regroup=True)
    pruner.regroup_rows()
    pruner.step(0)
    assert set(pruner.kept_squares) == {"1", "3"}
    for name, (before, after) in pruner.kept_squares.items():
        module = pruner.layers[name]
        kept, latent = module.weight.detach(), module.parametrizations.weight.original.detach()
        assert float(kept.square().sum() / latent.square().sum()) == pytest.approx(after, rel=1e-5)
        assert after > before
    again = small_model()
    restored = SUBPPruner(again, schedule, criterion="l2", regroup=True)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), model(images))
    assert restored.at_target


def regroup_as_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = small_model()
    with torch.no_grad():
        model[1].weight.add_(rank * torch.randn(model[1].weight.shape))  # alone it would choose another order
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0), criterion="l2", regroup=True)
    pruner.regroup_rows()
    orders = {key: value for key, value in model.state_dict().items() if key.endswith(".order")}
    torch.save((orders, pruner.kept_squares), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_take_the_order_of_the_first(tmp_path):
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=regroup_as_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    (first, shares), (second, told) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(first) == 2 and shares == told
    for name, order in first.items():
        assert not torch.equal(order, torch.arange(len(order)))
        assert torch.equal(order, second[name]), name


def test_without_regroup_the_state_has_no_order():
    model = small_model()
    SUBPPruner(model, PruneSchedule(0.5, 0, 0))
    assert not any(key.endswith("order") for key in model.state_dict())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "without trained weights"),
        (["--initial-checkpoint", "x", "--pattern", "layer", "--no-export"], "--pattern layer"),
    ],
)
def test_regroup_where_it_cannot_work_is_one_clear_error(flags, message):
    with pytest.raises(UsageError, match=message):
        parse_args(["test_resnet", "--data-dir", "builtin", "--regroup", *flags])


def test_regroup_with_nothing_to_prune_is_refused():
    with pytest.raises(ValueError, match="no convolution loses blocks at the target rate 0"):
        SUBPPruner(small_model(), PruneSchedule(0.0, 0, 0), regroup=True)


def test_an_exported_file_holds_the_order_and_the_weights_of_torch(tmp_path):
    model = small_model().eval()
    pruner = SUBPPruner(model, PruneSchedule(0.5, 0, 0), criterion="l2", regroup=True)
    pruner.regroup_rows()
    pruner.step(0)
    save(tmp_path / "model.subp", build_graph(model, (3, 8, 8)))
    graph = load(tmp_path / "model.subp")
    for name, module in pruner.layers.items():
        packed = graph.constants[f"{name}.weight"]
        order = module.parametrizations.weight[0].order
        assert np.array_equal(packed.order, order.numpy())
        assert np.array_equal(packed.to_dense(), module.weight.detach().numpy())
