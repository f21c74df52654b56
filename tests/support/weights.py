"""Loads for a node. Each is far too large for the memory of a small node.

Each load is limited in number and time. With `by`, the creations of channels have these headers.
It returns how often its calls ended in each way: `OK`, the
code of an error, or `CLOSED` for a connection that the broker closed without an answer.
"""

import asyncio
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import grpc

from megaphone.errors import MegaphoneError
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.faces import telling_errors
from tests.support.raw_http import (
    JSON,
    Broken,
    Connection,
    Node,
    receive_answer,
    request_of,
)
from tests.support.settings import IS_LONG

MIB = 1 << 20
LARGE = b'"' + b"x" * (MIB - 2) + b'"'
CLOSED = "CLOSED"
OK = "OK"
OPENED_AT_ONCE = 100
BEGUN_WITHIN_S = 5.0

Outcomes = Counter[str]
Headers = Mapping[str, str]
NOBODY: Headers = {}
Load = Callable[[Node], Awaitable[Outcomes]]


async def writes_of_a_mebibyte(node: Node, by: Headers = NOBODY) -> Outcomes:
    """2,000 writes of 1 MiB over 20 connections, to 40 channels that nobody reads.

    In a short run there are 300, of which the node has room for less than a third.
    """
    producers = [(await new_channel(node, by))["producerAddress"] for _ in range(40)]
    outcomes: Outcomes = Counter()

    async def write_some(begin: int) -> None:
        for number in range(begin, begin + (100 if IS_LONG else 15)):
            outcomes[await call_once(node, write_of(producers[number % 40], LARGE))] += 1

    await asyncio.gather(*(write_some(number) for number in range(20)))
    return outcomes


async def writers_that_wait(node: Node) -> Outcomes:
    """1,000 writers at once with 1 MiB each, for one channel."""
    request = write_of((await new_channel(node))["producerAddress"], LARGE)
    return Counter(await asyncio.gather(*(call_once(node, request) for _ in range(1_000))))


async def unfinished_bodies(node: Node) -> Outcomes:
    """10,000 connections that each send 100 KB of a body of 1 MiB, and then nothing."""
    request = write_of((await new_channel(node))["producerAddress"], LARGE)[:100_000]
    outcomes: Outcomes = Counter()
    connections: list[Connection] = []

    async def begin() -> None:
        try:
            async with asyncio.timeout(BEGUN_WITHIN_S):
                connection = await Connection.open(node)
                connections.append(connection)
                await connection.send(request)
            outcomes["SENT"] += 1
        except TimeoutError:
            outcomes["STUCK"] += 1
        except (Broken, OSError):
            outcomes[CLOSED] += 1

    try:
        for _ in range(10_000 // OPENED_AT_ONCE):
            await asyncio.gather(*(begin() for _ in range(OPENED_AT_ONCE)))
    finally:
        for connection in connections:
            connection.close()
    return outcomes


async def gzip_bombs(node: Node) -> Outcomes:
    """Gzip bombs, 20 at once, twice to every route that accepts a body."""
    bomb = gzip_bomb()
    channel = await new_channel(node)
    paths = (
        "/create",
        f"/write/{channel['producerAddress']}/s",
        "/write-batch",
        f"/ack/{channel['consumerAddress']}",
        "/channelsExists",
    )
    outcomes: Outcomes = Counter()
    for path in 2 * paths:
        request = request_of("POST", path, bomb, JSON | {"Content-Encoding": "gzip"})
        outcomes.update(await asyncio.gather(*(call_once(node, request) for _ in range(20))))
    return outcomes


async def grpc_calls(node: Node) -> Outcomes:
    """5,000 concurrent writes of 1 kB over one connection to one channel."""
    return await grpc_writes(node, 5_000, b'"' + b"x" * 1_000 + b'"')


async def large_grpc_calls(node: Node) -> Outcomes:
    """500 concurrent writes of 1 MiB over one connection to one channel; in a short run 250."""
    return await grpc_writes(node, 500 if IS_LONG else 250, LARGE)


async def channels(node: Node) -> Outcomes:
    """Creates 100,000 channels over 50 connections; in a short run 40,000."""
    outcomes: Outcomes = Counter()

    async def create_some() -> None:
        async with connected(node) as connection:
            for _ in range(2_000 if IS_LONG else 800):
                outcomes[await call(connection, request_of("POST", "/create"))] += 1

    await asyncio.gather(*(create_some() for _ in range(50)))
    return outcomes


async def channels_of_one_connection(node: Node, by: Headers = NOBODY) -> Outcomes:
    """Creates 100,000 channels over one connection, in a short run 15,000."""
    outcomes: Outcomes = Counter()
    request = request_of("POST", "/create", headers=by)
    async with connected(node) as connection:
        for _ in range(1_000 if IS_LONG else 150):
            await connection.send(100 * request)
            for _ in range(100):
                outcomes[await outcome_of(connection)] += 1
    return outcomes


def gzip_bomb() -> bytes:
    """Return a compressed body of nearly 1 MiB, the limit, that inflates to 1,000 MiB.

    It repeats one compressed block, because compressing that many bytes takes seconds.
    """
    compressor = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    head = compressor.compress(b"") + compressor.flush(zlib.Z_SYNC_FLUSH)
    block = compressor.compress(b"0" * MIB) + compressor.flush(zlib.Z_FULL_FLUSH)
    bomb = head + 1_000 * block
    assert 0.9 * MIB < len(bomb) <= MIB
    return bomb


LOADS: Mapping[str, Load] = {
    load.__name__: load
    for load in (
        writes_of_a_mebibyte,
        writers_that_wait,
        unfinished_bodies,
        gzip_bombs,
        grpc_calls,
        large_grpc_calls,
        channels,
        channels_of_one_connection,
    )
}


async def grpc_writes(node: Node, count: int, body: bytes) -> Outcomes:
    producer = (await new_channel(node))["producerAddress"]
    request = pb.WriteRequest(producer_address=producer, stream_id="s", body=body)
    async with grpc.aio.insecure_channel(node.grpc_target) as connection:
        stub = ChannelServiceStub(connection)

        async def write() -> str:
            try:
                with telling_errors():
                    await stub.Write(request)
            except MegaphoneError as error:
                return error.code
            return OK

        return Counter(await asyncio.gather(*(write() for _ in range(count))))


async def new_channel(node: Node, by: Headers = NOBODY) -> dict[str, str]:
    async with connected(node) as connection:
        await connection.send(request_of("POST", "/create", headers=by))
        return await receive_answer(connection)


def write_of(producer: str, body: bytes) -> bytes:
    return request_of("POST", f"/write/{producer}/s", body, JSON)


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[Connection]:
    connection = await Connection.open(node)
    try:
        yield connection
    finally:
        connection.close()


async def call_once(node: Node, request: bytes) -> str:
    """Send a request on a new connection. Returns: how it ended."""
    with suppress(Broken, OSError):
        async with connected(node) as connection:
            return await call(connection, request)
    return CLOSED


async def call(connection: Connection, request: bytes) -> str:
    await connection.send(request)
    return await outcome_of(connection)


async def outcome_of(connection: Connection) -> str:
    """Receive an answer. Returns: how the call ended."""
    try:
        await receive_answer(connection)
    except MegaphoneError as error:
        return error.code
    return OK
