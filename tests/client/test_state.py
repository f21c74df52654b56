"""The rules of a read: what is asked for next, what is new, how long to wait."""

from typing import Any

import pytest

from megaphone_client.errors import (
    BadRequest,
    ChannelNotFound,
    ConnectionFailed,
    LimitExceeded,
    MegaphoneError,
    PermissionDenied,
    ReaderBusy,
    TooSlow,
    Unavailable,
)
from megaphone_client.events import Arrived, Event
from megaphone_client.state import Backoff, Prefix, ReadState

CONSUMER = "node.x.1"


class Nobody:
    """An owner that no test asks anything."""

    def dealt(self, event: Event[Any]) -> None:
        raise AssertionError

    async def acknowledge(self, event: Event[Any]) -> None:
        raise AssertionError


def arrived(*names: str, stream: str = "s") -> list[Arrived]:
    return [(stream, name, 0, b"1", None) for name in names]


def receive(state: ReadState, *names: str, stream: str = "s", now: float = 0.0) -> list[Event[Any]]:
    return state.received(arrived(*names, stream=stream), bytes, Nobody(), now)


def names(events: list[Event[Any]]) -> list[str]:
    return [event.id for event in events]


def state_of(**options: Any) -> ReadState:
    return ReadState(CONSUMER, random=lambda: 1.0, **options)


# -- What is asked for


def test_the_first_read_names_no_cursor_and_takes_nothing_over() -> None:
    ask = state_of().ask()
    assert (ask.after, ask.acknowledges, ask.takes_over) == (None, True, False)


def test_a_given_cursor_is_named_at_once() -> None:
    assert state_of(after="e7").ask().after == "e7"


def test_the_next_read_begins_behind_what_is_dealt_with() -> None:
    state = state_of()
    state.opened(None, None)
    first, _ = receive(state, "e1", "e2")
    state.dealt(first, 0.0)
    ask = state.ask()
    assert (ask.after, ask.takes_over) == ("e1", True)


def test_without_acknowledging_it_begins_behind_what_came() -> None:
    state = state_of(acknowledges=False)
    state.opened(None, None)
    state.dealt(receive(state, "e1", "e2")[0], 0.0)
    assert state.ask().after == "e2"
    assert state.cursor == "e1"


def test_a_read_that_broke_before_its_first_event_resumes_at_its_position() -> None:
    for acknowledges in (True, False):
        state = state_of(acknowledges=acknowledges)
        state.opened(None, "e9")
        assert state.ask().after == "e9"


def test_a_read_that_was_never_answered_takes_nothing_over() -> None:
    state = state_of()
    state.ask()
    state.wait_s(ConnectionFailed("no"), 0.0)
    assert not state.ask().takes_over


def test_the_limit_counts_what_came() -> None:
    state = state_of(limit=3, acknowledges=False)
    assert state.ask().limit == 3
    receive(state, "e1", "e2")
    assert (state.ask().limit, state.is_finished) == (1, False)
    receive(state, "e2", "e3")
    assert state.is_finished


def test_the_limit_leaves_room_for_what_comes_again() -> None:
    state = state_of(limit=10)
    events = receive(state, *(f"e{number}" for number in range(6)))
    assert state.ask().limit == 10
    state.dealt(events[3], 0.0)
    assert (state.ask().after, state.ask().limit) == ("e3", 6)


# -- After a clean end


def test_the_next_read_begins_at_once() -> None:
    state = state_of()
    for lasted_s in (0.1, 20.0):
        state.ask()
        assert state.ended(lasted_s) == 0.0
    state.ask()
    receive(state, "e1")
    assert state.ended(0.0) == 0.0


def test_but_not_if_each_ends_at_once_and_brings_nothing_new() -> None:
    state = state_of()
    receive(state, "e1")
    rests = []
    for _ in range(7):
        state.ask()
        receive(state, "e1")
        rests.append(state.ended(0.01))
    assert rests == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    state.ask()
    assert state.ended(1.0) == 0.0
    state.ask()
    assert state.ended(0.01) == 0.1


