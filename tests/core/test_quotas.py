"""Rates, in virtual time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.core.quotas import BURST_S, Rate, Rates

RATES = st.floats(0.01, 1e6)
STEPS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 50)),  # how long nothing happens, and a cost
    max_size=100,
)
BEGIN = 1e6  # the clock of a machine that has run for days


def passes(rate: Rate, cost: float, now: float) -> bool:
    waiting = rate.wait_s(cost, now)
    assert rate.pass_or_wait_s(cost, now) == waiting
    return not waiting


def capacity(per_s: float) -> float:
    return max(1.0, per_s * BURST_S)


@given(RATES, STEPS)
def test_no_more_passes_than_the_rate_allows(per_s: float, steps: list[tuple[float, int]]) -> None:
    """Over any time it is what the bucket held, what has come in, and one cost that was larger."""
    rate, now = Rate(per_s), BEGIN
    passed: list[tuple[float, int]] = []
    for pause_s, cost in steps:
        now += pause_s
        if passes(rate, cost, now):
            passed.append((now, cost))
    for first, (begin, _) in enumerate(passed):
        total, largest = 0, 0
        for end, cost in passed[first:]:
            total, largest = total + cost, max(largest, cost)
            allowed = capacity(per_s) + per_s * (end - begin) + max(0, largest - capacity(per_s))
            assert total <= allowed * (1 + 1e-6) + per_s * 1e-3


@given(RATES, STEPS, st.integers(1, 50))
def test_what_is_refused_passes_after_the_time_that_it_is_told(
    per_s: float, steps: list[tuple[float, int]], cost: int
) -> None:
    rate, now = Rate(per_s), BEGIN
    for pause_s, taken in steps:
        now += pause_s
        passes(rate, taken, now)
    wait_s = rate.wait_s(cost, now)
    assert rate.wait_s(cost, now + wait_s) == 0
    if wait_s > 1e-3:
        assert rate.wait_s(cost, now + wait_s * 0.999 - 1e-6) > 0


@given(RATES, STEPS, st.integers(1, 100))
def test_what_is_given_back_counts_as_never_taken(
    per_s: float, steps: list[tuple[float, int]], cost: int
) -> None:
    rate, other, now = Rate(per_s), Rate(per_s), BEGIN
    for pause_s, taken in steps:
        now += pause_s
        passes(rate, taken, now)
        rate.take(cost, now)
        rate.give_back(cost)
        passes(other, taken, now)
    assert rate.wait_s(1, now) == pytest.approx(other.wait_s(1, now), abs=1e-4 + 1e-6 / per_s)


@pytest.mark.parametrize(("per_s", "expected"), [(0.5, 6), (1, 11), (10, 110), (500, 5_500)])
def test_ten_seconds_of_trying_get_what_eleven_seconds_allow(per_s: float, expected: int) -> None:
    rate = Rate(per_s)
    count = sum(passes(rate, 1, BEGIN + tick / 1000) for tick in range(10_001))
    assert abs(count - expected) <= 1


def test_a_full_bucket_can_be_emptied_at_once() -> None:
    for per_s in range(1, 200):
        rate = Rate(per_s)
        assert sum(passes(rate, 1, BEGIN) for _ in range(per_s + 1)) == per_s
        rate = Rate(per_s)
        assert passes(rate, per_s, BEGIN)
        assert not passes(rate, 1, BEGIN)


def test_a_cost_above_the_burst_passes_when_the_bucket_is_full_and_is_paid_off() -> None:
    rate = Rate(10)
    assert passes(rate, 35, BEGIN)
    assert rate.wait_s(1, BEGIN) == pytest.approx(2.6)
    assert rate.wait_s(35, BEGIN + 2.6) == pytest.approx(0.9)
    assert passes(rate, 35, BEGIN + 3.5)


def test_another_rate_leaves_what_is_owed() -> None:
    rate = Rate(1)
    assert passes(rate, 5, BEGIN)
    rate.change(1_000_000)
    assert rate.wait_s(1, BEGIN) == pytest.approx(4, abs=0.01)


def test_each_key_has_a_rate_of_its_own() -> None:
    rates = Rates(1)
    for key in ("a", "b"):
        assert rates.wait_s(key, 1, BEGIN) == 0
        rates.take(key, 1, BEGIN)
        assert rates.wait_s(key, 1, BEGIN) == pytest.approx(1)
    assert rates.wait_s("c", 1, BEGIN) == 0
    rates.give_back("a", 1)
    assert rates.wait_s("a", 1, BEGIN) == 0
    assert rates.wait_s("b", 1, BEGIN) > 0


def test_the_key_that_was_counted_longest_ago_is_forgotten() -> None:
    rates = Rates(0.001, most=3)
    for key in ("a", "b", "c", "a", "d"):
        rates.take(key, 1, BEGIN)
    waits = {key: rates.wait_s(key, 1, BEGIN) > 0 for key in "abcd"}
    assert waits == {"a": True, "b": False, "c": True, "d": True}
