"""Runs the HTTP face: its routes on a listening socket, and its orderly end."""

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from megaphone.core.budget import Budget
from megaphone.rest.connection.limits import Connections
from megaphone.rest.connection.protocol import serve_connections
from megaphone.rest.cors import allow_origin
from megaphone.rest.errors import refuse_route, with_error_responses
from megaphone.rest.probes import HEALTH_PATHS
from megaphone.rest.requests import BUDGET

if TYPE_CHECKING:
    import asyncio

STOP_TIMEOUT_S = 1.0
"""How long `stop` waits for requests that are under way."""


class HttpServer:
    """Serves some routes on a listening socket, from `start` to `stop`."""

    def __init__(
        self,
        routes: Sequence[web.RouteDef],
        *,
        budget: Budget,
        max_body_bytes: int,
        cors_origin: str | None = None,
        connections: Connections | None = None,
    ) -> None:
        app = web.Application(client_max_size=max_body_bytes)
        app[BUDGET] = budget
        for route in routes:
            app.router.add_route(route.method, route.path, route.handler)
        if cors_origin is not None:
            allow_origin(app, cors_origin)
        app.router.add_route("*", "/{anything:.*}", refuse_route)
        self._runner = web.AppRunner(
            app,
            # Without this option a handler continues after its client has disconnected, and takes
            # and loses events.
            handler_cancellation=True,
            shutdown_timeout=STOP_TIMEOUT_S,
        )
        self._connections = connections or Connections()
        self._budget = budget
        self._listener: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> int:
        """Begin to serve on a socket, which `stop` closes. Returns: its port, if it has one."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._listener = await serve_connections(
            server,
            listening,
            around=with_error_responses,
            connections=self._connections,
            budget=self._budget,
            probe_paths=HEALTH_PATHS,
        )
        return 0 if listening.family == socket.AF_UNIX else int(listening.getsockname()[1])

    @property
    def requests_begun(self) -> int:
        """How many requests have arrived since the start."""
        server = self._runner.server
        return 0 if server is None else server.requests_count

    async def stop(self) -> None:
        """Stop listening and close all connections, idle ones at once."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()
