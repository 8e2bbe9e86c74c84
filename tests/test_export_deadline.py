"""subp_dist.export.deadline: work that is given up, and nothing that is interrupted after it."""

import time

import pytest

from subp_dist.export.deadline import within


def for_ever():
    while True:
        time.sleep(0.001)  # waiting counts, as computing does


def swallowing():
    try:
        for_ever()
    except BaseException:  # noqa: BLE001, as finalizers do
        for_ever()


@pytest.mark.parametrize("work", [for_ever, swallowing])
def test_work_that_takes_too_long_is_given_up(work):
    assert within(0.05, work) is None


def test_results_and_errors_of_work_in_time_are_its_own():
    assert within(600, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(600, lambda: 1 / 0)


def test_nothing_is_interrupted_after_work_that_ends_with_the_time():
    def work(steps):
        for _ in range(steps):
            pass
        return steps

    started = time.perf_counter()
    work(5000)
    seconds = time.perf_counter() - started
    found = []
    for _ in range(300):
        found.append(within(seconds, lambda: work(5000)))
        work(5000)  # outside of it: an interruption that comes late would end the test here
    assert set(found) <= {5000, None}
