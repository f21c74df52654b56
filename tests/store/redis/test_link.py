"""The link against real servers: order, errors, and what happens when the connection breaks."""

import asyncio
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from megaphone.errors import LimitExceeded, StoreUnavailable
from megaphone.store.redis import connection as connections
from megaphone.store.redis import errors
from megaphone.store.redis import link as links
from megaphone.store.redis.connection import Connection, dial, pack
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.link import Greeted, Link
from megaphone.store.redis.url import StoreUrl
from tests.store.redis.conftest import MakeLink
from tests.support.ports import free_port
from tests.support.proxy import proxy_to
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the limits of time."""
    for name in ("CALL_S", "IDLE_S", "SILENCE_S", "CHECK_S", "COUNTED_S"):
        monkeypatch.setattr(connections, name, getattr(connections, name) / 4)
    monkeypatch.setattr(links, "WAIT_S", links.WAIT_S / 4)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def id_of(link: Link) -> Awaitable[int]:
    """The number that the server has given to the connection of a link."""
    return link.call("CLIENT", "ID")


async def outcome(call: Awaitable[object]) -> object:
    """Return what a call answers, or its error."""
    return (await asyncio.gather(call, return_exceptions=True))[0]


async def unavailable(call: Awaitable[object]) -> StoreUnavailable:
    error = await outcome(call)
    assert isinstance(error, errors.NoAnswer), error
    return error


# Calls.


async def test_calls_of_one_turn_leave_together_and_are_answered_in_order(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    before = sum(link.counts.seconds.counts)
    calls = [link.call("INCR", "n") for _ in range(1_000)]
    assert await asyncio.gather(*calls) == list(range(1, 1_001))
    assert sum(link.counts.seconds.counts) == before + 1
    assert link.counts.seconds.total > 0


async def test_values_of_each_kind(server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(server.url)
    values = [
        link.call("SET", b"\xff\x00", "ö"),
        link.call("GET", b"\xff\x00"),
        link.call("GET", "nothing"),
        link.call("RPUSH", "list", 1, "two", b"three"),
        link.call("LRANGE", "list", 0, -1),
        link.call("HSET", "hash", "a", 1),
        link.call("HGETALL", "hash"),
        link.call("EVAL", "redis.setresp(3) return {false, redis.error_reply('X y')}", 0),
    ]
    *answers, nested = await asyncio.gather(*values)
    expected = [b"OK", "ö".encode(), None, 3, [b"1", b"two", b"three"], 1, {b"a": b"1"}]
    assert answers == expected
    assert nested[0] is False
    assert isinstance(nested[1], errors.ReplyError)


async def test_large_values_in_both_directions(server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(server.url)
    body = bytes(range(256)) * 20_000
    calls = [link.call("SET", f"k{n}", body) for n in range(5)]
    reads = [link.call("GET", f"k{n}") for n in range(5)]
    assert await asyncio.gather(*calls) == [b"OK"] * 5
    assert await asyncio.gather(*reads) == [body] * 5


async def test_a_cancelled_call_does_not_shift_the_answers(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    first, second, third = (link.call("INCR", "n") for _ in range(3))
    second.cancel()
    assert (await first, await third) == (1, 3)


class Clumsy:
    """Wants an answer, and fails at the first that it gets."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.has_failed = False

    def done(self) -> bool:
        return bool(self.errors)

    def set_result(self, reply: object, /) -> None:
        self._stumble()

    def set_exception(self, error: Exception, /) -> None:
        self._stumble()
        self.errors.append(error)

    def _stumble(self) -> None:
        if not self.has_failed:
            self.has_failed = True
            raise ValueError


@pytest.mark.parametrize("command", ["PING", "NONSENSE"])
async def test_an_answer_that_cannot_be_handled_fails_its_call_alone(
    server: RedisServer, make_link: MakeLink, command: str
) -> None:
    link = await make_link(server.url)
    clumsy = Clumsy()
    link.send(pack((command,)), clumsy)
    assert await link.call("INCR", "n") == 1
    assert [type(error) for error in clumsy.errors] == [errors.NoAnswer]
    assert link.connections == 1


