"""Notices that a client has vanished or stalled, and leaves a client time to see a refusal.

The server notices a close or a reset at once while it reads the socket. Without keepalive and
TCP_USER_TIMEOUT, it would notice only after minutes or hours that a client has vanished or stalled.
"""

import asyncio
import socket

from aiohttp import hdrs, web

from megaphone.rest.connection.guest import connection_of

PEER_TIMEOUT_S = 4
"""How long the kernel of a client may leave data or a probe unacknowledged, and how long the client
may take nothing while data waits for it."""
FIRST_PROBE_S = 2
PROBE_INTERVAL_S = 1
UNSENT_BYTES = 16_384
"""How many unsent bytes of each read the kernel may hold; `connection.stream` explains it. With the
default of the kernel, megabytes of events could wait there for a client that has stalled, and the
broker would not notice."""

TCP_OPTIONS = [
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_NOTSENT_LOWAT", UNSENT_BYTES),
        ("TCP_KEEPIDLE", FIRST_PROBE_S),
        ("TCP_KEEPINTVL", PROBE_INTERVAL_S),
        ("TCP_USER_TIMEOUT", PEER_TIMEOUT_S * 1000),
    )
    if hasattr(socket, name)  # a system without it keeps its own, slower timeouts
]


def probe_often(transport: asyncio.Transport) -> None:
    """Let the kernel find out soon that the client of a read has vanished or stalled."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in TCP_OPTIONS:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def close_if_unread(request: web.Request, answer: web.Response) -> web.Response:
    """Make an answer the last on its connection if no other request can follow.

    None can follow if the request body was not read, because the next bytes belong to that body.
    None can follow a CONNECT either, because it asks for a tunnel. The connection receives and
    drops the rest for a while: if it was reset, a client that is still sending would not see the
    answer.
    """
    if not request.content.is_eof() or request.method == hdrs.METH_CONNECT:
        answer.force_close()
        if request.transport is not None:
            connection_of(request).drop_input()
    return answer
