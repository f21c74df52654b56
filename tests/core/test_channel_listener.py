"""Whatever changes what a follower of a channel would see, the listener hears of; and of no more.

A follower sees a channel by `Log.after` and `Log.progress`. Any sequence of calls is made here, and
both are compared before and after each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from inspect import getmembers, isroutine

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel, Lease, Waiter
from megaphone.model import START, Event, Progress, ReadOptions
from tests.support.settings import IS_LONG, limits

MANY = 1_000
STRANGER = "of no channel"
CHANGING = {
    Channel: {
        "accept",
        "accept_run",
        "acknowledge",
        "advance",
        "drop_replay",
        "apply_progress",
        "learn_key",
        "lease",
        "offer",
        "apply",
        "evict_oldest",
        "skip_to",
        "withdraw",
    },
    Lease: {"confirm", "pass_over", "release", "take"},
}
"""The calls that are made here."""
ONLY_ASKING = {
    "settle",
    "interrupt",
    "is_in_use",
    "is_unread_for",
    "keys_after",
    "notify",
    "read_until",
    "resend_after",
}


def event(name: str) -> Event:
    return Event(name, "s", 0, b"{}")


def do_nothing() -> None:
    pass


class FollowedChannel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.names = [START, STRANGER]
        self.lease: Lease | None = None
        self.writers: list[Waiter] = []
        self.calls = 0

    @initialize(capacity=st.integers(1, 4))
    def start(self, capacity: int) -> None:
        self.channel = Channel(limits(capacity=capacity), self.now, Budget(), channel_id=b"id")
        self.channel.log.listener = self.heard

    def heard(self, channel_id: bytes) -> None:
        assert channel_id == b"id"
        self.calls += 1

    @contextmanager
    def told_if_it_changes(self, *, in_one_step: bool = True) -> Iterator[None]:
        seen, self.calls = self.seen(), 0
        yield
        changes = self.seen() != seen
        assert bool(self.calls) >= changes
        assert bool(self.calls) == changes or not in_one_step

    def seen(self) -> object:
        first, events = self.channel.log.after(0, MANY)
        ends = range(first - 1, first + len(events))
        progress = [self.channel.log.progress(end) for end in ends]
        return first, [event.id for event in events], self.channel.log.before_first, progress

    def new_event(self) -> Event:
        self.names.append(f"e{len(self.names)}")
        return event(self.names[-1])

    def any_name(self, data: st.DataObject) -> str:
        """One that is kept, or was, or that is of no event."""
        _, events = self.channel.log.after(0, MANY)
        kept = [event.id for event in events]
        return data.draw(st.sampled_from(kept * 3 + self.names))

    @rule(step_s=st.sampled_from([0.5, 5.0, 10.0, 60.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @rule(request_id=st.sampled_from([None, None, "r1", "r2"]))
    def offer(self, request_id: str | None) -> None:
        with self.told_if_it_changes():
            answer = self.channel.offer(self.new_event(), now=self.now, request_id=request_id)
        if isinstance(answer, Waiter):
            answer.join(do_nothing)
            self.writers.append(answer)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiter = self.writers.pop(data.draw(st.integers(0, len(self.writers) - 1)))
        with self.told_if_it_changes():
            self.channel.withdraw(waiter, do_nothing)

    @rule(acknowledge=st.booleans(), resumes=st.booleans(), data=st.data())
    def read(self, acknowledge: bool, resumes: bool, data: st.DataObject) -> None:
        options = ReadOptions(acknowledge=acknowledge, in_flight=3, take_over=True)
        if resumes:
            options = replace(options, cursor=self.any_name(data))
        with self.told_if_it_changes(in_one_step=self.lease is None):
            self.lease = self.channel.lease(options, self.now)

    @precondition(lambda self: self.lease)
    @rule(limit=st.integers(1, 5))
    def take(self, limit: int) -> None:
        assert self.lease is not None
        with self.told_if_it_changes():
            self.lease.take(limit, MANY, self.now)

    @precondition(lambda self: self.lease)
    @rule()
    def confirm(self) -> None:
        assert self.lease is not None
        with self.told_if_it_changes():
            self.lease.confirm(self.now)

    @precondition(lambda self: self.lease)
    @rule(data=st.data())
    def pass_over(self, data: st.DataObject) -> None:
        assert self.lease is not None
        sent = self.channel.log.sent
        last = data.draw(st.integers(0, sent))
        with self.told_if_it_changes():
            self.lease.pass_over(data.draw(st.integers(0, last)), last, self.now)

    @precondition(lambda self: self.lease)
    @rule(clean=st.booleans())
    def release(self, clean: bool) -> None:
        assert self.lease is not None
        with self.told_if_it_changes():
            self.lease.release(clean=clean, now=self.now)
        self.lease = None

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        with self.told_if_it_changes():
            self.channel.acknowledge(self.any_name(data), self.now)

    @rule(knows_progress=st.booleans())
    def apply(self, knows_progress: bool) -> None:
        with self.told_if_it_changes():
            self.channel.apply(self.new_event(), self.now, knows_progress=knows_progress)

    @rule(data=st.data())
    def apply_again(self, data: st.DataObject) -> None:
        _, kept = self.channel.log.after(0, MANY)
        with self.told_if_it_changes():
            for again in kept and [data.draw(st.sampled_from(kept))]:
                self.channel.apply(again, self.now)

    @precondition(lambda self: not self.channel.has_free_place)
    @rule()
    def evict_oldest(self) -> None:
        with self.told_if_it_changes():
            self.channel.evict_oldest(self.now)

    @rule(has_gap=st.booleans(), data=st.data())
    def apply_progress(self, has_gap: bool, data: st.DataObject) -> None:
        progress = Progress(self.any_name(data), self.any_name(data), has_gap)
        with self.told_if_it_changes():
            self.channel.apply_progress(progress, self.now)

    @rule()
    def skip_to(self) -> None:
        with self.told_if_it_changes():
            self.channel.skip_to(self.new_event().id, self.now)

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        with self.told_if_it_changes():
            self.channel.advance(self.any_name(data), self.now)

    @rule(data=st.data())
    def learn_key(self, data: st.DataObject) -> None:
        with self.told_if_it_changes():
            self.channel.learn_key("r1", self.any_name(data), self.now, self.now)

    @rule()
    def drop_replay(self) -> None:
        with self.told_if_it_changes():
            self.channel.drop_replay(self.now)


TestFollowedChannel = FollowedChannel.TestCase
TestFollowedChannel.settings = settings(
    max_examples=150 if IS_LONG else 50,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", CHANGING)
def test_no_call_is_left_out(kind: type) -> None:
    calls = {name for name, _ in getmembers(kind, isroutine) if not name.startswith("_")}
    assert calls - ONLY_ASKING - CHANGING[kind] == ({"close"} if kind is Channel else set())


def test_nobody_is_told_of_a_channel_that_ends() -> None:
    calls: list[None] = []
    channel = Channel(limits(), 0.0, Budget())
    channel.log.listener = lambda _: calls.append(None)
    channel.apply(event("a"), 0.0)
    calls.clear()
    channel.close()
    assert not calls
