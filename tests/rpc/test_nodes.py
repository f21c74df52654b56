"""If a node secret is set, only nodes that prove to have it may call SyncService."""

import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from megaphone.app import App, running
from megaphone.cluster.node_secret import GREETING, NodeSigner
from megaphone.errors import MegaphoneError, Unauthenticated
from megaphone.model import AgentMode
from megaphone.settings import Nodes
from megaphone_api import sync_pb2 as pb
from tests.support.faces import GrpcFace, grpc_error
from tests.support.settings import fast_settings

SECRET = "new-secret-of-the-nodes-0123456789"
PREVIOUS = "old-secret-of-the-nodes-0123456789"
OTHER = "another-secret-altogether-0123456789"
FORWARD = "/megaphone.SyncService/ForwardEvents"
METHODS = [GREETING, FORWARD]
START = pb.SyncRequest(pipe_agent_start=pb.PipeAgentStart(agent_id="blue", key=bytes(32)))
END = pb.SyncRequest(pipe_agent_end=pb.PipeAgentEnd(agent_id="blue"))


@pytest.fixture
async def node() -> AsyncIterator[App]:
    nodes = Nodes(secret=SECRET, previous_secret=PREVIOUS)
    async with running(fast_settings(nodes=nodes)) as app:
        yield app


@pytest.fixture
async def connection(node: App) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as channel:
        yield channel


class Caller:
    """Calls SyncService with any proof."""

    def __init__(self, connection: grpc.aio.Channel) -> None:
        self._connection = connection

    async def call(self, method: str, proof: str | None, *messages: bytes) -> str | None:
        """Returns: the proof of the node in its answer. Raises: MegaphoneError."""
        raw: Any = self._connection.stream_unary(method)
        shown = () if proof is None else (("megaphone-node", proof),)
        call = raw(iter(messages), metadata=shown)
        try:
            await call
        except grpc.aio.AioRpcError as failed:
            raise grpc_error(failed) from None
        return dict(await call.initial_metadata()).get("megaphone-node")

    async def refusal(self, method: str, proof: str | None, *messages: bytes) -> str:
        with pytest.raises(Unauthenticated) as raised:
            await self.call(method, proof, *messages)
        return str(raised.value)

    async def target_id(self, secret: str = SECRET) -> str:
        signer = NodeSigner(secret)
        greeting = signer.prove(GREETING, time.time())
        answer = await self.call(GREETING, greeting.text, b"")
        target_id = signer.target_of(greeting, answer)
        assert target_id is not None
        return target_id

    async def proof(self, method: str, secret: str = SECRET, age_s: float = 0.0) -> str:
        target_id = "" if method == GREETING else await self.target_id()
        return NodeSigner(secret).prove(method, time.time() - age_s, target_id).text


@pytest.fixture
def caller(connection: grpc.aio.Channel) -> Caller:
    return Caller(connection)


def feed() -> list[bytes]:
    return [START.SerializeToString(), END.SerializeToString()]


@pytest.mark.parametrize("secret", [SECRET, PREVIOUS])
async def test_a_node_with_the_secret_feeds_this_one(
    node: App, caller: Caller, secret: str
) -> None:
    assert await caller.target_id(secret) == await caller.target_id(SECRET)
    await caller.call(FORWARD, await caller.proof(FORWARD, secret), *feed())
    assert node.agents.named("blue").mode is AgentMode.MASTER


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_without_a_proof_is_refused(node: App, caller: Caller, method: str) -> None:
    assert "set the same `nodes.secret` on both" in await caller.refusal(method, None, *feed())
    assert node.agents.get("blue") is None


@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_with_another_secret_is_refused(
    node: App, caller: Caller, method: str
) -> None:
    proof = await caller.proof(method, OTHER)
    assert "is `nodes.secret` the same" in await caller.refusal(method, proof, *feed())
    assert node.agents.get("blue") is None


