"""A node that is drained: its agents move to another one, and clients find their channels there."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from megaphone.app import App, running
from megaphone.cluster import moves, outgoing
from megaphone.cluster.outgoing import OutgoingPipes
from megaphone.cluster.peer import target_at
from megaphone.core.access import ANYONE, Caller
from megaphone.core.ports import WouldBlock
from megaphone.core.tenants import Tenant
from megaphone.errors import (
    AgentMoved,
    BadRequest,
    MegaphoneError,
    TargetUnavailable,
    WrongMode,
)
from megaphone.model import (
    START,
    AgentMode,
    ChannelOptions,
    DrainProgress,
    NewEvent,
    ReadOptions,
)
from megaphone_api.sync_pb2 import (
    FindChannelsInUseReply,
    FindChannelsInUseRequest,
    SyncReply,
    SyncRequest,
)
from megaphone_api.sync_pb2_grpc import SyncServiceServicer, add_SyncServiceServicer_to_server
from tests.support.faces import FACES, Created, Face, read_all, take
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.ports import free_port
from tests.support.raw_http import Broken, Node
from tests.support.settings import fast_settings

READY = ReadOptions(wait_s=0.0)
READY_ACK = ReadOptions(wait_s=0.0, acknowledge=True)
WITHIN_S = 20.0

Context = grpc.aio.ServicerContext[Any, Any]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def node(stack: AsyncExitStack, *agents: str, **settings: Any) -> App:
    modes = dict.fromkeys(agents, AgentMode.MASTER)
    return await stack.enter_async_context(running(fast_settings(agent=modes, **settings)))


@pytest.fixture
async def target(stack: AsyncExitStack) -> App:
    return await node(stack, "target")


@pytest.fixture
async def source(stack: AsyncExitStack) -> App:
    return await node(stack, "a", "b")


@pytest.fixture(params=FACES)
async def faces(
    stack: AsyncExitStack, source: App, target: App, request: pytest.FixtureRequest
) -> tuple[Face, Face]:
    """How the source and the target are called: by each protocol in turn."""
    face = FACES[request.param]
    return (
        await stack.enter_async_context(face(source)),
        await stack.enter_async_context(face(target)),
    )


def url(app: App) -> str:
    return f"http://127.0.0.1:{app.grpc_port}"


async def drain(source: App, target: str) -> list[DrainProgress]:
    async with aclosing(source.admin.drain(target)) as steps:
        return [progress async for progress in steps]


def modes(app: App) -> dict[str, AgentMode]:
    return {agent.name: agent.mode for agent in app.agents}


async def channel_of(app: App, face: Face, agent: str) -> Created:
    """Make channels until one is of an agent."""
    while not (channel := await face.create()).consumer.startswith(f"{agent}."):
        pass
    return channel


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.002)


MASTERS = {"a": AgentMode.MASTER, "b": AgentMode.MASTER}


async def test_every_agent_moves_and_its_channels_with_it(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, there = faces
    channels = [await channel_of(source, here, agent) for agent in ("a", "b", "a")]
    for channel in channels:
        await here.write(channel.producer, "s", b"1")
    progress = await drain(source, url(target))
    assert progress[-1].done
    assert (progress[-1].agents_moved, progress[-1].agents_left) == (2, 0)
    assert progress[-1].channels_left == 0
    assert progress[-1].channels_moved >= 3
    assert modes(source) == {}
    assert modes(target) == {"target": AgentMode.MASTER} | MASTERS
    for channel in channels:
        await there.write(channel.producer, "s", b"2")
        events = await read_all(there, channel.consumer, READY)
        assert [event.body for event in events] == [b"1", b"2"]


async def test_an_event_takes_its_trace_context_with_it(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, there = faces
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    channel = await here.create()
    await here.traced(context).write(channel.producer, "s", b"1")
    await here.write(channel.producer, "s", b"2")
    await drain(source, url(target))
    events = await read_all(there, channel.consumer, ReadOptions(wait_s=0.0, trace=True))
    assert [event.traceparent for event in events] == [context, None]


async def test_a_read_ends_cleanly_and_goes_on_elsewhere(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, there = faces
    channel = await here.create()
    await here.write(channel.producer, "s", b"1")
    async with here.read(channel.consumer) as read:
        [first] = await take(read, 1)
        await drain(source, url(target))
        assert [event async for event in read] == []
    assert source.metrics.reads_ended["moved"] == 1
    await there.write(channel.producer, "s", b"2")
    options = ReadOptions(wait_s=0.0, cursor=first.event_id)
    assert [event.body for event in await read_all(there, channel.consumer, options)] == [b"2"]


async def test_calls_for_an_agent_that_has_moved_are_told_so(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, _ = faces
    channel = await here.create()
    await drain(source, url(target))
    with pytest.raises(AgentMoved, match="has moved to another node"):
        await here.write(channel.producer, "s", b"1")
    with pytest.raises(AgentMoved):
        await read_all(here, channel.consumer, READY)
    with pytest.raises(AgentMoved):
        await here.acknowledge(channel.consumer, "x")
    with pytest.raises(AgentMoved):
        await here.exists(["no address", channel.consumer])


async def test_what_was_sent_here_can_be_acknowledged_there(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, there = faces
    channel = await here.create()
    for body in (b"1", b"2"):
        await here.write(channel.producer, "s", body)
    events = await read_all(here, channel.consumer, READY_ACK)
    await drain(source, url(target))
    assert await there.acknowledge(channel.consumer, events[0].event_id) == 1
    rest = await read_all(there, channel.consumer, READY_ACK)
    assert [event.body for event in rest] == [b"2"]


async def test_a_channel_keeps_its_options_and_its_tenant(source: App, target: App) -> None:
    shop = Caller("shop", Tenant("shop"))
    options = ChannelOptions(capacity=2, ttl_s=300.0, label="orders")
    channel = await source.broker.create(shop, (), options)
    await drain(source, url(target))
    async with aclosing(target.admin.watch(interval_s=0.1)) as views:
        [moved] = (await anext(views)).channels
    assert (moved.address, moved.label, moved.tenant) == (
        channel.consumer_address,
        "orders",
        "shop",
    )
    await target.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    await target.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"2"))
    with pytest.raises(WouldBlock):
        target.broker.write_nowait(ANYONE, channel.producer_address, NewEvent("s", b"3"))


async def test_a_writer_that_waits_for_room_is_told_to_call_again(
    stack: AsyncExitStack, target: App
) -> None:
    source = await node(stack, "a", buffer_capacity=1)
    channel = await source.broker.create(ANYONE)
    await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    waiting = asyncio.create_task(
        source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"2"))
    )
    await until(lambda: source.metrics.writers_waiting == 1)
    await drain(source, url(target))
    with pytest.raises(AgentMoved):
        await waiting
    assert target.metrics.messages_fed == 1


async def test_a_reader_that_takes_nothing_is_broken_off_and_gets_it_again(
    source: App, target: App
) -> None:
    channel = await source.broker.create(ANYONE)
    await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    taken = asyncio.get_running_loop().create_future()

    async def stall() -> None:
        async with source.broker.read(ANYONE, channel.consumer_address) as reader:
            taken.set_result(await anext(reader))
            await asyncio.Event().wait()

    stalling = asyncio.create_task(stall())
    [stalled] = await taken
    await drain(source, url(target))
    with pytest.raises(AgentMoved):
        await stalling
    async with target.broker.read(ANYONE, channel.consumer_address, READY) as reader:
        assert [event.id for event in await anext(reader)] == [stalled.id]


async def end_of(read: OpenRead) -> str:
    """Take all that comes. Returns: how the read ended."""
    try:
        while await read.next() is not None:
            pass
    except (Broken, AgentMoved) as error:
        return type(error).__name__
    return "clean"


@pytest.mark.parametrize(
    ("transport", "end"), [("ndjson", "Broken"), ("sse", "Broken"), ("grpc", "AgentMoved")]
)
async def test_the_client_of_a_read_that_is_broken_off_sees_a_broken_end(
    source: App, target: App, transport: str, end: str
) -> None:
    channel = await source.broker.create(ANYONE)
    body = b'"' + b"x" * 200_000 + b'"'
    for _ in range(50):  # more than the buffers on the way hold
        await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", body))
    here = Node(source.http_port, source.grpc_port)
    async with grpc_connection(here) as connection:
        read: OpenRead
        if transport == "grpc":
            read = GrpcRead(connection, channel.consumer_address, ReadOptions())
        else:
            read = await HttpRead.ask(
                here, channel.consumer_address, ReadOptions(), sse=transport == "sse"
            )
        try:
            await read.begin()
            await until(lambda: source.metrics.messages_read > 0)
            await drain(source, url(target))
            assert await end_of(read) == end
        finally:
            read.close()
    options = ReadOptions(wait_s=0.0, cursor=START)
    async with target.broker.read(ANYONE, channel.consumer_address, options) as again:
        assert sum([len(batch) async for batch in again]) == 50


async def test_a_node_that_an_agent_left_serves_it_only_once_it_has_come_back(
    source: App, target: App, faces: tuple[Face, Face]
) -> None:
    here, there = faces
    channel = await channel_of(source, here, "a")
    await drain(source, url(target))
    await target.admin.pipe_agent("a", url(source))
    await until(lambda: source.metrics.channels_fed == 1)
    for call in (
        here.write(channel.producer, "s", b"1"),
        here.acknowledge(channel.consumer, "x" * 23),
        read_all(here, channel.consumer, READY),
    ):
        with pytest.raises(AgentMoved):
            await call
    await there.write(channel.producer, "s", b"2")
    await drain(target, url(source))
    await here.write(channel.producer, "s", b"3")
    events = await read_all(here, channel.consumer, READY)
    assert [event.body for event in events] == [b"2", b"3"]


# -- A node that stops


async def test_a_node_that_stops_looks_for_a_target_until_there_is_one(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as held:  # its port is free again when the successor starts
        held.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{held.getsockname()[1]}"
    async with AsyncExitStack() as stopping:
        source = await node(
            stopping, "a", drain_target=f"http://{endpoint}", drain_timeout_secs=WITHIN_S
        )
        channel = await source.broker.create(ANYONE)
        await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
        stop = asyncio.create_task(stopping.aclose())
        await until(lambda: "cannot be reached" in caplog.text)
        await asyncio.sleep(2.5 * moves.RETRY_S)  # it tries again meanwhile, and says so once
        assert not stop.done()
        successor = await node(stack, "b", grpc_address=endpoint)
        await stop
    assert caplog.text.count("cannot be reached") == 1
    async with successor.broker.read(ANYONE, channel.consumer_address, READY) as reader:
        assert [event.body for event in await anext(reader)] == [b"1"]


async def test_a_node_that_stops_asks_a_target_again_that_refuses(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    target = await node(stack, "a")  # it has an agent of the same name
    async with AsyncExitStack() as stopping:
        source = await node(stopping, "a", drain_target=url(target), drain_timeout_secs=WITHIN_S)
        channel = await source.broker.create(ANYONE)
        stop = asyncio.create_task(stopping.aclose())
        await until(lambda: "agent a stays here" in caplog.text)
        assert not stop.done()
        target.agents.remove("a")
        await stop
    assert caplog.text.count("agent a stays here") == 1
    assert source.metrics.agents_not_moved == 0
    assert await target.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: True
    }


@pytest.mark.parametrize("channels", [0, 1])
async def test_a_node_that_finds_no_target_stops_in_time_and_says_what_is_lost(
    channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    timeout_s = 1.2 if channels else WITHIN_S  # without channels there is nothing to wait for
    async with AsyncExitStack() as stopping, asyncio.timeout(WITHIN_S / 2):
        source = await node(
            stopping, "a", drain_target="http://127.0.0.1:1", drain_timeout_secs=timeout_s
        )
        for _ in range(channels):
            await source.broker.create(ANYONE)
        await stopping.aclose()
    lost = [one for one in caplog.records if one.message == "channels are lost with this node"]
    assert [(one.__dict__["channels"], one.__dict__["agents"]) for one in lost] == (
        [(1, "a")] if channels else []
    )
    assert source.metrics.agents_not_moved == channels


async def test_a_node_that_stops_moves_to_no_other_node_that_stops(stack: AsyncExitStack) -> None:
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        stopping = [first, second]
        ports = [free_port(), free_port()]
        nodes = [
            await node(
                own,
                name,
                grpc_address=f"127.0.0.1:{port}",
                drain_target=f"http://127.0.0.1:{other}",
                drain_timeout_secs=2 * moves.RETRY_S,
            )
            for own, name, port, other in zip(stopping, "ab", ports, reversed(ports), strict=True)
        ]
        for one in nodes:
            await one.broker.create(ANYONE)
        await asyncio.gather(*(own.aclose() for own in stopping))
    assert [one.metrics.channels_fed for one in nodes] == [0, 0]
    assert [one.metrics.agents_not_moved for one in nodes] == [1, 1]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_node_that_stops_waits_until_proxies_know_a_target_that_is_new(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Also if the name of the targets had no address before."""
    loop = asyncio.get_running_loop()
    successor = await node(stack, "b")
    addresses: list[int] = []
    is_resolved = asyncio.Event()

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        is_resolved.set()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", at)) for at in addresses]

    async with AsyncExitStack() as stopping:
        source = await node(
            stopping, "a", drain_target="http://nodes:3001", drain_timeout_secs=WITHIN_S
        )
        monkeypatch.setattr(moves, "PROXIES_KNOW_AFTER_S", 1.0)
        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        addresses += others * [source.grpc_port]
        channel = await source.broker.create(ANYONE)
        stop = asyncio.create_task(stopping.aclose())
        await is_resolved.wait()
        addresses.append(successor.grpc_port)
        appeared_at = loop.time()
        await until(lambda: successor.metrics.channels_fed == 1)
        assert loop.time() >= appeared_at + 1.0
        await stop
    assert await successor.broker.exists(ANYONE, [channel.consumer_address]) == {
        channel.consumer_address: True
    }


