"""A read over HTTP: one long chunked answer, as lines of JSON or as server-sent events.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and no line without an event is sent unless it was asked for.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from aiohttp import web
from aiohttp.http import StreamWriter

from megaphone.core.reader import Reader
from megaphone.model import Event
from megaphone.rest.peers import cut, watch_peer
from megaphone.wire import json, sse

RECOVERED_HEADER = "Megaphone-Recovered"
STALL_GRACE_S = 5.0
"""How long after the end of its window a reader that takes nothing is waited for."""

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
    events: Callable[[Sequence[Event]], bytes]


NDJSON = Framing("application/x-ndjson", lambda *_: b"", b"\n", json.event_lines)
SSE = Framing("text/event-stream", sse.preamble, sse.HEARTBEAT, sse.events)


async def stream_events(
    request: web.Request, reader: Reader, framing: Framing
) -> web.StreamResponse:
    """Send everything the reader gets, until it ends.

    Must run within the reader's context: whatever is raised here makes the read a broken one, so
    that what it had sent is sent again to the next reader.

    Raises: ConnectionResetError, when the client has gone or takes nothing for too long.
    """
    response = web.StreamResponse(headers={"Content-Type": framing.content_type, **HEADERS})
    if reader.recovered is not None:
        response.headers[RECOVERED_HEADER] = str(reader.recovered).lower()
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    response.force_close()  # what a client pipelines behind a read is not answered
    watch_peer(request)
    await response.prepare(request)
    try:
        # One timer for the whole read: only a client that takes nothing can make it last so long.
        async with asyncio.timeout_at(reader.until + STALL_GRACE_S):
            if preamble := framing.preamble(reader.position, reader.recovered):
                await send(request, preamble)
            async for events in reader:
                await send(request, framing.events(events) if events else framing.heartbeat)
            await response.write_eof()
    except TimeoutError:
        cut(request)
        raise ConnectionResetError("the client has stalled") from None
    return response


async def send(request: web.Request, lines: bytes) -> None:
    """Write lines as one chunk, and wait until the kernel has them all."""
    writer = cast("StreamWriter", request.writer)
    await writer.write(lines, drain=False)
    await writer.drain()
