"""Runs each thing that operators do over both faces of the management socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha import reflection_pb2

from megaphone.app import App, running
from megaphone.core.access import ANYONE
from megaphone.core.addresses import ConsumerAddress
from megaphone.errors import (
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    NoAgentAvailable,
    TargetUnavailable,
    Unauthenticated,
    WrongMode,
)
from megaphone.listen.sockets import grpc_path
from megaphone.model import AgentMode, ChannelOptions, NewChannel, NewEvent, ReadOptions, short_id
from megaphone.settings import Nodes
from megaphone.wire.errors import error_from, row_of
from megaphone_api.v1 import admin_pb2 as pb
from megaphone_api.v1.admin_pb2_grpc import AdminServiceStub
from tests.support.settings import fast_settings

if TYPE_CHECKING:
    from megaphone_api.v1.admin_pb2_grpc import AdminServiceAsyncStub

DETAILS_KEY = "grpc-status-details-bin"
ADMIN_SERVICE = "megaphone.v1.AdminService"
LONG_S = 20.0
"""How long a test waits for what must come."""


@dataclass(frozen=True, slots=True)
class Agent:
    """What an operator is told of an agent."""

    name: str
    mode: str
    since: datetime
    warming_up: bool
    channels: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain is."""

    agent: str
    agents_moved: int
    agents_left: int
    agents_failed: int
    channels_moved: int
    channels_left: int
    done: bool


@dataclass(frozen=True, slots=True)
class View:
    """The report that a watching operator gets at each tick."""

    at: datetime
    counts: dict[str, int]
    levels: dict[str, int]
    notable: dict[str, int]
    agents: list[str]
    pipes: list[tuple[str, str, bool]]
    is_draining: bool
    channels: list[dict[str, Any]]


class Operator(Protocol):
    """A client of one face. Every method raises the error that the broker told, by its class."""

    async def list_agents(self) -> list[Agent]: ...

    async def add(self, name: str) -> None: ...

    async def promote(self, name: str) -> None: ...

    async def pipe(self, name: str, target: str) -> None: ...

    async def unpipe(
        self, name: str, target: str | None = None, *, force: bool = False
    ) -> None: ...

    async def remove(self, name: str, *, force: bool = False) -> None: ...

    async def drain(self, target: str) -> list[Progress]: ...

    def watch(self, **asked: int | str) -> AbstractAsyncContextManager[AsyncIterator[View]]: ...

    async def list_channels(self, **page: int | str) -> list[tuple[str, str]]:
        """Returns: addresses and agents."""

    async def show_channels(self, **page: int | str | bool) -> list[dict[str, Any]]:
        """Returns: channels with details."""

    async def show_channel(self, name: str) -> dict[str, Any]: ...

    async def dispose(self, address: str) -> None: ...


