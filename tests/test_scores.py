"""Scores of blocks, and the candidates they lead to, against the oracle.

Sizes: up to 20 x 12 channels for the oracle itself; for candidates, two block rows each of five layers of resnet18,
resnet34, resnet50 and mobilenetv1_100 (up to 2048 input channels) with timm's initial weights, a quarter masked. The
oracle's bpar is a Python loop, so wide layers use a vectorised float64 variant that is checked against it.
Tolerances: `worst_case_bound` for scores: first-order rounding errors of float32 sums of D and I terms. For candidates
that would be too pessimistic to compare anything; `likely_bound` takes square roots of the sizes instead (rounding
errors are independent and of either sign; Higham and Mary 2019), and the scores are checked to lie within it.
Memory is that of a fresh process on Linux. Out of scope: CUDA, time.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_dist import scores
from subp_dist.blocks import to_blocks
from subp_dist.plan import plan_layers
from subp_dist.scores import CRITERIA

UNIT = 2.0**-24  # unit roundoff of float32
NETWORKS = ("resnet18", "resnet34", "resnet50", "mobilenetv1_100")
RATES = {"60": 60 / 128, "59": 59 / 128, "66": 66 / 128, "98.5": 98.5 / 128, "69": 69 / 128}


def random_weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine_sums(blocks: np.ndarray) -> np.ndarray:
    """c [I] of one block row [I, D] in float64."""
    norm = np.sqrt((blocks * blocks).sum(1))
    directions = blocks / np.where(norm > 0, norm, 1)[:, None]
    return np.abs(directions @ directions.T).sum(1)


def score_row(blocks: np.ndarray, criterion: str, alpha: float = 1.0) -> np.ndarray:
    """Scores [I] of one block row [I, D] in float64; the oracle's formulas without its loops."""
    magnitude = np.abs(blocks).sum(1)
    if criterion == "l1":
        return magnitude
    if criterion == "l2":
        return np.sqrt((blocks * blocks).sum(1))
    c = cosine_sums(blocks)
    return magnitude / magnitude.sum() - alpha * np.where(c == 0, 1, c / c.sum())


def _bound(blocks: np.ndarray, criterion: str, alpha: float, sum_d: float, sums: np.ndarray) -> np.ndarray:
    """Bound [I] on the error of a row's scores.

    Args:
        sum_d: relative error of a sum of D products (or magnitudes) in float32.
        sums: absolute error of each c_j, [I].
    """
    if criterion != "bpar":
        return sum_d * score_row(blocks, criterion)
    magnitude, c = np.abs(blocks).sum(1), cosine_sums(blocks)
    if not c.any():
        return np.zeros(len(blocks))
    sums = np.where(c > 0, sums, 0)  # zero blocks are found exactly
    redundancy = sums / c.sum() + c / c.sum() ** 2 * sums.sum()
    return 2 * sum_d * magnitude / magnitude.sum() + abs(alpha) * redundancy


def worst_case_bound(blocks: np.ndarray, criterion: str, alpha: float = 1.0) -> np.ndarray:
    """Twice the first-order bound: sums of D, directions rounded twice, and the sum of I cosines."""
    channels, size = blocks.shape
    sums = 2 * UNIT * (channels * (2 * size + 4) + channels * cosine_sums(blocks))
    return _bound(blocks, criterion, alpha, 2 * UNIT * (size + 1), sums)


def likely_bound(blocks: np.ndarray, criterion: str) -> np.ndarray:
    """The same with square roots: sqrt(D) for a sum of D, sqrt(I) for the errors of I cosines together."""
    channels, size = blocks.shape
    c = cosine_sums(blocks)
    sums = UNIT * (np.sqrt(channels * size) + 2 * np.sqrt(size) * c + np.sqrt(channels) * c)
    return _bound(blocks, criterion, 1.0, 2 * UNIT * np.sqrt(size), sums)


