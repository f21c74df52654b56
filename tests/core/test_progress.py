"""When a client has stalled, and how large its batches are."""

import math

import pytest

from megaphone.core.progress import (
    FIRST_BATCH_BYTES,
    LARGEST_BATCH_BYTES,
    LARGEST_UNSEEN_BATCH_BYTES,
    QUICK_S,
    SLOW_S,
    SLOWEST_BYTES_PER_S,
    SMALLEST_BATCH_BYTES,
    STALL_S,
    Progress,
)


def seen() -> Progress:
    return Progress(is_seen=True)


def unseen() -> Progress:
    return Progress(is_seen=False)


def take(progress: Progress, took_s: float, *, more_is_ready: bool = True) -> int:
    """Have a batch taken. Returns: how large the next may be."""
    progress.hand_over(1_000, 0.0, more_is_ready=more_is_ready)
    progress.finish(took_s)
    return progress.batch_bytes


# Stalling


@pytest.mark.parametrize("progress", [seen(), unseen()])
def test_nobody_stalls_for_whom_nothing_waits(progress: Progress) -> None:
    assert progress.stalls_at == math.inf
    progress.hand_over(1_000, 0.0, more_is_ready=True)
    progress.finish(1.0)
    assert progress.stalls_at == math.inf
    assert not progress.is_waiting


def test_a_client_stalls_when_it_takes_nothing_of_a_batch() -> None:
    progress = seen()
    progress.hand_over(1_000_000, 100.0, more_is_ready=True)
    assert progress.is_waiting
    assert progress.stalls_at == 100.0 + STALL_S


def test_a_client_that_takes_a_byte_a_second_does_not_stall() -> None:
    progress = seen()
    progress.hand_over(1_000_000, 0.0, more_is_ready=True)
    for second in range(1, 100):
        progress.look(second, float(second))
        assert progress.stalls_at == second + STALL_S


def test_a_client_stalls_when_it_stops_in_the_middle_of_a_batch() -> None:
    progress = seen()
    progress.hand_over(1_000_000, 0.0, more_is_ready=True)
    for second, taken in enumerate([0, 500, 900, 900, 900, 900], 1):
        progress.look(taken, float(second))
    assert progress.stalls_at == 3.0 + STALL_S


def test_each_batch_is_waited_for_anew() -> None:
    progress = seen()
    progress.hand_over(1_000, 0.0, more_is_ready=True)
    progress.look(7, 1.0)
    progress.finish(4.0)
    progress.hand_over(1_000, 4.0, more_is_ready=True)
    assert progress.stalls_at == 4.0 + STALL_S


def test_where_parts_are_not_seen_to_be_taken_large_batches_have_more_time() -> None:
    progress = unseen()
    progress.hand_over(0, 0.0, more_is_ready=True)
    assert progress.stalls_at == STALL_S
    progress.hand_over(2 * SLOWEST_BYTES_PER_S, 0.0, more_is_ready=True)
    assert progress.stalls_at == STALL_S + 2.0


# Batches


@pytest.mark.parametrize(
    ("progress", "largest"),
    [(seen(), LARGEST_BATCH_BYTES), (unseen(), LARGEST_UNSEEN_BATCH_BYTES)],
)
def test_batches_grow_while_they_are_taken_quickly(progress: Progress, largest: int) -> None:
    assert progress.batch_bytes == FIRST_BATCH_BYTES
    sizes = [take(progress, QUICK_S / 2) for _ in range(8)]
    assert sizes == [min(FIRST_BATCH_BYTES << n, largest) for n in range(1, 9)]


def test_batches_do_not_grow_while_each_has_all_that_is_ready() -> None:
    assert take(seen(), 0.0, more_is_ready=False) == FIRST_BATCH_BYTES


def test_batches_shrink_while_they_are_taken_slowly() -> None:
    progress = seen()
    sizes = [take(progress, SLOW_S * 2) for _ in range(4)]
    assert sizes == [max(FIRST_BATCH_BYTES >> n, SMALLEST_BATCH_BYTES) for n in range(1, 5)]


def test_batches_stay_as_they_are_at_a_middling_pace() -> None:
    assert take(seen(), (QUICK_S + SLOW_S) / 2) == FIRST_BATCH_BYTES
