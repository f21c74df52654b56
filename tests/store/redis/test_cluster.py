"""The store in a cluster, whose slots move and whose masters come and go."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from megaphone.core.ports import Append, AppendResult, Lease, Stored
from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint, Event, ReadOptions
from megaphone.store.redis import cluster_link, membership
from megaphone.store.redis import connection as connections
from megaphone.store.redis.cluster_link import ClusterLink
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import ReplyError, TryAgain, UnusableStore
from megaphone.store.redis.measure import looking_at, measure
from megaphone.store.redis.requirements import rights_of
from megaphone.store.redis.slots import SLOTS, slot_of
from megaphone.store.redis.store import RedisStore
from megaphone.store.redis.url import StoreUrl
from tests.support.leases import taken
from tests.support.redis_cluster import (
    RedisCluster,
    begin_move,
    cluster_server,
    eventually,
    id_of,
    is_ready,
    migrate,
    redis_cluster,
    role_of,
)
from tests.support.redis_fixtures import shared_cluster
from tests.support.redis_server import RedisServer
from tests.support.settings import limits

ADDRESS = "agent.c.1"


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """A cluster for all tests, whose slots they may move."""
    with shared_cluster() as cluster:
        cluster.flush()
        yield cluster


@asynccontextmanager
async def link_to(url: StoreUrl) -> AsyncIterator[ClusterLink]:
    link = ClusterLink(url, name="test")
    await link.start()
    try:
        yield link
    finally:
        await link.aclose()


@asynccontextmanager
async def store_of(url: StoreUrl, *, replicas: int = 0) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        url,
        prefix="store",
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


async def append(store: RedisStore, event_id: str, key: str | None = None) -> AppendResult:
    write = Append(b"c", Event(event_id, "s", 0, b"1"), key)
    [result] = await store.append([write], wait=False)
    return result


async def take(lease: Lease) -> str:
    batch = await taken(lease, 100, 1_000_000, asyncio.get_running_loop().time() + 5)
    return "" if batch is None else "".join(event.id for event in batch.events)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is that of other processes
            await asyncio.sleep(0.02)


def another(cluster: RedisCluster, *but: RedisServer) -> RedisServer:
    """Return a master that is none of these."""
    return next(one for one in cluster.masters if one not in but)


def end_with(cluster: RedisCluster, key: str) -> tuple[int, RedisServer, RedisServer]:
    """Return the slot of a key, its master, and another one."""
    slot = slot_of(key)
    source = cluster.owner_of(slot)
    return slot, source, another(cluster, source)


# Calls.


async def test_a_call_goes_to_the_master_of_its_key(cluster: RedisCluster) -> None:
    async with link_to(cluster.url) as link:
        assert link.is_up
        assert link.server is not None
        assert link.server.mode == "cluster"
        for number in range(20):
            await link.call("SET", f"k{number}", number)
        assert sum(server.call("DBSIZE") for server in cluster.masters) == 20
        assert len(link.masters()) == 3


async def test_a_call_follows_a_slot_that_has_moved(cluster: RedisCluster) -> None:
    slot, _, target = end_with(cluster, "k")
    async with link_to(cluster.url) as link:
        await link.call("SET", "k", "v")
        cluster.move(slot, target)
        assert await link.call("GET", "k") == b"v"
        assert link.master_of("k").place == Endpoint("127.0.0.1", target.port)


async def test_calls_for_a_slot_that_moves_are_carried_out_in_order(cluster: RedisCluster) -> None:
    slot = slot_of("k")
    async with link_to(cluster.url) as link:
        calls: list[asyncio.Future[object]] = []
        is_over = False

        async def keep_calling() -> None:
            while not is_over:
                for _ in range(3):
                    calls.append(link.call("RPUSH", "k", len(calls)))
                await asyncio.sleep(0.0005)

        calling = asyncio.create_task(keep_calling())
        for _ in range(6):
            target = another(cluster, cluster.owner_of(slot))
            await asyncio.to_thread(cluster.move, slot, target, 0.005)
        is_over = True
        await calling
        await asyncio.gather(*calls)
        assert await link.call("LRANGE", "k", 0, -1) == [b"%d" % n for n in range(len(calls))]


async def test_a_key_that_has_gone_ahead_of_its_slot_is_found(cluster: RedisCluster) -> None:
    slot, source, target = end_with(cluster, "k")
    async with link_to(cluster.url) as link:
        await link.call("SET", "k", "v")
        begin_move(slot, source, target)
        migrate(b"k", source, target)
        assert await asyncio.gather(*(link.call("GET", "k") for _ in range(5))) == [b"v"] * 5
        cluster.end_move(slot, target)
        assert await link.call("GET", "k") == b"v"


async def test_a_call_whose_keys_are_apart_waits_until_they_are_together(
    cluster: RedisCluster,
) -> None:
    slot, source, target = end_with(cluster, "{k}1")
    async with link_to(cluster.url) as link:
        await link.call("MSET", "{k}1", "a", "{k}2", "b")
        begin_move(slot, source, target)
        migrate(b"{k}1", source, target)
        both = link.call("MGET", "{k}1", "{k}2")
        behind = link.call("DEL", "{k}1", "{k}2")
        await asyncio.sleep(0.1)
        assert not both.done()
        migrate(b"{k}2", source, target)
        cluster.end_move(slot, target)
        assert await both == [b"a", b"b"]
        assert await behind == 2


async def test_a_call_does_not_wait_for_ever(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_link, "AGAIN_FOR_S", 0.2)
    slot, source, target = end_with(cluster, "{k}1")
    async with link_to(cluster.url) as link:
        await link.call("MSET", "{k}1", "a", "{k}2", "b")
        begin_move(slot, source, target)
        migrate(b"{k}1", source, target)
        with pytest.raises(TryAgain):
            await link.call("MGET", "{k}1", "{k}2")
        migrate(b"{k}2", source, target)
        cluster.end_move(slot, target)


async def test_a_move_that_is_never_finished_makes_the_store_unavailable(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All keys that there are have gone ahead, and one is nowhere: each master names the other."""
    monkeypatch.setattr(cluster_link, "AGAIN_FOR_S", 0.2)
    slot, source, target = end_with(cluster, "{k}1")
    async with link_to(cluster.url) as link:
        await link.call("SET", "{k}1", "a")
        begin_move(slot, source, target)
        migrate(b"{k}1", source, target)
        for _ in range(5):
            with pytest.raises(StoreUnavailable) as raised:
                await link.call("MGET", "{k}1", "{k}2")
            assert not raised.value.may_have_happened
        cluster.end_move(slot, target)
        assert await link.call("MGET", "{k}1", "{k}2") == [b"a", None]


