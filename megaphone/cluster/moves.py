"""Drains: every agent of this node moves to another one, while clients go on.

An agent moves in two steps. First it is forwarded (`cluster.outgoing`) until the target has nearly
all; that may take long, and readers and writers do not feel it. Then it is cut over, which takes
some milliseconds: calls for it wait, its reads end cleanly, what is left is sent, the target makes
it a master and says so. Now this node lets go of it, and the calls that wait are told that it has
moved. If it does not come to that they go on here, and so does the agent.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from megaphone.cluster.incoming import IncomingPipes
from megaphone.cluster.outgoing import OutgoingPipe, OutgoingPipes
from megaphone.cluster.peer import endpoints_of
from megaphone.cluster.ports import Replicable
from megaphone.core.agents import Agent, Agents
from megaphone.core.broker import Broker
from megaphone.core.ports import Store
from megaphone.errors import MegaphoneError, TargetUnavailable, WrongMode
from megaphone.model import AgentMode, DrainProgress, Endpoint

log = logging.getLogger(__name__)

NEARLY_ALL = 100
"""How many channels may have news for the target when an agent is cut over: few enough that calls
do not wait for long, and enough that it comes to that while all channels are written to."""
CHECK_S = 0.02
AGAIN_S = 0.5
"""When a node that stops looks again for a target that refused, or was not there."""
TELL_S = 0.5
"""How often a drain tells how far it is."""
GONE_S = 10.0
"""How long a pipe may be without its target before its agent stays here."""


class Drains:
    """Fulfils `core.ports.Drains`."""

    def __init__(
        self,
        *,
        agents: Agents,
        broker: Broker,
        store: Store,
        replication: Replicable,
        incoming: IncomingPipes,
        pipes: OutgoingPipes,
    ) -> None:
        self.agents = agents
        self.broker = broker
        self.store = store
        self.replication = replication
        self.incoming = incoming
        self.pipes = pipes
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        return self._draining(target, {})

    async def _draining(
        self, target: str, logged: dict[str, str]
    ) -> AsyncGenerator[DrainProgress, None]:
        """Drain. What is in `logged`, by agent, is not logged again."""
        if not self._is_idle.is_set():
            raise WrongMode("this node is being drained already")
        self._is_idle.clear()
        self.incoming.refuse_new("this node is being drained")
        try:
            endpoints = await endpoints_of(target)
            async with aclosing(self._moving_each(endpoints, logged)) as steps:
                async for progress in steps:
                    yield progress
        finally:
            self.incoming.accept_new()
            self._is_idle.set()

    async def hand_over(self, target: str | None, within_s: float) -> None:
        """Drain this node, which stops, for so long at most; a drain that runs comes to its end.

        While channels would be lost, a target that refuses, or is not there, is asked again: it may
        be a successor that starts just now. What stays here in the end is logged.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._is_idle.wait()
                if target is not None:
                    await self._drain_in_the_end(target)
        except TimeoutError:
            log.error("this node did not finish its hand-over within %g s", within_s)
        if target is not None and (channels := await self._channels_here()):
            names = ", ".join(agent.name for agent in self._left(()))
            log.error("%d channels are lost with this node; their agents: %s", channels, names)

    async def _drain_in_the_end(self, target: str) -> None:
        """Drain until nothing is left, or nothing is lost with what is."""
        logged: dict[str, str] = {}
        while True:
            try:
                async with aclosing(self._draining(target, logged)) as steps:
                    async for _ in steps:
                        pass
                return
            except MegaphoneError as error:
                log_once(logged, "", "this node cannot be handed over: %s", error)
            if not await self._channels_here():
                return
            await asyncio.sleep(AGAIN_S)

    async def _channels_here(self) -> int:
        """Return how many channels are this node's to move."""
        return sum([await self.store.count(agent.name) for agent in self._left(())])

    async def _moving_each(
        self, endpoints: Sequence[Endpoint], logged: dict[str, str]
    ) -> AsyncGenerator[DrainProgress, None]:
        moved = Moved()
        failures: dict[str, MegaphoneError] = {}
        yield await self._progress(moved, failures)
        while left := self._left(failures):
            move = Move(self, left[0], endpoints)
            moving = asyncio.create_task(move.run())
            try:
                while not moving.done():
                    yield await self._progress(moved, failures, move)
                    await asyncio.wait({moving}, timeout=TELL_S)
            finally:
                moving.cancel()
                await asyncio.wait({moving})
            try:
                moved.channels += moving.result()
                moved.agents += 1
            except MegaphoneError as error:
                failures[move.agent.name] = error
                name = move.agent.name
                log_once(logged, name, f"agent {name} stays here: %s", error)
        yield await self._progress(moved, failures, done=not failures)
        if failures:
            raise all_in_one(failures)

    def _left(self, failures: Collection[str]) -> list[Agent]:
        """Return what is yet to move. What another node feeds is that node's to move."""
        return [agent for agent in self.agents if not agent.feeds and agent.name not in failures]

    async def _progress(
        self,
        moved: "Moved",
        failures: Collection[str],
        move: "Move | None" = None,
        *,
        done: bool = False,
    ) -> DrainProgress:
        left = self._left(())
        channels = await self._channels_here()
        copied = 0 if move is None else await move.copied()
        return DrainProgress(
            agent="" if move is None else move.agent.name,
            agents_moved=moved.agents,
            agents_left=len(left),
            agents_failed=len(failures),
            channels_moved=moved.channels + copied,
            channels_left=channels - copied,
            done=done,
        )


