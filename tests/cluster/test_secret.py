"""Nodes with a secret: a source proves that it has it, and no other target gets a key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from megaphone.app import App, running
from megaphone.cluster import expiry, outgoing
from megaphone.core.access import ANYONE
from megaphone.errors import MegaphoneError, Unauthenticated
from megaphone.model import AgentMode, NewEvent, ReadOptions
from megaphone.settings import Nodes
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceServicer, add_SyncServiceServicer_to_server
from tests.support.settings import fast_settings

SECRET = "new-secret-of-the-nodes-0123456789"
PREVIOUS = "old-secret-of-the-nodes-0123456789"
NONE = Nodes()
NEW = Nodes(secret=SECRET)
OLD = Nodes(secret=PREVIOUS)
BOTH = Nodes(secret=SECRET, previous_secret=PREVIOUS)
WITHIN_S = 10.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for long for targets that are gone."""
    monkeypatch.setattr(outgoing, "COMPLETE_S", 0.5)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, agent: str, nodes: Nodes, **settings: Any) -> App:
    agents = {agent: AgentMode.MASTER}
    chosen = fast_settings(agent=agents, nodes=nodes, **settings)
    return await stack.enter_async_context(running(chosen))


def url(target: App) -> str:
    return f"http://127.0.0.1:{target.grpc_port}"


async def read_at(target: App, address: str) -> list[bytes]:
    async with target.broker.read(ANYONE, address, ReadOptions(wait_s=0.0)) as reader:
        return [event.body async for batch in reader for event in batch]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(NEW, NEW, id="the same"),
        pytest.param(OLD, BOTH, id="target has the new one and the old one"),
        pytest.param(BOTH, BOTH, id="both have both"),
        pytest.param(NONE, Nodes(secret=SECRET, open=True), id="target is open"),
        pytest.param(Nodes(secret=SECRET, open=True), NONE, id="source is open"),
        pytest.param(Nodes(open=True), NONE, id="none"),
    ],
)
async def test_agents_move_between_nodes_with_the_same_secret(
    stack: AsyncExitStack, source: Nodes, target: Nodes
) -> None:
    to_node = await start(stack, "home", target)
    from_node = await start(stack, "moving", source)
    channel = await from_node.broker.create(ANYONE)
    await from_node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    async for progress in from_node.admin.drain(url(to_node)):
        last = progress
    assert last.done
    assert await read_at(to_node, channel.consumer_address) == [b"1"]


ROTATION = [
    OLD,
    Nodes(secret=PREVIOUS, previous_secret=SECRET),
    BOTH,
    NEW,
]
"""The steps of a rotation in which each node always accepts every other one."""


@pytest.mark.parametrize("step", range(1, len(ROTATION)))
@pytest.mark.parametrize("order", ["source first", "target first"])
async def test_in_each_step_of_a_rotation_the_nodes_may_start_again_in_any_order(
    stack: AsyncExitStack, step: int, order: str
) -> None:
    before, after = ROTATION[step - 1], ROTATION[step]
    source, target = (after, before) if order == "source first" else (before, after)
    to_node = await start(stack, "home", target)
    from_node = await start(stack, "moving", source)
    channel = await from_node.broker.create(ANYONE)
    await from_node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    await drained(from_node, to_node)
    assert await read_at(to_node, channel.consumer_address) == [b"1"]


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        pytest.param(NONE, NEW, "set the same `nodes.secret` on both", id="source has none"),
        pytest.param(NEW, NONE, "has not proved that it has the secret", id="target has none"),
        pytest.param(NEW, OLD, "is `nodes.secret` the same on both", id="others"),
        pytest.param(BOTH, OLD, "is `nodes.secret` the same on both", id="source signs with new"),
        pytest.param(
            Nodes(secret=SECRET, open=True), OLD, "is `nodes.secret` the same", id="open, others"
        ),
    ],
)
async def test_agents_stay_where_the_secrets_are_not_the_same(
    stack: AsyncExitStack, source: Nodes, target: Nodes, why: str
) -> None:
    to_node = await start(stack, "home", target)
    from_node = await start(stack, "moving", source)
    for step in (
        from_node.admin.pipe_agent("moving", url(to_node)),
        drained(from_node, to_node),
    ):
        with pytest.raises(Unauthenticated, match=why):
            await step
    assert from_node.agents.named("moving").mode is AgentMode.MASTER
    assert to_node.agents.get("moving") is None
    await from_node.broker.create(ANYONE)


async def drained(source: App, target: App) -> None:
    async for _ in source.admin.drain(url(target)):
        pass


