"""However a reader goes away, its channel is free for the next reader at once.

`test_process` tests FIN and RST against a broker process.
"""

import asyncio
import statistics
import sys
import time

import pytest

from megaphone.app import App
from megaphone.errors import ReaderBusy
from megaphone.model import ReadOptions
from tests.support.fault_readers import (
    GRPC_CUTS,
    HTTP_CUTS,
    Cut,
    GrpcRead,
    How,
    HttpRead,
    OpenRead,
    grpc_connection,
)
from tests.support.raw_http import Node, post_once

TRIES = 20
KILLS = 4
MEDIAN_S = 0.05
EACH_S = 1.0
AT_ONCE = frozenset(HTTP_CUTS + GRPC_CUTS) - {How.STALL, How.ABANDON}
WAYS = [
    *(("ndjson", how) for how in HTTP_CUTS if how in AT_ONCE),
    ("sse", How.FIN),
    *(("grpc", how) for how in GRPC_CUTS if how in AT_ONCE),
]

GRPC_READER = """
import sys
import grpc
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub

with grpc.insecure_channel(sys.argv[1]) as connection:
    call = ChannelServiceStub(connection).Read(pb.ReadRequest(consumer_address=sys.argv[2]))
    call.initial_metadata()
    print("open", flush=True)
    list(call)
"""


@pytest.fixture
def node(app: App) -> Node:
    return Node(app.http_port, app.grpc_port)


async def time_until_free(node: Node, consumer: str) -> float:
    """Request reads until the broker accepts one. Returns: how long that took."""
    started = time.monotonic()
    while True:
        read = await HttpRead.ask(node, consumer, ReadOptions(wait_s=0))
        try:
            await read.begin()
            while await read.next() is not None:
                pass
            return time.monotonic() - started
        except ReaderBusy:
            await asyncio.sleep(0.001)
        finally:
            read.close()


async def go_away(node: Node, transport: str, consumer: str, how: How) -> None:
    async with grpc_connection(node) as connection:
        read: OpenRead
        if transport == "grpc":
            read = GrpcRead(connection, consumer, ReadOptions())
        else:
            read = await HttpRead.ask(node, consumer, ReadOptions(), sse=transport == "sse")
        try:
            await read.begin()
            await read.cut(Cut(how, after_events=0))
        finally:
            read.close()


@pytest.mark.parametrize(
    ("transport", "how"), WAYS, ids=lambda value: getattr(value, "name", value)
)
async def test_a_channel_is_free_at_once_when_its_reader_goes_away(
    node: Node, transport: str, how: How
) -> None:
    consumer = (await post_once(node, "/create", {}))["consumerAddress"]
    took = []
    async with asyncio.timeout(60):
        for _ in range(TRIES):
            await go_away(node, transport, consumer, how)
            took.append(await time_until_free(node, consumer))
    assert statistics.median(took) < MEDIAN_S
    assert max(took) < EACH_S


async def test_a_channel_is_free_at_once_when_its_grpc_reader_is_killed(node: Node) -> None:
    consumer = (await post_once(node, "/create", {}))["consumerAddress"]
    took = []
    async with asyncio.timeout(60):
        for _ in range(KILLS):
            reader = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", GRPC_READER, node.grpc_target, consumer),
                stdout=asyncio.subprocess.PIPE,
            )
            assert reader.stdout is not None
            assert await reader.stdout.readline() == b"open\n"
            reader.kill()
            await reader.communicate()
            took.append(await time_until_free(node, consumer))
    assert statistics.median(took) < MEDIAN_S
    assert max(took) < EACH_S
