"""Sends the response body of a read, so that the kernel holds few unsent bytes if a client stalls.

Bytes count as sent when the kernel has them. A small send buffer would limit the bytes in the
kernel, but also the bytes of each round trip, so it would make reads of fast clients slower.
Therefore the kernel chooses the size of the buffer, and only the bytes that have not left the
machine yet are limited (TCP_NOTSENT_LOWAT).
"""

import asyncio
import socket
import struct
import termios
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from typing import TYPE_CHECKING, TypeAlias, cast

from aiohttp import web

from megaphone.core.budget import Budget

if TYPE_CHECKING:
    from aiohttp.http import StreamWriter

PIECE_BYTES = 12_288
"""The kernel checks its limit of unsent bytes before each piece. With `peers.UNSENT_BYTES`, the
piece, and OPEN_BYTES, at most 32 KB are unsent."""
JOINED_BYTES = 65_536
"""Up to this size it is cheaper to copy the parts of a chunk into one than to send each."""
OPEN_BYTES = 4_096
"""How many bytes may be sent in small pieces without a check of the limit."""


Piece: TypeAlias = Sequence[bytes | memoryview]


class BodyWriter:
    """Writes the body of an answer whose headers have been written.

    The handler of the request owns it and must close it. Large chunks count against the budget
    while they are being sent.
    """

    __slots__ = ("_budget", "_open_bytes", "_sent", "_socket", "_transport", "_writer")

    def __init__(self, request: web.Request, transport: asyncio.Transport, budget: Budget) -> None:
        self._budget = budget
        self._writer = cast("StreamWriter", request.writer)
        self._transport = transport
        self._socket = socket_under(transport)
        self._sent = 0
        self._open_bytes = 0
        """How many bytes were sent since the kernel last checked its limit."""

    async def write(self, parts: Sequence[bytes]) -> None:
        """Send some bytes as one chunk. Returns when the kernel has all of them.

        Raises: ConnectionResetError, if the client has disconnected.
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
        with self._budget.lent(size):  # because it may take long
            for piece in pieces(parts):
                await self._write_piece(piece, sum(map(len, piece)))

    async def _write_piece(self, piece: Piece, size: int) -> None:
        taken = self._send(piece, size)
        self._sent += size
        if taken < size:
            # The transport sends the rest when the kernel has room.
            self._transport.write(b"".join(piece)[taken:])
            await self.drain()

    async def drain(self) -> None:
        """Return when the kernel has everything that was written, the end of the body included."""
        await self._writer.drain()

    def taken(self) -> int:
        """Return how many bytes the kernel of the client has acknowledged.

        The number has an arbitrary starting point: only differences mean something.
        """
        waiting = self._transport.get_write_buffer_size()
        if self._socket is not None and not self._transport.is_closing():
            waiting += unacknowledged(self._socket)
        return self._sent - waiting

    def close(self) -> None:
        """Give the socket back to the transport."""
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def _send(self, piece: Piece, size: int) -> int:
        """Offer a piece to the kernel. Returns: how many bytes the kernel took.

        Raises: ConnectionResetError, if the client has disconnected.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._socket is None or self._transport.get_write_buffer_size() > 0:
            return 0
        # While a segment has room, the kernel adds data to it without a check of the limit. The
        # flag MSG_EOR ends the segment, so that the kernel checks the limit for the next data.
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
    """Return the socket of a transport; None if the transport encrypts what it sends.

    The caller may use the socket only while the transport is not closing, and must detach it in
    the end, because the transport closes it.
    """
    connection = transport.get_extra_info("socket")
    if connection is None or transport.get_extra_info("sslcontext") is not None:
        return None
    return socket.socket(connection.family, connection.type, fileno=connection.fileno())


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the kernel holds that the peer has not acknowledged."""
    try:
        return int(struct.unpack("i", ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:  # the socket is not TCP, or has just been closed
        return 0


def pieces(parts: Sequence[bytes]) -> Iterator[Piece]:
    """Cut some parts into pieces of at most PIECE_BYTES. Large parts are not copied."""
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
