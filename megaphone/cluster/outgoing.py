"""The source's end of replication: sends the changes of an agent's channels to other nodes.

If a pipe loses its target, it reconnects after longer and longer pauses, and then sends what the
target has missed. It reads the changes from the channels themselves (see `cluster.ports.Changes`),
so there is no queue that could overflow. To *complete* a pipe is to send the rest and then report
that this is everything, so that the target may promote the agent. A node completes its pipes when
it stops, and the pipe of an agent that moves (`cluster.moves`).
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from megaphone.cluster import expiry
from megaphone.cluster.credentials import Credentials
from megaphone.cluster.expiry import ASKED_AT_ONCE
from megaphone.cluster.incoming import RUST_CAPACITY
from megaphone.cluster.peer import Connection, Target, connect, target_at
from megaphone.cluster.ports import Replicable
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.agents import Agent, Agents
from megaphone.core.ports import Observer, Store
from megaphone.errors import ChannelNotFound, MegaphoneError, TargetUnavailable, WrongMode
from megaphone.model import AgentMode, ChannelChange, EventAdded, PipeInfo
from megaphone.settings import Nodes
from megaphone.wire import sync as wire
from megaphone_api.sync_pb2 import SyncRequest

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

BATCH = 100
"""How many changes a pipe reads from the store at once."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
COMPLETE_S = 5.0
"""How long a target may take for the last changes. Calls for a moving agent may wait as long."""
RELEASED_AT_ONCE = 100
"""How many channels are released before other tasks get a turn."""