@st.composite
def layers(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """(weight, block size, groups); about a quarter of the blocks are zero, and often whole rows."""
    groups = draw(st.integers(1, 2))
    block_size = draw(st.sampled_from([2, 4, 8, 16]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), ()])) if groups == 1 else (3, 3)
    shape = (groups * draw(st.integers(1, 20)), draw(st.integers(1, 12)), *kernel)
    weight = random_weight(shape, draw(st.integers(0, 1000)))
    rows = oracle.block_rows(shape[0], groups, block_size)
    mask = torch.rand(len(rows), shape[1], generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.75
    if draw(st.booleans()):
        mask[draw(st.integers(0, len(rows) - 1))] = False
    weight[torch.from_numpy(~oracle.expand_mask(mask.numpy(), shape, block_size, groups))] = 0
    return weight, block_size, groups


def assert_scores_equal_the_oracle(layer, criterion, alpha=1.0, dtype=torch.float32, unit=UNIT):
    weight, block_size, groups = layer
    weight = weight.to(dtype)
    found = CRITERIA[criterion](to_blocks(weight, block_size, groups), alpha).numpy()
    expected = oracle.scores(weight.numpy(), block_size, groups, criterion, alpha)
    rows = oracle.blocks(weight.numpy(), block_size, groups)
    bound = np.stack([worst_case_bound(row, criterion, alpha) for row in rows]) * unit / UNIT
    bound += 8 * 2.0**-53 * np.abs(expected)  # the oracle's own
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= bound).all(), np.abs(found - expected).max()


@settings(max_examples=40, deadline=None)
@given(layers(), st.sampled_from(["l1", "l2"]))
def test_magnitudes_equal_the_oracle(layer, criterion):
    assert_scores_equal_the_oracle(layer, criterion)


@settings(max_examples=60, deadline=None)
@given(layers(), st.sampled_from([1.0, 0.0, 0.5, 2.0]))
def test_bpar_equals_the_oracle(layer, alpha):
    assert_scores_equal_the_oracle(layer, "bpar", alpha)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_float64(criterion):
    assert CRITERIA[criterion](random_weight((2, 3, 8)), 1.0).dtype == torch.float64


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("out_channels", [17, 5, 1])
def test_a_narrow_last_row_scores_as_if_it_were_not_padded(out_channels, criterion):
    assert_scores_equal_the_oracle((random_weight((out_channels, 9, 3, 3)), 16, 1), criterion)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_of_small_and_large_weights_equal_the_oracle(criterion, scale):
    assert_scores_equal_the_oracle((random_weight((8, 9, 3, 3)) * scale, 4, 1), criterion)


@pytest.mark.parametrize(("criterion", "score"), [("l1", 0), ("l2", 0), ("bpar", -0.5)])
def test_a_zero_block_scores_lowest_and_exactly(criterion, score):
    blocks = random_weight((3, 6, 8))
    blocks[:, 2] = 0
    found = CRITERIA[criterion](blocks, 0.5)
    assert found[:, 2].tolist() == [score] * 3
    assert found.argmin(1).tolist() == [2] * 3


def test_the_only_block_left_in_a_row_scores_above_the_zero_ones():
    blocks = torch.zeros(1, 4, 8)
    blocks[0, 1] = 1e-3
    assert CRITERIA["bpar"](blocks, 1.0).tolist() == [[-1, 0, -1, -1]]


@pytest.mark.parametrize(("criterion", "score"), [("l1", 0), ("l2", 0), ("bpar", -1)])
def test_a_row_of_zeros_scores_without_nan(criterion, score):
    assert CRITERIA[criterion](torch.zeros(2, 5, 8), 1.0).tolist() == [[score] * 5] * 2


def test_bpar_is_finite_for_subnormal_weights():
    assert CRITERIA["bpar"](random_weight((2, 5, 8)) * 1e-40, 1.0).isfinite().all()


@pytest.mark.parametrize("elements", [1, 5, 12, 13, 40, 144, 145, 10**6])
def test_tiles_of_any_size_equal_the_oracle(monkeypatch, elements):
    # 3 rows of 12 blocks: tiles of one channel, of several, of a whole row (144 cosines), of several rows.
    monkeypatch.setitem(scores._TILE_ELEMENTS, "cpu", elements)
    weight = random_weight((10, 12, 3, 3))
    weight[:4, 3] = 0
    assert_scores_equal_the_oracle((weight, 4, 1), "bpar", dtype=torch.float64, unit=2.0**-53)


