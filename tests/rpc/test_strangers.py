"""A stranger at the gRPC port may send anything to SyncService, and changes nothing.

On a node that accepts no strangers, nothing at all changes. A node that does accept them, because
it is open or on loopback without a secret, may get agents from them, but what it had before stays.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import grpc
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from megaphone.app import App, running
from megaphone.cluster.node_secret import NodeSigner
from megaphone.model import AgentMode, ReadOptions
from megaphone.settings import Nodes
from megaphone_api import sync_pb2 as pb
from tests.support.faces import Created, GrpcFace, grpc_face, read_all
from tests.support.settings import certificates, fast_settings

SECRET = "the-secret-that-no-stranger-has-0123"
EVERYWHERE = "0.0.0.0:0"


def nodes_with_certificates() -> Nodes:
    made = certificates()
    return Nodes(
        address="127.0.0.1:0",
        certificate=str(made.certificate),
        key=str(made.key),
        ca=str(made.authority),
        names=("spiffe://example.org/node/*",),
    )


CLOSED: dict[str, dict[str, Any]] = {
    "public": {"grpc_address": EVERYWHERE},
    "public with a secret": {"grpc_address": EVERYWHERE, "nodes": Nodes(secret=SECRET)},
    "loopback with a secret": {"nodes": Nodes(secret=SECRET)},
    "certificates": {"nodes": nodes_with_certificates()},
}
ACCEPTING: dict[str, dict[str, Any]] = {
    "loopback": {},
    "open": {"grpc_address": EVERYWHERE, "nodes": Nodes(secret=SECRET, open=True)},
}
MODES = CLOSED | ACCEPTING


def refusal_in(mode: str) -> grpc.StatusCode:
    """Return the status of a stranger's call. With certificates the service has another port."""
    is_elsewhere = mode == "certificates"
    return grpc.StatusCode.UNIMPLEMENTED if is_elsewhere else grpc.StatusCode.UNAUTHENTICATED


FORWARD = "/megaphone.SyncService/ForwardEvents"
FIND = "/megaphone.SyncService/FindChannelsInUse"
OWN = "own"
CUT_SHORT = grpc.StatusCode.INTERNAL
"""What a client of gRPC may report if the node refuses a call while the client still sends it."""
READY = ReadOptions(wait_s=0.0)
WITHIN_S = 10.0
MAX_REPLICAS = 20
MAX_BYTES = 20_000
AT_ONCE = 200

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(slots=True)
class Node:
    """A broker with an agent and a channel of its own, and a stranger who knows their names."""

    app: App
    face: GrpcFace
    connection: grpc.aio.Channel
    channel: Created
    is_closed: bool
    refusal: grpc.StatusCode
    """What a stranger gets from a node that accepts none."""
    statuses: set[grpc.StatusCode] = field(default_factory=set)

    async def send(self, method: str, messages: Sequence[bytes], **metadata: str) -> None:
        """Call a method of SyncService as bytes, and keep the status of the end."""
        raw: Any = self.connection.stream_unary(method)
        call = raw(
            iter(messages),
            metadata=tuple((name.replace("_", "-"), text) for name, text in metadata.items()),
            timeout=WITHIN_S,
        )
        answer = await asyncio.gather(call, return_exceptions=True)
        self.statuses.add(await call.code())
        assert SECRET not in repr(answer)

    async def state(self) -> object:
        """Return everything that a call of a stranger could change."""
        counts = {
            line
            for line in self.app.metrics.render().decode().splitlines()
            if line.startswith(("megaphone_channel_", "megaphone_messages_"))
        }
        return await self.app.admin.list_agents(), counts

    async def check_unchanged(self, before: object) -> None:
        if self.is_closed:
            assert self.statuses <= {self.refusal, CUT_SHORT}
            assert await self.state() == before
        self.statuses.clear()
        [own] = [one for one in await self.app.admin.list_agents() if one.name == OWN]
        assert own.mode is AgentMode.MASTER
        assert await self.face.exists([self.channel.consumer]) == {self.channel.consumer: True}
        event_id = await self.face.write(self.channel.producer, "s", b'"mine"')
        [event] = await read_all(self.face, self.channel.consumer, READY)
        assert (event.event_id, event.body) == (event_id, b'"mine"')


