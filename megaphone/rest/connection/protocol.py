"""The connections of the HTTP face: how many there may be, and what one may hold.

A connection beyond the limit is answered with LIMIT_EXCEEDED and closed. Probes must still get
through, because whoever restarts a node for its missing answer loses its channels: so a few
connections beyond the limit are served, for a short time and for questions of health only.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Never, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpParser

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest, LimitExceeded
from megaphone.rest.connection.answers import JSON
from megaphone.rest.errors import answer_of, internal_answer
from megaphone.wire import json
from megaphone.wire.errors import INTERNAL_HTTP_STATUS, row_of

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S = 75
"""How long a connection may be idle, and how long a request's headers may take."""
PARSE_AHEAD_BYTES = 32_768
"""How much of a body is parsed before a handler takes it, and a sixteenth of it in chunks: a chunk
may hold a single byte, and to parse it takes a microsecond."""
LINGERING_S = 5.0
"""How long the rest of a body that was refused is received, for its client to see the answer."""
MAX_HEAD_BYTES = 32_768
"""The most that may have come of a request whose headers are not complete."""
BYTES_PER_HEAD_BYTE = 2
"""What a byte of a header costs in memory: aiohttp keeps it as bytes and as text."""
SPARE = 8
"""How many connections beyond the limit are served for questions of health."""
SPARE_TIMEOUT_S = 1.0
HEALTH_PATHS = ("/livez", "/readyz", "/readyz/create", "/metrics")
RETRY_AFTER_S = 1.0

FULL = LimitExceeded(
    "this node has as many connections as it may (max_connections)", retry_after_s=RETRY_AFTER_S
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Admission(Enum):
    """What becomes of a new connection."""

    SERVED = auto()
    SPARE = auto()
    """It is served for questions of health only."""
    REFUSED = auto()


class Connections:
    """How many connections there are, and may be."""

    def __init__(self, most: int = sys.maxsize) -> None:
        self._most = most
        self.open = 0
        self.refused = 0
        """Connections that were refused, or served for questions of health only."""

    def admit(self) -> Admission:
        """Count a new connection. Unless it is refused, `leave` must follow."""
        if self.open < self._most:
            self.open += 1
            return Admission.SERVED
        self.refused += 1
        if self.open < self._most + SPARE:
            self.open += 1
            return Admission.SPARE
        return Admission.REFUSED

    def leave(self) -> None:
        self.open -= 1


class Connection(web.RequestHandler):
    """Serves one connection."""

    __slots__ = ("_body", "_budget", "_connections", "_counted", "_head_bytes", "_is_counted")

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        *,
        connections: Connections,
        budget: Budget,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # documented, and costs each request less
            keepalive_timeout=HEADER_TIMEOUT_S,
            read_bufsize=PARSE_AHEAD_BYTES,
            lingering_time=LINGERING_S,
            auto_decompress=False,  # `requests.body_of` does it, within bounds
        )
        self._connections = connections
        self._budget = budget
        self._is_counted = False
        self._counted = 0
        """How many requests have come, as far as we have looked."""
        self._body: StreamReader | None = None
        """The body that is being received."""
        self._head_bytes = 0
        """What has come of a request whose headers are not complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        match self._connections.admit():
            case Admission.REFUSED:
                refuse(cast("asyncio.Transport", transport))
                return
            case Admission.SPARE:
                self._keepalive_timeout = SPARE_TIMEOUT_S
                self._request_handler = for_health_only(self._request_handler)
        self._is_counted = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._is_counted:
            self._is_counted = False
            self._connections.leave()
        self._count_head(-self._head_bytes)
        super().connection_lost(exc)

    # -- Headers that do not end

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._request_count != self._counted:
            self._counted = self._request_count
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

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        self._budget.add(size * BYTES_PER_HEAD_BYTE)

    def _refuse_head(self) -> None:
        """Answer that the headers are too large, once what came before is answered."""
        self._count_head(-self._head_bytes)
        self._parser = cast("HttpParser[Any]", RefusingParser())
        super().data_received(b"")

    # -- Answers to what is no request

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP. aiohttp would repeat it, with the address that is in it.

        Raises: ConnectionError, when the client has gone: there is nobody to answer.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= INTERNAL_HTTP_STATUS:
            log.error("a request failed", exc_info=exc)
            answer = internal_answer(request)
        elif isinstance(exc, HeadTooLarge):
            answer = answer_of(
                BadRequest(f"the headers are too large: at most {MAX_HEAD_BYTES} bytes are allowed")
            )
        else:
            answer = answer_of(BadRequest("the request is not valid HTTP/1.1"))
        answer.force_close()
        return answer


def for_health_only(handler: Handler | None) -> Handler:
    """Serve one question of health, and answer anything else with LIMIT_EXCEEDED."""
    assert handler is not None

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        is_served = request.path in HEALTH_PATHS
        response = await handler(request) if is_served else answer_of(FULL)
        response.force_close()
        return response

    return answer


def refuse(transport: asyncio.Transport) -> None:
    """Say at once that there are too many connections, and close."""
    transport.write(REFUSAL)
    transport.close()


def refusal() -> bytes:
    """Return the bytes of an answer which says that there are too many connections."""
    status = row_of(FULL).http_status
    body = json.error(FULL.code, str(FULL), status)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {JSON}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER_S:.0f}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = refusal()


class HeadTooLarge(BadHttpMessage):
    """The headers of a request are too large, all together."""


class RefusingParser:
    """Takes the place of a parser whose request is refused, and of all that it holds."""

    def feed_data(self, data: bytes) -> Never:
        raise HeadTooLarge("")

    def feed_eof(self) -> None:
        """Do nothing."""

    def message_consumed(self) -> None:
        """Do nothing."""

    def set_upgraded(self, value: bool) -> None:
        """Do nothing."""