class HttpOperator:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def list_agents(self) -> list[Agent]:
        return [
            Agent(
                name=agent["name"],
                mode=agent["mode"],
                since=datetime.fromisoformat(agent["since"]),
                warming_up=agent["warmingUp"],
                channels=agent["channelsCount"],
            )
            for agent in await self._call("GET", "/vagent/list")
        ]

    async def add(self, name: str) -> None:
        await self._call("POST", "/vagent/add", {"name": name})

    async def promote(self, name: str) -> None:
        await self._call("POST", "/vagent/promote", {"name": name})

    async def pipe(self, name: str, target: str) -> None:
        await self._call("POST", "/vagent/pipe", {"name": name, "target": target})

    async def unpipe(self, name: str, target: str | None = None, *, force: bool = False) -> None:
        asked = {"name": name, "force": force} | ({"target": target} if target else {})
        await self._call("POST", "/vagent/unpipe", asked)

    async def remove(self, name: str, *, force: bool = False) -> None:
        await self._call("POST", "/vagent/remove", {"name": name, "force": force})

    async def drain(self, target: str) -> list[Progress]:
        async with self._session.post("/node/drain", json={"target": target}) as response:
            lines = [json.loads(line) async for line in response.content]
        if "code" in lines[-1]:
            raise told(lines[-1]["code"], lines[-1]["message"])
        assert response.content_type == "application/x-ndjson"
        return [
            Progress(
                line["agent"],
                line["agentsMoved"],
                line["agentsLeft"],
                line["agentsFailed"],
                line["channelsMoved"],
                line["channelsLeft"],
                line["done"],
            )
            for line in lines
        ]

    @asynccontextmanager
    async def watch(self, **asked: int | str) -> AsyncIterator[AsyncIterator[View]]:
        async with self._session.get(f"/node/watch?{urlencode(asked)}") as response:
            if response.status != 200:
                answer = await response.json()
                raise told(answer["code"], answer["message"])
            assert response.content_type == "application/x-ndjson"
            yield (view_of_line(json.loads(line)) async for line in response.content)

    async def list_channels(self, **page: int | str) -> list[tuple[str, str]]:
        listed = await self._call("GET", f"/channel/list?{urlencode(page)}")
        return [(channel["address"], channel["agentId"]) for channel in listed]

    async def show_channels(self, **page: int | str | bool) -> list[dict[str, Any]]:
        query = {name: str(value).lower() for name, value in page.items()}
        listed = await self._call("GET", f"/channel/list?{urlencode(query)}")
        return [details_of_json(one) for one in listed]

    async def show_channel(self, name: str) -> dict[str, Any]:
        return details_of_json(await self._call("GET", f"/channel/{name}"))

    async def dispose(self, address: str) -> None:
        await self._call("DELETE", f"/channel/{address}")

    async def _call(self, method: str, route: str, body: object = None) -> Any:
        async with self._session.request(method, route, json=body) as response:
            answer = await response.json()
        if response.ok:
            return answer
        error = told(answer["code"], answer["message"])
        assert response.status == row_of(error).http_status
        raise error


def details_of_json(shown: dict[str, Any]) -> dict[str, Any]:
    """Return a channel with the names that both faces get in these tests."""
    reader = shown["reader"]
    return {
        **{name: shown[name] for name in ("address", "id", "tenant", "label", "unsent", "kept")},
        "agent": shown["agentId"],
        "in_flight": shown["inFlight"],
        "capacity": shown["capacity"],
        "ttl_s": shown["ttlS"],
        "waiting_writers": shown["waitingWriters"],
        "is_young": 0 <= shown["ageS"] < 100,
        "has_bytes": shown["bytes"] > 0,
        "has": {
            name
            for name in ("expiresS", "waitingS", "writtenS", "readS")
            if shown[name] is not None
        },
        "reader": None
        if reader is None
        else (
            reader["kind"] == "acknowledging",
            reader["name"],
            reader["face"],
            reader["node"],
            reader["ageS"] >= 0,
            reader["takenS"] is not None,
        ),
    }


def view_of_line(line: dict[str, Any]) -> View:
    return View(
        at=datetime.fromisoformat(line["at"]),
        counts=line["counts"],
        levels=line["levels"],
        notable=line["notable"],
        agents=[agent["name"] for agent in line["agents"]],
        pipes=[(pipe["agent"], pipe["target"], pipe["isConnected"]) for pipe in line["pipes"]],
        is_draining=line["drain"] is not None,
        channels=[
            {
                "address": one["address"],
                "depth": one["depth"],
                "in_flight": one["inFlight"],
                "waiting_writers": one["waitingWriters"],
                "read": one["isRead"],
                "has_age": one["ageS"] >= 0 and ("oldestS" in one) == (one["depth"] > 0),
                "has_rate": "rate" in one,
                "label": one.get("label", ""),
                "tenant": one["tenant"],
                "id": one["id"],
                "unsent": one["unsent"],
                "has_bytes": "bytes" in one,
            }
            for one in line["channels"]
        ],
    )