async def test_a_node_that_stops_hands_over_with_its_secret(stack: AsyncExitStack) -> None:
    to_node = await start(stack, "home", BOTH)
    async with AsyncExitStack() as going:
        from_node = await start(going, "moving", OLD, drain_target=url(to_node))
        channel = await from_node.broker.create(ANYONE)
        await from_node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    assert to_node.agents.named("moving").mode is AgentMode.MASTER
    assert await read_at(to_node, channel.consumer_address) == [b"1"]


async def test_a_source_asks_its_target_with_its_secret_before_a_channel_expires(
    stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "CHECK_S", 0.05)
    to_node = await start(stack, "home", NEW)
    from_node = await start(stack, "moving", NEW, channel_ttl_secs=0.2)
    channel = await from_node.broker.create(ANYONE)
    await from_node.pipes.pipe("moving", url(to_node))
    async with asyncio.timeout(WITHIN_S):
        for node in (from_node, to_node):
            while await exists(node, channel.consumer_address):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert to_node.metrics.channels_fed == 1


async def exists(node: App, address: str) -> bool:
    return (await node.broker.exists(ANYONE, [address]))[address]


class Recorder(SyncServiceServicer):
    """A target that has no secret, and keeps all that it gets. It answers as it was made to."""

    def __init__(self, answer: str | None, status: grpc.StatusCode | None = None) -> None:
        self.questions: list[pb.FindChannelsInUseRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.fed: list[pb.SyncRequest] = []
        self._answer = answer
        self._status = status

    async def ForwardEvents(self, requests: AsyncIterator[pb.SyncRequest], context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        async for request in requests:
            if not self.fed and self._status is None:
                await context.send_initial_metadata((("megaphone-sync", "1"),))
            self.fed.append(request)
        return pb.SyncReply()

    async def FindChannelsInUse(self, request: pb.FindChannelsInUseRequest, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        self.questions.append(request)
        if self._answer is not None:
            sent = self.metadata[-1]["megaphone-node"]
            await context.send_initial_metadata(
                (("megaphone-node", self._answer.format(sent=sent)),)
            )
        if self._status is not None:
            await context.abort(self._status, "as it was made to")
        return pb.FindChannelsInUseReply()


async def recording(stack: AsyncExitStack, recorder: Recorder) -> str:
    server = grpc.aio.server()
    add_SyncServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param(None, None, id="nothing"),
        pytest.param("{sent}", None, id="what it was sent"),
        pytest.param(f"v1.{'0' * 32}.{'0' * 64}", None, id="a wrong proof"),
        pytest.param("", None, id="an empty proof"),
        pytest.param(None, grpc.StatusCode.UNIMPLEMENTED, id="that it does not know the call"),
        pytest.param(None, grpc.StatusCode.UNAUTHENTICATED, id="that it refuses"),
        pytest.param(None, grpc.StatusCode.INTERNAL, id="that it has failed"),
    ],
)
async def test_a_target_that_proves_nothing_gets_no_key(
    stack: AsyncExitStack, answer: str | None, status: grpc.StatusCode | None
) -> None:
    target = Recorder(answer, status)
    target_url = await recording(stack, target)
    source = await start(stack, "moving", NEW)
    with pytest.raises(MegaphoneError):
        await source.pipes.pipe("moving", target_url)
    assert target.fed == []
    [question] = target.questions
    assert list(question.channel_ids) == []
    [metadata] = target.metadata
    assert SECRET not in str(metadata)
    assert source.agents.named("moving").mode is AgentMode.MASTER


@pytest.mark.parametrize("status", [None, grpc.StatusCode.UNIMPLEMENTED])
async def test_an_open_source_feeds_a_target_that_proves_nothing(
    stack: AsyncExitStack, status: grpc.StatusCode | None
) -> None:
    target = Recorder(None, status)
    target_url = await recording(stack, target)
    source = await start(stack, "moving", Nodes(secret=SECRET, open=True))
    await source.pipes.pipe("moving", target_url)
    async with asyncio.timeout(WITHIN_S):
        while not target.fed:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.005)
    assert target.fed[0].pipe_agent_start.agent_id == "moving"


async def test_a_source_without_a_secret_shows_nothing(stack: AsyncExitStack) -> None:
    target = Recorder(None)
    target_url = await recording(stack, target)
    source = await start(stack, "moving", NONE)
    await source.pipes.pipe("moving", target_url)
    assert all(list(question.channel_ids) == [] for question in target.questions)
    assert all("megaphone-node" not in metadata for metadata in target.metadata)
