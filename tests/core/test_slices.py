"""Long requests are done in slices, between which others get their turn; results do not change.

Nothing is timed: it is counted how much a request does to the store between two turns of a task
that wants nothing but turns.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.pace import ADDRESS_WORK, EVENT_WORK, SLICE
from megaphone.core.ports import Append, AppendResult, Store, WouldBlock
from megaphone.core.tasks import CANCELLED_AT_ONCE
from megaphone.core.tenants import Tenant
from megaphone.errors import BadRequest, MegaphoneError, PayloadTooLarge, WriteTimeout
from megaphone.model import (
    AgentMode,
    BatchFailure,
    Event,
    NewChannel,
    NewEvent,
    ReadOptions,
    WriteFailure,
)
from megaphone.observe.metrics import Metrics
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore

pytestmark = pytest.mark.looptime

ROOMY = Settings(agent_warmup_secs=0, buffer_capacity=10_000)
TIGHT = replace(ROOMY, buffer_capacity=3)
ROUND_TRIP_S = 0.01
"""How long a distant store takes at most."""
MOST_IN_A_TURN = 2 * SLICE // min(ADDRESS_WORK, EVENT_WORK)


class CountingStore:
    """Counts how often a store was called, and how often at most between two turns of others.

    It has the store and does not inherit from it, because a compiled class cannot be inherited.
    """

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.calls = 0
        self.since_turn = 0
        self.most_in_a_turn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def called(self, times: int = 1) -> None:
        self.calls += times
        self.since_turn += times
        self.most_in_a_turn = max(self.most_in_a_turn, self.since_turn)

    async def exists(
        self, channel_ids: Sequence[bytes], tenant: Tenant | None = None
    ) -> dict[bytes, str]:
        self.called(len(channel_ids))
        return await self.store.exists(channel_ids, tenant)

    def append_run_nowait(
        self, channel_id: bytes, events: list[Event], tenant: Tenant | None = None
    ) -> int:
        accepted = self.store.append_run_nowait(channel_id, events, tenant)
        self.called(accepted)
        return accepted

    async def append_to_all(
        self, channel_ids: Sequence[bytes], events: list[Event], tenant: Tenant | None = None
    ) -> Sequence[int | MegaphoneError]:
        self.called(len(channel_ids) * len(events))
        return await self.store.append_to_all(channel_ids, events, tenant)

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        self.called(len(writes))
        try:
            results = await self.store.append(writes, wait=wait)
        except asyncio.CancelledError:
            self.called(1)
            raise
        if any(isinstance(result, WriteTimeout) for result in results):
            self.called(1)
        return results


class DistantStore:
    """A store whose answers take a while, and not always the same."""

    is_remote = True

    def __init__(self, store: CountingStore) -> None:
        self.store = store
        self.under_way: Counter[bytes] = Counter()
        """How many calls there are for each channel."""
        self.most_for_a_channel = 0
        self._rng = random.Random(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def append_run_nowait(
        self, channel_id: bytes, events: list[Event], tenant: Tenant | None = None
    ) -> int:
        raise WouldBlock

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        async with self._a_round_trip({write.channel_id for write in writes}):
            return await self.store.append(writes, wait=wait)

    async def append_to_all(
        self, channel_ids: Sequence[bytes], events: list[Event], tenant: Tenant | None = None
    ) -> Sequence[int | MegaphoneError]:
        async with self._a_round_trip(channel_ids):
            return await self.store.append_to_all(channel_ids, events, tenant)

    @asynccontextmanager
    async def _a_round_trip(self, channel_ids: Collection[bytes]) -> AsyncIterator[None]:
        self.under_way.update(channel_ids)
        self.most_for_a_channel = max(self.most_for_a_channel, *self.under_way.values())
        await asyncio.sleep(self._rng.uniform(0, ROUND_TRIP_S))
        yield
        self.under_way.subtract(channel_ids)


class Node:
    def __init__(self, settings: Settings, *, is_distant: bool = False) -> None:
        metrics = Metrics()
        store = MemoryStore(
            limits=settings.channel_limits(),
            max_channels=settings.max_channels,
            write_timeout_s=settings.write_timeout_millis / 1000,
            budget=Budget(),
            on_removed=lambda *_: self.store.called(),
        )
        self.store = CountingStore(store)
        self.distant = DistantStore(self.store)
        self.agents = Agents(0)
        self.agents.add("node", AgentMode.MASTER, 0)
        self.broker = Broker(
            store=cast("Store", self.distant if is_distant else self.store),
            agents=self.agents,
            settings=settings,
            observer=metrics,
        )
        self.turns = 0

    async def create(self, count: int) -> list[NewChannel]:
        return [await self.broker.create(ANYONE) for _ in range(count)]

    async def events(self, channel: NewChannel) -> list[int]:
        """Read all there is, and return what numbers it holds."""
        options = ReadOptions(wait_s=0)
        async with self.broker.read(ANYONE, channel.consumer_address, options) as reader:
            return [int(event.body) async for batch in reader for event in batch]

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Let another task run within this context whenever it gets a turn."""

        async def take_turns() -> None:
            while True:
                self.turns += 1
                self.store.since_turn = 0
                await asyncio.sleep(0)

        task = asyncio.create_task(take_turns())
        try:
            yield
        finally:
            task.cancel()