class GrpcOperator:
    def __init__(self, stub: "AdminServiceAsyncStub") -> None:
        self._stub = stub

    async def list_agents(self) -> list[Agent]:
        return [
            Agent(
                name=agent.name,
                mode=pb.AgentMode.Name(agent.mode).removeprefix("AGENT_MODE_"),
                since=agent.since.ToDatetime(tzinfo=UTC),
                warming_up=agent.warming_up,
                channels=agent.channels_count,
            )
            for agent in (await self._call("ListAgents", pb.ListAgentsRequest())).agents
        ]

    async def add(self, name: str) -> None:
        await self._call("AddAgent", pb.AddAgentRequest(name=name))

    async def promote(self, name: str) -> None:
        await self._call("PromoteAgent", pb.PromoteAgentRequest(name=name))

    async def pipe(self, name: str, target: str) -> None:
        await self._call("PipeAgent", pb.PipeAgentRequest(name=name, target=target))

    async def unpipe(self, name: str, target: str | None = None, *, force: bool = False) -> None:
        request = pb.UnpipeAgentRequest(name=name, target=target or "", force=force)
        await self._call("UnpipeAgent", request)

    async def remove(self, name: str, *, force: bool = False) -> None:
        await self._call("RemoveAgent", pb.RemoveAgentRequest(name=name, force=force))

    async def drain(self, target: str) -> list[Progress]:
        try:
            return [
                Progress(
                    step.agent,
                    step.agents_moved,
                    step.agents_left,
                    step.agents_failed,
                    step.channels_moved,
                    step.channels_left,
                    step.done,
                )
                async for step in self._stub.Drain(pb.DrainRequest(target=target))
            ]
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None

    @asynccontextmanager
    async def watch(self, **asked: Any) -> AsyncIterator[AsyncIterator[View]]:
        call = self._stub.Watch(pb.WatchRequest(**asked))
        try:
            yield views_of(call)
        finally:
            call.cancel()

    async def list_channels(self, **page: Any) -> list[tuple[str, str]]:
        listed = await self._call("ListChannels", pb.ListChannelsRequest(**page))
        return [(channel.address, channel.agent) for channel in listed.channels]

    async def show_channels(self, **page: Any) -> list[dict[str, Any]]:
        listed = await self._call("ListChannels", pb.ListChannelsRequest(**page))
        assert all(
            (one.address, one.agent) == (one.details.address, one.details.agent)
            for one in listed.channels
        )
        return [details_of_message(one.details) for one in listed.channels]

    async def show_channel(self, name: str) -> dict[str, Any]:
        shown = await self._call("GetChannel", pb.GetChannelRequest(channel=name))
        return details_of_message(shown.channel)

    async def dispose(self, address: str) -> None:
        await self._call("DisposeChannel", pb.DisposeChannelRequest(address=address))

    async def _call(self, method: str, request: object) -> Any:
        try:
            return await getattr(self._stub, method)(request)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None


def details_of_message(shown: pb.ChannelDetails) -> dict[str, Any]:
    reader = shown.reader
    times = {
        "expires_s": "expiresS",
        "waiting_s": "waitingS",
        "written_s": "writtenS",
        "read_s": "readS",
    }
    return {
        "address": shown.address,
        "id": shown.id,
        "tenant": shown.tenant,
        "label": shown.label,
        "unsent": shown.unsent,
        "kept": shown.kept,
        "agent": shown.agent,
        "in_flight": shown.in_flight,
        "capacity": shown.capacity,
        "ttl_s": shown.ttl_s,
        "waiting_writers": shown.waiting_writers,
        "is_young": 0 <= shown.age_s < 100,
        "has_bytes": shown.bytes > 0,
        "has": {name for field, name in times.items() if shown.HasField(field)},  # type: ignore[arg-type]
        "reader": (
            reader.acknowledges,
            reader.name,
            reader.face,
            reader.node or None,
            reader.age_s >= 0,
            reader.HasField("taken_s"),
        )
        if shown.HasField("reader")
        else None,
    }


async def views_of(
    call: "grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]",
) -> AsyncIterator[View]:
    try:
        async for view in call:
            yield view_of_message(view)
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from None


