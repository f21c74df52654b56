"""A node that is stopped moves its agents to another, while clients write and read."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.certificates import make_certificates
from tests.support.ports import free_port
from tests.support.process import BrokerProcess, broker_process

CHANNELS = 20
EVENTS = 60
STOP_AFTER = 20
"""The source is stopped once each writer has written so many."""
PAUSE_S = 0.02
WITHIN_S = 60
STOPPING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What gRPC calls meet on a node that stops, or has."""
MOVED = 421


@pytest.fixture(params=["plain", "certificates"])
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[BrokerProcess]]:
    """The source, which hands over to the target when it stops; and the target."""
    with_certificates = request.param == "certificates"
    with ExitStack() as stack:
        folders = [tmp_path / name for name in ("source", "target")]
        for folder in folders:
            folder.mkdir()
        settings: dict[str, Any] = {"agent_warmup_secs": 0, "poll_duration_millis": 300}
        if with_certificates:
            made = make_certificates(tmp_path)
            settings |= {
                "nodes.address": "127.0.0.1:0",
                "nodes.certificate": made.certificate,
                "nodes.key": made.key,
                "nodes.ca": made.authority,
                "nodes.names": "localhost",
            }
        target = stack.enter_context(broker_process(folders[1], agent="b", **settings))
        target_url = f"http://{target.grpc_target}"
        if with_certificates:
            [at] = re.findall(r"nodes with a certificate on (\S+?)[;\"\s]", target.start_line)
            target_url = f"https://{at}"
        source = stack.enter_context(
            broker_process(
                folders[0],
                agent="a",
                drain_target=target_url,
                **settings,
            )
        )
        yield [source, target]


class Clients:
    """Go to the target once the source says so, or is gone; until then they wait if it refuses."""

    def __init__(self, nodes: list[BrokerProcess], session: aiohttp.ClientSession) -> None:
        self._source, self._target = nodes
        self._session = session
        self._node = self._source
        self.written = 0
        self.enough_written = asyncio.Event()

    def _turn_to_target(self) -> None:
        self._node = self._target

    async def create(self) -> dict[str, Any]:
        async with self._session.post(f"{self._source.url}/create") as response:
            created: dict[str, Any] = await response.json()
            return created

    async def write(self, channel: dict[str, Any]) -> None:
        for number in range(EVENTS):
            while not await self._is_written(channel["producerAddress"], number):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)
            self.written += 1
            if self.written == CHANNELS * STOP_AFTER:
                self.enough_written.set()
            await asyncio.sleep(PAUSE_S)

    async def _is_written(self, address: str, number: int) -> bool:
        try:
            url = f"{self._node.url}/write/{address}/s"
            async with self._session.post(url, json=number) as response:
                assert response.status in (201, MOVED, 503)
                if response.status == MOVED:
                    self._turn_to_target()
                return response.status == 201
        except aiohttp.ClientConnectorError:
            self._turn_to_target()
        except aiohttp.ClientError:
            pass  # cut off: it was idle when the source closed its connections
        return False

    async def read_over_http(self, channel: dict[str, Any]) -> list[int]:
        """Resume after the last event, so that none must come again."""
        got: list[int] = []
        cursor = "-"
        while len(got) < EVENTS:
            url = f"{self._node.url}/read/{channel['consumerAddress']}?after={cursor}"
            try:
                async with self._session.get(url) as response:
                    if response.status == MOVED:
                        self._turn_to_target()
                    if response.status in (MOVED, 503):
                        continue
                    assert (response.status, response.headers["Megaphone-Recovered"]) == (
                        200,
                        "true",
                    )
                    async for line in response.content:
                        event = json.loads(line)
                        got.append(event["body"])
                        cursor = event["eid"]
            except aiohttp.ClientConnectorError:
                self._turn_to_target()
            except aiohttp.ClientError:
                pass
        return got

    async def read_over_grpc(self, channel: dict[str, Any]) -> list[int]:
        """Acknowledge each event; one that was not may come again."""
        got: list[int] = []
        while len(got) < EVENTS:
            async with grpc.aio.insecure_channel(self._node.grpc_target) as connection:
                try:
                    await self._read_once(ChannelServiceStub(connection), channel, got)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in STOPPING:
                        raise
                    if "shutting down" not in (error.details() or ""):
                        self._turn_to_target()
        return got

    async def _read_once(self, stub: Any, channel: dict[str, Any], got: list[int]) -> None:
        address = channel["consumerAddress"]
        request = pb.ReadRequest(consumer_address=address, acknowledge=True)
        async for response in stub.Read(request):
            for event in response.events:
                if (number := int(event.body)) not in got[-1:]:
                    got.append(number)
                acknowledgement = pb.AcknowledgeRequest(
                    consumer_address=address, event_id=event.event_id
                )
                await stub.Acknowledge(acknowledgement)


async def test_nothing_is_lost_when_a_node_hands_over_under_load(
    nodes: list[BrokerProcess],
) -> None:
    source = nodes[0]
    connector = aiohttp.TCPConnector(limit=0)
    async with asyncio.timeout(WITHIN_S), aiohttp.ClientSession(connector=connector) as session:
        clients = Clients(nodes, session)
        channels = [await clients.create() for _ in range(CHANNELS)]
        async with asyncio.TaskGroup() as group:
            for channel in channels:
                group.create_task(clients.write(channel))
            reads = [
                group.create_task(
                    clients.read_over_grpc(channel) if i % 2 else clients.read_over_http(channel)
                )
                for i, channel in enumerate(channels)
            ]
            await clients.enough_written.wait()
            source.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(source.process.wait, 20) == 0
        for read in reads:
            assert read.result() == list(range(EVENTS))


async def test_the_only_node_waits_for_its_successor_and_nothing_is_lost(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    (tmp_path / "successor").mkdir()
    with ExitStack() as stack:
        node = stack.enter_context(
            broker_process(
                tmp_path, agent="a", agent_warmup_secs=0, drain_target=f"http://{endpoint}"
            )
        )
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{node.url}/create") as response:
                channel = await response.json()
            path = f"/write/{channel['producerAddress']}/s"
            async with session.post(node.url + path, json="kept") as response:
                assert response.status == 201
            node.process.send_signal(signal.SIGTERM)
            assert node.process.stderr is not None
            for line in node.process.stderr:
                if "cannot be reached" in line:
                    break
            successor = stack.enter_context(
                broker_process(tmp_path / "successor", agent="b", grpc_address=endpoint)
            )
            assert await asyncio.to_thread(node.process.wait, WITHIN_S) == 0
            path = f"/read/{channel['consumerAddress']}?wait_ms=0"
            async with session.get(successor.url + path) as response:
                assert json.loads(await response.text())["body"] == "kept"


async def test_a_node_whose_target_is_not_there_stops_all_the_same(tmp_path: Path) -> None:
    with broker_process(tmp_path, agent="a", drain_target="http://127.0.0.1:1") as broker:
        broker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(broker.process.wait, 20) == 0
        assert broker.process.stderr is not None
        assert (
            "this node cannot be handed over: the target node cannot be reached"
            in broker.process.stderr.read()
        )