@pytest.mark.parametrize(
    ("reason", "gone_after_s", "gives_up"),
    [
        (socket.EAI_NONAME, 1.0, True),
        (socket.EAI_NODATA, 1.0, True),
        (socket.EAI_AGAIN, 1.0, False),  # the name server does not answer
        (socket.EAI_NONAME, None, False),
    ],
)
async def test_a_node_that_stops_gives_up_when_the_name_of_the_targets_is_gone(
    monkeypatch: pytest.MonkeyPatch, reason: int, gone_after_s: float | None, gives_up: bool
) -> None:
    loop = asyncio.get_running_loop()

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        raise socket.gaierror(reason, "no such name")

    within_s = 4.0
    async with AsyncExitStack() as stopping:
        source = await node(
            stopping,
            "a",
            drain_target="http://nodes:3001",
            drain_timeout_secs=within_s,
            drain_target_gone_secs=gone_after_s,
        )
        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        await source.broker.create(ANYONE)
        began = loop.time()
        await stopping.aclose()
        took_s = loop.time() - began
    assert took_s >= (gone_after_s or within_s)
    assert (took_s < within_s) is gives_up
    assert source.metrics.agents_not_moved == 1


async def test_a_name_that_comes_back_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((None, [(0, 0, 0, "", ("10.0.0.1", 3001))], None))

    async def resolve(host: str, port: int, **_: object) -> list[Any]:
        if (answer := next(answers)) is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return answer

    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr(loop, "time", lambda: now)
    sightings = moves.Sightings(known_after_s=0.0, gone_after_s=5.0)
    target = target_at("http://nodes:3001")
    with pytest.raises(TargetUnavailable):
        await sightings.known(target)
    now += 4.0
    assert len(await sightings.known(target)) == 1
    now += 4.0
    with pytest.raises(TargetUnavailable):
        await sightings.known(target)
    assert not sightings.name_is_gone
    now += 5.0
    assert sightings.name_is_gone


