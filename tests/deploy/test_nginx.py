"""What leads where: three nodes behind Debian's nginx with the configuration of deploy/nginx."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from yarl import URL

from megaphone.access.tokens import digest_of
from megaphone_api import sync_pb2
from megaphone_api.sync_pb2_grpc import SyncServiceStub
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from megaphone_client import Megaphone
from tests.support.name_server import name_server
from tests.support.nginx import (
    CONFIGURATION,
    Proxy,
    dns_nodes,
    kubernetes_nodes,
    needs_nginx,
    nginx,
    static_nodes,
)
from tests.support.ports import free_port
from tests.support.process import BrokerProcess, broker_process
from tests.support.scenes import eventually

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

pytestmark = [needs_nginx, pytest.mark.group("nodes behind nginx")]

HOSTS = {"n1": "127.0.0.21", "n2": "127.0.0.22", "n3": "127.0.0.23"}
SECRET = "a" * 50
TOKEN, READERS_TOKEN = "mgp_" + "s" * 43, "mgp_" + "r" * 43
DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"
WITHIN_S = 10.0


@dataclass
class Cluster:
    nodes: dict[str, BrokerProcess]
    http_port: int
    grpc_port: int
    folder: Path
    proxy: Proxy

    def target(self, agent: str) -> str:
        return f"http://{HOSTS[agent]}:{self.grpc_port}"


@contextmanager
def cluster(folder: Path, **settings: Any) -> Iterator[Cluster]:
    """Three nodes, each with an agent of its name, behind nginx that has them in a list."""
    http_port, grpc_port = free_port(), free_port()
    with ExitStack() as stack:
        nodes = {}
        for agent, host in HOSTS.items():
            (folder / agent).mkdir()
            nodes[agent] = stack.enter_context(
                broker_process(
                    folder / agent,
                    agent=agent,
                    agent_warmup_secs=0,
                    address=f"{host}:{http_port}",
                    grpc_address=f"{host}:{grpc_port}",
                    **settings,
                )
            )
        listed = static_nodes(list(HOSTS.values()), http_port, grpc_port)
        proxy = stack.enter_context(nginx(folder / "nginx", listed))
        yield Cluster(nodes, http_port, grpc_port, folder, proxy)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    auth: dict[str, object] = {
        "auth.require": "dispose",
        "auth.tokens.shop.sha256": digest_of(TOKEN),
        "auth.tokens.shop.actions": "dispose",
        "auth.tokens.reader.sha256": digest_of(READERS_TOKEN),
        "auth.tokens.reader.actions": "read",
    }
    with cluster(tmp_path_factory.mktemp("lasting"), **auth) as nodes:
        yield nodes


@pytest.fixture
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """The nodes that most tests share, or some of its own for a test that ends them."""
    if request.node.get_closest_marker("ends_nodes") is None:
        yield request.getfixturevalue("lasting")
        return
    with cluster(tmp_path) as own:
        yield own


@pytest.fixture
async def http(nodes: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(nodes.proxy.url) as session:
        yield session


@pytest.fixture
async def connection(nodes: Cluster) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(nodes.proxy.grpc_target) as connection:
        yield connection


@pytest.fixture
def stub(connection: grpc.aio.Channel) -> "ChannelServiceAsyncStub":
    return ChannelServiceStub(connection)


async def call(
    http: aiohttp.ClientSession, method: str, path: str, **options: Any
) -> tuple[int, Any]:
    async with http.request(method, URL(path, encoded=True), **options) as response:
        return response.status, await response.json(content_type=None)


async def lines(http: aiohttp.ClientSession, path: str) -> list[Any]:
    async with http.get(path) as response:
        assert response.status == 200, await response.text()
        return [json.loads(line) async for line in response.content]


async def create(http: aiohttp.ClientSession, agent: str) -> dict[str, str]:
    """Make channels until one is an agent's."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            status, channel = await call(http, "POST", "/create")
            assert status == 200, channel
            if channel["consumerAddress"].startswith(f"{agent}."):
                return dict(channel)


