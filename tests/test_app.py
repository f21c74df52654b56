"""A stopping node answers the requests that are on their way to it, and waits for nothing else."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from megaphone import app as composition
from megaphone.app import QUIET_S, STOP_GRACE_S, quiet, running
from megaphone.backend import removals
from megaphone.core.agents import Agents
from megaphone.model import AgentMode
from megaphone.observe.metrics import Metrics
from megaphone.observe.webhooks import Webhooks
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.raw_http import Connection, Node, receive_head, request_of
from tests.support.settings import fast_settings

AT_ONCE = 50


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with other work, a request may need longer than QUIET_S to reach its handler."""
    monkeypatch.setattr(composition, "QUIET_S", 10 * QUIET_S)
    monkeypatch.setattr(composition, "STOP_GRACE_S", 10 * STOP_GRACE_S)


async def elapsed(requests: list[int]) -> float:
    """Return how long a node waits, given its number of requests at each look."""
    loop = asyncio.get_running_loop()
    looks = iter(requests)
    began = loop.time()
    await quiet(lambda: next(looks))
    return loop.time() - began


@pytest.mark.looptime
async def test_a_node_that_stops_waits_for_requests_only_while_they_come() -> None:
    assert await elapsed([7, 7]) == pytest.approx(QUIET_S)
    assert await elapsed([7, 8, 8, 9, 9, 9]) == pytest.approx(3 * QUIET_S)
    assert await elapsed(list(range(100))) == pytest.approx(STOP_GRACE_S)


async def test_requests_on_their_way_to_a_node_that_stops_are_answered(patient: None) -> None:
    async with running(fast_settings()) as app:
        node = Node(app.http_port, app.grpc_port)
        connections = [await Connection.open(node) for _ in range(AT_ONCE)]
        for connection in connections:
            await connection.send(request_of("POST", "/create"))
    for connection in connections:
        assert (await receive_head(connection)).status in (200, 503)
        connection.close()


async def test_calls_on_their_way_to_a_node_that_stops_are_answered(patient: None) -> None:
    async with AsyncExitStack() as node:
        app = await node.enter_async_context(running(fast_settings()))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
            await connection.channel_ready()
            stub = ChannelServiceStub(connection)
            calls = [stub.CreateChannel(pb.CreateChannelRequest()) for _ in range(AT_ONCE)]
            await node.aclose()
            details = [await call.details() for call in calls]
    assert set(details) <= {"", "this node is shutting down"}


@pytest.mark.parametrize(("mode", "lost"), [(AgentMode.MASTER, 3), (AgentMode.REPLICA, 0)])
async def test_what_is_lost_with_a_copy_counts_at_its_source_only(
    mode: AgentMode, lost: int
) -> None:
    agents = Agents(0)
    agents.add("agent", mode, 0)
    metrics = Metrics()
    removals(agents, metrics, Webhooks({}))("agent.secret.1", 2.0, 3)
    assert (metrics.messages_lost, metrics.channels_disposed) == (lost, 1)
