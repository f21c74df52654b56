"""Runs the HTTP face: its listening sockets, their limits, and their orderly end."""

import asyncio
import logging
import socket
from collections.abc import Sequence

from aiohttp import web

from megaphone.core.budget import Budget
from megaphone.errors import BadRequest
from megaphone.rest.cors import allow_origin
from megaphone.rest.errors import answer_of, answering, internal_answer, refuse_route
from megaphone.rest.requests import BUDGET
from megaphone.sockets import BACKLOG
from megaphone.wire.errors import INTERNAL_HTTP_STATUS

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S = 75
"""How long a connection may be idle, and how long a request's headers may take."""
LINGERING_S = 5.0
"""How long the rest of a body that was refused is received, for its client to see the answer."""
RECEIVE_BUFFER_BYTES = 32_768
"""The kernel's buffer for what a connection receives, which it doubles. What it holds is read at
once when the loop comes to it, before any handler can refuse it; of thousands of connections that
would be hundreds of megabytes with the kernel's default."""
PARSE_AHEAD_BYTES = 32_768
"""How much of a body is parsed before a handler takes it, and a sixteenth of it in chunks: a chunk
may hold a single byte, and to parse it takes a microsecond."""
STOP_TIMEOUT_S = 1.0
"""How long requests that are under way are waited for at the end."""


class HttpServer:
    """Serves some routes on a listening socket, from `start` to `stop`."""

    def __init__(
        self,
        routes: Sequence[web.RouteDef],
        *,
        budget: Budget,
        max_body_bytes: int,
        cors_origin: str | None = None,
    ) -> None:
        app = web.Application(client_max_size=max_body_bytes)
        app[BUDGET] = budget
        for route in routes:
            app.router.add_route(route.method, route.path, answering(route.handler))
        if cors_origin is not None:
            allow_origin(app, cors_origin)
        app.router.add_route("*", "/{anything:.*}", answering(refuse_route))
        self._runner = web.AppRunner(
            app,
            # Without this a handler whose client has left sleeps on, and takes and loses events.
            handler_cancellation=True,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        self._listener: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> int:
        """Begin to serve on a socket, which `stop` closes. Returns: its port, if it has one."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self._runner.server, loop), sock=listening, backlog=BACKLOG
        )
        return 0 if listening.family == socket.AF_UNIX else int(listening.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and close all connections, idle ones at once."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()


class Connection(web.RequestHandler):
    """Serves one connection."""

    def __init__(self, server: web.Server | None, loop: asyncio.AbstractEventLoop) -> None:
        assert server is not None
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # documented, and costs each request less
            keepalive_timeout=HEADER_TIMEOUT_S,
            read_bufsize=PARSE_AHEAD_BYTES,
            lingering_time=LINGERING_S,
            auto_decompress=False,  # `requests.body_of` does it, within bounds
        )

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
        else:
            answer = answer_of(BadRequest("the request is not valid HTTP/1.1"))
        answer.force_close()
        return answer


def listen(host: str, port: int) -> socket.socket:
    """Raises: OSError, when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listening