class OutgoingPipes:
    """All outgoing pipes of this node. Fulfils `core.ports.Pipes`."""

    def __init__(
        self,
        *,
        agents: Agents,
        store: Store,
        replication: Replicable,
        observer: Observer,
        nodes: Nodes,
        for_tls: "Callable[[], grpc.ChannelCredentials] | None" = None,
    ) -> None:
        """`for_tls` returns the certificate of this node for other nodes, if it has one."""
        self._agents = agents
        self._store = store
        self._replication = replication
        self._observer = observer
        self._credentials = Credentials(nodes, for_tls)
        self._pipes: dict[tuple[str, Target], OutgoingPipe] = {}
        self._asking: list[asyncio.Task[None]] = []
        """The tasks that ask the targets how channels are used there."""

    def described(self) -> Sequence[PipeInfo]:
        return [
            PipeInfo(name, str(target), pipe.connection is not None, pipe.backlog)
            for (name, target), pipe in self._pipes.items()
        ]

    async def pipe(self, agent: str, target: str) -> None:
        await self.open(agent, target_at(target))

    async def open(self, agent: str, target: Target) -> "OutgoingPipe":
        """Open a pipe that replicates an agent to a node, unless there is such a pipe already.

        Returns the pipe once the target has accepted the agent.

        Raises: AgentNotFound; BadRequest; WrongMode; Unauthenticated; TargetUnavailable.
        """
        if (known := self.get(agent, target)) is not None:
            return known
        if not self._asking:
            self._asking = [
                asyncio.create_task(self._expire()),
                asyncio.create_task(self._free_places()),
            ]
        piped = self._agents.pipe(agent)
        pipe = OutgoingPipe(
            piped,
            target,
            wire.start(agent, self._agents.keys.of(agent).secret, secrets.token_hex(8)),
            self._replication,
            self._observer,
            self._credentials,
        )
        self._pipes[agent, target] = pipe
        try:
            await pipe.start()
        except BaseException:
            await self.close(pipe)
            raise
        return pipe

    def get(self, agent: str, target: Target) -> "OutgoingPipe | None":
        """Return the running pipe that replicates an agent to a node; None if there is none.

        Raises: AgentNotFound.
        """
        self._agents.named(agent)
        pipe = self._pipes.get((agent, target))
        return pipe if pipe is not None and pipe.is_running else None

    async def unpipe(self, agent: str, target: str | None, *, force: bool) -> None:
        self._agents.named(agent)
        wanted = None if target is None else target_at(target)
        pipes = [pipe for pipe in self._of(agent) if wanted in (None, pipe.target)]
        if not pipes:
            where = "any node" if wanted is None else str(wanted)
            raise WrongMode(f"agent {agent} is not replicated from this node to {where}")
        for pipe in pipes if not force else ():
            await self._check_unused(pipe)
        for pipe in pipes:
            # A drain may have begun meanwhile. If the target did not get to confirm a cut-over,
            # both nodes would own the agent.
            if self._agents.is_unsettled(agent):
                raise WrongMode(f"agent {agent} moves to another node")
            await self.close(pipe)

    async def _check_unused(self, pipe: "OutgoingPipe") -> None:
        """Raises: WrongMode, when clients read channels of a pipe at its target, or may do so."""
        connection = pipe.connection
        if connection is None:
            if not pipe.is_running:
                return
            raise WrongMode(
                f"the pipe to {pipe.target} is not connected, so this node cannot find out whether"
                " clients read there; they would get nothing more: use `force` to close it anyway"
            )
        skip = in_use = 0
        try:
            while addresses := await self._store.list(pipe.agent.name, skip, ASKED_AT_ONCE):
                skip += len(addresses)
                in_use += len(await connection.in_use(addresses))
        except TargetUnavailable:
            raise WrongMode(
                f"{pipe.target} does not say whether clients read there; they would get nothing"
                " more: use `force` to close the pipe anyway"
            ) from None
        if in_use:
            known = "are" if connection.extended else "may be"
            raise WrongMode(
                f"{in_use} channels of agent {pipe.agent.name} {known} in use at {pipe.target};"
                " their readers there would get nothing more: use `force` to close the pipe anyway"
            )

    async def close(self, pipe: "OutgoingPipe") -> None:
        """Close a pipe without completing it.

        When its last pipe closes, a PIPED agent returns to the mode that it had before.
        """
        self._pipes.pop((pipe.agent.name, pipe.target), None)
        await pipe.close()
        if pipe.agent.mode is AgentMode.PIPED and not self._of(pipe.agent.name):
            self._agents.take_back(pipe.agent.name)

    async def release(self, agent: Agent) -> None:
        """Release an agent that another node owns now, and its channels."""
        await self.close_all(agent.name)
        await self._release_channels(agent.name)
        self._agents.mark_moved(agent.name)

    async def close_all(self, agent: str) -> None:
        """Close all pipes of an agent that leaves this node, without completing them."""
        for pipe in self._of(agent):
            del self._pipes[agent, pipe.target]
            await pipe.close()

    def _of(self, agent: str) -> "list[OutgoingPipe]":
        """Return the pipes of an agent."""
        return [pipe for (name, _), pipe in self._pipes.items() if name == agent]

    async def aclose(self) -> None:
        """Complete each pipe, for `COMPLETE_S` at most, and release the agents that were moved."""
        for task in self._asking:
            task.cancel()
        pipes = list(self._pipes.values())
        results = await asyncio.gather(*(pipe.complete() for pipe in pipes))
        arrived = [pipe for pipe, has_arrived in zip(pipes, results, strict=True) if has_arrived]
        for agent in {pipe.agent.name: pipe.agent for pipe in arrived}.values():
            await self.release(agent)
        for pipe in self._pipes.values():
            await pipe.close()

    async def _expire(self) -> None:
        """Let channels of replicated agents expire once no node uses them, while this node runs."""
        while True:
            await asyncio.sleep(expiry.CHECK_S)
            for agent in {name for name, _ in self._pipes}:
                targets = self._connected(agent)
                if len(targets) == len(self._of(agent)):
                    await self._expire_unused(agent, targets)

    def _connected(self, agent: str) -> list[Connection]:
        """Return the connections of those pipes of an agent that are connected now."""
        connections = [pipe.connection for pipe in self._of(agent)]
        return [connection for connection in connections if connection is not None]

    async def _free_places(self) -> None:
        """Ask the targets what their readers got, and free the places of these events for waiting
        writers, while this node runs."""
        while True:
            await asyncio.sleep(expiry.BLOCKED_CHECK_S)
            for agent in {name for name, _ in self._pipes}:
                if targets := self._connected(agent):
                    await expiry.free_places(self._replication, agent, targets)

    async def _expire_unused(self, agent: str, targets: Sequence[Connection]) -> None:
        for channel_id in await expiry.unused_channels(self._replication, agent, targets):
            if not self._agents.is_unsettled(
                agent
            ):  # because the target may own its channels by now
                await self._replication.expire(channel_id)

    async def _release_channels(self, agent: str) -> None:
        """Release all channels of an agent, in slices."""
        while addresses := await self._store.list(agent, 0, RELEASED_AT_ONCE):
            for address in addresses:
                with suppress(ChannelNotFound):
                    await self._replication.release(ConsumerAddress.parse(address).channel_id)
                    self._observer.channel_released()
            await asyncio.sleep(0)


