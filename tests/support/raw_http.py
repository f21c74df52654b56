"""HTTP/1.1 over bare sockets, from which only the requested bytes are read.

An ordinary client reads ahead, and decides itself how and when to close a connection. Tests of
broken connections must decide both.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from megaphone.errors import MegaphoneError
from megaphone.wire.errors import error_from
from tests.support import leaks

JSON = {"Content-Type": "application/json"}
RECEIVE_BYTES = 65_536
END_OF_HEAD = b"\r\n\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Broken(Exception):
    """The connection ended before the data on it was complete."""


@dataclass(frozen=True, slots=True)
class Node:
    """The ports of a broker."""

    http_port: int
    grpc_port: int
    host: str = "127.0.0.1"

    @property
    def grpc_target(self) -> str:
        return f"{self.host}:{self.grpc_port}"


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the headers of an answer."""

    status: int
    headers: Mapping[str, str]
    """The headers, by their names in lower case."""


class Connection:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()

    @classmethod
    async def open(cls, node: Node, *, receive_buffer: int | None = None) -> Self:
        connecting = socket.socket()
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer is not None:
                connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            await asyncio.get_running_loop().sock_connect(connecting, (node.host, node.http_port))
        except BaseException:
            connecting.close()
            raise
        return cls(connecting)

    @property
    def local_port(self) -> int:
        return int(self._socket.getsockname()[1])

    async def send(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise Broken from error

    async def receive(self, limit: int = RECEIVE_BYTES) -> bytes:
        """Return the bytes that have come, at least one. Raises: Broken, if no more will come."""
        if self._received:
            return self._take(min(limit, len(self._received)))
        return await self._receive_from_socket(limit)

    async def receive_until(self, end: bytes) -> bytes:
        """Return the bytes up to and including `end`."""
        while (at := self._received.find(end)) < 0:
            self._received += await self._receive_from_socket(RECEIVE_BYTES)
        return self._take(at + len(end))

    async def receive_exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._received += await self._receive_from_socket(RECEIVE_BYTES)
        return self._take(size)

    async def _receive_from_socket(self, limit: int) -> bytes:
        try:
            data = await self._loop.sock_recv(self._socket, limit)
        except OSError as error:
            raise Broken from error
        if not data:
            raise Broken
        return data

    def _take(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    # -- The ways in which a connection can end

    def close(self) -> None:
        self._socket.close()

    def half_close(self) -> None:
        """Close the sending direction, and continue to receive."""
        with suppress(OSError):  # the other end may have closed it first
            self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._socket.close()


def head_of(raw: bytes) -> Head:
    status_line, *lines = raw.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return Head(
        int(status_line.split(" ")[1]),
        {name.lower(): value.strip() for name, _, value in fields},
    )


def request_of(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: megaphone"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def receive_head(connection: Connection) -> Head:
    return head_of(await connection.receive_until(END_OF_HEAD))


async def receive_answer(connection: Connection) -> dict[str, Any]:
    """Return the JSON of an answer. Raises: Broken; MegaphoneError, the error in the answer."""
    head = await receive_head(connection)
    return await receive_body(connection, head)


async def receive_body(connection: Connection, head: Head) -> dict[str, Any]:
    answer: dict[str, Any]
    answer = json.loads(await connection.receive_exactly(int(head.headers["content-length"])))
    if head.status >= 400:
        raise told_error(answer)
    return answer


def told_error(answer: Mapping[str, Any]) -> MegaphoneError:
    if answer["code"] == "NODE_UNREACHABLE":  # by a proxy
        raise Broken(answer["message"])
    leaks.check(answer["message"], "an error over HTTP")
    error = error_from(answer["code"], answer["message"])
    assert error is not None, f"not an error of ours: {answer}"
    return error


async def post(connection: Connection, path: str, body: Any) -> dict[str, Any]:
    """Send JSON and return the JSON of the answer."""
    await connection.send(request_of("POST", path, json.dumps(body).encode(), JSON))
    return await receive_answer(connection)


async def post_once(node: Node, path: str, body: Any) -> dict[str, Any]:
    """Send JSON on a new connection, and return the JSON of the answer."""
    connection = await Connection.open(node)
    try:
        return await post(connection, path, body)
    finally:
        connection.close()


class ChunkedBody:
    """Decodes a chunked body byte by byte."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._left = 0
        """How many bytes of the current chunk, including its line break, are missing."""
        self.is_complete = False
        self.chunk_ends: list[int] = []
        """The last byte of each complete chunk."""

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that is in `data`."""
        self._pending += data
        body = bytearray()
        while self._pending and not self.is_complete and self._step(body):
            pass
        return bytes(body)

    def _step(self, body: bytearray) -> bool:
        """Decode one more piece. Returns: whether there were enough bytes for it."""
        if self._left == 0:
            return self._begin_chunk()
        piece = self._pending[: max(0, self._left - 2)]
        body += piece
        if self._left > 2 and self._left - len(piece) == 2:
            self.chunk_ends.append(piece[-1])
        del self._pending[: len(piece)]
        self._left -= len(piece)
        if self._left > 2 or len(self._pending) < self._left:
            return False
        assert self._pending[:2] == b"\r\n", "a chunk is not as long as it says"
        del self._pending[: self._left]
        self._left = 0
        return True

    def _begin_chunk(self) -> bool:
        size, found, _ = bytes(self._pending).partition(b"\r\n")
        if not found:
            return False
        length = int(size, 16)
        if length == 0:
            # The broker sends no trailers, so the end is one empty line.
            self.is_complete = self._pending.startswith(size + END_OF_HEAD)
            return self.is_complete
        del self._pending[: len(size) + 2]
        self._left = length + 2
        return True