async def test_an_end_that_cannot_be_handled_harms_no_other_call(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    server.call("CLIENT", "PAUSE", 100)
    link.send(pack(("PING",)), Clumsy())
    behind = link.call("INCR", "n")
    await asyncio.sleep(0)
    link.reconnect("a test wants it")
    assert (await unavailable(behind)).may_have_happened


async def test_a_cancelled_call_that_fails_harms_nobody(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    link.call("NONSENSE").cancel()
    assert await link.call("INCR", "n") == 1


async def test_a_cancelled_call_that_still_waits_is_not_sent(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    own_server.kill()
    await until(lambda: not link.is_up)
    cancelled, stays = link.call("INCR", "n"), link.call("INCR", "n")
    cancelled.cancel()
    own_server.start()
    assert await stays == 1


async def test_what_a_server_tells_unasked_is_no_answer(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    await link.call("CLIENT", "TRACKING", "ON")
    assert await link.call("GET", "k") is None
    server.call("SET", "k", "v")  # the server tells the link that `k` has changed
    assert await link.call("GET", "k") == b"v"


async def test_a_call_on_a_connection_that_has_ended_did_not_happen(server: RedisServer) -> None:
    connection = await dial(server.url.endpoints[0], None, lambda: Connection(StoreCounts()))
    connection.end("a test wants it")
    assert not (await unavailable(connection.call("INCR", "n"))).may_have_happened
    await connection.aclose()


async def test_an_argument_of_a_wrong_type_harms_nobody(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    first = link.call("INCR", "n")
    with pytest.raises(TypeError):
        link.call("SET", "n", None)  # type: ignore[arg-type]
    assert (await first, await link.call("INCR", "n")) == (1, 2)


async def test_the_connection_has_a_name_and_what_the_server_says_of_itself(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    assert await link.call("CLIENT", "GETNAME") == b"test"
    assert link.server is not None
    assert link.server.kind == ("redis" if server.kind == "redis" else "valkey")
    assert link.server.is_master
    assert str(link.server).startswith(link.server.kind)


# Greeting.


async def test_nothing_is_sent_before_the_greeting_is_done(
    server: RedisServer, make_link: MakeLink
) -> None:
    called: list[str] = []

    async def greet(new: Greeted) -> None:
        await new.calls.call("RPUSH", "said", "first")
        called.append("greeted")
        await new.calls.call("RPUSH", "said", "second")

    link = await make_link(server.url, greet=greet)
    await link.call("RPUSH", "said", "call")
    server.call("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: len(called) == 2)
    await link.call("RPUSH", "said", "call")
    said = await link.call("LRANGE", "said", 0, -1)
    assert said == [b"first", b"second", b"call"] * 2


async def test_a_greeting_that_fails_fails_the_start(server: RedisServer) -> None:
    async def greet(new: Greeted) -> None:
        raise errors.UnusableStore("evicts")

    link = Link(server.url, name="test", greet=greet)
    with pytest.raises(errors.UnusableStore, match="evicts"):
        await link.start()
    assert not link.is_up


async def test_a_greeting_that_fails_later_is_tried_again(
    server: RedisServer, make_link: MakeLink
) -> None:
    outcomes = [None, RuntimeError("bug"), StoreUnavailable(), errors.Loading(""), None]

    async def greet(new: Greeted) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    link = await make_link(server.url, greet=greet)
    link.reconnect("a test wants it")
    assert not link.is_up
    assert await link.call("PING") == b"PONG"
    assert outcomes == []


async def test_a_link_that_is_about_to_connect_can_be_closed(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    own_server.kill()
    await until(lambda: not link.is_up)
    await asyncio.sleep(0.2)  # it pauses between two attempts
    link.reconnect("a test wants it")
    done, _ = await asyncio.wait([asyncio.create_task(link.aclose())], timeout=20)
    assert done


# The connection breaks.


async def test_calls_under_way_fail_as_unknown_and_the_link_connects_anew(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    number = await id_of(link)
    waits = link.call("BLPOP", "nothing", 0)
    behind = link.call("INCR", "n")
    await until(lambda: f"id={number} " in (found := clients(server)) and "blpop" in found)
    server.call("CLIENT", "KILL", "ID", number)
    assert (await unavailable(waits)).may_have_happened
    assert (await unavailable(behind)).may_have_happened
    assert await id_of(link) > number
    assert link.is_up
    assert link.away_s < 1


def clients(server: RedisServer) -> str:
    text: bytes = server.call("CLIENT", "LIST")
    return text.decode()


@pytest.mark.asyncio(loop_factories=["asyncio"])  # closing uvloop hangs behind this proxy
async def test_a_connection_cut_in_the_middle_of_an_answer(
    server: RedisServer, make_link: MakeLink
) -> None:
    async with proxy_to(server.port, cuts=[b"cut he"]) as proxy:
        link = await make_link(StoreUrl.parse(f"redis://127.0.0.1:{proxy.port}"))
        calls = [link.call("ECHO", text) for text in ("before", "cut here", "after")]
        before, cut, after = await asyncio.gather(*map(outcome, calls))
        assert before in (b"before", cut) or isinstance(before, StoreUnavailable)
        for error in (cut, after):
            assert isinstance(error, StoreUnavailable)
            assert error.may_have_happened
        assert await link.call("ECHO", "again") == b"again"


async def test_calls_wait_for_a_server_that_starts_again(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    await asyncio.to_thread(own_server.kill)
    await until(lambda: not link.is_up)
    await until(lambda: link.away_s > 0)
    calls = [link.call("INCR", "n") for _ in range(3)]
    await asyncio.to_thread(own_server.start)
    assert await asyncio.gather(*calls) == [1, 2, 3]


@pytest.mark.usefixtures("short_limits")
async def test_calls_do_not_wait_for_ever(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url)
    own_server.kill()
    await until(lambda: not link.is_up)
    begun = time.monotonic()
    first, cancelled = link.call("PING"), link.call("PING")
    cancelled.cancel()
    assert not (await unavailable(first)).may_have_happened
    assert time.monotonic() - begun > 0.9 * links.WAIT_S  # a timer of uvloop may be 1 ms early
    assert not (await unavailable(link.call("PING"))).may_have_happened


async def test_only_so_many_calls_wait(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url, max_waiting_calls=3, max_waiting_bytes=1_000)
    own_server.kill()
    await until(lambda: not link.is_up)
    large = link.call("SET", "k", bytes(1_000))
    assert "too many calls" in str(await unavailable(large))
    waiting = [link.call("INCR", "n") for _ in range(3)]
    assert "too many calls" in str(await unavailable(link.call("INCR", "n")))
    await asyncio.to_thread(own_server.start)
    assert await asyncio.gather(*waiting) == [1, 2, 3]


async def test_closing_fails_the_calls_without_an_answer(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    under_way = link.call("BLPOP", "nothing", 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    unsent = link.call("PING")
    await link.aclose()
    assert (await unavailable(under_way)).may_have_happened
    assert not (await unavailable(unsent)).may_have_happened
    assert not (await unavailable(link.call("PING"))).may_have_happened
    assert not link.is_up


# The server is slow or silent.


@pytest.mark.usefixtures("short_limits")
async def test_a_call_that_takes_too_long_fails_and_its_late_answer_is_dropped(
    server: RedisServer, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENCE_S", 60)
    link = await make_link(server.url)
    number = await id_of(link)
    waits, behind = link.call("BLPOP", "list", 0), link.call("INCR", "n")
    assert (await unavailable(waits)).may_have_happened
    assert (await unavailable(behind)).may_have_happened
    in_time = link.call("INCR", "n")
    server.call("RPUSH", "list", "late")
    assert await in_time == 2
    assert await id_of(link) == number


@pytest.mark.usefixtures("short_limits")
async def test_a_frozen_server_is_noticed_without_calls_and_used_again_when_it_thaws(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    own_server.freeze()
    await until(lambda: not link.is_up)
    call = link.call("PING")
    assert not (await unavailable(call)).may_have_happened
    own_server.thaw()
    await until(lambda: link.is_up)
    assert await link.call("PING") == b"PONG"


@pytest.mark.usefixtures("short_limits")
async def test_a_server_is_away_since_it_was_heard_last(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    own_server.freeze()
    await until(lambda: link.away_s > connections.SILENCE_S / 2)
    assert link.is_up
    await until(lambda: not link.is_up)
    assert link.away_s >= connections.SILENCE_S
    own_server.thaw()
    await until(lambda: link.is_up)
    await until(lambda: link.away_s == 0)


@pytest.mark.usefixtures("short_limits")
async def test_an_idle_connection_stays(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url)
    number = await id_of(link)
    loop = asyncio.get_running_loop()
    end = loop.time() + 2 * connections.SILENCE_S
    await until(lambda: loop.time() > end)
    assert await id_of(link) == number


@pytest.mark.usefixtures("short_limits")
async def test_a_process_that_stood_still_does_not_blame_the_server(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    number = await id_of(link)
    for _ in range(2):
        call = link.call("PING")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(2 * connections.SILENCE_S)  # noqa: ASYNC251
        assert await call == b"PONG"
        assert link.away_s < connections.SILENCE_S
    assert await id_of(link) == number


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("is_asked", [True, False])
async def test_the_time_in_which_a_process_stood_still_is_no_silence_of_the_server(
    own_server: RedisServer, make_link: MakeLink, *, is_asked: bool
) -> None:
    """Also if the server answers somewhat later than the process goes on."""
    link = await make_link(own_server.url)
    assert await link.call("PING") == b"PONG"
    own_server.freeze()
    if is_asked:
        link.call("PING").add_done_callback(lambda done: done.exception())
        await until(lambda: link.away_s > 0)
    before = link.away_s
    time.sleep(2 * connections.SILENCE_S)  # noqa: ASYNC251
    await until(lambda: link.away_s > before)
    assert link.is_up
    assert link.away_s < connections.SILENCE_S
    own_server.thaw()
    await until(lambda: link.away_s == 0)
    assert link.counts.reconnects == 0


async def test_a_server_that_takes_nothing_is_not_sent_more_than_the_bounds(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url, max_waiting_bytes=2_000_000)
    number = await id_of(link)
    own_server.freeze()
    body = bytes(100_000)
    calls = [link.call("RPUSH", "list", body) for _ in range(300)]
    await asyncio.sleep(0)
    refused = [call for call in calls if call.done()]
    assert 10 < len(refused) < 290
    assert calls[-1] in refused
    own_server.thaw()
    taken = [call for call in calls if call not in refused]
    assert await asyncio.gather(*taken) == list(range(1, len(taken) + 1))
    for call in refused:
        assert not (await unavailable(call)).may_have_happened
    assert await id_of(link) == number


async def test_small_calls_are_bounded_too(
    server: RedisServer, make_link: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_UNDER_WAY", 10)
    link = await make_link(server.url, max_waiting_calls=5)
    waits = link.call("BLPOP", "list", 0)
    calls = []
    for _ in range(20):
        calls.append(link.call("INCR", "n"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    refused = [call for call in calls if call.done()]
    assert 0 < len(refused) < 10
    server.call("RPUSH", "list", "x")
    assert await waits == [b"list", b"x"]
    taken = [call for call in calls if call not in refused]
    assert await asyncio.gather(*taken) == list(range(1, len(taken) + 1))
    for call in refused:
        assert not (await unavailable(call)).may_have_happened


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_each_call_tells_the_truth(
    own_server: RedisServer, make_link: MakeLink, seed: int
) -> None:
    """Calls that succeeded happened once, in the order of the calls; what certainly did not happen
    did not happen."""
    chance = random.Random(seed)
    link = await make_link(own_server.url)
    calls: list[asyncio.Future[int]] = []

    async def call_on() -> None:
        for _ in range(chance.randint(1, 30)):
            for _ in range(chance.randint(0, 20)):
                calls.append(
                    link.call("RPUSH", "list", len(calls), bytes(chance.randint(0, 9_000)))
                )
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))

    for _ in range(12):
        trouble = asyncio.create_task(call_on())
        await asyncio.sleep(chance.choice((0, 0.001, 0.01)))
        match chance.choice(("kill", "reconnect", "freeze", "restart", "nothing")):
            case "kill":
                await asyncio.to_thread(own_server.call, "CLIENT", "KILL", "TYPE", "normal")
            case "reconnect":
                link.reconnect("a test wants it")
            case "freeze":
                own_server.freeze()
                await asyncio.sleep(chance.choice((0.05, 0.6, 1.2)))
                own_server.thaw()
            case "restart":
                own_server.call("CONFIG", "SET", "appendonly", "yes", "appendfsync", "always")
                await until(
                    lambda: own_server.info("persistence")["aof_rewrite_in_progress"] == "0"
                )
                own_server.call("CONFIG", "REWRITE")
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.start)
        await trouble
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: link.is_up)
    there = [int(text) for text in (await link.call("LRANGE", "list", 0, -1))[::2]]
    succeeded = [n for n, said in enumerate(outcomes) if isinstance(said, int)]
    unknown = {n for n, said in enumerate(outcomes) if getattr(said, "may_have_happened", False)}
    assert len(there) == len(set(there))
    assert [n for n in there if n not in unknown] == succeeded
    assert all(isinstance(said, int | StoreUnavailable) for said in outcomes)
    assert [outcomes[n] for n in succeeded] == [2 * there.index(n) + 2 for n in succeeded]


# What a start says.


async def refusal(url: StoreUrl | str) -> str:
    link = Link(url if isinstance(url, StoreUrl) else StoreUrl.parse(url), name="test")
    with pytest.raises(errors.UnusableStore) as caught:
        await link.start()
    assert not link.is_up
    await link.aclose()
    return str(caught.value)


async def test_wrong_and_missing_passwords() -> None:
    with redis_server(requirepass="hunter2") as server:
        wrong = await refusal(f"redis://:hunter3@127.0.0.1:{server.port}")
        assert wrong == "the store does not know this user with this password"
        missing = await refusal(f"redis://127.0.0.1:{server.port}")
        assert missing == "the store wants a password: put it into its URL"
        link = Link(server.url, name="test")
        await link.start()
        assert await link.call("PING") == b"PONG"
        await link.aclose()


async def test_a_database_that_is_not_there(server: RedisServer) -> None:
    assert "has no database 99" in await refusal(f"{server.text_url}/99")


async def test_another_database(server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(StoreUrl.parse(f"{server.text_url}/3"))
    await link.call("SET", "k", "v")
    assert server.info("keyspace").keys() == {"db3"}


async def test_a_unix_socket(server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(StoreUrl.parse(f"unix://{server.socket_path}?db=1"))
    assert await link.call("PING") == b"PONG"


async def test_nobody_is_there(tmp_path: object) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for url in (f"redis://127.0.0.1:{port}", f"unix://{tmp_path}/none", "redis://none.invalid"):
        link = Link(StoreUrl.parse(url), name="test")
        with pytest.raises(StoreUnavailable, match=r"cannot be reached: ."):
            await link.start()


async def test_a_cluster_needs_another_url() -> None:
    with redis_server(cluster_enabled="yes", cluster_port=free_port()) as server:
        text = "the store is a cluster: its URL is redis+cluster://host:6379,host2:6379"
        assert await refusal(server.url) == text


async def test_a_user_without_rights(own_server: RedisServer) -> None:
    own_server.call("ACL", "SETUSER", "weak", "on", ">pw", "~*", "-@all", "+hello", "+client")
    said = await refusal(f"redis://weak:pw@127.0.0.1:{own_server.port}/1")
    assert said.startswith("the store's user may not do what is needed: NOPERM")


def hello(
    version: str, kind: str = "redis", mode: str = "standalone", role: str = "master"
) -> bytes:
    fields = {"server": kind, "version": version, "proto": 3, "mode": mode, "role": role}
    said = "".join(f"+{name}\r\n+{value}\r\n" for name, value in fields.items())
    return f"%{len(fields)}\r\n{said}".encode()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"-ERR unknown command `HELLO`, with args beginning with: \r\n", "is too old"),
        (b"-ERR wrong number of doubts\r\n", "refuses the connection: ERR wrong"),
        (b"+OK\r\n", "is neither Redis nor Valkey"),
        (hello("6.2.14"), "redis 6.2.14: Redis 7.0 or later"),
        (hello("7.1.9", kind="valkey"), "valkey 7.1.9: Redis 7.0 or later"),
        (hello("7.0.0", mode="sentinel"), "is a Sentinel"),
    ],
)
async def test_servers_that_will_not_do(answer: bytes, why: str) -> None:
    async with saying(answer) as port:
        assert why in await refusal(f"redis://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "connection to the store ended: the server"),
        (hello("7.0.0", role="replica"), "is a replica"),
        (b"-LOADING the data is being read\r\n", "cannot serve now: LOADING"),
        (b"", "connection to the store ended: the server"),
    ],
)
async def test_servers_that_may_do_later(answer: bytes, why: str) -> None:
    async with saying(answer) as port:
        link = Link(StoreUrl.parse(f"redis://127.0.0.1:{port}"), name="test")
        with pytest.raises(StoreUnavailable, match=why):
            await link.start()


class Parrot(asyncio.Protocol):
    """Says one thing to everybody; if that is nothing, it hangs up."""

    def __init__(self, answer: bytes, parrots: "list[Parrot]") -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._answer = answer
        parrots.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(self._answer)
        if not self._answer:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    parrots: list[Parrot] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Parrot(answer, parrots), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
        for parrot in parrots:
            parrot.transport.abort()
            await parrot.closed


# Errors that the store answers.


async def test_a_missing_function_and_a_missing_script(
    server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(server.url)
    for call in (("FCALL", "none", 0), ("EVALSHA", "0" * 40, 0)):
        with pytest.raises(errors.FunctionMissing):
            await link.call(*call)


async def test_a_full_store(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url)
    await link.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(LimitExceeded, match="no memory left"):
        await link.call("SET", "k", "v")
    with pytest.raises(errors.OutOfMemory):
        await link.call("EVAL", "return redis.call('SET', 'k', 'v')", 0)
    assert await link.call("DEL", "k") == 0


async def test_too_few_replicas(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url)
    await link.call("CONFIG", "SET", "min-replicas-to-write", 1)
    with pytest.raises(errors.NoReplicas) as caught:
        await link.call("SET", "k", "v")
    assert not caught.value.may_have_happened
    assert caught.value.code == "STORE_UNAVAILABLE"


async def test_a_script_that_takes_too_long(own_server: RedisServer, make_link: MakeLink) -> None:
    link = await make_link(own_server.url)
    await link.call("CONFIG", "SET", "busy-reply-threshold", 50)
    other = await make_link(own_server.url)
    endless = link.call("EVAL", "while true do end", 0)
    while (said := await outcome(other.call("GET", "k"))) is None:
        pass
    assert isinstance(said, errors.ScriptBusy)
    await other.call("SCRIPT", "KILL")
    with pytest.raises(errors.ReplyError, match="killed"):
        await endless


async def test_a_user_who_may_not(server: RedisServer, make_link: MakeLink) -> None:
    server.call("ACL", "SETUSER", "weak", "on", ">pw", "~mp:*", "+@all", "-set")
    link = await make_link(StoreUrl.parse(f"redis://weak:pw@127.0.0.1:{server.port}"))
    for call in (
        ("SET", "mp:k", "v"),
        ("GET", "other"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, "mp:k"),
    ):
        with pytest.raises(errors.NoPermission):
            await link.call(*call)


async def test_a_master_that_becomes_a_replica_is_left(
    own_server: RedisServer, make_link: MakeLink
) -> None:
    link = await make_link(own_server.url)
    number = await id_of(link)
    own_server.call("REPLICAOF", "127.0.0.1", 1)
    write, read = link.call("SET", "k", "v"), link.call("ECHO", "x")
    with pytest.raises(errors.ReadOnly):
        await write
    assert not link.is_up
    unsent = link.call("SET", "k", "w")
    assert await read == b"x"
    own_server.call("REPLICAOF", "NO", "ONE")
    assert await unsent == b"OK"
    assert await id_of(link) > number


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NOREPLICAS x", errors.NoReplicas),
        ("READONLY x", errors.ReadOnly),
        ("LOADING x", errors.Loading),
        ("MASTERDOWN x", errors.MasterDown),
        ("CLUSTERDOWN x", errors.ClusterDown),
        ("MISCONF x", errors.Misconfigured),
        ("BUSY x", errors.ScriptBusy),
        ("TRYAGAIN x", errors.TryAgain),
        ("OOM x", errors.OutOfMemory),
        ("NOSCRIPT x", errors.FunctionMissing),
        ("ERR Function not found", errors.FunctionMissing),
        ("NOPERM x", errors.NoPermission),
        ("NOAUTH x", errors.NoPermission),
        ("WRONGPASS x", errors.NoPermission),
        ("MOVED 1 h:2", errors.Redirected),
        ("ASK 1 h:2", errors.Redirected),
        ("ERR x", errors.ReplyError),
        ("", errors.ReplyError),
        ("MOVED", errors.Redirected),
    ],
)
def test_the_table_of_errors(text: str, kind: type[Exception]) -> None:
    assert type(errors.error_of(text)) is kind


def test_a_redirection_says_where() -> None:
    moved = errors.error_of("MOVED 3999 127.0.0.1:6381")
    asked = errors.error_of("ASK 3999 ::1:6381")
    assert isinstance(moved, errors.Redirected)
    assert isinstance(asked, errors.Redirected)
    assert (moved.is_for_ever, moved.address) == (True, "127.0.0.1:6381")
    assert (asked.is_for_ever, asked.address) == (False, "::1:6381")


def test_without_hiredis_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['hiredis'] = None; import megaphone.app, megaphone.store.redis"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1].startswith(
        "ImportError: a store in Redis or Valkey needs hiredis: pip install 'megaphone"
    )
