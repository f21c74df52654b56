"""Events as lines of JSON, as readers over HTTP get them.

Existing clients fix the names and the order of the members. The module stands apart from
`wire.json`, because a line is made for each event, and the classes of msgspec that are there cannot
be compiled.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from megaphone.model import LINE_BODY_BYTES, Event

SECONDS_REMEMBERED = 10
"""Events that are sent now have mostly the time of the last seconds."""
STREAM_IDS_REMEMBERED = 1_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
    second, rest = divmod(event.timestamp_us, 1_000_000)
    line = b'{"sid":%b,"eid":"%b","ts":"%b.%06dZ","body":%b}\n' % (
        quoted(event.stream_id),
        event.id.encode(),
        up_to_second(second),
        rest,
        event.body,
    )
    if event.awaited > 1:
        event.rendered = line
    return line


def before_body(event: Event) -> bytes:
    return b'{"sid":%b,"eid":"%b","ts":"%b","body":' % (
        quoted(event.stream_id),
        event.id.encode(),
        timestamp(event.timestamp_us).encode(),
    )


@lru_cache(STREAM_IDS_REMEMBERED)
def quoted(stream_id: str) -> bytes:
    """Return a stream id as JSON."""
    return encode(stream_id)


def line_parts(event: Event) -> tuple[bytes, ...]:
    """Return the line of an event in parts. The body of a large event is not copied."""
    if len(event.body) <= LINE_BODY_BYTES:
        return (event_line(event),)
    return before_body(event), event.body, b"}\n"


def event_lines(events: Sequence[Event]) -> list[bytes]:
    """Return the lines of some events in parts."""
    parts: list[bytes] = []
    for event in events:
        if len(event.body) <= LINE_BODY_BYTES:
            parts.append(event.rendered or event_line(event))
        else:
            parts += line_parts(event)
    return parts
