"""The schedule of the pruned rate, against the oracle.

Sizes: runs of 1 to 400 epochs, whole and fractional times. Tolerance: 16 eps (float64) of the rate; for `exp` divided
by its denominator 1 - e^(-0.05 (span - 1)), which loses digits where the schedule is about one epoch long.
Out of scope: what is done with the rate (test_masks.py).
"""

from __future__ import annotations

import math
import sys

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subp_dist.schedule import SHAPES, PruneSchedule

EPS = sys.float_info.epsilon
TIMES = st.one_of(st.integers(0, 300), st.floats(0, 300, allow_subnormal=False))
RATES = st.one_of(st.sampled_from([0.0, 60 / 128, 98.5 / 128]), st.floats(0, 0.999))


def tolerance(schedule: PruneSchedule) -> float:
    span = schedule.end - schedule.start
    if schedule.shape == "exp" and span > 1:
        return schedule.rate * 16 * EPS / -math.expm1(-0.05 * (span - 1))
    return schedule.rate * 16 * EPS


def test_the_shapes_are_those_of_the_method():
    assert set(SHAPES) == {"cubic", "linear", "cos", "exp", "zhu_gupta"}
    assert PruneSchedule(0.5, 0, 1).shape == "cubic"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), RATES, TIMES, TIMES, TIMES)
def test_pruned_rate_equals_the_oracle(shape, rate, first, second, epoch):
    start, end = sorted((first, second))
    schedule = PruneSchedule(rate, start, end, shape)
    expected = oracle.pruned_rate(rate, epoch, start, end, shape)
    assert schedule.pruned_rate(epoch) == pytest.approx(expected, rel=0, abs=tolerance(schedule))


@pytest.mark.parametrize("shape", SHAPES)
def test_pruned_rate_of_the_published_run_equals_the_oracle(shape):
    schedule = PruneSchedule(66 / 128, 10, 180, shape)
    for epoch in range(250):
        expected = oracle.pruned_rate(66 / 128, epoch, 10, 180, shape)
        assert schedule.pruned_rate(epoch) == pytest.approx(expected, rel=0, abs=tolerance(schedule))


@pytest.mark.parametrize("shape", SHAPES)
def test_pruned_rate_is_exact_outside_the_schedule(shape):
    schedule = PruneSchedule(0.7, 10, 180, shape)
    assert [schedule.pruned_rate(epoch) for epoch in (0, 9.99, 10)] == [0, 0, 0]
    assert [schedule.pruned_rate(epoch) for epoch in (180, 180.5, 10**9)] == [0.7, 0.7, 0.7]


@pytest.mark.parametrize("shape", SHAPES)
def test_pruned_rate_never_falls_and_never_passes_the_target(shape):
    schedule = PruneSchedule(98.5 / 128, 10, 180, shape)
    rates = [schedule.pruned_rate(tenth / 10) for tenth in range(2500)]
    assert rates == sorted(rates)
    assert min(rates) == 0
    assert max(rates) == 98.5 / 128


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_start_and_end_is_a_step_at_the_start(shape):
    schedule = PruneSchedule(0.5, 3, 3, shape)
    assert [schedule.pruned_rate(epoch) for epoch in (2, 2.999, 3, 4)] == [0, 0, 0.5, 0.5]


def test_the_default_prunes_within_the_first_quarter_of_a_run():
    schedule = PruneSchedule.for_run(0.5, 200)
    assert (schedule.start, schedule.end, schedule.shape) == (8, 50, "cubic")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_runs_reach_the_target(epochs, shape):
    assert PruneSchedule.for_run(0.5, epochs, shape=shape).pruned_rate(epochs - 1) == 0.5


def test_every_length_of_run_reaches_the_target():
    for epochs in range(1, 401):
        assert PruneSchedule.for_run(0.5, epochs).pruned_rate(epochs - 1) == 0.5


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.data())
def test_every_start_within_the_run_reaches_the_target(epochs, data):
    start = data.draw(st.one_of(st.integers(0, epochs - 1), st.floats(0, epochs - 1)))
    schedule = PruneSchedule.for_run(0.5, epochs, start=start)
    assert schedule.start == start
    assert schedule.pruned_rate(epochs - 1) == 0.5


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.data())
def test_every_end_within_the_run_is_taken(epochs, data):
    end = data.draw(st.one_of(st.integers(0, epochs - 1), st.floats(0, epochs - 1)))
    schedule = PruneSchedule.for_run(0.5, epochs, end=end)
    assert schedule.end == end
    assert 0 <= schedule.start <= end


def test_given_start_and_end_are_taken():
    schedule = PruneSchedule.for_run(0.25, 100, 0, 99, "zhu_gupta")
    assert schedule == PruneSchedule(0.25, 0, 99, "zhu_gupta")


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, 50, float("nan")])
def test_a_rate_out_of_range_is_an_error_that_names_it(rate):
    with pytest.raises(ValueError, match=rf"prune rate {rate}.*\[0, 1\).*0\.5"):
        PruneSchedule(rate, 0, 1)


@pytest.mark.parametrize(("start", "end"), [(5, 4), (-1, 4), (float("nan"), 4), (0, float("nan"))])
def test_times_out_of_order_are_an_error_that_names_them(start, end):
    with pytest.raises(ValueError, match=rf"from epoch {start} to {end}: expected 0 <= start <= end"):
        PruneSchedule(0.5, start, end)


def test_an_unknown_shape_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cubix'.*cubic, linear, cos, exp, zhu_gupta"):
        PruneSchedule(0.5, 0, 1, "cubix")


@pytest.mark.parametrize(("end", "epochs_needed"), [(100, 101), (100.5, 102), (180, 181)])
def test_an_end_beyond_the_run_is_an_error_that_says_what_to_set(end, epochs_needed):
    with pytest.raises(ValueError, match=rf"last epoch is 99 .*--prune-end to at most 99.*--epochs .*{epochs_needed}$"):
        PruneSchedule.for_run(0.5, 100, end=end)


def test_a_start_beyond_the_run_is_an_error():
    with pytest.raises(ValueError, match="from epoch 100 to 99"):
        PruneSchedule.for_run(0.5, 100, start=100)
