"""Reads over HTTP: one long chunked answer, as lines of JSON or as server-sent events.

Existing clients split what they receive at line breaks, chunk by chunk. So each write to the socket
is one chunk of whole lines, and a line without an event is sent only if the client asked for it. A
further framing is a module in `megaphone.wire`, two `Framing`s here, for reads of one channel and
of many, and a condition in `framing_of`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from aiohttp import web

from megaphone.core.many import ManyReader
from megaphone.core.open_read import OpenRead
from megaphone.core.reader import Reader
from megaphone.model import DEFAULT_IN_FLIGHT, HTTP, ReadOptions
from megaphone.rest.connection.answer_bytes import date_line
from megaphone.rest.connection.guest import connection_of
from megaphone.rest.connection.stream import Framing, chunk
from megaphone.rest.errors import StreamBegun
from megaphone.rest.requests import check_parameters, choice, seconds_of_ms, whole_number
from megaphone.wire import lines, sse

PARAMETERS = (
    "after",
    "ack",
    "window",
    "takeover",
    "reader",
    "returning",
    "limit",
    "wait_ms",
    "heartbeat_ms",
    "stream",
    "trace",
)
LAST_EVENT_ID = "Last-Event-ID"
YES_OR_NO = {"false": False, "true": True}
SSE_HEARTBEAT_S = 10.0

NDJSON = Framing("application/x-ndjson", heartbeat=b"\n", events=lines.event_lines)
SSE = Framing("text/event-stream", heartbeat=sse.HEARTBEAT, events=sse.events, end=sse.end)
OF_MANY = {
    NDJSON: Framing(NDJSON.content_type, heartbeat=b"\n", events=lines.part_lines),
    SSE: Framing(SSE.content_type, heartbeat=sse.HEARTBEAT, events=sse.many_events),
}
"""The framings of reads of many channels, by those of reads of one."""
TRACED = {
    NDJSON: Framing(NDJSON.content_type, heartbeat=b"\n", events=lines.traced_event_lines),
    SSE: Framing(SSE.content_type, heartbeat=sse.HEARTBEAT, events=sse.traced_events, end=sse.end),
    OF_MANY[NDJSON]: Framing(NDJSON.content_type, heartbeat=b"\n", events=lines.traced_part_lines),
    OF_MANY[SSE]: Framing(SSE.content_type, heartbeat=sse.HEARTBEAT, events=sse.traced_many_events),
}
"""The same framings with trace contexts."""

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
    check_parameters(query, PARAMETERS)
    window = whole_number(query, "window")
    options = ReadOptions(
        cursor=query.get("after") if last_event_id is None else last_event_id,
        acknowledge=choice(query, "ack", {"none": False, "explicit": True}, default=False),
        in_flight=DEFAULT_IN_FLIGHT if window is None else window,
        take_over=choice(query, "takeover", YES_OR_NO, default=False),
        reader=query.get("reader", ""),
        returning=choice(query, "returning", YES_OR_NO, default=False),
        limit=whole_number(query, "limit"),
        wait_s=seconds_of_ms(query, "wait_ms"),
        heartbeat_s=seconds_of_ms(query, "heartbeat_ms"),
        streams=frozenset(streams) or None,
        trace=choice(query, "trace", YES_OR_NO, default=False),
        face=HTTP,
    )
    if framing is SSE and last_event_id is not None:
        options = replace(options, take_over=True)
    return of_framing(framing, options)


def of_framing(framing: Framing, options: ReadOptions) -> ReadOptions:
    """Return the options with which a client of a framing reads."""
    if framing is SSE and options.heartbeat_s is None:
        return replace(options, heartbeat_s=SSE_HEARTBEAT_S)
    return options


def of_events(framing: Framing, options: ReadOptions) -> Framing:
    """Return the framing for the events of a read with these options."""
    return TRACED[framing] if options.trace else framing


# -- The answer


def head_of_answer(
    framing: Framing, reader: Reader, more: Mapping[str, str], *, is_http_1_0: bool = False
) -> bytes:
    """Return the head of the answer to a read, with what comes before the first event. `more` are
    further headers."""
    more = {**more, "Megaphone-Position": reader.cursor}
    if reader.recovered is not None:
        more["Megaphone-Recovered"] = str(reader.recovered).lower()
    head = begin_of_answer(framing, more, is_http_1_0=is_http_1_0)
    if framing is not SSE:
        return head
    preamble = sse.preamble(reader.cursor, reader.recovered)
    return head + (preamble if is_http_1_0 else b"".join(chunk([preamble])))


def begin_of_answer(framing: Framing, more: Mapping[str, str], *, is_http_1_0: bool) -> bytes:
    """Return the status and the headers of an answer that is a stream."""
    headers = {"Content-Type": framing.content_type, **HEADERS, **more}
    if not is_http_1_0:
        headers["Transfer-Encoding"] = "chunked"
        headers["Connection"] = "close"  # what a client pipelines behind a read is not answered
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    version = 0 if is_http_1_0 else 1
    return b"HTTP/1.%d 200 OK\r\n%b%b\r\n" % (version, lines.encode(), date_line())


def stream_events(
    request: web.Request,
    reader: Reader,
    framing: Framing,
    more: Mapping[str, str],
    options: ReadOptions,
) -> NoReturn:
    """Send the batches of a read. The connection leaves aiohttp, so there is no answer to return.

    Raises: as `stream_batches`.
    """
    is_http_1_0 = request.version < (1, 1)
    head = head_of_answer(framing, reader, more, is_http_1_0=is_http_1_0)
    stream_batches(request, reader, of_events(framing, options), head)


def stream_many(
    request: web.Request,
    reader: ManyReader,
    framing: Framing,
    more: Mapping[str, str],
    options: ReadOptions,
) -> NoReturn:
    """Do the same for a read of many channels."""
    head = begin_of_answer(framing, more, is_http_1_0=request.version < (1, 1))
    stream_batches(request, reader, of_events(OF_MANY[framing], options), head)


def stream_batches(
    request: web.Request, reader: OpenRead[Any], framing: Framing, head: bytes
) -> NoReturn:
    """Send `head`, and then the batches of a read.

    Raises: StreamBegun, which ends the handler; ConnectionResetError, if the client has
        disconnected.
    """
    try:
        is_chunked = request.version >= (1, 1)
        connection_of(request).begin_stream(reader, framing, head, is_chunked=is_chunked)
    except BaseException:
        reader.close(clean=False)
        raise
    raise StreamBegun
