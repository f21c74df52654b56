"""Noticing that the client of a long read is gone: closed, killed, cut off or stalled.

TCP tells the first two by itself, but only to who reads the connection; the others it does not tell
for minutes or hours unless it is asked to look.
"""

import asyncio
import socket

from aiohttp import web

PEER_TIMEOUT_S = 4
"""How long a client may leave data or a probe unanswered by its kernel, and how long it may take
nothing while data waits for it."""
FIRST_PROBE_S = 2
PROBE_INTERVAL_S = 1
UNSENT_BYTES = 16_384
"""How much the kernel may hold of each read that it has not sent yet; see `rest.sending`. By
default a client that has stalled would swallow megabytes of events before anyone noticed."""


def watch_peer(request: web.Request) -> asyncio.Transport:
    """Make the end of a client known at once, by cancelling the handler of its read.

    Returns: its connection. Raises: ConnectionResetError, when it has gone already.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    # With the default of 64 KiB, events would count as sent while they are still in this process.
    # With 0, a transport that encrypts would pause for ever.
    transport.set_write_buffer_limits(high=1)
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        probe_often(connection)
    ignore_what_follows(transport)
    return transport


def probe_often(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ("TCP_KEEPIDLE", FIRST_PROBE_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_USER_TIMEOUT", PEER_TIMEOUT_S * 1000),
    ):
        if hasattr(socket, option):  # not everywhere; then the system's own, slower, rules hold
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def ignore_what_follows(transport: asyncio.Transport) -> None:
    """Go on reading the connection, and drop what comes.

    aiohttp stops reading once a few requests are queued behind the one it serves, and then it
    cannot see that the client closes.
    """
    served = transport.get_protocol()
    if isinstance(served, asyncio.Protocol):
        transport.set_protocol(DeafProtocol(served))
        transport.resume_reading()


class DeafProtocol(asyncio.Protocol):
    """Passes on all that happens to a connection except what is received."""

    def __init__(self, served: asyncio.Protocol) -> None:
        self._served = served

    def data_received(self, data: bytes) -> None:
        """Drop it: the answer in progress is the last of its connection."""

    def eof_received(self) -> bool | None:
        return self._served.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._served.connection_lost(exc)

    def pause_writing(self) -> None:
        self._served.pause_writing()

    def resume_writing(self) -> None:
        self._served.resume_writing()


def cut(request: web.Request) -> None:
    """Reset the connection: its client cannot be told anything any more."""
    if request.transport is not None:
        request.transport.abort()