def view_of_message(view: pb.WatchResponse) -> View:
    return View(
        at=view.at.ToDatetime(tzinfo=UTC),
        counts=dict(view.counts),
        levels=dict(view.levels),
        notable=dict(view.notable),
        agents=[agent.name for agent in view.agents],
        pipes=[(pipe.agent, pipe.target, pipe.connected) for pipe in view.pipes],
        is_draining=view.HasField("drain"),
        channels=[
            {
                "address": one.address,
                "depth": one.depth,
                "in_flight": one.in_flight,
                "waiting_writers": one.waiting_writers,
                "read": one.read,
                "has_age": one.age_s >= 0 and one.HasField("oldest_s") == (one.depth > 0),
                "has_rate": one.HasField("rate"),
                "label": one.label,
                "tenant": one.tenant,
                "id": one.id,
                "unsent": one.unsent,
                "has_bytes": one.HasField("bytes"),
            }
            for one in view.channels
        ],
    )


def error_of(failure: grpc.aio.AioRpcError) -> MegaphoneError:
    [details] = [value for key, value in failure.trailing_metadata() if key == DETAILS_KEY]
    assert isinstance(details, bytes)
    info = ErrorInfo()
    Status.FromString(details).details[0].Unpack(info)
    error = told(info.reason, failure.details() or "")
    assert failure.code().name == row_of(error).grpc_status
    return error


def told(code: str, message: str) -> MegaphoneError:
    error = error_from(code, message)
    assert error is not None, (code, message)
    return error


@asynccontextmanager
async def over_http(socket_path: str) -> AsyncIterator[Operator]:
    connector = aiohttp.UnixConnector(path=socket_path)
    async with aiohttp.ClientSession("http://megaphone", connector=connector) as session:
        yield HttpOperator(session)


@asynccontextmanager
async def over_grpc(socket_path: str) -> AsyncIterator[Operator]:
    async with grpc.aio.insecure_channel(f"unix:{grpc_path(socket_path)}") as connection:
        yield GrpcOperator(AdminServiceStub(connection))


@pytest.fixture
async def target() -> AsyncIterator[App]:
    """Another node; where a test takes it before `node`, it lives longer."""
    async with running(fast_settings(agent={"other": AgentMode.MASTER})) as app:
        yield app


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "m.sock")


@pytest.fixture
async def node(socket_path: str) -> AsyncIterator[App]:
    agents = {"node": AgentMode.MASTER, "spare": AgentMode.REPLICA}
    async with running(fast_settings(mng_socket_path=socket_path, agent=agents)) as app:
        yield app


@pytest.fixture(params=[over_http, over_grpc])
async def operator(
    node: App, socket_path: str, request: pytest.FixtureRequest
) -> AsyncIterator[Operator]:
    """Each face in turn."""
    async with request.param(socket_path) as operator:
        yield operator


async def create(node: App, count: int) -> Sequence[str]:
    return [(await node.broker.create(ANYONE)).consumer_address for _ in range(count)]


async def test_agents_are_listed(node: App, operator: Operator) -> None:
    await create(node, 2)
    since = [agent.since for agent in node.agents]
    assert await operator.list_agents() == [
        Agent("node", "MASTER", since[0], warming_up=False, channels=2),
        Agent("spare", "REPLICA", since[1], warming_up=False, channels=0),
    ]


async def test_an_agent_is_added_once(operator: Operator) -> None:
    await operator.add("second")
    assert [agent.name for agent in await operator.list_agents()] == ["node", "spare", "second"]
    for wrong in ("second", "a b", ""):
        with pytest.raises(BadRequest):
            await operator.add(wrong)


async def test_an_agent_is_promoted_once(operator: Operator) -> None:
    await operator.promote("spare")
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "MASTER"]
    with pytest.raises(WrongMode):
        await operator.promote("spare")
    with pytest.raises(AgentNotFound):
        await operator.promote("absent")
    with pytest.raises(BadRequest):
        await operator.promote("a b")


async def test_an_agent_is_forwarded(target: App, operator: Operator) -> None:
    await operator.pipe("node", f"http://127.0.0.1:{target.grpc_port}")
    assert [agent.mode for agent in await operator.list_agents()] == ["PIPED", "REPLICA"]
    assert target.agents.named("node").mode is AgentMode.REPLICA
    with pytest.raises(WrongMode):
        await operator.promote("node")


