"""Reads over HTTP: one long chunked answer, as lines of JSON or as server-sent events.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and a line without an event is sent only if the client asked for it. A
further framing is a module in `megaphone.wire`, a `Framing` here, and a condition in `framing_of`.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from aiohttp import web

from megaphone.core.reader import Reader
from megaphone.errors import AgentMoved, TooSlow
from megaphone.model import DEFAULT_IN_FLIGHT, Event, ReadOptions
from megaphone.rest.connection.answers import StreamedAnswer
from megaphone.rest.connection.peers import abort, watch_peer
from megaphone.rest.connection.writer import BodyWriter
from megaphone.rest.requests import BUDGET, choice, seconds_of_ms, whole_number
from megaphone.wire import json, sse

LAST_EVENT_ID = "Last-Event-ID"
RECOVERED_HEADER = "Megaphone-Recovered"
SSE_HEARTBEAT_S = 10.0

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
    "X-Content-Type-Options": "nosniff",
}


# -- What a client asks for


def read_options(request: web.Request) -> ReadOptions:
    """Return what the query and the headers of a read ask for. Raises: BadRequest."""
    query = request.query
    # The header comes before the query, because an EventSource repeats the query of its first
    # request for ever, and names its cursor in the header.
    last = request.headers.get(LAST_EVENT_ID)
    window = whole_number(query, "window")
    return ReadOptions(
        cursor=query.get("after") if last is None else last,
        acknowledge=choice(query, "ack", {"none": False, "explicit": True}, default=False),
        in_flight=DEFAULT_IN_FLIGHT if window is None else window,
        take_over=choice(query, "takeover", {"false": False, "true": True}, default=False),
        limit=whole_number(query, "limit"),
        wait_s=seconds_of_ms(query, "wait_ms"),
        heartbeat_s=seconds_of_ms(query, "heartbeat_ms"),
    )


def event_source_options(request: web.Request) -> ReadOptions:
    """Return the options of a read, fitted to what an EventSource can do. Raises: BadRequest.

    An EventSource calls again only after its former connection has ended, and gives up for good on
    any error. So when it reconnects, it takes over. A browser needs heartbeats, and cannot ask for
    them.
    """
    options = read_options(request)
    return replace(
        options,
        take_over=options.take_over or LAST_EVENT_ID in request.headers,
        heartbeat_s=options.heartbeat_s or SSE_HEARTBEAT_S,
    )


# -- Framings


@dataclass(frozen=True, slots=True)
class Framing:
    """The format of a read: how a client asks for it, and how the answer represents its events."""

    content_type: str
    options: Callable[[web.Request], ReadOptions]
    preamble: Callable[[str, bool | None], bytes]
    """The first bytes, by the cursor of the read and whether the cursor was known."""
    heartbeat: bytes
    events: Callable[[Sequence[Event]], list[bytes]]
    """The bytes of a batch, in parts, which are not joined because they may be large. The last
    part ends with a line break."""


NDJSON = Framing("application/x-ndjson", read_options, lambda *_: b"", b"\n", json.event_lines)
SSE = Framing("text/event-stream", event_source_options, sse.preamble, sse.HEARTBEAT, sse.events)


def framing_of(request: web.Request) -> Framing:
    """Return the framing that a client accepts: lines of JSON, unless it accepts only SSE."""
    accepted = request.headers.get("Accept", "")
    if SSE.content_type in accepted and NDJSON.content_type not in accepted:
        return SSE
    return NDJSON


# -- The answer


async def stream_events(
    request: web.Request, reader: Reader, framing: Framing
) -> web.StreamResponse:
    """Open a read, and send every batch of it until the read ends.

    Raises: the errors of entering a `Reader`, before the answer begins; then ConnectionResetError,
        if the client has disconnected or stalled, or takes no bytes while its agent moves. Any
        error after the answer has begun breaks the read.
    """
    response = StreamedAnswer(headers={"Content-Type": framing.content_type, **HEADERS})
    try:
        async with reader:
            await send_batches(request, response, reader, framing)
    except (TooSlow, AgentMoved) as error:
        if not response.prepared:
            raise
        abort(request)
        raise ConnectionResetError(str(error)) from None
    return response


async def send_batches(
    request: web.Request, response: StreamedAnswer, reader: Reader, framing: Framing
) -> None:
    if reader.recovered is not None:
        response.headers[RECOVERED_HEADER] = str(reader.recovered).lower()
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    response.force_close()  # requests that a client pipelines behind a read are not answered
    transport = watch_peer(request)
    await response.prepare(request)
    with closing(BodyWriter(request, transport, request.app[BUDGET])) as body:
        reader.watch(body.taken)
        if preamble := framing.preamble(reader.cursor, reader.recovered):
            await body.write([preamble])
        async for events in reader:
            await body.write(framing.events(events) if events else [framing.heartbeat])
        await response.write_eof()
        await body.drain()
