"""Nodes with certificates: they replicate and hand over by TLS, on a port for nodes alone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from megaphone.app import App, running
from megaphone.cluster import outgoing, peer
from megaphone.core.access import ANYONE
from megaphone.errors import BadRequest, MegaphoneError, TargetUnavailable, Unauthenticated
from megaphone.model import AgentMode, NewEvent, ReadOptions
from megaphone.settings import Nodes
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceStub
from tests.support.certificates import Authority, Certificates
from tests.support.faces import OpenRead, http_face, take
from tests.support.scenes import eventually, numbers
from tests.support.settings import fast_settings

NODE = "spiffe://example.org/megaphone/node-1"
NAMES = ("spiffe://example.org/megaphone/*",)
HERE = ("127.0.0.1", "::1", "localhost", NODE)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for long for targets that are gone, or that refuse TLS."""
    monkeypatch.setattr(outgoing, "COMPLETE_S", 0.5)
    monkeypatch.setattr(peer, "CONNECT_S", 1.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def nodes(made: Certificates, **more: Any) -> Nodes:
    members: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "certificate": str(made.certificate),
        "key": str(made.key),
        "ca": str(made.authority),
        "names": NAMES,
    }
    return Nodes(**members | more)


async def start(stack: AsyncExitStack, agent: str, chosen: Nodes, **settings: Any) -> App:
    agents = {agent: AgentMode.MASTER}
    made = fast_settings(agent=agents, nodes=chosen, **settings)
    return await stack.enter_async_context(running(made))


