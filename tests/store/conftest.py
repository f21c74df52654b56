"""A store on a bench: its observer writes everything down, and events go by their ids."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from megaphone.cluster.ports import Replicable
from megaphone.core.budget import Budget
from megaphone.core.ports import ChannelLease, Store
from megaphone.model import Event, ReadOptions
from megaphone.store.memory import MemoryStore
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


@dataclass
class RecordingObserver:
    """Fulfils `megaphone.core.ports.Observer`."""

    created: int = 0
    removed: list[Removed] = field(default_factory=list)
    written: int = 0
    read: int = 0
    redelivered: int = 0
    waiting: int = 0
    waited: int = 0
    unroutable: int = 0
    fed_channels: int = 0
    forgotten: int = 0
    fed: int = 0
    forwarded: int = 0
    pushed_out: int = 0
    reads: int = 0
    ended: int = 0

    def channel_created(self) -> None:
        self.created += 1

    def channel_removed(self, age_s: float, lost: int) -> None:
        """Not called by a store."""

    def note_removed(self, consumer_address: str, age_s: float, lost: int) -> None:
        now = asyncio.get_running_loop().time()
        self.removed.append(Removed(consumer_address, age_s, lost, now))

    def events_written(self, count: int) -> None:
        self.written += count

    def events_read(self, count: int, redelivered: int) -> None:
        self.read += count
        self.redelivered += redelivered

    def writer_waits(self) -> None:
        self.waiting += 1

    def writer_waited(self) -> None:
        self.waiting -= 1
        self.waited += 1

    def channel_fed(self) -> None:
        self.fed_channels += 1

    def channel_forgotten(self) -> None:
        self.forgotten += 1

    def events_fed(self, count: int) -> None:
        self.fed += count

    def events_forwarded(self, count: int) -> None:
        self.forwarded += count

    def events_lost(self, count: int) -> None:
        self.pushed_out += count

    def events_unroutable(self, count: int) -> None:
        self.unroutable += count

    def read_started(self) -> None:
        self.reads += 1

    def read_ended(self) -> None:
        self.ended += 1


@dataclass
class Bench:
    """Calls a store with short names for channels and events."""

    store: Store
    replication: Replicable
    observer: RecordingObserver
    is_open: bool = True
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

    @staticmethod
    async def take(
        lease: ChannelLease, limit: int = 100, until: float = LONG_S, max_bytes: int = 1_000_000
    ) -> list[str]:
        batch = await lease.take(limit, max_bytes, until)
        return [event.id for event in batch.events] if batch else []

    async def create(self, channel: str = "c") -> None:
        await self.store.create(channel.encode(), self.address(channel))

    async def write(
        self, event_id: str, *, request_id: str | None = None, channel: str = "c"
    ) -> str:
        event = Event(event_id, stream_id="s", timestamp_us=0, body=b"{}")
        return await self.store.append(channel.encode(), event, request_id)

    async def fill(self, event_ids: list[str] | str) -> None:
        """Create the channel and write events for which there is room."""
        await self.create()
        for event_id in event_ids:
            assert await self.write(event_id) == event_id

    async def read(self, options: ReadOptions = PLAIN, channel: str = "c") -> ChannelLease:
        return await self.store.lease(channel.encode(), self.address(channel), options)

    async def read_once(self, options: ReadOptions = PLAIN, *, clean: bool = True) -> list[str]:
        """All that the next reader gets without waiting, also of writers that then get in."""
        lease = await self.read(options)
        taken: list[str] = []
        while event_ids := await self.take(lease, until=self.now() + 0.001):
            taken += event_ids
        lease.release(clean=clean)
        return taken

    async def acknowledge(self, event_id: str, channel: str = "c") -> int:
        return await self.store.acknowledge(channel.encode(), self.address(channel), event_id)

    async def exists(self, channel: str = "c") -> bool:
        return await self.store.exists(channel.encode())

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
        observer = RecordingObserver()
        store = MemoryStore(
            limits=limits(capacity=capacity, **bounds),
            max_channels=max_channels,
            write_timeout_s=10.0,
            budget=budget or Budget(),
            observer=observer,
            on_removed=observer.note_removed,
        )
        made = Bench(store, store.replication, observer)
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
