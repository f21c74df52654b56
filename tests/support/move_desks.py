"""Desks: the ways to write events to channels that move, and the way in which clients find the
node.

A desk writes one event over HTTP or gRPC, a batch to many channels over HTTP or gRPC, or a stream
of batches.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from megaphone.errors import (
    MegaphoneError,
    WriteTimeout,
)
from megaphone.model import SKIPPED, NewEvent
from megaphone.wire.errors import error_from
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.cluster import Cluster
from tests.support.faces import agent_of, batch_body, keyed, segment
from tests.support.move_ledger import Ledger, stream_id_of
from tests.support.raw_http import Broken, Connection, Node, receive_answer, request_of

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

RECONNECT = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)
AGAIN_S = 0.02
"""How long a client waits before it calls again."""
NOT_FOUND_AT_MOST = 5
"""After this many refusals in a row by the node that has the agent, the channel is lost."""


@dataclass(frozen=True, slots=True)
class Addresses:
    producer: str
    consumer: str


@dataclass(frozen=True, slots=True)
class Item:
    """One event for one channel."""

    number: int
    channel: int


Result = str | MegaphoneError
"""The id of an accepted event (empty if the answer does not contain it), or the error."""


def told(failed: grpc.aio.AioRpcError) -> Exception:
    """Return the error that a node sent over gRPC, or Broken if the error is not from the node."""
    details = dict(failed.trailing_metadata() or ()).get("grpc-status-details-bin")
    if isinstance(details, bytes):
        info = ErrorInfo()
        for detail in Status.FromString(details).details:
            if detail.Unpack(info) and (error := error_from(info.reason, failed.details() or "")):
                return error
    return Broken(repr(failed))


class Lines:
    """The gRPC connections of a run, one for each node."""

    def __init__(self) -> None:
        self._open: dict[str, grpc.aio.Channel] = {}

    def stub(self, node: Node) -> "ChannelServiceAsyncStub":
        target = node.grpc_target
        if target not in self._open:
            self._open[target] = grpc.aio.insecure_channel(target, options=RECONNECT)
        return ChannelServiceStub(self._open[target])

    async def aclose(self) -> None:
        for connection in self._open.values():
            await connection.close()


@dataclass(slots=True)
class Shared:
    """The things that all clients of a run share."""

    cluster: Cluster
    lines: Lines
    ledger: Ledger
    agent: str
    channels: list[Addresses]


class Way:
    """Finds the node of the channels before each call of one client."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._last = shared.cluster.members[0]

    async def node(self) -> Node:
        """Raises: Gone."""
        self._last = await self._shared.cluster.owner_of(self._shared.agent, self._last)
        return self._last.address


# -- Desks