def url(target: App, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{target.nodes_port}"


async def drained(source: App, target_url: str) -> None:
    async for _ in source.admin.drain(target_url):
        pass


async def read_at(target: App, address: str) -> list[bytes]:
    async with target.broker.read(ANYONE, address, ReadOptions(wait_s=0.0)) as reader:
        return [event.body async for batch in reader for event in batch]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_agents_move_while_clients_write_and_read(
    stack: AsyncExitStack, authority: Authority, host: str
) -> None:
    made = authority.issue(names=HERE)
    to_node = await start(stack, "home", nodes(made))
    from_node = await start(stack, "moving", nodes(made))
    source = await stack.enter_async_context(http_face(from_node))
    target = await stack.enter_async_context(http_face(to_node))
    channel = await source.create()
    got: list[int] = []

    async def read(face: Any) -> None:
        async with face.read(channel.consumer) as open_read:
            read_on: OpenRead = open_read
            async for event in read_on:
                got.append(int(event.body))

    reading = asyncio.create_task(read(source))
    for number in range(20):
        await source.write(channel.producer, "s", b"%d" % number)
    await drained(from_node, url(to_node, host))
    await reading  # ends cleanly
    for number in range(20, 40):
        await target.write(channel.producer, "s", b"%d" % number)
    async with target.read(channel.consumer) as rest:
        got += numbers(await take(rest, 40 - len(got)))
    assert got == list(range(40))


async def test_a_node_that_stops_hands_over_by_its_certificate(
    stack: AsyncExitStack, authority: Authority
) -> None:
    made = authority.issue(names=HERE)
    to_node = await start(stack, "home", nodes(made))
    async with AsyncExitStack() as going:
        only_source = nodes(made, address=None, names=())
        from_node = await start(going, "moving", only_source, drain_target=url(to_node))
        channel = await from_node.broker.create(ANYONE)
        await from_node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    assert to_node.agents.named("moving").mode is AgentMode.MASTER
    assert await read_at(to_node, channel.consumer_address) == [b"1"]


async def test_a_node_whose_certificate_has_another_name_is_refused(
    stack: AsyncExitStack, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    to_node = await start(stack, "home", nodes(authority.issue("target", names=HERE)))
    shop = authority.issue("shop", names=("127.0.0.1", "spiffe://example.org/shop"))
    from_node = await start(stack, "moving", nodes(shop))
    with pytest.raises(Unauthenticated, match=r"none of the names in `nodes\.names`"):
        await drained(from_node, url(to_node))
    assert to_node.agents.get("moving") is None
    assert from_node.agents.named("moving").mode is AgentMode.MASTER
    refused = [one for one in caplog.records if "refused calls of other nodes" in one.message]
    assert [one.levelno for one in refused] == [logging.WARNING]


async def test_a_node_of_another_authority_is_refused(
    stack: AsyncExitStack, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue(names=HERE)
    to_node = await start(stack, "home", nodes(authority.issue(names=HERE)))
    believes = nodes(other, ca=str(authority.file))  # so that the target must refuse
    from_node = await start(stack, "moving", believes)
    with pytest.raises(TargetUnavailable):
        await drained(from_node, url(to_node))
    assert to_node.agents.get("moving") is None


async def test_a_target_that_is_not_the_one_that_was_named_gets_no_key(
    stack: AsyncExitStack, authority: Authority
) -> None:
    """Its certificate is that of a node, but not of the host that was named."""
    other_host = authority.issue("other", names=("node-2.example.org", NODE))
    to_node = await start(stack, "home", nodes(other_host))
    from_node = await start(stack, "moving", nodes(authority.issue(names=HERE)))
    with pytest.raises(TargetUnavailable, match="do not agree on TLS"):
        await drained(from_node, url(to_node))
    assert to_node.agents.get("moving") is None


async def test_a_stranger_without_a_certificate_cannot_connect(
    stack: AsyncExitStack, authority: Authority
) -> None:
    node = await start(stack, "home", nodes(authority.issue(names=HERE)))
    trusted = grpc.ssl_channel_credentials(authority.file.read_bytes())
    for channel in (
        grpc.aio.secure_channel(f"127.0.0.1:{node.nodes_port}", trusted),
        grpc.aio.insecure_channel(f"127.0.0.1:{node.nodes_port}"),
    ):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await SyncServiceStub(channel).FindChannelsInUse(pb.FindChannelsInUseRequest())
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_service_is_not_on_the_port_for_clients(
    stack: AsyncExitStack, authority: Authority
) -> None:
    node = await start(stack, "home", nodes(authority.issue(names=HERE)))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await SyncServiceStub(channel).FindChannelsInUse(pb.FindChannelsInUseRequest())
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
    other = await start(stack, "moving", Nodes())
    with pytest.raises(MegaphoneError):
        await drained(other, f"http://127.0.0.1:{node.grpc_port}")
    assert node.agents.get("moving") is None


async def test_a_node_without_a_certificate_cannot_call_one(stack: AsyncExitStack) -> None:
    node = await start(stack, "moving", Nodes())
    with pytest.raises(BadRequest, match=r"set `nodes\.certificate`"):
        await node.pipes.pipe("moving", "https://127.0.0.1:1")


async def test_a_pipe_outlives_new_certificates_and_names(
    stack: AsyncExitStack, authority: Authority
) -> None:
    made = authority.issue(names=HERE)
    to_node = await start(stack, "home", nodes(made))
    from_node = await start(stack, "moving", nodes(made))
    channel = await from_node.broker.create(ANYONE)
    await from_node.pipes.pipe("moving", url(to_node))
    authority.issue(names=("127.0.0.1", "spiffe://example.org/broker/1"))
    renamed = replace(nodes(made), names=("spiffe://example.org/broker/*",))
    for node in (to_node, from_node):
        chosen = replace(node.reloader.settings, nodes=renamed)
        assert await node.reloader.reload(lambda present, chosen=chosen: chosen)  # type: ignore[misc]
        assert node.reloader.settings.nodes.names == renamed.names

    async def has_arrived() -> bool:
        return to_node.metrics.messages_fed == 1

    await from_node.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    await eventually(has_arrived)
    third = await start(stack, "third", nodes(made, names=renamed.names))
    await drained(third, url(to_node))
    assert to_node.agents.named("third").mode is AgentMode.MASTER