@pytest.mark.parametrize(("limit", "value"), [("MAX_HELD_CALLS", 2), ("MAX_HELD_BYTES", 80)])
async def test_only_so_many_calls_wait(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(cluster_link, limit, value)
    slot, source, target = end_with(cluster, "{k}1")
    async with link_to(cluster.url) as link:
        await link.call("MSET", "{k}1", "a", "{k}2", "b")
        begin_move(slot, source, target)
        migrate(b"{k}1", source, target)
        calls = [link.call("MGET", "{k}1", "{k}2") for _ in range(4)]
        await until(lambda: sum(call.done() for call in calls) == 2)
        for call in calls[2:]:
            with pytest.raises(StoreUnavailable, match="too many calls wait"):
                await call
        migrate(b"{k}2", source, target)
        cluster.end_move(slot, target)
        assert await asyncio.gather(*calls[:2]) == [[b"a", b"b"]] * 2


async def test_calls_that_wait_fail_when_the_link_is_closed(cluster: RedisCluster) -> None:
    slot, source, target = end_with(cluster, "{k}1")
    async with link_to(cluster.url) as link:
        await link.call("MSET", "{k}1", "a", "{k}2", "b")
        begin_move(slot, source, target)
        migrate(b"{k}1", source, target)
        call = link.call("MGET", "{k}1", "{k}2")
        gone = link.call("MGET", "{k}1", "{k}2")
        await asyncio.sleep(0.05)
        gone.cancel()
    with pytest.raises(StoreUnavailable):
        await call
    migrate(b"{k}2", source, target)
    cluster.end_move(slot, target)


async def test_a_link_that_is_about_to_ask_for_the_slots_can_be_closed(
    cluster: RedisCluster,
) -> None:
    link = ClusterLink(cluster.url, name="test")
    await link.start()
    await asyncio.sleep(0.01)  # it waits for a reason to ask
    link.masters()[0].on_down()
    closing = asyncio.create_task(link.aclose())
    done, _ = await asyncio.wait([closing], timeout=20)
    assert done


async def test_an_error_of_another_kind_fails_the_call(cluster: RedisCluster) -> None:
    async with link_to(cluster.url) as link:
        await link.call("SET", "k", "v")
        with pytest.raises(ReplyError, match="WRONGTYPE"):
            await link.call("RPUSH", "k", "v")


async def test_a_redirection_to_nowhere_fails_only_the_call(cluster: RedisCluster) -> None:
    async with link_to(cluster.url) as link:
        calls = [
            link.call("EVAL", "return redis.error_reply('MOVED 1 nowhere')", 0),
            *(link.call("SET", f"k{number}", number) for number in range(9)),
        ]
        first, *others = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, StoreUnavailable)
        assert others == [b"OK"] * 9


