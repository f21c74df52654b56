"""What counts against the budget, and what goes when it runs short."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.core.budget import (
    CHANNEL_BYTES,
    ENTRY_BYTES,
    EVENT_BYTES,
    TRACE_BYTES,
    UNCOUNTED_BYTES,
    Budget,
    cost,
)
from megaphone.core.channel import Channel, Waiter
from megaphone.core.progress import LARGEST_BATCH_BYTES
from megaphone.errors import LimitExceeded
from megaphone.model import START, ChannelLimits, Event, ReadOptions
from megaphone.wire.lines import event_line
from tests.support.settings import limits

BODY_BYTES = 10_000
EVENT = ENTRY_BYTES + EVENT_BYTES + BODY_BYTES
"""What an event takes that one channel holds."""
PLAIN = ReadOptions()
LIMITS = limits(capacity=5)


def event(name: str = "e") -> Event:
    return Event(name, "s", 0, b"1" * BODY_BYTES)


def channel(budget: Budget, limits: ChannelLimits = LIMITS) -> Channel:
    return Channel(limits, 0.0, budget)


def write(target: Channel, *events: Event, at: float = 0.0) -> None:
    for one in events:
        assert target.offer(one, now=at) == one.id


def read(target: Channel, *, at: float = 0.0, after: str | None = None) -> list[str]:
    """Read what is there, to a clean end."""
    lease = target.lease(ReadOptions(cursor=after), at)
    taken: list[str] = []
    while batch := lease.take(100, LARGEST_BATCH_BYTES, at):
        taken += [one.id for one in batch.events]
    lease.release(clean=True, now=at)
    return taken


def recovers(target: Channel, cursor: str) -> bool | None:
    lease = target.lease(ReadOptions(cursor=cursor), 0.0)
    lease.release(clean=False, now=0.0)
    return lease.recovered


def room_for(events: int, channels: int = 1) -> Budget:
    """Return a budget that has room for so much, and is short of it from the last event on."""
    return Budget(int(channels * CHANNEL_BYTES + events * EVENT + EVENT // 2))


def test_an_event_counts_once_however_many_channels_hold_it() -> None:
    budget = Budget()
    shared = event()
    channels = [channel(budget) for _ in range(10)]
    empty = budget.used
    for one in channels:
        write(one, shared)
    # The line that readers of several channels share takes as much as the body.
    assert budget.used - empty == 10 * ENTRY_BYTES + EVENT_BYTES + 2 * BODY_BYTES


def test_a_trace_context_counts_as_long_as_its_event() -> None:
    budget = Budget()
    traced = Event("e", "s", 0, b"1" * BODY_BYTES, f"00-{'a' * 32}-{'b' * 16}-01")
    one, other = channel(budget), channel(budget)
    empty = budget.used
    assert cost(traced) == EVENT + TRACE_BYTES
    write(one, traced)
    assert budget.used - empty == EVENT + TRACE_BYTES
    write(other, traced)
    assert budget.used - empty == EVENT + TRACE_BYTES + ENTRY_BYTES + BODY_BYTES
    for each in (one, other):
        each.close()
    assert budget.used <= empty
    budget.hold(traced)
    assert cost(traced) == ENTRY_BYTES
    budget.drop([traced])


def test_a_rendered_line_is_kept_only_while_several_channels_have_it_to_send() -> None:
    budget = Budget()
    shared, alone = event(), event()
    first, second, third = (channel(budget) for _ in range(3))
    for one in (first, second, third):
        write(one, shared)
    write(first, alone)
    read(first)
    assert event_line(shared) is event_line(shared)
    assert event_line(alone) is not event_line(alone)
    read(second)
    assert shared.rendered is None
    assert event_line(shared) == event_line(shared)
    assert shared.rendered is None


@pytest.mark.parametrize("ending", ["read", "closed"])
def test_everything_is_given_back_once_the_channel_is_gone(ending: str) -> None:
    budget = Budget()
    one = channel(budget)
    for number in range(5):
        one.offer(event(str(number)), now=0.0, request_id=f"key {number}")
    waiter = one.offer(event("waits"), now=0.0, request_id="another key")
    assert isinstance(waiter, Waiter)
    assert budget.used > 6 * EVENT
    if ending == "read":
        read(one)
    one.close()
    assert budget.used == 0


def test_a_writer_that_waits_counts_until_it_leaves() -> None:
    budget = Budget()
    full = channel(budget)
    write(full, *(event(str(number)) for number in range(5)))
    before = budget.used
    waiter = full.offer(event("waits"), now=0.0)
    assert isinstance(waiter, Waiter)

    def on_answer() -> None: ...

    waiter.join(on_answer)
    assert budget.used == before + EVENT
    full.withdraw(waiter, on_answer)
    assert budget.used == before


def test_no_more_writers_wait_than_may() -> None:
    budget = Budget()
    full = channel(budget, limits(capacity=1, max_waiting_writers=2))
    write(full, event("0"))
    for name in ("1", "2"):
        assert isinstance(full.offer(event(name), now=0.0), Waiter)
    before = budget.used
    with pytest.raises(LimitExceeded, match="max_waiting_writers") as refused:
        full.offer(event("3"), now=0.0, request_id="key")
    assert refused.value.retry_after_s == 1.0
    assert (full.waiting_writers, budget.used) == (2, before)
    assert read(full) == ["0", "1", "2"]


def test_a_write_without_room_is_refused_and_changes_nothing() -> None:
    budget = room_for(3)
    one = channel(budget)
    write(one, event("1"), event("2"), event("3"))
    before = budget.used
    with pytest.raises(LimitExceeded, match="max_buffered_bytes") as refused:
        one.offer(event("4"), now=0.0, request_id="key")
    assert refused.value.retry_after_s == 1.0
    assert budget.used == before
    assert read(one) == ["1", "2", "3"]


def test_a_repeated_write_is_answered_even_without_room() -> None:
    budget = room_for(1)
    one = channel(budget)
    one.offer(event("1"), now=0.0, request_id="key")
    with pytest.raises(LimitExceeded):
        one.offer(event("2"), now=0.0, request_id="another")
    assert one.offer(event("3"), now=0.0, request_id="key") == "1"


def test_replay_makes_room_that_of_the_channel_written_to_first() -> None:
    budget = room_for(4, channels=2)
    other, written = channel(budget), channel(budget)
    write(other, event("a"), event("b"))
    read(other)
    write(written, event("1"), event("2"))
    read(written)
    write(written, event("3"))
    assert recovers(other, "a") is True
    assert recovers(written, "1") is False
    assert read(written, after="2") == ["3"]


def test_replay_of_other_channels_makes_room_oldest_first() -> None:
    budget = room_for(3, channels=4)
    replaying = [channel(budget) for _ in range(3)]
    for number, one in enumerate(replaying):
        write(one, event(str(number)))
        read(one)
    write(channel(budget), event("new"))
    assert [recovers(one, START) for one in replaying] == [False, True, True]


def test_the_last_event_evicted_is_a_cursor_that_misses_nothing() -> None:
    one = channel(Budget())
    write(one, event("1"), event("2"))
    read(one)
    one.drop_replay(0.0)
    assert recovers(one, "2") is True
    assert recovers(one, "1") is False


def test_what_comes_again_after_a_broken_read_is_not_evicted() -> None:
    one = channel(Budget())
    write(one, event("1"), event("2"), event("3"))
    lease = one.lease(PLAIN, 0.0)
    lease.take(1, LARGEST_BATCH_BYTES, 0.0)
    lease.confirm(0.0)
    lease.take(1, LARGEST_BATCH_BYTES, 5.0)
    lease.confirm(5.0)
    one.drop_replay(11.0)
    lease.release(clean=False, now=11.0)
    assert read(one, at=11.0) == ["2", "3"]


def test_what_a_plain_reader_has_not_wholly_is_not_evicted() -> None:
    one = channel(Budget())
    write(one, event("1"), event("2"), event("3"))
    lease = one.lease(PLAIN, 0.0)
    lease.take(1, LARGEST_BATCH_BYTES, 0.0)
    lease.take(1, LARGEST_BATCH_BYTES, 1.0)
    one.drop_replay(50.0)
    lease.release(clean=False, now=50.0)
    assert read(one, at=50.0) == ["2", "3"]


def test_what_is_in_flight_to_an_acknowledging_reader_is_not_evicted() -> None:
    one = channel(Budget())
    write(one, event("1"), event("2"))
    lease = one.lease(ReadOptions(acknowledge=True), 0.0)
    lease.take(2, LARGEST_BATCH_BYTES, 0.0)
    one.acknowledge("1", 0.0)
    one.drop_replay(1_000.0)
    lease.release(clean=False, now=1_000.0)
    assert read(one) == ["2"]


def test_another_holder_of_an_event_costs_no_second_body() -> None:
    one, shared = channel(Budget()), event()
    assert cost(shared) == EVENT
    write(one, shared)
    assert cost(shared) == ENTRY_BYTES


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write to the others", "read", "look", "close"]),
        st.integers(0, 3),
    ),
    max_size=30,
)


@given(STEPS)
def test_what_many_channels_do_alike_counts_as_if_each_did_it_alone(
    steps: list[tuple[str, int]],
) -> None:
    budget = Budget()
    channels = [channel(budget) for _ in range(4)]
    events: list[Event] = []
    left: list[Channel] = []
    for step, number in steps:
        match step:
            case "write":
                events = [event(str(index)) for index in range(number)]
                for one in channels[number:]:
                    one.accept_run(events, 0.0)
                left = channels[:number]
            case "write to the others":
                for one in left:
                    one.accept_run(events, 0.0)
                left = []
            case "read":
                for one in channels[number:]:
                    read(one)
            case "look":
                assert budget.used == counted(channels)
            case _:
                channels[number].close()
                channels[number] = channel(budget)
                left = []
    assert budget.used == counted(channels)
    for one in channels:
        one.close()
    assert budget.used == 0


def counted(channels: list[Channel]) -> int:
    """Return how many bytes some channels take."""
    held = Counter(one for each in channels for one in each.log.after(0, 100)[1])
    waiting = Counter(one for each in channels for one in each.log.after(each.log.freed, 100)[1])
    shared = [one for one, count in waiting.items() if count > 1]
    return (
        CHANNEL_BYTES * len(channels)
        + ENTRY_BYTES * held.total()
        + (EVENT_BYTES + BODY_BYTES) * len(held)
        + BODY_BYTES * len(shared)
    )


# Requests and responses


def test_a_request_counts_from_where_its_connection_cannot_hold_it_until_it_is_received() -> None:
    budget = Budget()
    budget.receive(0, UNCOUNTED_BYTES, 0.0)
    assert budget.used == 0
    budget.receive(UNCOUNTED_BYTES, 100, 0.0)
    budget.receive(UNCOUNTED_BYTES + 100, 50, 0.0)
    assert budget.used == 150
    budget.received(UNCOUNTED_BYTES + 150)
    assert budget.used == 0


def test_a_piece_that_the_connection_holds_in_part_counts_in_part() -> None:
    budget = Budget()
    budget.receive(UNCOUNTED_BYTES - 60, 100, 0.0)
    assert budget.used == 40
    budget.received(UNCOUNTED_BYTES + 40)
    assert budget.used == 0


def test_unfinished_requests_leave_most_of_the_memory_to_others() -> None:
    budget = Budget(1_000_000)
    budget.receive(UNCOUNTED_BYTES, 150_000, 0.0)
    with pytest.raises(LimitExceeded, match="max_buffered_bytes"):
        budget.receive(UNCOUNTED_BYTES, 50_001, 0.0)
    assert budget.used == 150_000
    budget.receive(UNCOUNTED_BYTES, 50_000, 0.0)
    assert budget.used == budget.limit_of_requests == 200_000
    budget.check(800_000)
    budget.received(UNCOUNTED_BYTES + 150_000)
    budget.receive(UNCOUNTED_BYTES, 150_000, 0.0)


def test_a_request_takes_the_memory_of_replay() -> None:
    budget = room_for(5)
    one = channel(budget)
    write(one, *(event(str(number)) for number in range(4)))
    read(one)
    budget.receive(UNCOUNTED_BYTES, EVENT, 0.0)
    assert budget.used == CHANNEL_BYTES + EVENT
    assert recovers(one, START) is False


def test_a_request_without_room_is_refused_and_not_counted() -> None:
    budget = room_for(1)
    write(channel(budget), event())
    before = budget.used
    with pytest.raises(LimitExceeded):
        budget.receive(UNCOUNTED_BYTES, EVENT, 0.0)
    assert budget.used == before


def test_what_a_call_reserves_counts_until_the_call_has_ended_or_failed() -> None:
    budget = Budget(1_000)
    with budget.reserved(800, 0.0):
        assert budget.used == 800
    assert budget.used == 0
    with pytest.raises(ZeroDivisionError), budget.reserved(800, 0.0):
        raise ZeroDivisionError
    assert budget.used == 0


def test_what_a_call_cannot_reserve_is_refused_and_not_counted() -> None:
    budget = Budget(1_000)
    with budget.reserved(800, 0.0):
        with pytest.raises(LimitExceeded), budget.reserved(201, 0.0):
            pytest.fail("the context was entered")
        with budget.reserved(200, 0.0):
            assert budget.used == 1_000


def test_what_is_under_way_to_a_reader_counts_although_there_is_no_room_for_it() -> None:
    budget = Budget(1_000)
    with budget.lent(3_000):
        assert budget.used == 3_000
        with pytest.raises(LimitExceeded):
            budget.check(0)
    assert budget.used == 0
    with pytest.raises(ZeroDivisionError), budget.lent(3_000):
        raise ZeroDivisionError
    assert budget.used == 0