def test_the_rest_is_never_shorter_than_that() -> None:
    assert ReadState(CONSUMER, random=lambda: 0.0).ended(0.0) == 0.1


# -- What is new


def test_a_repeat_is_dropped() -> None:
    state = state_of()
    assert names(receive(state, "e1", "e2")) == ["e1", "e2"]
    assert names(receive(state, "e1", "e2", "e3")) == ["e3"]


def test_the_last_thousand_ids_are_remembered() -> None:
    state = state_of()
    ids = [f"e{number}" for number in range(2_500)]
    for at in range(0, len(ids), 100):
        receive(state, *ids[at : at + 100])
    assert receive(state, *ids[-1_000:]) == []


def test_a_gap_is_reported_once() -> None:
    state = state_of(after="unknown")
    assert state.opened(False, "e4")
    assert state.ask().after == "e4"
    assert not state.opened(True, "e4")


# -- Streams that nobody wants


def test_the_broker_is_asked_for_some_streams_only_where_that_is_no_gap() -> None:
    assert state_of(streams=["b", "a"]).ask().streams == ("a", "b")
    assert state_of(streams=["a"], acknowledges=False).ask().streams == ()
    assert state_of(streams=map(str, range(101))).ask().streams == ()


def test_what_is_acknowledged_of_some_streams_needs_no_cursor() -> None:
    state = state_of(streams=["a"], after="e0")
    assert state.ask().after == "e0"
    state.opened(True, "e0")
    state.dealt(receive(state, "e1", stream="a")[0], 0.0)
    assert state.ask().after == "e1"
    state.opened(True, "e1")
    assert state.ask().after is None


def test_an_unwanted_event_is_dealt_with_when_the_one_before_it_is() -> None:
    state = state_of(streams=["a"])
    [wanted] = receive(state, "e1", stream="a")
    assert receive(state, "e2", "e3", stream="b") == []
    assert state.cursor is None
    state.dealt(wanted, 0.0)
    assert state.cursor == "e3"


def test_without_one_before_it_an_unwanted_event_is_dealt_with_at_once() -> None:
    state = state_of(streams=["a"])
    receive(state, "e1", stream="b", now=5.0)
    assert state.cursor == "e1"
    assert state.ack_at() == 6.0
    [wanted] = receive(state, "e2", stream="a")
    state.dealt(wanted, 0.0)
    receive(state, "e3", stream="b")
    assert state.cursor == "e3"


# -- After a failure


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ChannelNotFound("NOT_FOUND", ""), True),
        (BadRequest("BAD_REQUEST", ""), True),
        (PermissionDenied("PERMISSION_DENIED", ""), True),
        (MegaphoneError("HTTP_418", ""), True),
        (Unavailable("MOVED", ""), False),
        (Unavailable("NEW_CODE", ""), False),
        (LimitExceeded("LIMIT_EXCEEDED", ""), False),
        (TooSlow("TOO_SLOW", ""), False),
        (ConnectionFailed("no"), False),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_the_code_decides_whether_a_read_goes_on(error: MegaphoneError, ends: bool) -> None:
    assert (state_of().wait_s(error, 0.0) is None) == ends