@pytest.mark.parametrize(("within_s", "waits_s"), [(30, 6), (12, 3), (1, 0.25)])
def test_a_hand_over_waits_for_proxies_for_a_part_of_its_time(
    within_s: float, waits_s: float
) -> None:
    assert moves.known_after_s(within_s) == waits_s


# -- What stays


async def test_no_pipe_is_closed_during_a_cut_over(source: App, target: App) -> None:
    await source.admin.pipe_agent("a", url(target))
    with source.agents.moving("a"), pytest.raises(WrongMode, match="moves to another node"):
        await source.admin.unpipe_agent("a", force=True)
    assert [pipe.agent for pipe in source.pipes.described()] == ["a"]
    await source.admin.unpipe_agent("a", force=True)
    assert modes(source)["a"] is AgentMode.MASTER


async def test_without_a_target_everything_stays(source: App) -> None:
    with pytest.raises(TargetUnavailable):
        await drain(source, "http://127.0.0.1:1")
    assert source.metrics.agents_not_moved == 0  # they have no channels
    with pytest.raises(BadRequest):
        await drain(source, "nowhere")
    assert modes(source) == MASTERS
    await source.broker.create(ANYONE)


async def test_an_agent_that_the_target_refuses_stays_and_the_others_move(
    stack: AsyncExitStack, source: App
) -> None:
    target = await node(stack, "a")  # another agent of that name
    channels = [await source.broker.create(ANYONE) for _ in range(20)]
    with pytest.raises(WrongMode, match="these agents have not moved, and are as before: a; "):
        await drain(source, url(target))
    assert modes(source) == {"a": AgentMode.MASTER}
    assert modes(target) == MASTERS
    assert source.metrics.agents_not_moved == 1
    for channel in channels:
        owner = source if channel.agent == "a" else target
        await owner.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))