class Desk(Protocol):
    """Writes events in one call."""

    repeats_all: bool
    """Whether a repetition must contain all events of the first call."""

    async def send(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> list[Result]:
        """Write the events. Raises: Broken, if no answer comes; MegaphoneError, if all were
        refused."""

    async def lose(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> None:
        """Write the events, and lose the answer."""

    def close(self) -> None: ...


class HttpDesk:
    """`POST /write`, or `POST /write-batch` to all channels."""

    def __init__(self, shared: Shared, writer: int, *, batches: bool) -> None:
        self._shared = shared
        self._writer = writer
        self.repeats_all = batches
        self._node: Node | None = None
        self._connection: Connection | None = None

    async def send(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> list[Result]:
        connection = await self._sent(node, items, key)
        try:
            answer = await receive_answer(connection)
        except Broken:
            self.close()
            raise
        if not self.repeats_all:
            return [str(answer["eid"])]
        failures = answer["failures"]
        return batch_results(
            self._shared, items, [(f["channel"], f["index"], f["reason"]) for f in failures]
        )

    async def lose(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> None:
        connection = await self._sent(node, items, key)
        connection.close()
        self._connection = None

    async def _sent(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> Connection:
        if self._node != node:
            self.close()
        try:
            if self._connection is None:
                self._node, self._connection = node, await Connection.open(node)
            await self._connection.send(self._request(items, key))
        except (OSError, Broken):
            self.close()
            raise Broken from None
        return self._connection

    def _request(self, items: Sequence[tuple[Item, bytes]], key: str | None) -> bytes:
        if self.repeats_all:
            addresses = [one.producer for one in self._shared.channels]
            body = batch_body(addresses, messages_of(self._writer, items))
            return request_of("POST", "/write-batch", body, keyed(key))
        [(item, body)] = items
        producer = self._shared.channels[item.channel].producer
        stream_id = stream_id_of(self._writer, item.number, item.channel)
        return request_of("POST", f"/write/{segment(producer)}/{stream_id}", body, keyed(key))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class GrpcDesk:
    """`Write`, or `WriteBatch` to all channels."""

    def __init__(self, shared: Shared, writer: int, *, batches: bool) -> None:
        self._shared = shared
        self._writer = writer
        self.repeats_all = batches

    async def send(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> list[Result]:
        try:
            answer = await self._call(node, items, key)
        except grpc.aio.AioRpcError as failed:
            raise told(failed) from failed
        if not self.repeats_all:
            return [answer.event_id]
        failures = [(f.channel, f.index, f.reason) for f in answer.failures]
        return batch_results(self._shared, items, failures)

    async def lose(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> None:
        call = self._call(node, items, key)
        await asyncio.sleep(0.005)  # when the call is cancelled, it may have been sent or not
        call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call

    def _call(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> Any:
        stub, metadata = self._shared.lines.stub(node), agent_of(self._shared.channels[0].producer)
        if not self.repeats_all:
            return stub.Write(
                request_for(self._shared, self._writer, *items[0], key), metadata=metadata
            )
        request = pb.WriteBatchRequest(
            channels=[one.producer for one in self._shared.channels],
            messages=[
                pb.WriteBatchRequest.Message(stream_id=one.stream_id, body=one.body)
                for one in messages_of(self._writer, items)
            ],
            request_id=key or "",
        )
        return stub.WriteBatch(request, metadata=metadata)

    def close(self) -> None:
        """Do nothing, because others use the connection too."""


class PublishDesk:
    """`Publish`: one stream of batches, in which each event has its own key."""

    repeats_all = False

    def __init__(self, shared: Shared, writer: int) -> None:
        self._shared = shared
        self._writer = writer
        self._node: Node | None = None
        self._stream: Any = None

    async def send(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> list[Result]:
        try:
            await self._hand_in(node, items, key)
            answer = await self._stream.read()
        except grpc.aio.AioRpcError as failed:
            self.close()
            raise told(failed) from failed
        except asyncio.InvalidStateError:
            self.close()
            raise Broken from None
        if answer is grpc.aio.EOF:
            self.close()
            raise Broken
        return [
            result.event_id or error_of(result.reason, result.message) for result in answer.results
        ]

    async def lose(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._hand_in(node, items, key)
        self.close()

    async def _hand_in(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> None:
        if self._stream is None or self._node != node:
            self.close()
            self._node = node
            metadata = agent_of(self._shared.channels[0].producer)
            self._stream = self._shared.lines.stub(node).Publish(metadata=metadata)
        events = [
            request_for(self._shared, self._writer, item, body, key and f"{key}-{item.number}")
            for item, body in items
        ]
        await self._stream.write(pb.PublishRequest(events=events))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def request_for(
    shared: Shared, writer: int, item: Item, body: bytes, key: str | None
) -> pb.WriteRequest:
    return pb.WriteRequest(
        producer_address=shared.channels[item.channel].producer,
        stream_id=stream_id_of(writer, item.number, item.channel),
        body=body,
        request_id=key or "",
    )


def messages_of(writer: int, items: Sequence[tuple[Item, bytes]]) -> list[NewEvent]:
    """Return the messages of a batch. Each message goes to all channels."""
    bodies = {item.number: body for item, body in items}
    return [NewEvent(stream_id_of(writer, n, None), body) for n, body in bodies.items()]


def batch_results(
    shared: Shared, items: Sequence[tuple[Item, bytes]], failures: Sequence[tuple[str, int, str]]
) -> list[Result]:
    """Return the result of each item of a batch. The answer names only items that failed."""
    numbers = list({item.number: None for item, _ in items})
    channels = {one.producer: number for number, one in enumerate(shared.channels)}
    reasons = {(channels[one], numbers[index]): reason for one, index, reason in failures}
    return [
        error_of(reason) if (reason := reasons.get((item.channel, item.number))) else ""
        for item, _ in items
    ]


def error_of(code: str, message: str = "") -> MegaphoneError:
    error = WriteTimeout() if code == SKIPPED else error_from(code, message)
    assert error is not None, f"no code of ours: {code}"
    return error
