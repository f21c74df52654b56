"""A store under test. It uses short names for channels and events, and records every call."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from megaphone.cluster.ports import Replicable
from megaphone.core.budget import Budget
from megaphone.core.ports import Append, AppendResult, Lease, Store, Stored
from megaphone.model import Event, ReadOptions
from megaphone.store.memory import MemoryStore
from tests.support.leases import release, taken
from tests.support.settings import limits

T = TypeVar("T")
PLAIN = ReadOptions()
LONG_S = 3_600.0


@dataclass(frozen=True)
class Removed:
    address: str
    age_s: float
    lost: int
    at: float
    """The loop time at which it was told."""


def event_of(event_id: str) -> Event:
    return Event(event_id, stream_id="s", timestamp_us=0, body=b"{}")


def named(result: AppendResult) -> str:
    """Return the id of an event, or the name of what kept it out."""
    return result.event_id if isinstance(result, Stored) else type(result).__name__


@dataclass
class Bench:
    """Calls a store with short names for channels and events."""

    store: Store
    replication: Replicable
    removed: list[Removed]
    is_open: bool = True
    written: int = 0
    """New events, by what the store has returned."""
    taken: int = 0
    redelivered: int = 0
    evicted: int = 0
    keeping_alive: ExitStack = field(default_factory=ExitStack)

    @staticmethod
    def address(channel: str) -> str:
        return f"agent.{channel}.1"

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    @staticmethod
    async def at(time: float) -> None:
        """Wait until the clock shows exactly this."""
        loop = asyncio.get_running_loop()
        due = loop.create_future()
        loop.call_at(time, due.set_result, None)
        await due

    @staticmethod
    async def start(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a call, and let it run until it waits."""
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        return task

    async def take(
        self, lease: Lease, limit: int = 100, until: float = LONG_S, max_bytes: int = 1_000_000
    ) -> list[str]:
        batch = await taken(lease, limit, max_bytes, until)
        if batch is None:
            return []
        self.taken += len(batch.events)
        self.redelivered += batch.redelivered
        return [event.id for event in batch.events]

    async def create(self, channel: str = "c") -> None:
        await self.store.create(channel.encode(), self.address(channel))

    async def write(
        self, event_id: str, *, request_id: str | None = None, channel: str = "c"
    ) -> str:
        """Write an event, waiting for room. Raises: the error that is its result."""
        write = Append(channel.encode(), event_of(event_id), request_id)
        [result] = await self.store.append([write], wait=True)
        if isinstance(result, Stored):
            self.written += result.is_new
            return result.event_id
        raise result

    async def append_all(self, event_ids: str, *, channel: str = "c") -> list[str]:
        """Write events at once, without waiting. Returns: for each its id, or what it met."""
        writes = [Append(channel.encode(), event_of(event_id)) for event_id in event_ids]
        return [named(one) for one in await self.store.append(writes, wait=False)]

    async def fill(self, event_ids: list[str] | str) -> None:
        """Create the channel and write events for which there is room."""
        await self.create()
        for event_id in event_ids:
            assert await self.write(event_id) == event_id

    async def read(self, options: ReadOptions = PLAIN, channel: str = "c") -> Lease:
        return await self.store.open(channel.encode(), self.address(channel), options)

    async def read_once(self, options: ReadOptions = PLAIN, *, clean: bool = True) -> list[str]:
        """All that the next reader gets without waiting, also of writers that then get in."""
        lease = await self.read(options)
        taken: list[str] = []
        while event_ids := await self.take(lease, until=self.now() + 0.001):
            taken += event_ids
        release(lease, clean=clean)
        return taken

    async def acknowledge(self, event_id: str, channel: str = "c") -> int:
        return await self.store.acknowledge(channel.encode(), self.address(channel), event_id)

    async def exists(self, channel: str = "c") -> bool:
        channel_id = channel.encode()
        return channel_id in await self.store.exists([channel_id])

    async def remove(self, channel: str = "c") -> None:
        await self.store.remove(channel.encode())

    async def close(self) -> None:
        self.is_open = False
        self.keeping_alive.close()
        await self.store.aclose()


@pytest.fixture
async def make_bench() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches with a store of three events a channel, unless told otherwise.

    What goes wrong in a timer or a forgotten task, which asyncio only logs, fails the test.
    """
    benches: list[Bench] = []
    unnoticed: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unnoticed.append(context))

    def make(
        capacity: int = 3,
        max_channels: int = 100_000,
        budget: Budget | None = None,
        **bounds: Any,
    ) -> Bench:
        removed: list[Removed] = []

        def note_removed(consumer_address: str, age_s: float, lost: int) -> None:
            removed.append(Removed(consumer_address, age_s, lost, loop.time()))

        def note_evicted(lost: int) -> None:
            made.evicted += lost

        store = MemoryStore(
            limits=limits(capacity=capacity, **bounds),
            max_channels=max_channels,
            write_timeout_s=10.0,
            budget=budget or Budget(),
            on_removed=note_removed,
            on_evicted=note_evicted,
        )
        made = Bench(store, store.replication, removed)
        benches.append(made)
        return made

    yield make
    for bench in benches:
        if bench.is_open:
            await bench.close()
    assert unnoticed == []


@pytest.fixture
async def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
