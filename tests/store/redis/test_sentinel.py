"""A store behind Sentinels: the link finds the master, and leaves it when there is another one."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis import connection as connections
from megaphone.store.redis.errors import UnusableStore
from megaphone.store.redis.link import Link
from megaphone.store.redis.subscription import Subscription
from megaphone.store.redis.url import StoreUrl
from tests.store.redis.conftest import MakeLink
from tests.support.redis_server import RedisServer, redis_server, sentinel

SERVICE = "mp"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@dataclass
class Watched:
    master: RedisServer
    replica: RedisServer
    sentinels: list[RedisServer]

    @property
    def url(self) -> StoreUrl:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return StoreUrl.parse(f"redis+sentinel://{hosts}/{SERVICE}")


@pytest.fixture
def watched() -> Iterator[Watched]:
    """A master, its replica in step, and three Sentinels who know each other and the replica."""
    with ExitStack() as stack:
        master = stack.enter_context(redis_server())
        replica = stack.enter_context(redis_server(replicaof=f"127.0.0.1 {master.port}"))
        sentinels = [
            stack.enter_context(sentinel(master, service=SERVICE, quorum=2)) for _ in range(3)
        ]
        yield Watched(master, replica, sentinels)


def state(server: RedisServer) -> dict[str, str]:
    flat = [text.decode() for text in server.call("SENTINEL", "MASTER", SERVICE)]
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def ready(watched: Watched) -> None:
    """Wait until the Sentinels can carry out a failover."""
    await until(lambda: watched.replica.info("replication")["master_link_status"] == "up")
    for one in watched.sentinels:
        await until(partial(knows_all, one))


def knows_all(one: RedisServer) -> bool:
    known = state(one)
    seen = (known["flags"], known["num-slaves"], known["num-other-sentinels"])
    return seen == ("master", "1", "2")


def port_of(link: Link) -> asyncio.Future[object]:
    return link.call("CONFIG", "GET", "port")


def is_master(server: RedisServer) -> bool:
    with suppress(ConnectionError):  # a replica that becomes the master may hang up
        return server.info("replication")["role"] == "master"
    return False


def ignore() -> None:
    pass


def is_at(link: Link, server: RedisServer) -> bool:
    return link.place == Endpoint("127.0.0.1", server.port)


async def test_the_link_leaves_a_frozen_master_because_a_sentinel_tells_of_another(
    watched: Watched, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENCE_S", 600)
    await ready(watched)
    link = await make_link(watched.url)
    messages: list[bytes] = []
    subscription = Subscription(
        link, ["news"], on_message=messages.append, on_subscribed=ignore, on_lost=ignore
    )
    await subscription.start()
    assert await port_of(link) == {b"port": str(watched.master.port).encode()}
    watched.master.freeze()
    await until(lambda: is_master(watched.replica))
    await until(lambda: link.is_up and is_at(link, watched.replica))
    watched.master.thaw()
    assert await port_of(link) == {b"port": str(watched.replica.port).encode()}
    await until(lambda: subscription.is_up)
    await until(lambda: watched.replica.call("PUBSUB", "NUMSUB", "news")[1] == 1)
    await link.call("PUBLISH", "news", "x")
    await until(lambda: messages == [b"x"])
    await subscription.aclose()


async def test_the_link_follows_a_failover_that_an_operator_asks_for(
    watched: Watched, make_link: MakeLink
) -> None:
    await ready(watched)
    link = await make_link(watched.url)
    losses: list[None] = []
    link.on_old_answers = lambda: losses.append(None)

    async def keep_calling() -> None:
        while True:
            with suppress(StoreUnavailable):
                await link.call("SET", "k", "v")
            await asyncio.sleep(0.01)

    calling = asyncio.create_task(keep_calling())
    watched.sentinels[0].call("SENTINEL", "FAILOVER", SERVICE)
    await until(lambda: link.is_up and is_at(link, watched.replica))
    calling.cancel()
    assert await link.call("SET", "k", "v") == b"OK"
    assert losses == [None]  # the old master lived, and may have taken what the new one lacks


async def test_one_sentinel_is_enough(watched: Watched, make_link: MakeLink) -> None:
    await ready(watched)
    for one in watched.sentinels[1:]:
        one.kill()
    link = await make_link(watched.url)
    assert await link.call("PING") == b"PONG"


async def test_an_outdated_sentinel_is_not_believed_if_it_is_alone(
    watched: Watched, make_link: MakeLink
) -> None:
    """The first Sentinel is frozen during a failover, and then the only one that answers."""
    await ready(watched)
    outdated, *others = watched.sentinels
    link = await make_link(watched.url)
    outdated.freeze()
    others[0].call("SENTINEL", "FAILOVER", SERVICE)
    await until(lambda: link.is_up and is_at(link, watched.replica))
    for one in others:
        one.freeze()
    outdated.thaw()
    link.reconnect("a test wants it")
    try:
        await link.call("PING")
    except StoreUnavailable:
        assert not link.is_up
    else:
        assert is_at(link, watched.replica)  # the Sentinel has learned of it in time
    for one in others:
        one.thaw()
    await until(lambda: link.is_up)
    assert is_at(link, watched.replica)


async def refusal(url: str, kind: type[Exception]) -> str:
    link = Link(StoreUrl.parse(url), name="test")
    with pytest.raises(kind) as caught:
        await link.start()
    return str(caught.value)


async def test_what_a_start_says(watched: Watched) -> None:
    first = watched.sentinels[0].port
    said = await refusal(f"redis+sentinel://127.0.0.1:{first}/other", UnusableStore)
    assert said == "the Sentinels know no service other"
    said = await refusal(
        f"redis+sentinel://127.0.0.1:{watched.master.port}/{SERVICE}", UnusableStore
    )
    assert "is no Sentinel" in said
    said = await refusal(f"redis://127.0.0.1:{first}", UnusableStore)
    assert "the store is a Sentinel" in said
    for one in watched.sentinels:
        one.kill()
    assert "cannot be reached" in await refusal(
        f"redis+sentinel://127.0.0.1:{first}/{SERVICE}", StoreUnavailable
    )