def log_once(logged: dict[str, str], about: str, text: str, error: MegaphoneError) -> None:
    """Log an error about something, unless it was the last one that was logged about it."""
    if logged.get(about) != str(error):
        logged[about] = str(error)
        log.error(text, error)


class Moved:
    """What a drain has moved so far."""

    agents = 0
    channels = 0


def all_in_one(failures: dict[str, MegaphoneError]) -> MegaphoneError:
    """Return the last of some errors, with the names of all agents that did not move."""
    last = list(failures.values())[-1]
    return type(last)(
        f"these agents have not moved, and are as before: {', '.join(failures)}; {last}"
    )


class Move:
    """One agent, on its way to the first of some nodes that takes it."""

    def __init__(self, drains: Drains, agent: Agent, endpoints: Sequence[Endpoint]) -> None:
        self.agent = agent
        self._broker = drains.broker
        self._agents = drains.agents
        self._store = drains.store
        self._replication = drains.replication
        self._pipes = drains.pipes
        self._incoming = drains.incoming
        self._endpoints = endpoints
        self._pipe: OutgoingPipe | None = None

    async def copied(self) -> int:
        """Return how many channels the target has, as far as is known."""
        if self._pipe is None or self._pipe.connection is None:
            return 0
        return max(0, await self._store.count(self.agent.name) - self._pipe.backlog)

    async def run(self) -> int:
        """Move it. If this fails, or is cancelled before the cut, the agent is as it was.

        Returns: how many channels have moved.
        Raises: MegaphoneError.
        """
        if self.agent.was_fed and not await self._store.count(self.agent.name):
            return await self._drop()
        pipe, is_new = await self._open_pipe()
        self._pipe = pipe
        try:
            await self._catch_up(pipe)
            # Once begun it must come to its end: half-way the agent would be nowhere, or twice.
            return await uninterrupted(self._cut_over(pipe))
        except BaseException:
            if self._agents.get(self.agent.name) is self.agent:
                await self._stay(pipe, is_new=is_new)
            raise

    async def _drop(self) -> int:
        """Let go of what came from another node for its channels, and has none any more."""
        await self._pipes.close_all(self.agent.name)
        self._incoming.forget(self.agent.name)
        if self._agents.get(self.agent.name) is self.agent:  # it may have gone by itself meanwhile
            self._agents.remove(self.agent.name)
        log.info("agent %s has no channels any more", self.agent.name)
        return 0

    async def _open_pipe(self) -> tuple[OutgoingPipe, bool]:
        """Return a pipe to a node that takes the agent, and whether it is a new one."""
        refusal: MegaphoneError = TargetUnavailable()
        for endpoint in self._endpoints:
            try:
                is_new = self._pipes.get(self.agent.name, endpoint) is None
                return await self._pipes.open(self.agent.name, endpoint), is_new
            except MegaphoneError as error:
                refusal = error
        raise refusal

    async def _catch_up(self, pipe: OutgoingPipe) -> None:
        """Wait until the target has nearly all. Raises: TargetUnavailable, when it is gone."""
        clock = asyncio.get_running_loop().time
        seen_at = clock()
        while pipe.connection is None or pipe.backlog > NEARLY_ALL:
            if pipe.connection is not None:
                seen_at = clock()
            elif not pipe.is_running or clock() > seen_at + GONE_S:
                raise TargetUnavailable("the target does not answer any more")
            await asyncio.sleep(CHECK_S)

    async def _cut_over(self, pipe: OutgoingPipe) -> int:
        """Raises: TargetUnavailable, when the target has not said that it has it all."""
        name = self.agent.name
        with self._agents.moving(name):
            await self._replication.dismiss_writers(name)
            await self._broker.end_reads(name)
            channels = await self._store.count(name)
            as_master = self.agent.before_pipe is AgentMode.MASTER
            if not await pipe.complete(as_master=as_master):
                raise TargetUnavailable("the target did not confirm that it has everything")
            await self._pipes.let_go(self.agent)
            self._incoming.forget(name)
        log.info("agent %s has moved to another node, with %d channels", name, channels)
        return channels

    async def _stay(self, pipe: OutgoingPipe, *, is_new: bool) -> None:
        if is_new:
            await self._pipes.close(pipe)
        elif not pipe.is_running:
            pipe.resume()


async def uninterrupted(work: Coroutine[Any, Any, int]) -> int:
    """Do some work to its end, even if this is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
