"""A read over HTTP: one long chunked answer, as lines of JSON or as server-sent events.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and no line without an event is sent unless it was asked for.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from aiohttp import web

from megaphone.core.reader import Reader
from megaphone.errors import AgentMoved, TooSlow
from megaphone.model import Event
from megaphone.rest.connection.answers import StreamedAnswer
from megaphone.rest.connection.body import BodyWriter
from megaphone.rest.connection.peers import cut, watch_peer
from megaphone.wire import json, sse

RECOVERED_HEADER = "Megaphone-Recovered"

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Framing:
    """How events stand in the stream. Each of these ends with a line break."""

    content_type: str
    preamble: Callable[[str, bool | None], bytes]
    """What comes first, by the position of the read and whether it is the one that was named."""
    heartbeat: bytes
    events: Callable[[Sequence[Event]], list[bytes]]
    """The parts of a batch, which are not joined because they may be large."""


NDJSON = Framing("application/x-ndjson", lambda *_: b"", b"\n", json.event_lines)
SSE = Framing("text/event-stream", sse.preamble, sse.HEARTBEAT, sse.events)


async def stream_events(
    request: web.Request, reader: Reader, framing: Framing
) -> web.StreamResponse:
    """Send everything the reader gets, until it ends.

    Must run within the reader's context: whatever is raised here makes the read a broken one, so
    that what it had sent is sent again to the next reader.

    Raises: ConnectionResetError, when the client has gone, takes nothing for too long, or takes
        nothing while its channel moves.
    """
    response = StreamedAnswer(headers={"Content-Type": framing.content_type, **HEADERS})
    if reader.recovered is not None:
        response.headers[RECOVERED_HEADER] = str(reader.recovered).lower()
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    response.force_close()  # what a client pipelines behind a read is not answered
    transport = watch_peer(request)
    await response.prepare(request)
    with closing(BodyWriter(request, transport)) as body:
        try:
            async with reader.expecting_progress(body.taken):
                if preamble := framing.preamble(reader.position, reader.recovered):
                    await body.write([preamble])
                async for events in reader:
                    await body.write(framing.events(events) if events else [framing.heartbeat])
                await response.write_eof()
                await body.drain()
        except (TooSlow, AgentMoved) as error:
            cut(request)
            raise ConnectionResetError(str(error)) from None
    return response
