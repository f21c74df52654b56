"""What the store in Redis does when answers are missing, which no other store has to do."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from megaphone.core.ports import Append, Lease, Stored
from megaphone.errors import ReaderBusy, StoreUnavailable
from megaphone.model import Event, ReadOptions
from megaphone.store.redis.store import RedisStore
from tests.support.leases import release, taken
from tests.support.redis_server import RedisServer
from tests.support.settings import limits

ADDRESS = "agent.c.1"


async def started(server: RedisServer, **changes: int) -> RedisStore:
    store = RedisStore(
        server.url,
        prefix="store",
        limits=limits(capacity=3),
        max_channels=10,
        write_timeout_s=5.0,
        on_removed=lambda *_: None,
    )
    await store.start()
    return store


@pytest.fixture
async def store(own_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = await started(own_server)
    await store.create(b"c", ADDRESS)
    yield store
    await store.aclose()


@pytest.fixture
async def other(own_server: RedisServer) -> AsyncIterator[RedisStore]:
    """Another node with the same store."""
    store = await started(own_server)
    yield store
    await store.aclose()


async def append(store: RedisStore, *event_ids: str, wait: bool = False) -> list[object]:
    writes = [Append(b"c", Event(event_id, "s", 0, b"1")) for event_id in event_ids]
    return list(await store.append(writes, wait=wait))


async def take(lease: Lease, within_s: float = 5.0) -> str:
    until = asyncio.get_running_loop().time() + within_s
    batch = await taken(lease, 100, 1_000_000, until)
    return "" if batch is None else "".join(event.id for event in batch.events)


async def test_a_release_that_is_lost_is_repeated_before_the_next_read(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.RELEASE_AGAIN_S", 1.0)
    await append(store, "a")
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    assert await take(lease) == "a"
    own_server.call("CLIENT", "PAUSE", 300)
    release(lease, clean=True)
    await asyncio.sleep(0.05)
    store.link.reconnect("the call is lost with its connection")
    again = await store.open(b"c", ADDRESS, ReadOptions())
    await append(store, "b")
    assert await take(again) == "b"


async def test_a_lease_whose_answer_is_lost_is_given_back(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    own_server.freeze()  # it carries out the call later, when nobody waits for the answer any more
    with pytest.raises(StoreUnavailable):
        await store.open(b"c", ADDRESS, ReadOptions())
    own_server.thaw()
    async with asyncio.timeout(20):
        while True:
            try:
                await other.open(b"c", ADDRESS, ReadOptions())
            except (ReaderBusy, StoreUnavailable):
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_read_whose_caller_has_gone_is_given_back(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    own_server.call("CLIENT", "PAUSE", 300)
    opening = asyncio.create_task(store.open(b"c", ADDRESS, ReadOptions()))
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    await other.open(b"c", ADDRESS, ReadOptions())


async def test_another_node_waits_a_moment_for_the_end_of_a_read(
    store: RedisStore, other: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    opening = asyncio.create_task(other.open(b"c", ADDRESS, ReadOptions()))
    await asyncio.sleep(0.1)
    release(lease, clean=True)
    await opening


async def test_a_reader_may_take_over_from_another_node(
    store: RedisStore, other: RedisStore
) -> None:
    await append(store, "a")
    old = await store.open(b"c", ADDRESS, ReadOptions())
    assert await take(old) == "a"
    new = await other.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert await take(new) == "a"
    assert await take(old) == ""
    assert old.is_over


async def test_a_write_that_waits_and_whose_answer_is_lost_is_withdrawn(
    own_server: RedisServer, store: RedisStore
) -> None:
    await append(store, "a", "b", "c")
    own_server.freeze()
    [result] = await append(store, "d", wait=True)
    assert isinstance(result, StoreUnavailable)
    own_server.thaw()
    async with asyncio.timeout(20):
        while own_server.call("LLEN", store.keys_of(b"c")[5]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    assert await take(lease) == "abc"


async def test_large_events_are_asked_for(store: RedisStore, other: RedisStore) -> None:
    lease = await other.open(b"c", ADDRESS, ReadOptions())
    for event_id in "ab":
        write = Append(b"c", Event(event_id, "s", 0, b"1" * 40_000))
        assert await store.append([write], wait=False) == [Stored(event_id, is_new=True)]
        assert await take(lease) == event_id


async def test_functions_that_were_flushed_are_loaded(
    own_server: RedisServer, store: RedisStore
) -> None:
    own_server.call("FUNCTION", "FLUSH")
    assert await append(store, "a") == [Stored("a", is_new=True)]
    own_server.call("FUNCTION", "FLUSH")
    assert await store.exists([b"c"]) == {b"c"}


async def test_a_store_that_is_away_is_reported_after_a_while(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.DOWN_S", 0.2)
    store.check_serves()
    own_server.kill()
    async with asyncio.timeout(20):
        while True:
            try:
                store.check_serves()
            except StoreUnavailable:
                break
            await asyncio.sleep(0.05)
    own_server.start()
    async with asyncio.timeout(20):
        while not store.link.is_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    store.check_serves()


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_client_learns_of_a_clean_end_only_when_the_store_has_it(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    await append(store, "a")
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    assert await take(lease) == "a"
    own_server.call("CLIENT", "PAUSE", 300)
    settled = lease.settle(now())
    assert settled is not None
    await asyncio.sleep(0.1)
    assert not settled.done()
    assert await settled
    assert lease.settle(now()) is None
    await append(store, "b")
    assert await take(await other.open(b"c", ADDRESS, ReadOptions())) == "b"


async def test_a_read_that_another_reader_has_taken_over_has_no_clean_end(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("CLIENT", "KILL", "TYPE", "pubsub")  # so that the first node is not told
    await other.open(b"c", ADDRESS, ReadOptions(take_over=True))
    settled = lease.settle(now())
    assert settled is None or not await settled


async def test_a_client_does_not_wait_for_ever_for_the_end_of_its_read(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.SETTLED_WITHIN_S", 0.2)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.freeze()
    settled = lease.settle(now())
    assert settled is not None
    assert not await settled
    own_server.thaw()
