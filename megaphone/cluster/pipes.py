"""Pipes: the channels of an agent, forwarded to other nodes for as long as this one runs.

A pipe whose target goes away connects again, after longer and longer pauses, and catches up: what
is forwarded is looked up in the channels themselves, so that there is no queue that could overflow
(see `core.ports.ChannelChanges`). At the end of this node each pipe is brought to its own end: what
is left is sent and then said to be complete, so that the target may take the agent over.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from typing import Any

import grpc

from megaphone.cluster.target import Connection, connect, endpoint_of
from megaphone.core.addresses import ConsumerAddress
from megaphone.core.agents import Agent, Agents
from megaphone.core.ports import Observer, Store
from megaphone.errors import MegaphoneError
from megaphone.model import AgentMode, ChannelChange, EventAdded
from megaphone.wire import sync as wire

log = logging.getLogger(__name__)

BATCH = 100
"""How many changes are looked up at once."""
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
CATCH_UP_CHECK_S = 0.01
FINISH_S = 5.0
"""How long the end of this node waits for its pipes."""


class Pipes:
    """Fulfils `core.ports.Pipes`."""

    def __init__(self, *, agents: Agents, store: Store, observer: Observer) -> None:
        self._agents = agents
        self._store = store
        self._observer = observer
        self._pipes: dict[tuple[str, str], Pipe] = {}

    async def pipe(self, agent: str, target: str) -> None:
        endpoint = endpoint_of(target)
        self._agents.named(agent)
        if (known := self._pipes.get((agent, endpoint))) is not None and known.is_running:
            return
        pipe = Pipe(self._agents.pipe(agent), endpoint, self._store, self._observer)
        self._pipes[agent, endpoint] = pipe
        try:
            await pipe.start()
        except BaseException:
            del self._pipes[agent, endpoint]
            self._give_back(agent)
            raise

    def _give_back(self, agent: str) -> None:
        """Undo the mode of an agent that has no pipe after all."""
        if not any(name == agent for name, _ in self._pipes):
            self._agents.promote(agent, asyncio.get_running_loop().time())

    async def hand_over(self, target: str, within_s: float) -> None:
        """Forward every master agent, and wait until the target has caught up.

        The end of the pipes, which is to follow, then leaves the agents with the target. What
        cannot be forwarded stays here, and the log says why.
        """
        masters = [agent.name for agent in self._agents if agent.mode is AgentMode.MASTER]
        for name in masters:
            try:
                await self.pipe(name, target)
                log.info("agent %s is handed over to another node", name)
            except MegaphoneError as error:
                log.error("agent %s cannot be handed over: %s", name, error)
        try:
            async with asyncio.timeout(within_s):
                while any(pipe.is_behind for pipe in self._pipes.values()):  # noqa: ASYNC110
                    await asyncio.sleep(CATCH_UP_CHECK_S)  # nothing tells when all are quiet
        except TimeoutError:
            log.error("the target has not caught up within %g s", within_s)

    async def aclose(self) -> None:
        """Bring each pipe to its end, for some seconds at most.

        The channels of an agent that has arrived elsewhere are let go of here: they live there.
        """
        results = await asyncio.gather(*(pipe.finish() for pipe in self._pipes.values()))
        names = [name for name, _ in self._pipes]
        for name in {name for name, arrived in zip(names, results, strict=True) if arrived}:
            await forget_channels(self._store, name)
        self._pipes.clear()


async def forget_channels(store: Store, agent: str) -> None:
    """Let go of all channels of an agent."""
    for address in await store.addresses(0, await store.count(agent), agent):
        await store.forget(ConsumerAddress.parse(address).channel_id)


class Pipe:
    """One agent, forwarded to one node."""

    def __init__(self, agent: Agent, endpoint: str, store: Store, observer: Observer) -> None:
        self._agent = agent
        self._endpoint = endpoint
        self._store = store
        self._observer = observer
        self._start = wire.start(agent.name, agent.key.secret, secrets.token_hex(8))
        self._changes = store.follow(agent.name)
        self._is_finishing = asyncio.Event()
        self._has_arrived = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and go on from there.

        Raises: TargetUnavailable; BadRequest and WrongMode, when the target refuses.
        """
        try:
            connection = await connect(self._endpoint, self._start)
        except BaseException:
            self._changes.close()
            raise
        self._task = asyncio.create_task(self._run(connection))

    @property
    def is_running(self) -> bool:
        """Whether it forwards, or tries to. Not once its agent was taken back."""
        return self._task is None or not self._task.done()

    @property
    def is_behind(self) -> bool:
        """Whether there is something to send that can be sent."""
        return bool(self._agent.pipes) and self._changes.are_pending

    async def finish(self) -> bool:
        """Send what is left. Returns: whether the target has said that it has it all."""
        assert self._task is not None
        was_running = self.is_running
        self._is_finishing.set()
        await asyncio.wait({self._task}, timeout=FINISH_S)
        self._task.cancel()
        await asyncio.wait({self._task})
        self._changes.close()
        if was_running and not self._has_arrived:
            log.warning("agent %s: its pipe did not come to its end", self._agent.name)
        return self._has_arrived

    async def _run(self, connection: Connection | None) -> None:
        """Forward until the end, or until the agent was taken back while there is no connection."""
        failures = 0
        while self._agent.mode is AgentMode.PIPED:
            try:
                connection = connection or await self._connect_again()
                failures = 0
                await self._forward(connection)
                self._has_arrived = True
                return
            except MegaphoneError as error:
                if not failures:
                    log.warning("agent %s: its pipe broke: %s", self._agent.name, error)
            connection = None
            await asyncio.sleep(pause_s(failures))
            failures += 1

    async def _connect_again(self) -> Connection:
        connection = await connect(self._endpoint, self._start)
        log.info("agent %s: its pipe is connected again", self._agent.name)
        return connection

    async def _forward(self, connection: Connection) -> None:
        """Send everything from the start, and then what comes, until the end.

        Raises: MegaphoneError, when the stream ends before that.
        """
        self._agent.pipes += 1
        self._store.hold(self._agent.name)
        self._changes.restart(with_read=connection.extended)
        over = asyncio.ensure_future(connection.call.code())
        try:
            while changes := await self._next_changes(connection, over):
                await self._send(connection, changes)
            await connection.send(wire.end(self._agent.name))
            await connection.finish()
        finally:
            over.cancel()
            self._agent.pipes -= 1
            self._store.unhold(self._agent.name)
            await connection.close()

    async def _next_changes(
        self, connection: Connection, over: "asyncio.Future[grpc.StatusCode]"
    ) -> Sequence[ChannelChange]:
        """Wait for something to send; none when nothing is left and this is the end."""
        if self._is_finishing.is_set() and not self._changes.are_pending:
            return ()
        taking = asyncio.ensure_future(self._changes.take(BATCH))
        finishing = asyncio.ensure_future(self._is_finishing.wait())
        try:
            while not taking.done():
                if over.done():
                    raise await connection.failure()
                if finishing.done() and not self._changes.are_pending:
                    return ()
                waits: list[asyncio.Future[Any]] = [taking, over]
                if not finishing.done():
                    waits.append(finishing)
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return taking.result()
        finally:
            taking.cancel()
            finishing.cancel()

    async def _send(self, connection: Connection, changes: Sequence[ChannelChange]) -> None:
        for request in wire.requests(changes, extended=connection.extended):
            await connection.send(request)
        self._observer.events_forwarded(sum(isinstance(c, EventAdded) for c in changes))


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures: twice as long each time, and some more."""
    pause = FIRST_PAUSE_S
    pause = min(pause * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
    return pause * random.uniform(1.0, 1.2)
