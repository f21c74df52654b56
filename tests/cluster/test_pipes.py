"""An agent that is forwarded: one node writes, another has the same channels."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from megaphone.app import App, running
from megaphone.cluster import expiry, outgoing, peer
from megaphone.errors import (
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    TargetUnavailable,
    WrongMode,
)
from megaphone.model import AgentMode, ReadOptions
from megaphone_api.sync_pb2 import (
    FindChannelsInUseReply,
    FindChannelsInUseRequest,
    SyncReply,
    SyncRequest,
)
from megaphone_api.sync_pb2_grpc import SyncServiceServicer, add_SyncServiceServicer_to_server
from tests.support.faces import FACES, Created, Face, read_all, take
from tests.support.metered import numbers
from tests.support.proxy import Proxy, proxy_to
from tests.support.settings import fast_settings

EVERYTHING_READY = ReadOptions(wait_s=0.0)
WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    app: App
    face: Face

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.app.grpc_port}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for long for targets that are gone."""
    monkeypatch.setattr(outgoing, "COMPLETE_S", 0.5)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, agent: str, face: str = "http", **settings: Any) -> Node:
    agents = {agent: AgentMode.MASTER}
    app = await stack.enter_async_context(running(fast_settings(agent=agents, **settings)))
    return Node(app, await stack.enter_async_context(FACES[face](app)))


@pytest.fixture(params=FACES)
async def target(stack: AsyncExitStack, request: pytest.FixtureRequest) -> Node:
    """The node that is forwarded to, read through each face in turn. It outlives the source."""
    return await start(stack, "target", request.param)


@pytest.fixture
async def source_stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def source(target: Node, source_stack: AsyncExitStack) -> Node:
    return await start(source_stack, "moving")


async def write(node: Node, channel: Created, numbers: Sequence[int]) -> list[str]:
    return [await node.face.write(channel.producer, "s", b"%d" % number) for number in numbers]


async def numbers_read(node: Node, channel: Created, options: ReadOptions) -> list[int]:
    return [int(event.body) for event in await read_all(node.face, channel.consumer, options)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.005)


