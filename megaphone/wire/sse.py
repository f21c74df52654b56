"""Server-sent events: the events of a channel as the browser's EventSource reads them.

Section 9.2 of the HTML standard defines the format. The data of a server-sent event is the same
line that a reader of NDJSON gets. Its id is the event id, which the browser sends back as
`Last-Event-ID`.
"""

from collections.abc import Callable, Sequence

from megaphone.errors import MegaphoneError
from megaphone.model import ChannelEvents, Event, Part
from megaphone.wire.lines import (
    line_parts,
    notice_of,
    part_lines,
    traced_part_lines,
    traced_parts,
)

RETRY_MS = 500
HEARTBEAT = b":\n\n"
GAP = b'event: gap\ndata: {"recovered":false}\n\n'
"""Tells a page that its cursor is not known any more, because a page cannot see headers."""


def preamble(cursor: str, recovered: bool | None) -> bytes:
    """Return the bytes before the first event of a read that starts at a cursor.

    They give the browser an event id, or START, at once. So the browser sends an id when it
    reconnects, even if its connection broke before the first event. By this id the broker
    distinguishes the browser that reconnects from a second reader.
    """
    begin = f"retry: {RETRY_MS}\nid: {cursor}\n\n".encode()
    return begin + GAP if recovered is False else begin


def events(batch: Sequence[Event]) -> list[bytes]:
    """Return the bytes of a batch in parts."""
    return [part for one in batch for part in parts_of(one, line_parts(one))]


def traced_events(batch: Sequence[Event]) -> list[bytes]:
    """Do the same for a client that asks for trace contexts."""
    return [part for one in batch for part in parts_of(one, traced_parts(one))]


def many_events(batch: Sequence[Part]) -> list[bytes]:
    """Return the bytes of a batch of many channels in parts. News of a channel itself is an event
    named `channel`. There are no ids, because no single one could name the cursors of all."""
    return events_of_many(batch, part_lines)


def traced_many_events(batch: Sequence[Part]) -> list[bytes]:
    """Do the same for a client that asks for trace contexts."""
    return events_of_many(batch, traced_part_lines)


def events_of_many(
    batch: Sequence[Part], lines: Callable[[Sequence[Part]], list[bytes]]
) -> list[bytes]:
    parts: list[bytes] = []
    for part in batch:
        if isinstance(part, ChannelEvents):
            for event in part.events:
                parts += b"data: ", *lines([ChannelEvents(part.channel, [event])]), b"\n"
        else:
            parts.append(b"event: channel\ndata: %b\n\n" % notice_of(part))
    return parts


def parts_of(one: Event, line: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return b"id: %b\ndata: " % one.id.encode(), *line, b"\n"


def end(error: MegaphoneError) -> bytes:
    """Return the last event of a read that ends because its client may not read any more."""
    return b'event: end\ndata: {"code":"%b"}\n\n' % error.code.encode()
