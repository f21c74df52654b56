"""The log of a channel: each rule by example, and all of them against a model that keeps flags.

Events go by single letters in the examples, so that `"abc"` stands for three in the order of
writing.
"""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from megaphone.core.budget import ENTRY_BYTES, EVENT_BYTES, Budget
from megaphone.core.log import EVENT_OVERHEAD_BYTES, INDEXED_FROM, SEARCHED, Batch, Log
from megaphone.model import START, Event, Progress
from tests.support.settings import IS_LONG, limits

MANY = 1_000_000
FAR = 3 * SEARCHED


def event(name: str) -> Event:
    return Event(name, "s", 0, b"{}")


def holding(letters: str = "", *, capacity: int = 3, epoch: int = 7) -> Log:
    log = Log(limits(capacity=capacity), epoch, Budget())
    for letter in letters:
        log.append(event(letter))
    return log


def take(log: Log, limit: int = MANY, max_bytes: int = MANY) -> str:
    batch = log.take(limit, max_bytes)
    return "".join(event.id for event in batch.events) if batch else ""


def redelivered(log: Log) -> int:
    batch = log.take(MANY, MANY)
    return batch.redelivered if batch else 0


def kept(log: Log) -> str:
    return "".join(event.id for event in log.after(0, MANY)[1])


def long_log(count: int) -> Log:
    """Return a log of many events, named by their offsets."""
    log = holding(capacity=count)
    for offset in range(1, count + 1):
        log.append(event(f"e{offset}"))
    return log


# Offsets


def test_a_new_log_is_empty() -> None:
    log = holding()
    assert (log.dropped, log.delivered, log.sent, log.end, log.held) == (0, 0, 0, 0, 0)
    assert log.before_first == START
    assert take(log) == ""


def test_offsets_count_from_one() -> None:
    log = holding("abc")
    assert [log.find(letter) for letter in "abc"] == [1, 2, 3]
    assert [log.id_at(offset) for offset in (0, 1, 2, 3)] == [START, "a", "b", "c"]


def test_a_batch_names_its_place_in_the_log() -> None:
    log = holding("abc")
    log.take(1, MANY)
    batch = log.take(MANY, MANY)
    assert batch == Batch(7, 2, batch.events if batch else [], 0)
    assert take(log) == ""


def test_offsets_stay_when_events_are_dropped() -> None:
    log = holding("abcdef")
    take(log)
    log.deliver(5)
    assert (kept(log), log.dropped, log.before_first) == ("cdef", 2, "b")
    assert [log.find(letter) for letter in "abcdef"] == [None, None, 3, 4, 5, 6]
    assert log.after(0, 2)[0] == log.after(2, 2)[0] == 3
    assert [event.id for event in log.after(3, 2)[1]] == ["d", "e"]
    assert log.after(6, 2) == (7, [])
    assert log.id_at(1) == log.id_at(2) == "b"


def test_a_cursor_may_name_what_was_dropped_last() -> None:
    log = holding("abcde")
    assert log.find_cursor(START) == 0
    log.deliver(5)
    assert [log.find_cursor(name) for name in ("a", "b", "c", START)] == [None, 2, 3, None]


@pytest.mark.parametrize("count", [1, INDEXED_FROM, INDEXED_FROM + 1, SEARCHED, FAR])
def test_an_event_is_found_wherever_it_is(count: int) -> None:
    log = long_log(count)
    assert [log.find(f"e{offset}") for offset in range(1, count + 1)] == [*range(1, count + 1)]
    assert log.find("e0") is None
    assert log.find(f"e{count + 1}") is None


@pytest.mark.parametrize("count", [1, INDEXED_FROM, INDEXED_FROM + 1, FAR])
def test_what_is_kept_is_known_by_its_id(count: int) -> None:
    log = long_log(count)
    assert not log.has("e0")
    assert log.has("e1")
    log.append(event("new"))
    assert log.has("new")
    log.deliver(log.end)
    log.drop_to(log.end)
    assert not log.has("new")


def test_an_event_far_from_where_the_reader_is_is_found() -> None:
    log = long_log(FAR)
    log.deliver(FAR)
    assert log.find("e1") == 1
    log.append(event("new"))
    assert log.find("new") == FAR + 1
    log.deliver(FAR + 1)
    assert log.find("e1") is None
    assert log.find("e2") == 2


# Taking


def test_take_stops_at_its_limit() -> None:
    log = holding("abc")
    assert [take(log, 2), take(log, 2), take(log, 2)] == ["ab", "c", ""]


def test_take_stops_at_the_bytes_but_returns_one_event_at_least() -> None:
    log = holding("abcd")
    assert take(log, max_bytes=2 * EVENT_OVERHEAD_BYTES + 4) == "ab"
    assert take(log, max_bytes=2 * EVENT_OVERHEAD_BYTES + 3) == "c"
    assert take(log, max_bytes=1) == "d"


