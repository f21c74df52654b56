"""Readers that can be made to end in every way in which a client can go away.

A read is asked for, begun, followed event by event and then left: cleanly, when the broker ends it,
or by a `Cut` at a chosen event. Bodies are `[writer, number, padding]`, as `fault_writers` makes
them.
"""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

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
    """What comes after as many is not looked at; `BEFORE_ANSWER` is right after the request."""
    piece_bytes: int = RECEIVE_BYTES
    """Over HTTP, how much is received at once until then: so that it can be in mid-line."""
    stall_s: float = 0.0


class OpenRead(Protocol):
    """A read that was asked for."""

    recovered: bool | None

    async def begin(self) -> None:
        """Wait for the answer. Raises: Broken; MegaphoneError, the one that was told."""

    async def next(self) -> list[Seen] | None:
        """Return what has come, perhaps nothing, or None at a clean end.

        Raises: Broken; MegaphoneError, if gRPC tells of it only now.
        """

    async def cut(self, cut: Cut) -> None:
        """Go away; what still comes is not looked at."""

    def close(self) -> None:
        """Let go of everything."""


# -- HTTP


class NdjsonLines:
    """Finds events in a stream of lines."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Seen]:
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [seen_in(line) for line in lines if line]


class SseBlocks:
    """Finds events in a stream of server-sent events, and checks that their ids are the events'."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Seen]:
        *blocks, self._pending = (self._pending + data).split(b"\n\n")
        return [self._event_of(block) for block in blocks if block.startswith(b"id: ")]

    @staticmethod
    def _event_of(block: bytes) -> Seen:
        event_id, _, data = block.removeprefix(b"id: ").partition(b"\ndata: ")
        seen = seen_in(data)
        assert seen.event_id == event_id.decode()
        return seen


def seen_in(line: bytes) -> Seen:
    event = json.loads(line)
    writer, number, *_ = event["body"]
    return Seen(event["eid"], writer, number)


class HttpRead:
    def __init__(self, connection: Connection, address: str, *, sse: bool, piece: int) -> None:
        self.recovered: bool | None = None
        self._connection = connection
        self._address = address
        self._piece_bytes = piece
        self._body = ChunkedBody()
        self._events: NdjsonLines | SseBlocks = SseBlocks() if sse else NdjsonLines()

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
    ) -> "HttpRead":
        connection = await Connection.open(node, receive_buffer=receive_buffer)
        read = cls(connection, address, sse=sse, piece=piece_bytes)
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
        assert set(self._body.chunk_ends) <= {LINE_BREAK}, "a chunk is not whole lines"
        self._body.chunk_ends.clear()
        return self._events.feed(data)

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
        # An EventSource that comes back tells where it is by a header, and thereby takes over.
        if options.after_event_id is not None:
            headers["Last-Event-ID"] = options.after_event_id
            options = replace(options, after_event_id=None)
    return request_of("GET", f"/read/{segment(address)}{query_of(options)}", headers=headers)


# -- gRPC


class GrpcRead:
    def __init__(self, connection: grpc.aio.Channel, address: str, options: ReadOptions) -> None:
        self.recovered: bool | None = None
        self._connection = connection
        stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)
        self._call = stub.Read(read_request(address, options), metadata=agent_of(address))

    async def begin(self) -> None:
        metadata = await self._call.initial_metadata()
        recovered = metadata.get("megaphone-recovered")
        self.recovered = None if recovered is None else recovered == "true"

    async def next(self) -> list[Seen] | None:
        with telling_errors():
            message = await self._call.read()
        if not isinstance(message, pb.ReadResponse):
            return None
        return [seen_of(event) for event in message.events]

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


def seen_of(event: pb.Event) -> Seen:
    writer, number, *_ = json.loads(event.body)
    return Seen(event.event_id, writer, number)


def grpc_connection(node: Node, *options: tuple[str, int]) -> grpc.aio.Channel:
    """Return a channel that shares its TCP connection with no other."""
    return grpc.aio.insecure_channel(
        node.grpc_target, options=[("grpc.use_local_subchannel_pool", 1), *options]
    )
