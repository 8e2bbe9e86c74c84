"""One mask update, against the oracle.

Sizes: up to 4 rows of 128 blocks; runs of 250 epochs under every schedule shape; draws from at most 8 candidates in
40000 identical rows. Tolerances: counts and sets are exact; sampling frequencies lie within 5 standard deviations of
the exact ones (generators are seeded, so a passing test stays passing).
Out of scope: the scores (test_scores.py), several processes (test_agreement.py).
"""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_dist.masks import (
    draw_generator,
    draw_without_replacement,
    lowest_blocks,
    num_candidates,
    num_regrown,
    uniform_mask,
)
from subp_dist.schedule import SHAPES, PruneSchedule

RATES = (60 / 128, 59 / 128, 66 / 128, 98.5 / 128, 69 / 128)
RATES_OR_ANY = st.one_of(st.sampled_from(RATES), st.floats(0, 0.999))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_scores(rows: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Signed, as those of bpar are."""
    return torch.randn(rows, channels, generator=generator(seed), dtype=torch.float64)


@settings(max_examples=200, deadline=None)
@given(RATES_OR_ANY, st.integers(1, 2048))
def test_num_candidates_equals_the_oracle(rate, channels):
    assert num_candidates(rate, channels) == oracle.candidate_count(rate, channels)


@settings(max_examples=200, deadline=None)
@given(RATES_OR_ANY, st.floats(0, 1), st.integers(1, 2048))
def test_num_regrown_equals_the_oracle(rate, share, channels):
    assert num_regrown(rate, rate * share, channels) == oracle.regrown_count(rate, rate * share, channels)


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("rate", [66 / 128, 98.5 / 128, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_keeps_the_oracles_count_in_every_epoch_of_a_run(shape, rate, channels):
    schedule = PruneSchedule(rate, 10, 180, shape)
    scores = random_scores(4, channels)
    for epoch in range(250):
        due = oracle.pruned_rate(rate, epoch, 10, 180, shape)
        # Where the count is about to change, the last digit of the schedule's formula may decide; none of the
        # published rates or 0.3 comes that close.
        share = (rate - due) * channels
        assert share in (0, rate * channels) or abs(share - round(share)) > 1e-9, "choose another rate"
        expected = channels - oracle.candidate_count(rate, channels) + oracle.regrown_count(rate, due, channels)
        mask = uniform_mask(scores, rate, schedule.pruned_rate(epoch), 1.0, generator(epoch))
        assert mask.dtype == torch.bool
        assert mask.sum(1).tolist() == [expected] * 4


@settings(max_examples=100, deadline=None)
@given(RATES_OR_ANY, st.floats(0, 1), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32))
def test_rows_are_uniform_and_keep_at_least_one_block(rate, share, rows, channels, seed):
    mask = uniform_mask(random_scores(rows, channels, seed), rate, rate * share, 1.0, generator(seed))
    kept = mask.sum(1)
    assert kept.min() == kept.max()
    assert kept.min() >= 1


@settings(max_examples=100, deadline=None)
@given(RATES_OR_ANY, st.floats(0, 1), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32))
def test_blocks_that_are_no_candidates_are_always_kept(rate, share, rows, channels, seed):
    scores = random_scores(rows, channels, seed)
    mask = uniform_mask(scores, rate, rate * share, 1.0, generator(seed))
    assert mask.numpy()[~oracle.candidates(scores.numpy(), rate)].all()


@settings(max_examples=100, deadline=None)
@given(RATES_OR_ANY, st.integers(1, 70), st.integers(0, 2**32))
def test_the_full_rate_prunes_exactly_the_candidates(rate, channels, seed):
    scores = random_scores(3, channels, seed)
    mask = uniform_mask(scores, rate, rate, 1.0, generator())
    np.testing.assert_array_equal(mask.numpy(), ~oracle.candidates(scores.numpy(), rate))


@settings(max_examples=100, deadline=None)
@given(RATES_OR_ANY, st.integers(1, 2048))
def test_before_the_schedule_everything_is_kept(rate, channels):
    assert uniform_mask(random_scores(2, channels), rate, 0.0, 1.0, generator()).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 64])
def test_one_block_stays_at_a_rate_next_to_one(channels):
    rate = math.nextafter(1, 0)
    mask = uniform_mask(random_scores(3, channels), rate, rate, 1.0, generator())
    assert mask.sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("channels", [1, 2, 64])
def test_one_block_stays_even_at_a_rate_of_one(channels):
    # Schedules stay below one; a caller of these functions need not.
    assert num_candidates(1.0, channels) == channels - 1
    assert uniform_mask(random_scores(3, channels), 1.0, 1.0, 1.0, generator()).sum(1).tolist() == [1, 1, 1]


def test_equal_scores_prune_the_lower_channels_first():
    scores = torch.tensor([[5.0, 1, 1, 1, 0], [2, 2, 2, 2, 2]])
    assert lowest_blocks(scores, 3).tolist() == [[4, 1, 2], [0, 1, 2]]
    assert uniform_mask(scores, 0.6, 0.6, 1.0, generator()).int().tolist() == [[1, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=100), st.floats(0, 0.999))
def test_ties_break_as_in_the_oracle(row, rate):
    scores = torch.tensor([row], dtype=torch.float64)
    mask = uniform_mask(scores, rate, rate, 1.0, generator())
    np.testing.assert_array_equal(mask.numpy(), ~oracle.candidates(scores.numpy(), rate))


# bpar scores: two good blocks, four of about 1/I - 1/I, and masked ones at -1. The second row is all masked.
DRAW_ROWS = ((0.3, 0.21, 0.01, -0.02, 0.0, -0.05, -1.0, -1.0), (-1.0,) * 6, (0.0,) * 5, (0.5, 0.4, 0.3, 0.2, 0.1))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("row", DRAW_ROWS, ids=["bpar", "masked", "zeros", "l1"])
@pytest.mark.parametrize("tau", [1, 0.1, 0.01])
def test_draws_have_the_exact_frequencies(tau, row, count):
    rows = 40_000
    drawn = draw_without_replacement(torch.tensor(row).double().expand(rows, -1), count, tau, generator(1))
    assert drawn.shape == (rows, count)
    found = np.bincount(drawn.flatten().numpy(), minlength=len(row)) / rows
    expected = oracle.inclusion_frequencies(oracle.regrow_probabilities(np.array(row), tau), count)
    # One more draw than five sigma, for candidates that are practically never or always drawn.
    bound = 5 * np.sqrt(expected * (1 - expected) / rows) + 1 / rows
    assert (np.abs(found - expected) <= bound).all(), (found, expected)


@pytest.mark.parametrize("tau", [1, 0.1])
def test_regrown_blocks_have_the_exact_frequencies(tau):
    # 7 of 8 are candidates, 3 come back; the scores that are normalised are those of the candidates alone.
    row = torch.tensor([0.2, 9.0, -0.1, 0.4, 0.0, 0.3, -0.5, 0.1], dtype=torch.float64)
    rows = 40_000
    mask = uniform_mask(row.expand(rows, -1), 7 / 8, 4 / 8, tau, generator(2)).numpy()
    assert mask[:, 1].all()
    candidates = np.delete(row.numpy(), 1)
    expected = oracle.inclusion_frequencies(oracle.regrow_probabilities(candidates, tau), 3)
    bound = 5 * np.sqrt(expected * (1 - expected) / rows) + 1 / rows
    assert (np.abs(np.delete(mask, 1, axis=1).mean(0) - expected) <= bound).all()


def test_rows_are_drawn_independently():
    mask = uniform_mask(torch.zeros(64, 32, dtype=torch.float64), 0.5, 0.25, 1.0, generator())
    assert len({tuple(row) for row in mask.int().tolist()}) > 60


def test_draws_do_not_repeat_a_candidate():
    drawn = draw_without_replacement(random_scores(100, 20), 15, 0.01, generator())
    assert all(len(set(row)) == 15 for row in drawn.tolist())


@pytest.mark.parametrize("tau", [1e-6, 1e-12])
def test_a_tiny_tau_takes_the_best_scores(tau):
    scores = random_scores(50, 40)
    drawn = draw_without_replacement(scores, 11, tau, generator())
    assert torch.equal(drawn.sort(1).values, scores.topk(11, dim=1).indices.sort(1).values)


def test_the_same_generator_gives_the_same_mask():
    scores = random_scores(8, 64)
    first, second = (uniform_mask(scores, 0.5, 0.25, 1.0, draw_generator(1, 2.5, "layer1.conv")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "other", [(2, 2.5, "layer1.conv"), (1, 3, "layer1.conv"), (1, 2.5, "layer2.conv"), (-1, 2.5, "layer1.conv")]
)
def test_another_seed_epoch_or_layer_gives_another_mask(other):
    scores = random_scores(8, 64)
    first = uniform_mask(scores, 0.5, 0.25, 1.0, draw_generator(1, 2.5, "layer1.conv"))
    assert not torch.equal(first, uniform_mask(scores, 0.5, 0.25, 1.0, draw_generator(*other)))


def test_a_whole_epoch_is_the_same_time_as_int_and_float():
    assert draw_generator(1, 2, "conv").initial_seed() == draw_generator(1, 2.0, "conv").initial_seed()


def test_float32_and_float64_scores_give_the_same_mask():
    scores = random_scores(8, 64).float()
    first, second = (uniform_mask(s, 0.5, 0.25, 0.1, generator()) for s in (scores, scores.double()))
    assert torch.equal(first, second)


def test_an_update_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    uniform_mask(random_scores(8, 64), 0.5, 0.25, 1.0, draw_generator(0, 0, "conv"))
    assert torch.equal(torch.get_rng_state(), before)
