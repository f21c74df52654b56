"""How many HTTP connections a node may have, and its answer to one that is too many.

A connection beyond the limit gets LIMIT_EXCEEDED and is closed. Health probes must still pass,
because a supervisor that gets no answer restarts the node, and with it all channels are lost. So a
few connections beyond the limit are served, for a short time and for health probes only.
"""

import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Container
from enum import Enum, auto
from http import HTTPStatus

from aiohttp import web

from megaphone.core.peers import network_of
from megaphone.errors import LimitExceeded
from megaphone.rest.connection.answers import JSON, error_answer
from megaphone.wire import json
from megaphone.wire.errors import row_of

SPARE = 8
"""How many connections beyond the limit, and beyond that of an address, are served for health
probes."""
RETRY_AFTER_S = 1.0

FULL = LimitExceeded(
    "this node has as many connections as it may (max_connections)", retry_after_s=RETRY_AFTER_S
)
FULL_ADDRESS = LimitExceeded(
    "this address has as many connections as it may (max_connections_per_ip)",
    retry_after_s=RETRY_AFTER_S,
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Admission(Enum):
    """The ways in which a node treats a new connection."""

    SERVED = auto()
    SPARE = auto()
    """The node serves the connection for health probes only."""
    SPARE_OF_ADDRESS = auto()
    """The same, because the address of the client has as many connections as it may."""
    REFUSED = auto()
    REFUSED_ADDRESS = auto()


class Connections:
    """Counts the open connections of a face, and decides about each new one."""

    def __init__(
        self,
        most: int = sys.maxsize,
        per_ip: int | None = None,
        is_proxy: Callable[[str], bool] = lambda ip: False,
    ) -> None:
        """`per_ip` is how many one address may have, unless it is one of a proxy."""
        self._most = most
        self._per_ip = per_ip
        self._is_proxy = is_proxy
        self._by_network: Counter[str] = Counter()
        """How many connections each network has, if that is limited."""
        self.open = 0
        self.refused = 0
        """How many connections were refused, or served for health probes only."""
        self.handshakes_failed = 0
        """How many clients did not agree with this node on TLS, or had no certificate for it."""

    def admit(self, ip: str = "") -> tuple[Admission, str]:
        """Decide about a new connection from an address, and count it.

        Returns: the decision, and the network in which the connection counts; that is empty if it
            counts in none. The caller must call `leave` with the network when a connection ends
            that was not refused.
        """
        per_ip = self._per_ip
        if per_ip is None or not ip or self._is_proxy(ip):
            return self._admit(), ""
        network = network_of(ip)
        beyond = self._by_network[network] - per_ip
        if beyond >= SPARE:
            self.refused += 1
            return Admission.REFUSED_ADDRESS, ""
        admission = self._admit()
        if admission is Admission.REFUSED:
            return admission, ""
        self._by_network[network] += 1
        if admission is Admission.SERVED and beyond >= 0:
            self.refused += 1
            admission = Admission.SPARE_OF_ADDRESS
        return admission, network

    def _admit(self) -> Admission:
        if self.open < self._most:
            self.open += 1
            return Admission.SERVED
        self.refused += 1
        if self.open < self._most + SPARE:
            self.open += 1
            return Admission.SPARE
        return Admission.REFUSED

    def handshake_failed(self) -> None:
        """Count a client that did not agree with this node on TLS."""
        self.handshakes_failed += 1

    def leave(self, network: str = "") -> None:
        """Count a connection less. `network` is what `admit` has returned for it."""
        self.open -= 1
        if network:
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]


def for_probes_only(
    handler: Handler | None, paths: Container[str], refused_with: LimitExceeded
) -> Handler:
    """Return a handler that serves one request for one of the paths, and refuses all others.

    The connection is closed after either answer.
    """
    assert handler is not None

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        is_served = request.path in paths
        response = await handler(request) if is_served else error_answer(refused_with)
        response.force_close()
        return response

    return answer


def refusal(error: LimitExceeded) -> bytes:
    """Return an answer which says that there are too many connections."""
    status = row_of(error).http_status
    body = json.error(error.code, str(error), status)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {JSON}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER_S:.0f}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


REFUSAL = refusal(FULL)
REFUSAL_OF_ADDRESS = refusal(FULL_ADDRESS)
