"""Runs the HTTP face: one listening socket, its limits, and its orderly end."""

import socket

from aiohttp import web

from megaphone.rest.errors import answer_errors
from megaphone.rest.public import PublicApi

HEADER_TIMEOUT_S = 75
"""How long a connection may be idle, and how long a request's headers may take."""
STOP_TIMEOUT_S = 1.0
"""How long requests that are under way are waited for at the end."""
SEND_BUFFER_BYTES = 16_384
"""The kernel's buffer of each connection, which it doubles. By default a reader that has stalled
would swallow megabytes of events before anyone noticed."""
BACKLOG = 1_024


class HttpServer:
    """Serves the public API from `start` to `stop`."""

    def __init__(self, api: PublicApi, *, host: str, port: int, max_body_bytes: int) -> None:
        self._host = host
        app = web.Application(middlewares=[answer_errors], client_max_size=max_body_bytes)
        app.add_routes(api.routes())
        self._runner = web.AppRunner(
            app,
            access_log=None,
            # Without this a handler whose client has left sleeps on, and takes and loses events.
            handler_cancellation=True,
            keepalive_timeout=HEADER_TIMEOUT_S,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        self.port = port
        """The port that is listened on; once started, also when any free one was asked for."""

    async def start(self) -> None:
        """Begin to listen.

        Raises: OSError, when the address cannot be had.
        """
        await self._runner.setup()
        listening = listening_socket(self._host, self.port)
        self.port = listening.getsockname()[1]
        await web.SockSite(self._runner, listening, backlog=BACKLOG).start()

    async def stop(self) -> None:
        """Stop listening and close all connections, idle ones at once."""
        await self._runner.cleanup()


def listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return listening
