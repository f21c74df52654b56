"""Sends the batches of an open read, without a task: each call sends what is ready, and returns.

A batch counts as sent when the kernel has all its bytes. A small send buffer would limit the bytes
in the kernel, but also the bytes of each round trip, so it would make reads of fast clients slower.
Therefore the kernel chooses the size of the buffer, and only the bytes that have not left the
machine yet are limited (TCP_NOTSENT_LOWAT).
"""

import asyncio
import logging
import socket
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from fcntl import ioctl
from typing import Any, Final, TypeAlias

from megaphone.core.budget import Budget
from megaphone.core.open_read import OpenRead
from megaphone.errors import MegaphoneError
from megaphone.model import ReadEnd
from megaphone.rest.connection.encryption import EncryptedTransport
from megaphone.rest.connection.peers import probe_often
from megaphone.rest.connection.turn import Turn

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 12_288
"""The kernel checks its limit of unsent bytes before each piece. With `peers.UNSENT_BYTES`, the
piece, and OPEN_BYTES, at most 32 KB are unsent."""
JOINED_BYTES = 65_536
"""Up to this size it is cheaper to copy the parts of a chunk into one than to send each."""
OPEN_BYTES: Final = 4_096
"""How many bytes may be sent in small pieces without a check of the limit."""
TURN_BYTES: Final = 262_144
"""After so many bytes to one reader, the others get their turn."""
LAST_CHUNK = b"0\r\n\r\n"
# As plain numbers, because the flags of the enumeration take a microsecond to combine.
SEND_FLAGS: Final = int(socket.MSG_DONTWAIT)
SEND_AND_END_FLAGS: Final = SEND_FLAGS | int(socket.MSG_EOR)

Piece: TypeAlias = bytes | memoryview


class Framing:
    """The format of a read: how the answer represents its events."""

    def __init__(
        self,
        content_type: str,
        *,
        heartbeat: bytes,
        events: Callable[[list[Any]], list[bytes]],
        end: Callable[[MegaphoneError], bytes] | None = None,
    ) -> None:
        """`end` returns the last bytes of a read that an error has ended, if the format can say
        so."""
        self.content_type = content_type
        self.end = end
        self.heartbeat = heartbeat
        self.heartbeat_chunk = b"".join(chunk([heartbeat]))
        self._render = events
        """Returns the bytes of a batch, in parts, which are not joined because they may be large.
        The last part ends with a line break."""
        self._last_events: list[Any] = []
        self._last_chunk = b""

    def events(self, events: list[Any]) -> bytes | list[bytes]:
        """Return the bytes of a batch as one chunk, in parts if it is large.

        The next reader of the same events gets the same object, if it is small.
        """
        if events == self._last_events:
            return self._last_chunk
        parts = chunk(self._render(events))
        if len(parts) > 1:
            return parts
        self._last_events, [self._last_chunk] = events, parts
        return self._last_chunk

    def events_unchunked(self, events: list[Any]) -> list[bytes]:
        """Return the bytes of a batch for a client of HTTP/1.0, which has no chunks."""
        return self._render(events)


def chunk(parts: list[bytes]) -> list[bytes]:
    """Return some bytes as one chunk. A small chunk has one part."""
    if len(parts) == 1 and len(parts[0]) <= PIECE_BYTES:  # the rule: one small event
        return [b"%x\r\n%b\r\n" % (len(parts[0]), parts[0])]
    size = sum(map(len, parts))
    if size > PIECE_BYTES:
        return [b"%x\r\n" % size, *parts, b"\r\n"]
    return [b"%x\r\n%b\r\n" % (size, b"".join(parts))]


