"""Three nodes with one store behind Debian's nginx, with the configuration of deploy/nginx-shared,
and behind Envoy, with that of deploy/envoy-shared.

And nodes of both kinds behind deploy/nginx, while channels move from the one kind to the other.
"""

import asyncio
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from megaphone_api import sync_pb2
from megaphone_api.sync_pb2_grpc import SyncServiceStub
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.deploy.test_nginx import WITHIN_S, call, creates_only_for_pages_of, lines
from tests.support.envoy import envoy, needs_envoy
from tests.support.nginx import (
    SHARED,
    Proxy,
    needs_nginx,
    nginx,
    shared_nodes,
    static_nodes,
)
from tests.support.ports import free_port
from tests.support.process import BrokerProcess, broker_process
from tests.support.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.group("nodes behind nginx")

NODES = 3
LEAST = "random two least_conn;"
PROXIES = [
    pytest.param("nginx", marks=needs_nginx),
    pytest.param("nginx by agent", marks=needs_nginx),
    pytest.param("envoy", marks=needs_envoy),
]
CHANNEL_S = 8
"""How long a channel of an old node lives after its last use."""
LEFT_WITHIN_S = 30
DOCS = (Path(__file__).parents[2] / "docs" / "store.md").read_text()


@dataclass
class Cluster:
    nodes: list[BrokerProcess]
    proxy: Proxy
    store: RedisServer
    kind: str
    """Which of `PROXIES` the proxy is."""


@contextmanager
def cluster(folder: Path, kind: str) -> Iterator[Cluster]:
    """Run three nodes behind a proxy of one of `PROXIES`."""
    with ExitStack() as stack:
        store = stack.enter_context(redis_server())
        nodes = []
        for number in range(NODES):
            (folder / str(number)).mkdir()
            nodes.append(
                stack.enter_context(broker_process(folder / str(number), store=store.text_url))
            )
        ports = [(node.http_port, node.grpc_port) for node in nodes]
        if kind == "envoy":
            proxy = stack.enter_context(envoy(folder / "envoy", ports))
        else:
            listed = shared_nodes(ports) if kind == "nginx" else nodes_by_agent(ports)
            proxy = stack.enter_context(nginx(folder / "nginx", listed, SHARED))
        yield Cluster(nodes, proxy, store, kind)


def nodes_by_agent(ports: list[tuple[int, int]]) -> str:
    """Return the nodes.conf of nginx with the choice that its comment names."""
    listed = shared_nodes(ports)
    [other] = re.findall(r"^# +(hash .*;)$", listed, re.MULTILINE)
    assert listed.count(f"\n    {LEAST}\n") == 2
    return listed.replace(f"\n    {LEAST}\n", f"\n    {other}\n")


@pytest.fixture(scope="module", params=PROXIES)
def lasting(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("shared"), request.param) as nodes:
        yield nodes