def messages(count: int) -> list[NewEvent]:
    return [NewEvent("s", b"%d" % number) for number in range(count)]


def bad_addresses(count: int) -> list[str]:
    """Return addresses of many kinds, none of which leads anywhere."""
    rng = random.Random(1)
    kinds = ["", "word", "node.{}.1", "node.{}", "elsewhere.{}.1", "{}.{}.{}"]
    letters = "".join(rng.choices("abcdefgh", k=50))
    return [kinds[n % len(kinds)].format(letters, n, n) + f"{n}" for n in range(count)]


# -- Which channels live


async def test_many_addresses_are_looked_up_in_slices() -> None:
    node = Node(ROOMY)
    channels = await node.create(1_000)
    asked = [channel.producer_address for channel in channels] + bad_addresses(9_000)
    async with node.beside():
        alive = await node.broker.exists(ANYONE, asked)
    assert alive == {address: index < 1_000 for index, address in enumerate(asked)}
    assert list(alive) == asked
    assert node.turns >= 10_000 * ADDRESS_WORK // SLICE
    assert node.store.most_in_a_turn <= MOST_IN_A_TURN


async def test_an_address_that_is_named_often_is_looked_up_once() -> None:
    node = Node(ROOMY)
    one, other = await node.create(2)
    asked = [one.producer_address, other.consumer_address] * 5_000
    assert await node.broker.exists(ANYONE, asked) == dict.fromkeys(asked, True)
    assert node.store.calls == 2


async def test_more_addresses_than_allowed_are_refused_before_one_is_looked_up() -> None:
    node = Node(replace(ROOMY, max_addresses=2))
    asked = [(await node.create(1))[0].producer_address] * 3
    said = "the request names 3 addresses; at most 2 are allowed (max_addresses)"
    for call in (
        node.broker.exists(ANYONE, asked),
        node.broker.write_batch(ANYONE, asked, messages(1)),
    ):
        with pytest.raises(PayloadTooLarge) as refused:
            await call
        assert str(refused.value) == said
    assert node.store.calls == 0


# -- The end of channels


async def test_channels_that_expire_at_the_same_time_end_in_slices() -> None:
    node = Node(ROOMY)
    channels = await node.create(5_000)
    await asyncio.sleep(60)
    for _ in channels:
        node.store.since_turn = 0
        await asyncio.sleep(0)
    assert await node.store.list(None, 0, 1) == []
    assert node.store.most_in_a_turn <= 1_000
    assert node.store.calls == len(channels)


# -- Batches


async def test_a_batch_to_many_channels_is_written_in_slices() -> None:
    node = Node(ROOMY)
    channels = await node.create(1_000)
    async with node.beside():
        written = await node.broker.write_batch(
            ANYONE, [channel.producer_address for channel in channels], messages(20)
        )
    assert written.failures == []
    assert node.turns >= 20_000 * EVENT_WORK // SLICE
    assert node.store.most_in_a_turn <= MOST_IN_A_TURN
    for channel in channels:
        assert await node.events(channel) == list(range(20))


