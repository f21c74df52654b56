"""Server-sent events: the events of a channel as the browser's EventSource reads them.

The form is that of the HTML standard, section 9.2. The data of each is the very line that a reader
of NDJSON gets, and its id is the event's, which the browser sends back as `Last-Event-ID`.
"""

from collections.abc import Sequence

from megaphone.model import Event
from megaphone.wire.json import line_parts

RETRY_MS = 500
HEARTBEAT = b":\n\n"
GAP = b'event: gap\ndata: {"recovered":false}\n\n'
"""What a page is told whose last event is not known any more: it cannot see headers."""


def preamble(position: str, recovered: bool | None) -> bytes:
    """Return what comes before the first event.

    It gives the browser an id at once: so it has one to send when it comes back, even if its
    connection broke before any event, and can be told from a second reader.
    """
    begin = f"retry: {RETRY_MS}\nid: {position}\n\n".encode()
    return begin + GAP if recovered is False else begin


def events(batch: Sequence[Event]) -> list[bytes]:
    """Return the parts of what is sent for a batch."""
    return [part for one in batch for part in parts_of(one)]


def parts_of(one: Event) -> tuple[bytes, ...]:
    return b"id: %b\ndata: " % one.id.encode(), *line_parts(one), b"\n"