async def test_connections_that_break_are_made_again(cluster: RedisCluster) -> None:
    async with link_to(cluster.url) as link:
        link.reconnect("a test wants it")
        assert not link.is_up
        assert await link.call("SET", "k", "v") == b"OK"


# The start.


async def test_one_server_that_answers_is_enough() -> None:
    with redis_cluster(masters=2, replicas=1) as cluster:
        replica = cluster.servers[2]
        text = f"redis+cluster://127.0.0.1:1,127.0.0.1:{replica.port}"
        async with link_to(StoreUrl.parse(text)) as link:
            await link.call("SET", "k", "v")
            assert len(link.masters()) == 2


async def test_nodes_do_without_the_right_to_ask_for_epochs(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    rights = rights_of("store", in_cluster=True).replace("+cluster|nodes", "")
    for server in cluster.masters:
        server.call("ACL", "SETUSER", "node", "reset", "on", ">secret", *rights.split())
    async with store_of(
        StoreUrl.parse(cluster.text_url.replace("://", "://node:secret@"))
    ) as store:
        await store.create(b"c", ADDRESS)
        assert await append(store, "a") == Stored("a", is_new=True)
    assert "allow the store's user +cluster|nodes" in caplog.text


async def test_a_server_that_is_in_no_cluster_any_more_is_passed_over(
    cluster: RedisCluster,
) -> None:
    with cluster_server("redis") as alone:
        text = f"redis+cluster://127.0.0.1:{alone.port},127.0.0.1:{cluster.servers[0].port}"
        async with link_to(StoreUrl.parse(text)) as link:
            assert len(link.masters()) == len(cluster.masters)


async def test_nobody_answers() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with link_to(StoreUrl.parse("redis+cluster://127.0.0.1:1")):
            pass


async def test_a_server_that_is_no_cluster(server: RedisServer) -> None:
    url = StoreUrl.parse(f"redis+cluster://127.0.0.1:{server.port}")
    with pytest.raises(UnusableStore, match="is no cluster: its URL is redis://host:6379"):
        async with link_to(url):
            pass


async def test_a_cluster_whose_slots_have_no_masters() -> None:
    with cluster_server("redis") as server:
        server.call("CLUSTER", "ADDSLOTS", 1)
        with pytest.raises(StoreUnavailable, match="knows slots without a master"):
            async with link_to(StoreUrl.parse(f"redis+cluster://127.0.0.1:{server.port}")):
                pass


async def test_a_master_that_is_away_stops_the_start() -> None:
    with redis_cluster() as cluster:
        cluster.servers[2].kill()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            async with link_to(cluster.url):
                pass


@pytest.mark.parametrize("missing", ["+cluster|slots", "+asking"])
async def test_each_right_that_is_missing_stops_the_start(
    cluster: RedisCluster, missing: str
) -> None:
    for server in cluster.masters:
        rights = [one for one in rights_of("store", in_cluster=True).split() if one != missing]
        server.call("ACL", "SETUSER", "node", "reset", "on", ">secret", *rights)
    url = StoreUrl.parse(cluster.text_url.replace("://", "://node:secret@"))
    with pytest.raises(UnusableStore, match=r"the store's user may not .*\+asking") as raised:
        async with store_of(url):
            pass
    assert "secret" not in str(raised.value)


async def test_servers_without_a_name_have_the_one_at_which_they_are_asked() -> None:
    with redis_cluster("redis", cluster_preferred_endpoint_type="unknown-endpoint") as cluster:
        slot, _, target = end_with(cluster, "k")
        async with link_to(cluster.url) as link:
            await link.call("SET", "k", "v")
            cluster.move(slot, target)
            assert await link.call("GET", "k") == b"v"


# The store.


async def test_a_node_says_what_201_means(cluster: RedisCluster) -> None:
    async with store_of(cluster.url) as store:
        assert store.facts is not None
        line = store.facts.line(1)
        server = store.link.server
    text = "cluster of 3 masters, no persistence, 0 replicas each, 201 after 1 replica"
    assert line == f"store {server}, {text}"


async def test_a_store_is_measured_and_nothing_stays(cluster: RedisCluster) -> None:
    async with looking_at(cluster.url, "mp") as (link, facts):
        speed = await measure(link, "mp", 0)
    assert facts.masters == 3
    assert speed.writes_per_s > 0
    assert [server.call("KEYS", "*") for server in cluster.masters] == [[], [], []]


async def test_events_go_to_many_channels_of_all_masters(cluster: RedisCluster) -> None:
    async with store_of(cluster.url) as store:
        ids = [b"%d" % number for number in range(9)]
        for channel_id in ids:
            await store.create(channel_id, f"agent.{channel_id.decode()}.1")
        events = [Event(name, "s", 0, b"1") for name in "ab"]
        results = await store.append_to_all([*ids, b"none"], events)
        assert list(results[:-1]) == [2] * 9
        assert type(results[-1]).__name__ == "ChannelNotFound"


async def test_functions_that_one_master_has_lost_are_loaded_there(cluster: RedisCluster) -> None:
    async with store_of(cluster.url) as store:
        await store.create(b"c", ADDRESS)
        cluster.call(store.keys_of(b"c")[0], "FUNCTION", "FLUSH")
        assert await append(store, "a") == Stored("a", is_new=True)


async def test_a_channel_that_moves_keeps_its_reader_and_its_events(cluster: RedisCluster) -> None:
    async with store_of(cluster.url) as store, store_of(cluster.url) as other:
        await store.create(b"c", ADDRESS)
        slot, _, target = end_with(cluster, store.keys_of(b"c")[0])
        lease = await store.open(b"c", ADDRESS, ReadOptions())
        assert await append(other, "a") == Stored("a", is_new=True)
        assert await take(lease) == "a"
        await asyncio.to_thread(cluster.move, slot, target)
        assert await append(other, "b") == Stored("b", is_new=True)
        assert await take(lease) == "b"
        assert not lease.is_over


async def test_a_master_joins_and_another_leaves() -> None:
    """All slots go to a server that nobody knew, and the old master leaves the cluster."""
    with redis_cluster(masters=1) as cluster, cluster_server(cluster.servers[0].kind) as new:
        [old] = cluster.servers
        async with store_of(cluster.url) as store:
            await store.create(b"c", ADDRESS)
            await append(store, "a")
            lease = await store.open(b"c", ADDRESS, ReadOptions())
            epoch = store.membership.epoch
            await asyncio.to_thread(cluster.add, new)
            slots = {slot_of(key.decode()) for key in old.call("KEYS", "*")}
            for slot in slots:
                await asyncio.to_thread(cluster.move, slot, new)
            await until(lambda: store.membership.epoch > epoch)
            await until(lambda: lease.is_over)
            epoch = store.membership.epoch
            again = await store.open(b"c", ADDRESS, ReadOptions(cursor="a", take_over=True))
            assert again.recovered is False  # nobody knows that the new server has lost nothing
            assert await append(store, "b") == Stored("b", is_new=True)
            new.call("CLUSTER", "DELSLOTSRANGE", 0, SLOTS - 1)
            new.call("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
            new.call("CLUSTER", "BUMPEPOCH")
            await until(lambda: len(store.link.masters()) == 1)
            cluster.servers.remove(old)
            new.call("CLUSTER", "FORGET", id_of(old))
            old.kill()
            assert await take(again) == "b"
            assert await append(store, "c") == Stored("c", is_new=True)
            assert await take(again) == "c"
            assert store.membership.epoch == epoch


async def test_a_replica_takes_over() -> None:
    with redis_cluster(replicas=3) as cluster:
        async with store_of(cluster.url) as store:
            await store.create(b"c", ADDRESS)
            lease = await store.open(b"c", ADDRESS, ReadOptions())
            master = cluster.owner_of(slot_of(store.keys_of(b"c")[0]))
            master.kill()
            await until(lambda: lease.is_over)
            async with asyncio.timeout(20):
                while not isinstance(await append(store, "a", "key"), Stored):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            again = await store.open(b"c", ADDRESS, ReadOptions(take_over=True))
            assert again.recovered is False
            assert await take(again) == "a"
            store.check_serves()


async def test_each_failover_begins_an_epoch_also_one_back_to_the_first_master() -> None:
    """A master that becomes one again is the same run of a server, and may lack events all the
    same."""
    with redis_cluster(masters=1, replicas=1) as cluster:
        async with store_of(cluster.url) as store:
            for _ in range(3):
                epoch = store.membership.epoch
                replica = next(one for one in cluster.servers if role_of(one) == "slave")
                await asyncio.to_thread(eventually, lambda: is_ready(replica))  # noqa: B023
                replica.call("CLUSTER", "FAILOVER", "TAKEOVER")
                await until(lambda: store.membership.epoch > epoch)  # noqa: B023


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes wait for a master that stands still, and not learn of another one by themselves."""
    monkeypatch.setattr(connections, "CALL_S", 60)
    monkeypatch.setattr(connections, "SILENCE_S", 60)
    monkeypatch.setattr(cluster_link, "MAP_S", 60)


@pytest.mark.usefixtures("patient")
async def test_what_a_master_takes_after_it_was_replaced_is_not_accepted() -> None:
    assert not await a_replaced_master_takes_a_write()


@pytest.mark.usefixtures("patient")
async def test_what_nobody_doubted_but_a_replaced_master_took_is_a_loss_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node believes a master, when readers at the new one have learned of all losses so far."""
    monkeypatch.setattr(connections, "DOUBTED_S", math.inf)
    for _ in range(3):
        if await a_replaced_master_takes_a_write():
            return
    pytest.fail("the former master never took the write")


async def a_replaced_master_takes_a_write() -> bool:
    """Returns: False, if the write was refused, or the former master broke the connection."""
    with redis_cluster(replicas=3) as cluster:
        async with store_of(cluster.url) as late:
            await late.create(b"c", ADDRESS)
            assert await append(late, "a") == Stored("a", is_new=True)
            old = cluster.owner_of(slot_of(late.keys_of(b"c")[0]))
            new = replica_of(cluster, old)
            await asyncio.to_thread(eventually, lambda: is_ready(new))
            # Else it may refuse calls at once when it goes on: nobody has answered it lately.
            old.call("CONFIG", "SET", "cluster-node-timeout", 60_000)
            old.freeze()
            writing = asyncio.create_task(append(late, "lost"))
            others = [one for one in cluster.servers if one is not old]
            await until(lambda: role_of(new) == "master")
            await asyncio.to_thread(eventually, lambda: all(is_ready(one) for one in others))
            async with store_of(StoreUrl.parse(f"redis+cluster://127.0.0.1:{new.port}")) as store:
                lease = await store.open(b"c", ADDRESS, ReadOptions())
                assert lease.recovered is False
                assert await append(store, "b") == Stored("b", is_new=True)
                assert await take(lease) == "ab"
                lease.release(clean=True, now=asyncio.get_running_loop().time())
                epoch = store.membership.epoch
                old.thaw()
                taken_by_old = await writing
                if isinstance(taken_by_old, StoreUnavailable):
                    assert taken_by_old.may_have_happened
                    return False
                assert taken_by_old == Stored("lost", is_new=True)
                await until(lambda: role_of(old) == "slave")
                assert await append(late, "c") == Stored("c", is_new=True)
                await until(lambda: store.membership.epoch > epoch)
                again = await store.open(b"c", ADDRESS, ReadOptions(cursor="b"))
                assert again.recovered is False
                assert await take(again) == "c"
                return True


async def test_a_node_that_dies_after_a_master_was_replaced_may_have_known_of_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "SILENT_S", 1.5)
    with redis_cluster(masters=1, replicas=1) as cluster:
        async with store_of(cluster.url) as store, store_of(cluster.url) as other:
            async with store_of(cluster.url) as dead:
                await until(lambda: dead.membership.node in store.membership.living)
            await until(lambda: dead.membership.node not in store.membership.living)
            assert store.membership.epoch == dead.membership.epoch  # nobody was replaced
            [new] = [one for one in cluster.servers if role_of(one) == "slave"]
            async with store_of(cluster.url) as dead:
                await until(lambda: dead.membership.node in store.membership.living)
                nodes = (store, other, dead)
                new.call("CLUSTER", "FAILOVER", "TAKEOVER")
                await until(lambda: min(one.link.replaced_at for one in nodes) > 0)
                await until(lambda: len({one.membership.epoch for one in nodes}) == 1)
                epoch = store.membership.epoch
            await until(lambda: dead.membership.node not in store.membership.living)
            assert store.membership.epoch > epoch
            await until(lambda: store.membership.epoch == other.membership.epoch)


async def test_a_read_that_began_in_an_older_epoch_gets_nothing_of_a_new_one(
    cluster: RedisCluster,
) -> None:
    """Its reader would step over the events between them that are lost."""
    async with store_of(cluster.url) as store, store_of(cluster.url) as other:
        await store.create(b"c", ADDRESS)
        lease = await store.open(b"c", ADDRESS, ReadOptions())
        assert await append(other, "a") == Stored("a", is_new=True)
        assert await take(lease) == "a"
        await other.membership.begin_epoch()
        assert await append(other, "b") == Stored("b", is_new=True)
        await until(lambda: lease.is_over)
        assert lease.ready == 0
        again = await store.open(b"c", ADDRESS, ReadOptions(cursor="a"))
        assert again.recovered is False
        assert await take(again) == "b"


async def test_messages_come_from_another_server() -> None:
    with redis_cluster(replicas=3) as cluster:
        async with store_of(cluster.url) as store, store_of(cluster.url) as other:
            inbox = store.membership.inbox

            def subscribed() -> list[RedisServer]:
                with suppress(OSError):
                    return [
                        one
                        for one in cluster.masters
                        if one.call("PUBSUB", "NUMSUB", inbox) == [inbox.encode(), 1]
                    ]
                return []

            [first] = subscribed()
            first.kill()
            await until(lambda: subscribed() not in ([], [first]))
            eventually(lambda: len(cluster.masters) == 3)
            async with asyncio.timeout(20):
                while True:
                    with suppress(StoreUnavailable):
                        await store.create(b"c", ADDRESS)
                        break
            lease = await store.open(b"c", ADDRESS, ReadOptions())
            # The masters may not all be linked again, and then they lose messages. A later message
            # tells of all events.
            sent, got = "", ""
            while not got and len(sent) < 4:
                sent += "abcd"[len(sent)]
                assert await append(other, sent[-1]) == Stored(sent[-1], is_new=True)
                if lease.is_over:  # a node has begun one more epoch
                    lease = await store.open(b"c", ADDRESS, ReadOptions(take_over=True))
                got = await take(lease)
            assert got == sent


async def test_replicas_of_the_master_confirm_wherever_it_is() -> None:
    with redis_cluster(masters=2, replicas=2) as cluster:
        async with store_of(cluster.url, replicas=1) as store:
            await store.create(b"c", ADDRESS)
            assert await append(store, "a") == Stored("a", is_new=True)
            slot, _, target = end_with(cluster, store.keys_of(b"c")[0])
            await asyncio.to_thread(cluster.move, slot, target)
            assert await append(store, "b") == Stored("b", is_new=True)
            replica = replica_of(cluster, target)
            replica.freeze()
            result = await append(store, "c", "key")
            assert isinstance(result, StoreUnavailable)
            assert "0 of 1 replicas" in str(result)
            replica.thaw()
            assert await append(store, "d", "key") == Stored("c", is_new=False)


async def test_replicas_confirm_what_a_master_has_taken_only_at_the_second_try() -> None:
    with redis_cluster(masters=2, replicas=2) as cluster:
        async with store_of(cluster.url, replicas=1) as store:
            await store.create(b"c", ADDRESS)
            slot, source, target = end_with(cluster, store.keys_of(b"c")[0])
            begin_move(slot, source, target)  # the source takes nothing that has a new key
            waits = waits_at(source)
            writing = asyncio.create_task(append(store, "a", "key"))
            await until(lambda: waits_at(source) > waits)
            replica = replica_of(cluster, source)
            replica.freeze()
            for server in (source, target):
                server.call("CLUSTER", "SETSLOT", slot, "STABLE")
            result = await writing
            replica.thaw()
            assert isinstance(result, StoreUnavailable)
            assert "0 of 1 replicas" in str(result)
            assert await append(store, "b", "key") == Stored("a", is_new=False)


def replica_of(cluster: RedisCluster, master: RedisServer) -> RedisServer:
    port = str(master.port)
    return next(
        one for one in cluster.servers if one.info("replication").get("master_port") == port
    )


def waits_at(server: RedisServer) -> int:
    """Return how often a server was asked how many replicas have something."""
    stats = server.info("commandstats").get("cmdstat_wait", "calls=0")
    return int(stats.split(",")[0].removeprefix("calls="))


async def test_a_mark_for_replicas_that_has_moved_is_made_elsewhere() -> None:
    with redis_cluster(masters=2, replicas=2) as cluster:
        async with store_of(cluster.url, replicas=1) as store:
            await store.create(b"c", ADDRESS)
            master = store.link.master_of(store.keys_of(b"c")[0])
            tag = master.tag
            slot, _, target = end_with(cluster, tag)
            assert slot != slot_of(store.keys_of(b"c")[0])
            await asyncio.to_thread(cluster.move, slot, target)
            result = await append(store, "a", "key")
            assert isinstance(result, StoreUnavailable)
            assert "have moved meanwhile" in str(result)
            assert master.tag != tag
            assert await append(store, "b", "key") == Stored("a", is_new=False)


async def test_a_server_that_sends_messages_is_any_master(cluster: RedisCluster) -> None:
    async with link_to(cluster.url) as link:
        connection, place = await link.connect_to_master(StoreCounts())
        assert isinstance(place, Endpoint)
        assert place.port in [server.port for server in cluster.masters]
        await connection.aclose()
