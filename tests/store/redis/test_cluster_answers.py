"""What a node makes of what the servers of a cluster say of its masters. Here they are false ones,
and say what a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import hiredis
import pytest

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis import cluster_link
from megaphone.store.redis import connection as connections
from megaphone.store.redis.cluster_link import ClusterLink
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.slots import SLOTS
from megaphone.store.redis.url import StoreUrl

HELLO = (
    b"%4\r\n+server\r\n+redis\r\n+version\r\n+7.0.0\r\n+mode\r\n+cluster\r\n+role\r\n+master\r\n"
)
HALF = SLOTS // 2


@dataclass
class FalseServer:
    """A server of a cluster with two halves of the slots, each of which has a master."""

    name: str
    port: int = 0
    masters: "list[tuple[FalseServer, int]]" = field(default_factory=list)
    """The masters, as this server knows them, and their epochs."""
    asked: list[str] = field(default_factory=list)
    """The keys of the calls that it got."""
    redirects_to: "FalseServer | None" = None
    is_silent: bool = False
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while the server stands still. Later it answers all that it got meanwhile."""
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> None:
        self.goes_on.set()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def die(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.close()

    @property
    def place(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        self.writers.append(writer)
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    await self.goes_on.wait()
                    if not self.is_silent:
                        writer.write(self._answer([word.decode() for word in command]))
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, command: list[str]) -> bytes:
        match command:
            case ["HELLO", *_]:
                return HELLO
            case ["CLUSTER", "SLOTS"]:
                halves = zip(((0, HALF), (HALF + 1, SLOTS - 1)), self.masters, strict=True)
                ranges = [
                    b"*3\r\n:%d\r\n:%d\r\n*3\r\n+127.0.0.1\r\n:%d\r\n+%b\r\n"
                    % (*half, owner.port, owner.name.encode())
                    for half, (owner, _) in halves
                ]
                return b"*2\r\n" + b"".join(ranges)
            case ["CLUSTER", "NODES"]:
                lines = [
                    f"{one.name} 127.0.0.1:{one.port}@1 master - 0 0 {epoch} connected\n"
                    for one, epoch in self.masters
                ]
                text = "".join(lines).encode()
                return b"$%d\r\n%b\r\n" % (len(text), text)
            case ["GET", key]:
                self.asked.append(key)
                if self.redirects_to is not None:
                    return b"-MOVED 1 127.0.0.1:%d\r\n" % self.redirects_to.port
                return b"+%b\r\n" % self.name.encode()
            case _:
                return b"+PONG\r\n"


@dataclass
class FalseCluster:
    """The first and the second server are the masters; the third is to replace the first."""

    old: FalseServer
    other: FalseServer
    new: FalseServer
    link: ClusterLink
    warnings: int = 0

    def know(self, *servers: FalseServer, owner: FalseServer, epoch: int) -> None:
        """Let servers know the master of the first half of the slots."""
        for server in servers:
            server.masters = [(owner, epoch), (self.other, 2)]

    def warn(self) -> None:
        self.warnings += 1


@pytest.fixture
async def cluster() -> AsyncIterator[FalseCluster]:
    async with AsyncExitStack() as stack:
        servers = [FalseServer(name) for name in ("old", "other", "new")]
        for one in servers:
            await one.start()
            stack.callback(one.die)
        url = "redis+cluster://" + ",".join(str(one.place) for one in servers)
        old, other, new = servers
        cluster = FalseCluster(old, other, new, ClusterLink(StoreUrl.parse(url), name="test"))
        cluster.know(*servers, owner=old, epoch=1)
        cluster.link.on_old_answers = cluster.warn
        await cluster.link.start()
        stack.push_async_callback(cluster.link.aclose)
        yield cluster


KEY = "b"
"""A key in the first half of the slots."""


async def goes_to(cluster: FalseCluster, server: FalseServer) -> None:
    """Wait until the calls for the first half go to a server."""
    async with asyncio.timeout(20):
        while cluster.link.master_of(KEY).place != server.place:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def asked_again(cluster: FalseCluster) -> None:
    """Wait until the link has had time to ask every server for the slots twice."""
    cluster.link.masters()[0].on_down()
    await asyncio.sleep(3 * 0.2)


async def replace(cluster: FalseCluster) -> None:
    """Let the third server be the master, as all but the first know."""
    cluster.know(cluster.other, cluster.new, owner=cluster.new, epoch=3)
    cluster.old.is_silent = True
    cluster.link.masters()[0].on_down()
    await goes_to(cluster, cluster.new)


async def test_the_first_half_is_with_the_first_master(cluster: FalseCluster) -> None:
    assert await cluster.link.call("GET", KEY) == b"old"


async def test_a_server_with_an_older_map_is_not_believed(cluster: FalseCluster) -> None:
    await replace(cluster)
    cluster.old.is_silent = False
    cluster.know(cluster.new, cluster.other, owner=cluster.old, epoch=1)
    cluster.know(cluster.new, owner=cluster.new, epoch=3)
    for _ in range(3):
        await asked_again(cluster)
        assert cluster.link.master_of(KEY).place == cluster.new.place
    assert await cluster.link.call("GET", KEY) == b"new"


async def test_most_servers_are_believed_whatever_their_epochs(cluster: FalseCluster) -> None:
    await replace(cluster)
    cluster.old.is_silent = False
    cluster.know(cluster.new, cluster.other, cluster.old, owner=cluster.old, epoch=1)
    cluster.link.masters()[0].on_down()
    await goes_to(cluster, cluster.old)
    assert await cluster.link.call("GET", KEY) == b"old"


async def test_a_master_that_was_replaced_may_become_the_master_again(
    cluster: FalseCluster,
) -> None:
    await replace(cluster)
    cluster.old.is_silent = False
    cluster.know(cluster.other, owner=cluster.old, epoch=4)
    cluster.link.masters()[0].on_down()
    await goes_to(cluster, cluster.old)
    assert await cluster.link.call("GET", KEY) == b"old"


async def test_nobody_is_sent_to_a_master_that_was_replaced(cluster: FalseCluster) -> None:
    await replace(cluster)
    cluster.old.is_silent = False
    cluster.new.redirects_to = cluster.old
    call = cluster.link.call("GET", KEY)
    async with asyncio.timeout(20):
        while not cluster.new.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    cluster.new.redirects_to = None
    assert await call == b"new"
    assert not cluster.old.asked


async def test_answers_of_a_master_that_was_replaced_are_a_loss(cluster: FalseCluster) -> None:
    assert await cluster.link.call("GET", KEY) == b"old"
    await replace(cluster)
    assert cluster.warnings == 1


async def test_a_master_that_was_dead_before_has_taken_nothing(
    cluster: FalseCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server replaces a master only some time after it is away."""
    monkeypatch.setattr(cluster_link, "DOUBTFUL_S", 0.0)
    cluster.old.die()
    await asked_again(cluster)
    await replace(cluster)
    assert cluster.warnings == 0


@pytest.fixture
def doubted_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """Doubt masters that were silent for less time. Idle ones are asked whether they are there."""
    for name, seconds in {"CHECK_S": 0.02, "IDLE_S": 0.05, "DOUBTED_S": 0.3}.items():
        monkeypatch.setattr(connections, name, seconds)
    return 0.3


async def answer_of_a_master_that_stood_still(cluster: FalseCluster, seconds: float) -> object:
    cluster.old.goes_on.clear()
    call = cluster.link.call("GET", KEY)
    await asyncio.sleep(seconds)
    cluster.old.goes_on.set()
    try:
        return await call
    except StoreUnavailable as error:
        return error


async def test_nobody_gets_the_answer_of_a_master_that_stood_still_until_it_was_replaced(
    doubted_s: float, cluster: FalseCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_link, "MAP_S", 60)
    assert await cluster.link.call("GET", KEY) == b"old"
    cluster.know(cluster.other, cluster.new, owner=cluster.new, epoch=3)
    answer = await answer_of_a_master_that_stood_still(cluster, 2 * doubted_s)
    assert cluster.old.asked == [KEY, KEY]
    assert isinstance(answer, StoreUnavailable)
    assert answer.may_have_happened
    await goes_to(cluster, cluster.new)
    assert await cluster.link.call("GET", KEY) == b"new"


async def test_a_master_that_stood_still_is_believed_if_others_confirm_it(
    doubted_s: float, cluster: FalseCluster
) -> None:
    assert await answer_of_a_master_that_stood_still(cluster, 2 * doubted_s) == b"old"
    assert await cluster.link.call("GET", KEY) == b"old"


async def test_a_master_that_stood_still_is_believed_if_nobody_else_answers(
    doubted_s: float, cluster: FalseCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONFIRMED_WITHIN_S", 0.2)
    cluster.other.is_silent = cluster.new.is_silent = True
    assert await answer_of_a_master_that_stood_still(cluster, 2 * doubted_s) == b"old"
    cluster.other.die()
    cluster.new.die()
    assert await answer_of_a_master_that_stood_still(cluster, 2 * doubted_s) == b"old"


async def test_what_follows_an_answer_that_is_doubted_waits_with_it(
    doubted_s: float, cluster: FalseCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers keep their order, and none is lost."""
    monkeypatch.setattr(connections, "CONFIRMED_WITHIN_S", 0.5)
    cluster.other.is_silent = cluster.new.is_silent = True
    cluster.old.goes_on.clear()
    answered: list[int] = []

    async def get(number: int) -> None:
        assert await cluster.link.call("GET", KEY) == b"old"
        answered.append(number)

    async with asyncio.TaskGroup() as group:
        group.create_task(get(1))
        await asyncio.sleep(2 * doubted_s)
        cluster.old.goes_on.set()
        group.create_task(get(2))
        while len(cluster.old.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not answered
    assert answered == [1, 2]


async def test_a_question_that_fails_ends_no_connection(
    cluster: FalseCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_replaced() -> bool:
        raise RuntimeError("a bug")

    connection = await connections.dial(
        cluster.old.place,
        None,
        lambda: connections.Connection(StoreCounts(), is_replaced=is_replaced),
    )
    assert await connection.call("GET", KEY) == b"old"
    assert await connection.call("GET", KEY) == b"old"
    assert caplog.text.count("this node could not ask whether the master was replaced") == 1
    await connection.aclose()