async def test_a_node_cannot_be_drained_to_itself(source: App) -> None:
    await source.broker.create(ANYONE)
    with pytest.raises(TargetUnavailable, match="is being drained"):
        await drain(source, url(source))
    assert modes(source) == MASTERS


async def test_of_several_addresses_that_of_another_node_is_chosen(
    source: App, target: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int, **_: object) -> list[object]:
        assert (host, port) == ("nodes", 3001)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            for port in (source.grpc_port, 1, target.grpc_port)
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    await drain(source, "http://nodes:3001")
    assert modes(source) == {}


async def test_one_drain_runs_at_a_time_and_meanwhile_no_pipe_comes_in(
    source: App, target: App
) -> None:
    async with aclosing(source.admin.drain(url(target))) as steps:
        await anext(steps)
        with pytest.raises(WrongMode, match="is being drained already"):
            await drain(source, url(target))
        with pytest.raises(TargetUnavailable, match="is being drained"):
            await target.pipes.pipe("target", url(source))
    assert modes(target) == {"target": AgentMode.MASTER}
    await target.pipes.pipe("target", url(source))


async def test_an_agent_that_another_node_feeds_is_not_moved(
    stack: AsyncExitStack, source: App, target: App
) -> None:
    feeder = await node(stack, "fed")
    channel = await feeder.broker.create(ANYONE)
    await feeder.pipes.pipe("fed", url(source))
    await drain(source, url(target))
    assert modes(source) == {"fed": AgentMode.REPLICA}
    await feeder.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    await until(lambda: source.metrics.messages_fed == 1)


