"""What the store in Redis does when answers are missing, which no other store has to do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial

import pytest

from megaphone.cluster.shared import Unreplicated
from megaphone.core.access import ANYONE
from megaphone.core.admin import Admin
from megaphone.core.agents import Agents
from megaphone.core.alarms import Alarms
from megaphone.core.many import ManyReader
from megaphone.core.ports import Append, Lease, Stored, WouldBlock
from megaphone.core.reader import Reader
from megaphone.core.reading import Reading
from megaphone.core.tenants import Tenant
from megaphone.errors import (
    ChannelNotFound,
    LimitExceeded,
    ReaderBusy,
    StoreUnavailable,
    TakenOver,
)
from megaphone.model import (
    ChannelBegun,
    ChannelDone,
    Event,
    NodeView,
    Part,
    ReadEnd,
    ReadOptions,
)
from megaphone.observe.metrics import Metrics
from megaphone.settings import TenantLimits
from megaphone.store.redis import questions
from megaphone.store.redis.errors import NoPermission
from megaphone.store.redis.functions import name_of
from megaphone.store.redis.store import RedisStore
from tests.support.leases import release, taken
from tests.support.redis_server import RedisServer
from tests.support.settings import limits

ADDRESS = "agent.c.1"


async def started(
    server: RedisServer, *, removed: list[str] | None = None, **changes: float
) -> RedisStore:
    """Return a node. The addresses of channels that it reports as removed go to a list."""
    store = RedisStore(
        server.url,
        prefix="store",
        limits=limits(capacity=3, **changes),
        max_channels=10,
        write_timeout_s=5.0,
        on_removed=lambda address, *_: None if removed is None else removed.append(address),
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


async def refused(store: RedisStore) -> None:
    """Wait until the store has refused the calls that have left."""
    with pytest.raises(NoPermission):
        await store.functions.start("exists", b"c")


async def test_a_lease_is_given_back_after_the_store_has_refused_that(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    own_server.call("ACL", "SETUSER", "default", "-fcall", f"+fcall|{name_of('lease')}")
    opening = asyncio.create_task(store.open(b"c", ADDRESS, ReadOptions()))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await refused(store)
    own_server.call("ACL", "SETUSER", "default", "+@all")
    await other.open(b"c", ADDRESS, ReadOptions())


async def test_a_lease_is_released_after_the_store_has_refused_that(
    own_server: RedisServer, store: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("ACL", "SETUSER", "default", "-fcall")
    release(lease, clean=True)
    await refused(store)
    own_server.call("ACL", "SETUSER", "default", "+@all")
    await store.open(b"c", ADDRESS, ReadOptions())


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


async def read_long(store: RedisStore) -> Lease:
    """Return an open read that was sent an event, `a`, long ago, and `b` just now."""
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    long_ago = asyncio.get_running_loop().time() - 1000
    await append(store, "a")
    await until(lambda: lease.ready)
    assert lease.take(1, 1_000_000, long_ago) is not None
    assert lease.take(1, 1_000_000, long_ago) is None  # which confirms the event
    await append(store, "b")
    assert await take(lease) == "b"
    return lease


async def test_another_node_sends_again_only_what_a_read_was_sent_lately(
    store: RedisStore, other: RedisStore
) -> None:
    old = await read_long(store)
    async with asyncio.timeout(10):
        new = await other.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert await take(new) == "b"
    assert old.ended_by is ReadEnd.TAKEN_OVER


@pytest.mark.parametrize("hears", [False, True])
async def test_a_reader_takes_over_from_a_node_that_does_not_answer(
    own_server: RedisServer,
    store: RedisStore,
    other: RedisStore,
    monkeypatch: pytest.MonkeyPatch,
    hears: bool,
) -> None:
    """If nobody hears the question, the other node does not wait for an answer."""
    monkeypatch.setattr(questions, "ANSWERED_WITHIN_S", 0.1 if hears else 60.0)
    await read_long(store)
    if hears:
        monkeypatch.setattr(store, "_end_for_other", lambda *_: None)
    else:
        await hear_nothing(own_server, store)
    async with asyncio.timeout(10):
        new = await other.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert await take(new) == "ab"


async def test_a_read_that_another_node_wants_to_end_may_have_ended(
    store: RedisStore, other: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    inbox = store.membership.inbox
    assert await other._questions.ask("T", inbox, "unknown") == b""
    assert lease.is_open
    assert await other._questions.ask("T", inbox, lease.handle) == b""
    await other.open(b"c", ADDRESS, ReadOptions())
    assert await other._questions.ask("T", inbox, lease.handle) == b""


async def test_a_reader_that_returns_ends_only_its_own_read_at_another_node(
    store: RedisStore, other: RedisStore
) -> None:
    old = await store.open(b"c", ADDRESS, ReadOptions(reader="phone"))
    with pytest.raises(TakenOver):
        await other.open(b"c", ADDRESS, ReadOptions(reader="tablet", returning=True))
    assert not old.is_over
    await other.open(b"c", ADDRESS, ReadOptions(reader="phone", returning=True))
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
    assert await store.exists([b"c"])


async def test_a_store_that_is_away_is_reported_after_a_while(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.DOWN_S", 0.2)
    store.check_serves()
    own_server.kill()
    async with asyncio.timeout(20):
        while serves(store):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    own_server.start()
    async with asyncio.timeout(20):
        while not store.link.is_up:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    store.check_serves()


async def test_a_store_that_freezes_is_reported_before_its_connection_is_given_up(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.DOWN_S", 1.0)
    own_server.freeze()
    async with asyncio.timeout(20):
        while serves(store):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert store.link.is_up
    own_server.thaw()
    async with asyncio.timeout(20):
        while not serves(store):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def serves(store: RedisStore) -> bool:
    try:
        store.check_serves()
    except StoreUnavailable:
        return False
    return True


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


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is that of another process
            await asyncio.sleep(0.02)


def is_over(lease: Lease) -> Callable[[], bool]:
    return lambda: lease.is_over


async def test_nodes_know_the_keys_of_the_agents_of_all(
    store: RedisStore, other: RedisStore
) -> None:
    assert await other.directory.secret_of("agent") is None
    assert await store.directory.add("agent", b"1") == b"1"
    assert await other.directory.add("agent", b"2") == b"1"
    assert await other.directory.secret_of("agent") == b"1"


async def refusal(store: RedisStore) -> str:
    """Wait until a store takes no more channels. Returns: why."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.check_room()
            except LimitExceeded as error:
                return str(error)
            await asyncio.sleep(0.02)