def test_scoring_leaves_the_weights_alone():
    blocks = random_weight((3, 6, 8))
    before = blocks.clone()
    for criterion in CRITERIA.values():
        criterion(blocks, 1.0)
    assert torch.equal(blocks, before)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_vectorised_variant_equals_the_oracle(criterion):
    weight = random_weight((8, 40, 3, 3)).numpy()
    weight[:, 7] = 0
    found = np.stack([score_row(row, criterion) for row in oracle.blocks(weight, 4, 1)])
    np.testing.assert_allclose(found, oracle.scores(weight, 4, 1, criterion), rtol=0, atol=1e-12 * np.abs(found).max())


@functools.cache
def network_rows(network: str) -> list[tuple[str, torch.Tensor]]:
    """(name, blocks [2, I, D]) of five layers of different shape, from the narrowest to the widest; N = 16."""
    torch.manual_seed(0)
    weights = {p.name: p.module.weight.detach() for p in plan_layers(timm.create_model(network)) if p.reason is None}
    by_shape = {tuple(weight.shape[1:]): name for name, weight in weights.items()}
    names = [by_shape[shape] for shape in sorted(by_shape)]
    names = [names[i] for i in np.linspace(0, len(names) - 1, 5).round().astype(int)]
    chosen = []
    for name in names:
        blocks = to_blocks(weights[name][:32], 16)
        blocks[torch.rand(blocks.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.25] = 0
        chosen.append((name, blocks))
    return chosen


@functools.cache
def compared_rows(network: str, criterion: str) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, product's scores, float64 scores, bound), each [I], of every row of `network_rows`."""
    rows = []
    for name, blocks in network_rows(network):
        for found, row in zip(CRITERIA[criterion](blocks, 1.0).numpy(), blocks.double().numpy(), strict=True):
            rows.append((name, found, score_row(row, criterion), likely_bound(row, criterion)))
    return rows


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("network", NETWORKS)
def test_scores_of_real_layers_lie_within_the_likely_bound(network, criterion):
    for name, found, expected, bound in compared_rows(network, criterion):
        assert (np.abs(found - expected) <= bound).all(), name


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("network", NETWORKS)
def test_candidates_of_real_layers_equal_the_oracle(network, criterion):
    compared = total = 0
    for name, found, expected, bound in compared_rows(network, criterion):
        order = np.argsort(expected, kind="stable")
        for rate in RATES.values():
            count = oracle.candidate_count(rate, len(expected))
            total += 1
            # Nothing that is a candidate may reach above anything that is not.
            if (expected + bound)[order[:count]].max() >= (expected - bound)[order[count:]].min():
                continue
            compared += 1
            candidates = oracle.candidates(found[None], rate)
            np.testing.assert_array_equal(candidates, oracle.candidates(expected[None], rate), err_msg=name)
    assert total == 50
    assert compared >= 46


# VmHWM is the peak of this program; getrusage also counts the process that it was forked from.
MEMORY_SCRIPT = """
import json, timm, torch
from subp_dist.pruner import SUBPPruner
from subp_dist.schedule import PruneSchedule

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

torch.set_num_threads(1)
pruner = SUBPPruner(timm.create_model("resnet50"), PruneSchedule(0.5, 0, 0))
torch.bmm(torch.ones(2, 64, 64), torch.ones(2, 64, 64))  # what the BLAS sets up once
before = resident("VmRSS")
pruner.step(0)
# The peak is that of the whole life of the program: what came before the update can only make it larger.
print(json.dumps({"extra": resident("VmHWM") - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_update_of_resnet50_takes_less_than_200_mb():
    # The cosine matrices of its widest layer alone ([512, 2048, 1, 1]: 32 rows) would be 537 MB at once.
    # Large tensors in mappings of their own, so that freed ones are not counted: glibc's heap keeps some, up to 50 MB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["extra"] < 200e6
