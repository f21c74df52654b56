"""How events are kept in Redis: nodes of different versions read what the others wrote."""

import msgspec
import pytest

from megaphone.model import Event
from megaphone.store.redis.encoding import decoded, encoded, timestamp_in

MEMBERS = ("e1", "s", 1_700_000_000_123_456, b"[1]")
CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"


def members(event: Event) -> tuple[object, ...]:
    return event.id, event.stream_id, event.timestamp_us, event.body, event.trace


def test_an_event_without_a_context_is_kept_as_it_always_was() -> None:
    assert msgspec.msgpack.decode(encoded(Event(*MEMBERS))) == list(MEMBERS)
    assert members(decoded(msgspec.msgpack.encode(MEMBERS))) == (*MEMBERS, None)


def test_an_event_keeps_its_context() -> None:
    assert members(decoded(encoded(Event(*MEMBERS, CONTEXT)))) == (*MEMBERS, CONTEXT)


def test_what_a_later_version_adds_is_ignored() -> None:
    later = msgspec.msgpack.encode((*MEMBERS, CONTEXT, {"more": 1}))
    assert members(decoded(later)) == (*MEMBERS, CONTEXT)


@pytest.mark.parametrize("size", [1, 31, 32, 255, 256, 1_024])
def test_the_time_of_an_event_is_found_without_its_body(size: int) -> None:
    event = Event("e1", "s" * size, 1_700_000_000_123_456, b"[1]")
    head, found, _ = encoded(event).partition(b"[1]")
    assert found
    assert timestamp_in(head) == event.timestamp_us
