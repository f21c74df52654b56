"""What a plain reader gets again after a broken read."""

import pytest

from megaphone.core.sendings import KEPT, Sendings

WINDOW_S = 10.0


@pytest.fixture
def sendings() -> Sendings:
    sendings = Sendings(WINDOW_S)
    sendings.confirm(1, 3, 100.0)
    sendings.confirm(4, 4, 105.0)
    return sendings


@pytest.mark.parametrize(
    ("now", "after"),
    [
        (105.0, 0),
        (109.9, 0),
        (110.0, 3),  # the first take is as old as the window
        (114.9, 3),
        (115.0, 4),
    ],
)
def test_recent_takes_are_sent_again(sendings: Sendings, now: float, after: int) -> None:
    assert sendings.resend_after(floor=0, confirmed=4, now=now) == after


@pytest.mark.parametrize(("floor", "after"), [(2, 2), (3, 3), (4, 4), (5, 5)])
def test_nothing_up_to_the_floor_is_sent_again(sendings: Sendings, floor: int, after: int) -> None:
    assert sendings.resend_after(floor=floor, confirmed=4, now=105.0) == after


def test_events_that_were_not_confirmed_are_always_sent_again() -> None:
    assert Sendings(WINDOW_S).resend_after(floor=0, confirmed=7, now=0.0) == 7


def test_takes_that_follow_each_other_at_once_are_joined() -> None:
    sendings = Sendings(WINDOW_S)
    for number in range(1, 1_001):
        sendings.confirm(number, number, number / 1_000)
    assert len(sendings) <= 21
    for now in (1.0, 10.0, 10.5, 10.9, 11.0):
        oldest = max(1, round((now - WINDOW_S) * 1_000) + 1)
        after = sendings.resend_after(floor=0, confirmed=1_000, now=now)
        assert oldest - 51 <= after <= oldest - 1
    assert sendings.resend_after(floor=0, confirmed=1_000, now=11.0) == 1_000


def test_without_a_window_nothing_that_was_confirmed_is_sent_again() -> None:
    sendings = Sendings(0.0)
    sendings.confirm(1, 1, 5.0)
    sendings.confirm(2, 2, 5.0)
    assert sendings.resend_after(floor=0, confirmed=2, now=5.0) == 2


def test_old_takes_are_dropped_and_recent_ones_kept() -> None:
    sendings = Sendings(WINDOW_S)
    for number in range(1, 10 * KEPT):
        sendings.confirm(number, number, float(number))
        first = max(1, number - 9)  # ten takes a window, at one a second
        assert sendings.resend_after(floor=0, confirmed=number, now=float(number)) == first - 1
    assert len(sendings) <= 2 * KEPT
