"""Messages of the store: their order, and that a subscription reports every gap."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from megaphone.errors import StoreUnavailable
from megaphone.store.redis import connection as connections
from megaphone.store.redis.errors import UnusableStore
from megaphone.store.redis.link import Link
from megaphone.store.redis.subscription import Subscription
from megaphone.store.redis.url import StoreUrl
from tests.store.redis.conftest import MakeLink
from tests.support.redis_server import RedisServer

CHANNELS = ("mp:a", "mp:b")


class Listener:
    """Notes what a subscription tells."""

    def __init__(self, link: Link) -> None:
        self.told: list[str] = []
        self._has_told = asyncio.Event()
        self.subscription = Subscription(
            link,
            CHANNELS,
            on_message=lambda payload: self._note(payload.decode()),
            on_subscribed=lambda: self._note("SUBSCRIBED"),
            on_lost=lambda: self._note("LOST"),
        )

    def _note(self, what: str) -> None:
        self.told.append(what)
        self._has_told.set()

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition(self.told):
                self._has_told.clear()
                await self._has_told.wait()


@pytest.fixture
async def make_listener() -> AsyncIterator[Callable[[Link], Listener]]:
    async with AsyncExitStack() as stack:

        def make(link: Link) -> Listener:
            listener = Listener(link)
            stack.push_async_callback(listener.subscription.aclose)
            return listener

        yield make


MakeListener = Callable[[Link], Listener]


async def test_messages_come_in_order(
    server: RedisServer, make_link: MakeLink, make_listener: MakeListener
) -> None:
    link = await make_link(server.url)
    listener = make_listener(link)
    await listener.subscription.start()
    assert listener.subscription.is_up
    sent = [str(n) for n in range(500)]
    calls = [link.call("PUBLISH", CHANNELS[n % 2], text) for n, text in enumerate(sent)]
    assert await asyncio.gather(*calls) == [1] * len(sent)
    await listener.until(lambda told: len(told) > len(sent))
    assert listener.told == ["SUBSCRIBED", *sent]


async def test_each_gap_is_told(
    server: RedisServer, make_link: MakeLink, make_listener: MakeListener
) -> None:
    link = await make_link(server.url)
    listener = make_listener(link)
    await listener.subscription.start()
    for n in range(3):
        server.call("CLIENT", "KILL", "TYPE", "pubsub")
        await listener.until(lambda told: told[-2:] == ["LOST", "SUBSCRIBED"])
        assert await link.call("PUBLISH", "mp:b", f"m{n}") == 1
        await listener.until(lambda told: told[-1] == f"m{n}")  # noqa: B023
    assert listener.told == [
        *["SUBSCRIBED", "LOST", "SUBSCRIBED", "m0"],
        *["LOST", "SUBSCRIBED", "m1", "LOST", "SUBSCRIBED", "m2"],
    ]


async def test_a_message_that_cannot_be_handled_does_not_end_the_subscription(
    server: RedisServer,
    make_link: MakeLink,
    make_listener: MakeListener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = await make_link(server.url)
    listener = make_listener(link)
    await listener.subscription.start()
    await link.call("PUBLISH", "mp:a", b"\xff")
    await link.call("PUBLISH", "mp:a", b"good")
    await listener.until(lambda told: len(told) > 1)
    assert listener.told == ["SUBSCRIBED", "good"]
    assert "a message from the store could not be handled" in caplog.text


async def test_a_frozen_server_is_noticed(
    own_server: RedisServer,
    make_link: MakeLink,
    make_listener: MakeListener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CALL_S", "IDLE_S", "SILENCE_S", "CHECK_S"):
        monkeypatch.setattr(connections, name, getattr(connections, name) / 4)
    link = await make_link(own_server.url)
    listener = make_listener(link)
    await listener.subscription.start()
    own_server.freeze()
    await listener.until(lambda told: "LOST" in told)
    assert not listener.subscription.is_up
    own_server.thaw()
    await listener.until(lambda told: told == ["SUBSCRIBED", "LOST", "SUBSCRIBED"])


async def test_a_user_who_may_not_subscribe_fails_the_start(
    own_server: RedisServer, make_link: MakeLink, make_listener: MakeListener
) -> None:
    own_server.call("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "resetchannels")
    link = await make_link(StoreUrl.parse(f"redis://weak:pw@127.0.0.1:{own_server.port}"))
    with pytest.raises(UnusableStore, match=r"may not subscribe: .*NOPERM"):
        await make_listener(link).subscription.start()


async def test_a_server_that_is_gone_fails_the_start(
    own_server: RedisServer, make_link: MakeLink, make_listener: MakeListener
) -> None:
    link = await make_link(own_server.url)
    own_server.kill()
    with pytest.raises(StoreUnavailable):
        await make_listener(link).subscription.start()