async def test_a_batch_goes_on_while_the_store_has_a_slice_of_it() -> None:
    node = Node(ROOMY, is_distant=True)
    channels = await node.create(1_000)
    slices = 1_000 * (ADDRESS_WORK + EVENT_WORK) // SLICE
    began = asyncio.get_running_loop().time()
    written = await node.broker.write_batch(
        ANYONE, [channel.producer_address for channel in channels], messages(1)
    )
    took = asyncio.get_running_loop().time() - began
    assert written.failures == []
    assert took < slices * ROUND_TRIP_S / 2 / 2  # a half of what one slice after the other takes
    for channel in channels:
        assert await node.events(channel) == [0]


async def test_slices_with_the_same_channel_are_written_one_after_the_other() -> None:
    node = Node(replace(ROOMY, buffer_capacity=300), is_distant=True)
    roomy, full, other = await node.create(3)
    for number in range(100):
        await node.broker.write(ANYONE, full.producer_address, NewEvent("s", b"%d" % -number))
    addresses = [channel.producer_address for channel in (roomy, full, other)]
    writing = asyncio.create_task(node.broker.write_batch(ANYONE, addresses, messages(300)))
    await asyncio.sleep(60 * ROUND_TRIP_S)
    assert await node.events(roomy) == await node.events(other) == list(range(300))
    assert await node.events(full) == [*range(0, -100, -1), *range(200)]
    assert (await writing).failures == []
    assert await node.events(full) == list(range(200, 300))
    assert node.distant.most_for_a_channel == 1


async def test_a_batch_of_many_messages_to_one_channel_is_written_in_slices() -> None:
    node = Node(ROOMY)
    (channel,) = await node.create(1)
    async with node.beside():
        written = await node.broker.write_batch(ANYONE, [channel.producer_address], messages(9_000))
    assert written.failures == []
    assert node.turns >= 2 * 9_000 * EVENT_WORK // SLICE - 2  # to make them, and to write them
    assert node.store.most_in_a_turn <= MOST_IN_A_TURN
    assert await node.events(channel) == list(range(9_000))


async def test_a_batch_to_bad_addresses_is_answered_in_slices_and_in_order() -> None:
    node = Node(ROOMY)
    asked = bad_addresses(5_000)
    async with node.beside():
        written = await node.broker.write_batch(ANYONE, asked, messages(2))
    assert [(one.channel, one.index) for one in written.failures] == [
        (address, index) for address in asked for index in range(2)
    ]
    assert node.turns >= 5_000 * ADDRESS_WORK // SLICE


async def test_a_batch_with_an_address_that_is_too_long_writes_nothing() -> None:
    """The answer would repeat it for each message."""
    node = Node(ROOMY)
    (channel,) = await node.create(1)
    with pytest.raises(BadRequest) as refused:
        await node.broker.write_batch(ANYONE, [channel.producer_address, "a" * 401], messages(2))
    assert str(refused.value) == "address 1 has 401 characters; no address has more than 400"
    assert await node.events(channel) == []


async def test_full_channels_of_a_batch_wait_beside_the_others() -> None:
    node = Node(TIGHT)
    channels = await node.create(200)
    full = channels[::2]
    for channel in full:
        await node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"-1"))
        await node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"-2"))
    writing = asyncio.create_task(
        node.broker.write_batch(ANYONE, [c.producer_address for c in channels], messages(3))
    )
    await asyncio.sleep(1)
    for channel in channels[1::2]:
        assert await node.events(channel) == [0, 1, 2]
    behind = asyncio.create_task(
        node.broker.write(ANYONE, full[0].producer_address, NewEvent("s", b"9"))
    )
    await asyncio.sleep(1)
    # Those that are read now take the rest, each in its turn; the others time out.
    for channel in full[:50]:
        assert await node.events(channel) == [-1, -2, 0]
    failures = (await writing).failures
    await behind
    assert await node.events(full[0]) == [1, 9, 2]
    assert await node.events(full[49]) == [1, 2]
    assert failures == [
        BatchFailure(channel.producer_address, index, reason)
        for channel in full[50:]
        for index, reason in ((1, "TIMEOUT"), (2, "SKIPPED"))
    ]