class OutgoingPipe:
    """The source's end of one pipe: replicates one agent to one node."""

    def __init__(
        self,
        agent: Agent,
        target: Target,
        start: SyncRequest,
        replication: Replicable,
        observer: Observer,
        credentials: Credentials,
    ) -> None:
        self.agent = agent
        self.target = target
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
        """The connection to the target; None while there is none."""

    async def start(self) -> None:
        """Connect to the target, and start to replicate in a task.

        Raises: TargetUnavailable; BadRequest and WrongMode, when the target refuses the agent;
            Unauthenticated, when one of the nodes does not prove the node secret to the other.
        """
        connection = await connect(self.target, self._start, self._credentials)
        try:
            await self._check_capacity(connection)
        except BaseException:
            await connection.close()
            raise
        self._task = asyncio.create_task(self._run(connection))

    async def _check_capacity(self, connection: Connection) -> None:
        """Raises: WrongMode, when a channel of the agent has a larger capacity than the target
        allows."""
        largest = await self._replication.largest_capacity(self.agent.name)
        if not connection.extended and largest > RUST_CAPACITY:
            raise WrongMode(
                f"agent {self.agent.name} has a channel with a capacity of {largest} events;"
                f" the target runs the Rust broker, whose channels have {RUST_CAPACITY}"
            )

    @property
    def _fields(self) -> dict[str, str]:
        """What each log line about the pipe says."""
        return {"agent": self.agent.name, "target": str(self.target)}

    @property
    def is_running(self) -> bool:
        """Whether the pipe replicates or tries to reconnect. False once its agent is not PIPED any
        more."""
        return self._task is None or not self._task.done()

    @property
    def backlog(self) -> int:
        """How many channels may have changes that were not sent to the target yet."""
        return self._changes.backlog

    async def complete(self, *, as_master: bool = True) -> bool:
        """Send the remaining changes, report that they are all, and stop the pipe.

        With `as_master` the target may make the agent a MASTER. Without it the agent stays a
        REPLICA there.

        Returns: whether the target has confirmed that it has everything. If it has not, `resume`
            continues the pipe.
        """
        assert self._task is not None
        was_running = self.is_running
        self._as_master = as_master
        self._is_completing.set()
        await asyncio.wait({self._task}, timeout=COMPLETE_S)
        await self._stop()
        self._is_completing.clear()
        self._has_said_all = False  # because new changes may follow from now on
        if was_running and not self._has_arrived:
            log.warning("a pipe ended before everything was sent", extra=self._fields)
        return self._has_arrived

    def resume(self) -> None:
        """Continue after a `complete` that returned False."""
        self._task = asyncio.create_task(self._run(None))

    async def close(self) -> None:
        """Close the pipe without completing it. A second call changes nothing."""
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
        """Replicate the agent, and reconnect after errors.

        Returns when the target has everything after a `complete`. Also returns when the pipe has no
        connection and the agent is not PIPED any more.
        """
        failures = 0
        while self.agent.mode is AgentMode.PIPED:
            try:
                connection = connection or await self._connect_again()
                failures = 0
                await self._replicate(connection)
                self._has_arrived = True
                return
            except MegaphoneError as error:
                if self._has_arrived_before(error):
                    return
                if not failures:
                    log.warning("a pipe broke: %s", error, extra=self._fields)
            connection = None
            await asyncio.sleep(pause_s(failures))
            failures += 1
        self._stop_following()

    def _has_arrived_before(self, error: MegaphoneError) -> bool:
        """Return whether an error means that the agent is MASTER at the target already.

        This happens when the target has received everything, and only its confirmation was lost.
        """
        if self._has_said_all and self._is_completing.is_set() and isinstance(error, WrongMode):
            self._has_arrived = True
        return self._has_arrived

    async def _connect_again(self) -> Connection:
        connection = await connect(self.target, self._start, self._credentials)
        log.info("a pipe has reconnected", extra=self._fields)
        return connection

    async def _replicate(self, connection: Connection) -> None:
        """Send all channels from the start, and then each new change. Returns when the target has
        everything after a `complete`.

        Raises: MegaphoneError, when the stream ends earlier.
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
        """Wait for changes, and return them. Returns an empty sequence only after `complete` was
        called, when no change is left.

        Raises: MegaphoneError, when the stream of the connection has ended (`over`).
        """
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
        self._observer.events_replicated(sum(isinstance(c, EventAdded) for c in changes))


def pause_s(failures: int) -> float:
    """Return how long to wait after this many failures, in seconds.

    The pause doubles with each failure, up to `LONGEST_PAUSE_S`, plus up to a fifth at random.
    """
    pause = min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
    return pause * random.uniform(1.0, 1.2)