class EventStream:
    """The answer to a read, from its first byte to its last.

    It owns the reader, and closes the connection at the end of the read.
    """

    __slots__ = (
        "_batch",
        "_budget",
        "_framing",
        "_is_chunked",
        "_is_ending",
        "_is_paused",
        "_is_settling",
        "_is_waiting_for_turn",
        "_lent",
        "_open_bytes",
        "_pieces",
        "_prepared",
        "_reader",
        "_sent",
        "_socket",
        "_tls",
        "_transport",
        "_turn",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        reader: OpenRead[Any],
        framing: Framing,
        *,
        turn: Turn,
        budget: Budget,
        is_chunked: bool = True,
    ) -> None:
        """`is_chunked` is False for a client of HTTP/1.0."""
        self._tls = transport if isinstance(transport, EncryptedTransport) else None
        self._transport = transport if self._tls is None else self._tls.tcp
        self._reader = reader
        self._framing = framing
        self._turn = turn
        self._budget = budget
        self._is_chunked = is_chunked
        self._socket = socket_under(self._transport)
        self._sent = 0
        self._open_bytes = 0
        """How many bytes were sent since the kernel last checked its limit."""
        self._pieces: Iterator[Piece] | None = None
        """What is left of a large chunk."""
        self._batch: list[Any] | None = None
        """The batch that is sent next."""
        self._prepared: bytes | list[bytes] | None = None
        """The bytes of that batch."""
        self._lent = 0
        """How many bytes of a large chunk count against the budget."""
        self._is_paused = False
        """Whether the transport holds bytes that the kernel has not taken yet."""
        self._is_waiting_for_turn = False
        self._is_ending = False
        self._is_settling = False
        """Whether the stream waits for the store to end the read."""
        """Whether the last byte was written."""

    def start(self, head: bytes) -> None:
        """Send the first bytes of the answer, and what is ready."""
        # The default of 64 KiB would count events as sent that are still in this process.
        self._transport.set_write_buffer_limits(high=0)
        # Because answers to earlier requests may still be in the transport.
        self._is_paused = self._transport.get_write_buffer_size() > 0
        probe_often(self._transport)
        reader = self._reader
        reader.attach(self, self._on_ready)
        if self._send(head):
            self.send_ready()
        else:
            reader.wait_for_client(0)

    # -- What the reader says

    def _on_ready(self) -> None:
        if not self._is_waiting_for_turn:
            self._is_waiting_for_turn = True
            self._turn.add_stream(self)

    def broken(self, error: MegaphoneError) -> None:
        """The client has stalled, or its agent moves."""
        self._break()

    def _fail(self, error: Exception) -> None:
        """Log a bug, and break the read."""
        log.error("a read failed", exc_info=error)
        self._reader.note_end(ReadEnd.FAILED)
        self._break()

    def taken(self) -> int:
        """Return how many bytes the kernel of the client has acknowledged."""
        waiting = self._transport.get_write_buffer_size()
        if self._socket is not None and not self._transport.is_closing():
            waiting += unacknowledged(self._socket)
        return self._sent - waiting

    # -- What the transport says

    def paused(self) -> None:
        """The transport holds bytes."""
        self._is_paused = True

    def resumed(self) -> None:
        """The kernel has all bytes. The stream goes on in this turn, and not within this call,
        because a transport of asyncio must not be closed within it."""
        self._is_paused = False
        self._on_ready()

    def lost(self) -> None:
        """The connection is closed. Unless the read has ended before, it is broken."""
        self._give_socket_back()
        self._return_lent()
        self._reader.close(clean=False)

    # -- Sending

    def take(self) -> None:
        """Take the first batch that is ready, if all before it is sent."""
        if self._is_paused or self._is_ending or self._pieces is not None:
            return
        if self._is_settling or self._transport.is_closing():
            return
        try:
            self._batch = self._reader.next()
        except Exception as error:
            self._fail(error)

    def prepare(self) -> None:
        """Make the bytes of the batch that was taken."""
        if self._batch is None:
            return
        try:
            self._prepared = self._bytes_of(self._batch)
        except Exception as error:
            self._fail(error)
        self._batch = None

    def send_ready(self) -> None:
        """Send batches as long as they are ready and the kernel takes them."""
        self._is_waiting_for_turn = False
        if self._is_paused or self._is_settling or self._transport.is_closing():
            return
        if self._is_ending:
            self._end()
            return
        try:
            if self._pieces is None or self._send_pieces():
                self._send_batches()
        except Exception as error:
            self._fail(error)

    def _send_batches(self) -> None:
        data, begun = self._prepared, self._sent
        self._prepared = None
        while True:
            if data is None:
                if (events := self._reader.next()) is None:
                    break
                data = self._bytes_of(events)
            if not (self._send(data) if isinstance(data, bytes) else self._send_large(data)):
                self._reader.wait_for_client(0)
                return
            if self._sent - begun > TURN_BYTES:
                self._on_ready()
                return
            data = None
        if self._reader.is_over:
            self._write_end()

    def _bytes_of(self, events: list[Any]) -> bytes | list[bytes]:
        framing = self._framing
        if self._is_chunked:
            return framing.events(events) if events else framing.heartbeat_chunk
        return framing.events_unchunked(events) if events else framing.heartbeat

    def _send_large(self, parts: list[bytes]) -> bool:
        """Send a large chunk. Returns: whether the kernel has all of it."""
        size = sum(map(len, parts))
        if size <= JOINED_BYTES:
            parts = [b"".join(parts)]
        self._lent = size  # counts because to send it may take long
        self._budget.add(size)
        self._pieces = pieces(parts)
        return self._send_pieces()

    def _send_pieces(self) -> bool:
        """Send what is left of a large chunk. Returns: whether the kernel has all of it."""
        for piece in self._pieces or ():
            if not self._send(piece):
                return False
        self._pieces = None
        self._return_lent()
        return True

    def _return_lent(self) -> None:
        self._budget.subtract(self._lent)
        self._lent = 0

    def _send(self, piece: Piece) -> bool:
        """Send up to about one piece. Returns: whether the kernel has all of it."""
        if self._tls is not None:
            piece = self._tls.sealed(piece)
        size = len(piece)
        self._sent += size
        connection = self._socket
        if connection is not None and not self._is_paused and not self._transport.is_closing():
            # While a segment has room, the kernel adds data to it without a check of the limit. The
            # flag MSG_EOR ends the segment, so that the kernel checks the limit for the next data.
            self._open_bytes += size
            flags = SEND_FLAGS
            if self._open_bytes >= OPEN_BYTES:
                flags = SEND_AND_END_FLAGS
                self._open_bytes = 0
            try:
                taken = connection.send(piece, flags)
                if taken == size:
                    return True
                piece = piece[taken:]
            except OSError:  # no room, or the client has gone, which the transport finds out too
                pass
        self._transport.write(piece)  # which sends it when the kernel has room
        return not self._is_paused

    # -- The end

    def end(self) -> None:
        """End the read after the present batch, because the node lets its clients go."""
        self._reader.end(ReadEnd.SHUTDOWN)

    def _write_end(self) -> None:
        settled = self._reader.settle()
        if settled is None:
            self._write_last()
        else:
            self._is_settling = True
            settled.add_done_callback(self._on_settled)

    def _on_settled(self, settled: "asyncio.Future[bool]") -> None:
        self._is_settling = False
        if self._transport.is_closing():
            return
        if settled.cancelled() or not settled.result():
            self._reader.ended_by = ReadEnd.STORE_LOST
            self._cut_off()
        else:
            self._write_last()

    def _write_last(self) -> None:
        self._is_ending = True
        last = self._last_bytes()
        if not last or self._send(last):
            self._end()
        else:
            self._reader.wait_for_client(0)

    def _last_bytes(self) -> bytes:
        refusal, end = self._reader.refusal, self._framing.end
        said = b"" if refusal is None or end is None else end(refusal)
        if not self._is_chunked:
            return said
        return b"".join(chunk([said])) + LAST_CHUNK if said else LAST_CHUNK

    def _end(self) -> None:
        self._reader.close(clean=True)
        self._close()

    def _cut_off(self) -> None:
        """Close the connection before the end of the answer. The client still gets what was
        sent."""
        self._reader.close(clean=False)
        self._close()

    def _close(self) -> None:
        """Close the connection when everything is sent."""
        self._give_socket_back()
        (self._tls or self._transport).close()

    def _break(self) -> None:
        """End the connection so that the client sees that the answer is incomplete."""
        self._reader.close(clean=False)
        self._give_socket_back()
        self._transport.abort()

    def _give_socket_back(self) -> None:
        if self._socket is not None:
            self._socket.detach()
            self._socket = None


def socket_under(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket of a transport, if it has one.

    The caller may use the socket only while the transport is not closing, and must detach it in
    the end, because the transport closes it.
    """
    connection = transport.get_extra_info("socket")
    if connection is None:
        return None
    return socket.socket(connection.family, connection.type, fileno=connection.fileno())


def unacknowledged(connection: socket.socket) -> int:
    """Return how many bytes the kernel holds that the peer has not acknowledged."""
    try:
        return int(struct.unpack("i", ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:  # the socket is not TCP, or has just been closed
        return 0


def pieces(parts: Sequence[bytes]) -> Iterator[Piece]:
    """Cut some parts into pieces of at most PIECE_BYTES. Only where parts meet, they are copied."""
    begun: list[memoryview] = []
    room = PIECE_BYTES
    for part in parts:
        left = memoryview(part)
        while len(left) > room:
            yield b"".join((*begun, left[:room])) if begun else left[:room]
            left = left[room:]
            begun, room = [], PIECE_BYTES
        begun.append(left)
        room -= len(left)
    yield b"".join(begun)
