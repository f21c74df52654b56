"""Pipes: the channels of an agent, forwarded to other nodes for as long as this one runs.

A pipe whose target goes away connects again, after longer and longer pauses, and catches up: what
is forwarded is looked up in the channels themselves, so that there is no queue that could overflow
(see `cluster.ports.Changes`). A pipe can be completed: what is left is sent and then said to be
all, so that the target may take the agent over. So ends each pipe of a node that stops, and of an
agent that moves (`cluster.moves`).
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from megaphone.cluster import expiry
from megaphone.cluster.credentials import Credentials
from megaphone.cluster.incoming import RUST_CAPACITY
from megaphone.cluster.peer import Connection, connect, endpoint_of
from megaphone.cluster.ports import Replicable
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.agents import Agent, Agents
from megaphone.core.ports import Observer, Store
from megaphone.errors import ChannelNotFound, MegaphoneError, WrongMode
from megaphone.model import AgentMode, ChannelChange, Endpoint, EventAdded
from megaphone.settings import Nodes
from megaphone.wire import sync as wire
from megaphone_api.sync_pb2 import SyncRequest

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

BATCH = 100
"""How many changes are looked up at once."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
COMPLETE_S = 5.0
"""How long a target may take to take the rest. Who calls for an agent that moves waits as long."""
RELEASED_AT_ONCE = 100
"""How many channels are released before other tasks get their turn."""


class OutgoingPipes:
    """Fulfils `core.ports.Pipes`."""

    def __init__(
        self,
        *,
        agents: Agents,
        store: Store,
        replication: Replicable,
        observer: Observer,
        nodes: Nodes,
    ) -> None:
        self._agents = agents
        self._store = store
        self._replication = replication
        self._observer = observer
        self._credentials = Credentials(nodes)
        self._pipes: dict[tuple[str, Endpoint], OutgoingPipe] = {}
        self._asking: list[asyncio.Task[None]] = []
        """What asks targets which channels are read there, and how far."""

    async def pipe(self, agent: str, target: str) -> None:
        await self.open(agent, endpoint_of(target))

    async def open(self, agent: str, endpoint: Endpoint) -> "OutgoingPipe":
        """Begin to forward an agent, unless it is forwarded there already.

        Returns once the target has taken it. Raises: AgentNotFound; BadRequest; WrongMode;
            Unauthenticated; TargetUnavailable.
        """
        if (known := self.get(agent, endpoint)) is not None:
            return known
        if not self._asking:
            self._asking = [
                asyncio.create_task(self._expire()),
                asyncio.create_task(self._make_room()),
            ]
        piped = self._agents.pipe(agent)
        pipe = OutgoingPipe(
            piped,
            endpoint,
            wire.start(agent, self._agents.keys.of(agent).secret, secrets.token_hex(8)),
            self._replication,
            self._observer,
            self._credentials,
        )
        self._pipes[agent, endpoint] = pipe
        try:
            await pipe.start()
        except BaseException:
            await self.close(pipe)
            raise
        return pipe

    def get(self, agent: str, endpoint: Endpoint) -> "OutgoingPipe | None":
        """Return the pipe that forwards an agent to a node.

        Raises: AgentNotFound.
        """
        self._agents.named(agent)
        pipe = self._pipes.get((agent, endpoint))
        return pipe if pipe is not None and pipe.is_running else None

    async def close(self, pipe: "OutgoingPipe") -> None:
        """End a pipe where it is. With its last pipe an agent is what it was before."""
        self._pipes.pop((pipe.agent.name, pipe.endpoint), None)
        await pipe.close()
        if pipe.agent.mode is AgentMode.PIPED and not self._of(pipe.agent.name):
            self._agents.take_back(pipe.agent.name)

    async def let_go(self, agent: Agent) -> None:
        """Let go of an agent that has arrived elsewhere, and of its channels, which live there."""
        await self.close_all(agent.name)
        await self._release_channels(agent.name)
        self._agents.leave(agent.name)

    async def close_all(self, agent: str) -> None:
        """End every pipe of an agent where it is, for an agent that goes."""
        for pipe in self._of(agent):
            del self._pipes[agent, pipe.endpoint]
            await pipe.close()

    def _of(self, agent: str) -> "list[OutgoingPipe]":
        return [pipe for (name, _), pipe in self._pipes.items() if name == agent]

    async def aclose(self) -> None:
        """Complete each pipe, for some seconds at most, and let go of what has arrived."""
        for task in self._asking:
            task.cancel()
        pipes = list(self._pipes.values())
        results = await asyncio.gather(*(pipe.complete() for pipe in pipes))
        arrived = [pipe for pipe, has_arrived in zip(pipes, results, strict=True) if has_arrived]
        for agent in {pipe.agent.name: pipe.agent for pipe in arrived}.values():
            await self.let_go(agent)
        for pipe in self._pipes.values():
            await pipe.close()

    async def _expire(self) -> None:
        """Look for channels that nobody reads any more, for as long as this node runs."""
        while True:
            await asyncio.sleep(expiry.CHECK_S)
            for agent in {name for name, _ in self._pipes}:
                targets = self._connected(agent)
                if len(targets) == len(self._of(agent)):
                    await self._end_unread(agent, targets)

    def _connected(self, agent: str) -> list[Connection]:
        connections = [pipe.connection for pipe in self._of(agent)]
        return [connection for connection in connections if connection is not None]

    async def _make_room(self) -> None:
        """Follow how far channels are read elsewhere while writers wait for room in them here."""
        while True:
            await asyncio.sleep(expiry.BLOCKED_CHECK_S)
            for agent in {name for name, _ in self._pipes}:
                if targets := self._connected(agent):
                    await expiry.make_room(self._replication, agent, targets)

    async def _end_unread(self, agent: str, targets: Sequence[Connection]) -> None:
        for channel_id in await expiry.unread_anywhere(self._replication, agent, targets):
            if not self._agents.is_moving(agent):  # then its channels are not this node's to end
                await self._replication.expire(channel_id)

    async def _release_channels(self, agent: str) -> None:
        """Drop all channels of an agent, in slices."""
        while addresses := await self._store.list(agent, 0, RELEASED_AT_ONCE):
            for address in addresses:
                with suppress(ChannelNotFound):
                    await self._replication.release(ConsumerAddress.parse(address).channel_id)
                    self._observer.channel_forgotten()
            await asyncio.sleep(0)