async def test_a_pipe_is_closed_and_the_agent_is_as_before(target: App, operator: Operator) -> None:
    url = f"http://127.0.0.1:{target.grpc_port}"
    await operator.pipe("node", url)
    await operator.unpipe("node", url)
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "REPLICA"]
    await operator.pipe("node", url)
    await operator.unpipe("node")
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "REPLICA"]
    for name, of, error in (
        ("node", url, WrongMode),
        ("node", None, WrongMode),
        ("node", "nowhere", BadRequest),
        ("absent", None, AgentNotFound),
    ):
        with pytest.raises(error):
            await operator.unpipe(name, of)


async def test_a_pipe_stays_while_clients_read_at_its_target(
    target: App, node: App, operator: Operator
) -> None:
    [address] = await create(node, 1)
    await operator.pipe("node", f"http://127.0.0.1:{target.grpc_port}")
    until = asyncio.get_running_loop().time() + LONG_S
    while target.metrics.channels_fed < 1:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.01)
    target.agents.promote("node", 0.0)
    async with target.broker.read(ANYONE, address):
        with pytest.raises(WrongMode, match="1 channels of agent node are in use at 127"):
            await operator.unpipe("node")
        assert (await operator.list_agents())[0].mode == "PIPED"
        await operator.unpipe("node", force=True)
    assert (await operator.list_agents())[0].mode == "MASTER"


async def test_a_pipe_to_a_target_that_is_gone_is_closed_by_force(
    node: App, operator: Operator
) -> None:
    async with running(fast_settings(agent={"other": AgentMode.MASTER})) as target:
        await operator.pipe("node", f"http://127.0.0.1:{target.grpc_port}")
    until = asyncio.get_running_loop().time() + LONG_S
    while node.pipes.described()[0].is_connected:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.01)
    with pytest.raises(WrongMode, match="is not connected"):
        await operator.unpipe("node")
    await operator.unpipe("node", force=True)
    assert (await operator.list_agents())[0].mode == "MASTER"
    assert node.pipes.described() == []


async def test_the_pipe_of_an_agent_that_was_taken_back_is_closed_without_force(
    node: App, operator: Operator
) -> None:
    async with running(fast_settings(agent={"other": AgentMode.MASTER})) as target:
        await operator.pipe("node", f"http://127.0.0.1:{target.grpc_port}")
    until = asyncio.get_running_loop().time() + LONG_S
    while node.pipes.described()[0].is_connected:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.01)
    await operator.promote("node")
    while node.pipes.described():
        assert asyncio.get_running_loop().time() < until
        with suppress(WrongMode):  # until the pipe knows that the agent was taken back
            await operator.unpipe("node")
        await asyncio.sleep(0.01)
    assert (await operator.list_agents())[0].mode == "MASTER"


async def test_an_agent_without_channels_is_removed(operator: Operator) -> None:
    await operator.remove("spare")
    assert [agent.name for agent in await operator.list_agents()] == ["node"]
    with pytest.raises(AgentNotFound):
        await operator.remove("spare")
    with pytest.raises(BadRequest):
        await operator.remove("a b")
    await operator.add("spare")
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "MASTER"]


async def test_an_agent_with_channels_is_removed_by_force_only(
    node: App, operator: Operator
) -> None:
    await operator.add("second")
    channels = [await node.broker.create(ANYONE) for _ in range(120)]
    mine = [one for one in channels if one.agent == "second"]
    await write(node, mine[0], 1, 2, 3)
    with pytest.raises(WrongMode, match=f"agent second has {len(mine)} channels"):
        await operator.remove("second")
    async with node.broker.read(ANYONE, mine[1].consumer_address) as reading:
        await operator.remove("second", force=True)
        assert [events async for events in reading] == []
    assert node.metrics.messages_lost == 3
    with pytest.raises(ChannelNotFound):
        await write(node, mine[2], 1)
    assert [agent.channels for agent in await operator.list_agents()] == [120 - len(mine), 0]