@asynccontextmanager
async def node_in(mode: str) -> AsyncIterator[Node]:
    changes = {"agent": {OWN: AgentMode.MASTER}, "max_replicas": MAX_REPLICAS}
    changes |= {"max_body_bytes": MAX_BYTES, "poll_duration_millis": 100}
    async with (
        running(fast_settings(**changes | MODES[mode])) as app,
        grpc_face(app) as face,
        grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection,
    ):
        own = await face.create()
        yield Node(app, face, connection, own, mode in CLOSED, refusal_in(mode))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODES)
async def node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    async with node_in(request.param) as one:
        yield one


def messages_about(agent: str, address: str) -> list[pb.SyncRequest]:
    """Return a message of each kind."""
    event_id = "e" * 23
    return [
        pb.SyncRequest(pipe_agent_start=pb.PipeAgentStart(agent_id=agent, key=bytes(32))),
        pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id=agent)),
        pb.SyncRequest(channel_created=pb.ChannelCreated(channel_id=address, capacity=1)),
        pb.SyncRequest(channel_disposed=pb.ChannelDisposed(channel_id=address)),
        pb.SyncRequest(
            event_received=pb.EventReceived(
                channel_id=address, stream_id="s", event_id=event_id, json_payload='"evil"'
            )
        ),
        pb.SyncRequest(channel_position=pb.ChannelPosition(channel_id=address, has_gap=True)),
        pb.SyncRequest(key_taken=pb.KeyTaken(channel_id=address, request_id="k")),
        pb.SyncRequest(
            events_forgotten=pb.EventsForgotten(channel_id=address, event_id=event_id, sequence=9)
        ),
        pb.SyncRequest(),
    ]


async def test_there_is_a_message_of_each_kind() -> None:
    kinds = [one.WhichOneof("sync_event") for one in messages_about("a", "b")]
    assert set(kinds) == {*(one.name for one in KINDS), None}


async def test_every_order_of_two_messages_leaves_what_the_node_had(node: Node) -> None:
    before = await node.state()
    kinds = [one.SerializeToString() for one in messages_about(OWN, node.channel.consumer)]
    begun = messages_about("blue", node.channel.consumer)[0].SerializeToString()
    for orders in (product(kinds, repeat=1), product(kinds, repeat=2)):
        await in_turn(node, orders)
    await in_turn(node, product([begun], kinds, kinds))
    await node.check_unchanged(before)


async def in_turn(node: Node, orders: Iterator[Sequence[bytes]]) -> None:
    for messages in orders:
        await node.send(FORWARD, messages)


KINDS = tuple(pb.SyncRequest.DESCRIPTOR.oneofs_by_name["sync_event"].fields)
TEXTS = st.one_of(
    st.sampled_from([OWN, "blue", "", "own.", f"{OWN}.{'a' * 50}.1", "-", "../own", "own\n"]),
    st.text(max_size=40),
)
NUMBERS = st.sampled_from([0, 1, 2**31, 2**32 - 1])


@st.composite
def any_message(draw: st.DrawFn) -> pb.SyncRequest:
    """Return a message of any kind, whose fields are anything; `$` stands for the own channel."""
    message = pb.SyncRequest()
    kind = draw(st.sampled_from(KINDS))
    content = getattr(message, kind.name)
    content.SetInParent()
    for one in content.DESCRIPTOR.fields:
        if one.cpp_type == one.CPPTYPE_STRING:
            text = draw(st.one_of(st.just("$"), TEXTS))
            is_bytes = one.type == one.TYPE_BYTES
            setattr(content, one.name, text.encode() if is_bytes else text)
        elif one.cpp_type == one.CPPTYPE_BOOL:
            setattr(content, one.name, draw(st.booleans()))
        elif one.cpp_type != one.CPPTYPE_MESSAGE:
            setattr(content, one.name, draw(NUMBERS))
    return message