async def test_a_replica_that_nobody_feeds_moves_as_a_replica(
    stack: AsyncExitStack, source: App, target: App
) -> None:
    async with AsyncExitStack() as life:
        feeder = await node(life, "fed")
        channel = await feeder.broker.create(ANYONE)
        await feeder.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
        await feeder.pipes.pipe("fed", url(source))
        await until(lambda: source.metrics.messages_fed == 1)
        assert isinstance(feeder.pipes, OutgoingPipes)
        [pipe] = feeder.pipes._pipes.values()
        await feeder.pipes.close(pipe)
    assert modes(source)["fed"] is AgentMode.REPLICA
    await until(lambda: not source.agents.named("fed").sources)
    await drain(source, url(target))
    assert modes(target)["fed"] is AgentMode.REPLICA
    async with target.broker.read(ANYONE, channel.consumer_address, READY) as reader:
        assert [event.body for event in await anext(reader)] == [b"1"]


async def test_an_agent_that_has_come_for_its_channels_goes_with_them(
    stack: AsyncExitStack, source: App, target: App
) -> None:
    await drain(source, url(target))
    last = await node(stack, "last")
    await drain(target, url(last))
    assert modes(last) == {"last": AgentMode.MASTER, "target": AgentMode.MASTER}
    assert modes(target) == {}