async def test_the_last_agent_that_takes_channels_is_removed_by_force_only(
    node: App, operator: Operator
) -> None:
    with pytest.raises(WrongMode, match="add another one before"):
        await operator.remove("node")
    await operator.remove("node", force=True)
    with pytest.raises(NoAgentAvailable):
        await node.broker.create(ANYONE)


async def test_an_agent_that_is_replicated_is_not_removed(
    target: App, node: App, operator: Operator
) -> None:
    await operator.add("second")
    await operator.pipe("second", f"http://127.0.0.1:{target.grpc_port}")
    for force in (False, True):
        with pytest.raises(WrongMode, match="close its pipes first"):
            await operator.remove("second", force=force)
        with pytest.raises(WrongMode, match="close the pipe there"):
            await target.admin.remove_agent("second", force=force)
    await operator.unpipe("second")
    await operator.remove("second")


async def test_an_agent_that_cannot_be_forwarded_stays(operator: Operator) -> None:
    for name, url, error in (
        ("node", "http://127.0.0.1:1", TargetUnavailable),
        ("node", "nowhere", BadRequest),
        ("absent", "http://127.0.0.1:1", AgentNotFound),
    ):
        with pytest.raises(error):
            await operator.pipe(name, url)
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "REPLICA"]


async def test_a_target_that_wants_a_secret_is_said_to_refuse(operator: Operator) -> None:
    secret = Nodes(secret="a-secret-that-the-source-has-not")
    async with running(fast_settings(nodes=secret)) as guarded:
        url = f"http://127.0.0.1:{guarded.grpc_port}"
        with pytest.raises(Unauthenticated, match=r"set the same `nodes\.secret` on both"):
            await operator.pipe("node", url)
        with pytest.raises(
            Unauthenticated, match="these agents have not moved, and are as before: node,"
        ):
            await operator.drain(url)
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "REPLICA"]


async def test_a_node_is_drained(node: App, target: App, operator: Operator) -> None:
    await create(node, 3)
    first, *_, last = await operator.drain(f"http://127.0.0.1:{target.grpc_port}")
    assert first == Progress("", 0, 2, 0, 0, 3, done=False)
    assert last == Progress("", 2, 0, 0, 3, 0, done=True)
    assert await operator.list_agents() == []
    assert target.agents.named("node").mode is AgentMode.MASTER


async def test_a_node_whose_agent_is_refused_says_so(operator: Operator, target: App) -> None:
    target.agents.add("node", AgentMode.MASTER, 0.0)
    with pytest.raises(WrongMode, match="these agents have not moved, and are as before: node; "):
        await operator.drain(f"http://127.0.0.1:{target.grpc_port}")
    assert [agent.name for agent in await operator.list_agents()] == ["node"]


@pytest.mark.parametrize(
    ("url", "error"), [("nowhere", BadRequest), ("http://127.0.0.1:1", TargetUnavailable)]
)
async def test_a_node_without_a_target_is_not_drained(
    operator: Operator, url: str, error: type[MegaphoneError]
) -> None:
    with pytest.raises(error):
        await operator.drain(url)
    assert [agent.mode for agent in await operator.list_agents()] == ["MASTER", "REPLICA"]


async def test_channels_are_listed_in_pages_and_by_agent(node: App, operator: Operator) -> None:
    everything = [(address, "node") for address in await create(node, 60)]
    assert await operator.list_channels() == everything[:50]
    assert await operator.list_channels(skip=50, limit=5) == everything[50:55]
    assert await operator.list_channels(limit=0) == []
    assert await operator.list_channels(agent="node", skip=59) == everything[59:]
    assert await operator.list_channels(agent="spare") == []
    with pytest.raises(AgentNotFound):
        await operator.list_channels(agent="absent")


async def test_a_long_list_of_channels_is_whole(node: App, operator: Operator) -> None:
    created = [(await node.broker.create(ANYONE)).consumer_address for _ in range(1_201)]
    assert await operator.list_channels(limit=1_300) == [(one, "node") for one in created]
    assert await operator.list_channels(limit=500) == [(one, "node") for one in created[:500]]