def named(address: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that name the agent of an address."""
    return (("megaphone-agent", address.partition(".")[0]),)


# -- The Python client


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_the_python_client_reaches_channels_of_every_node(
    nodes: Cluster, http: aiohttp.ClientSession, protocol: str
) -> None:
    made = [await create(http, agent) for agent in HOSTS]
    producers = [channel["producerAddress"] for channel in made]
    consumers = [channel["consumerAddress"] for channel in made]
    url = {"http": nodes.proxy.url, "grpc": f"grpc://{nodes.proxy.grpc_target}"}[protocol]
    async with Megaphone.from_url(url) as megaphone:
        assert await megaphone.exists([*producers, *consumers]) == dict.fromkeys(
            [*producers, *consumers], True
        )
        gone = "n1." + "x" * 50
        failures = await megaphone.write_batch([*producers, gone], [("s", 1)])
        assert [(one.producer, one.index) for one in failures] == [(gone, 0)]
        async with megaphone.publisher() as publisher:
            for producer in producers:
                await publisher.send(producer, "s", 2)
        async with megaphone.read_many(consumers) as reader:
            got = [await anext(reader) for _ in range(2 * len(HOSTS))]
        for consumer in consumers:
            assert [event.body for event in got if event.consumer == consumer] == [1, 2]


# -- HTTP


async def test_every_node_makes_channels_and_each_is_found(http: aiohttp.ClientSession) -> None:
    for agent in HOSTS:
        channel = await create(http, agent)
        for number in range(2):
            status, _ = await call(
                http, "POST", f"/write/{channel['producerAddress']}/s", json=number
            )
            assert status == 201
        events = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0&ack=explicit")
        assert [event["body"] for event in events] == [0, 1]
        body = {"eid": events[1]["eid"]}
        acknowledged = await call(http, "POST", f"/ack/{channel['consumerAddress']}", json=body)
        assert acknowledged == (200, {"status": "OK", "acknowledged": 2})


async def test_a_node_that_is_full_is_passed_over(tmp_path: Path) -> None:
    with cluster(tmp_path, max_channels=2) as nodes:
        async with aiohttp.ClientSession(nodes.proxy.url) as http:
            made = [await call(http, "POST", "/create") for _ in range(2 * len(HOSTS))]
            assert [status for status, _ in made] == [200] * len(made)
            status, answer = await call(http, "POST", "/create")
            assert (status, answer["code"]) == (503, "NO_AGENT")


async def test_events_come_while_the_read_is_open(http: aiohttp.ClientSession) -> None:
    channel = await create(http, "n2")
    for accept in ("application/x-ndjson", "text/event-stream"):
        path = f"/read/{channel['consumerAddress']}"
        async with asyncio.timeout(WITHIN_S), http.get(path, headers={"Accept": accept}) as read:
            await call(http, "POST", f"/write/{channel['producerAddress']}/s", json=accept)
            async for line in read.content:
                if accept.encode() in line:
                    break


async def test_paths_and_headers_arrive_as_they_were_sent(http: aiohttp.ClientSession) -> None:
    channel = await create(http, "n3")
    path = f"/write/{channel['producerAddress']}/%C3%BC%20%2F%25%3F"
    answers = [
        await call(http, "POST", path, json=1, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0] == answers[1]
    [event] = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0&after=-")
    assert event["sid"] == "ü /%?"


async def test_only_pages_of_the_proxy_may_create(
    nodes: Cluster, http: aiohttp.ClientSession
) -> None:
    await creates_only_for_pages_of(nodes.proxy, http)


async def creates_only_for_pages_of(proxy: Proxy, http: aiohttp.ClientSession) -> None:
    """Create as the pages of two origins do, in a browser that sends only `Origin`."""
    statuses = [
        (await call(http, "POST", "/create", data="", headers={"Origin": origin}))[0]
        for origin in (proxy.url, "http://elsewhere.example")
    ]
    assert statuses == [200, 403]


async def test_batches_go_where_their_header_says(http: aiohttp.ClientSession) -> None:
    channel = await create(http, "n1")
    address = channel["producerAddress"]
    batch = {"channels": [address], "messages": [{"streamId": "s", "body": 1}]}
    headers = {"Megaphone-Agent": "n1"}
    for _ in range(4):
        status, answer = await call(http, "POST", "/write-batch", json=batch, headers=headers)
        assert (status, answer["failures"]) == (201, [])
        asked = {"channels": [address]}
        _, answer = await call(http, "POST", "/channelsExists", json=asked, headers=headers)
        assert answer["channels"] == {address: True}
        many = {"channels": [{"address": channel["consumerAddress"]}], "wait_ms": 0}
        async with http.post("/read", json=many, headers=headers) as response:
            first, *_ = (await response.text()).splitlines()
        assert json.loads(first)["begun"]
    for wrong in ("", "n1/../../metrics", "x" * 101):
        headers = {"Megaphone-Agent": wrong}
        status, _ = await call(http, "POST", "/write-batch", json=batch, headers=headers)
        assert status == 201  # by any node, which says of each event whether it was taken


async def test_batches_without_a_header_go_where_the_name_of_a_service_says(tmp_path: Path) -> None:
    agent = "0123456789abcdef"
    with cluster(tmp_path) as nodes:
        connector = aiohttp.UnixConnector(path=str(tmp_path / "n2" / "megaphone.sock"))
        async with (
            aiohttp.ClientSession("http://megaphone", connector=connector) as manager,
            manager.post("/vagent/add", json={"name": agent}) as response,
        ):
            assert response.status == 201
        async with aiohttp.ClientSession(nodes.proxy.url) as http:
            channel = await create(http, agent)
            await reaches_only_its_agent(http, channel, agent)


async def reaches_only_its_agent(
    http: aiohttp.ClientSession, channel: dict[str, str], agent: str
) -> None:
    batch = {"channels": [channel["producerAddress"]], "messages": [{"streamId": "s", "body": 1}]}

    async def write(**headers: str) -> tuple[int, Any]:
        return await call(http, "POST", "/write-batch", json=batch, headers=headers)

    for host in (
        f"svc-demo-{agent}-write:3000",
        f"svc-my-demo-{agent}-read",
        f"svc-demo-{agent}-write.default.svc.cluster.local:3000",
    ):
        for _ in range(2):
            status, answer = await write(Host=host)
            assert (status, answer["failures"]) == (201, []), host
    headers = {"Host": f"svc-demo-{agent}-write", "Megaphone-Agent": "n1"}
    _, answer = await write(**headers)
    assert len(answer["failures"]) == 1  # the header says more than the host
    status, answer = await write(Host=f"svc-demo-{'f' * 16}-write")
    assert (status, answer["message"]) == (404, f"no such channel: no node has agent {'f' * 16}")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"/read/nobody.{SECRET}.0", 404, "NOT_FOUND"),
        (f"/read/n1.{SECRET}.0", 404, "NOT_FOUND"),
        ("/read/nothing", 400, "BAD_REQUEST"),
        ("/agents/n1", 404, "NOT_FOUND"),
        ("/agents", 404, "NOT_FOUND"),
        ("/readyz/create", 404, "NOT_FOUND"),
        ("/metrics", 404, "NOT_FOUND"),
        ("/_owner", 401, "NOT_FOUND"),
        ("/_taker", 401, "NOT_FOUND"),
        ("/", 404, "NOT_FOUND"),
        ("/docs", 404, "NOT_FOUND"),
        ("/openapi.json", 404, "NOT_FOUND"),
    ],
)
async def test_what_leads_nowhere_is_answered_in_json(
    http: aiohttp.ClientSession, path: str, status: int, code: str
) -> None:
    found, answer = await call(http, "GET", path)
    assert (found, answer["code"]) == (status, code)
    assert SECRET not in answer["message"]


async def test_an_agent_that_no_node_has_is_named(http: aiohttp.ClientSession) -> None:
    _, answer = await call(http, "GET", f"/read/nobody.{SECRET}.0")
    assert answer["message"] == "no such channel: no node has agent nobody"


async def test_a_body_that_is_too_large_is_refused_in_json(http: aiohttp.ClientSession) -> None:
    channel = await create(http, "n1")
    path = f"/write/{channel['producerAddress']}/s"
    headers = {"Content-Type": "application/json"}
    status, _ = await call(http, "POST", path, data=text_of(1_000_000), headers=headers)
    assert status == 201
    status, answer = await call(http, "POST", path, data=text_of(1_100_000), headers=headers)
    assert (status, answer["code"]) == (413, "PAYLOAD_TOO_LARGE")


def text_of(size: int) -> BytesIO:
    return BytesIO(b'"%b"' % (b"x" * size))


async def test_the_nodes_are_seen_as_one(http: aiohttp.ClientSession) -> None:
    for path in ("/livez", "/readyz"):
        assert await call(http, "GET", path) == (200, {"status": "OK"})


# -- Refusals


async def test_who_may_not_do_something_learns_why(http: aiohttp.ClientSession) -> None:
    """The look-up of nginx answers 401 too, with another meaning."""
    channel = await create(http, "n2")
    path = f"/channel/{channel['producerAddress']}"
    refused = [
        ({}, 401, "UNAUTHENTICATED", 'Bearer realm="megaphone"'),
        (
            bearer("mgp_x"),
            401,
            "UNAUTHENTICATED",
            'Bearer realm="megaphone", error="invalid_token"',
        ),
        (
            bearer(READERS_TOKEN),
            403,
            "PERMISSION_DENIED",
            'Bearer realm="megaphone", error="insufficient_scope", scope="megaphone:dispose"',
        ),
    ]
    for headers, status, code, challenge in refused:
        async with http.delete(path, headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (status, code)
            assert response.headers["WWW-Authenticate"] == challenge
    assert await call(http, "DELETE", path, headers=bearer(TOKEN)) == (200, {"status": "OK"})
    status, answer = await call(http, "DELETE", path, headers=bearer(TOKEN))
    assert (status, answer["code"]) == (404, "NOT_FOUND")


async def test_grpc_callers_who_may_not_do_something_learn_why(
    stub: "ChannelServiceAsyncStub",
) -> None:
    channel = await stub.CreateChannel(pb.CreateChannelRequest())
    address = channel.producer_address
    request = pb.ChannelServiceDisposeChannelRequest(producer_address=address)
    for token, code in {
        "mgp_x": grpc.StatusCode.UNAUTHENTICATED,
        READERS_TOKEN: grpc.StatusCode.PERMISSION_DENIED,
    }.items():
        metadata = (*named(address), ("authorization", f"Bearer {token}"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.DisposeChannel(request, metadata=metadata)
        assert raised.value.code() is code
    metadata = (*named(address), ("authorization", f"Bearer {TOKEN}"))
    await stub.DisposeChannel(request, metadata=metadata)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_each_refusal_of_a_node_reaches_the_client(tmp_path: Path) -> None:
    """The node here has the agent, and refuses each call with the status that the path names."""
    asked: list[int] = []

    async def refuse(request: web.Request) -> web.Response:
        status = int(request.path.rpartition("/")[2])
        asked.append(status)
        return web.json_response({"code": status}, status=status, headers={"Retry-After": "7"})

    served = web.Application()
    served.router.add_get("/agents/n1", no_content)
    served.router.add_get("/readyz", no_content)
    served.router.add_get("/readyz/create", no_content)
    served.router.add_post("/write/{address}/{status}", refuse)
    runner = web.AppRunner(served)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    nodes = static_nodes(["127.0.0.1"], port, port)
    try:
        with nginx(tmp_path / "nginx", nodes) as proxy:
            async with aiohttp.ClientSession(proxy.url) as http:
                for status in (400, 401, 403, 404, 409, 415, 421, 429, 503):
                    async with http.post(f"/write/n1.x/{status}", json=1) as response:
                        assert response.status == status
                        assert await response.json() == {"code": status}
                        assert response.headers["Retry-After"] == "7"
    finally:
        await runner.cleanup()
    # After 421 the agent may be elsewhere, and nginx asks for it once more.
    assert [status for status in asked if status == 421] == [421, 421]
    assert len(asked) == 10


async def no_content(request: web.Request) -> web.Response:
    return web.Response(status=204)


# -- gRPC


async def test_grpc_finds_each_channel_by_its_metadata(stub: "ChannelServiceAsyncStub") -> None:
    agents: set[str] = set()
    async with asyncio.timeout(WITHIN_S):
        while agents != set(HOSTS):
            channel = await stub.CreateChannel(pb.CreateChannelRequest())
            key = named(channel.consumer_address)
            agents.add(key[0][1])
            await write_and_read(stub, channel, key)


async def write_and_read(
    stub: "ChannelServiceAsyncStub", channel: pb.CreateChannelResponse, key: Any
) -> None:
    write = pb.WriteRequest(producer_address=channel.producer_address, stream_id="s", body=b"1")
    written = await stub.Write(write, metadata=key)
    published = stub.Publish(iter([pb.PublishRequest(events=[write])]), metadata=key)
    [result] = [result async for answer in published for result in answer.results]
    batch = pb.WriteBatchRequest(
        channels=[channel.producer_address],
        messages=[pb.WriteBatchRequest.Message(stream_id="s", body=b"2")],
    )
    assert not (await stub.WriteBatch(batch, metadata=key)).failures
    read = pb.ReadRequest(consumer_address=channel.consumer_address, wait_ms=0, acknowledge=True)
    events = [e async for answer in stub.Read(read, metadata=key) for e in answer.events]
    assert [event.event_id for event in events[:2]] == [written.event_id, result.event_id]
    assert [event.body for event in events] == [b"1", b"1", b"2"]
    acknowledge = pb.AcknowledgeRequest(
        consumer_address=channel.consumer_address, event_id=events[2].event_id
    )
    assert (await stub.Acknowledge(acknowledge, metadata=key)).acknowledged == 3
    exist = pb.ChannelsExistRequest(channels=[channel.consumer_address])
    assert (await stub.ChannelsExist(exist, metadata=key)).channels[channel.consumer_address]


async def test_grpc_events_come_while_the_read_is_open(stub: "ChannelServiceAsyncStub") -> None:
    channel = await stub.CreateChannel(pb.CreateChannelRequest())
    key = named(channel.consumer_address)
    read = stub.Read(pb.ReadRequest(consumer_address=channel.consumer_address), metadata=key)
    await read.initial_metadata()
    write = pb.WriteRequest(producer_address=channel.producer_address, stream_id="s", body=b"1")
    await stub.Write(write, metadata=key)
    async with asyncio.timeout(WITHIN_S):
        answer = await anext(aiter(read))
    assert [event.body for event in answer.events] == [b"1"]
    read.cancel()


async def test_many_reads_share_a_connection(stub: "ChannelServiceAsyncStub") -> None:
    channels = [await stub.CreateChannel(pb.CreateChannelRequest()) for _ in range(200)]
    reads = [
        stub.Read(
            pb.ReadRequest(consumer_address=channel.consumer_address),
            metadata=named(channel.consumer_address),
        )
        for channel in channels
    ]
    async with asyncio.timeout(WITHIN_S):
        for read in reads:
            await read.initial_metadata()
    for read in reads:
        read.cancel()


async def status_of(answer: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await answer
    return refused.value.code(), refused.value.details() or ""


async def test_a_grpc_call_without_metadata_is_told_which_agent_it_wants(
    stub: "ChannelServiceAsyncStub",
) -> None:
    write = pb.AcknowledgeRequest(consumer_address=f"nobody.{SECRET}.0", event_id="x")
    code, details = await status_of(stub.Acknowledge(write))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "agent nobody is not on this node" in details
    assert "megaphone-agent: nobody" in details


async def test_a_grpc_call_for_an_agent_that_no_node_has_names_it(
    stub: "ChannelServiceAsyncStub",
) -> None:
    request = pb.AcknowledgeRequest(consumer_address=f"nobody.{SECRET}.0", event_id="x")
    key = (("megaphone-agent", "nobody"),)
    assert await status_of(stub.Acknowledge(request, metadata=key)) == (
        grpc.StatusCode.NOT_FOUND,
        "no such channel: no node has agent nobody",
    )


async def test_health_is_for_everybody_and_feeds_are_not(connection: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(connection)
    answer = await health.Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    sync = SyncServiceStub(connection)
    code, _ = await status_of(sync.FindChannelsInUse(sync_pb2.FindChannelsInUseRequest()))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_the_client_that_the_docs_show_writes(nodes: Cluster) -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    script = example.replace("localhost:3001", nodes.proxy.grpc_target)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
    )
    assert re.fullmatch(r"written as [A-Za-z0-9]{23}\n", done.stdout)


def test_the_list_that_the_docs_show_is_that_of_the_model() -> None:
    example, _ = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    model = (CONFIGURATION / "nodes-static.conf").read_text()
    for line in example.splitlines():
        assert line in model


async def test_nodes_are_asked_at_a_port_of_their_own_as_the_docs_show(tmp_path: Path) -> None:
    _, example = re.findall(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    http_port, grpc_port, ops_port = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        for agent in ("n1", "n2"):
            (tmp_path / agent).mkdir()
            node = broker_process(
                tmp_path / agent,
                agent=agent,
                agent_warmup_secs=0,
                address=f"{HOSTS[agent]}:{http_port}",
                grpc_address=f"{HOSTS[agent]}:{grpc_port}",
                ops_address=f"{HOSTS[agent]}:{ops_port}",
            )
            stack.enter_context(node)
        listed = static_nodes([HOSTS["n1"], HOSTS["n2"]], ops_port, grpc_port)
        named = listed + "\n" + example.replace("3000", str(http_port))
        proxy = stack.enter_context(nginx(tmp_path / "nginx", named))
        async with (
            aiohttp.ClientSession(proxy.url) as http,
            grpc.aio.insecure_channel(proxy.grpc_target) as connection,
        ):
            for agent in ("n1", "n2"):
                channel = await create(http, agent)
                assert await is_written(http, channel)
                assert await is_found(connection, channel)


# -- Nodes that go


@pytest.mark.ends_nodes
async def test_without_one_node_the_others_go_on(
    nodes: Cluster, http: aiohttp.ClientSession, stub: "ChannelServiceAsyncStub"
) -> None:
    lost, kept = await create(http, "n1"), await create(http, "n2")
    nodes.nodes["n1"].process.kill()
    for _ in range(6):
        status, _ = await call(http, "POST", f"/write/{kept['producerAddress']}/s", json=1)
        assert status == 201
        assert (await call(http, "POST", "/create"))[0] == 200
        await stub.CreateChannel(pb.CreateChannelRequest())
    status, answer = await call(http, "POST", f"/write/{lost['producerAddress']}/s", json=1)
    assert status in (404, 503)
    assert answer["message"].endswith("agent n1")


@pytest.mark.ends_nodes
async def test_without_any_node_everything_says_so(
    nodes: Cluster, http: aiohttp.ClientSession, stub: "ChannelServiceAsyncStub"
) -> None:
    for node in nodes.nodes.values():
        node.process.kill()
    status, answer = await call(http, "GET", f"/read/n1.{SECRET}.0")
    assert (status, answer["message"]) == (503, "no node answers for agent n1")
    assert (await call(http, "POST", "/create"))[0] == 503
    code, _ = await status_of(stub.CreateChannel(pb.CreateChannelRequest()))
    assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.ends_nodes
async def test_an_agent_that_moves_is_found_where_it_is(
    nodes: Cluster, http: aiohttp.ClientSession, stub: "ChannelServiceAsyncStub"
) -> None:
    channel = await create(http, "n1")
    connector = aiohttp.UnixConnector(path=str(nodes.folder / "n1" / "megaphone.sock"))
    async with aiohttp.ClientSession("http://megaphone", connector=connector) as manager:
        body = {"target": nodes.target("n3")}
        async with manager.post("/node/drain", json=body) as response:
            *_, last = [json.loads(line) async for line in response.content]
    assert last["done"]
    status, _ = await call(http, "POST", f"/write/{channel['producerAddress']}/s", json=1)
    assert status == 201
    events = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0")
    assert [event["body"] for event in events] == [1]
    key = named(channel["producerAddress"])
    address = channel["producerAddress"]
    await stub.Write(
        pb.WriteRequest(producer_address=address, stream_id="s", body=b"2"), metadata=key
    )
    nodes.nodes["n1"].process.send_signal(signal.SIGTERM)
    nodes.nodes["n1"].process.wait()
    events = await lines(http, f"/read/{channel['consumerAddress']}?wait_ms=0")
    assert [event["body"] for event in events] == [2]


@pytest.mark.ends_nodes
async def test_the_logs_have_no_address(nodes: Cluster, http: aiohttp.ClientSession) -> None:
    channel = await create(http, "n1")
    path = f"/write/{channel['producerAddress']}/s"
    await call(http, "POST", path, json=1)
    nodes.nodes["n1"].process.kill()
    await call(http, "POST", path, json=1)
    assert "route=write agent=n1" in nodes.proxy.log()
    for address in (channel["producerAddress"], channel["consumerAddress"]):
        assert address.split(".")[1] not in nodes.proxy.log()


async def test_nodes_are_found_by_a_name_and_may_come_and_go(nodes: Cluster) -> None:
    hosts = list(HOSTS.values())
    with name_server(hosts[:1]) as names, ExitStack() as stack:
        named_nodes = dns_nodes(
            "megaphone.default.svc", names.endpoint, nodes.http_port, nodes.grpc_port
        )
        proxy = stack.enter_context(nginx(nodes.folder / "by-name", named_nodes))
        async with (
            aiohttp.ClientSession(proxy.url) as http,
            grpc.aio.insecure_channel(proxy.grpc_target) as connection,
        ):
            first = await create(http, "n1")
            names.addresses = hosts[1:]
            second = await create(http, "n2")  # as soon as the name is looked up again
            names.addresses = hosts
            await create(http, "n1")
            # Each upstream looks the name up for itself, so one may know both nodes a second later.
            for channel in (first, second):
                await eventually(partial(is_written, http, channel))
                await eventually(partial(is_found, connection, channel))


async def test_only_takers_are_asked_for_new_channels(nodes: Cluster) -> None:
    takers = "megaphone-takers.default.svc.cluster.local"
    with name_server(list(HOSTS.values()), {takers: [HOSTS["n2"]]}) as names:
        served = kubernetes_nodes(nodes.http_port, nodes.grpc_port)
        with nginx(nodes.folder / "takers", served, resolver=names.endpoint) as proxy:
            async with aiohttp.ClientSession(proxy.url) as http:
                made = [await call(http, "POST", "/create") for _ in range(2 * len(HOSTS))]
                assert {channel["agentName"] for _, channel in made} == {"n2"}
            async with aiohttp.ClientSession(f"http://{HOSTS['n3']}:{nodes.http_port}") as node:
                _, elsewhere = await call(node, "POST", "/create")
            async with aiohttp.ClientSession(proxy.url) as http:
                assert await is_written(http, elsewhere)
                names.of_others = {takers: []}
                await eventually(partial(is_without_takers, http))
                assert await is_written(http, elsewhere)


async def is_without_takers(http: aiohttp.ClientSession) -> bool:
    status, answer = await call(http, "POST", "/create")
    return (status, answer.get("code")) == (503, "NO_AGENT")


async def is_written(http: aiohttp.ClientSession, channel: dict[str, str]) -> bool:
    path = f"/write/{channel['producerAddress']}/s"
    return (await call(http, "POST", path, json=1))[0] == 201


async def is_found(connection: grpc.aio.Channel, channel: dict[str, str]) -> bool:
    stub: ChannelServiceAsyncStub = ChannelServiceStub(connection)
    address = channel["consumerAddress"]
    request = pb.ChannelsExistRequest(channels=[address])
    try:
        answer = await stub.ChannelsExist(request, metadata=named(address))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return answer.channels[address]