async def test_an_agent_that_is_forwarded_there_already_moves_through_its_pipe(
    source: App, target: App
) -> None:
    channel = await source.broker.create(ANYONE)
    await source.pipes.pipe(channel.agent, url(target))
    await drain(source, url(target))
    assert modes(source) == {}
    assert modes(target)[channel.agent] is AgentMode.MASTER
    assert target.metrics.channels_fed == 1


async def test_a_copy_elsewhere_stays_a_copy(
    stack: AsyncExitStack, source: App, target: App
) -> None:
    other = await node(stack, "other")
    await source.broker.create(ANYONE)
    await source.pipes.pipe("a", url(other))
    await drain(source, url(target))
    assert modes(target)["a"] is AgentMode.MASTER
    assert modes(other)["a"] is AgentMode.REPLICA


# -- Targets that do not do what they should


class Target(SyncServiceServicer):
    """A node that takes a source's messages up to some kind of message, and then does as told."""

    def __init__(self, until: str, then: Callable[[Context], Awaitable[None]]) -> None:
        self._until = until
        self._then = then
        self.reached = asyncio.Event()
        self.streams = 0

    async def ForwardEvents(
        self, requests: AsyncIterator[SyncRequest], context: Context
    ) -> SyncReply:
        self.streams += 1
        if self.streams == 1:
            await context.send_initial_metadata((("megaphone-sync", "1"),))
            async for request in requests:
                if request.WhichOneof("sync_event") == self._until:
                    self.reached.set()
                    break
        await self._then(context)
        return SyncReply()

    async def FindChannelsInUse(
        self, request: FindChannelsInUseRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> FindChannelsInUseReply:
        return FindChannelsInUseReply()


async def be_silent(context: Context) -> None:
    await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def served(servicer: Target) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_SyncServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_where_the_answer_is_lost_it_is_asked_again(stack: AsyncExitStack) -> None:
    source = await node(stack, "a")
    answers = iter([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION])
    servicer = Target("pipe_agent_end", lambda context: context.abort(next(answers)))
    channel = await source.broker.create(ANYONE)
    async with served(servicer) as target:
        await drain(source, target)
    assert servicer.streams == 2
    assert modes(source) == {}
    with pytest.raises(AgentMoved):
        await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))


