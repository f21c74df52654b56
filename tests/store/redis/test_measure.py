"""`megaphone store check` measures a store, and leaves nothing in it but the functions."""

import asyncio

import pytest

from megaphone.errors import StoreUnavailable
from megaphone.store.redis import measure as measures
from megaphone.store.redis.errors import ReplyError
from megaphone.store.redis.measure import looking_at, measure
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"ROUND_TRIPS": 10, "CHANNELS": 4, "EVENTS": 200}.items():
        monkeypatch.setattr(measures, name, number)


async def test_a_store_is_measured_and_nothing_stays(server: RedisServer) -> None:
    async with looking_at(server.url, "mp") as (link, facts):
        first = await measure(link, "mp", 0)
        again = await measure(link, "mp", 0)
    assert facts.server.kind in server.kind
    for speed in (first, again):
        assert 0 < speed.round_trip_ms <= speed.slow_round_trip_ms
        assert speed.write_ms > 0
        assert speed.writes_per_s > 0
    assert server.call("KEYS", "*") == []


async def test_the_functions_that_nodes_use_stay_as_they_are(server: RedisServer) -> None:
    of_others = "#!lua name=megaphone_2\nredis.register_function('mp2_remove', function() end)"
    server.call("FUNCTION", "LOAD", of_others)
    async with looking_at(server.url, "mp") as (link, _):
        with pytest.raises(ReplyError):  # the node has others: this one makes no channels
            await measure(link, "mp", 0)
    [library] = server.call("FUNCTION", "LIST")
    assert len(dict(zip(library[::2], library[1::2], strict=True))[b"functions"]) == 1


async def test_writes_wait_for_replicas(own_server: RedisServer) -> None:
    with redis_server(replicaof=f"127.0.0.1 {own_server.port}") as replica:
        # Before that, the master does not ask it what it has.
        while "state=online" not in own_server.info("replication").get("slave0", ""):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert replica.info("replication")["master_link_status"] == "up"
        async with looking_at(own_server.url, "mp") as (link, facts):
            await measure(link, "mp", 1)
        assert facts.replicas == 1
        assert "cmdstat_wait" in own_server.info("commandstats")


async def test_a_server_that_is_away_cannot_be_looked_at(own_server: RedisServer) -> None:
    own_server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with looking_at(own_server.url, "mp"):
            pass
