"""The proxies before two brokers, with the settings and files that the operator gives both."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from megaphone.app import running
from megaphone.config import load
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from megaphone_operator.plan.objects import Surroundings
from megaphone_operator.plan.proxies import configuration
from tests.operator.test_pods import environment
from tests.operator.test_wiring import loopback_address
from tests.operator.world import SURROUNDINGS, make_resource
from tests.support.name_server import name_server
from tests.support.nginx import Proxy, needs_nginx, nginx

pytestmark = needs_nginx
TAKERS = "mgp-demo-takers.default.svc.cluster.local"


def addresses() -> list[str]:
    first = loopback_address()
    return [first, first.replace("127.1", "127.2", 1)]


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    """Run two brokers as nodes are run, but each at an address of loopback; the first one takes new
    channels."""
    hosts = addresses()
    async with AsyncExitStack() as stack:
        for host in hosts:
            env = environment(settings={"agent_warmup_secs": "0"})
            for variable, value in env.items():
                env[variable] = value.replace("0.0.0.0", host)
            del env["megaphone_drain_target"]  # a name of Kubernetes
            env["megaphone_mng_socket_path"] = str(tmp_path / f"{host}.sock")
            await stack.enter_async_context(running(load(tmp_path, env).settings))
        names = stack.enter_context(name_server(hosts, {TAKERS: hosts[:1]}))
        surroundings = Surroundings("cluster.local", names.endpoint, "x", SURROUNDINGS.nginx)
        files = configuration(make_resource(), surroundings)
        source = tmp_path / "source"
        source.mkdir()
        for name, text in files.items():
            (source / name).write_text(text)
        yield stack.enter_context(nginx(tmp_path / "nginx", files["nodes.conf"], source))


async def test_every_call_finds_its_node(proxy: Proxy) -> None:
    async with aiohttp.ClientSession(proxy.url) as http:
        agents = set()
        for _ in range(4):
            async with http.post("/create") as answer:
                assert answer.status == 200
                channel = await answer.json()
            agents.add(channel["producerAddress"].partition(".")[0])
            async with http.post(f"/write/{channel['producerAddress']}/s", json=1) as answer:
                assert answer.status == 201, await answer.text()
        [agent] = agents  # that of the one node that takes channels
        body = {
            "channels": [channel["producerAddress"]],
            "messages": [{"streamId": "s", "body": 2}],
        }
        headers = {"Host": f"svc-demo-{agent}-write:3000"}
        async with http.post("/write-batch", json=body, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
        async with http.get(f"/read/{channel['consumerAddress']}?limit=2") as answer:
            assert (await answer.text()).count('"body"') == 2
        for hidden in ("/metrics", "/agents"):
            async with http.get(hidden) as answer:
                assert answer.status == 404


async def test_grpc_finds_its_node_too(proxy: Proxy) -> None:
    async with grpc.aio.insecure_channel(proxy.grpc_target) as channel:
        stub = ChannelServiceStub(channel)
        made = await stub.CreateChannel(pb.CreateChannelRequest())
        write = pb.WriteRequest(producer_address=made.producer_address, stream_id="s", body=b"1")
        agent = made.producer_address.partition(".")[0]
        written = await stub.Write(write, metadata=[("megaphone-agent", agent)])
        assert written.event_id