@pytest.mark.parametrize("limit", [0, -1])
def test_without_a_limit_nothing_is_taken(limit: int) -> None:
    log = holding("abc")
    take(log, 1)
    assert take(log, limit) == ""
    assert log.sent == 1


def test_what_is_in_flight_can_be_taken_back() -> None:
    log = holding("abc")
    take(log, 2)
    log.deliver(1)
    log.take_back()
    assert redelivered(log) == 1


def test_what_a_cursor_passed_over_was_never_sent() -> None:
    log = holding("abc")
    log.rewind(2)
    assert take(log) == "c"
    assert [log.was_sent(offset) for offset in (1, 2, 3, 4)] == [False, False, True, False]
    log.rewind(0)
    assert redelivered(log) == 1
    assert log.was_sent(1)


# Places


def test_delivered_events_give_their_places_back() -> None:
    log = holding("abc")
    log.deliver(2)
    assert (log.held, log.freed) == (1, 2)
    log.deliver(1)
    assert log.delivered == 2


def test_an_event_gets_no_place_back() -> None:
    log = holding("abc")
    log.deliver(3)
    log.rewind(0)
    assert (log.held, log.delivered, take(log)) == (0, 0, "abc")


def test_delivered_events_beyond_the_capacity_are_dropped() -> None:
    log = holding("abcdefg")
    log.deliver(5)
    assert kept(log) == "cdefg"
    log.deliver(7)
    assert kept(log) == "efg"


def test_an_evicted_event_is_kept_and_passed_over() -> None:
    log = holding("abc")
    assert log.evict_oldest()
    assert (kept(log), log.sent, log.delivered, log.has_gap) == ("abc", 1, 1, True)
    assert take(log) == "bc"


def test_an_evicted_event_that_was_sent_is_not_lost() -> None:
    log = holding("abc")
    take(log, 1)
    assert not log.evict_oldest()
    assert not log.has_gap
    log.take_back()
    log.rewind(0)
    log.count_as_sent(2)
    assert not log.evict_oldest()
    assert log.has_gap


def test_skipping_drops_all_and_goes_on_after_an_event_of_another_log() -> None:
    log = holding("abc")
    log.skip_to("x")
    assert (kept(log), log.before_first, log.held, log.end) == ("", "x", 0, 3)
    log.append(event("d"))
    assert log.find("d") == 4
    log.skip_to(START)
    assert log.before_first == START


def test_what_is_lost_was_never_sent() -> None:
    log = holding("abcd")
    take(log, 2)
    log.take_back()
    assert log.clear() == 2
    assert (kept(log), log.held) == ("", 0)


# Replication


def test_what_was_sent_elsewhere_includes_all_before_it() -> None:
    log = holding("abcd")
    log.count_as_sent(2)
    assert [log.was_sent(offset) for offset in (1, 2, 3)] == [True, True, False]
    assert log.highest_sent == 2


def test_what_was_sent_elsewhere_goes_back_to_what_is_known() -> None:
    log = holding("abcde")
    take(log, 1)
    log.rewind(3)
    take(log)
    assert [log.was_sent(offset) for offset in (1, 2, 3, 4)] == [True, False, False, True]
    log.count_as_sent(2)
    assert [log.was_sent(offset) for offset in (1, 2, 3, 4)] == [True, True, False, True]


def test_progress_is_told_in_terms_of_the_events_up_to_an_offset() -> None:
    log = holding("abc")
    take(log, 2)
    log.deliver(1)
    log.set_gap(True)
    assert [log.progress(offset) for offset in (0, 1, 2, 3)] == [
        Progress(START, START, True),
        Progress("a", "a", True),
        Progress("a", "b", True),
        Progress("a", "b", True),
    ]


# Against a model


@dataclass(eq=False)
class Record:
    """An event, with a flag for each thing that offsets say in the log."""

    offset: int
    is_sent: bool = False
    has_place: bool = True

    @property
    def name(self) -> str:
        return f"e{self.offset}"


