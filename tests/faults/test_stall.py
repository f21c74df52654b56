"""A stalled reader makes its writers wait, costs the broker no memory, and is noticed."""

import asyncio
import time
from pathlib import Path

import aiohttp
import grpc
import pytest

from megaphone.errors import WriteTimeout
from megaphone.model import ReadOptions
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.fault_readers import HttpRead
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process
from tests.support.raw_http import Node

CAPACITY = 100
BODY = b'"' + b"x" * 1_000 + b'"'
GROWTH_BYTES = 1_000_000
NOTICED_WITHIN_S = 12.0
ACKNOWLEDGING = ReadOptions(acknowledge=True)


def resident_bytes(broker: BrokerProcess) -> int:
    status = Path(f"/proc/{broker.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


async def create(session: aiohttp.ClientSession) -> tuple[str, str]:
    async with session.post("/create") as response:
        addresses = await response.json()
    return addresses["producerAddress"], addresses["consumerAddress"]


async def write(session: aiohttp.ClientSession, producer: str) -> str:
    headers = {"Content-Type": "application/json"}
    async with session.post(f"/write/{producer}/s", data=BODY, headers=headers) as response:
        answer: dict[str, str] = await response.json()
    return answer.get("code", "OK")


@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_a_stalled_acknowledging_reader_is_back_pressure(over: str, tmp_path: Path) -> None:
    with broker_process(tmp_path, MEGAPHONE, write_timeout_millis=300) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        async with (
            aiohttp.ClientSession(broker.url) as session,
            grpc.aio.insecure_channel(broker.grpc_target) as connection,
            asyncio.timeout(60),
        ):
            producer, warm_up = await create(session)
            assert [await write(session, producer) for _ in range(CAPACITY)] == ["OK"] * CAPACITY
            async with session.get(f"/read/{warm_up}?wait_ms=0") as response:
                await response.read()

            producer, consumer = await create(session)
            before = resident_bytes(broker)
            if over == "http":
                read = await HttpRead.ask(node, consumer, ACKNOWLEDGING, receive_buffer=4_096)
                await read.begin()
            else:
                request = pb.ReadRequest(consumer_address=consumer, acknowledge=True)
                call = ChannelServiceStub(connection).Read(request)
                await call.initial_metadata()
            assert [await write(session, producer) for _ in range(CAPACITY)] == ["OK"] * CAPACITY
            for _ in range(5):
                assert await write(session, producer) == WriteTimeout.code
            assert resident_bytes(broker) - before < GROWTH_BYTES
            if over == "http":
                read.close()
            else:
                call.cancel()


async def test_a_stalled_plain_reader_is_noticed_and_what_it_was_sent_comes_again(
    tmp_path: Path,
) -> None:
    with broker_process(tmp_path, buffer_capacity=1_000, write_timeout_millis=100) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        async with aiohttp.ClientSession(broker.url) as session, asyncio.timeout(60):
            producer, consumer = await create(session)
            read = await HttpRead.ask(node, consumer, ReadOptions(), receive_buffer=4_096)
            await read.begin()
            for _ in range(500):
                assert await write(session, producer) == "OK"
            stalled_at = time.monotonic()
            while True:
                async with session.get(f"/read/{consumer}?wait_ms=0") as response:
                    if response.status == 200:
                        lines = (await response.read()).count(b"\n")
                        break
                await asyncio.sleep(0.1)
            assert time.monotonic() - stalled_at < NOTICED_WITHIN_S
            assert lines > 0
            read.close()


async def test_a_request_whose_headers_or_body_never_arrive_holds_up_nobody_else(
    tmp_path: Path,
) -> None:
    with broker_process(tmp_path) as broker:
        slow = []
        for begun in (
            b"POST /create HT",
            b"POST /write-batch HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", broker.http_port)
            writer.write(begun)
            slow.append(writer)
        async with aiohttp.ClientSession(broker.url) as session, asyncio.timeout(10):
            producer, _ = await create(session)
            assert await write(session, producer) == "OK"
        for writer in slow:
            writer.close()
