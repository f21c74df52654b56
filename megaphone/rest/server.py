"""Runs the HTTP face: its routes on a listening socket, and its orderly end."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import hdrs, web

from megaphone.core.budget import Budget
from megaphone.observe.calls import FaceCalls
from megaphone.rest.access import HttpAccess
from megaphone.rest.connection.limits import Connections
from megaphone.rest.connection.protocol import Answering, Host
from megaphone.rest.cors import Origins, allow_origins
from megaphone.rest.errors import Handler, OnError, ignore, refuse_route, with_error_responses
from megaphone.rest.probes import HEALTH_PATHS
from megaphone.rest.requests import BUDGET
from megaphone.rest.resource import ResourceMetadata

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
        origins: Origins | None = None,
        connections: Connections | None = None,
        lane: Answering | None = None,
        resource: ResourceMetadata | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        on_error: OnError = ignore,
        calls: FaceCalls | None = None,
        access: HttpAccess | None = None,
    ) -> None:
        """`lane` answers the most frequent requests without aiohttp, if it is given. `resource`
        says where clients get tokens. `tls` returns what each new connection needs for TLS; without
        it, connections are plain. `on_error` is called with each error that a client gets. `calls`
        counts all calls, and `access` logs them, if it is given."""
        app = web.Application(client_max_size=max_body_bytes)
        app[BUDGET] = budget
        for route in routes:
            app.router.add_route(route.method, route.path, route.handler)
            if route.path in HEALTH_PATHS:  # as probes of load balancers ask
                app.router.add_route(hdrs.METH_HEAD, route.path, route.handler)
        allow_origins(app, origins or Origins())
        if resource is not None:
            resource.name_in_challenges(app)
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
        self._lane = lane
        self._tls = tls
        self._on_error = on_error
        self._calls = calls or FaceCalls()
        self._access = access
        self._host: Host | None = None
        self._listener: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> int:
        """Begin to serve on a socket, which `stop` closes. Returns: its port, if it has one."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        # Around the handler of all requests, so that it sees the errors of the router too.
        handler = with_error_responses(
            server.request_handler, self._on_error, self._calls, self._access
        )
        self._host = Host(
            server,
            self._connections,
            self._budget,
            HEALTH_PATHS,
            self._lane,
            self._calls,
            self._tls,
            self._access,
        )
        server.request_handler = self._announcing(handler)
        self._listener = await self._host.serve(listening)
        return 0 if listening.family == socket.AF_UNIX else int(listening.getsockname()[1])

    def _announcing(self, handler: Handler) -> Handler:
        """Return a handler whose answers end their connections, and say so, if the node leaves."""
        host = self._host
        assert host is not None

        async def answer(request: Any) -> web.StreamResponse:
            response = await handler(request)
            if host.is_leaving and not response.prepared:
                response.force_close()
            return response

        return answer

    @property
    def requests_begun(self) -> int:
        """How many requests have arrived since the start."""
        server = self._runner.server
        if server is None or self._host is None:
            return 0
        return int(server.requests_count) + self._host.answered

    async def leave(self) -> None:
        """Stop listening, and wait until all connections have ended without a refused request."""
        if self._listener is not None:
            self._listener.close()
        if self._host is not None:
            await self._host.leave()

    async def stop(self) -> None:
        """Stop listening and close all connections, idle ones at once."""
        if self._listener is not None:
            self._listener.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._runner.cleanup())
            if self._host is not None:
                group.create_task(self._host.close(STOP_TIMEOUT_S))
