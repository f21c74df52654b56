"""Events as lines of JSON, as readers over HTTP get them.

Existing clients fix the names and the order of the members. The module stands apart from
`wire.json`, because a line is made for each event, and the classes of msgspec that are there cannot
be compiled.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from megaphone.model import LINE_BODY_BYTES, Event

SECONDS_REMEMBERED = 10
"""Events that are sent now have mostly the time of the last seconds."""
STREAM_IDS_REMEMBERED = 1_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END: Final = b"}\n"
"""The end of a line."""
encode = msgspec.json.Encoder().encode


def timestamp(microseconds: int) -> str:
    """Return a time as RFC 3339 in UTC, to the microsecond."""
    second, rest = divmod(microseconds, 1_000_000)
    return f"{up_to_second(second).decode()}.{rest:06}Z"


@lru_cache(SECONDS_REMEMBERED)
def up_to_second(second: int) -> bytes:
    return (EPOCH + timedelta(seconds=second)).isoformat().removesuffix("+00:00").encode()


def event_line(event: Event) -> bytes:
    """Return an event as one line. The event keeps the line while it has a place in more than one
    channel."""
    if event.rendered is not None:
        return event.rendered
    line = line_of(event, from_id_to_body(event.timestamp_us))
    if event.awaited > 1:
        event.rendered = line
    return line


def line_of(event: Event, between: bytes) -> bytes:
    """Return an event as one line. `between` is what `from_id_to_body` returns for its time."""
    return b"".join((before_id(event.stream_id), event.id.encode(), between, event.body, END))


def before_body(event: Event) -> bytes:
    return before_id(event.stream_id) + event.id.encode() + from_id_to_body(event.timestamp_us)


@lru_cache(STREAM_IDS_REMEMBERED)
def before_id(stream_id: str) -> bytes:
    return b'{"sid":%b,"eid":"' % encode(stream_id)


def from_id_to_body(timestamp_us: int) -> bytes:
    second, rest = divmod(timestamp_us, 1_000_000)
    return b'","ts":"%b.%06dZ","body":' % (up_to_second(second), rest)


def line_parts(event: Event) -> tuple[bytes, ...]:
    """Return the line of an event in parts. The body of a large event is not copied."""
    if len(event.body) <= LINE_BODY_BYTES:
        return (event_line(event),)
    return before_body(event), event.body, END


def event_lines(events: Sequence[Event]) -> list[bytes]:
    """Return the lines of some events in parts."""
    parts: list[bytes] = []
    timestamp_us, between = -1, b""
    for event in events:
        if event.awaited > 1 or len(event.body) > LINE_BODY_BYTES:
            parts += line_parts(event)
            continue
        if event.timestamp_us != timestamp_us:  # the events of one batch have the same
            timestamp_us = event.timestamp_us
            between = from_id_to_body(timestamp_us)
        parts.append(line_of(event, between))
    return parts