async def test_a_channel_is_disposed_of_once(node: App, operator: Operator) -> None:
    [address] = await create(node, 1)
    await operator.dispose(address)
    assert await operator.list_channels() == []
    with pytest.raises(ChannelNotFound):
        await operator.dispose(address)
    with pytest.raises(BadRequest):
        await operator.dispose("no-address")


async def write(node: App, channel: NewChannel, *values: object) -> None:
    for value in values:
        event = NewEvent("s", json.dumps(value).encode())
        await node.broker.write(ANYONE, channel.producer_address, event)


async def test_a_channel_is_shown(node: App, operator: Operator) -> None:
    options = ChannelOptions(capacity=3, ttl_s=40.0, label="orders")
    channel = await node.broker.create(ANYONE, (), options)
    short = short_id(ConsumerAddress.parse(channel.consumer_address).channel_id)
    quiet = {
        "address": channel.consumer_address,
        "id": short,
        "agent": "node",
        "tenant": "default",
        "label": "orders",
        "capacity": 3,
        "ttl_s": 40.0,
        "unsent": 0,
        "in_flight": 0,
        "kept": 0,
        "waiting_writers": 0,
        "is_young": True,
        "has_bytes": True,
        "has": {"expiresS"},
        "reader": None,
    }
    assert await operator.show_channel(channel.consumer_address) == quiet
    assert await operator.show_channel(short) == quiet
    await write(node, channel, 1, 2, 3)
    waiting = asyncio.create_task(write(node, channel, 4))
    options_of_read = ReadOptions(acknowledge=True, in_flight=1, reader="phone", face="grpc")
    async with node.broker.read(ANYONE, channel.consumer_address, options_of_read) as reading:
        await anext(reading)
        shown = await operator.show_channel(short.upper())
    assert shown == quiet | {
        "unsent": 2,
        "in_flight": 1,
        "waiting_writers": 1,
        "has": {"waitingS", "writtenS", "readS"},
        "reader": (True, "phone", "grpc", None, True, True),
    }
    waiting.cancel()


async def test_the_id_in_a_log_line_finds_the_channel(
    socket_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("megaphone.core.lookout.STUCK_S", 0.05)
    monkeypatch.setattr("megaphone.core.lookout.CHECK_S", 0.05)
    async with (
        running(fast_settings(mng_socket_path=socket_path)) as node,
        over_http(socket_path) as operator,
    ):
        channel = await node.broker.create(ANYONE, (), ChannelOptions(capacity=1))
        await write(node, channel, 1)
        waiting = asyncio.create_task(write(node, channel, 2))
        until = asyncio.get_running_loop().time() + LONG_S
        while not (lines := [one for one in caplog.records if "writers wait" in one.message]):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.02)
        shown = await operator.show_channel(lines[0].__dict__["channel"])
        assert (shown["address"], shown["waiting_writers"]) == (channel.consumer_address, 1)
        waiting.cancel()


async def test_a_channel_that_cannot_be_shown_is_refused(node: App, operator: Operator) -> None:
    [address] = await create(node, 1)
    other = "y" if address[-3] == "x" else "x"
    for name, error in {
        f"{address[:-3]}{other}.1": ChannelNotFound,
        "00000000": ChannelNotFound,
        "0000000": BadRequest,
        "no-address": BadRequest,
        "absent" + address[address.index(".") :]: ChannelNotFound,
    }.items():
        with pytest.raises(error):
            await operator.show_channel(name)
    await node.admin.dispose(address)
    with pytest.raises(ChannelNotFound):
        await operator.show_channel(address)


