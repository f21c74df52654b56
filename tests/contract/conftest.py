"""What the contract of a store is tested against: each store there is, in each kind of time.

A store for which `STORES` has an entry is held to the contract. Its times are short, because it
may have to be tested by a real clock; how exactly a store keeps them is its own matter.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest

from megaphone.core.budget import Budget
from megaphone.core.log import Batch
from megaphone.core.ports import Append, AppendResult, Lease, OnRemoved, Store, Stored
from megaphone.model import Event, ReadOptions
from megaphone.store.memory import MemoryStore
from megaphone.store.redis.requirements import rights_of
from megaphone.store.redis.store import RedisStore
from megaphone.store.redis.url import StoreUrl
from tests.support.leases import taken
from tests.support.redis_fixtures import shared_cluster, shared_server
from tests.support.redis_server import KINDS, RedisServer
from tests.support.settings import IS_LONG, limits

CAPACITY = 3
TTL_S = 1.0
WRITE_TIMEOUT_S = 0.5
MAX_CHANNELS = 6
LONG_S = 60.0
"""How long a test waits for what must come."""

LIMITS = limits(capacity=CAPACITY, ttl_s=TTL_S)
Factory: TypeAlias = Callable[[OnRemoved], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def memory(on_removed: OnRemoved) -> AsyncIterator[Store]:
    yield MemoryStore(
        limits=LIMITS,
        max_channels=MAX_CHANNELS,
        write_timeout_s=WRITE_TIMEOUT_S,
        budget=Budget(),
        on_removed=on_removed,
    )


def redis_of(kind: str | None) -> Factory:
    """Return the factory of a store in a kind of server, or in any that is installed."""

    @asynccontextmanager
    async def redis(on_removed: OnRemoved) -> AsyncIterator[Store]:
        with shared_server(kind) as server:
            server.flush()
            admit(server, rights_of("contract"))
            yield await started(f"redis://node:secret@127.0.0.1:{server.port}", on_removed)

    return redis


def cluster_of(kind: str | None) -> Factory:
    """Return the factory of a store in a cluster of such servers."""

    @asynccontextmanager
    async def cluster(on_removed: OnRemoved) -> AsyncIterator[Store]:
        with shared_cluster(kind) as servers:
            servers.flush()
            for server in servers.masters:
                admit(server, rights_of("contract", in_cluster=True))
            url = servers.text_url.replace("://", "://node:secret@")
            yield await started(url, on_removed)

    return cluster


def admit(server: RedisServer, rights: str) -> None:
    """Make a user with no more rights than the documents say."""
    server.call("ACL", "SETUSER", "node", "reset", "on", ">secret", *rights.split())


async def started(url: str, on_removed: OnRemoved) -> Store:
    store = RedisStore(
        StoreUrl.parse(url),
        prefix="contract",
        limits=LIMITS,
        max_channels=MAX_CHANNELS,
        write_timeout_s=WRITE_TIMEOUT_S,
        on_removed=on_removed,
    )
    await store.start()
    return store


KINDS_TESTED = KINDS if IS_LONG else (None,)

STORES = [
    pytest.param(memory, id="memory, virtual time", marks=pytest.mark.looptime),
    pytest.param(memory, id="memory, real time"),
    *(pytest.param(redis_of(kind), id=kind or "redis") for kind in KINDS_TESTED),
    *(pytest.param(cluster_of(kind), id=f"{kind or 'redis'} cluster") for kind in KINDS_TESTED),
]


@dataclass
class Client:
    """Calls a store with short names for channels and events."""

    store: Store
    removed: list[tuple[str, float, int]] = field(default_factory=list)
    """The calls that the listener got."""

    is_open: bool = True

    async def close(self) -> None:
        if self.is_open:
            self.is_open = False
            await self.store.aclose()

    @staticmethod
    def address(channel: str, agent: str = "agent") -> str:
        return f"{agent}.{channel}.1"

    async def create(self, *channels: str) -> None:
        for channel in channels:
            await self.store.create(channel.encode(), self.address(channel))

    async def append(
        self, event_ids: str, *, channel: str = "c", key: str | None = None, wait: bool = False
    ) -> list[str]:
        """Write events in one call. Returns: for each its id, or the name of what it met."""
        writes = [append(channel, event_id, key) for event_id in event_ids]
        return [named(result) for result in await self.store.append(writes, wait=wait)]

    async def open(self, channel: str = "c", **options: object) -> Lease:
        return await self.store.open(
            channel.encode(),
            self.address(channel),
            ReadOptions(**options),  # type: ignore[arg-type]
        )

    async def take(self, lease: Lease, count: int, limit: int = 100) -> str:
        """Take events until there are so many."""
        all_ids = ""
        until = now() + LONG_S
        while len(all_ids) < count:
            batch = await taken(lease, limit, 1_000_000, until)
            assert batch is not None, f"the read is over after {all_ids!r}"
            all_ids += ids(batch)
        return all_ids

    async def nothing_comes(self, lease: Lease) -> bool:
        return (await taken(lease, 100, 1_000_000, now() + 0.1)) is None

    async def exists(self, channel: str = "c") -> bool:
        return channel.encode() in await self.store.exists([channel.encode()])

    async def gone(self, channel: str = "c") -> None:
        """Wait until a channel does not live any more."""
        await eventually(lambda: self.is_gone(channel))

    async def is_gone(self, channel: str) -> bool:
        return not await self.exists(channel)


def ids(batch: Batch | None) -> str:
    return "" if batch is None else "".join(event.id for event in batch.events)


def append(channel: str, event_id: str, key: str | None = None) -> Append:
    return Append(channel.encode(), Event(event_id, "s", 0, b"{}"), key)


def named(result: AppendResult | Exception) -> str:
    return result.event_id if isinstance(result, Stored) else type(result).__name__


def now() -> float:
    return asyncio.get_running_loop().time()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    until = now() + LONG_S
    while not await condition():
        assert now() < until, "it never came to that"
        await asyncio.sleep(0.02)


@pytest.fixture(params=STORES)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    factory: Factory = request.param
    removed: list[tuple[str, float, int]] = []
    async with factory(lambda *what: removed.append(what)) as store:
        client = Client(store, removed)
        yield client
        await client.close()
