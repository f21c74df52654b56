"""How many HTTP connections a node may have, and its answer to one that is too many.

A connection beyond the limit gets LIMIT_EXCEEDED and is closed. Health probes must still pass,
because a supervisor that gets no answer restarts the node, and with it all channels are lost. So a
few connections beyond the limit are served, for a short time and for health probes only.
"""

import sys
from collections.abc import Awaitable, Callable, Container
from enum import Enum, auto
from http import HTTPStatus

from aiohttp import web

from megaphone.errors import LimitExceeded
from megaphone.rest.connection.answers import JSON, error_answer
from megaphone.wire import json
from megaphone.wire.errors import row_of

SPARE = 8
"""How many connections beyond the limit are served for health probes."""
RETRY_AFTER_S = 1.0

FULL = LimitExceeded(
    "this node has as many connections as it may (max_connections)", retry_after_s=RETRY_AFTER_S
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Admission(Enum):
    """The ways in which a node treats a new connection."""

    SERVED = auto()
    SPARE = auto()
    """The node serves the connection for health probes only."""
    REFUSED = auto()


class Connections:
    """Counts the open connections of a face, and decides about each new one."""

    def __init__(self, most: int = sys.maxsize) -> None:
        self._most = most
        self.open = 0
        self.refused = 0
        """How many connections were refused, or served for health probes only."""

    def admit(self) -> Admission:
        """Decide about a new connection, and count it.

        The caller must call `leave` when a connection ends that was not refused.
        """
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


def for_probes_only(handler: Handler | None, paths: Container[str]) -> Handler:
    """Return a handler that serves one request for one of the paths, and refuses all others.

    Refused requests get LIMIT_EXCEEDED. The connection is closed after either answer.
    """
    assert handler is not None

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        is_served = request.path in paths
        response = await handler(request) if is_served else error_answer(FULL)
        response.force_close()
        return response

    return answer


def refusal() -> bytes:
    """Return an answer which says that there are too many connections."""
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
