"""Three nodes that move their agents to each other, and links between them that a test can cut.

A node runs either in this process, with everything that a separate process would have, or in its
own process, so that it can be killed. Tests control both kinds over the admin socket. A node in
this process is *killed* by closing every link to and from it at once: from then on nothing that it
does reaches anybody. Later a new node starts at the same address, without channels.
"""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from megaphone.app import App, running
from megaphone.errors import MegaphoneError
from megaphone.model import AgentMode
from tests.support.links import Link
from tests.support.process import BrokerProcess, broker_process
from tests.support.raw_http import Node
from tests.support.settings import fast_settings

NODES = 3
MANY = 1_000
LOOK_AGAIN_S = 0.02
ANSWER_S = 8.0
"""How long a node may take to answer whether it has an agent; it waits while the agent moves."""


class Gone(Exception):
    """The node of the channels was killed, and the channels with it."""


# -- Where a node runs


class Host(Protocol):
    """Starts and ends a node."""

    http_port: int
    grpc_port: int

    async def start(self, name: str, socket: Path, **settings: object) -> None: ...

    async def kill(self) -> None:
        """Kill the node. Nothing that it does after this call reaches anybody."""

    async def stop(self) -> None:
        """Stop the node in order."""


class HostHere:
    """Runs a node in this process."""

    def __init__(self, on_start: Callable[[App], None]) -> None:
        self.http_port = self.grpc_port = 0
        self._on_start = on_start
        self._ending = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._app: App | None = None
        self._emptying: asyncio.Task[None] | None = None

    async def start(self, name: str, socket: Path, **settings: Any) -> None:
        self._ending = asyncio.Event()
        started: asyncio.Future[App] = asyncio.get_running_loop().create_future()
        agent = {name: AgentMode.MASTER}
        made = fast_settings(agent=agent, mng_socket_path=str(socket), **settings)

        async def run(ending: asyncio.Event) -> None:
            async with running(made) as app:
                started.set_result(app)
                await ending.wait()

        self._running = asyncio.create_task(run(self._ending))
        waits: set[asyncio.Future[Any]] = {self._running, started}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            await self._running
        self._app = app = started.result()
        self._on_start(app)
        self.http_port, self.grpc_port = app.http_port, app.grpc_port

    async def kill(self) -> None:
        self._ending.set()  # nobody can reach it, so it may take its time
        if self._app is not None and self._emptying is None:
            self._emptying = asyncio.create_task(empty(self._app))

    async def stop(self) -> None:
        self._ending.set()
        if self._emptying is not None:
            await self._emptying
        if self._running is not None:
            await self._running


async def empty(app: App) -> None:
    """Remove all channels of a node, so that it has nothing to hand over when it stops."""
    for address in await app.admin.list_channels(limit=MANY):
        with suppress(MegaphoneError):
            await app.admin.dispose(address)


class HostProcess:
    """Runs a node in its own process."""

    def __init__(self) -> None:
        self.http_port = self.grpc_port = 0
        self._stack = ExitStack()
        self._broker: BrokerProcess | None = None

    async def start(self, name: str, socket: Path, **settings: Any) -> None:
        def run() -> BrokerProcess:
            settings.update(agent=name, agent_warmup_secs=0, mng_socket_path=socket)
            context = broker_process(socket.parent, **settings)
            return self._stack.enter_context(context)

        self._broker = await asyncio.to_thread(run)
        self.http_port, self.grpc_port = self._broker.http_port, self._broker.grpc_port

    async def kill(self) -> None:
        assert self._broker is not None
        self._broker.process.kill()
        await asyncio.to_thread(self._stack.close)

    async def stop(self) -> None:
        assert self._broker is not None
        self._broker.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self._broker.process.wait)
        await asyncio.to_thread(self._stack.close)


# -- A node and its links


@dataclass(slots=True)
class Member:
    """One node of a cluster."""

    number: int
    host: Host
    settings: dict[str, Any]
    folder: Path
    http: Link = field(default_factory=Link)
    """The links through which clients reach the node."""
    grpc: Link = field(default_factory=Link)
    feeds: dict[int, Link] = field(default_factory=dict)
    """The link through which each other node reaches this one, by the number of the other node."""
    successor: str = ""
    """The node to which this one moves its agents when it stops."""
    starts: int = 0
    is_alive: bool = False

    @property
    def name(self) -> str:
        """The name of the agent that the node makes itself; a new one after each start."""
        return f"node-{self.number}-{self.starts}"

    @property
    def socket(self) -> Path:
        """The path of the admin socket; a new one after each start."""
        return self.folder / f"{self.name}.sock"

    @property
    def address(self) -> Node:
        return Node(self.http.port, self.grpc.port)

    def target_for(self, other: "Member") -> str:
        return f"http://127.0.0.1:{self.feeds[other.number].port}"

    async def start(self) -> None:
        self.starts += 1
        evicted_to = {"drain_target": self.successor} if self.successor else {}
        await self.host.start(self.name, self.socket, **evicted_to, **self.settings)
        self.http.to_port, self.grpc.to_port = self.host.http_port, self.host.grpc_port
        for link in self.feeds.values():
            link.to_port = self.host.grpc_port
        for link in (self.http, self.grpc, *self.feeds.values()):
            await link.open()
        self.is_alive = True

    async def manage(self, method: str, path: str, body: object = None) -> tuple[int, list[Any]]:
        """Call the admin API of the node. Returns: the status, and each line of the answer."""
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with (
            aiohttp.ClientSession("http://megaphone", connector=connector) as session,
            session.request(method, path, json=body) as answer,
        ):
            return answer.status, [json.loads(line) async for line in answer.content]

    async def metric(self, name: str) -> float:
        url = f"http://127.0.0.1:{self.host.http_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            lines = (await answer.text()).splitlines()
        [value] = [line.split()[1] for line in lines if line.startswith(f"megaphone_{name} ")]
        return float(value)


