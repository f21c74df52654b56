"""What a node refuses in a store, and what it says of one that will do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megaphone.errors import MegaphoneError, StoreUnavailable
from megaphone.store.errors import UnusableStore
from megaphone.store.redis.connection import Server
from megaphone.store.redis.requirements import RIGHTS, Facts, rights_of
from megaphone.store.redis.store import RedisStore
from megaphone.store.redis.url import StoreUrl
from tests.support.redis_server import RedisServer, redis_server
from tests.support.scenes import eventually
from tests.support.settings import limits

PREFIX = "mp"


@asynccontextmanager
async def started(url: StoreUrl) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        url,
        prefix=PREFIX,
        limits=limits(),
        max_channels=10,
        write_timeout_s=1,
        on_removed=lambda *_: None,
    )
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


async def refusal(url: StoreUrl) -> str:
    """Return the line with which a start ends."""
    with pytest.raises((UnusableStore, MegaphoneError)) as raised:
        async with started(url):
            pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def user(server: RedisServer, *rights: str) -> StoreUrl:
    """Make a user with rights. Returns: the URL with this user."""
    server.call("ACL", "SETUSER", "node", "reset", "on", ">hunter2", *rights)
    return StoreUrl.parse(f"redis://node:hunter2@127.0.0.1:{server.port}/1")


async def test_the_rights_that_are_documented_are_enough(server: RedisServer) -> None:
    async with started(user(server, *rights_of(PREFIX).split())):
        pass
    server.call("ACL", "DELUSER", "node")


async def test_each_right_that_is_missing_stops_the_start(server: RedisServer) -> None:
    for missing in RIGHTS:
        rights = [one.format(prefix=PREFIX) for one in RIGHTS if one != missing]
        text = await refusal(user(server, *rights))
        assert "the store's user may not" in text
        assert "hunter2" not in text
        if missing not in ("+subscribe", "+select", "&{prefix}:*"):
            assert rights_of(PREFIX) in text
        if missing == "+pexpire":
            assert "may not use PEXPIRE: allow it " in text
        if missing == "~{prefix}:*":
            assert f"may not use keys that begin with {PREFIX}: by HSET" in text
    server.call("ACL", "DELUSER", "node")


async def test_without_the_right_to_ask_for_memory_only_the_size_is_unknown(
    server: RedisServer,
) -> None:
    rights = [one.format(prefix=PREFIX) for one in RIGHTS]
    async with started(user(server, *rights)) as store:
        await store.create(b"c", "agent.c.1")
        info = await store.info(b"c")
    assert (info.bytes, info.unsent, info.address) == (None, 0, "agent.c.1")
    server.call("ACL", "DELUSER", "node")


async def test_a_node_lives_on_when_rights_come_back(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("membership.BEAT_S", "expiry.SWEEP_S", "store.COUNT_S"):
        monkeypatch.setattr(f"megaphone.store.redis.{name}", 0.02)

    def counted() -> list[int]:
        """Return how often the node has shown that it lives, has looked for channels that have
        expired, and has counted channels."""
        stats = server.info("commandstats")
        names = ("cmdstat_fcall", "cmdstat_zrangebyscore", "cmdstat_smembers")
        return [int(stats[name].split("calls=")[1].split(",")[0]) for name in names]

    async with started(user(server, *rights_of(PREFIX).split())):
        server.call("ACL", "SETUSER", "node", "-fcall", "-zrangebyscore", "-smembers")
        server.call("ACL", "LOG", "RESET")

        async def all_were_refused() -> bool:
            return len({entry[7] for entry in server.call("ACL", "LOG")}) == 3

        await eventually(all_were_refused)
        server.call("ACL", "SETUSER", "node", *rights_of(PREFIX).split())
        before = counted()

        async def all_go_on() -> bool:
            return all(now > then for now, then in zip(counted(), before, strict=True))

        await eventually(all_go_on)
    server.call("ACL", "DELUSER", "node")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_a_store_that_evicts_stops_the_start(policy: str, own_server: RedisServer) -> None:
    own_server.call("CONFIG", "SET", "maxmemory-policy", policy)
    text = await refusal(own_server.url)
    assert text.endswith("set maxmemory-policy to noeviction there")
    assert policy in text
    own_server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with started(own_server.url):
        pass


async def test_a_replica_stops_the_start(own_server: RedisServer) -> None:
    with redis_server(replicaof=f"127.0.0.1 {own_server.port}") as replica:
        text = await refusal(replica.url)
    assert text == (
        f"the store at 127.0.0.1:{replica.port} is a replica: name its master, or its Sentinels"
        " by redis+sentinel://host:26379/SERVICE"
    )


async def test_a_full_store_does_not_stop_the_start(own_server: RedisServer) -> None:
    async with started(own_server.url) as store:  # loads the functions
        own_server.call("CONFIG", "SET", "maxmemory", 1)
        store.link.reconnect("so that it is examined again")
        assert await store.link.call("EXISTS", "k") == 0
        assert store.facts is not None
        assert store.facts.max_memory == 1


async def test_a_new_master_that_evicts_is_not_used(own_server: RedisServer) -> None:
    async with started(own_server.url) as store:
        own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        store.link.reconnect("so that it is examined again")
        with pytest.raises(StoreUnavailable):
            await store.link.call("EXISTS", "k")


async def test_a_check_leaves_nothing_behind(server: RedisServer) -> None:
    async with started(server.url):
        keys = server.call("KEYS", "*")
    assert not [key for key in keys if b":check" in key]


async def test_a_server_that_keeps_its_options_to_itself_will_do(server: RedisServer) -> None:
    async with started(user(server, *rights_of(PREFIX).split())) as store:
        assert store.facts is not None
        assert store.facts.persistence == "no AOF"
    server.call("ACL", "DELUSER", "node")


@pytest.mark.parametrize(
    ("options", "replicas", "line"),
    [
        ({"save": '""'}, 0, "no persistence, 0 replicas, 201 after the master"),
        ({"save": "60 1"}, 0, "snapshots only, 0 replicas, 201 after the master"),
        ({"appendonly": "yes"}, 0, "AOF everysec, 0 replicas, 201 after the master"),
        ({"appendonly": "yes"}, 2, "AOF everysec, 0 replicas, 201 after 2 replicas"),
        (
            {"appendonly": "yes", "appendfsync": "always"},
            0,
            "AOF always, 0 replicas, 201 after the master's disk",
        ),
        (
            {"appendonly": "yes", "appendfsync": "always"},
            1,
            "AOF always, 0 replicas, 201 after the master's disk and 1 replica",
        ),
    ],
)
async def test_a_node_says_what_201_means(
    options: dict[str, str], replicas: int, line: str
) -> None:
    with redis_server(**options) as server:
        async with started(server.url) as store:
            assert store.facts is not None
            said = store.facts.line(replicas)
    assert said == f"store {store.link.server}, {line}"


def test_a_connected_replica_is_counted() -> None:
    facts = Facts(
        server=Server("redis", "7.0.15", "standalone", is_master=True),
        max_memory=0,
        used_memory=1,
        has_aof=True,
        append_fsync=None,
        has_snapshots=None,
        replicas=1,
    )
    assert facts.line(1) == "store redis 7.0.15, AOF, 1 replica, 201 after 1 replica"
