"""Watching a node: what a view has, how often it is made, and that nobody waits for it."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.progress import STALL_S
from megaphone.errors import BadRequest, TooSlow, WriteTimeout
from megaphone.model import NewChannel, NodeView, ReadOptions
from tests.core.node import WARM, Node, now
from tests.support.settings import IS_LONG

pytestmark = pytest.mark.looptime

ACKNOWLEDGING = ReadOptions(acknowledge=True)
CHANNELS = 100_000 if IS_LONG else 25_000
"""So many that to look through all of them for each view would cost more than a watcher may."""


@pytest.fixture
def node() -> Node:
    return Node(WARM)


async def channels_with(node: Node, *depths: int) -> list[NewChannel]:
    """Make channels with so many events, a second after each other."""
    channels = []
    for depth in depths:
        channels.append(await node.broker.create(ANYONE))
        await node.write(channels[-1], *range(depth))
        await asyncio.sleep(1)
    return channels


async def view_of(
    node: Node, *, interval_s: float | None = None, limit: int | None = None, sort: str = ""
) -> NodeView:
    async with aclosing(node.admin.watch(interval_s, limit, sort or None)) as views:
        return await anext(views)


async def test_a_view_has_what_the_node_counts(node: Node) -> None:
    await channels_with(node, 3, 0)
    view = await view_of(node)
    assert view.counts["messages_received"] == 3
    assert view.levels["channels"] >= 0
    assert [agent.channels for agent in view.agents] == [2]
    assert (view.pipes, view.drain, view.notable) == ([], None, {})


async def test_a_view_says_how_a_channel_is(node: Node) -> None:
    (channel,) = await channels_with(node, 5)
    async with node.open(channel, ACKNOWLEDGING) as reading:
        await anext(reading)
        view = await view_of(node)
        (watched,) = view.channels
        assert watched.address == channel.consumer_address
        assert (watched.depth, watched.in_flight, watched.waiting_writers) == (5, 5, 0)
        assert watched.is_read
        assert watched.age_s == pytest.approx(1, abs=0.1)
        assert watched.oldest_s is not None
        assert watched.rate is None, "there was no view before"


async def test_channels_are_sorted_as_the_watcher_asks(node: Node) -> None:
    oldest, full, deep = await channels_with(node, 0, 100, 50)
    waiting = asyncio.create_task(node.write(deep, *range(51)))
    await asyncio.sleep(0.1)
    expected = {
        "depth": {full.consumer_address, deep.consumer_address},
        "age": {oldest.consumer_address},
        "waiting": {deep.consumer_address},
    }
    for sort, addresses in expected.items():
        (first,) = (await view_of(node, sort=sort, limit=1)).channels
        assert first.address in addresses
    waiting.cancel()


async def test_a_rate_is_that_of_the_time_since_the_last_view(node: Node) -> None:
    quiet, busy = await channels_with(node, 9, 0)
    async with aclosing(node.admin.watch(2.0, 1, "rate")) as views:
        await anext(views)
        await node.write(busy, *range(10))
        (first,) = (await anext(views)).channels
    assert first.address == busy.consumer_address != quiet.consumer_address
    assert first.rate == pytest.approx(5, abs=0.1)


async def test_a_view_names_what_deserves_a_look(node: Node) -> None:
    (channel,) = await channels_with(node, 100)
    async with aclosing(node.admin.watch(50.0)) as views:
        assert (await anext(views)).notable == {}
        with pytest.raises(WriteTimeout):
            await node.write(channel, 1)
        with pytest.raises(TooSlow):
            await stall(node, channel)
        (ends,) = await channels_with(node, 7)
        await node.admin.dispose(ends.consumer_address)
        view = await anext(views)
    assert view.notable == {"writes_timed_out": 1, "reads_cut_off": 1, "messages_lost": 7}


async def stall(node: Node, channel: NewChannel) -> None:
    async with node.open(channel) as reading:
        await anext(reading)
        await asyncio.sleep(100 * STALL_S)


async def test_watchers_who_ask_for_the_same_share_the_views(node: Node) -> None:
    async with aclosing(node.admin.watch()) as one, aclosing(node.admin.watch()) as other:
        first = await anext(one)
        second, same = await asyncio.gather(anext(one), anext(other))
        assert second is same
        assert second is not first
    async with aclosing(node.admin.watch(0.5)) as views:
        began = now()
        for _ in range(5):
            await anext(views)
        assert now() - began == pytest.approx(2, abs=0.1)


async def test_nothing_is_made_when_nobody_watches(node: Node) -> None:
    await view_of(node, sort="rate")
    await asyncio.sleep(1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_watcher_who_leaves_disturbs_no_other(node: Node) -> None:
    async with aclosing(node.admin.watch()) as stays:
        await anext(stays)
        leaving = asyncio.create_task(view_of(node))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await anext(stays)).counts


async def test_many_channels_are_looked_through_in_slices() -> None:
    node = Node(replace(WARM, max_channels=10_000))
    for _ in range(5_000):
        await node.broker.create(ANYONE)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    view = await view_of(node, limit=1_000)
    counting.cancel()
    assert len(view.channels) == 1_000
    assert turns >= 5_000 // 200 + 1_000 // 200


async def test_a_watcher_of_many_channels_costs_less_than_2_percent_of_a_core() -> None:
    node = Node(replace(WARM, channel_ttl_secs=3_600.0))
    for number in range(CHANNELS):
        await node.broker.create(ANYONE)
        if number % 1_000 == 0:
            await asyncio.sleep(0)
    async with aclosing(node.admin.watch(1.0, 200)) as views:
        await anext(views)
        began_s, computed_s = now(), time.thread_time()
        while now() - began_s < 120:
            await anext(views)
        assert time.thread_time() - computed_s < 0.02 * (now() - began_s)


async def test_between_two_looks_at_all_channels_a_view_has_the_same_ones_as_they_are_by_then(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.core.watching.SURVEY_SHARE", 1e-9)
    deep, ends, quiet = await channels_with(node, 3, 2, 1)
    async with aclosing(node.admin.watch(1.0)) as views:
        await anext(views)
        (late,) = await channels_with(node, 9)
        await node.write(quiet, *range(6))
        await node.admin.dispose(ends.consumer_address)
        for _ in range(2):
            view = await anext(views)
    seen = {one.address: one.depth for one in view.channels}
    assert list(seen) == [quiet.consumer_address, deep.consumer_address]
    assert list(seen.values()) == [7, 3]
    assert late.consumer_address in {one.address for one in (await view_of(node)).channels}


@pytest.mark.parametrize(
    ("interval_s", "limit", "sort"),
    [(0.05, 1, ""), (3_601.0, 1, ""), (1.0, 1_001, ""), (1.0, 1, "size")],
)
async def test_what_cannot_be_watched_is_refused(
    node: Node, interval_s: float, limit: int, sort: str
) -> None:
    with pytest.raises(BadRequest):
        await view_of(node, interval_s=interval_s, limit=limit, sort=sort)
