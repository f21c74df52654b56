"""Readers that can end in every way in which a client can go away.

A reader requests a read and follows it event by event. The read ends cleanly when the broker ends
it, or the reader leaves it by a `Cut` at a chosen event. Bodies are `[writer, number, padding]`, as
`fault_writers` makes them.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from megaphone.model import ReadOptions
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import Seen
from tests.support.faces import agent_of, query_of, read_request, segment, telling_errors
from tests.support.raw_http import (
    RECEIVE_BYTES,
    Broken,
    ChunkedBody,
    Connection,
    Node,
    receive_body,
    receive_head,
    request_of,
)

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

LINE_BREAK = 0x0A


class How(Enum):
    """The ways in which a reader goes away."""

    FIN = "close"
    RESET = "reset"
    HALF_CLOSE = "half-close"
    PIPELINE = "pipeline requests, then close"
    STALL = "take nothing for a while, then close"
    ABANDON = "leave it open, and take nothing any more"
    CANCEL = "cancel the call"
    CLOSE_CHANNEL = "close the channel"


HTTP_CUTS = (How.FIN, How.RESET, How.HALF_CLOSE, How.PIPELINE, How.STALL, How.ABANDON)
GRPC_CUTS = (How.CANCEL, How.CLOSE_CHANNEL, How.STALL, How.ABANDON)

BEFORE_ANSWER = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """When and how a reader goes away."""

    how: How
    after_events: int
    """The reader ignores everything after this many events; `BEFORE_ANSWER` means at once after the
    request."""
    piece_bytes: int = RECEIVE_BYTES
    """Over HTTP, how many bytes the reader receives at once, so that a cut can be within a line."""
    stall_s: float = 0.0


class OpenRead(Protocol):
    """A requested read."""

    @property
    def recovered(self) -> bool | None:
        """Whether the node knew the cursor; None if it has not said so."""

    @property
    def is_torn(self) -> bool:
        """Whether a part of an event has come, but not its end."""

    async def begin(self) -> None:
        """Wait for the answer. Raises: Broken; MegaphoneError, the error of the node."""

    async def next(self) -> list[Seen] | None:
        """Return the events that have come, perhaps none, or None at a clean end.

        Raises: Broken; MegaphoneError, if gRPC reports the error only now.
        """

    async def cut(self, cut: Cut) -> None:
        """Go away, and ignore everything that still comes."""

    def close(self) -> None:
        """Close all connections."""


# -- HTTP


Recognize = Callable[[str, str, Any], Seen]
"""Identifies an event by its id, its stream and its decoded body."""


def by_body(event_id: str, stream_id: str, body: Any) -> Seen:
    """Identify an event whose body begins with its writer and its number."""
    writer, number, *_ = body
    return Seen(event_id, writer, number)


class Pieces:
    """Joins pieces of data into parts of any size, each of which ends with a separator."""

    def __init__(self, separator: bytes) -> None:
        self._separator = separator
        self._pieces: list[bytes] = []

    @property
    def is_torn(self) -> bool:
        return bool(self._pieces)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the parts that are complete now."""
        if self._pieces and len(self._separator) > 1:
            data = self._pieces.pop() + data  # the separator may be cut as well
        first, *others = data.split(self._separator)
        if not others:
            if first:
                self._pieces.append(first)
            return []
        whole = [b"".join([*self._pieces, first]), *others[:-1]]
        self._pieces = [others[-1]] if others[-1] else []
        return whole


class NdjsonLines:
    """Finds events in a stream of lines."""

    def __init__(self, recognize: Recognize = by_body) -> None:
        self._recognize = recognize
        self._lines = Pieces(b"\n")

    @property
    def is_torn(self) -> bool:
        """Whether a part of an event has come."""
        return self._lines.is_torn

    def feed(self, data: bytes) -> list[Seen]:
        return [seen_in(line, self._recognize) for line in self._lines.feed(data) if line]


class SseBlocks:
    """Finds events in a stream of server-sent events, and checks the id of each."""

    def __init__(self, recognize: Recognize = by_body) -> None:
        self._recognize = recognize
        self._blocks = Pieces(b"\n\n")

    @property
    def is_torn(self) -> bool:
        """Whether a part of an event has come."""
        return self._blocks.is_torn

    def feed(self, data: bytes) -> list[Seen]:
        blocks = self._blocks.feed(data)
        return [self._event_of(block) for block in blocks if block.startswith(b"id: ")]

    def _event_of(self, block: bytes) -> Seen:
        event_id, _, data = block.removeprefix(b"id: ").partition(b"\ndata: ")
        seen = seen_in(data, self._recognize)
        assert seen.event_id == event_id.decode()
        return seen


def seen_in(line: bytes, recognize: Recognize = by_body) -> Seen:
    event = json.loads(line)
    return recognize(event["eid"], event["sid"], event["body"])


