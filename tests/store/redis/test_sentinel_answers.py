"""What a node makes of what Sentinels say. Here they are false ones, and say what a test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis import opinions
from megaphone.store.redis import sentinel as sentinels
from megaphone.store.redis.errors import NoPermission
from megaphone.store.redis.sentinel import Sentinels
from megaphone.store.redis.url import StoreUrl

OLD, NEW = Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.2", 6379)
NO_PERMISSION = b"-NOPERM this user has no permissions\r\n"
HELLO = {"server": "redis", "version": "7.0.0", "mode": "sentinel"}


def said(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case int():
            return b":%d\r\n" % value
        case str():
            return f"+{value}\r\n".encode()
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(said, value))
        case dict():
            pairs = [said(part) for pair in value.items() for part in pair]
            return b"%%%d\r\n" % len(value) + b"".join(pairs)
    raise TypeError


@dataclass
class FalseSentinel:
    """Says that `place` is the master since the failover `epoch`."""

    place: Endpoint = OLD
    epoch: int = 1
    port: int = 0
    address_error: bytes = b""
    epoch_error: bytes = b""
    flags: str = "master"
    is_silent: bool = False
    hangs_up_after_the_address: bool = False
    listeners: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self._answer(command, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, command: Any, writer: asyncio.StreamWriter) -> None:
        match [word.decode() for word in command]:
            case ["HELLO", *_]:
                writer.write(said(HELLO))
            case _ if self.is_silent:
                pass
            case ["SUBSCRIBE", channel]:
                writer.write(b">3\r\n" + said("subscribe") + said(channel) + said(1))
                self.listeners.append(writer)
            case ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", _]:
                address = said([self.place.host, str(self.place.port)])
                writer.write(self.address_error or address)
                if self.hangs_up_after_the_address:
                    writer.close()
            case _:
                known = {"config-epoch": str(self.epoch), "flags": self.flags}
                writer.write(self.epoch_error or said(known))

    def tell(self, service: str, place: Endpoint) -> None:
        """Tell those who listen of a new master."""
        text = f"{service} {OLD.host} {OLD.port} {place.host} {place.port}"
        for writer in self.listeners:
            writer.write(b">3\r\n" + said("message") + said("+switch-master") + said(text))

    def hang_up(self) -> None:
        for writer in self.listeners:
            writer.close()
        self.listeners.clear()


Ask = Callable[..., Awaitable[Sentinels]]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Starts false Sentinels, and returns a node's view of them."""
    async with AsyncExitStack() as stack:

        async def start(*false: FalseSentinel) -> Sentinels:
            for one in false:
                server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
                stack.callback(server.close)
                one.port = server.sockets[0].getsockname()[1]
            hosts = ",".join(f"127.0.0.1:{one.port}" for one in false)
            asked = Sentinels(StoreUrl.parse(f"redis+sentinel://{hosts}/mp"), None)
            stack.push_async_callback(asked.aclose)
            return asked

        yield start


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_newest_failover_counts(ask: Ask) -> None:
    asked = await ask(FalseSentinel(NEW, 2), FalseSentinel(OLD, 1), FalseSentinel(OLD, 1))
    assert asked.is_master(OLD)
    assert await asked.find() == NEW
    assert asked.is_master(NEW)
    assert not asked.is_master(OLD)


async def test_a_master_that_a_sentinel_is_replacing_is_not_believed(ask: Ask) -> None:
    """Another server may be a master already, though all Sentinels still name this one."""
    others = FalseSentinel(), FalseSentinel(flags="master,s_down,o_down")
    leader = FalseSentinel(flags="master,s_down,o_down,failover_in_progress")
    asked = await ask(*others, leader)
    is_replaced = asked.question_about(OLD)
    assert await is_replaced()
    leader.flags = "master"
    assert not await is_replaced()
    leader.place, leader.epoch = NEW, 2
    assert await is_replaced()


async def test_an_older_failover_counts_only_if_most_sentinels_say_so(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were set up anew if they do."""
    monkeypatch.setattr(sentinels, "CALL_S", 0.3)
    monkeypatch.setattr(opinions, "OTHERS_S", 0.1)
    false = [FalseSentinel(NEW, 2) for _ in range(3)]
    asked = await ask(*false)
    assert await asked.find() == NEW
    outdated, silent, third = false
    outdated.place, outdated.epoch, silent.is_silent, third.is_silent = OLD, 1, True, True
    with pytest.raises(StoreUnavailable, match="only Sentinels that know an old master"):
        await asked.find()
    third.place, third.epoch, third.is_silent = OLD, 1, False
    assert await asked.find() == OLD


async def test_a_silent_sentinel_is_not_waited_for_long(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "CALL_S", 0.1)
    asked = await ask(FalseSentinel(is_silent=True))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await asked.find()


async def test_a_sentinel_that_hangs_up_is_not_believed(ask: Ask) -> None:
    asked = await ask(FalseSentinel(hangs_up_after_the_address=True))
    with pytest.raises(StoreUnavailable):
        await asked.find()


async def test_what_a_user_of_the_sentinels_must_be_allowed(ask: Ask) -> None:
    """Without the number of the failover the answers of Sentinels are alike."""
    asked = await ask(FalseSentinel(NEW, epoch_error=NO_PERMISSION))
    assert await asked.find() == NEW
    asked = await ask(FalseSentinel(NEW, address_error=NO_PERMISSION))
    with pytest.raises(NoPermission):
        await asked.find()


async def test_a_new_master_is_told_at_once_and_that_of_another_service_is_not(ask: Ask) -> None:
    false = FalseSentinel()
    asked = await ask(false)
    switches: list[bool] = []
    await asked.start()
    assert await asked.find() == OLD
    await until(lambda: false.listeners)
    false.tell("mp", NEW)
    await until(lambda: asked.is_master(NEW))
    asked.on_switch = lambda: switches.append(asked.is_master(OLD))
    false.tell("other", NEW)
    false.tell("mp", OLD)
    await until(lambda: switches)
    assert switches == [True]


async def test_a_failover_that_nobody_heard_of_is_learned_with_the_next_connection(
    ask: Ask,
) -> None:
    false = FalseSentinel()
    asked = await ask(false)
    switches: list[bool] = []
    asked.on_switch = lambda: switches.append(asked.is_master(NEW))
    await asked.start()
    assert await asked.find() == OLD
    await until(lambda: false.listeners)
    false.place, false.epoch = NEW, 2
    false.hang_up()
    await until(lambda: switches)
    assert switches == [True]
