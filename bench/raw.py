"""HTTP/1.1 clients that do so little that they never limit a measurement."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from bench.processes import HOST, BenchError

HEAD_END = b"\r\n\r\n"
EVENT_END = b"}\n"
"""The end of an event line. It occurs nowhere else, because JSON texts have no raw line breaks."""
JSON = "application/json"


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {JSON}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


# -- Request and answer


class Answer(NamedTuple):
    status: int
    body: bytes


class Exchange(asyncio.Protocol):
    """A connection with one open request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def connect(cls, port: int) -> "Exchange":
        _, exchange = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return exchange

    async def ask(self, request: bytes, expected_status: int) -> bytes:
        """Send a request and return the body of its answer. Raises: BenchError."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        status, body = await self._answer
        if status != expected_status:
            raise BenchError(f"answered with {status}: {body[:200]!r}")
        return body

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(HEAD_END)
        if found and len(body) >= content_length(head) and self._answer is not None:
            self._received = b""
            self._answer.set_result(Answer(int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError("the server closed the connection"))


def content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


# -- Reading


class Tally:
    """Counts the events of any number of reads."""

    def __init__(self) -> None:
        self.count = 0
        self._goal = 0
        self._reached: asyncio.Future[None] | None = None

    def add(self, events: int) -> None:
        self.count += events
        if self.count >= self._goal and self._reached is not None and not self._reached.done():
            self._reached.set_result(None)

    def fail(self, why: str) -> None:
        if self._reached is not None and not self._reached.done():
            self._reached.set_exception(BenchError(why))

    async def reach(self, goal: int, timeout_s: float = 15.0) -> None:
        """Wait for a count. Raises: BenchError, if it is not reached, or is exceeded."""
        if self.count < goal:
            self._goal = goal
            self._reached = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._reached
            except TimeoutError:
                raise BenchError(f"{goal - self.count} of {goal} events never came") from None
        if self.count > goal:
            raise BenchError(f"{self.count - goal} events more than the {goal} that were sent")


class OpenRead(asyncio.Protocol):
    """A read that counts its events."""

    def __init__(self, path: str, tally: Tally) -> None:
        self._path = path
        self._tally = tally
        self._head = b""
        self._last = b""
        self._transport: asyncio.Transport | None = None
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, port: int, path: str, tally: Tally) -> "OpenRead":
        """Open a read, and return when its headers have come. Raises: BenchError."""
        loop = asyncio.get_running_loop()
        _, read = await loop.create_connection(lambda: cls(path, tally), HOST, port)
        await read.begun
        return read

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(get(self._path))

    def data_received(self, data: bytes) -> None:
        if self.begun.done():
            self._count(data)
            return
        self._head += data
        head, found, rest = self._head.partition(HEAD_END)
        if not found:
            return
        if head[9:12] == b"200":
            self.begun.set_result(None)
            self._count(rest)
        else:
            self.begun.set_exception(BenchError(f"a read was refused: {head[9:60]!r}"))

    def _count(self, data: bytes) -> None:
        events = data.count(EVENT_END)
        if self._last == b"}" and data[:1] == b"\n":
            events += 1
        self._last = data[-1:]
        if events:
            self._tally.add(events)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_exception(BenchError("the server closed a read"))
        self._tally.fail("the server ended a read")


# -- The broker's API


@dataclass(frozen=True, slots=True)
class Channel:
    producer: str
    consumer: str


async def make_channels(port: int, count: int) -> list[Channel]:
    exchange = await Exchange.connect(port)
    try:
        return [await make_channel(exchange) for _ in range(count)]
    finally:
        exchange.close()


async def make_channel(exchange: Exchange) -> Channel:
    created = json.loads(await exchange.ask(post("/create", b""), 200))
    return Channel(created["producerAddress"], created["consumerAddress"])


def batch_body(channels: list[str], bodies: list[bytes], stream_id: str) -> bytes:
    """Return the body of a request that writes the same events to channels."""
    messages: list[dict[str, Any]] = [
        {"streamId": stream_id, "body": json.loads(body)} for body in bodies
    ]
    whole = {"channels": channels, "messages": messages}
    return json.dumps(whole, separators=(",", ":")).encode()


async def ask_batch(exchange: Exchange, request: bytes) -> None:
    """Write a batch. Raises: BenchError, if any of its events was refused."""
    answer = await exchange.ask(request, 201)
    if json.loads(answer).get("failures"):
        raise BenchError(f"events of a batch were refused: {answer[:200]!r}")