def test_pauses_double_up_to_half_a_minute() -> None:
    backoff = Backoff(lambda: 1.0)
    pauses = [backoff.next_s() for _ in range(12)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 30.0
    backoff.reset()
    assert backoff.next_s() == 0.1


def test_a_pause_is_a_random_part_but_not_less_than_the_broker_asks_for() -> None:
    backoff = Backoff(lambda: 0.25)
    assert backoff.next_s() == 0.025
    assert backoff.next_s(at_least_s=10.0) == 10.0


def test_bytes_end_the_series_of_failures() -> None:
    state = state_of()
    for _ in range(5):
        state.wait_s(ConnectionFailed("no"), 0.0)
    state.alive()
    assert state.wait_s(ConnectionFailed("no"), 0.0) == 0.1


def test_a_first_read_waits_half_a_minute_for_another_reader() -> None:
    state = state_of()
    busy = ReaderBusy("BUSY", "")
    assert state.wait_s(busy, 100.0) is not None
    assert state.wait_s(busy, 129.9) is not None
    assert state.wait_s(busy, 130.0) is None


def test_a_reader_that_has_read_waits_for_ever() -> None:
    state = state_of()
    state.opened(None, None)
    busy = ReaderBusy("BUSY", "")
    assert state.wait_s(busy, 0.0) is not None
    assert state.wait_s(busy, 1_000.0) is not None


def test_a_connection_is_dead_after_two_and_a_half_heartbeats() -> None:
    assert state_of(heartbeat_s=4.0).silence_s == 10.0


# -- Acknowledging


def test_an_acknowledgement_is_due_a_second_after_the_first_event() -> None:
    state = state_of()
    first, second = receive(state, "e1", "e2")
    assert state.ack_at() is None
    state.dealt(first, 10.0)
    state.dealt(second, 10.9)
    assert state.ack_at() == 11.0


def test_or_at_once_for_fifty_events() -> None:
    state = state_of()
    events = receive(state, *(f"e{number}" for number in range(60)))
    for event in events[:50]:
        state.dealt(event, 10.0)
    assert state.ack_at() == 10.0


def test_what_is_dealt_with_during_an_acknowledgement_waits_for_the_next() -> None:
    state = state_of()
    first, second = receive(state, "e1", "e2")
    state.dealt(first, 0.0)
    assert state.begin_ack(1.0) == ("e1", 1)
    assert state.ack_at() is None
    state.dealt(second, 1.5)
    assert state.ack_at() == 2.5
    state.end_ack(1, is_known=True)
    assert state.ack_at() == 2.5
    assert state.is_known(first)
    assert not state.is_known(second)


def test_what_the_broker_did_not_hear_stays_due() -> None:
    state = state_of()
    [event] = receive(state, "e1")
    state.dealt(event, 0.0)
    _, number = state.begin_ack(1.0)
    state.end_ack(number, is_known=False)
    assert state.ack_at() == 2.0


def test_the_cursor_of_a_read_acknowledges_too() -> None:
    state = state_of()
    [event] = receive(state, "e1")
    state.dealt(event, 0.0)
    state.ask()
    assert state.ack_at() == 1.0
    state.opened(True, None)
    assert state.ack_at() is None


def test_an_older_event_takes_nothing_back() -> None:
    state = state_of()
    first, second = receive(state, "e1", "e2")
    state.dealt(second, 0.0)
    state.dealt(first, 0.0)
    assert state.cursor == "e2"


def test_a_display_acknowledges_nothing() -> None:
    state = state_of(acknowledges=False)
    state.dealt(receive(state, "e1")[0], 0.0)
    assert state.ack_at() is None


# -- Streams that are read apart


def test_acknowledged_is_the_longest_prefix_of_all_streams() -> None:
    state, prefix = state_of(), Prefix()
    a1, a2 = receive(state, "a1", "a2", stream="a")
    [b1] = receive(state, "b1", stream="b")
    [a3] = receive(state, "a3", stream="a")
    for event in (a1, a2, b1, a3):
        prefix.add(event)
    assert prefix.deal(b1) is None
    assert prefix.deal(a1) is a1
    assert prefix.deal(a2) is b1
    assert prefix.deal(a2) is None
    assert prefix.deal(a3) is a3


def test_the_events_of_a_stream_up_to_one() -> None:
    state, prefix = state_of(), Prefix()
    [a1] = receive(state, "a1", stream="a")
    [b1] = receive(state, "b1", stream="b")
    a2, a3 = receive(state, "a2", "a3", stream="a")
    for event in (a1, b1, a2, a3):
        prefix.add(event)
    assert prefix.up_to(a2) == [a1, a2]
    prefix.deal(a1)
    assert prefix.up_to(a2) == [a2]
    assert prefix.up_to(a1) == []
