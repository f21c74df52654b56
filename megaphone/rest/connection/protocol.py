"""One HTTP connection: its limits of time and memory, and its answers to invalid HTTP."""

import asyncio
import logging
import socket
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Never, cast

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest
from megaphone.listen.sockets import BACKLOG
from megaphone.rest.connection.answers import error_answer, internal_answer
from megaphone.rest.connection.limits import REFUSAL, Admission, Connections, for_probes_only
from megaphone.wire.errors import INTERNAL_HTTP_STATUS

if TYPE_CHECKING:
    from aiohttp.http_parser import HttpParser

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S = 75
"""How long a connection may be idle, and how long the headers of a request may take."""
PARSE_AHEAD_BYTES = 32_768
"""How many bytes of a body are parsed before the handler takes them. With chunked encoding, parsing
also stops after a number of chunks, which aiohttp derives as `PARSE_AHEAD_BYTES / 16`: a chunk may
be a single byte, and each chunk costs a microsecond."""
LINGERING_S = 5.0
"""How long the connection receives the rest of a refused body, so that its client sees the
answer."""
MAX_HEAD_BYTES = 32_768
"""The largest size of an incomplete request head."""
BYTES_PER_HEAD_BYTE = 2
"""Memory per byte of a head: aiohttp keeps a header as bytes and as text."""
SPARE_TIMEOUT_S = 1.0
"""The value of `HEADER_TIMEOUT_S` for a connection that the node serves for health probes only."""


async def serve_connections(
    server: web.Server,
    listening: socket.socket,
    *,
    around: Callable[[Any], Any],
    connections: Connections,
    budget: Budget,
    probe_paths: Container[str],
) -> asyncio.Server:
    """Serve each connection to a socket, within the limit of `connections`.

    Beyond that limit only requests for `probe_paths` are served. `around` wraps the handler of all
    requests, so that it sees the errors of the router too.
    """
    server.request_handler = around(server.request_handler)
    loop = asyncio.get_running_loop()

    def connect() -> Connection:
        return Connection(
            server, loop, connections=connections, budget=budget, probe_paths=probe_paths
        )

    return await loop.create_server(connect, sock=listening, backlog=BACKLOG)


class Connection(web.RequestHandler):
    """Serves one connection. The head of an incomplete request counts against the budget."""

    __slots__ = (
        "_body",
        "_budget",
        "_connections",
        "_counted",
        "_head_bytes",
        "_is_counted",
        "_probe_paths",
    )

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        *,
        connections: Connections,
        budget: Budget,
        probe_paths: Container[str],
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # documented, and makes each request cheaper
            keepalive_timeout=HEADER_TIMEOUT_S,
            read_bufsize=PARSE_AHEAD_BYTES,
            lingering_time=LINGERING_S,
            auto_decompress=False,  # `rest.requests` inflates bodies, within bounds
        )
        self._connections = connections
        self._budget = budget
        self._probe_paths = probe_paths
        self._is_counted = False
        self._counted = 0
        """How many requests had arrived at the last check of `data_received`."""
        self._body: StreamReader | None = None
        """The body that is being received."""
        self._head_bytes = 0
        """How many bytes of an incomplete head have arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        match self._connections.admit():
            case Admission.REFUSED:
                refuse(cast("asyncio.Transport", transport))
                return
            case Admission.SPARE:
                self._keepalive_timeout = SPARE_TIMEOUT_S
                self._request_handler = for_probes_only(self._request_handler, self._probe_paths)
        self._is_counted = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._is_counted:
            self._is_counted = False
            self._connections.leave()
        self._count_head(-self._head_bytes)
        super().connection_lost(exc)

    # -- Heads that do not end

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
        elif isinstance(exc, HeadTooLarge):
            answer = error_answer(
                BadRequest(f"the headers are too large: at most {MAX_HEAD_BYTES} bytes are allowed")
            )
        else:
            answer = error_answer(BadRequest("the request is not valid HTTP/1.1"))
        answer.force_close()
        return answer


def refuse(transport: asyncio.Transport) -> None:
    """Answer that there are too many connections, without waiting for a request, and close."""
    transport.write(REFUSAL)
    transport.close()


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
