"""Writers over both faces that sometimes lose their connection before the answer comes.

Such a writer either leaves open what happened to its event, or repeats the write with the same
request id until it gets an answer. Each writer has one open write, or one open batch, at a time.
"""

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from megaphone.errors import MegaphoneError
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import Outcome, Write
from tests.support.faces import agent_of, keyed, segment, telling_errors
from tests.support.raw_http import Broken, Connection, Node, receive_answer, request_of

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

STREAM_ID = "s"
LARGEST_BATCH = 8


class Desk(Protocol):
    """A way to write."""

    async def write(self, body: bytes, request_id: str | None) -> str:
        """Write an event. Returns: its id. Raises: Broken; MegaphoneError, the error of the
        broker."""

    async def let_go(self, body: bytes, request_id: str | None) -> None:
        """Write, and lose the connection before the answer comes."""

    def close(self) -> None: ...


class HttpDesk:
    def __init__(self, node: Node, producer: str) -> None:
        self._node = node
        self._path = f"/write/{segment(producer)}/{STREAM_ID}"
        self._connection: Connection | None = None
        self._ways_to_go = cycle((Connection.close, Connection.reset))

    async def write(self, body: bytes, request_id: str | None) -> str:
        connection = await self._send(body, request_id)
        try:
            answer = await receive_answer(connection)
        except Broken:
            self.close()
            raise
        return str(answer["eid"])

    async def let_go(self, body: bytes, request_id: str | None) -> None:
        connection = await self._send(body, request_id)
        next(self._ways_to_go)(connection)
        self._connection = None

    async def _send(self, body: bytes, request_id: str | None) -> Connection:
        if self._connection is None:
            self._connection = await Connection.open(self._node)
        await self._connection.send(request_of("POST", self._path, body, keyed(request_id)))
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class GrpcDesk:
    def __init__(self, connection: grpc.aio.Channel, producer: str) -> None:
        self._stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)
        self._producer = producer

    async def write(self, body: bytes, request_id: str | None) -> str:
        with telling_errors():
            answer = await self._stub.Write(
                self._request(body, request_id), metadata=agent_of(self._producer)
            )
        return answer.event_id

    async def let_go(self, body: bytes, request_id: str | None) -> None:
        call = self._stub.Write(self._request(body, request_id), metadata=agent_of(self._producer))
        await asyncio.sleep(0)  # when the call is cancelled, it may have been sent or not
        call.cancel()
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call

    def _request(self, body: bytes, request_id: str | None) -> pb.WriteRequest:
        return pb.WriteRequest(
            producer_address=self._producer,
            stream_id=STREAM_ID,
            body=body,
            request_id=request_id or "",
        )

    def close(self) -> None:
        """Do nothing, because others use the connection too."""


class Writer:
    """Writes numbers one after the other, and records the answers."""

    def __init__(
        self, name: int, rng: random.Random, tick: Callable[[], int], note: Callable[[Write], None]
    ) -> None:
        self._name = name
        self._rng = rng
        self._tick = tick
        self._note = note
        self._padding = "x" * rng.choice((0, 0, 100, 1_000))

    async def write_all(self, desk: Desk, count: int, trouble: float = 0.05) -> None:
        """Write some numbers. For the share `trouble` of them, lose the connection before the
        answer."""
        try:
            for number in range(count):
                request_id = None
                began = self._tick()
                if self._rng.random() < trouble:
                    request_id = f"{self._name}/{number}" if self._rng.random() < 0.5 else None
                    await desk.let_go(self._body(number), request_id)
                    if request_id is None:
                        self._settle(number, Outcome.UNKNOWN, None, began, None)
                        continue
                await self._write(desk, number, request_id, began)
        finally:
            desk.close()

    async def _write(self, desk: Desk, number: int, request_id: str | None, began: int) -> None:
        try:
            event_id = await desk.write(self._body(number), request_id)
        except MegaphoneError:
            self._settle(number, Outcome.REFUSED, None, began, self._tick())
        else:
            self._settle(number, Outcome.TAKEN, event_id, began, self._tick())

    async def publish_all(self, connection: grpc.aio.Channel, producer: str, count: int) -> None:
        """Write some numbers as one gRPC stream of batches."""
        stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)
        call: Any = stub.Publish(metadata=agent_of(producer))
        try:
            first = 0
            while first < count:
                last = min(count, first + self._rng.randint(1, LARGEST_BATCH))
                began = self._tick()
                await call.write(self._batch(producer, range(first, last)))
                answer = await call.read()
                for number, result in zip(range(first, last), answer.results, strict=True):
                    taken = Outcome.TAKEN if result.event_id else Outcome.REFUSED
                    self._settle(number, taken, result.event_id or None, began, self._tick())
                first = last
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        finally:
            call.cancel()

    def _batch(self, producer: str, numbers: range) -> pb.PublishRequest:
        return pb.PublishRequest(
            events=[
                pb.WriteRequest(
                    producer_address=producer, stream_id=STREAM_ID, body=self._body(number)
                )
                for number in numbers
            ]
        )

    def _body(self, number: int) -> bytes:
        return json.dumps([self._name, number, self._padding]).encode()

    def _settle(
        self, number: int, outcome: Outcome, event_id: str | None, began: int, ended: int | None
    ) -> None:
        self._note(Write(self._name, number, outcome, event_id, began, ended))
