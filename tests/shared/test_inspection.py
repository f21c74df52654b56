"""What operators see of channels in a store that two nodes share."""

import asyncio
from contextlib import aclosing

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.listing import Asked
from megaphone.model import ChannelOptions, NewEvent, ReadOptions
from tests.shared.conftest import Nodes

LONG_S = 20.0


async def test_a_node_knows_how_the_read_of_another_one_goes(app: Nodes) -> None:
    one, other = app.apps
    channel = await one.broker.create(ANYONE, (), ChannelOptions(label="orders"))
    await one.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    options = ReadOptions(acknowledge=True, reader="phone", face="http")
    async with other.broker.read(ANYONE, channel.consumer_address, options) as reading:
        await anext(reading)
        by_other = await other.admin.show_channel(channel.consumer_address)
        by_one = await one.admin.show_channel(by_other.short_id)
    assert by_other.reader is not None
    assert by_one.reader is not None
    assert by_other.reader.node is None
    assert by_one.reader.node
    assert (by_one.reader.face, by_one.reader.name) == ("http", "phone")
    assert by_one.reader.age_s is not None
    assert by_one.reader.taken_s is not None
    assert (by_one.in_flight, by_one.unsent, by_one.label) == (1, 0, "orders")


async def test_a_node_that_does_not_answer_leaves_unknown_how_its_read_goes(
    app: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = app.apps
    channel = await one.broker.create(ANYONE)
    async with other.broker.read(ANYONE, channel.consumer_address):
        monkeypatch.setattr("megaphone.store.redis.questions.ANSWERED_WITHIN_S", 0.0)
        shown = await one.admin.show_channel(channel.consumer_address)
    assert shown.reader is not None
    assert shown.reader.node
    assert (shown.reader.face, shown.reader.age_s, shown.reader.taken_s) == (None, None, None)


async def test_a_view_has_the_channels_of_all_nodes_with_what_is_in_them(app: Nodes) -> None:
    one, other = app.apps
    quiet = await one.broker.create(ANYONE)
    busy = await other.broker.create(ANYONE, (), ChannelOptions(label="orders"))
    for _ in range(3):
        await other.broker.write(ANYONE, busy.producer_address, NewEvent("s", b"1"))
    async with aclosing(one.admin.watch(0.1, 10, "unsent")) as views:
        view = await anext(views)
        first, second = view.channels
        assert (first.address, first.label, first.unsent) == (busy.consumer_address, "orders", 3)
        assert (second.address, second.unsent) == (quiet.consumer_address, 0)
        assert first.age_s is not None
        assert first.oldest_s is not None
        assert first.rate is None
        await one.broker.write(ANYONE, busy.producer_address, NewEvent("s", b"1"))
        async with asyncio.timeout(LONG_S):
            while (await anext(views)).channels[0].unsent != 4:
                pass


async def test_blocked_channels_of_any_node_are_listed(app: Nodes) -> None:
    one, other = app.apps
    await one.broker.create(ANYONE)
    full = await other.broker.create(ANYONE, (), ChannelOptions(capacity=1))
    await other.broker.write(ANYONE, full.producer_address, NewEvent("s", b"1"))
    waiting = asyncio.create_task(
        other.broker.write(ANYONE, full.producer_address, NewEvent("s", b"2"))
    )
    until = asyncio.get_running_loop().time() + LONG_S
    while not (listed := await one.admin.show_channels(Asked(blocked=True))):
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.02)
    [shown] = listed
    assert (shown.address, shown.waiting_writers) == (full.consumer_address, 1)
    assert shown.waiting_s is not None
    waiting.cancel()
