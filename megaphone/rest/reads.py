"""Reads over HTTP: one long chunked answer, as lines of JSON or as server-sent events.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and a line without an event is sent only if the client asked for it. A
further framing is a module in `megaphone.wire`, a `Framing` here, and a condition in `framing_of`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from aiohttp import web

from megaphone.core.reader import Reader
from megaphone.model import DEFAULT_IN_FLIGHT, ReadOptions
from megaphone.rest.connection.answer_bytes import date_line
from megaphone.rest.connection.guest import connection_of
from megaphone.rest.connection.stream import Framing
from megaphone.rest.requests import choice, seconds_of_ms, whole_number
from megaphone.wire import lines, sse

LAST_EVENT_ID = "Last-Event-ID"
SSE_HEARTBEAT_S = 10.0

NDJSON = Framing(
    "application/x-ndjson",
    preamble=lambda *_: b"",
    heartbeat=b"\n",
    events=lines.event_lines,
)
SSE = Framing(
    "text/event-stream", preamble=sse.preamble, heartbeat=sse.HEARTBEAT, events=sse.events
)

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
    "X-Content-Type-Options": "nosniff",
}


# -- What a client asks for


def framing_of(accept: str) -> Framing:
    """Return the framing that a client accepts: lines of JSON, unless it accepts only SSE."""
    if SSE.content_type in accept and NDJSON.content_type not in accept:
        return SSE
    return NDJSON


def options_of(
    framing: Framing,
    query: Mapping[str, str],
    last_event_id: str | None,
    streams: Sequence[str],
) -> ReadOptions:
    """Return what the query and the header `Last-Event-ID` of a read ask for. `streams` are the
    values of the parameter `stream`, the only one that may be repeated. Raises: BadRequest.

    An EventSource calls again only after its former connection has ended, and gives up for good on
    any error. So when it reconnects, it takes over. A browser needs heartbeats, and cannot ask for
    them.
    """
    # The header comes before the query, because an EventSource repeats the query of its first
    # request for ever, and names its cursor in the header.
    window = whole_number(query, "window")
    options = ReadOptions(
        cursor=query.get("after") if last_event_id is None else last_event_id,
        acknowledge=choice(query, "ack", {"none": False, "explicit": True}, default=False),
        in_flight=DEFAULT_IN_FLIGHT if window is None else window,
        take_over=choice(query, "takeover", {"false": False, "true": True}, default=False),
        limit=whole_number(query, "limit"),
        wait_s=seconds_of_ms(query, "wait_ms"),
        heartbeat_s=seconds_of_ms(query, "heartbeat_ms"),
        streams=frozenset(streams) or None,
    )
    if framing is not SSE:
        return options
    return replace(
        options,
        take_over=options.take_over or last_event_id is not None,
        heartbeat_s=options.heartbeat_s or SSE_HEARTBEAT_S,
    )


# -- The answer


def head_of_answer(
    framing: Framing, reader: Reader, more: Mapping[str, str], *, is_http_1_0: bool = False
) -> bytes:
    """Return the head of the answer to a read. `more` are further headers."""
    headers = {"Content-Type": framing.content_type, **HEADERS, **more}
    headers["Megaphone-Position"] = reader.cursor
    if reader.recovered is not None:
        headers["Megaphone-Recovered"] = str(reader.recovered).lower()
    if not is_http_1_0:
        headers["Transfer-Encoding"] = "chunked"
        headers["Connection"] = "close"  # what a client pipelines behind a read is not answered
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    version = 0 if is_http_1_0 else 1
    return b"HTTP/1.%d 200 OK\r\n%b%b\r\n" % (version, lines.encode(), date_line())


def stream_events(
    request: web.Request, reader: Reader, framing: Framing, more: Mapping[str, str]
) -> NoReturn:
    """Send the batches of a read. The connection leaves aiohttp, so there is no answer to return.

    Raises: CancelledError, which ends the handler; ConnectionResetError, if the client has
        disconnected.
    """
    is_http_1_0 = request.version < (1, 1)
    try:
        head = head_of_answer(framing, reader, more, is_http_1_0=is_http_1_0)
        connection_of(request).begin_stream(reader, framing, head, is_chunked=not is_http_1_0)
    except BaseException:
        reader.close(clean=False)
        raise
    raise asyncio.CancelledError