async def test_a_batch_that_is_cancelled_leaves_no_writer_behind() -> None:
    node = Node(TIGHT)
    channels = await node.create(50)
    writing = asyncio.create_task(
        node.broker.write_batch(ANYONE, [c.producer_address for c in channels], messages(5))
    )
    await asyncio.sleep(1)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    for channel in channels:
        assert await node.events(channel) == [0, 1, 2]
        assert await node.events(channel) == []


async def test_a_batch_with_many_writers_that_wait_is_cancelled_in_slices() -> None:
    node = Node(TIGHT)
    channels = await node.create(2_000)
    writing = asyncio.create_task(
        node.broker.write_batch(ANYONE, [c.producer_address for c in channels], messages(4))
    )
    await asyncio.sleep(1)
    node.store.calls = node.store.most_in_a_turn = 0
    async with node.beside():
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    assert node.store.calls == len(channels)
    assert node.store.most_in_a_turn <= 2 * CANCELLED_AT_ONCE


@pytest.mark.parametrize("kind", ["batch", "each"])
async def test_a_call_that_is_cancelled_while_writers_wait_and_the_agent_moves(kind: str) -> None:
    node = Node(TIGHT)
    addresses = [channel.producer_address for channel in await node.create(200)]

    async def write() -> None:
        if kind == "batch":
            await node.broker.write_batch(ANYONE, addresses, messages(5))
        else:
            writes = [(address, one) for address in addresses for one in messages(5)]
            await node.broker.write_each(ANYONE, writes)

    writing = asyncio.create_task(write())
    for _ in range(6):
        await asyncio.sleep(0)
    with node.agents.moving("node"):
        await asyncio.sleep(1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing


async def test_what_a_batch_has_not_written_when_its_agent_leaves_is_told() -> None:
    node = Node(ROOMY)
    one, other = await node.create(2)
    addresses = [one.producer_address, other.producer_address]
    writing = asyncio.create_task(node.broker.write_batch(ANYONE, addresses, messages(500)))
    for _ in range(6):
        await asyncio.sleep(0)
    with node.agents.moving("node"):
        written = node.store.calls
        assert written > 0
        await asyncio.sleep(1)
        assert node.store.calls == written < 500
        node.agents.mark_moved("node")
    assert (await writing).failures == [
        BatchFailure(address, index, "MOVED")
        for address, first in ((addresses[0], written), (addresses[1], 0))
        for index in range(first, 500)
    ]


# -- Published events


async def test_published_events_are_written_in_slices() -> None:
    node = Node(ROOMY)
    channels = await node.create(100)
    writes = [
        (channels[number % 100].producer_address, NewEvent("s", b"%d" % number))
        for number in range(5_000)
    ]
    async with node.beside():
        results = await node.broker.write_each(ANYONE, writes)
    assert len(set(map(str, results))) == 5_000
    assert node.turns >= 5_000 * EVENT_WORK // SLICE
    assert node.store.most_in_a_turn <= MOST_IN_A_TURN
    for index, channel in enumerate(channels):
        assert await node.events(channel) == list(range(index, 5_000, 100))


async def test_published_events_keep_their_order_behind_one_that_waits() -> None:
    node = Node(TIGHT)
    one, other = await node.create(2)
    writes = [
        ((one, other)[number % 2].producer_address, NewEvent("s", b"%d" % number))
        for number in range(12)
    ]
    publishing = asyncio.create_task(node.broker.write_each(ANYONE, writes))
    await asyncio.sleep(1)
    assert await node.events(one) == [0, 2, 4]
    await asyncio.sleep(1)
    assert await node.events(one) == [6, 8, 10]
    results = await publishing
    assert [one.reason for one in results if isinstance(one, WriteFailure)] == [
        "TIMEOUT",
        "SKIPPED",
        "SKIPPED",
    ]
    assert await node.events(other) == [1, 3, 5]


async def test_more_published_events_than_allowed_are_refused_before_one_is_written() -> None:
    node = Node(replace(ROOMY, max_batch_events=2))
    (channel,) = await node.create(1)
    with pytest.raises(PayloadTooLarge) as refused:
        await node.broker.write_each(ANYONE, [(channel.producer_address, NewEvent("s", b"1"))] * 3)
    assert str(refused.value) == (
        "the message publishes 3 events; at most 2 are allowed (max_batch_events)"
    )
    assert node.store.calls == 0