class OutgoingPipe:
    """One agent, forwarded to one node."""

    def __init__(
        self,
        agent: Agent,
        endpoint: Endpoint,
        start: SyncRequest,
        replication: Replicable,
        observer: Observer,
        credentials: Credentials,
    ) -> None:
        self.agent = agent
        self.endpoint = endpoint
        self._replication = replication
        self._observer = observer
        self._credentials = credentials
        self._start = start
        self._changes = replication.follow(agent.name)
        self._is_completing = asyncio.Event()
        self._as_master = True
        self._has_said_all = False
        self._has_arrived = False
        self._task: asyncio.Task[None] | None = None
        self._is_following = True
        self.connection: Connection | None = None
        """The connection over which it forwards now."""

    async def start(self) -> None:
        """Connect, and go on from there.

        Raises: TargetUnavailable; BadRequest, WrongMode and Unauthenticated, when the target
            refuses, or has not proved that it has the secret of this node.
        """
        connection = await connect(self.endpoint, self._start, self._credentials)
        try:
            await self._check_capacity(connection)
        except BaseException:
            await connection.close()
            raise
        self._task = asyncio.create_task(self._run(connection))

    async def _check_capacity(self, connection: Connection) -> None:
        """Raises: WrongMode, when channels of the agent hold more than the target would."""
        largest = await self._replication.largest_capacity(self.agent.name)
        if not connection.extended and largest > RUST_CAPACITY:
            raise WrongMode(
                f"agent {self.agent.name} has a channel with a capacity of {largest} events;"
                f" the target runs the Rust broker, whose channels have {RUST_CAPACITY}"
            )

    @property
    def is_running(self) -> bool:
        """Whether it forwards, or tries to. Not once its agent was taken back."""
        return self._task is None or not self._task.done()

    @property
    def backlog(self) -> int:
        """How many channels may have something that the target does not have yet."""
        return self._changes.backlog

    async def complete(self, *, as_master: bool = True) -> bool:
        """Send what is left, and that this is all; the pipe is over then.

        `as_master` lets the target make the agent a master. Otherwise it stays a replica there.

        Returns: whether the target has said that it has it all. If not, `resume` goes on.
        """
        assert self._task is not None
        was_running = self.is_running
        self._as_master = as_master
        self._is_completing.set()
        await asyncio.wait({self._task}, timeout=COMPLETE_S)
        await self._stop()
        self._is_completing.clear()
        self._has_said_all = False  # from now on there may be more
        if was_running and not self._has_arrived:
            log.warning("agent %s: its pipe ended before everything was sent", self.agent.name)
        return self._has_arrived

    def resume(self) -> None:
        """Go on after a `complete` that failed."""
        self._task = asyncio.create_task(self._run(None))

    async def close(self) -> None:
        """End it where it is. Repeating it changes nothing."""
        await self._stop()
        self._stop_following()

    def _stop_following(self) -> None:
        if self._is_following:
            self._is_following = False
            self._changes.close()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, connection: Connection | None) -> None:
        """Forward until the end, or until the agent was taken back while there is no connection."""
        failures = 0
        while self.agent.mode is AgentMode.PIPED:
            try:
                connection = connection or await self._connect_again()
                failures = 0
                await self._forward(connection)
                self._has_arrived = True
                return
            except MegaphoneError as error:
                if self._has_arrived_before(error):
                    return
                if not failures:
                    log.warning("agent %s: its pipe broke: %s", self.agent.name, error)
            connection = None
            await asyncio.sleep(pause_s(failures))
            failures += 1
        self._stop_following()

    def _has_arrived_before(self, error: MegaphoneError) -> bool:
        """Whether a target refuses the agent since it has it all, and only its answer was lost."""
        if self._has_said_all and self._is_completing.is_set() and isinstance(error, WrongMode):
            self._has_arrived = True
        return self._has_arrived

    async def _connect_again(self) -> Connection:
        connection = await connect(self.endpoint, self._start, self._credentials)
        log.info("agent %s: its pipe has reconnected", self.agent.name)
        return connection

    async def _forward(self, connection: Connection) -> None:
        """Send everything from the start, and then what comes, until the end.

        Raises: MegaphoneError, when the stream ends before that.
        """
        self.agent.pipes += 1
        self.connection = connection
        self._changes.restart(with_read=connection.extended)
        over = asyncio.ensure_future(connection.call.code())
        try:
            with self._replication.keep_alive(self.agent.name):
                while changes := await self._next_changes(connection, over):
                    await self._send(connection, changes)
                if self._as_master:
                    self._has_said_all = True
                    await connection.send(wire.end(self.agent.name))
                await connection.finish()
        finally:
            over.cancel()
            self.agent.pipes -= 1
            self.connection = None
            await connection.close()

    async def _next_changes(
        self, connection: Connection, over: "asyncio.Future[grpc.StatusCode]"
    ) -> Sequence[ChannelChange]:
        """Wait for something to send; none when nothing is left and this is the end."""
        while True:
            if over.done():
                raise await connection.failure()
            if self._is_completing.is_set():
                return await self._changes.take(BATCH, wait=False)
            taking = asyncio.ensure_future(self._changes.take(BATCH))
            completing = asyncio.ensure_future(self._is_completing.wait())
            try:
                waits: list[asyncio.Future[Any]] = [taking, completing, over]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    return taking.result()
            finally:
                taking.cancel()
                completing.cancel()

    async def _send(self, connection: Connection, changes: Sequence[ChannelChange]) -> None:
        for request in wire.requests(changes, extended=connection.extended):
            await connection.send(request)
        self._observer.events_forwarded(sum(isinstance(c, EventAdded) for c in changes))


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures: twice as long each time, and some more."""
    pause = min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
    return pause * random.uniform(1.0, 1.2)
