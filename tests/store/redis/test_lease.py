"""A lease puts together what comes in answers and in messages, in whatever order it comes."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from megaphone.model import Event, ReadEnd, ReadOptions
from megaphone.store.redis.asking import keep_asking
from megaphone.store.redis.lease import RemoteLease, Taken


@dataclass
class Asked:
    """Notes what a lease asks for, as a store would."""

    takes: list[int] = field(default_factory=list)
    """What the lease had at each take."""
    released: list[tuple[bool, int]] = field(default_factory=list)
    passed_over: list[tuple[int, int]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def take(self, lease: RemoteLease, resend_after: int) -> None:
        self.takes.append(lease.have)

    def pass_over(self, lease: RemoteLease, after: int, last: int) -> None:
        self.passed_over.append((after, last))

    def release(
        self, lease: RemoteLease, *, clean: bool, resend_after: int
    ) -> "asyncio.Future[bool]":
        self.released.append((clean, resend_after))
        return asyncio.Future(loop=self.loop)


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.loop.close()


def unopened(asked: Asked, *, acknowledge: bool = False) -> RemoteLease:
    options = ReadOptions(acknowledge=acknowledge)
    return RemoteLease(asked, b"c", "1", options, redelivery_window_s=10, now=0.0)


def opened(asked: Asked, *, position: int = 0, sent_before: int = 0) -> RemoteLease:
    lease = unopened(asked)
    lease.opened(1, 5, None, "-", position, sent_before)
    lease.taken(answer(position + 1))
    return lease


def events(*numbers: int) -> list[Event]:
    return [Event(str(number), "s", 0, b"1") for number in numbers]


def answer(first: int, *numbers: int, backlog: int = 0) -> Taken:
    return Taken(first, backlog, events(*numbers))


def take(lease: RemoteLease, now: float = 0.0, limit: int = 100) -> list[int]:
    batch = lease.take(limit, 1_000_000, now)
    return [] if batch is None else [int(event.id) for event in batch.events]


def test_only_an_open_lease_that_acknowledges_passes_events_over(asked: Asked) -> None:
    opened(asked).pass_over(0, 1, 0.0)
    assert asked.passed_over == []
    lease = unopened(asked, acknowledge=True)
    lease.opened(1, 5, None, "-", 0, 0)
    lease.pass_over(0, 1, 0.0)
    lease.end(ReadEnd.CHANNEL_GONE)
    lease.pass_over(1, 2, 0.0)
    assert asked.passed_over == [(0, 1)]


def test_a_message_that_comes_before_the_answer_to_the_opening_is_asked_for(asked: Asked) -> None:
    lease = unopened(asked)
    lease.sent(1, events(1))
    lease.opened(1, 5, None, "-", 0, 0)
    lease.taken(answer(1))
    assert take(lease) == []
    assert asked.takes == [0]
    lease.taken(answer(1, 1))
    assert take(lease) == [1]


def test_a_message_that_comes_while_a_take_is_under_way_is_asked_for_again(asked: Asked) -> None:
    lease = opened(asked)
    lease.ask()
    assert take(lease) == []
    lease.ask()  # for an event that the answer cannot have yet
    lease.taken(answer(1))
    assert take(lease) == []
    assert asked.takes == [0, 0]


def test_a_lost_message_is_mended_by_a_take(asked: Asked) -> None:
    lease = opened(asked)
    lease.sent(1, events(1))
    lease.sent(3, events(3))
    assert take(lease) == [1]
    assert take(lease) == []
    assert asked.takes == [1]
    lease.taken(answer(2, 2, 3, 4))
    lease.sent(2, events(2, 3, 4, 5))  # the answer and a message may have the same events
    assert take(lease) == [2, 3, 4, 5]


async def test_leases_ask_now_and_then_but_not_all_in_one_turn(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.asking.ASK_EVERY_S", 0.5)
    loop = asyncio.get_running_loop()
    leases = {str(number): opened(asked) for number in range(1, 1_001)}
    turns: list[int] = []
    this_turn: list[RemoteLease] = []

    def end_turn() -> None:
        turns.append(len(this_turn))
        this_turn.clear()

    def notify(lease: RemoteLease) -> None:
        if not this_turn:
            loop.call_soon(end_turn)
        this_turn.append(lease)
        take(lease)

    for lease in leases.values():
        lease.on_ready = partial(notify, lease)
    asking = asyncio.create_task(keep_asking(leases))
    async with asyncio.timeout(20):
        while len(asked.takes) < 1_000:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    asking.cancel()
    assert set(turns) == {10}


def test_it_asks_for_more_only_when_it_has_handed_out_all(asked: Asked) -> None:
    lease = opened(asked)
    lease.taken(answer(1, 1, 2, 3, backlog=7))
    assert lease.ready == 10
    assert (take(lease, limit=2), asked.takes) == ([1, 2], [])
    assert (take(lease), asked.takes) == ([3], [])
    assert (take(lease), asked.takes) == ([], [3])
    assert (take(lease), asked.takes) == ([], [3]), "one take at a time"


def test_a_lease_whose_window_is_full_waits_for_a_message(asked: Asked) -> None:
    lease = unopened(asked, acknowledge=True)
    lease.opened(1, 5, None, "-", 0, 0)
    lease.taken(answer(1, 1, backlog=1))
    assert take(lease) == [1]
    assert take(lease) == []
    lease.taken(answer(2, backlog=1))
    assert take(lease) == []
    assert asked.takes == [1]
    lease.ask()
    assert take(lease) == []
    assert asked.takes == [1, 1]


def test_events_that_were_acknowledged_before_they_came_are_left_out(asked: Asked) -> None:
    lease = opened(asked)
    lease.sent(4, events(4))
    assert take(lease) == []
    lease.taken(answer(4, 4))
    batch = lease.take(100, 1_000_000, 0.0)
    assert batch is not None
    assert (batch.first_offset, batch.epoch) == (4, 5)


def test_what_arrived_before_such_a_gap_is_left_out_too(asked: Asked) -> None:
    """The reader has acknowledged it with the events after it. A batch has no gap."""
    lease = opened(asked)
    lease.ask()
    assert take(lease) == []
    lease.sent(1, events(1))
    lease.taken(answer(3, 3))
    batch = lease.take(100, 1_000_000, 0.0)
    assert batch is not None
    assert (batch.first_offset, [event.id for event in batch.events]) == (3, ["3"])


def test_what_was_sent_before_is_counted(asked: Asked) -> None:
    lease = opened(asked, sent_before=2)
    lease.taken(answer(1, 1, 2, 3))
    counts = []
    while (batch := lease.take(1, 1_000_000, 0.0)) is not None:
        counts.append(batch.redelivered)
    assert counts == [1, 1, 0]


@pytest.mark.parametrize(
    ("clean", "now", "resend_after"),
    [
        (True, 1.0, 2),  # what was handed out counts as sent
        (False, 1.0, 0),  # the first is recent, and the second not confirmed
        (False, 11.0, 1),
    ],
)
def test_where_the_next_read_starts(
    asked: Asked, clean: bool, now: float, resend_after: int
) -> None:
    lease = opened(asked)
    lease.sent(1, events(1, 2, 3))
    assert take(lease, now=0.0, limit=1) == [1]
    assert take(lease, now=0.5, limit=1) == [2]
    lease.release(clean=clean, now=now)
    lease.release(clean=not clean, now=now)
    assert asked.released == [(clean, resend_after)]


@pytest.mark.parametrize(
    ("position", "sent_before", "limit", "given"),
    [(2, 0, 0, 0), (2, 1, 1, 3), (2, 2, 2, 4), (2, 4, 1, 4)],
)
def test_what_it_was_sent_but_has_not_handed_out_is_not_given(
    asked: Asked, position: int, sent_before: int, limit: int, given: int
) -> None:
    lease = opened(asked, position=position, sent_before=sent_before)
    lease.sent(3, events(3, 4, 5))
    if limit:
        assert len(take(lease, limit=limit)) == limit
    assert lease.given == given