class Cluster:
    """Three nodes, and the operations on them."""

    def __init__(self, members: Sequence[Member], session: aiohttp.ClientSession) -> None:
        self.members = members
        self._session = session
        self.is_gone = asyncio.Event()
        """Set when the node of the channels was killed."""
        self._dying: list[Host] = []
        self._cut_off: list[Link] = []
        """The links of killed nodes. The nodes that replaced them have other links."""

    # -- For clients

    async def owner_of(self, agent: str, likely: Member) -> Member:
        """Return the node that has an agent. Like the proxy, ask one node after the other; ask the
        most probable node first.

        Raises: Gone.
        """
        in_order = sorted(self.members, key=lambda member: member is not likely)
        while not self.is_gone.is_set():
            for member in in_order:
                if await self._owns(member, agent):
                    return member
            await asyncio.sleep(LOOK_AGAIN_S)
        raise Gone

    async def owners_of(self, agent: str) -> list[Member]:
        answers = await asyncio.gather(*(self._owns(member, agent) for member in self.members))
        return [member for member, owns in zip(self.members, answers, strict=True) if owns]

    async def _owns(self, member: Member, agent: str) -> bool:
        url = f"http://127.0.0.1:{member.http.port}/agents/{agent}"
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(ANSWER_S), self._session.get(url) as answer:
                return answer.status == 204
        return False

    # -- For operators, and accidents

    async def drain(self, source: Member, target: Member) -> dict[str, Any]:
        """Drain a node. Returns: the last line of the answer, which is progress or an error."""
        try:
            _, lines = await source.manage(
                "POST", "/node/drain", {"target": target.target_for(source)}
            )
        except aiohttp.ClientError as error:
            return {"code": "BROKEN", "message": repr(error)}
        last: dict[str, Any] = lines[-1]
        return last

    async def pipe(self, agent: str, source: Member, target: Member) -> dict[str, Any]:
        body = {"name": agent, "target": target.target_for(source)}
        _, [answer] = await source.manage("POST", "/vagent/pipe", body)
        return dict(answer)

    def successor_of(self, member: Member) -> Member:
        """Return the node to which the given node moves its agents when it stops."""
        return self.members[(member.number + 1) % len(self.members)]

    def links_between(self, one: Member, other: Member) -> list[Link]:
        return [one.feeds[other.number], other.feeds[one.number]]

    async def kill(self, victim: Member) -> None:
        victim.is_alive = False
        links = [victim.http, victim.grpc, *victim.feeds.values()]
        links += [m.feeds[victim.number] for m in self.members if m is not victim]
        for link in links:
            link.close()
        await victim.host.kill()
        self._dying.append(victim.host)

    async def evict(self, member: Member) -> None:
        """Stop a node in order. It moves its agents to its successor."""
        await member.host.stop()
        member.is_alive = False

    async def start_again(self, member: Member, host: Host) -> None:
        """Start a new node without channels at the address of a killed or stopped one."""
        member.host = host
        for other in self.members:
            if other is not member:
                await self._renew_link(member, other)
        member.successor = self.successor_of(member).target_for(member)
        await member.start()

    async def _renew_link(self, source: Member, target: Member) -> None:
        self._cut_off.append(target.feeds[source.number])
        link = target.feeds[source.number] = Link(target.host.grpc_port)
        await link.open()
        if not target.is_alive:
            link.close()

    async def aclose(self) -> None:
        for member in self.members:  # the channels that the nodes still have do not matter
            for link in member.feeds.values():
                link.close()
        hosts = [*self._dying, *(member.host for member in self.members if member.is_alive)]
        for host in hosts:
            if isinstance(host, HostHere):
                await host.kill()
        await asyncio.gather(*(host.stop() for host in hosts if isinstance(host, HostHere)))
        for host in hosts:
            if isinstance(host, HostProcess) and host not in self._dying:
                await host.kill()
        for member in self.members:
            for link in (member.http, member.grpc, *member.feeds.values()):
                await link.aclose()
        for link in self._cut_off:
            await link.aclose()


@asynccontextmanager
async def cluster_of(
    folder: Path, hosts: Sequence[Host], settings: Sequence[dict[str, Any]]
) -> AsyncIterator[Cluster]:
    """Run one node per host with these settings within this context."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        members = [
            Member(number, host, chosen, folder)
            for number, (host, chosen) in enumerate(zip(hosts, settings, strict=True))
        ]
        for member in members:
            member.feeds = {m.number: Link() for m in members if m is not member}
        cluster = Cluster(members, session)
        stack.push_async_callback(cluster.aclose)
        for member in members:
            following = cluster.successor_of(member)
            await following.feeds[member.number].open()
            member.successor = following.target_for(member)
        await asyncio.gather(*(member.start() for member in members))
        yield cluster


def another(rng: random.Random, members: Sequence[Member], *but: Member) -> Member:
    return rng.choice([member for member in members if member not in but])
