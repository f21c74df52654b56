"""Notices that the client of a read has closed its connection, crashed, vanished or stalled.

The server notices a close or a reset only while it reads the socket. Without keepalive and
TCP_USER_TIMEOUT, it would notice only after minutes or hours that a client has vanished or stalled.
"""

import asyncio
import socket

from aiohttp import hdrs, web

PEER_TIMEOUT_S = 4
"""How long the kernel of a client may leave data or a probe unacknowledged, and how long the client
may take nothing while data waits for it."""
FIRST_PROBE_S = 2
PROBE_INTERVAL_S = 1
UNSENT_BYTES = 16_384
"""How many unsent bytes of each read the kernel may hold; `connection.writer` explains it. With the
default of the kernel, megabytes of events could wait there for a client that has stalled, and the
broker would not notice."""


def watch_peer(request: web.Request) -> asyncio.Transport:
    """Cancel the handler of a read as soon as its client disconnects, and return the transport.

    From now on this process drops everything that the client sends.

    Raises: ConnectionResetError, if the client has disconnected already.
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
    drop_input(transport)
    return transport


def probe_often(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ("TCP_KEEPIDLE", FIRST_PROBE_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_USER_TIMEOUT", PEER_TIMEOUT_S * 1000),
    ):
        if hasattr(socket, option):  # a system without it keeps its own, slower timeouts
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def drop_input(transport: asyncio.Transport) -> None:
    """Keep reading the connection, and drop all received bytes.

    aiohttp stops reading once a few requests wait behind the one that it serves. Then it cannot
    see that the client closes.
    """
    served = transport.get_protocol()
    if isinstance(served, asyncio.Protocol):
        transport.set_protocol(DeafProtocol(served))
        transport.resume_reading()


class DeafProtocol(asyncio.Protocol):
    """Passes on every event of a connection except received data."""

    def __init__(self, served: asyncio.Protocol) -> None:
        self._served = served

    def data_received(self, data: bytes) -> None:
        """Drop the data, because the answer in progress is the last on its connection."""

    def eof_received(self) -> bool | None:
        return self._served.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._served.connection_lost(exc)

    def pause_writing(self) -> None:
        self._served.pause_writing()

    def resume_writing(self) -> None:
        self._served.resume_writing()


def close_if_unread(request: web.Request, answer: web.Response) -> web.Response:
    """Make an answer the last on its connection if no other request can follow.

    None can follow if the request body was not read, because the next bytes belong to that body.
    None can follow a CONNECT either, because it asks for a tunnel. aiohttp receives and drops the
    rest for a while: if it reset the connection, a client that is still sending would not see the
    answer.
    """
    if not request.content.is_eof() or request.method == hdrs.METH_CONNECT:
        answer.force_close()
        if request.transport is not None:
            drop_input(request.transport)
    return answer


def abort(request: web.Request) -> None:
    """Reset the connection, so that the client sees that the answer is incomplete."""
    if request.transport is not None:
        request.transport.abort()
