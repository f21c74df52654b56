"""Events as lines of JSON, as readers over HTTP get them.

Existing clients fix the names and the order of the members. The module stands apart from
`wire.json`, because a line is made for each event, and the classes of msgspec that are there cannot
be compiled.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from megaphone.model import LINE_BODY_BYTES, ChannelBegun, ChannelDone, ChannelEvents, Event, Part

SECONDS_REMEMBERED = 10
"""Events that are sent now have mostly the time of the last seconds."""
TIMES_REMEMBERED = 10
"""Events that were written in one turn of the event loop have the same time."""
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
    line = b"".join(
        (
            before_id(event.stream_id),
            event.id.encode(),
            from_id_to_body(event.timestamp_us),
            event.body,
            END,
        )
    )
    if event.awaited > 1:
        event.rendered = line
    return line


def before_body(event: Event) -> bytes:
    return before_id(event.stream_id) + event.id.encode() + from_id_to_body(event.timestamp_us)


@lru_cache(STREAM_IDS_REMEMBERED)
def before_id(stream_id: str) -> bytes:
    return b'{"sid":%b,"eid":"' % encode(stream_id)


@lru_cache(TIMES_REMEMBERED)
def from_id_to_body(timestamp_us: int) -> bytes:
    second, rest = divmod(timestamp_us, 1_000_000)
    return b'","ts":"%b.%06dZ","body":' % (up_to_second(second), rest)


def line_parts(event: Event) -> tuple[bytes, ...]:
    """Return the line of an event in parts. The body of a large event is not copied."""
    if len(event.body) <= LINE_BODY_BYTES:
        return (event_line(event),)
    return before_body(event), event.body, END


def traced_parts(event: Event) -> tuple[bytes, ...]:
    """Do the same as `line_parts` for a client that asks for trace contexts."""
    parts = line_parts(event)
    if event.trace is None:
        return parts
    last = parts[-1].removesuffix(END)
    return *parts[:-1], b'%b,"traceparent":"%b"}\n' % (last, event.trace.encode())


def part_lines(batch: Sequence[Part]) -> list[bytes]:
    """Return the lines of a batch of many channels in parts. Each line begins with the index of its
    channel. An event follows as in its own line, whose bytes are not rendered again."""
    return lines_of_many(batch, line_parts)


def traced_part_lines(batch: Sequence[Part]) -> list[bytes]:
    """Do the same for a client that asks for trace contexts."""
    return lines_of_many(batch, traced_parts)


def lines_of_many(
    batch: Sequence[Part], parts_of_event: Callable[[Event], tuple[bytes, ...]]
) -> list[bytes]:
    parts: list[bytes] = []
    for part in batch:
        if isinstance(part, ChannelEvents):
            begin = b'{"channel":%d,' % part.channel
            for event in part.events:
                first, *rest = parts_of_event(event)
                parts += begin + first[1:], *rest
        else:
            parts.append(notice_of(part) + b"\n")
    return parts


def notice_of(part: ChannelBegun | ChannelDone) -> bytes:
    """Return what is said of a channel itself, as JSON without a line break."""
    notice: dict[str, str | int | bool | float] = {"channel": part.channel}
    if isinstance(part, ChannelBegun):
        notice |= {"begun": True, "position": part.position}
        if part.recovered is not None:
            notice["recovered"] = part.recovered
    else:
        notice["done"] = True
        if part.error is not None:
            notice |= {"code": part.error.code, "message": str(part.error)}
            if part.error.retry_after_s is not None:
                notice["retryAfter"] = part.error.retry_after_s
    return encode(notice)


def event_lines(events: list[Event]) -> list[bytes]:
    """Return the lines of some events in parts."""
    parts: list[bytes] = []
    for event in events:
        if len(event.body) <= LINE_BODY_BYTES:
            parts.append(event.rendered or event_line(event))
        else:
            parts += line_parts(event)
    return parts


def traced_event_lines(events: list[Event]) -> list[bytes]:
    """Do the same for a client that asks for trace contexts."""
    return [part for event in events for part in traced_parts(event)]
