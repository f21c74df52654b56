"""A read of many channels: who gets which turn, what is confirmed, and what breaks it."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.many import ManyReader
from megaphone.core.open_read import BATCH_EVENTS
from megaphone.core.reading import Reading
from megaphone.errors import AgentMoved, ChannelNotFound, MegaphoneError, ReaderBusy, TooSlow
from megaphone.model import (
    START,
    ChannelBegun,
    ChannelDone,
    ChannelEvents,
    NewChannel,
    NewEvent,
    Part,
    ReadOptions,
)
from tests.core.node import WARM, Node, now

pytestmark = pytest.mark.looptime

AT_ONCE = ReadOptions(wait_s=0)
NOTHING_AGAIN = replace(WARM, redelivery_window_secs=0)
FOR_EVER_S = 10_000.0


@pytest.fixture
def node() -> Node:
    return Node(WARM)


async def channels_of(node: Node, count: int) -> list[NewChannel]:
    return [await node.broker.create(ANYONE) for _ in range(count)]


def opened(
    node: Node, channels: list[NewChannel], options: ReadOptions | None = None
) -> Reading[ManyReader]:
    named = [(channel.consumer_address, None) for channel in channels]
    return node.broker.read_many(ANYONE, named, options or ReadOptions())


def read_of(parts: list[Part]) -> list[tuple[int, list[int]]]:
    """Return the events of a batch: for each channel its index, and the numbers."""
    return [
        (part.channel, [int(event.body) for event in part.events])
        for part in parts
        if isinstance(part, ChannelEvents)
    ]


async def stall(node: Node, channels: list[NewChannel]) -> None:
    """Take one batch, and no more."""
    async with opened(node, channels) as reading:
        await next_of(reading)
        await asyncio.sleep(FOR_EVER_S)


async def next_of(reading: Reading[ManyReader]) -> list[Part]:
    async with asyncio.timeout(FOR_EVER_S):
        return await anext(reading)


# Turns


async def test_a_batch_has_what_is_ready_in_all_channels(node: Node) -> None:
    channels = await channels_of(node, 3)
    for number, channel in enumerate(channels):
        await node.write(channel, number, number + 10)
    async with opened(node, channels) as reading:
        batch = await next_of(reading)
        assert batch[:3] == [ChannelBegun(index, START, None) for index in range(3)]
        assert read_of(batch) == [(0, [0, 10]), (1, [1, 11]), (2, [2, 12])]


async def test_a_busy_channel_leaves_turns_to_the_others(node: Node) -> None:
    busy, quiet = await channels_of(node, 2)
    await node.write(busy, *range(100))
    async with opened(node, [busy, quiet]) as reading:
        assert read_of(await next_of(reading)) == [(0, list(range(100)))]
        await node.write(quiet, 7)
        await node.write(busy, 100)
        assert sorted(read_of(await next_of(reading))) == [(0, [100]), (1, [7])]


async def test_a_batch_is_no_larger_than_that_of_one_channel(node: Node) -> None:
    channels = await channels_of(node, 5)
    for channel in channels:
        await node.write(channel, *range(40))
    seen: dict[int, list[int]] = {index: [] for index in range(5)}
    async with opened(node, channels, AT_ONCE) as reading:
        async for batch in reading:
            assert sum(len(numbers) for _, numbers in read_of(batch)) <= BATCH_EVENTS
            for index, numbers in read_of(batch):
                seen[index] += numbers
    assert list(seen.values()) == [list(range(40))] * 5


async def test_large_events_of_many_channels_come_in_several_batches(node: Node) -> None:
    channels = await channels_of(node, 4)
    for channel in channels:
        await node.broker.write(
            ANYONE, channel.producer_address, NewEvent("s", b"1" + b" " * 70_000)
        )
    async with opened(node, channels, AT_ONCE) as reading:
        batches = [read_of(batch) async for batch in reading]
    assert [one for batch in batches for one in batch] == [(index, [1]) for index in range(4)]
    assert len([batch for batch in batches if batch]) > 1


# Confirmation


async def test_what_was_sent_is_confirmed_by_the_next_call() -> None:
    node = Node(NOTHING_AGAIN)
    channels = await channels_of(node, 2)
    for channel in channels:
        await node.write(channel, 1)
    with suppress(TooSlow):
        async with opened(node, channels) as reading:
            await next_of(reading)
            raise TooSlow("before the connection had all of it")
    for channel in channels:
        assert await node.read(channel, AT_ONCE) == [1]
        await node.write(channel, 2)
    with suppress(TooSlow):
        async with opened(node, channels) as reading:
            await next_of(reading)
            waiting = asyncio.create_task(anext(reading))
            await asyncio.sleep(1)
            waiting.cancel()
            raise TooSlow("after the connection had all of it")
    for channel in channels:
        assert await node.read(channel, AT_ONCE) == []


async def test_a_client_that_stalls_loses_the_reads_of_all_channels(node: Node) -> None:
    channels = await channels_of(node, 3)
    await node.write(channels[1], 1)
    began = now()
    with pytest.raises(TooSlow):
        await stall(node, channels)
    assert now() - began == pytest.approx(5, abs=0.1)
    assert node.metrics.reads_ended["stalled"] == 3
    assert node.metrics.reads_cut_off == 1
    assert await node.read(channels[1], AT_ONCE) == [1]
    assert node.metrics.reads_open == 0


# Ends


async def test_each_channel_is_done_when_the_read_time_is_over(node: Node) -> None:
    channels = await channels_of(node, 2)
    options = ReadOptions(wait_s=7, heartbeat_s=2)
    began = now()
    async with opened(node, channels, options) as reading:
        batches = [batch async for batch in reading]
    assert now() - began == pytest.approx(7, abs=0.1)
    assert batches[1:4] == [[], [], []]
    last = {part for batch in batches[4:] for part in batch}
    assert last == {ChannelDone(0, None), ChannelDone(1, None)}
    assert [await node.read(channel, AT_ONCE) for channel in channels] == [[], []]


async def test_a_channel_that_is_removed_is_done_and_the_others_go_on(node: Node) -> None:
    gone, stays = await channels_of(node, 2)
    async with opened(node, [gone, stays]) as reading:
        await next_of(reading)
        await node.write(gone, 1)
        assert read_of(await next_of(reading)) == [(0, [1])]
        await node.admin.dispose(gone.consumer_address)
        assert await next_of(reading) == [ChannelDone(0, None)]
        await node.write(stays, 2)
        assert read_of(await next_of(reading)) == [(1, [2])]


async def test_the_limit_ends_all_channels_behind_the_last_event(node: Node) -> None:
    channels = await channels_of(node, 2)
    for channel in channels:
        await node.write(channel, 1, 2, 3)
    async with opened(node, channels, ReadOptions(limit=4)) as reading:
        first, last = [batch async for batch in reading]
    assert read_of(first) == [(0, [1, 2, 3]), (1, [1])]
    assert last == [ChannelDone(0, None), ChannelDone(1, None)]
    assert await node.read(channels[1], AT_ONCE) == [2, 3]


async def test_a_channel_that_is_refused_has_one_part(node: Node) -> None:
    free, busy = await channels_of(node, 2)
    async with node.open(busy), opened(node, [busy, free], AT_ONCE) as reading:
        refused, *others = [part async for batch in reading for part in batch]
    assert isinstance(refused, ChannelDone)
    assert isinstance(refused.error, ReaderBusy)
    assert others == [ChannelBegun(1, START, None), ChannelDone(1, None)]


async def test_a_read_without_any_channel_is_over_at_once(node: Node) -> None:
    channels = await channels_of(node, 1)
    await node.admin.dispose(channels[0].consumer_address)
    async with opened(node, channels) as reading:
        ((index, error),) = [part async for batch in reading for part in batch]
        assert index == 0
        assert isinstance(error, ChannelNotFound)


async def two_agents(node: Node) -> tuple[NewChannel, NewChannel]:
    """Return a channel of the agent `node`, and one of the agent `other`."""
    leaves = await node.broker.create(ANYONE)
    await node.admin.add_agent("other")
    while (stays := await node.broker.create(ANYONE)).agent != "other":
        pass
    return leaves, stays


async def test_the_channels_of_an_agent_that_leaves_are_done_and_others_go_on(node: Node) -> None:
    leaves, stays = await two_agents(node)
    async with opened(node, [leaves, stays]) as reading:
        await next_of(reading)
        ending = asyncio.create_task(node.broker.end_reads("node"))
        assert await next_of(reading) == [ChannelDone(0, None)]
        await ending
        await node.write(stays, 1)
        assert read_of(await next_of(reading)) == [(1, [1])]


async def test_a_client_that_does_not_take_the_end_of_an_agent_loses_all(node: Node) -> None:
    leaves, stays = await two_agents(node)
    await node.write(leaves, 1)

    reading = asyncio.create_task(stall(node, [leaves, stays]))
    await asyncio.sleep(1)
    await node.broker.end_reads("node")
    with pytest.raises(AgentMoved):
        await reading
    assert node.metrics.reads_open == 0
    assert node.metrics.reads_ended["moved"] == 2


async def test_the_end_of_the_node_ends_all_channels(node: Node) -> None:
    channels = await channels_of(node, 3)
    async with opened(node, channels) as reading:
        await next_of(reading)
        await node.broker.begin_shutdown()
        rest = {part async for batch in reading for part in batch}
    assert rest == {ChannelDone(index, None) for index in range(3)}


async def test_an_opening_that_is_cancelled_keeps_no_lease(node: Node) -> None:
    moves, stays = await two_agents(node)
    with node.agents.moving("node"):
        opening = asyncio.create_task(enter(opened(node, [stays, moves])))
        await asyncio.sleep(1)
        with pytest.raises(ReaderBusy):
            await node.read(stays, AT_ONCE)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert await node.read(stays, AT_ONCE) == []
    assert node.metrics.reads_open == 0


async def enter(reading: Reading[ManyReader]) -> None:
    async with reading:
        pass


class Unseen:
    """A client whose bytes nobody can count."""

    def __init__(self, reader: ManyReader) -> None:
        self._reader = reader
        self.error: MegaphoneError | None = None

    def taken(self) -> int | None:
        return None

    def broken(self, error: MegaphoneError) -> None:
        self.error = error
        self._reader.close(clean=False)


async def test_a_reader_that_is_closed_calls_nobody(node: Node) -> None:
    (channel,) = await channels_of(node, 1)
    reader = await node.broker.open_many(ANYONE, [(channel.consumer_address, None)], ReadOptions())
    called: list[None] = []
    client = Unseen(reader)
    reader.attach(client, lambda: called.append(None))
    assert reader.next() == [ChannelBegun(0, START, None)]
    reader.wait_for_client(0)
    await asyncio.sleep(6)
    assert isinstance(client.error, TooSlow)
    called.clear()
    await node.write(channel, 1)
    reader.close(clean=True)
    assert called == []
    assert node.metrics.reads_open == 0