async def test_channels_of_other_nodes_count(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.COUNT_S", 0.05)
    counting = await started(own_server)
    for number in range(9):
        await store.create(b"%d" % number, f"agent.{number}.1")
    assert "has 10 channels" in await refusal(counting)
    await counting.aclose()


async def test_a_channel_that_was_never_created_counts_for_a_minute(store: RedisStore) -> None:
    """Its node has died in between."""
    shop = Tenant("shop", TenantLimits(channels=2))
    await store.create(b"d", "agent.d.1", tenant=shop)
    claim = partial(store.functions.of_tenant, "claim", "shop")
    assert await claim("dead", 2, "0") == [0]
    with pytest.raises(LimitExceeded, match="channels"):
        await store.create(b"e", "agent.e.1", tenant=shop)
    store.functions.away = str(int(store.functions.away) - 61_000)  # a minute later
    await store.create(b"e", "agent.e.1", tenant=shop)
    with pytest.raises(LimitExceeded, match="channels"):
        await store.create(b"f", "agent.f.1", tenant=shop)


async def test_a_rate_of_creations_is_counted_in_the_store(store: RedisStore) -> None:
    claim = partial(store.functions.of_tenant, "claim", "shop", "tag", -1, "0.1")
    assert await claim() == [0]
    result, wait_us = await claim()
    assert result == 1
    assert 1_000_000 < wait_us <= 10_000_000
    store.functions.away = str(int(store.functions.away) - 10_000)  # ten seconds later
    assert await claim() == [0]
    assert (await claim())[0] == 1


async def test_no_call_is_done_without_waiting(store: RedisStore) -> None:
    assert store.is_remote
    write = Append(b"c", Event("a", "s", 0, b"1"))
    for call in (
        lambda: store.create_nowait(b"d", "agent.d.1"),
        lambda: store.exists_nowait([b"c"]),
        lambda: store.append_nowait(write),
        lambda: store.append_run_nowait(b"c", [write.event]),
        lambda: store.open_nowait(b"c", ADDRESS, ReadOptions()),
        lambda: store.acknowledge_nowait(b"c", ADDRESS, "a"),
    ):
        with pytest.raises(WouldBlock):
            call()


async def test_events_of_a_node_go_to_its_own_reader(store: RedisStore) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    for event_id in "ab":
        await append(store, event_id)
        assert await take(lease) == event_id
    large = Append(b"c", Event("c", "s", 0, b"1" * 40_000))
    await store.append([large], wait=False)
    assert await take(lease) == "c"


async def test_small_events_of_another_node_come_unasked(
    store: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    asked: list[object] = []
    monkeypatch.setattr(store, "take", lambda *what: asked.append(what))
    await append(other, "a", "b")
    assert await take(lease) == "ab"
    assert asked == []


async def test_a_message_for_a_read_that_has_ended_harms_nobody(
    own_server: RedisServer, store: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("PUBLISH", store.membership.inbox, "R unknown")
    own_server.call("PUBLISH", store.membership.inbox, "? 1")  # of a later version
    own_server.call("PUBLISH", store.membership.inbox, "W unknown 1")
    await append(store, "a")
    assert await take(lease) == "a"


async def test_a_read_learns_that_its_channel_was_removed(
    store: RedisStore, other: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    taking = asyncio.create_task(take(lease))
    await other.remove(b"c")
    assert await taking == ""
    assert lease.is_over


async def test_a_read_learns_at_last_what_a_lost_message_said(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    """The one read misses an event, and the other that its channel has gone."""
    await store.create(b"d", "agent.d.1")
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    ends = await store.open(b"d", "agent.d.1", ReadOptions())
    inbox = store.membership.inbox
    takings = [asyncio.create_task(take(one)) for one in (lease, ends)]
    for client in own_server.call("CLIENT", "LIST", "TYPE", "PUBSUB").decode().splitlines():
        fields = dict(part.split("=", 1) for part in client.split(" "))
        own_server.call("CLIENT", "KILL", "ID", fields["id"])
    own_server.call("DEL", *store.keys_of(b"d"))
    await append(other, "a")
    assert await asyncio.gather(*takings) == ["a", ""]
    assert ends.is_over
    assert own_server.call("PUBSUB", "NUMSUB", inbox)[1] == 1


async def test_a_read_learns_after_a_while_what_was_lost_without_notice(
    own_server: RedisServer, other: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.asking.ASK_EVERY_S", 0.5)
    store = await started(own_server)
    await store.create(b"c", ADDRESS)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    await hear_nothing(own_server, store)
    await append(other, "a")
    assert await take(lease) == "a"
    await store.aclose()


async def test_what_the_store_sends_again_is_not_sent_to_the_reader_again(
    own_server: RedisServer, other: RedisStore
) -> None:
    store = await started(own_server)
    await store.create(b"c", ADDRESS)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    await hear_nothing(own_server, store)
    await append(other, "a", "b")
    lease.ask()
    batch = await taken(lease, 100, 1_000_000, asyncio.get_running_loop().time() + 5.0)
    assert batch is not None
    assert (len(batch.events), batch.redelivered) == (2, 0)
    await store.aclose()


async def hear_nothing(server: RedisServer, store: RedisStore) -> None:
    """Let messages to a node be lost from now on, without its notice."""
    connection = store._subscription._keeper.connection
    assert connection is not None
    inbox = store.membership.inbox
    connection.tell("UNSUBSCRIBE", inbox)
    await until(lambda: server.call("PUBSUB", "NUMSUB", inbox)[1] == 0)


@pytest.mark.parametrize("wait", [False, True])
async def test_a_read_gets_at_once_the_event_whose_answer_was_lost(
    own_server: RedisServer, store: RedisStore, wait: bool
) -> None:
    """Its writer is on the same node, and so no message brings the event."""
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    taking = asyncio.create_task(take(lease, within_s=10))
    own_server.freeze()
    [result] = await append(store, "a", wait=wait)
    own_server.thaw()
    assert isinstance(result, StoreUnavailable)
    assert result.may_have_happened
    assert await taking == "a"


async def test_a_store_that_has_lost_events_ends_all_reads(
    own_server: RedisServer, store: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.kill()
    own_server.start()
    await until(is_over(lease))
    with pytest.raises(ChannelNotFound):
        await store.open(b"c", ADDRESS, ReadOptions())


async def test_the_channels_of_a_store_that_was_emptied_are_found(
    own_server: RedisServer, store: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.kill()
    own_server.start()
    await until(is_over(lease))
    await store.create(b"d", "agent.d.1")
    assert await store.list(None, 0, 10) == ["agent.d.1"]


async def test_agents_that_the_store_has_lost_are_added_again(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    assert await store.directory.add("agent", b"key") == b"key"
    own_server.kill()
    own_server.start()

    async with asyncio.timeout(20):
        while await secret_at(other) != b"key":  # noqa: ASYNC110 - the other node must not be told
            await asyncio.sleep(0.05)


async def secret_at(store: RedisStore) -> bytes | None:
    with suppress(StoreUnavailable):
        return await store.directory.secret_of("agent")
    return None


async def test_a_node_learns_that_the_store_has_another_key_of_an_agent(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    """The store has lost the agent, and a node that has just started was the first to add it."""
    assert await store.directory.add("agent", b"key") == b"key"
    told: list[tuple[str, bytes]] = []
    store.directory.on_other_key = lambda *agent: told.append(agent)
    own_server.call("HSET", store._names.agents, "agent", "another")
    await other.membership.begin_epoch()
    await until(lambda: told == [("agent", b"another")])


async def test_a_lease_that_nobody_has_is_taken(store: RedisStore) -> None:
    """It is of this node, whose call for it was carried out long after it was given up."""
    lost = await store.open(b"c", ADDRESS, ReadOptions())
    del store._leases[lost.handle]
    await store.open(b"c", ADDRESS, ReadOptions())


async def test_a_lease_of_a_node_that_is_dead_is_taken(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.membership.BEAT_S", 0.1)
    monkeypatch.setattr("megaphone.store.redis.membership.SILENT_S", 0.6)
    nodes = [await started(own_server) for _ in range(2)]
    dead, lives = nodes
    await lives.create(b"c", ADDRESS)
    await append(dead, "a")
    assert await take(await dead.open(b"c", ADDRESS, ReadOptions())) == "a"
    with pytest.raises(ReaderBusy):
        await lives.open(b"c", ADDRESS, ReadOptions())
    await dead.membership.aclose()  # it beats no more
    await until(lambda: dead.membership.node not in lives.membership.living)
    assert await take(await lives.open(b"c", ADDRESS, ReadOptions())) == "a"
    for node in nodes:
        await node.aclose()


async def test_a_channel_expires_though_the_node_that_served_its_read_is_dead(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.membership.BEAT_S", 0.1)
    monkeypatch.setattr("megaphone.store.redis.membership.SILENT_S", 0.6)
    monkeypatch.setattr("megaphone.store.redis.expiry.SWEEP_S", 0.1)
    removed: list[str] = []
    dead = await started(own_server, ttl_s=0.5)
    lives = await started(own_server, ttl_s=0.5, removed=removed)
    await lives.create(b"c", ADDRESS)
    await lives.create(b"d", "agent.d.1")
    await append(dead, "a")
    lease = await dead.open(b"c", ADDRESS, ReadOptions())
    still_read = await lives.open(b"d", "agent.d.1", ReadOptions())
    await dead.membership.aclose()  # it beats no more
    dead._sweeper._task.cancel()  # type: ignore[union-attr]
    await until(lambda: removed == [ADDRESS])
    await until(lambda: lease.is_over)  # the node only stood still
    assert not still_read.is_over
    # A node that starts later knows when no other node died.
    await lives.membership.aclose()
    lives._sweeper._task.cancel()  # type: ignore[union-attr]
    later = await started(own_server, ttl_s=0.5, removed=removed)
    await until(lambda: removed == [ADDRESS, "agent.d.1"])
    for node in (dead, lives, later):
        await node.aclose()


async def test_a_lease_of_a_node_that_has_just_started_is_not_taken(
    store: RedisStore, other: RedisStore
) -> None:
    """The node that looks saw the others the last time before that one had started."""
    store.membership._living -= {other.membership.node}
    await other.open(b"c", ADDRESS, ReadOptions())
    with pytest.raises(ReaderBusy):
        await store.open(b"c", ADDRESS, ReadOptions())


async def test_a_read_asks_again_when_the_store_did_not_answer(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.lease.ASK_AGAIN_S", 0.1)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("CLIENT", "PAUSE", 300)
    lease.ask()
    taking = asyncio.create_task(take(lease))
    await asyncio.sleep(0.1)
    store.link.reconnect("the take is lost")
    await append(store, "a")
    assert await taking == "a"


async def test_a_read_asks_again_when_the_store_has_refused_that(
    own_server: RedisServer, store: RedisStore, other: RedisStore
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("ACL", "SETUSER", "default", "-fcall")
    lease.ask()
    taking = asyncio.create_task(take(lease))
    await asyncio.sleep(0)
    await refused(store)
    own_server.call("ACL", "SETUSER", "default", "+@all")
    large = Event("a", "s", 0, b"1" * 100_000)  # which no message brings
    await other.append([Append(b"c", large)], wait=False)
    assert await taking == "a"


async def test_a_reader_that_is_replaced_on_its_own_node_is_woken(store: RedisStore) -> None:
    old = await store.open(b"c", ADDRESS, ReadOptions())
    taking = asyncio.create_task(take(old))
    await asyncio.sleep(0)
    new = await store.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert await taking == ""
    quiet = await store.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert [one.is_over for one in (old, new, quiet)] == [True, True, False]


async def test_an_event_that_was_sent_to_a_read_that_ends_is_sent_to_the_next(
    store: RedisStore,
) -> None:
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    writing = asyncio.create_task(append(store, "a"))
    await asyncio.sleep(0)
    release(lease, clean=True)  # the answer to the write names this read
    assert await writing == [Stored("a", is_new=True)]
    assert await take(await store.open(b"c", ADDRESS, ReadOptions())) == "a"


async def test_a_read_that_ends_late_does_not_hide_its_successor(
    store: RedisStore, other: RedisStore
) -> None:
    old = await store.open(b"c", ADDRESS, ReadOptions())
    release(await other.open(b"c", ADDRESS, ReadOptions(take_over=True)), clean=True)
    new = await store.open(b"c", ADDRESS, ReadOptions())
    release(old, clean=False)
    await store.open(b"c", ADDRESS, ReadOptions(take_over=True))
    assert new.is_over


# Expiry, which the nodes of a store share.


async def test_each_channel_that_expires_is_reported_by_one_node(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.expiry.SWEEP_S", 0.1)
    monkeypatch.setattr("megaphone.store.redis.membership.BEAT_S", 0.1)
    removed: list[str] = []
    nodes = [await started(own_server, removed=removed, ttl_s=1) for _ in range(2)]
    await until(lambda: all(len(node.membership.living) == 2 for node in nodes))
    for number in range(8):
        await nodes[0].create(b"%d" % number, f"agent.{number}.1")
    own_server.call("DEL", *nodes[0].keys_of(b"7"))  # as if a node had died over its removal
    lease = await nodes[0].open(b"6", "agent.6.1", ReadOptions())
    await until(lambda: len(removed) == 6)
    await until(lambda: own_server.call("ZCARD", "store:agent:agent") == 1)
    await asyncio.sleep(0.3)
    assert sorted(removed) == [f"agent.{number}.1" for number in range(6)]
    assert await nodes[0].list(None, 0, 10) == ["agent.6.1"]
    assert await nodes[0].list(None, 0, 0) == []
    assert not lease.is_over
    for node in nodes:
        await node.aclose()


# A read of many channels: its client learns of the end of a channel only when the store knows it


async def read_to_the_end(lease: Lease) -> list[Part]:
    alarms = Alarms()

    async def opened() -> ManyReader:
        reader = Reader(
            lease,
            ReadOptions(),
            caller=ANYONE,
            tenant=None,
            agent="agent",
            time_s=0.0,
            observer=Metrics(),
            alarms=alarms,
            on_close=lambda _: None,
        )
        return ManyReader([reader], ReadOptions(), Metrics(), alarms)

    async with asyncio.timeout(20), Reading(opened) as reading:
        return [part async for batch in reading for part in batch]


async def test_the_end_of_one_of_many_channels_is_the_end_of_its_lease(store: RedisStore) -> None:
    for _ in range(2):
        begun, done = await read_to_the_end(await store.open(b"c", ADDRESS, ReadOptions()))
        assert begun == ChannelBegun(0, "-", None)
        assert done == ChannelDone(0, None)


async def test_one_of_many_channels_does_not_end_cleanly_without_the_store(
    own_server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone.store.redis.store.SETTLED_WITHIN_S", 0.2)
    lease = await store.open(b"c", ADDRESS, ReadOptions())
    own_server.call("CLIENT", "PAUSE", 1_000)
    _, done = await read_to_the_end(lease)
    assert isinstance(done, ChannelDone)
    assert isinstance(done.error, StoreUnavailable)


# What operators see of it


async def test_a_view_has_the_oldest_channels_of_the_store(store: RedisStore) -> None:
    await asyncio.sleep(0.01)
    await store.create(b"d", "agent.d.1")
    none = Unreplicated()
    agents = Agents(0.0)
    admin = Admin(store=store, agents=agents, pipes=none, drains=none, counts=Metrics())
    async with aclosing(admin.watch(limit=1, sort="age")) as views:
        view = await anext(views)
    assert [one.address for one in view.channels] == [ADDRESS]
    assert (view.pipes, view.drain) == ((), None)


async def test_a_watcher_learns_that_the_store_is_away(
    own_server: RedisServer, store: RedisStore
) -> None:
    none = Unreplicated()
    admin = Admin(store=store, agents=Agents(0.0), pipes=none, drains=none, counts=Metrics())
    async with aclosing(admin.watch(0.1)) as views:
        await anext(views)
        own_server.stop()
        with pytest.raises(StoreUnavailable):
            await to_the_end(views)


async def test_a_watcher_learns_that_the_store_refuses_to_tell(
    own_server: RedisServer, store: RedisStore
) -> None:
    none = Unreplicated()
    admin = Admin(store=store, agents=Agents(0.0), pipes=none, drains=none, counts=Metrics())
    async with aclosing(admin.watch(0.1)) as views:
        await anext(views)
        own_server.call("ACL", "SETUSER", "default", "-fcall")
        with pytest.raises(NoPermission):
            await to_the_end(views)


async def to_the_end(views: AsyncIterator[NodeView]) -> None:
    async with asyncio.timeout(20):
        async for _ in views:
            pass
