"""With `store_wait_replicas` an event counts as stored only when replicas have it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from megaphone.core.ports import Append, AppendResult, Stored
from megaphone.errors import StoreUnavailable
from megaphone.model import Event, ReadOptions
from megaphone.store.redis.store import RedisStore
from tests.support.leases import taken
from tests.support.redis_server import RedisServer, redis_server
from tests.support.settings import limits

ADDRESS = "agent.c.1"


@pytest.fixture
def master() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def replica(master: RedisServer) -> Iterator[RedisServer]:
    with redis_server(replicaof=f"127.0.0.1 {master.port}") as server:
        yield server


@asynccontextmanager
async def store_of(server: RedisServer, replicas: int) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        server.url,
        prefix="replicas",
        limits=limits(capacity=3),
        max_channels=10,
        write_timeout_s=5.0,
        on_removed=lambda *_: None,
        wait_replicas=replicas,
    )
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


async def append(
    store: RedisStore, event_id: str, *, key: str | None = None, wait: bool = False
) -> AppendResult:
    write = Append(b"c", Event(event_id, "s", 0, b"1"), key)
    [result] = await store.append([write], wait=wait)
    return result


async def create(store: RedisStore) -> None:
    """Create the channel. A machine that is busy may need several attempts."""
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnavailable):
                return await store.create(b"c", ADDRESS)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is that of another process
            await asyncio.sleep(0.02)


async def until_it_has(master: RedisServer, count: int) -> None:
    await eventually(lambda: "state=online" in master.info("replication").get("slave0", ""))
    assert int(master.info("replication")["connected_slaves"]) == count


async def test_a_write_is_answered_when_a_replica_has_it(
    master: RedisServer, replica: RedisServer
) -> None:
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        assert await append(store, "a") == Stored("a", is_new=True)
        assert replica.info("keyspace")["db0"]


async def test_a_write_that_no_replica_confirms_is_refused_and_can_be_repeated(
    master: RedisServer, replica: RedisServer
) -> None:
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        lease = await store.open(b"c", ADDRESS, ReadOptions())
        before = dict(store.link.counts.errors)
        replica.freeze()
        result = await append(store, "a", key="key")
        assert isinstance(result, StoreUnavailable)
        assert result.may_have_happened
        assert store.link.counts.errors == before | {"unconfirmed": before["unconfirmed"] + 1}
        assert "0 of 1 replicas" in str(result)
        # The reader of this node gets it all the same: it may have happened.
        batch = await taken(lease, 10, 1_000, asyncio.get_running_loop().time() + 5)
        assert batch is not None
        assert [event.id for event in batch.events] == ["a"]
        assert isinstance(await append(store, "b", key="key"), StoreUnavailable)
        replica.thaw()
        assert await append(store, "c", key="key") == Stored("a", is_new=False)


async def test_a_writer_that_waited_for_a_place_is_confirmed_too(
    master: RedisServer, replica: RedisServer
) -> None:
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        for event_id in "abc":
            await append(store, event_id)
        waiting = asyncio.create_task(append(store, "d", wait=True))
        await eventually(lambda: bool(master.call("LLEN", store.keys_of(b"c")[5])))
        replica.freeze()
        await store.open(b"c", ADDRESS, ReadOptions())
        assert isinstance(await waiting, StoreUnavailable)


async def test_without_replicas_nothing_is_confirmed(master: RedisServer) -> None:
    async with store_of(master, 1) as store:
        with pytest.raises(StoreUnavailable):
            await store.create(b"c", ADDRESS)
    async with store_of(master, 0) as store:
        await store.create(b"d", "agent.d.1")


async def test_a_writer_that_leaves_takes_the_confirmation_of_no_other(
    master: RedisServer, replica: RedisServer
) -> None:
    """Writes of one turn of the event loop are confirmed together."""
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        replica.freeze()
        leaves, stays = (asyncio.create_task(append(store, event_id)) for event_id in "ab")
        await asyncio.sleep(0.1)
        leaves.cancel()
        await asyncio.wait([leaves])
        assert leaves.cancelled()
        replica.thaw()
        assert await stays == Stored("b", is_new=True)


async def test_a_connection_that_breaks_confirms_nothing(
    master: RedisServer, replica: RedisServer
) -> None:
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        replica.freeze()
        writing = asyncio.create_task(append(store, "a"))
        await asyncio.sleep(0.1)
        store.link.reconnect("a test wants it")
        result = await writing
        assert isinstance(result, StoreUnavailable)
        assert "did not say how many replicas" in str(result)
        replica.thaw()


async def test_another_connection_confirms_nothing(
    master: RedisServer, replica: RedisServer
) -> None:
    """It may be to another master."""
    await until_it_has(master, 1)
    async with store_of(master, 1) as store:
        await create(store)
        writing = asyncio.create_task(append(store, "a"))
        await asyncio.sleep(0)
        store.link.reconnect("a test wants it")  # the call has not left yet, and leaves later
        result = await writing
        assert isinstance(result, StoreUnavailable)
        assert result.may_have_happened
        assert "the connection to the store broke meanwhile" in str(result)
