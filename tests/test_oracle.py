"""The oracle against examples worked by hand: at most 10 channels, exact or 1e-12. Out of scope: the package."""

import math

import numpy as np
import oracle
import pytest


def test_block_rows_stay_inside_their_group():
    assert oracle.block_rows(5, 1, 2) == [(0, 2), (2, 4), (4, 5)]
    # Two groups of 3: rows of 2 and 1 in each, none across channel 3.
    assert oracle.block_rows(6, 2, 2) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert oracle.block_rows(2, 1, 16) == [(0, 2)]
    with pytest.raises(ValueError, match="do not divide"):
        oracle.block_rows(5, 2, 2)


def test_blocks_take_one_input_channel_of_n_outputs():
    # W[o, i, 0, k] = 100 o + 10 i + k, [3, 2, 1, 2].
    weight = np.array([[[[100 * o + 10 * i + k for k in range(2)]] for i in range(2)] for o in range(3)])
    full, narrow = oracle.blocks(weight, 2, 1)
    assert full.tolist() == [[0, 1, 100, 101], [10, 11, 110, 111]]
    assert narrow.tolist() == [[200, 201], [210, 211]]


def test_l1_and_l2_on_signed_weights():
    weight = np.array([[3.0, 0.0], [-4.0, 2.0], [-1.0, 5.0]]).reshape(3, 2, 1, 1)
    assert oracle.scores(weight, 2, 1, "l1").tolist() == [[7, 2], [1, 5]]
    assert oracle.scores(weight, 2, 1, "l2").tolist() == [[5, 2], [1, 5]]


def test_bpar_with_a_masked_block_and_an_empty_row():
    # Row 0, blocks (1, 0), (-2, 0), (0, 3), (0, 0): l = 1/6, 2/6, 3/6, 0.
    # |cos|: blocks 0 and 1 are parallel, c = 2, 2, 1, 0, sum 5; a = .4, .4, .2, and 0 becomes 1.
    # Row 1 is all zero: l = 0, a = 1.
    weight = np.array([[1, -2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]], float).reshape(4, 4, 1, 1)
    expected = [[1 / 6 - 0.4, 2 / 6 - 0.4, 0.5 - 0.2, -1], [-1, -1, -1, -1]]
    np.testing.assert_allclose(oracle.scores(weight, 2, 1, "bpar"), expected, rtol=0, atol=1e-12)
    expected = [[1 / 6 - 0.2, 2 / 6 - 0.2, 0.5 - 0.1, -0.5], [-0.5] * 4]
    np.testing.assert_allclose(oracle.scores(weight, 2, 1, "bpar", alpha=0.5), expected, rtol=0, atol=1e-12)