async def test_channels_are_listed_by_what_is_in_them(node: App, operator: Operator) -> None:
    small = ChannelOptions(capacity=2)
    few, large, full = [await node.broker.create(ANYONE, (), small) for _ in range(3)]
    await write(node, few, 1)
    await write(node, large, "x" * 10_000)
    await write(node, full, 1, 2)
    waiting = asyncio.create_task(write(node, full, 3))
    names = {few.consumer_address: "few", large.consumer_address: "large"}
    names[full.consumer_address] = "full"

    async def listed(**asked: int | str | bool) -> list[str]:
        return [names[one["address"]] for one in await operator.show_channels(**asked)]

    until = asyncio.get_running_loop().time() + LONG_S
    while await listed(blocked=True) != ["full"]:
        assert asyncio.get_running_loop().time() < until
        await asyncio.sleep(0.01)
    assert await listed(blocked=True, agent="spare") == []
    assert await listed(sort="unsent") == ["full", "few", "large"]
    assert (await listed(sort="bytes"))[0] == "large"
    assert (await listed(sort="waiting"))[0] == "full"
    assert await listed(sort="age", limit=2) == ["few", "large"]
    assert await listed(details=True, skip=1, limit=1) == ["large"]
    assert [one["unsent"] for one in await operator.show_channels(details=True)] == [1, 1, 2]
    waiting.cancel()


@pytest.mark.parametrize("asked", [{"sort": "size"}, {"limit": 1_001, "details": True}])
async def test_what_cannot_be_listed_is_refused(
    operator: Operator, asked: dict[str, int | str | bool]
) -> None:
    with pytest.raises(BadRequest):
        await operator.show_channels(**asked)


async def test_the_service_is_on_its_socket_only(node: App, socket_path: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.grpc_port}") as connection:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await AdminServiceStub(connection).ListAgents(pb.ListAgentsRequest())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert ADMIN_SERVICE not in await reflected(f"127.0.0.1:{node.grpc_port}")
    assert ADMIN_SERVICE in await reflected(f"unix:{grpc_path(socket_path)}")


async def reflected(address: str) -> set[str]:
    """Return the services that reflection names."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(address) as connection:
        ask = connection.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        [response] = [response async for response in ask(iter([question]))]
    return {service.name for service in response.list_services_response.service}


# -- Watching


async def test_a_node_is_watched(target: App, node: App, operator: Operator) -> None:
    quiet = await node.broker.create(ANYONE)
    busy = await node.broker.create(ANYONE, (), ChannelOptions(label="orders"))
    for number in range(3):
        event = NewEvent("s", str(number).encode())
        await node.broker.write(ANYONE, busy.producer_address, event)
    async with operator.watch(interval_ms=100, limit=5, sort="depth") as views:
        first = await anext(views)
        assert first.at <= datetime.now(UTC)
        assert first.counts["messages_received"] == 3
        assert first.levels["channels"] == 2
        assert (first.agents, first.pipes, first.is_draining) == (["node", "spare"], [], False)
        assert first.channels[0] == {
            "address": busy.consumer_address,
            "depth": 3,
            "in_flight": 0,
            "waiting_writers": 0,
            "read": False,
            "has_age": True,
            "has_rate": False,
            "label": "orders",
            "tenant": "default",
            "id": short_id(ConsumerAddress.parse(busy.consumer_address).channel_id),
            "unsent": 3,
            "has_bytes": False,
        }
        assert first.channels[1]["address"] == quiet.consumer_address
        await operator.pipe("node", f"http://127.0.0.1:{target.grpc_port}")
        await node.admin.dispose(busy.consumer_address)
        async for view in views:
            if view.notable and view.pipes:
                break
        assert view.notable == {"messages_lost": 3}
        assert view.pipes == [("node", f"127.0.0.1:{target.grpc_port}", True)]
        assert [one["address"] for one in view.channels] == [quiet.consumer_address]
        assert view.channels[0]["has_rate"]


@pytest.mark.parametrize("asked", [{"interval_ms": 99}, {"limit": 1_001}, {"sort": "size"}])
async def test_what_cannot_be_watched_is_refused(
    operator: Operator, asked: dict[str, int | str]
) -> None:
    with pytest.raises(BadRequest):
        await first_view(operator, asked)


async def first_view(operator: Operator, asked: dict[str, int | str]) -> View:
    async with operator.watch(**asked) as views:
        return await anext(views)