class HttpRead:
    def __init__(
        self,
        connection: Connection,
        address: str,
        *,
        sse: bool,
        piece: int,
        recognize: Recognize = by_body,
    ) -> None:
        self.recovered: bool | None = None
        self._connection = connection
        self._address = address
        self._piece_bytes = piece
        self._body = ChunkedBody()
        self.is_proxied = False
        """Whether a proxy stands between, which may cut the stream into other chunks."""
        self.parser = SseBlocks(recognize) if sse else NdjsonLines(recognize)

    @property
    def is_torn(self) -> bool:
        return self.parser.is_torn

    @classmethod
    async def ask(
        cls,
        node: Node,
        address: str,
        options: ReadOptions,
        *,
        sse: bool = False,
        piece_bytes: int = RECEIVE_BYTES,
        receive_buffer: int | None = None,
        recognize: Recognize = by_body,
    ) -> "HttpRead":
        connection = await Connection.open(node, receive_buffer=receive_buffer)
        read = cls(connection, address, sse=sse, piece=piece_bytes, recognize=recognize)
        try:
            await connection.send(read_line(address, options, sse=sse))
        except BaseException:
            connection.close()
            raise
        return read

    async def begin(self) -> None:
        head = await receive_head(self._connection)
        if head.status != 200:
            await receive_body(self._connection, head)
        recovered = head.headers.get("megaphone-recovered")
        self.recovered = None if recovered is None else recovered == "true"

    async def next(self) -> list[Seen] | None:
        if self._body.is_complete:
            return None
        data = self._body.feed(await self._connection.receive(self._piece_bytes))
        are_lines = set(self._body.chunk_ends) <= {LINE_BREAK}
        assert are_lines or self.is_proxied, "a chunk is not whole lines"
        self._body.chunk_ends.clear()
        return self.parser.feed(data)

    async def cut(self, cut: Cut) -> None:
        match cut.how:
            case How.RESET:
                self._connection.reset()
            case How.HALF_CLOSE:
                await self._half_close()
            case How.PIPELINE:
                await self._pipeline()
            case How.STALL:
                await asyncio.sleep(cut.stall_s)
        if cut.how is not How.ABANDON:
            self._connection.close()

    async def _half_close(self) -> None:
        self._connection.half_close()
        with suppress(Broken):
            while True:
                await self._connection.receive()

    async def _pipeline(self) -> None:
        others = [request_of("GET", "/livez")] * 20
        others.append(read_line(self._address, ReadOptions(), sse=False))
        with suppress(Broken):  # the read may just have ended
            await self._connection.send(b"".join(others))

    def close(self) -> None:
        self._connection.close()


def read_line(address: str, options: ReadOptions, *, sse: bool) -> bytes:
    headers = {}
    if sse:
        headers["Accept"] = "text/event-stream"
        # An EventSource that reconnects sends its cursor in a header, and so takes over.
        if options.cursor is not None:
            headers["Last-Event-ID"] = options.cursor
            options = replace(options, cursor=None)
    return request_of("GET", f"/read/{segment(address)}{query_of(options)}", headers=headers)


# -- gRPC


class GrpcRead:
    is_torn = False  # a message comes whole or not at all

    def __init__(
        self,
        connection: grpc.aio.Channel,
        address: str,
        options: ReadOptions,
        recognize: Recognize = by_body,
    ) -> None:
        self.recovered: bool | None = None
        self._recognize = recognize
        self._connection = connection
        stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)
        self._call = stub.Read(read_request(address, options), metadata=agent_of(address))

    async def begin(self) -> None:
        metadata = await self._call.initial_metadata()
        recovered = metadata.get("megaphone-recovered")
        self.recovered = None if recovered is None else recovered == "true"

    async def next(self) -> list[Seen] | None:
        with telling_errors():
            return await self.next_or_error()

    async def next_or_error(self) -> list[Seen] | None:
        """Return the events that have come, or None at the end. Raises: AioRpcError."""
        message = await self._call.read()
        if not isinstance(message, pb.ReadResponse):
            return None
        return [
            self._recognize(event.event_id, event.stream_id, json.loads(event.body))
            for event in message.events
        ]

    async def cut(self, cut: Cut) -> None:
        match cut.how:
            case How.CLOSE_CHANNEL:
                await self._connection.close()
            case How.STALL:
                await asyncio.sleep(cut.stall_s)
        if cut.how is not How.ABANDON:
            self._call.cancel()

    def close(self) -> None:
        self._call.cancel()


def grpc_connection(node: Node, *options: tuple[str, int]) -> grpc.aio.Channel:
    """Return a gRPC channel with its own TCP connection."""
    return grpc.aio.insecure_channel(
        node.grpc_target, options=[("grpc.use_local_subchannel_pool", 1), *options]
    )
