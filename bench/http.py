"""HTTP/1.1 clients on blocking sockets, because these cost least: one system call per message.

An event loop would take as long for a request as the servers do, and so would limit them. None of
these clients needs one: where several connections are open, they are served one after the other,
and what arrives meanwhile waits in the sockets.
"""

import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import HOST, BenchError

HEAD_END = b"\r\n\r\n"
EVENT_END = b"}\n"
"""The end of an event line. It occurs nowhere else, because the bodies have no line breaks."""
JSON = "application/json"
RECEIVE_BYTES = 262_144
TIMEOUT_S = 30
OK = b"HTTP/1.1 200"
CREATED = b"HTTP/1.1 201"
AT_ONCE = 32
"""The number of connections that create channels."""


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {JSON}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode()


def delete(path: str) -> bytes:
    return f"DELETE {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def connected(to: int | Path) -> socket.socket:
    """Connect to a port or to a Unix socket. Its calls wait, but not for ever."""
    connection = socket.socket(socket.AF_UNIX if isinstance(to, Path) else socket.AF_INET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))
    if isinstance(to, Path):
        connection.connect(str(to))
        return connection
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.connect((HOST, to))
    return connection


# -- Request and answer


class Connection:
    """A connection with one open request at a time."""

    def __init__(self, to: int | Path) -> None:
        self._socket = connected(to)
        self._usual_bytes = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def answer(self, expected: bytes) -> bytes:
        """Return the answer to the open request. Raises: BenchError."""
        data = self._socket.recv(RECEIVE_BYTES)
        if len(data) != self._usual_bytes:
            # Only an answer of another length than the last one must be parsed.
            data = self._whole(data)
            self._usual_bytes = len(data)
        if not data.startswith(expected):
            raise BenchError(f"answered with {data[:300]!r}")
        return data

    def ask(self, request: bytes, expected: bytes) -> bytes:
        """Send a request and return the body of its answer. Raises: BenchError."""
        self.send(request)
        return self.answer(expected).partition(HEAD_END)[2]

    def close(self) -> None:
        self._socket.close()

    def _whole(self, data: bytes) -> bytes:
        while not is_whole(data):
            more = self._socket.recv(RECEIVE_BYTES)
            if not more:
                raise BenchError("the server closed the connection")
            data += more
        return data


def is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(HEAD_END)
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return bool(found) and len(body) >= int(length or 0)


# -- Reading


class Read:
    """An open read that counts its events."""

    def __init__(self, port: int, request: bytes) -> None:
        self._socket = connected(port)
        self._last = b""
        self.count = 0
        """How many events have come."""
        self._wanted = 0
        self._socket.sendall(request)

    def begin(self) -> None:
        """Wait for the headers of the answer. Raises: BenchError."""
        head = b""
        while HEAD_END not in head:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise BenchError("the server closed a read")
            head += data
        if not head.startswith(OK):
            raise BenchError(f"a read was refused: {head[:100]!r}")
        self._add(head.partition(HEAD_END)[2])

    def take(self, events: int) -> None:
        """Wait until so many events more have come. Raises: BenchError."""
        self._wanted += events
        while self.count < self._wanted:
            self._receive(0)

    @property
    def has_more(self) -> bool:
        """Whether more events have come than were waited for."""
        return self.count > self._wanted

    def take_what_came(self) -> int:
        """Receive without waiting. Returns: how many events came."""
        before = self.count
        try:
            self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        return self.count - before

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait_for_end(self) -> None:
        """Wait until the server has ended the read. Raises: BenchError."""
        while not self._last.endswith(b"0" + HEAD_END):
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise BenchError("the server broke a read")
            self._last = (self._last + data)[-5:]

    def close(self) -> None:
        self._socket.close()

    def _receive(self, flags: int) -> None:
        data = self._socket.recv(RECEIVE_BYTES, flags)
        if not data:
            raise BenchError("the server closed a read")
        # A server that leaves Nagle's algorithm on would wait up to 40 ms for the acknowledgement.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._add(data)

    def _add(self, data: bytes) -> None:
        self.count += data.count(EVENT_END)
        if self._last == b"}" and data[:1] == b"\n":
            self.count += 1
        self._last = data[-1:]


def open_reads(port: int, requests: Sequence[bytes]) -> list[Read]:
    """Open reads. Return when all have begun."""
    reads: list[Read] = []
    for start in range(0, len(requests), AT_ONCE):
        some = [Read(port, request) for request in requests[start : start + AT_ONCE]]
        for read in some:
            read.begin()
        reads += some
    return reads


# -- The broker's API


@dataclass(frozen=True, slots=True)
class Channel:
    producer: str
    consumer: str


def make_channels(port: int, count: int) -> list[Channel]:
    """Create channels over several connections at once."""
    connections = [Connection(port) for _ in range(min(count, AT_ONCE))]
    request = post("/create", b"")
    channels: list[Channel] = []
    while len(channels) < count:
        some = connections[: count - len(channels)]
        for connection in some:
            connection.send(request)
        channels += [channel_of(connection.answer(OK)) for connection in some]
    for connection in connections:
        connection.close()
    return channels


def channel_of(answer: bytes) -> Channel:
    created: dict[str, Any] = json.loads(answer.partition(HEAD_END)[2])
    return Channel(created["producerAddress"], created["consumerAddress"])
