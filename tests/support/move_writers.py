"""Writers to channels that move: one event at a time, batches to many channels, and streams.

Each does what a good client does. It finds the node, and finds it again when a call comes too
late. A write without an answer it writes again under the same key, perhaps on another node by then.
Now and then it loses an answer on purpose, and now and then it repeats a write that was answered.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from megaphone.errors import (
    ChannelNotFound,
    MegaphoneError,
    WriteTimeout,
)
from megaphone.model import SKIPPED, Message
from megaphone.wire.errors import error_from
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import Outcome, Write
from tests.support.cluster import Cluster, Gone
from tests.support.faces import agent_of, batch_body, keyed, segment
from tests.support.move_ledger import Ledger, draw_size, stream_id_of
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
KEY_HOLDS_S = 45.0
"""How long a write is repeated under its key; it is promised to hold for 60 s."""
NOT_FOUND_AT_MOST = 5
"""So many refusals in a row by the node that has the agent: then its channel is not there."""


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
"""The id of an event that was taken, empty where it is not said; or why it was not."""


def told(failed: grpc.aio.AioRpcError) -> Exception:
    """Return the error that a node told over gRPC, or Broken if none has come from it."""
    details = dict(failed.trailing_metadata() or ()).get("grpc-status-details-bin")
    if isinstance(details, bytes):
        info = ErrorInfo()
        for detail in Status.FromString(details).details:
            if detail.Unpack(info) and (error := error_from(info.reason, failed.details() or "")):
                return error
    return Broken(repr(failed))


class Lines:
    """The gRPC connections of a run, one to each node."""

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
    """What all clients of a run share."""

    cluster: Cluster
    lines: Lines
    ledger: Ledger
    agent: str
    channels: list[Addresses]


class Way:
    """How one client finds the node of its channels, before each call."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._last = shared.cluster.members[0]

    async def node(self) -> Node:
        """Raises: Gone."""
        self._last = await self._shared.cluster.owner_of(self._shared.agent, self._last)
        return self._last.address


# -- Desks: where events are handed in


class Desk(Protocol):
    """Hands in events, in one call."""

    repeats_all: bool
    """Whether a repetition must hold all that the first call held."""

    async def send(
        self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None
    ) -> list[Result]:
        """Raises: Broken, when there is no answer; MegaphoneError, when none was taken."""

    async def lose(self, node: Node, items: Sequence[tuple[Item, bytes]], key: str | None) -> None:
        """Hand them in, and lose the answer."""

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
        await asyncio.sleep(0.005)  # it is sent, or not, by the time it is cancelled
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
        """The connection is not this desk's."""


class PublishDesk:
    """`Publish`: one stream of batches, each event with a key of its own."""

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


def messages_of(writer: int, items: Sequence[tuple[Item, bytes]]) -> list[Message]:
    """Return the messages of a batch, each of which goes to all channels."""
    bodies = {item.number: body for item, body in items}
    return [Message(stream_id_of(writer, n, None), body) for n, body in bodies.items()]


def batch_results(
    shared: Shared, items: Sequence[tuple[Item, bytes]], failures: Sequence[tuple[str, int, str]]
) -> list[Result]:
    """Return what became of each item of a batch, whose answer names only what was not taken."""
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


# -- Writers


@dataclass(slots=True)
class State:
    """What a writer knows of one event."""

    ids: list[str] = field(default_factory=list)
    is_taken: bool = False
    may_be_taken: bool = False
    took_one_call: bool = True


