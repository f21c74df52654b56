"""Sending the body of a long read, so that the kernel holds little of it for a client that stalls.

What the kernel has taken counts as sent. A small send buffer would keep that small, but it makes
each round trip carry as little, however fast the client. So the buffer is as large as the kernel
makes it for what is on the way to this client, and only what has not left yet is bounded
(TCP_NOTSENT_LOWAT).
"""

import asyncio
import socket
import struct
import termios
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from typing import TypeAlias, cast

from aiohttp import web
from aiohttp.http import StreamWriter

from megaphone.rest.requests import BUDGET

PIECE_BYTES = 12_288
"""Before each piece the kernel looks at what it holds. With `peers.UNSENT_BYTES`, the piece, and
what may have been sent without a look, that is at most 32 KB that it has not sent."""
JOINED_BYTES = 65_536
"""Up to here it costs less to copy the parts of a chunk into one than to send them as they are."""
OPEN_BYTES = 4_096
"""As many bytes may be sent in small pieces without a look."""


Piece: TypeAlias = Sequence[bytes | memoryview]


class BodyWriter:
    """Writes the body of an answer whose headers have been written.

    Belongs to the handler of the request, which must close it.
    """

    __slots__ = ("_budget", "_open_bytes", "_sent", "_socket", "_transport", "_writer")

    def __init__(self, request: web.Request, transport: asyncio.Transport) -> None:
        self._budget = request.app[BUDGET]
        self._writer = cast("StreamWriter", request.writer)
        self._transport = transport
        self._socket = socket_under(transport)
        self._sent = 0
        self._open_bytes = 0
        """How much was sent since the kernel last had to look at what it holds."""

    async def write(self, parts: Sequence[bytes]) -> None:
        """Send some bytes as one chunk, and return when the kernel has them all.

        Raises: ConnectionResetError, when the client has gone.
        """
        size = sum(map(len, parts))
        if self._writer.chunked:
            head = b"%x\r\n" % size
            parts = (head, *parts, b"\r\n")
            size += len(head) + 2
        if size <= PIECE_BYTES:
            await self._write_piece((b"".join(parts),), size)
            return
        if size <= JOINED_BYTES:
            parts = (b"".join(parts),)
        with self._budget.lent(size):  # it may take long
            for piece in pieces(parts):
                await self._write_piece(piece, sum(map(len, piece)))

    async def _write_piece(self, piece: Piece, size: int) -> None:
        taken = self._send(piece, size)
        self._sent += size
        if taken < size:
            # The transport waits until the kernel wants more.
            self._transport.write(b"".join(piece)[taken:])
            await self.drain()

    async def drain(self) -> None:
        """Return when the kernel has all that the answer has written, its end too."""
        await self._writer.drain()

    def taken(self) -> int:
        """Return how many bytes the client's kernel has acknowledged, from any starting point."""
        waiting = self._transport.get_write_buffer_size()
        if self._socket is not None and not self._transport.is_closing():
            waiting += unacknowledged(self._socket)
        return self._sent - waiting

    def close(self) -> None:
        """Let the transport have its connection for itself again."""
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def _send(self, piece: Piece, size: int) -> int:
        """Give the kernel as much of a piece as it takes. Returns: how much that was."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._socket is None or self._transport.get_write_buffer_size() > 0:
            return 0
        # The kernel adds to what it has not sent without a look at how much that is, up to a mark
        # that says that a record ends.
        flags = socket.MSG_DONTWAIT
        self._open_bytes += size
        if self._open_bytes >= OPEN_BYTES:
            flags |= socket.MSG_EOR
            self._open_bytes = 0
        try:
            return self._socket.sendmsg(piece, (), flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionResetError("the client has gone") from error


def socket_under(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket of a transport; None where bytes are not sent as they are given (TLS).

    It may be used only while the transport is not closing, and must be detached in the end: the
    transport closes it.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or transport.get_extra_info("sslcontext") is not None:
        return None
    return socket.socket(connection.family, connection.type, fileno=connection.fileno())


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the kernel holds that its peer has not acknowledged."""
    try:
        return int(struct.unpack("i", ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:  # it is no TCP connection, or has just been closed
        return 0


def pieces(parts: Sequence[bytes]) -> Iterator[Piece]:
    """Cut the bytes of some parts into pieces, without copying large ones."""
    piece: list[bytes | memoryview] = []
    room = PIECE_BYTES
    for part in parts:
        left = memoryview(part)
        while len(left) > room:
            yield [*piece, left[:room]]
            left = left[room:]
            piece, room = [], PIECE_BYTES
        piece.append(left)
        room -= len(left)
    yield piece
