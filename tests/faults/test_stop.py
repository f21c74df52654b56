"""If a broker stops in the middle of traffic, every client learns of it.

Channels in memory end with their node, so events that nobody has read are lost. But every read ends
cleanly after a whole event, and has delivered a part of what was written, in order. No writer
hangs: each gets an answer, or its connection ends and new calls are refused.
"""

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from megaphone.errors import ShuttingDown
from megaphone.model import ReadOptions
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import Ending, Fault, Kind, Outcome, Read, Write, judge
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.fault_runs import Ledger
from tests.support.fault_writers import HttpDesk
from tests.support.process import broker_process
from tests.support.raw_http import Broken, Node, post_once

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

SEEDS = range(10)
TRANSPORTS = ("ndjson", "sse", "grpc")
ANSWERED_WITHIN_S = 5.0
GONE_WITHIN_S = 8.0
"""Less than a read or a waiting writer has. It takes a second, but several on a busy machine."""


class Refused(Exception):
    """A writer got an error, or could not connect."""


WriteOne = Callable[[bytes], Awaitable[str]]
"""Writes an event, and returns its id. Raises: Refused; Broken, if no answer came."""


def over_http(desk: HttpDesk) -> WriteOne:
    async def write(body: bytes) -> str:
        try:
            return await desk.write(body, None)
        except (ShuttingDown, ConnectionRefusedError) as error:
            raise Refused from error

    return write


def over_grpc(connection: grpc.aio.Channel, producer: str) -> WriteOne:
    stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)

    async def write(body: bytes) -> str:
        request = pb.WriteRequest(producer_address=producer, stream_id="s", body=body)
        try:
            return (await stub.Write(request)).event_id
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Refused from error
            if (
                error.code() is grpc.StatusCode.CANCELLED
            ):  # the call came too late to reach the broker
                raise Broken from error
            raise

    return write


async def write_until_refused(name: int, write: WriteOne, ledger: Ledger) -> None:
    for number in count():
        began = ledger.tick()
        event_id, outcome = None, Outcome.UNKNOWN
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                event_id = await write(json.dumps([name, number]).encode())
            outcome = Outcome.TAKEN
        except Refused:
            outcome = Outcome.REFUSED
        except Broken:
            pass
        ledger.note_write(Write(name, number, outcome, event_id, began, ledger.tick()))
        if outcome is Outcome.REFUSED:
            return


async def read_to_the_end(read: OpenRead, ledger: Ledger, enough: Callable[[], None]) -> None:
    """Follow a read. Raises: Broken, if it does not end cleanly after a whole event."""
    record = Read(ledger.tick())
    ledger.history.reads.append(record)
    while (events := await read.next()) is not None:
        for event in events:
            ledger.note_seen(record, event)
            enough()
    record.ending = Ending.CLEAN


class Traffic:
    """A channel with two writers and a reader, until its broker has stopped."""

    def __init__(
        self, node: Node, connection: grpc.aio.Channel, producer: str, read: OpenRead
    ) -> None:
        self.ledger = Ledger(Kind.PLAIN)
        self._desk = HttpDesk(node, producer)
        self._writes = (over_http(self._desk), over_grpc(connection, producer))
        self._read = read

    @classmethod
    async def open(cls, node: Node, connection: grpc.aio.Channel, transport: str) -> "Traffic":
        """Create a channel and begin to read it."""
        channel = await post_once(node, "/create", {})
        consumer, options = channel["consumerAddress"], ReadOptions()
        read: OpenRead
        if transport == "grpc":
            read = GrpcRead(connection, consumer, options)
        else:
            read = await HttpRead.ask(node, consumer, options, sse=transport == "sse")
        await read.begin()
        return cls(node, connection, channel["producerAddress"], read)

    async def run(self, seen: Callable[[], None]) -> None:
        """Write until the writers are refused, and read until the read ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read_to_the_end(self._read, self.ledger, seen))
                for name, write in enumerate(self._writes):
                    group.create_task(write_until_refused(name, write, self.ledger))
        finally:
            self._read.close()
            self._desk.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_stop_in_the_middle_of_traffic_leaves_nobody_in_the_dark(
    seed: int, tmp_path: Path
) -> None:
    left = random.Random(seed).randint(1, 400)
    enough = asyncio.Event()

    def seen() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            enough.set()

    with broker_process(tmp_path) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        async with asyncio.timeout(30), grpc_connection(node) as connection:
            channels = [await Traffic.open(node, connection, name) for name in TRANSPORTS]
            async with asyncio.TaskGroup() as group:
                for channel in channels:
                    group.create_task(channel.run(seen))
                await enough.wait()
                stopped_at = time.monotonic()
                broker.process.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(broker.process.wait, 10)
                took_s = time.monotonic() - stopped_at
    assert code == 0
    assert took_s < GONE_WITHIN_S
    assert left <= 0
    for channel in channels:
        verdict = judge(channel.ledger.history)
        # Unread events are lost with the node. They must be the last ones that were accepted.
        assert {anomaly.fault for anomaly in verdict.anomalies} <= {Fault.LOST}
        assert lost_is_the_end(channel.ledger)


def lost_is_the_end(ledger: Ledger) -> bool:
    """Whether the delivered events of each writer begin with its first event and have no gap."""
    delivered: dict[int, list[int]] = {}
    for read in ledger.history.reads:
        for event in read.events:
            delivered.setdefault(event.writer, []).append(event.number)
    return all(numbers == list(range(len(numbers))) for numbers in delivered.values())
