"""A read over HTTP: one long chunked answer, one event per line.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and no line without an event is ever sent.
"""

import asyncio

from aiohttp import web

from megaphone.core.reader import Reader
from megaphone.wire import json

NDJSON = "application/x-ndjson"
RECOVERED_HEADER = "Megaphone-Recovered"
STALL_GRACE_S = 5.0
"""How long after the end of its window a reader that takes nothing is waited for."""

HEADERS = {
    "Content-Type": NDJSON,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold lines back otherwise
    "X-Content-Type-Options": "nosniff",
}


async def stream_events(request: web.Request, reader: Reader) -> web.StreamResponse:
    """Send everything the reader gets, until it ends.

    Must run within the reader's context: whatever is raised here makes the read a broken one, so
    that what it had sent is sent again to the next reader.
    """
    response = web.StreamResponse(headers=HEADERS)
    if reader.recovered is not None:
        response.headers[RECOVERED_HEADER] = str(reader.recovered).lower()
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    else:
        response.force_close()
    keep_nothing_back(request)
    await response.prepare(request)
    async for events in reader:
        await send(request, response, reader, json.event_lines(events))
    await response.write_eof()
    return response


async def send(
    request: web.Request, response: web.StreamResponse, reader: Reader, lines: bytes
) -> None:
    """Write lines, and wait until the kernel has them all.

    Raises: ConnectionResetError, when the client takes nothing for so long that the read should
        have ended.
    """
    try:
        async with asyncio.timeout_at(reader.until + STALL_GRACE_S):
            await response.write(lines)
            await request.writer.drain()
    except TimeoutError:
        cut(request)
        raise ConnectionResetError("the client has stalled") from None


def keep_nothing_back(request: web.Request) -> None:
    """Have `drain` wait until the kernel has everything.

    With the default of 64 KiB in between, events would count as sent while they are still here.
    """
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=0)


def cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