class Model:
    """A list that is searched and copied."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.records: list[Record] = []
        self.end = self.delivered = self.sent = self.dropped = self.highest = 0
        self.has_gap = False

    def backlog(self) -> list[Record]:
        return [record for record in self.records if record.offset > self.sent]

    def free(self, offset: int) -> None:
        for record in self.records:
            record.has_place = record.has_place and record.offset > offset
        self.drop(self.delivered - self.capacity)

    def drop(self, offset: int) -> None:
        self.records = [record for record in self.records if record.offset > offset]
        self.dropped = max(self.dropped, offset)
        self.delivered = max(self.delivered, self.dropped)

    def take(self, limit: int) -> tuple[list[str], int]:
        taken = self.backlog()[:limit]
        again = sum(record.is_sent for record in taken)
        for record in taken:
            record.is_sent = True
            self.sent = record.offset
            self.highest = max(self.highest, record.offset)
        return [record.name for record in taken], again

    def evict(self) -> bool:
        oldest = next(record for record in self.records if record.has_place)
        lost = False
        if oldest.offset > self.sent:
            lost = not oldest.is_sent
            self.delivered = self.sent = oldest.offset
            self.has_gap = True
        self.free(oldest.offset)
        return lost

    def count_as_sent(self, offset: int) -> None:
        self.highest = max(self.highest, offset)
        for record in reversed([record for record in self.records if record.offset <= offset]):
            if record.is_sent:
                break
            record.is_sent = True


class LogMachine(RuleBasedStateMachine):
    @initialize(capacity=st.sampled_from([1, 2, 3, 100, 1_000]))
    def start(self, capacity: int) -> None:
        self.budget = Budget()
        self.log = Log(limits(capacity=capacity), 0, self.budget)
        self.model = Model(capacity)

    def any_offset(self, data: st.DataObject) -> int:
        return data.draw(st.integers(self.model.dropped, self.model.end))

    @rule(count=st.sampled_from([1, 1, 2, 3, 40, 150]))
    def append(self, count: int) -> None:
        for _ in range(count):
            self.model.end += 1
            record = Record(self.model.end)
            self.model.records.append(record)
            self.log.append(event(record.name))

    @rule(limit=st.sampled_from([0, 1, 2, 3, 50, 200]))
    def take(self, limit: int) -> None:
        batch = self.log.take(limit, MANY)
        taken = [event.id for event in batch.events] if batch else []
        assert (taken, batch.redelivered if batch else 0) == self.model.take(limit)
        if batch:
            assert f"e{batch.first_offset}" == taken[0]

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        offset = self.any_offset(data)
        self.log.deliver(offset)
        if offset > self.model.delivered:
            self.model.delivered = offset
            self.model.sent = max(self.model.sent, offset)
            self.model.free(offset)

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        offset = self.any_offset(data)
        self.log.rewind(offset)
        self.model.delivered = self.model.sent = offset
        self.model.free(offset)

    @rule()
    def take_back(self) -> None:
        self.log.take_back()
        self.model.sent = self.model.delivered

    @precondition(lambda self: self.log.held)
    @rule()
    def evict_oldest(self) -> None:
        assert self.log.evict_oldest() is self.model.evict()

    @precondition(lambda self: self.model.records)
    @rule(data=st.data())
    def count_as_sent(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.model.records)).offset
        self.log.count_as_sent(offset)
        self.model.count_as_sent(offset)

    @rule(data=st.data())
    def drop_to(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.model.delivered))
        self.log.drop_to(offset)
        self.model.drop(min(offset, self.model.delivered))

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.model.end + 1))
        name = f"e{offset}"
        is_kept = self.model.dropped < offset <= self.model.end
        assert self.log.find(name) == (offset if is_kept else None)
        assert self.log.has(name) is is_kept

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        offset, limit = data.draw(st.integers(0, self.model.end)), data.draw(st.integers(1, 5))
        after = [record for record in self.model.records if record.offset > offset]
        first, events = self.log.after(offset, limit)
        assert [event.id for event in events] == [record.name for record in after[:limit]]
        assert first == max(offset, self.model.dropped) + 1

    @invariant()
    def the_cuts_are_where_the_model_has_them(self) -> None:
        log, model = self.log, self.model
        assert (log.dropped, log.delivered, log.sent) == (
            model.dropped,
            model.delivered,
            model.sent,
        )
        assert (log.end, log.highest_sent, log.has_gap) == (model.end, model.highest, model.has_gap)
        assert log.held == sum(record.has_place for record in model.records)

    @invariant()
    def every_event_is_as_the_model_has_it(self) -> None:
        assert [event.id for event in self.log.after(0, MANY)[1]] == [
            record.name for record in self.model.records
        ]
        assert all(
            self.log.was_sent(record.offset) is record.is_sent for record in self.model.records
        )

    @invariant()
    def what_it_keeps_counts(self) -> None:
        each = ENTRY_BYTES + EVENT_BYTES + len(event("").body)
        assert self.budget.used == len(self.model.records) * each

    def teardown(self) -> None:
        lost = sum(not record.is_sent for record in self.model.backlog())
        assert self.log.clear() == lost
        assert self.budget.used == 0


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(
    max_examples=150 if IS_LONG else 50,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_take_frees_the_places_behind_those_that_were_evicted_after_it_began() -> None:
    log = Log(limits(capacity=3), 0, Budget())
    for letter in "abc":
        log.append(event(letter))
    log.take(1, 1_000_000)
    log.evict_oldest()
    log.take_back()
    log.rewind(0)
    log.take(3, 1_000_000, deliver=True)
    assert (log.held, log.freed) == (0, 3)
