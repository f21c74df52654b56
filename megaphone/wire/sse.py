"""Server-sent events: the events of a channel as the browser's EventSource reads them.

The form is that of the HTML standard, section 9.2. The data of each is the very line that a reader
of NDJSON gets, and its id is the event's, which the browser sends back as `Last-Event-ID`.
"""

from collections.abc import Sequence

from megaphone.model import Event
from megaphone.wire.json import event_line

RETRY_MS = 500
PREAMBLE = b"retry: %d\n\n" % RETRY_MS
HEARTBEAT = b":\n\n"


def events(batch: Sequence[Event]) -> bytes:
    return b"".join([b"id: %b\ndata: %b\n" % (one.id.encode(), event_line(one)) for one in batch])
