"""Writers that wait in Redis, when the messages to them are lost: they have to ask."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from megaphone.core.ports import Append, AppendResult, Stored
from megaphone.errors import (
    ChannelNotFound,
    LimitExceeded,
    ShuttingDown,
    StoreUnavailable,
    WriteTimeout,
)
from megaphone.model import Event, ReadOptions
from megaphone.store.redis import connection as connections
from megaphone.store.redis import writers as waiting
from megaphone.store.redis.encoding import encoded
from megaphone.store.redis.functions import name_of
from megaphone.store.redis.store import RedisStore
from megaphone.store.redis.writers import Writers
from tests.support.leases import release, taken
from tests.support.redis_server import RedisServer
from tests.support.settings import limits

ADDRESS = "agent.c.1"
TIMEOUT_S = 0.4
GRACE_S = 5.0
"""How long after its writer should have given up an event may still be accepted. It is a constant
of the functions."""


class Desk:
    """Writers that no message reaches, unless a test passes it on."""

    def __init__(self, server: RedisServer, store: RedisStore) -> None:
        self.server, self.store = server, store
        self.writers = Writers(
            store.functions, "desk", lambda: store.membership.epoch, TIMEOUT_S, max_waiting=1
        )
        self.handed: list[object] = []

    async def write(
        self, event_id: str, *, key: str | None = None, channel: bytes = b"c"
    ) -> AppendResult:
        write = Append(channel, Event(event_id, "s", 0, b"1"), key)
        return await self.writers.append(
            self.store.membership.inbox, write, lambda _, handed: self.handed.append(handed)
        )

    async def fill(self) -> None:
        for event_id in "abc":
            assert await self.write(event_id) == Stored(event_id, is_new=True)

    def waiting(self) -> int:
        return int(self.server.call("LLEN", self.store.keys_of(b"c")[5]))

    def notes(self) -> int:
        """Return of how many events that wait, and of their writers, the store knows something."""
        return int(self.server.call("HLEN", self.store.keys_of(b"c")[6]))

    def joined(self) -> int:
        """Return how many writers of this desk the events that wait have."""
        records = self.server.call("HVALS", self.store.keys_of(b"c")[6])
        return sum(record.count(b"desk.") for record in records)

    async def start(self, event_id: str, key: str | None = None) -> "asyncio.Task[AppendResult]":
        """Start a write, and wait until it waits."""
        task = asyncio.create_task(self.write(event_id, key=key))
        await until(self.waiting)
        return task

    async def start_two(self) -> tuple["asyncio.Task[AppendResult]", "asyncio.Task[AppendResult]"]:
        """Start a write with a key, and repeat it while it waits."""
        first = await self.start("d", "key")
        second = asyncio.create_task(self.write("e", key="key"))
        await until(lambda: self.joined() == 2)
        return first, second

    async def start_elsewhere(
        self, event_id: str, key: str, timeout_s: float, token: str = "dead.1"
    ) -> None:
        """Start a write on a node that dies once the writer waits."""
        answer = await self.store.functions.start(
            "wait", b"c", self.store.membership.epoch, "inbox", token, round(timeout_s * 1000),
            1, event_id, key, encoded(Event(event_id, "s", 0, b"1")), "",
        )  # fmt: skip
        assert answer[0][0] == b"W"

    async def accepted_after(self, seconds: float) -> str:
        """Free a place when the clock of the store has gone on for so long.

        Returns: the events that are accepted then.
        """
        lease = await self.store.open(b"c", ADDRESS, ReadOptions(acknowledge=True))
        batch = await taken(lease, 3, 10_000, asyncio.get_running_loop().time() + 5)
        assert batch is not None
        now, _ = self.server.call("TIME")
        keys, then = self.store.keys_of(b"c"), f"={(int(now) + seconds) * 1000:.0f}"
        arguments = (then, ADDRESS, batch.events[0].id, "")
        assert self.server.call("FCALL", name_of("acknowledge"), 7, *keys, *arguments) == 1
        release(lease, clean=True)
        return b"".join(self.server.call("LRANGE", keys[2], 3, -1)).decode()

    async def read(self, count: int) -> str:
        """Read so many events to a clean end."""
        lease = await self.store.open(b"c", ADDRESS, ReadOptions())
        found = ""
        while len(found) < count:
            batch = await taken(lease, count, 10_000, asyncio.get_running_loop().time() + 5)
            assert batch is not None
            found += "".join(event.id for event in batch.events)
        release(lease, clean=True)
        return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition is that of another process
            await asyncio.sleep(0.01)


@pytest.fixture
async def desk(own_server: RedisServer) -> AsyncIterator[Desk]:
    store = RedisStore(
        own_server.url,
        prefix="writers",
        limits=limits(capacity=3),
        max_channels=10,
        write_timeout_s=5.0,
        on_removed=lambda *_: None,
    )
    await store.start()
    await store.create(b"c", ADDRESS)
    desk = Desk(own_server, store)
    yield desk
    desk.writers.quiesce()
    await store.aclose()


async def test_a_place_that_is_free_by_now_is_taken_and_the_reader_here_is_told(
    desk: Desk,
) -> None:
    assert await desk.write("a", key="key") == Stored("a", is_new=True)
    assert await desk.write("b", key="key") == Stored("a", is_new=False)
    assert desk.handed == []
    await desk.store.open(b"c", ADDRESS, ReadOptions())
    assert await desk.write("b") == Stored("b", is_new=True)
    assert len(desk.handed) == 1


async def test_a_channel_that_is_gone(desk: Desk) -> None:
    assert isinstance(await desk.write("a", channel=b"d"), ChannelNotFound)


async def test_no_more_writers_wait_than_may(desk: Desk) -> None:
    await desk.fill()
    first = await desk.start("d")
    refused = await desk.write("e")
    assert isinstance(refused, LimitExceeded)
    assert "1 writers already wait" in str(refused)
    assert isinstance(await first, WriteTimeout)
    assert desk.waiting() == 0


async def test_a_full_store_refuses_the_event(desk: Desk) -> None:
    desk.server.call("CONFIG", "SET", "maxmemory", "1")
    assert isinstance(await desk.write("a"), LimitExceeded)
    desk.server.call("CONFIG", "SET", "maxmemory", "0")
    assert await desk.write("a") == Stored("a", is_new=True)


async def test_an_event_that_got_in_unnoticed_is_stored(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d")
    assert await desk.read(4) == "abcd"
    assert await writing == Stored("d", is_new=True)


async def test_a_channel_that_went_unnoticed_is_gone(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d")
    await desk.store.remove(b"c")
    assert isinstance(await writing, ChannelNotFound)


async def test_an_event_that_a_new_master_lacks_does_not_count_as_accepted(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d")
    desk.server.call("DEL", *desk.store.keys_of(b"c")[5:])
    await desk.store.membership.begin_epoch()
    result = await writing
    assert isinstance(result, StoreUnavailable)
    assert result.may_have_happened


async def test_an_event_is_accepted_although_its_writer_is_a_little_late(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d", key="key")
    assert await desk.accepted_after(GRACE_S - 1) == "d"
    assert await writing == Stored("d", is_new=True)


async def test_an_event_that_is_late_is_not_accepted(desk: Desk) -> None:
    """By the clock of the store its writer has gone, but the writer has not withdrawn it yet."""
    await desk.fill()
    writing = await desk.start("d", key="key")
    assert await desk.accepted_after(GRACE_S + 2) == ""
    assert isinstance(await writing, WriteTimeout)
    assert await desk.write("e", key="key") == Stored("e", is_new=True)


async def test_no_writer_of_an_event_that_is_late_believes_that_it_was_accepted(desk: Desk) -> None:
    await desk.fill()
    writers = await desk.start_two()
    assert await desk.accepted_after(GRACE_S + 2) == ""
    assert [type(result) for result in await asyncio.gather(*writers)] == [WriteTimeout] * 2
    assert await desk.write("f", key="key") == Stored("f", is_new=True)
    assert desk.notes() == 0


async def test_an_event_is_refused_although_a_dead_node_has_a_writer_of_it(desk: Desk) -> None:
    await desk.fill()
    await desk.start_elsewhere("d", "key", TIMEOUT_S)
    assert isinstance(await desk.write("e", key="key"), WriteTimeout)
    assert desk.waiting() == 0
    assert await desk.accepted_after(0) == ""
    assert await desk.write("f", key="key") == Stored("f", is_new=True)


async def test_a_writer_who_gives_up_leaves_the_event_to_one_who_waits_longer(desk: Desk) -> None:
    await desk.fill()
    await desk.start_elsewhere("d", "key", 60.0)
    assert isinstance(await desk.write("e", key="key"), WriteTimeout)
    assert await desk.accepted_after(0) == "d"
    assert await desk.write("f", key="key") == Stored("d", is_new=False)


async def test_a_repeated_write_does_not_prolong_that_of_a_dead_node(desk: Desk) -> None:
    await desk.fill()
    await desk.start_elsewhere("d", "key", 10.0)
    await desk.start_elsewhere("e", "key", 60.0, "cancelled.1")
    assert await desk.store.functions.start("withdraw", b"c", "cancelled.1", "key") == -1
    assert desk.waiting() == 1
    assert await desk.accepted_after(10.0 + GRACE_S + 2) == ""


@pytest.mark.parametrize("is_told", [True, False])
async def test_an_event_counts_for_the_writer_who_is_left(desk: Desk, is_told: bool) -> None:
    await desk.fill()
    first, second = await desk.start_two()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert await desk.read(4) == "abcd"
    if is_told:
        desk.writers.told("desk.5", 1)
    assert await second == Stored("d", is_new=True)


@pytest.mark.parametrize("are_told", [(), (0,), (1,), (0, 1)])
async def test_an_event_counts_for_one_of_its_writers(
    desk: Desk, are_told: tuple[int, ...]
) -> None:
    await desk.fill()
    writers = await desk.start_two()
    assert await desk.read(4) == "abcd"
    for counts in are_told:
        desk.writers.told(f"desk.{4 + counts}", counts)
    results = [await writer for writer in writers]
    assert results == [Stored("d", is_new=False), Stored("d", is_new=True)]


async def test_messages_are_for_those_who_still_wait(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d")
    for token in ("desk.0", "desk.4", "desk.4"):
        desk.writers.told(token, waiting.CHANNEL_IS_GONE)
    assert isinstance(await writing, ChannelNotFound)


async def test_the_end_of_a_node_refuses_those_who_wait_and_those_who_would(desk: Desk) -> None:
    await desk.fill()
    writing = await desk.start("d")
    desk.writers.quiesce()
    assert isinstance(await writing, ShuttingDown)
    assert isinstance(await desk.write("e"), ShuttingDown)
    assert desk.waiting() == 0


async def test_an_event_whose_answer_is_lost_is_withdrawn_as_soon_as_the_store_answers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"CALL_S": 0.5, "CHECK_S": 0.1, "SILENCE_S": 60}.items():
        monkeypatch.setattr(connections, name, seconds)
    monkeypatch.setattr(waiting, "AGAIN_S", 0.1)
    await desk.fill()
    desk.server.freeze()
    assert not isinstance(await desk.write("d"), Stored)
    await asyncio.sleep(1.0)  # a withdrawal fails meanwhile
    desk.server.thaw()
    assert await desk.store.exists([b"c"])  # it carries out the calls in their order
    await until(lambda: desk.waiting() == 0)
    assert await desk.read(3) == "abc"


async def test_a_repeated_write_whose_answer_is_lost_leaves_the_event_to_the_first_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"CALL_S": 0.5, "CHECK_S": 0.1, "SILENCE_S": 60}.items():
        monkeypatch.setattr(connections, name, seconds)
    monkeypatch.setattr(waiting, "AGAIN_S", 0.1)
    await desk.fill()
    await desk.start_elsewhere("d", "key", 60.0)
    desk.server.freeze()
    assert not isinstance(await desk.write("e", key="key"), Stored)
    desk.server.thaw()
    assert await desk.store.exists([b"c"])  # it carries out the calls in their order
    await until(lambda: desk.joined() == 0)
    assert desk.waiting() == 1
