"""A read as both faces use it: when its client has stalled, and when it ends or is aborted."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.open_read import BATCH_EVENTS
from megaphone.core.reader import PASSED_AT_ONCE, Reader
from megaphone.core.reading import Reading
from megaphone.errors import AgentMoved, MegaphoneError, ReaderBusy, TooSlow
from megaphone.model import START, NewChannel, NewEvent, ReadOptions
from tests.core.node import WARM, Node, now

pytestmark = pytest.mark.looptime

AT_ONCE = ReadOptions(wait_s=0)
FOR_EVER_S = 10_000.0


@pytest.fixture
def node() -> Node:
    return Node(WARM)


async def take_one_batch(reading: Reading[Reader], then_s: float) -> None:
    """Read one batch, and take `then_s` to send it."""
    async with reading:
        await anext(reading)
        await asyncio.sleep(then_s)


class SeenClient:
    """A client that takes a byte at some seconds from now on, as its connection can see."""

    def __init__(self, reader: Reader, seconds: list[int]) -> None:
        self._reader = reader
        self._times = [now() + second for second in seconds]
        self._end = asyncio.get_running_loop().create_future()
        reader.attach(self, lambda: None)

    def taken(self) -> int:
        return sum(now() >= time for time in self._times)

    def broken(self, error: MegaphoneError) -> None:
        self._reader.close(clean=False)
        self._end.set_exception(error)

    async def take_one_batch(self, then_s: float) -> None:
        assert self._reader.next()
        self._reader.wait_for_client(0)
        with suppress(TimeoutError):
            async with asyncio.timeout(then_s):
                await self._end
        self._reader.close(clean=True)


# The client that stalls


async def test_a_client_that_takes_nothing_for_5_seconds_loses_its_read(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    started = now()
    with pytest.raises(TooSlow, match="took nothing for 5 s"):
        await take_one_batch(node.open(channel), FOR_EVER_S)
    assert now() - started == pytest.approx(5, abs=0.1)
    assert await node.read(channel, AT_ONCE) == [1]
    assert node.metrics.reads_open == 0
    assert node.metrics.reads_ended["stalled"] == node.metrics.reads_cut_off == 1


async def test_a_client_that_is_only_seen_to_take_whole_batches_has_more_time_for_large_ones(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    await node.broker.write(
        ANYONE, channel.producer_address, NewEvent("s", b'"%s"' % (b"1" * 59_900))
    )
    started = now()
    with pytest.raises(TooSlow):
        await take_one_batch(node.open(channel), FOR_EVER_S)
    assert now() - started == pytest.approx(8, abs=0.1)


async def test_a_client_that_takes_a_byte_now_and_then_keeps_its_read(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    reader = await node.broker.open_read(ANYONE, channel.consumer_address, ReadOptions())
    await SeenClient(reader, [3, 6, 9, 12]).take_one_batch(15.0)
    assert await node.read(channel, AT_ONCE) == []


async def test_a_client_that_stops_in_the_middle_of_a_batch_loses_its_read(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    started = now()
    reader = await node.broker.open_read(ANYONE, channel.consumer_address, ReadOptions())
    with pytest.raises(TooSlow):
        await SeenClient(reader, [3, 6, 9]).take_one_batch(FOR_EVER_S)
    assert now() - started == pytest.approx(14, abs=1.01)


async def test_a_client_does_not_stall_while_it_waits_for_events_and_may_stall_after(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)

    async def read() -> None:
        async with node.open(channel) as reader:
            async for batch in reader:
                if [event.body for event in batch] == [b"2"]:
                    await asyncio.sleep(FOR_EVER_S)

    reading = asyncio.create_task(read())
    await asyncio.sleep(15.0)
    await node.write(channel, 2)
    with pytest.raises(TooSlow):
        await reading
    assert now() == pytest.approx(20, abs=0.1)


async def test_a_client_that_does_not_take_the_end_of_its_read_loses_it(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)

    async def read() -> None:
        async with node.open(channel, AT_ONCE) as reader:
            async for _ in reader:
                pass
            await asyncio.sleep(FOR_EVER_S)

    with pytest.raises(TooSlow):
        await read()


# The answer begins


async def test_a_read_says_after_what_it_starts(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1, 2)
    async with node.open(channel) as reading:
        assert start_of(reading) == (START, None)
        first, second = await anext(reading)
    async with node.open(channel, ReadOptions(cursor=first.id)) as reading:
        assert start_of(reading) == (first.id, True)
    async with node.open(channel, ReadOptions(cursor="unknown")) as reading:
        assert start_of(reading) == (START, False)
    async with node.open(channel, ReadOptions(cursor=second.id)) as reading:
        assert start_of(reading) == (second.id, True)


def start_of(reading: Reading[Reader]) -> tuple[str, bool | None]:
    return reading.reader.cursor, reading.reader.recovered


# The read time


HOUR_S = 3600.0


async def test_a_read_of_an_hour_keeps_its_channel_and_gets_its_events(node: Node) -> None:
    channel = await node.broker.create(ANYONE)

    async def write_late() -> None:
        await asyncio.sleep(HOUR_S - 1)
        await node.write(channel, 1)

    writing = asyncio.create_task(write_late())
    began = now()
    assert await node.read(channel, ReadOptions(wait_s=HOUR_S)) == [1]
    assert now() - began == pytest.approx(HOUR_S, abs=0.1)
    await writing
    await asyncio.sleep(59)
    assert await node.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: True
    }
    await asyncio.sleep(2)
    assert await node.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: False
    }


@pytest.mark.parametrize(
    ("wait_s", "poll_s", "max_s", "expected_s"),
    [
        (None, 20, HOUR_S, 20),
        (5, 20, HOUR_S, 5),
        (30, 20, HOUR_S, 30),
        (10_000, 20, HOUR_S, HOUR_S),
        (30, 20, 10, 20),  # the poll duration is always allowed
        (5, 20, 10, 5),
    ],
)
async def test_the_read_time_is_what_the_client_asks_for_within_the_limits(
    wait_s: float | None, poll_s: int, max_s: float, expected_s: float
) -> None:
    node = Node(replace(WARM, poll_duration_millis=1000 * poll_s, max_read_secs=max_s))
    channel = await node.broker.create(ANYONE)
    began = now()
    assert await node.read(channel, ReadOptions(wait_s=wait_s)) == []
    assert now() - began == pytest.approx(expected_s, abs=0.1)


async def test_a_long_read_has_its_lease_and_its_window_to_the_end(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    options = ReadOptions(acknowledge=True, in_flight=2, wait_s=HOUR_S)
    await node.write(channel, 1, 2, 3)
    async with node.open(channel, options) as reading:
        first, second = await anext(reading)
        await asyncio.sleep(4)
        waiting = asyncio.create_task(anext(reading))
        await asyncio.sleep(HOUR_S - 60)
        with pytest.raises(ReaderBusy):
            await node.broker.open_read(ANYONE, channel.consumer_address, options)
        assert not waiting.done()
        assert await node.broker.acknowledge(ANYONE, channel.consumer_address, first.id) == 1
        assert [event.body for event in await waiting] == [b"3"]
    assert await node.read(channel, AT_ONCE) == [2, 3]
    assert second.body == b"2"


async def test_a_long_read_ends_cleanly_when_its_agent_leaves(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    reading = asyncio.create_task(node.read(channel, ReadOptions(wait_s=HOUR_S)))
    await asyncio.sleep(HOUR_S / 2)
    await node.write(channel, 1)
    await asyncio.sleep(1)
    await node.broker.end_reads("node")
    assert await reading == [1]
    assert now() == pytest.approx(HOUR_S / 2, abs=2)


# Streams


async def test_a_reader_that_passes_over_many_events_lets_other_tasks_run() -> None:
    node = Node(replace(WARM, buffer_capacity=20_000))
    channel = await node.broker.create(ANYONE)
    await node.write(channel, *range(10_000))
    await node.broker.write(ANYONE, channel.producer_address, NewEvent("wanted", b"-1"))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    wanted = ReadOptions(streams=frozenset(("wanted",)), wait_s=0)
    assert await node.read(channel, wanted) == [-1]
    counting.cancel()
    assert turns > 10_000 // (PASSED_AT_ONCE * BATCH_EVENTS)


async def test_a_reader_that_passes_over_events_all_the_time_gets_its_heartbeats(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)

    async def write() -> None:
        while True:
            await node.write(channel, *range(50))
            await asyncio.sleep(0.3)

    writing = asyncio.create_task(write())
    options = ReadOptions(streams=frozenset(("other",)), heartbeat_s=1.0)
    async with node.open(channel, options) as reading:
        assert [batch async for batch in reading] == [[]] * 19
    writing.cancel()


async def test_the_limit_counts_events_that_are_sent(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    for stream in "ababab":
        await node.broker.write(ANYONE, channel.producer_address, NewEvent(stream, b"1"))
    options = ReadOptions(streams=frozenset("b"), limit=2)
    assert await node.read(channel, options) == [1, 1]
    assert len(await node.read(channel, AT_ONCE)) == 2


async def test_a_read_that_is_cancelled_is_broken(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    reading = asyncio.create_task(take_one_batch(node.open(channel), FOR_EVER_S))
    await asyncio.sleep(1.0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await node.read(channel, AT_ONCE) == [1]


# The agent that leaves


async def channel_of(node: Node, agent: str) -> NewChannel:
    """Make a channel of one of several agents."""
    while (channel := await node.broker.create(ANYONE)).agent != agent:
        pass
    return channel


async def test_the_reads_of_an_agent_that_leaves_end_cleanly_and_others_go_on(node: Node) -> None:
    leaves = await channel_of(node, "node")
    await node.admin.add_agent("other")
    stays = await channel_of(node, "other")
    for channel in (leaves, stays):
        await node.write(channel, 1)
    ending, staying = (asyncio.create_task(node.read(channel)) for channel in (leaves, stays))
    await asyncio.sleep(1.0)
    await node.broker.end_reads("node")
    assert now() == 1.0
    assert await ending == [1]
    with pytest.raises(ReaderBusy):
        await node.read(stays)
    assert await node.read(leaves, AT_ONCE) == []
    assert await staying == [1]
    assert now() == pytest.approx(20)


async def test_each_read_of_an_agent_that_leaves_has_a_second_to_send_what_it_has(
    node: Node,
) -> None:
    channels = [await node.broker.create(ANYONE) for _ in range(3)]
    for channel in channels:
        await node.write(channel, 1)
    quick, slow, stuck = (
        asyncio.create_task(take_one_batch(node.open(channel), needed_s))
        for channel, needed_s in zip(channels, (0.3, 0.9, FOR_EVER_S), strict=True)
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await node.broker.end_reads("node")
    assert now() == 1.0
    await quick
    await slow
    with pytest.raises(AgentMoved, match="agent node moves"):
        await stuck
    assert now() == 1.0
    assert [await node.read(channel, AT_ONCE) for channel in channels] == [[], [], [1]]


async def test_without_reads_there_is_nothing_to_end(node: Node) -> None:
    await node.broker.create(ANYONE)
    await node.broker.end_reads("node")
    assert now() == 0.0


async def test_a_read_that_is_aborted_while_it_waits_for_events_does_not_end_cleanly(
    node: Node,
) -> None:
    channel = await node.broker.create(ANYONE)
    reading = node.open(channel)
    task = asyncio.create_task(take_one_batch(reading, FOR_EVER_S))
    await asyncio.sleep(1.0)
    reading.reader.abort()
    with pytest.raises(AgentMoved):
        await task
    assert now() == 1.0


async def test_a_read_that_is_aborted_gives_no_further_batch(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    reading = node.open(channel)

    async def read() -> None:
        async with reading:
            await anext(reading)
            await node.write(channel, 2)
            reading.reader.abort()
            await anext(reading)

    with pytest.raises(AgentMoved):
        await read()
    assert await node.read(channel, AT_ONCE) == [1, 2]


# The read time


async def test_a_read_ends_in_time_although_its_window_keeps_events_back(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1, 2, 3)
    options = ReadOptions(acknowledge=True, in_flight=2, wait_s=1.0)
    assert await node.read(channel, options) == [1, 2]
    assert now() == pytest.approx(1, abs=0.1)
