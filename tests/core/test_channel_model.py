"""Any sequence of calls leaves a Channel and a plain model of its specification in agreement.

The model knows no positions: it keeps a state for each event, and searches. What must hold however
the model works (order, no loss, first come first served) is checked from the history besides.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from megaphone.core.budget import CHANNEL_BYTES, ENTRY_BYTES, EVENT_BYTES, KEY_BYTES, Budget
from megaphone.core.channel import Channel, Lease, Waiter
from megaphone.errors import ReaderBusy
from megaphone.model import START, Event, ReadOptions
from tests.support.settings import IS_LONG, limits

TTL_S = 60.0
REQUEST_IDS_S = 7.25
"""No sum of the time steps below: the specification leaves open what holds at that very moment."""
BEFORE_ALL = -1
"""The number of START, as if it were an event that every new channel has forgotten."""
BODY = b'{"any": "body"}'
STEPS_S = [0.0, 0.5, 1.0, 2.0, 5.0, 9.5, 10.0, 59.5, 60.0]


def id_of(number: int) -> str:
    return START if number == BEFORE_ALL else f"e{number}"


class State(Enum):
    READY = auto()
    """To be handed to whoever reads next."""
    SENT = auto()
    """Handed to the reader that is there, and not acknowledged."""
    DONE = auto()


@dataclass(eq=False)
class Record:
    number: int
    request_id: str | None
    state: State = State.READY
    has_place: bool = True
    sent_at: float | None = None


@dataclass(eq=False)
class Writer:
    """One that waits for room, or has just been told."""

    record: Record
    waiter: Waiter
    told: Callable[[], None]


class Model:
    """What design.md says of a channel, as plainly as possible."""

    def __init__(
        self,
        capacity: int,
        redelivery_s: float,
        ttl_s: float = TTL_S,
        request_ids_s: float = REQUEST_IDS_S,
    ) -> None:
        self.capacity = capacity
        self.ttl_s = ttl_s
        self.request_ids_s = request_ids_s
        self.redelivery_s = redelivery_s
        self.kept: list[Record] = []
        self.waiting: list[Record] = []
        self.last_forgotten = BEFORE_ALL
        self.request_ids: dict[str, tuple[Record, float]] = {}
        self.reader: ReadOptions | None = None
        self.unconfirmed: list[Record] = []
        self.dies_at: float | None = ttl_s  # the clock starts at 0

    def in_state(self, state: State) -> list[Record]:
        return [record for record in self.kept if record.state is state]

    def placed(self) -> int:
        return sum(record.has_place for record in self.kept)

    def find(self, number: int) -> Record | None:
        return next((record for record in self.kept if record.number == number), None)

    def offer(self, number: int, request_id: str | None, now: float) -> Record:
        """The record that answers: a new one, or that of the first with this request id."""
        if request_id is not None and (known := self.request_ids.get(request_id)):
            record, taken_at = known
            if record in self.waiting or now - taken_at < self.request_ids_s:
                return record
        record = Record(number, request_id)
        if request_id is not None:
            self.request_ids[request_id] = record, now
        self.waiting.append(record)
        self.let_in(now)
        return record

    def let_in(self, now: float) -> None:
        while self.waiting and self.placed() < self.capacity:
            record = self.waiting.pop(0)
            self.kept.append(record)
            if record.request_id is not None:
                self.request_ids[record.request_id] = record, now

    def withdraw(self, record: Record) -> None:
        self.waiting.remove(record)
        if record.request_id is not None:
            del self.request_ids[record.request_id]

    def free(self, records: list[Record], now: float) -> None:
        for record in records:
            record.has_place = False
        for record in [record for record in self.kept if not record.has_place][: -self.capacity]:
            self.kept.remove(record)
            self.last_forgotten = record.number
        self.let_in(now)

    def lease(self, options: ReadOptions, cursor: int | None, now: float) -> bool | None:
        if self.reader is not None:
            self.release(clean=False, now=now)
        self.reader = options
        self.dies_at = None
        if cursor is None:
            return None
        at = self.find(cursor)
        for record in self.kept:
            passed = at is not None and record.number <= at.number
            record.state = State.DONE if passed else State.READY
        self.free(self.in_state(State.DONE), now)
        return at is not None or cursor == self.last_forgotten

    def position(self) -> int:
        """What a read that starts now resumes after."""
        done = self.in_state(State.DONE)
        return done[-1].number if done else self.last_forgotten

    def offered(self, limit: int) -> list[Record]:
        """What a take would return."""
        assert self.reader is not None
        if self.reader.acknowledge:
            limit = min(limit, self.reader.in_flight - len(self.in_state(State.SENT)))
        else:
            limit = min(limit, self.capacity)
        return self.in_state(State.READY)[:limit]

    def take(self, limit: int, now: float) -> tuple[list[int], int]:
        """The numbers taken, and how many of them had been sent before."""
        assert self.reader is not None
        self.confirm(now)
        taken = self.unconfirmed = self.offered(limit)
        again = sum(record.sent_at is not None for record in taken)
        for record in taken:
            record.state, record.sent_at = State.SENT, now
        if not self.reader.acknowledge:
            self.free(taken, now)
        return [record.number for record in taken], again

    def confirm(self, now: float) -> None:
        for record in self.unconfirmed:
            record.sent_at = now
        self.unconfirmed = []

    def acknowledge(self, number: int, now: float) -> int:
        at = self.find(number)
        if at is None or at.sent_at is None:
            return 0
        before = [
            record
            for record in self.kept
            if record.number <= number and record.state is not State.DONE
        ]
        for record in before:
            record.state = State.DONE
        self.free(before, now)
        return len(before)

    def release(self, clean: bool, now: float) -> None:
        assert self.reader is not None
        for record in self.in_state(State.SENT):
            assert record.sent_at is not None
            again = self.is_owed(record, now) and (self.reader.acknowledge or not clean)
            record.state = State.READY if again else State.DONE
        self.unconfirmed = []
        self.reader = None
        self.dies_at = now + self.ttl_s

    def drop_replay(self, now: float) -> None:
        while self.kept and not self.is_owed(self.kept[0], now):
            self.last_forgotten = self.kept.pop(0).number

    def is_owed(self, record: Record, now: float) -> bool:
        """Whether a reader gets it yet, also if the present read breaks."""
        if record.state is not State.SENT:
            return record.state is State.READY
        assert self.reader is not None
        assert record.sent_at is not None
        recent = now - record.sent_at < self.redelivery_s
        return self.reader.acknowledge or recent or record in self.unconfirmed

    def lost(self) -> int:
        return sum(record.sent_at is None for record in self.in_state(State.READY))


sizes = st.integers(1, 7)
options = st.builds(
    ReadOptions,
    acknowledge=st.booleans(),
    in_flight=st.sampled_from([1, 1, 2, 3, 4, 100]),
    take_over=st.sampled_from([False, False, False, True]),
)


class ChannelMachine(RuleBasedStateMachine):
    channel: Channel
    model: Model

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.written = 0
        self.old_leases: list[Lease] = []

    @initialize(
        capacity=st.integers(1, 5),
        redelivery_s=st.sampled_from([0.0, 2.0, 10.0]),
        ending=st.sampled_from(["drain", "replay", "close"]),
    )
    def start(self, capacity: int, redelivery_s: float, ending: str) -> None:
        self.make(capacity, redelivery_s)
        self.ending = ending
        self.open: Lease | None = None
        self.woken = self.sleeps = False
        self.writers: list[Writer] = []
        self.told: list[Waiter] = []
        self.taken_in: set[int] = set()
        self.handed_out: set[int] = set()
        self.passed_over: set[int] = set()

    def make(self, capacity: int, redelivery_s: float) -> None:
        """Make the channel and its model."""
        bounds = limits(
            capacity=capacity,
            ttl_s=TTL_S,
            redelivery_window_s=redelivery_s,
            idempotency_window_s=REQUEST_IDS_S,
        )
        self.budget = Budget()
        self.channel = Channel(bounds, self.now, self.budget)
        self.model = Model(capacity, redelivery_s)

    def wake(self) -> None:
        self.woken = True

    def any_event(self, data: st.DataObject) -> int:
        """Mostly one that is kept, else any that was ever offered, one that never was, or START."""
        kept = [record.number for record in self.model.kept]
        mostly = data.draw(st.integers(0, 3)) > 0
        if kept and mostly:
            return data.draw(st.sampled_from(kept))
        return data.draw(st.integers(BEFORE_ALL, self.written + 1))

    @rule(request_id=st.sampled_from([None, None, "r1", "r2"]))
    def offer(self, request_id: str | None) -> None:
        number, self.written = self.written, self.written + 1
        new = Event(event_id=id_of(number), stream_id="s", timestamp_us=0, body=BODY)
        answer = self.channel.offer(new, now=self.now, request_id=request_id)
        record = self.model.offer(number, request_id, self.now)
        if record not in self.model.waiting:
            assert answer == id_of(record.number)
            self.taken_in.add(record.number)
        else:
            assert isinstance(answer, Waiter)
            assert answer.event.id == id_of(record.number)
            assert all(
                (writer.waiter is answer) == (writer.record is record) for writer in self.writers
            )
            writer = Writer(record, answer, partial(self.told.append, answer))
            answer.join(writer.told)
            self.writers.append(writer)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        writer = self.writers.pop(data.draw(st.integers(0, len(self.writers) - 1)))
        self.channel.withdraw(writer.waiter, writer.told)
        if all(other.record is not writer.record for other in self.writers):
            self.model.withdraw(writer.record)
        assert writer.waiter.accepted is None

    def start_reading(self, options: ReadOptions, cursor: int | None) -> None:
        old = self.open
        if old and not options.take_over:
            with pytest.raises(ReaderBusy):
                self.channel.lease(options, self.now)
            return
        self.woken = False
        if cursor is not None and (at := self.model.find(cursor)):
            self.passed_over |= {r.number for r in self.model.kept if r.number <= at.number}
        self.open = self.channel.lease(options, self.now)
        self.open.on_ready = self.wake
        assert self.open.recovered is self.model.lease(options, cursor, self.now)
        assert self.open.cursor == id_of(self.model.position())
        assert self.open.is_open
        if old:
            assert self.woken
            assert not old.is_open
            self.old_leases.append(old)
        self.sleeps = False

    @rule(options=options)
    def lease(self, options: ReadOptions) -> None:
        self.start_reading(options, None)

    @rule(options=options, data=st.data())
    def resume(self, options: ReadOptions, data: st.DataObject) -> None:
        cursor = self.any_event(data)
        self.start_reading(replace(options, cursor=id_of(cursor)), cursor)

    def take_up_to(self, limit: int) -> list[int]:
        assert self.open is not None
        batch = self.open.take(limit, 1_000_000, self.now)
        taken = [int(event.id[1:]) for event in batch.events] if batch else []
        assert len(taken) <= limit
        assert taken == sorted(set(taken))
        expected, again = self.model.take(limit, self.now)
        assert taken == expected
        assert (batch.redelivered if batch else 0) == again
        self.handed_out.update(taken)
        self.sleeps, self.woken = not taken, False
        return taken

    @precondition(lambda self: self.open)
    @rule(limit=sizes)
    def take(self, limit: int) -> None:
        self.take_up_to(limit)

    @precondition(lambda self: self.open)
    @rule(limit=sizes)
    def take_until_nothing_comes(self, limit: int) -> None:
        while self.take_up_to(limit):
            pass

    @precondition(lambda self: self.open)
    @rule()
    def confirm(self) -> None:
        assert self.open is not None
        self.open.confirm(self.now)
        self.model.confirm(self.now)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        number = self.any_event(data)
        acknowledged = self.channel.acknowledge(id_of(number), self.now)
        assert acknowledged == self.model.acknowledge(number, self.now)

    @precondition(lambda self: self.open)
    @rule(clean=st.booleans())
    def release(self, clean: bool) -> None:
        assert self.open is not None
        self.open.release(clean=clean, now=self.now)
        assert not self.open.is_open
        self.model.release(clean, self.now)
        self.old_leases.append(self.open)
        self.open = None

    @precondition(lambda self: self.old_leases)
    @rule(clean=st.booleans(), data=st.data())
    def use_an_old_lease(self, clean: bool, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.old_leases))
        assert old.take(5, 1_000_000, self.now) is None
        old.release(clean=clean, now=self.now)

    @rule()
    def drop_replay(self) -> None:
        self.channel.drop_replay(self.now)
        self.model.drop_replay(self.now)

    @rule(step_s=st.sampled_from(STEPS_S))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def waiters_are_let_in_as_they_came(self) -> None:
        let_in = [writer for writer in self.writers if writer.record not in self.model.waiting]
        assert self.told == self.waiters_to_be_told(let_in)
        assert all(waiter.accepted is True for waiter in self.told)
        self.told.clear()
        self.taken_in.update(writer.record.number for writer in let_in)
        self.writers = [writer for writer in self.writers if writer not in let_in]
        assert all(writer.waiter.accepted is None for writer in self.writers)

    def waiters_to_be_told(self, writers: list[Writer]) -> list[Waiter]:
        """One for each writer, in the order in which their events were offered."""
        return [writer.waiter for writer in sorted(writers, key=lambda w: w.record.number)]

    @invariant()
    def waiters_are_as_many_as_the_model_has(self) -> None:
        assert self.channel.waiting_writers == len(self.model.waiting)

    @invariant()
    def a_reader_that_found_nothing_is_woken_when_there_is_something(self) -> None:
        if self.open and self.sleeps and self.model.offered(1):
            assert self.woken

    @invariant()
    def places_are_never_more_than_the_capacity(self) -> None:
        assert self.model.placed() <= self.model.capacity
        assert not self.model.waiting or self.model.placed() == self.model.capacity

    @invariant()
    def what_the_next_reader_gets_is_known(self) -> None:
        assert self.channel.is_read is (self.open is not None)
        if self.open is None:
            assert self.channel.unsent == len(self.model.in_state(State.READY))

    @invariant()
    def what_it_holds_counts(self) -> None:
        holders = len(self.model.kept) + len(self.model.waiting)
        events = holders * (ENTRY_BYTES + EVENT_BYTES + len(BODY))
        keys = self.budget.used - CHANNEL_BYTES - events
        assert keys in [number * (KEY_BYTES + 2) for number in range(3)]

    @invariant()
    def it_dies_at_its_deadline_and_never_while_read(self) -> None:
        assert self.channel.deadline == self.model.dies_at
        assert (self.channel.deadline is None) is (self.open is not None)

    def teardown(self) -> None:
        {"drain": self.drain, "replay": self.replay, "close": self.close}[self.ending]()

    def drain(self) -> None:
        """Nothing was lost: what was accepted is sent, unless a cursor had gone past it."""
        self.start_reading(ReadOptions(acknowledge=True, take_over=True), None)
        while taken := self.take_up_to(3):
            acknowledged = self.channel.acknowledge(id_of(taken[-1]), self.now)
            assert acknowledged == self.model.acknowledge(taken[-1], self.now)
            self.waiters_are_let_in_as_they_came()
        assert self.writers == []
        assert self.channel.close() == 0
        assert self.taken_in <= self.handed_out | self.passed_over
        assert self.handed_out <= self.taken_in

    def replay(self) -> None:
        """All that is kept is what the model keeps."""
        nowhere = self.written + 1
        options = ReadOptions(id_of(nowhere), acknowledge=True, take_over=True)
        self.start_reading(options, nowhere)
        assert self.take_up_to(100) == [record.number for record in self.model.kept]

    def close(self) -> None:
        self.woken = False
        assert self.channel.close() == self.model.lost()
        assert self.told == self.waiters_to_be_told(self.writers)
        assert all(waiter.accepted is False for waiter in self.told)
        if self.open:
            assert self.woken
            assert not self.open.is_open
            assert self.open.take(5, 1_000_000, self.now) is None
            self.open.release(clean=False, now=self.now)
        assert self.budget.used == 0
        assert (self.channel.is_read, self.channel.unsent) == (False, 0)
        assert self.channel.waiting_writers == 0


TestChannelMachine = ChannelMachine.TestCase
TestChannelMachine.settings = settings(
    max_examples=300 if IS_LONG else 100,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)