@pytest.mark.parametrize("age_s", [-70, 70])
@pytest.mark.parametrize("method", METHODS)
async def test_a_proof_of_another_time_is_refused(
    node: App, caller: Caller, method: str, age_s: float
) -> None:
    proof = await caller.proof(method, age_s=age_s)
    assert "clocks" in await caller.refusal(method, proof, *feed())
    assert node.agents.get("blue") is None


async def test_a_proof_that_was_used_is_refused(node: App, caller: Caller) -> None:
    proof = await caller.proof(FORWARD)
    await caller.call(FORWARD, proof, *feed())
    node.agents.remove("blue")
    assert "used before" in await caller.refusal(FORWARD, proof, *feed())
    assert node.agents.get("blue") is None


async def test_a_proof_of_another_method_is_refused(node: App, caller: Caller) -> None:
    await caller.refusal(FORWARD, await caller.proof(GREETING), *feed())
    await caller.refusal(GREETING, await caller.proof(FORWARD), b"")
    assert node.agents.get("blue") is None


async def test_a_proof_for_another_node_is_refused(node: App, caller: Caller) -> None:
    async with (
        running(fast_settings(nodes=Nodes(secret=SECRET))) as other,
        grpc.aio.insecure_channel(f"127.0.0.1:{other.grpc_port}") as connection,
    ):
        proof = await Caller(connection).proof(FORWARD)
    await caller.refusal(FORWARD, proof, *feed())
    assert node.agents.get("blue") is None


async def test_the_answer_of_a_node_is_no_proof(caller: Caller) -> None:
    greeting = NodeSigner(SECRET).prove(GREETING, time.time())
    answer = await caller.call(GREETING, greeting.text, b"")
    for method in METHODS:
        await caller.refusal(method, answer, b"")


@pytest.mark.parametrize("message", [b"\xff" * 100, bytes(5_000_000)], ids=["junk", "large"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_caller_is_refused_before_its_message_is_read(
    caller: Caller, method: str, message: bytes
) -> None:
    assert "nodes.secret" in await caller.refusal(method, None, message)


async def test_clients_need_no_proof(connection: grpc.aio.Channel) -> None:
    face = GrpcFace(connection)
    channel = await face.create()
    await face.write(channel.producer, "s", b"1")
    assert await face.exists([channel.consumer]) == {channel.consumer: True}


@pytest.mark.parametrize("method", METHODS)
async def test_an_open_node_asks_for_no_proof_but_refuses_a_wrong_one(method: str) -> None:
    nodes = Nodes(secret=SECRET, open=True)
    async with (
        running(fast_settings(nodes=nodes)) as node,
        grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection,
    ):
        caller = Caller(connection)
        await caller.refusal(method, await caller.proof(method, OTHER), b"")
        messages = feed() if method == FORWARD else [b""]
        assert await caller.call(method, None, *messages) is None


async def test_a_node_on_loopback_without_a_secret_asks_for_no_proof(app: App) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
        caller = Caller(connection)
        proof = NodeSigner(SECRET).prove(GREETING, time.time()).text
        assert await caller.call(GREETING, proof, b"") is None
        await caller.call(FORWARD, None, *feed())
    assert app.agents.named("blue").mode is AgentMode.MASTER


async def test_refused_calls_are_logged_once_a_minute(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        await caller.refusal(GREETING, None, b"")
    lines = [one.getMessage() for one in caplog.records if "refused calls" in one.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(
        "refused calls of other nodes: 1; the last error: the target accepts"
    )


async def test_neither_secrets_nor_proofs_are_logged_or_sent(
    node: App, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "megaphone")
    proofs = [await caller.proof(FORWARD, secret) for secret in (SECRET, OTHER)]
    texts = []
    for proof in (*proofs, *proofs, "v1.nonsense"):
        try:
            await caller.call(FORWARD, proof, *feed())
        except MegaphoneError as error:
            texts.append(str(error))
    texts.append(caplog.text)
    for secret in (SECRET, PREVIOUS, *proofs, *(part for p in proofs for part in p.split(".")[2:])):
        assert not any(secret in text for text in texts)
