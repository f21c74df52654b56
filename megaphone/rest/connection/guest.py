"""The part of aiohttp in a connection: it parses requests, and calls their handlers."""

import asyncio
import logging
from collections.abc import Container
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Never, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest, LimitExceeded
from megaphone.rest.connection.answers import error_answer, internal_answer, json_answer
from megaphone.rest.connection.limits import for_probes_only
from megaphone.wire import json
from megaphone.wire.errors import INTERNAL_CODE, INTERNAL_HTTP_STATUS

if TYPE_CHECKING:
    from aiohttp.http_parser import HttpParser

    from megaphone.rest.connection.protocol import Connection

log = logging.getLogger(__name__)

PARSE_AHEAD_BYTES = 32_768
"""How many bytes of a body are parsed before the handler takes them. With chunked encoding, parsing
also stops after a number of chunks, which aiohttp derives as `PARSE_AHEAD_BYTES / 16`: a chunk may
be a single byte, and each chunk costs a microsecond."""
LINGERING_S = 5.0
"""How long the connection receives the rest of a refused body, so that its client sees the
answer."""
MAX_HEAD_BYTES = 32_768
"""The largest size of an incomplete request head."""
MAX_TARGET_BYTES = 8_190
"""The largest size of a path with its query. It is also that of a header."""
LONGEST_METHOD_BYTES = 32
URI_TOO_LONG = 414
BYTES_PER_HEAD_BYTE = 2
"""Memory per byte of a head: aiohttp keeps a header as bytes and as text."""


class Guest(web.RequestHandler):
    """Serves the requests that a connection lends to it. The head of an incomplete request counts
    against the budget."""

    __slots__ = (
        "_body",
        "_budget",
        "_counted",
        "_head_bytes",
        "_is_target_too_long",
        "_line",
        "connection",
    )

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        *,
        connection: "Connection",
        budget: Budget,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # documented, and makes each request cheaper
            read_bufsize=PARSE_AHEAD_BYTES,
            max_line_size=MAX_TARGET_BYTES,
            lingering_time=LINGERING_S,
            auto_decompress=False,  # `rest.requests` inflates bodies, within bounds
        )
        self.connection = connection
        self._budget = budget
        self._counted = 0
        """How many requests had arrived at the last check of `data_received`."""
        self._body: StreamReader | None = None
        """The body that is being received."""
        self._head_bytes = 0
        """How many bytes of an incomplete head have arrived."""
        self._line = b""
        """The beginning of an incomplete head, no longer than the path may be."""
        self._is_target_too_long = False
        """Whether the path of the last head is too long."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self._count_head(-self._head_bytes)
        self._body = None  # it refers to this object
        super().connection_lost(exc)

    async def start(self) -> None:
        """Serve the requests. The end of the connection cancels this task.

        A task that is cancelled keeps the exception, and with it the frame of aiohttp, which may
        refer to the task and to a body that was refused. Only a collection would free them.
        """
        with suppress(asyncio.CancelledError):
            await super().start()

    def _process_keepalive(self) -> None:
        """Do nothing. `connection.protocol` closes idle connections, because aiohttp would close
        one on which only the lane has answered for a while."""
        self._keepalive_handle = None

    @property
    def answered_at(self) -> float:
        """The time of the event loop at which aiohttp has answered its last request, or, without
        one, got the connection."""
        return self._next_keepalive_close_time - self._keepalive_timeout

    @property
    def is_waiting(self) -> bool:
        """Whether aiohttp waits for a request, of which a part may be here already."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    @property
    def has_stopped_reading(self) -> bool:
        """Whether aiohttp reads the connection again itself, once it has taken what it holds."""
        # aiohttp 3.13 has no limit of its own for requests that wait.
        return self._reading_paused or getattr(self, "_buffer_paused", False)

    def serve_probes_only(self, paths: Container[str], refused_with: LimitExceeded) -> None:
        """Serve one request for one of the paths, and refuse all others."""
        self._request_handler = for_probes_only(self._request_handler, paths, refused_with)

    def give_back(self) -> None:
        """Give the connection back. A handler that still runs must end without an answer."""
        self.transport = None
        self._loop.call_soon(self.connection_lost, None)

    # -- Heads that do not end

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self._note_line(data)
        super().data_received(data)
        if self._request_count != self._counted:
            self._counted = self._request_count
            self._line = b""
            body = self._messages[-1][1]
            self._body = None if body.is_eof() else body
            if self._head_bytes:
                self._count_head(-self._head_bytes)
        elif self._body is not None:
            if self._body.is_eof():
                self._body = None
        else:
            self._count_head(len(data))
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    def _note_line(self, data: bytes) -> None:
        """Keep the beginning of a head, because aiohttp does not say which line is too long."""
        line = self._line if self._head_bytes else b""
        self._line = line + data[: MAX_TARGET_BYTES + LONGEST_METHOD_BYTES - len(line)]
        self._is_target_too_long = False
        if len(self._line) > MAX_TARGET_BYTES:
            target = self._line.partition(b"\n")[0].partition(b" ")[2].partition(b" ")[0]
            self._is_target_too_long = len(target) > MAX_TARGET_BYTES

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        self._budget.add(size * BYTES_PER_HEAD_BYTE)

    def _refuse_head(self) -> None:
        """Answer that the headers are too large, after the answers to earlier requests."""
        self._count_head(-self._head_bytes)
        self._parser = cast("HttpParser[Any]", RefusingParser())
        super().data_received(b"")

    # -- Answers to invalid HTTP

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not valid HTTP, or whose handler failed.

        The answer of aiohttp would repeat the invalid text, which may hold an address.

        Raises: ConnectionError, if the client has disconnected.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= INTERNAL_HTTP_STATUS:
            log.error("a request failed", exc_info=exc)
            answer = internal_answer(request)
        elif isinstance(exc, LineTooLong) and self._is_target_too_long:
            message = f"the path is too long: at most {MAX_TARGET_BYTES} bytes are allowed"
            body = json.error("BAD_REQUEST", message, URI_TOO_LONG)
            answer = json_answer(body, URI_TOO_LONG)
        elif isinstance(exc, HeadTooLarge):
            answer = error_answer(
                BadRequest(f"the headers are too large: at most {MAX_HEAD_BYTES} bytes are allowed")
            )
        else:
            answer = error_answer(BadRequest("the request is not valid HTTP/1.1"))
        is_bug = status >= INTERNAL_HTTP_STATUS
        self.connection.count_error(INTERNAL_CODE if is_bug else BadRequest.code)
        answer.force_close()
        return answer


def connection_of(request: web.Request) -> "Connection":
    """Return the connection of a request that aiohttp serves.

    Raises: ConnectionResetError, if the client has disconnected.
    """
    guest = request.protocol
    if request.transport is None:
        raise ConnectionResetError("the client has gone")
    assert isinstance(guest, Guest)
    return guest.connection


class HeadTooLarge(BadHttpMessage):
    """The headers of a request are too large together."""


class RefusingParser:
    """Replaces the parser of a request that is refused, and frees what that parser holds."""

    def feed_data(self, data: bytes) -> Never:
        raise HeadTooLarge("")

    def feed_eof(self) -> None:
        """Do nothing."""

    def message_consumed(self) -> None:
        """Do nothing."""

    def set_upgraded(self, value: bool) -> None:
        """Do nothing."""