@pytest.fixture
async def http(lasting: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(lasting.proxy.url) as session:
        yield session


async def test_any_node_serves_any_channel(http: aiohttp.ClientSession) -> None:
    agents: set[str] = set()
    for number in itertools.count():
        status, channel = await call(http, "POST", "/create")
        assert status == 200
        agents.add(channel["producerAddress"].partition(".")[0])
        path = f"/write/{channel['producerAddress']}/s"
        assert (await call(http, "POST", path, json=number))[0] == 201
        [event] = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0")
        assert event["body"] == number
        if number > 10 and len(agents) == NODES:  # so every node has made some
            return


async def test_the_calls_of_an_agent_go_to_one_node(
    lasting: Cluster, http: aiohttp.ClientSession
) -> None:
    if lasting.kind == "nginx":
        pytest.skip("calls go to any node")

    async def received() -> list[float]:
        return [await counter(node.url, "megaphone_messages_received") for node in lasting.nodes]

    for _ in range(3):
        _, channel = await call(http, "POST", "/create")
        before = await received()
        for number in range(5):
            path = f"/write/{channel['producerAddress']}/s"
            assert (await call(http, "POST", path, json=number))[0] == 201
        assert sorted(after - had for after, had in zip(await received(), before, strict=True)) == [
            0,
            0,
            5,
        ]


async def counter(url: str, name: str) -> float:
    async with aiohttp.ClientSession(url) as node, node.get("/metrics") as answer:
        [line] = re.findall(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)
    return float(line)


async def test_a_batch_may_be_for_channels_of_several_agents(http: aiohttp.ClientSession) -> None:
    made = [(await call(http, "POST", "/create"))[1] for _ in range(6)]
    producers = [channel["producerAddress"] for channel in made]
    batch = {"channels": producers, "messages": [{"streamId": "s", "body": 1}]}
    status, answer = await call(http, "POST", "/write-batch", json=batch)
    assert (status, answer["failures"]) == (201, [])
    _, answer = await call(http, "POST", "/channelsExists", json={"channels": producers})
    assert answer["channels"] == dict.fromkeys(producers, True)


async def test_only_pages_of_the_proxy_may_create(
    lasting: Cluster, http: aiohttp.ClientSession
) -> None:
    await creates_only_for_pages_of(lasting.proxy, http)


async def test_events_come_while_the_read_is_open(http: aiohttp.ClientSession) -> None:
    _, channel = await call(http, "POST", "/create")
    for accept in ("application/x-ndjson", "text/event-stream"):
        path = f"/read/{channel['consumerAddress']}"
        async with asyncio.timeout(WITHIN_S), http.get(path, headers={"Accept": accept}) as read:
            await call(http, "POST", f"/write/{channel['producerAddress']}/s", json=accept)
            async for line in read.content:
                if accept.encode() in line:
                    break


async def test_the_same_over_grpc(lasting: Cluster) -> None:
    async with grpc.aio.insecure_channel(lasting.proxy.grpc_target) as connection:
        stub = ChannelServiceStub(connection)
        for number in range(10):
            channel = await stub.CreateChannel(pb.CreateChannelRequest())
            read = stub.Read(pb.ReadRequest(consumer_address=channel.consumer_address))
            body = json.dumps(number).encode()
            await stub.Write(
                pb.WriteRequest(producer_address=channel.producer_address, stream_id="s", body=body)
            )
            async for response in read:
                if response.events:
                    assert response.events[0].body == body
                    break
            read.cancel()


@pytest.mark.parametrize(
    "path", ["/metrics", "/agents", "/agents/x", "/readyz/create", "/vagent/list", "/", "/docs"]
)
async def test_what_is_not_for_clients_cannot_be_reached(
    http: aiohttp.ClientSession, path: str
) -> None:
    status, answer = await call(http, "GET", path)
    assert (status, answer["code"]) == (404, "NOT_FOUND")


async def test_nodes_cannot_be_reached_by_those_who_say_they_are_nodes(lasting: Cluster) -> None:
    async with grpc.aio.insecure_channel(lasting.proxy.grpc_target) as connection:
        stub = SyncServiceStub(connection)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.FindChannelsInUse(sync_pb2.FindChannelsInUseRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_no_address_is_logged(lasting: Cluster, http: aiohttp.ClientSession) -> None:
    _, channel = await call(http, "POST", "/create")
    await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0")
    assert channel["consumerAddress"].split(".")[1] not in lasting.proxy.log()


@pytest.mark.parametrize("kind", [PROXIES[0], PROXIES[2]])
async def test_calls_go_on_when_a_node_dies(tmp_path: Path, kind: str) -> None:
    with cluster(tmp_path, kind) as nodes:
        async with aiohttp.ClientSession(nodes.proxy.url) as http:
            made = [(await call(http, "POST", "/create"))[1] for _ in range(9)]
            nodes.nodes[0].process.kill()
            nodes.nodes[0].process.wait()
            for channel in made:
                headers = {"Idempotency-Key": "k"}
                path = f"/write/{channel['producerAddress']}/s"
                status, _ = await call(http, "POST", path, json=1, headers=headers)
                if status == 502:  # the call was under way: its client repeats it
                    status, _ = await call(http, "POST", path, json=1, headers=headers)
                assert status == 201
                [event] = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0")
                assert event["body"] == 1


@needs_nginx
async def test_nodes_with_memory_are_left_without_losing_a_channel(tmp_path: Path) -> None:
    """What docs/store.md says about moving from nodes with memory to nodes with a store."""
    hosts = {"old": "127.0.0.31", "new-1": "127.0.0.32", "new-2": "127.0.0.33"}
    http_port, grpc_port = free_port(), free_port()

    def listed(*names: str) -> str:
        return static_nodes([hosts[name] for name in names], http_port, grpc_port)

    with ExitStack() as stack:
        store = stack.enter_context(redis_server())

        def start(name: str, **settings: Any) -> BrokerProcess:
            (tmp_path / name).mkdir()
            ports = {
                "address": f"{hosts[name]}:{http_port}",
                "grpc_address": f"{hosts[name]}:{grpc_port}",
            }
            return stack.enter_context(
                broker_process(
                    tmp_path / name, agent=name, agent_warmup_secs=0, **ports, **settings
                )
            )

        old = start("old", channel_ttl_secs=CHANNEL_S)
        proxy = stack.enter_context(nginx(tmp_path / "nginx", listed("old")))
        async with aiohttp.ClientSession(proxy.url) as http:
            _, channel = await call(http, "POST", "/create")
            assert channel["producerAddress"].startswith("old.")
            write = f"/write/{channel['producerAddress']}/s"
            read = f"/read/{channel['consumerAddress']}"
            assert (await call(http, "POST", write, json=0))[0] == 201
            # 1. New nodes join behind the same proxy, and make all new channels.
            for name in ("new-1", "new-2"):
                start(name, store=store.text_url)
            _use(proxy, _with_takers(listed(*hosts), [hosts["new-1"], hosts["new-2"]], http_port))
            await _until_made_by(http, {"new-1", "new-2"})
            made = [(await call(http, "POST", "/create"))[1] for _ in range(10)]
            assert {one["producerAddress"].partition(".")[0] for one in made} <= {"new-1", "new-2"}
            # 2. Channels of both kinds are served.
            assert (await call(http, "POST", write, json=1))[0] == 201
            assert [event["body"] for event in await lines(http, f"{read}?wait_ms=0")] == [0, 1]
            for one in made:
                path = f"/write/{one['producerAddress']}/s"
                assert (await call(http, "POST", path, json=2))[0] == 201
                [event] = await lines(http, f"/read/{one['consumerAddress']}?wait_ms=0")
                assert event["body"] == 2
            # 3. When the channels of the old node have ended, it is left.
            async with asyncio.timeout(LEFT_WITHIN_S):
                while await _channels_of(old, hosts["old"]):
                    pass
            old.process.send_signal(signal.SIGTERM)
            _use(proxy, listed("new-1", "new-2"))
            assert await asyncio.to_thread(old.process.wait) == 0
            async with asyncio.timeout(WITHIN_S):
                while (await call(http, "POST", "/create"))[0] != 200:
                    pass
            for one in made:
                path = f"/write/{one['producerAddress']}/s"
                assert (await call(http, "POST", path, json=3))[0] == 201


def _with_takers(nodes: str, takers: list[str], port: int) -> str:
    """Return a nodes.conf in which only some nodes make channels, as the documents say."""
    [block] = re.findall(r"```nginx\n(.*?)```", DOCS, re.DOTALL)
    kept = [line for line in block.splitlines() if "server " not in line]
    servers = [f"    server {host}:{port} max_fails=0;" for host in takers]
    first = next(i for i, line in enumerate(block.splitlines()) if "server " in line)
    block = "\n".join(kept[:first] + servers + kept[first:])
    before = re.sub(r'map "" \$megaphone_takers \{.*?\}\n?', "", nodes, flags=re.DOTALL)
    assert before != nodes
    return f"{before}\n{block}\n"


def _use(proxy: Proxy, nodes: str) -> None:
    """Let nginx read another list of nodes."""
    (proxy.folder / "nodes.conf").write_text(nodes)
    proxy.process.send_signal(signal.SIGHUP)


async def _until_made_by(http: aiohttp.ClientSession, agents: set[str]) -> None:
    """Wait until nginx has read its new list: then calls with new connections say so."""
    async with asyncio.timeout(WITHIN_S):
        in_a_row = 0
        while in_a_row < 10:
            headers = {"Connection": "close"}
            _, channel = await call(http, "POST", "/create", headers=headers)
            is_new = channel["producerAddress"].partition(".")[0] in agents
            in_a_row = in_a_row + 1 if is_new else 0


async def _channels_of(node: BrokerProcess, host: str) -> float:
    url = f"http://{host}:{node.http_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("megaphone_channels ")
    )