async def test_a_target_that_never_says_that_it_has_it_all_leaves_the_agent_here(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "COMPLETE_S", 0.3)
    source = await node(stack, "a")
    servicer = Target("pipe_agent_end", be_silent)
    channel = await source.broker.create(ANYONE)
    async with served(servicer) as target:
        draining = asyncio.create_task(drain(source, target))
        await servicer.reached.wait()
        waiting = asyncio.create_task(
            source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
        )
        with pytest.raises(TargetUnavailable, match="did not confirm that it has everything"):
            await draining
    assert modes(source) == {"a": AgentMode.MASTER}
    await waiting
    async with source.broker.read(ANYONE, channel.consumer_address, READY) as reader:
        assert [event.body for event in await anext(reader)] == [b"1"]


async def test_a_refusal_after_a_move_that_failed_is_not_mistaken_for_an_arrival(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "COMPLETE_S", 0.3)
    source = await node(stack, "a")
    channel = await source.broker.create(ANYONE)
    answers = iter([be_silent])

    async def answer(context: Context) -> None:
        then = next(answers, None)
        await (then(context) if then else context.abort(grpc.StatusCode.FAILED_PRECONDITION))

    servicer = Target("pipe_agent_end", answer)
    async with served(servicer) as target:
        await source.pipes.pipe("a", target)
        with pytest.raises(TargetUnavailable):
            await drain(source, target)
        await source.broker.write(
            ANYONE, channel.producer_address, NewEvent("s", b"1")
        )  # the target lacks it
        monkeypatch.setattr(moves, "TARGET_LOST_S", 0.1)
        with pytest.raises(MegaphoneError):
            await drain(source, target)
    async with source.broker.read(ANYONE, channel.consumer_address, READY) as reader:
        assert [event.body for event in await anext(reader)] == [b"1"]


async def test_a_target_that_goes_away_leaves_the_agent_here(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "TARGET_LOST_S", 0.1)
    monkeypatch.setattr(moves, "CUT_OVER_BACKLOG", -1)  # it is never thought to have it all
    source = await node(stack, "a")
    await source.broker.create(ANYONE)
    servicer = Target("channel_created", be_silent)
    async with served(servicer) as target:
        draining = asyncio.create_task(drain(source, target))
        await servicer.reached.wait()
    with pytest.raises(TargetUnavailable, match="the target does not answer any more"):
        await draining
    assert modes(source) == {"a": AgentMode.MASTER}
    await source.broker.create(ANYONE)


async def test_a_drain_that_is_given_up_leaves_the_agent_here(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "CUT_OVER_BACKLOG", -1)
    source = await node(stack, "a")
    channel = await source.broker.create(ANYONE)
    servicer = Target("channel_created", be_silent)
    async with served(servicer) as target:
        draining = asyncio.create_task(drain(source, target))
        await servicer.reached.wait()
        assert modes(source) == {"a": AgentMode.PIPED}
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
    assert modes(source) == {"a": AgentMode.MASTER}
    await source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    with pytest.raises(MegaphoneError):
        await drain(source, "http://127.0.0.1:1")  # and not: it is being drained


async def test_a_drain_that_is_given_up_during_the_cut_comes_to_its_end(
    stack: AsyncExitStack,
) -> None:
    source = await node(stack, "a")
    channel = await source.broker.create(ANYONE)
    answering = asyncio.Event()

    async def answer_late(context: Context) -> None:
        await answering.wait()

    servicer = Target("pipe_agent_end", answer_late)
    async with served(servicer) as target:
        draining = asyncio.create_task(drain(source, target))
        await servicer.reached.wait()
        draining.cancel()
        writing = asyncio.create_task(
            source.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
        )
        answering.set()
        with pytest.raises(AgentMoved):
            await writing
        with pytest.raises(asyncio.CancelledError):
            await draining
    assert modes(source) == {}


async def test_a_pipe_that_is_refused_leaves_a_replica_a_replica(stack: AsyncExitStack) -> None:
    app = await stack.enter_async_context(running(fast_settings(agent={"r": AgentMode.REPLICA})))
    with pytest.raises(TargetUnavailable):
        await app.pipes.pipe("r", "http://127.0.0.1:1")
    assert modes(app) == {"r": AgentMode.REPLICA}