class Writer:
    """Writes numbers in order, each until it knows what became of it, or gives up."""

    def __init__(
        self, name: int, desk: Desk, shared: Shared, rng: random.Random, *, has_keys: bool
    ) -> None:
        self._name = name
        self._desk = desk
        self._shared = shared
        self._ledger = shared.ledger
        self._rng = rng
        self._has_keys = has_keys
        self._way = Way(shared)

    async def write(self, count: int, pause_s: float, largest_bytes: int, at_once: int) -> None:
        """Write so many events, some of them in one call, with pauses of about this length."""
        number = 0
        try:
            while number < count:
                size = self._rng.randint(1, at_once)
                numbers = range(number, min(count, number + size))
                await self._settle(numbers, largest_bytes // len(numbers))
                number = numbers.stop
                await asyncio.sleep(self._rng.uniform(0, 2 * pause_s))
        except Gone:
            return
        finally:
            self._desk.close()

    async def _settle(self, numbers: range, largest_bytes: int) -> None:
        items = [
            (item, body)
            for number in numbers
            for body in [self._make(number, largest_bytes)]
            for item in self._items_of(number)
        ]
        states = {item: State() for item, _ in items}
        began = self._ledger.tick()
        try:
            await self._call_until_settled(items, states, f"{self._name}-{numbers.start}")
        finally:
            for item, state in states.items():
                self._note(item, state, began)

    def _make(self, number: int, largest_bytes: int) -> bytes:
        return self._ledger.make_body(self._name, number, draw_size(self._rng, largest_bytes))

    def _items_of(self, number: int) -> list[Item]:
        channels = range(len(self._shared.channels))
        if self._desk.repeats_all:
            return [Item(number, channel) for channel in channels]
        return [Item(number, self._rng.choice(channels))]

    async def _call_until_settled(
        self, items: list[tuple[Item, bytes]], states: dict[Item, State], key: str
    ) -> None:
        clock = asyncio.get_running_loop().time
        gives_up_at = clock() + KEY_HOLDS_S
        patience, missing, calls = self._rng.randint(1, 6), 0, 0
        loses_answer = self._rng.random() < 0.15
        repeats = self._has_keys and self._rng.random() < 0.1
        while clock() < gives_up_at:
            left = [(i, b) for i, b in items if self._desk.repeats_all or not states[i].is_taken]
            node = await self._way.node()
            calls += 1
            errors: list[MegaphoneError] = []
            try:
                if loses_answer:
                    loses_answer = False
                    for item, _ in left:
                        states[item].may_be_taken = True
                    await self._desk.lose(node, left, key if self._has_keys else None)
                    raise Broken
                results = await self._desk.send(node, left, key if self._has_keys else None)
                for (item, _), result in zip(left, results, strict=True):
                    self._learn(states[item], result, errors, calls)
            except Broken:
                for item, _ in left:
                    states[item].may_be_taken = True
                if not self._has_keys:
                    return
                await asyncio.sleep(self._rng.choice((0, AGAIN_S, self._rng.uniform(0, 0.5))))
                continue
            except MegaphoneError as error:
                errors = [error]
            if not errors:
                if not repeats:
                    return
                repeats = False  # as if the answer had been lost
                await asyncio.sleep(self._rng.uniform(0, 0.3))
                await self._repeat(items, states, key)
                return
            if self._desk.repeats_all and not self._has_keys:
                return
            missing = missing + 1 if isinstance(errors[0], ChannelNotFound) else 0
            patience -= isinstance(errors[0], WriteTimeout)
            if missing == NOT_FOUND_AT_MOST or patience == 0:
                return
            await asyncio.sleep(AGAIN_S)

    def _learn(
        self, state: State, result: Result, errors: list[MegaphoneError], calls: int
    ) -> None:
        if isinstance(result, str):
            state.took_one_call = state.took_one_call and (state.is_taken or calls == 1)
            state.is_taken = True
            if result:
                state.ids.append(result)
        elif not state.is_taken:
            errors.append(result)

    async def _repeat(
        self, items: list[tuple[Item, bytes]], states: dict[Item, State], key: str
    ) -> None:
        """Write again what was taken. Whatever comes of it, it must not be there twice."""
        node = await self._way.node()
        with suppress(Broken, MegaphoneError):
            results = await self._desk.send(node, items, key)
            for (item, _), result in zip(items, results, strict=True):
                if isinstance(result, str) and result:
                    states[item].ids.append(result)

    def _note(self, item: Item, state: State, began: int) -> None:
        ended: int | None = self._ledger.tick()
        if state.is_taken:
            outcome = Outcome.TAKEN
        elif state.may_be_taken:
            outcome, ended = Outcome.UNKNOWN, None
        else:
            outcome = Outcome.REFUSED
        self._ledger.note_write(
            item.channel,
            Write(
                self._name,
                item.number,
                outcome,
                state.ids[0] if state.ids else None,
                began,
                ended,
                repeated_ids=tuple(state.ids[1:]),
                is_in_sequence=state.took_one_call,
            ),
        )