def test_bpar_angle_between_oblique_blocks():
    # (1, 0) and (-1, 1): |cos| = 1/sqrt(2), so c is equal, a = 1/2 each; l = 1/3, 2/3. A third block, (1, -1), is
    # parallel to the second: c = 1 + 2h, 2 + h, 2 + h with h = 1/sqrt(2), sum 5 + 4h; l = 1/5, 2/5, 2/5.
    h = math.sqrt(0.5)
    two = np.array([[1.0, -1.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)
    three = np.array([[1.0, -1.0, 1.0], [0.0, 1.0, -1.0]]).reshape(2, 3, 1, 1)
    np.testing.assert_allclose(oracle.scores(two, 2, 1, "bpar"), [[1 / 3 - 1 / 2, 2 / 3 - 1 / 2]], rtol=0, atol=1e-12)
    expected = [[0.2 - (1 + 2 * h) / (5 + 4 * h), 0.4 - (2 + h) / (5 + 4 * h), 0.4 - (2 + h) / (5 + 4 * h)]]
    np.testing.assert_allclose(oracle.scores(three, 2, 1, "bpar"), expected, rtol=0, atol=1e-12)


def test_candidates_round_down_and_break_ties_by_index():
    scores = np.array([[2.0, 1.0, 1.0, 1.0, 0.5], [-1.0, -1.0, -1.0, -1.0, -1.0]])
    # floor(.7 * 5) = 3.
    assert oracle.candidates(scores, 0.7).astype(int).tolist() == [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]]
    assert not oracle.candidates(scores, 0.19).any()
    # Rate 1 leaves one block: the best, or among equals the last.
    assert (~oracle.candidates(scores, 1.0)).astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_regrown_count():
    assert oracle.regrown_count(0.75, 0.0, 8) == 6  # all 6 candidates: nothing pruned yet
    assert oracle.regrown_count(0.75, 0.3, 8) == 3  # floor(3.6)
    assert oracle.regrown_count(0.75, 0.75, 8) == 0
    assert oracle.regrown_count(1.0, 0.0, 8) == 7  # of 7 candidates


HALF_WAY = {
    "cubic": 1 / 8,
    "linear": 1 / 2,
    "cos": 1 - math.sqrt(0.5),
    "zhu_gupta": 7 / 8,
    "exp": (1 - math.exp(-0.1)) / (1 - math.exp(-0.15)),  # i = 2, span = 4
}


@pytest.mark.parametrize("schedule", HALF_WAY)
def test_schedule(schedule):
    def at(epoch, start=10, end=14):
        return oracle.pruned_rate(0.6, epoch, start, end, schedule)

    assert at(0) == at(9) == at(10) == 0
    assert at(12) == pytest.approx(0.6 * HALF_WAY[schedule], abs=1e-12)
    assert at(14) == at(99) == 0.6
    assert [at(e, 10, 11) for e in (9, 10, 11, 12)] == [0, 0, 0.6, 0.6]
    assert [at(e, 10, 10) for e in (9, 10, 11)] == [0, 0.6, 0.6]
    with pytest.raises(ValueError, match="before it starts"):
        at(0, 11, 10)


def test_exp_is_complete_one_epoch_early():
    assert oracle.pruned_rate(0.6, 13, 10, 14, "exp") == 0.6
    assert oracle.pruned_rate(0.6, 13.5, 10, 14, "exp") == 0.6


def test_regrow_probabilities():
    # (-3, 4) / 5 = (-.6, .8); a gap of 1.4 / tau.
    for tau in (1.0, 0.1):
        low = 1 / (1 + math.exp(1.4 / tau))
        np.testing.assert_allclose(oracle.regrow_probabilities([-3, 4], tau), [low, 1 - low], rtol=1e-12)
    assert oracle.regrow_probabilities([0, 0, 0, 0], 1.0).tolist() == [0.25] * 4
    assert oracle.regrow_probabilities([], 1.0).size == 0


def test_inclusion_frequencies():
    # p = 1/2, 1/4, 1/4, two draws. Sets: {0,1} = 1/2*1/2 + 1/4*(1/2)/(3/4) = 5/12, {0,2} the same, {1,2} = 2/12.
    np.testing.assert_allclose(oracle.inclusion_frequencies([0.5, 0.25, 0.25], 2), [10 / 12, 7 / 12, 7 / 12])
    np.testing.assert_allclose(oracle.inclusion_frequencies([0.5, 0.25, 0.25], 1), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(oracle.inclusion_frequencies([0.5, 0.25, 0.25], 3), [1, 1, 1])
    assert oracle.inclusion_frequencies([0.5, 0.5], 0).tolist() == [0, 0]
    with pytest.raises(ValueError, match="non-zero"):
        oracle.inclusion_frequencies([1.0, 0.0], 2)


def test_sr_ste_decays_masked_weights_only():
    assert oracle.sr_ste([1.0, 1.0], [4.0, -4.0], [True, False], 0.25).tolist() == [1.0, 0.0]


def test_expand_mask_and_macs():
    # O = 6 in 2 groups of 3, N = 2: rows of 2, 1, 2, 1 channels; 2 input channels; 1x3 kernel, 2x5 output.
    mask = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    keep = oracle.expand_mask(mask, (6, 2, 1, 3), 2, 2)
    assert keep[:, :, 0, 0].astype(int).tolist() == [[1, 0], [1, 0], [0, 1], [1, 1], [1, 1], [0, 0]]
    assert (keep == keep[..., :1]).all()
    # Dense 6*2*3*10; kept channel pairs 2 + 1 + 4 + 0 = 7, times 3*10.
    assert oracle.conv_macs((6, 2, 1, 3), (2, 5), mask, 2, 2) == (360, 210)
    assert oracle.conv_macs((6, 2, 1, 3), (2, 5), None, 2, 2) == (360, 360)