def about(message: pb.SyncRequest, channel: Created) -> bytes:
    """Return the bytes of a message in which `$` is replaced by the address of a channel."""
    content = getattr(message, message.WhichOneof("sync_event") or "")
    if getattr(content, "channel_id", "") == "$":
        content.channel_id = channel.consumer
    return message.SerializeToString()


@settings(max_examples=40)
@given(
    st.lists(st.one_of(any_message(), st.binary(max_size=60)), max_size=6),
    st.sampled_from([FORWARD, FORWARD, FIND, "/megaphone.SyncService/Other"]),
    st.sampled_from(["", "v1.1.2.3", f"v1.{10**9}.{'0' * 32}.{'0' * 64}", "x" * 300]),
)
async def test_nothing_that_a_stranger_sends_changes_what_the_node_had(
    node: Node, messages: list[pb.SyncRequest | bytes], method: str, proof: str
) -> None:
    before = await node.state()
    raw = [one if isinstance(one, bytes) else about(one, node.channel) for one in messages]
    if method == FIND and not raw:  # grpc would wait for the message until the call has timed out
        raw = [b""]
    await node.send(method, raw, **{"megaphone_node": proof} if proof else {})
    if node.is_closed and method.endswith("Other"):
        assert node.statuses <= {grpc.StatusCode.UNIMPLEMENTED, CUT_SHORT}
        node.statuses.clear()
    await node.check_unchanged(before)


async def test_a_message_that_is_too_large_changes_nothing(node: Node) -> None:
    before = await node.state()
    start = messages_about("large", node.channel.consumer)[0].SerializeToString()
    for size in (MAX_BYTES + 16_385, 10 * MAX_BYTES):
        event = pb.EventReceived(channel_id=node.channel.consumer, json_payload=f'"{"x" * size}"')
        large = pb.SyncRequest(event_received=event).SerializeToString()
        await node.send(FORWARD, [large])
        await node.send(FORWARD, [start, large])
    await node.check_unchanged(before)


async def test_many_streams_at_once_change_nothing(node: Node) -> None:
    before = await node.state()
    starts = [
        messages_about(f"many-{number}", "x")[0].SerializeToString() for number in range(AT_ONCE)
    ]
    await asyncio.gather(*(node.send(FORWARD, [start]) for start in starts))
    agents = await node.app.admin.list_agents()
    assert len(agents) <= 1 + MAX_REPLICAS
    await node.check_unchanged(before)


async def test_a_stranger_learns_of_no_channel(node: Node) -> None:
    """Even if it knows an address, a closed node does not say whether the channel is in use."""
    before = await node.state()
    request = pb.FindChannelsInUseRequest(channel_ids=[node.channel.consumer])
    await node.send(FIND, [request.SerializeToString()])
    await node.check_unchanged(before)


@pytest.mark.parametrize("mode", ["public with a secret", "loopback with a secret"])
async def test_a_proof_of_another_secret_or_of_another_call_opens_nothing(mode: str) -> None:
    async with node_in(mode) as node:
        before = await node.state()
        other = NodeSigner("another-secret-altogether-0123456789")
        own = NodeSigner(SECRET)
        messages = [one.SerializeToString() for one in messages_about("blue", "x")]
        for text in (
            other.prove(FIND, time.time()).text,
            other.prove(FORWARD, time.time()).text,
            own.prove(FIND, time.time()).text,
            own.prove(FORWARD, time.time(), "another-target").text,
            own.prove(FORWARD, 0).text,
        ):
            await node.send(FORWARD, messages, megaphone_node=text)
        await node.check_unchanged(before)
