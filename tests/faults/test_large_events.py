"""Large events for readers that are fast, slow or stalled, and for readers of a stopping broker."""

import asyncio
import fcntl
import signal
import socket
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from megaphone.app import App
from megaphone.core import open_read, progress
from megaphone.errors import MegaphoneError
from megaphone.model import ReadOptions
from tests.support.checker import Seen
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.process import broker_process
from tests.support.raw_http import Broken, Connection, Node, post, post_once, request_of
from tests.support.scenes import eventually

EVENT_BYTES = 500_000
BACKLOG = ReadOptions(wait_s=0)
RECEIVE_BUFFER = 32_768
UNSENT_BYTES = 32_768
"""How much the kernel may hold that it has never sent."""
HELD_BYTES = 65_536
"""The same, with what it has sent and the kernel of the client had no room for."""
SIOCOUTQNSD = 0x894B
"""Asks Linux how many bytes it has never sent."""
LITTLE_AHEAD = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
"""Prevents a gRPC client from receiving megabytes that nobody has requested."""
SHORT_S = 0.4
FACES = ("http", "grpc")

in_time = pytest.mark.timeout(90)


@pytest.fixture
def node(app: App) -> Node:
    return Node(app.http_port, app.grpc_port)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time after which a reader stalls, so that the tests are faster."""
    monkeypatch.setattr(progress, "STALL_S", SHORT_S)
    monkeypatch.setattr(progress, "SLOWEST_BYTES_PER_S", 300_000)
    monkeypatch.setattr(open_read, "LOOK_S", SHORT_S / 8)


async def backlog(node: Node, count: int, size: int = EVENT_BYTES) -> str:
    """Create a channel with a number of large events. Returns: its consumer address."""
    channel = await post_once(node, "/create", {})
    connection = await Connection.open(node)
    try:
        for number in range(count):
            body = [0, number, "x" * size]
            await post(connection, f"/write/{channel['producerAddress']}/s", body)
    finally:
        connection.close()
    return str(channel["consumerAddress"])


@asynccontextmanager
async def opened(
    node: Node, face: str, consumer: str, options: ReadOptions
) -> AsyncIterator[OpenRead]:
    async with grpc_connection(node, *LITTLE_AHEAD) as connection:
        read: OpenRead
        if face == "grpc":
            read = GrpcRead(connection, consumer, options)
        else:
            read = await HttpRead.ask(node, consumer, options, receive_buffer=RECEIVE_BUFFER)
        try:
            await read.begin()
            yield read
        finally:
            read.close()


async def rest_of(read: OpenRead, pause_s: float = 0.0) -> list[int]:
    """Read until the clean end, with pauses. Returns: the numbers of the events."""
    numbers: list[int] = []
    while (events := await read.next()) is not None:
        numbers += [event.number for event in events]
        await asyncio.sleep(pause_s)
    return numbers


async def numbers_until_it_breaks(read: OpenRead) -> list[int]:
    numbers: list[int] = []
    with suppress(Broken, MegaphoneError):
        while (events := await read.next()) is not None:
            numbers += [event.number for event in events]
        raise AssertionError("the read ended cleanly")
    return numbers


async def first_event(read: OpenRead) -> Seen:
    while True:
        events = await read.next()
        assert events is not None
        if events:
            return events[0]


def no_read_is_open(app: App) -> Callable[[], Awaitable[bool]]:
    async def has_ended() -> bool:
        return app.metrics.reads_open == 0

    return has_ended


# Stalled and slow readers


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("face", "size", "pause_s"), [("http", 500_000, 0.03), ("grpc", 150_000, 0.1)]
)
async def test_a_reader_that_makes_progress_gets_all_however_slow_it_is(
    node: Node, face: str, size: int, pause_s: float
) -> None:
    # Over HTTP it takes about 32 KB in each step.
    count = 4 if face == "http" else 30
    consumer = await backlog(node, count, size)
    async with opened(node, face, consumer, BACKLOG) as read:
        assert await rest_of(read, pause_s) == list(range(count))


@pytest.mark.usefixtures("impatient")
@pytest.mark.settings(redelivery_window_secs=0)
async def test_a_stalled_http_reader_is_cut_and_what_had_not_left_comes_again(
    app: App, node: Node
) -> None:
    consumer = await backlog(node, 6)
    stalled = await Connection.open(node, receive_buffer=RECEIVE_BUFFER)
    try:
        await stalled.send(request_of("GET", f"/read/{consumer}"))
        # About the first event and a part of the second; the kernel decides the exact number.
        await stalled.receive_exactly(EVENT_BYTES + EVENT_BYTES // 4)
        await eventually(no_read_is_open(app))
    finally:
        stalled.close()
    async with opened(node, "http", consumer, BACKLOG) as read:
        assert await rest_of(read) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("impatient")
@pytest.mark.settings(redelivery_window_secs=0)
async def test_a_stalled_grpc_reader_is_cut_and_what_had_not_left_comes_again(
    app: App, node: Node
) -> None:
    consumer = await backlog(
        node, 60, size=20_000
    )  # a small message gives the reader only a little more time
    async with opened(node, "grpc", consumer, ReadOptions()) as stalled:
        await eventually(no_read_is_open(app), within_s=15)
        got = await numbers_until_it_breaks(stalled)
    async with opened(node, "grpc", consumer, BACKLOG) as read:
        again = await rest_of(read)
    assert again == list(range(again[0], 60))
    assert 0 < again[0] <= len(got) < 60


@pytest.mark.parametrize("after_bytes", [0, 7_000_000], ids=["at-once", "after-a-while"])
async def test_the_kernel_holds_little_for_a_reader_that_stalls(
    node: Node, after_bytes: int
) -> None:
    consumer = await backlog(node, 24)
    stalled = await Connection.open(node)
    try:
        await stalled.send(request_of("GET", f"/read/{consumer}"))
        await stalled.receive_exactly(after_bytes)
        held = (-1, -1)
        while held != (now_held := held_for(stalled)) or held[0] == 0:
            held = now_held
            await asyncio.sleep(0.2)
        assert held[0] <= HELD_BYTES
        assert held[1] <= UNSENT_BYTES
    finally:
        stalled.close()


def held_for(client: Connection) -> tuple[int, int]:
    """Return how many bytes the kernel holds for a client of the broker in this process, and how
    many of them it has never sent."""
    address = "127.0.0.1", client.local_port
    for descriptor in Path("/proc/self/fd").iterdir():
        with (
            suppress(OSError),  # it is no socket, or not connected
            socket.fromfd(int(descriptor.name), socket.AF_INET, socket.SOCK_STREAM) as copy,
        ):
            if copy.getpeername() == address:
                held = fcntl.ioctl(copy, termios.TIOCOUTQ, bytes(4))
                unsent = fcntl.ioctl(copy, SIOCOUTQNSD, bytes(4))
                return int.from_bytes(held, sys.byteorder), int.from_bytes(unsent, sys.byteorder)
    raise AssertionError("the connection is closed")


# A broker that stops


@in_time
@pytest.mark.parametrize("pause_s", [0.0, 0.01], ids=["fast", "slow"])
@pytest.mark.parametrize("face", FACES)
async def test_a_stop_ends_the_read_of_a_backlog_after_a_whole_event(
    tmp_path: Path, face: str, pause_s: float
) -> None:
    with broker_process(tmp_path) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        consumer = await backlog(node, 100)
        async with opened(node, face, consumer, ReadOptions()) as read:
            first = await first_event(read)
            broker.process.send_signal(signal.SIGTERM)
            numbers = [first.number, *await rest_of(read, pause_s)]
        assert await asyncio.to_thread(broker.process.wait, 10) == 0
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < 100


@in_time
async def test_a_reader_that_takes_too_long_for_an_event_sees_a_broken_end_at_a_stop(
    tmp_path: Path,
) -> None:
    with broker_process(tmp_path) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        consumer = await backlog(node, 3)
        connection = await Connection.open(node, receive_buffer=RECEIVE_BUFFER)
        try:
            await connection.send(request_of("GET", f"/read/{consumer}"))
            await connection.receive_exactly(1_000)
            broker.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(broker.process.wait, 10) == 0
            with pytest.raises(Broken):
                await connection.receive_exactly(2 * EVENT_BYTES)
        finally:
            connection.close()
