"""What the log says of channels in which something does not go on."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.blocked import BlockedChannels
from megaphone.core.lookout import BLOCKED, CUT_OFF, LEFT, LOOKED_AT_ONCE, MOST_LINES, Lookout
from megaphone.core.progress import STALL_S
from megaphone.core.tenants import DEFAULT
from megaphone.errors import TooSlow
from megaphone.model import ChannelOptions, NewChannel, ReadOptions, short_id
from tests.core.node import WARM, Node, now

pytestmark = pytest.mark.looptime

ONE_AT_A_TIME = ReadOptions(acknowledge=True, in_flight=1, wait_s=1_000.0)


@pytest.fixture
def node() -> Node:
    return Node(replace(WARM, write_timeout_millis=1_000_000))


def id_of(channel: NewChannel) -> str:
    return short_id(ConsumerAddress.parse(channel.consumer_address).channel_id)


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    """Return the fields of the lines with a message."""
    return [record.__dict__ for record in caplog.records if record.getMessage() == message]


async def full_channel(node: Node) -> NewChannel:
    channel = await node.broker.create(ANYONE, (), ChannelOptions(capacity=1, ttl_s=3_000.0))
    await node.write(channel, 0)
    return channel


async def test_a_channel_in_which_writers_wait_is_logged_once_a_minute(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    looking = asyncio.create_task(node.broker.lookout.run())
    channel = await full_channel(node)
    writers = [asyncio.create_task(node.write(channel, number)) for number in (1, 2)]
    await asyncio.sleep(4.9)
    assert lines(caplog, BLOCKED) == []
    await asyncio.sleep(6)
    [line] = lines(caplog, BLOCKED)
    assert (line["channel"], line["agent"], line["writers"]) == (id_of(channel), "node", 2)
    assert 5 <= line["seconds"] <= 10
    assert line["levelname"] == "WARNING"
    await asyncio.sleep(40)
    assert len(lines(caplog, BLOCKED)) == 1
    await asyncio.sleep(25)
    assert len(lines(caplog, BLOCKED)) == 2
    assert channel.consumer_address not in caplog.text
    for task in (looking, *writers):
        task.cancel()


async def test_writers_who_get_a_place_in_time_are_not_logged(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    looking = asyncio.create_task(node.broker.lookout.run())
    channel = await full_channel(node)
    writing = asyncio.create_task(node.write(channel, *range(1, 10)))
    for _ in range(10):
        await asyncio.sleep(4)
        async with node.open(channel, ReadOptions(limit=1)) as reading:
            await anext(reading)
    assert lines(caplog, BLOCKED) == []
    for task in (looking, writing):
        task.cancel()


async def test_a_reader_who_leaves_its_events_is_logged(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    looking = asyncio.create_task(node.broker.lookout.run())
    channel, quiet = await node.broker.create(ANYONE), await node.broker.create(ANYONE)
    await node.write(channel, 1, 2, 3)
    async with node.open(quiet, ONE_AT_A_TIME), node.open(channel, ONE_AT_A_TIME) as reading:
        [first] = await anext(reading)
        reading.reader.next()  # which says that the client has taken it
        await asyncio.sleep(20)
        [line] = lines(caplog, LEFT)
        assert (line["channel"], line["events"], line["agent"]) == (id_of(channel), 2, "node")
        await node.broker.acknowledge(ANYONE, channel.consumer_address, first.id)
        await asyncio.sleep(60)
        assert len(lines(caplog, LEFT)) >= 1
    looking.cancel()


async def test_a_client_that_took_nothing_is_logged_when_its_read_breaks(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    channel = await node.broker.create(ANYONE)
    await node.write(channel, 1)
    for _ in range(2):
        with suppress(TooSlow):
            async with node.open(channel) as reading:
                await anext(reading)
                await asyncio.sleep(100 * STALL_S)
    [line] = lines(caplog, CUT_OFF)
    assert (line["channel"], line["agent"]) == (id_of(channel), "node")


async def test_very_many_channels_have_one_line_together(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    channels = [await full_channel(node) for _ in range(MOST_LINES + 7)]
    writers = [asyncio.create_task(node.write(channel, 1)) for channel in channels]
    await asyncio.sleep(6)
    await node.broker.lookout.look(now())
    assert len(lines(caplog, BLOCKED)) == MOST_LINES
    [line] = lines(caplog, "more channels are stuck")
    assert line["channels"] == 7
    for task in writers:
        task.cancel()


async def test_broken_reads_without_a_line_are_in_that_of_the_next_look(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave_events() -> None:
        channel = await node.broker.create(ANYONE)
        await node.write(channel, 1)
        with suppress(TooSlow):
            async with node.open(channel) as reading:
                await anext(reading)
                await asyncio.sleep(100 * STALL_S)

    await asyncio.gather(*(leave_events() for _ in range(MOST_LINES + 7)))
    assert len(lines(caplog, CUT_OFF)) == MOST_LINES
    for _ in range(2):
        await node.broker.lookout.look(now())
    [line] = lines(caplog, "more channels are stuck")
    assert line["channels"] == 7


async def test_a_look_at_very_many_channels_lets_others_have_turns() -> None:
    blocked = BlockedChannels()
    numbers = {
        number.to_bytes(16): blocked.begin(number.to_bytes(16), "node", 0.0)
        for number in range(3 * LOOKED_AT_ONCE)
    }
    looking = asyncio.create_task(Lookout(blocked.waiting_since, lambda: ()).look(60.0))
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
        channel_id, number = numbers.popitem()  # writers come and go meanwhile
        blocked.end(channel_id, number)
    await looking
    assert turns >= 3


async def test_what_clients_with_a_name_do_is_audited_as_a_sample(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    caller = Caller("token shop", DEFAULT, [Grant(frozenset(Action))])
    await node.broker.create(ANYONE)
    first = await node.broker.create(caller)
    await node.broker.create(caller)
    await node.broker.create(caller)
    await asyncio.sleep(61)
    await node.broker.create(caller)
    created = lines(caplog, "a channel was created")
    assert [line.get("others") for line in created] == [None, 2]
    assert (created[0]["caller"], created[0]["channel"]) == ("token shop", id_of(first))
    assert created[0]["name"] == "megaphone.audit"