class Stalled(SyncServiceServicer):
    """A node, as old as the Rust broker, that takes the first message, and never another."""

    async def ForwardEvents(
        self, requests: AsyncIterator[SyncRequest], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> SyncReply:
        await anext(aiter(requests))
        await context.send_initial_metadata(())
        await asyncio.get_running_loop().create_future()
        return SyncReply()

    async def FindChannelsInUse(
        self, request: FindChannelsInUseRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> FindChannelsInUseReply:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)


@asynccontextmanager
async def stalled_target() -> AsyncIterator[int]:
    server = grpc.aio.server()
    add_SyncServiceServicer_to_server(Stalled(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def arrived(node: Node, count: int) -> None:
    """Wait until so many events have come to a node through pipes."""
    await until(lambda: node.app.metrics.messages_fed >= count)


async def gone(node: Node, channel: Created) -> None:
    """Wait until a channel is not on a node any more."""
    async with asyncio.timeout(WITHIN_S):
        while (await node.face.exists([channel.consumer]))[channel.consumer]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def mode(node: Node) -> AgentMode:
    return node.app.agents.named("moving").mode


async def test_events_of_before_the_pipe_and_during_it_are_read_at_the_target(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    await write(source, channel, range(5))
    await source.app.pipes.pipe("moving", target.url)
    await write(source, channel, range(5, 10))
    await arrived(target, 10)
    assert await numbers_read(target, channel, EVERYTHING_READY) == list(range(10))


async def test_events_are_read_at_the_target_as_they_were_written(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    body = '{"π":[1.50,1e2,"\\u00e9"], "b" : 123456789012345678901234567890}'.encode()
    await source.app.pipes.pipe("moving", target.url)
    await until(lambda: target.app.metrics.channels_fed == 1)
    async with target.face.read(channel.consumer) as read:
        await source.face.write(channel.producer, "straße", body)
        [event] = await take(read, 1)
    [original] = await read_all(source.face, channel.consumer, EVERYTHING_READY)
    assert event == original
    assert event.body == body


async def test_a_target_takes_writes_under_the_addresses_of_the_source(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", target.url)
    await until(lambda: target.app.metrics.channels_fed == 1)
    await target.face.write(channel.producer, "s", b"1")
    assert await target.face.exists([channel.producer, channel.consumer]) == {
        channel.producer: True,
        channel.consumer: True,
    }
    assert await numbers_read(target, channel, EVERYTHING_READY) == [1]


async def test_what_was_read_at_the_source_is_not_read_again_at_the_target(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    await write(source, channel, range(6))
    await numbers_read(source, channel, ReadOptions(limit=2))
    await source.app.pipes.pipe("moving", target.url)
    await numbers_read(source, channel, ReadOptions(limit=2))
    await write(source, channel, [6])
    await arrived(target, 7)
    assert await numbers_read(target, channel, EVERYTHING_READY) == [4, 5, 6]


async def test_what_was_acknowledged_at_the_source_is_not_read_again_at_the_target(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    ids = await write(source, channel, range(6))
    options = ReadOptions(acknowledge=True, limit=4)
    await numbers_read(source, channel, options)
    await source.face.acknowledge(channel.consumer, ids[1])
    await source.app.pipes.pipe("moving", target.url)
    await arrived(target, 6)
    await write(source, channel, [6])
    await arrived(target, 7)
    assert await numbers_read(target, channel, EVERYTHING_READY) == [2, 3, 4, 5, 6]


async def test_a_reader_resumes_at_the_target_where_it_was_at_the_source(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    ids = await write(source, channel, range(150, 250))
    await numbers_read(source, channel, ReadOptions(limit=100))
    await source.app.pipes.pipe("moving", target.url)
    ids += await write(source, channel, range(250, 260))
    await arrived(target, 110)
    options = ReadOptions(cursor=ids[50], wait_s=0.0)
    async with target.face.read(channel.consumer, options) as read:
        assert [int(event.body) async for event in read] == list(range(201, 260))
        assert read.recovered is True


async def test_channels_made_before_the_pipe_only_are_the_agents_last(
    source: Node, target: Node
) -> None:
    await source.app.pipes.pipe("moving", target.url)
    with pytest.raises(MegaphoneError, match="no MASTER agent"):
        await source.face.create()


async def test_a_channel_that_is_disposed_of_goes_at_the_target_too(
    source: Node, target: Node
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", target.url)
    await until(lambda: target.app.metrics.channels_fed == 1)
    await source.app.admin.dispose(channel.consumer)
    await gone(target, channel)
    with pytest.raises(ChannelNotFound):
        await read_all(target.face, channel.consumer)
    assert target.app.metrics.channels_disposed == 0


async def test_an_agent_may_be_forwarded_to_several_nodes(
    source: Node, target: Node, stack: AsyncExitStack
) -> None:
    other = await start(stack, "other")
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", target.url)
    await write(source, channel, [1])
    await source.app.pipes.pipe("moving", other.url)
    await write(source, channel, [2])
    for node in (target, other):
        await arrived(node, 2)
        assert await numbers_read(node, channel, EVERYTHING_READY) == [1, 2]


async def test_a_pipe_that_is_there_already_is_not_made_again(source: Node, target: Node) -> None:
    channel = await source.face.create()
    for _ in range(2):
        await source.app.pipes.pipe("moving", target.url)
    await write(source, channel, [1])
    await arrived(target, 1)
    await until(lambda: source.app.metrics.messages_forwarded > 0)  # counted after it is sent
    assert source.app.metrics.messages_forwarded == 1


async def test_a_target_that_cannot_be_reached_leaves_the_agent_as_it_was(source: Node) -> None:
    with pytest.raises(TargetUnavailable):
        await source.app.pipes.pipe("moving", "http://127.0.0.1:1")
    assert mode(source) is AgentMode.MASTER
    await source.face.create()


async def test_a_target_that_has_the_agent_itself_refuses(
    source: Node, target: Node, stack: AsyncExitStack
) -> None:
    namesake = await start(stack, "moving")
    with pytest.raises(WrongMode, match="agent moving is MASTER"):
        await source.app.pipes.pipe("moving", namesake.url)
    assert mode(source) is AgentMode.MASTER
    assert mode(namesake) is AgentMode.MASTER


async def test_a_node_that_is_its_own_target_refuses(source: Node) -> None:
    channel = await source.face.create()
    with pytest.raises(WrongMode):
        await source.app.pipes.pipe("moving", source.url)
    await write(source, channel, [1])
    assert await numbers_read(source, channel, EVERYTHING_READY) == [1]


@pytest.mark.parametrize("url", ["", "host", "ftp://a:1", "http://a", "http://u@a:1", "a:b"])
async def test_a_target_that_is_no_address_of_a_node_is_refused(source: Node, url: str) -> None:
    with pytest.raises(BadRequest, match="http://host:3001"):
        await source.app.pipes.pipe("moving", url)


async def test_an_unknown_agent_is_not_forwarded(source: Node, target: Node) -> None:
    with pytest.raises(AgentNotFound):
        await source.app.pipes.pipe("nobody", target.url)


@pytest.fixture
async def line(stack: AsyncExitStack, target: Node) -> Proxy:
    """A connection to the target that can be cut."""
    return await stack.enter_async_context(proxy_to(target.app.grpc_port))


def through(line: Proxy) -> str:
    return f"http://127.0.0.1:{line.port}"


async def test_a_pipe_that_breaks_connects_again_and_catches_up(
    source: Node, target: Node, line: Proxy
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", through(line))
    for first in range(0, 30, 10):
        await write(source, channel, range(first, first + 5))
        line.cut()
        await write(source, channel, range(first + 5, first + 10))
        await until(lambda: bool(source.app.agents.named("moving").pipes))
    await arrived(target, 30)
    assert await numbers_read(target, channel, EVERYTHING_READY) == list(range(30))
    assert target.app.metrics.messages_fed == 30
    assert target.app.metrics.messages_lost == 0


async def test_the_metrics_say_whether_a_pipe_is_connected_and_what_it_has_not_sent(
    source: Node, line: Proxy
) -> None:
    def pipe() -> tuple[float | None, float | None]:
        now = numbers(source.app)
        names = ("connected", "channels_untold")
        connected, untold = (now.get(f'pipe_{one}{{agent="moving"}}') for one in names)
        return connected, untold

    assert pipe() == (None, None)
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", through(line))
    await until(lambda: pipe() == (1, 0))
    line.close()
    await until(lambda: pipe()[0] == 0)
    await write(source, channel, range(3))
    await until(lambda: pipe() == (0, 1))


async def test_a_reader_at_the_target_gets_nothing_twice_when_the_pipe_breaks(
    source: Node, target: Node, line: Proxy
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", through(line))
    await until(lambda: target.app.metrics.channels_fed == 1)
    async with target.face.read(channel.consumer) as read:
        await write(source, channel, range(5))
        got = await take(read, 5)
        line.cut()
        await write(source, channel, range(5, 8))
        got += await take(read, 3)
    assert [int(event.body) for event in got] == list(range(8))


async def test_a_replica_whose_source_vanishes_stays_one_until_it_is_promoted(
    source: Node, target: Node, line: Proxy, stack: AsyncExitStack
) -> None:
    channel = await source.face.create()
    await write(source, channel, [1, 2])
    await source.app.pipes.pipe("moving", through(line))
    await arrived(target, 2)
    line.close()
    await until(lambda: not target.app.agents.named("moving").sources)
    assert mode(target) is AgentMode.REPLICA
    target.app.agents.promote("moving", 0.0)
    assert await numbers_read(target, channel, EVERYTHING_READY) == [1, 2]


async def test_an_agent_whose_target_is_gone_can_be_taken_back(
    source: Node, target: Node, line: Proxy
) -> None:
    await source.app.pipes.pipe("moving", through(line))
    line.close()
    await until(lambda: not source.app.agents.named("moving").pipes)
    source.app.agents.promote("moving", 0.0)
    channel = await source.face.create()
    await write(source, channel, [1])
    assert await numbers_read(source, channel, EVERYTHING_READY) == [1]


async def test_a_source_that_stops_hands_its_agent_over(
    source: Node, target: Node, source_stack: AsyncExitStack
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", target.url)
    await write(source, channel, range(50))
    await source_stack.aclose()
    assert mode(target) is AgentMode.MASTER
    assert source.app.metrics.channels_disposed == source.app.metrics.messages_lost == 0
    assert source.app.metrics.channels_alive == 0
    assert target.app.metrics.channels_alive == 1
    assert await numbers_read(target, channel, EVERYTHING_READY) == list(range(50))


async def test_a_source_that_stops_without_its_target_ends_in_time(
    source: Node, target: Node, line: Proxy, source_stack: AsyncExitStack
) -> None:
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", through(line))
    line.close()
    await until(lambda: not source.app.agents.named("moving").pipes)
    await write(source, channel, [1])
    async with asyncio.timeout(20):
        await source_stack.aclose()
    assert source.app.metrics.messages_lost == 1
    assert mode(target) is AgentMode.REPLICA


async def test_a_replica_is_not_promoted_where_that_is_turned_off(
    source_stack: AsyncExitStack, stack: AsyncExitStack
) -> None:
    target = await start(stack, "target", promote_replicas=False)
    source = await start(source_stack, "moving")
    await source.app.pipes.pipe("moving", target.url)
    await source_stack.aclose()
    assert mode(target) is AgentMode.REPLICA


@dataclass(frozen=True, slots=True)
class Piped:
    """Two nodes on which channels live for 0.3 s, and two channels that are on both."""

    source: Node
    target: Node
    channel: Created
    other: Created

    def node(self, side: str) -> Node:
        return {"source": self.source, "target": self.target}[side]


@pytest.fixture
async def piped(
    stack: AsyncExitStack, source_stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> Piped:
    monkeypatch.setattr(expiry, "CHECK_S", 0.05)
    target = await start(stack, "target", channel_ttl_secs=0.3)
    source = await start(source_stack, "moving", channel_ttl_secs=0.3)
    channels = [await source.face.create() for _ in range(2)]
    await source.app.pipes.pipe("moving", target.url)
    await until(lambda: target.app.metrics.channels_fed == 2)
    return Piped(source, target, *channels)


async def test_channels_that_nobody_reads_on_either_side_expire_on_both(piped: Piped) -> None:
    await until(lambda: piped.target.app.metrics.channels_forgotten == 2)
    assert piped.source.app.metrics.channels_disposed == 2
    assert piped.target.app.metrics.channels_disposed == 0


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_channel_that_is_read_on_one_side_lives_on_both(piped: Piped, side: str) -> None:
    address = piped.channel.consumer
    async with piped.node(side).face.read(address):
        await until(lambda: piped.target.app.metrics.channels_forgotten == 1)  # the other one
        await asyncio.sleep(0.9)  # three of its lives
        for node in (piped.source, piped.target):
            assert await node.face.exists([address]) == {address: True}
    await until(lambda: piped.target.app.metrics.channels_forgotten == 2)


async def test_a_channel_that_is_disposed_of_while_it_is_read_elsewhere_expires_there(
    piped: Piped,
) -> None:
    source, target = piped.source, piped.target
    async with target.face.read(piped.channel.consumer) as read:
        for channel in (piped.channel, piped.other):
            await source.app.admin.dispose(channel.consumer)
        await until(lambda: target.app.metrics.channels_forgotten == 1)
        await target.face.write(piped.channel.producer, "s", b"1")
        [event] = await take(read, 1)
        assert event.body == b"1"
    await until(lambda: target.app.metrics.channels_disposed == 1)


async def test_a_target_that_cannot_be_asked_keeps_channels_alive(
    stack: AsyncExitStack, source_stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "CHECK_S", 0.05)
    source = await start(source_stack, "moving", channel_ttl_secs=0.3)
    channel = await source.face.create()
    port = await stack.enter_async_context(stalled_target())
    async with source.face.read(channel.consumer):
        await source.app.pipes.pipe("moving", f"http://127.0.0.1:{port}")
    await asyncio.sleep(0.9)  # three of its lives
    assert await source.face.exists([channel.consumer]) == {channel.consumer: True}


async def test_channels_expire_after_the_pipe_by_themselves(
    piped: Piped, source_stack: AsyncExitStack
) -> None:
    async with piped.target.face.read(piped.channel.consumer):
        await source_stack.aclose()
    await until(lambda: piped.target.app.metrics.channels_disposed == 2)


async def test_a_target_that_takes_nothing_makes_writers_wait_and_nothing_is_lost(
    source_stack: AsyncExitStack, stack: AsyncExitStack
) -> None:
    source = await start(source_stack, "moving", write_timeout_millis=200)
    port = await stack.enter_async_context(stalled_target())
    channel = await source.face.create()
    await source.app.pipes.pipe("moving", f"http://127.0.0.1:{port}")
    await write(source, channel, range(100))
    with pytest.raises(MegaphoneError, match="full"):
        await write(source, channel, [100])
    assert await numbers_read(source, channel, EVERYTHING_READY) == list(range(100))
    assert source.app.metrics.messages_lost == 0


class Slow(SyncServiceServicer):
    """A node of ours that takes long to say that it has accepted an agent."""

    def __init__(self) -> None:
        self.changes: list[str | None] = []

    async def ForwardEvents(
        self, requests: AsyncIterator[SyncRequest], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> SyncReply:
        await anext(aiter(requests))
        await asyncio.sleep(1.5 * peer.RUST_REFUSES_WITHIN_S)
        await context.send_initial_metadata((("megaphone-sync", "1"),))
        async for request in requests:
            self.changes.append(request.WhichOneof("sync_event"))
        return SyncReply()

    async def FindChannelsInUse(
        self, request: FindChannelsInUseRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> FindChannelsInUseReply:
        return FindChannelsInUseReply()


async def test_a_target_that_is_slow_is_not_mistaken_for_a_rust_broker(
    stack: AsyncExitStack, source_stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "RUST_REFUSES_WITHIN_S", 0.2)
    source = await start(source_stack, "moving")
    channel = await source.face.create()
    await source.face.write(channel.producer, "s", b"1")
    await read_all(source.face, channel.consumer, ReadOptions(wait_s=0))
    slow = Slow()
    server = grpc.aio.server()
    add_SyncServiceServicer_to_server(slow, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    await source.app.pipes.pipe("moving", f"http://127.0.0.1:{port}")
    # What was read already, and how far, goes only to nodes that have the extensions.
    await until(lambda: slow.changes == ["channel_created", "event_received", "channel_position"])
