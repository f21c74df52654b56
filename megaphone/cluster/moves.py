"""Drains: move every agent of this node to another node, while clients continue to read and write.

An agent moves in two steps. First it is replicated (`cluster.outgoing`) until the target has nearly
all changes. This may take long, and clients do not notice it. The second step is the cut-over. It
takes some milliseconds: calls for the agent wait, its open reads end cleanly, this node sends the
last changes, and the target makes the agent a MASTER and confirms that. Then this node releases the
agent, and answers the waiting calls with MOVED. If the target does not confirm, the agent stays
here, and the waiting calls continue here.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from megaphone.cluster.incoming import IncomingPipes
from megaphone.cluster.outgoing import OutgoingPipe, OutgoingPipes
from megaphone.cluster.peer import NoSuchName, Target, addresses_of, reachable, target_at
from megaphone.cluster.ports import Replicable
from megaphone.core.agents import Agent, Agents
from megaphone.core.broker import Broker
from megaphone.core.ports import Observer, Store
from megaphone.errors import MegaphoneError, TargetUnavailable, WrongMode
from megaphone.model import AgentMode, DrainProgress

log = logging.getLogger(__name__)

CUT_OVER_BACKLOG = 100
"""How many channels may still have changes for the target when the cut-over starts. The number is
low enough that calls do not wait long, and high enough that a busy agent reaches it."""
BACKLOG_CHECK_S = 0.02
"""How often a move checks whether the cut-over can start."""
RETRY_S = 0.5
"""How long a stopping node waits before it tries again a target that refused or was unreachable."""
PROGRESS_S = 0.5
"""How often a drain reports its progress."""
PROXIES_KNOW_AFTER_S = 6.0
"""How long after an address has appeared every proxy knows it. The name servers of Kubernetes keep
answers for 5 seconds, and the nginx of `deploy/` for another one."""
WAITING_SHARE = 0.25
"""The largest part of its time for which a hand-over waits for proxies."""
TARGET_LOST_S = 10.0
"""A move fails when the pipe has been without a connection for this long."""


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
        observer: Observer,
    ) -> None:
        self.agents = agents
        self.broker = broker
        self.store = store
        self.replication = replication
        self.incoming = incoming
        self.pipes = pipes
        self.observer = observer
        self.progress: DrainProgress | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def drain(self, target: str) -> AsyncGenerator[DrainProgress, None]:
        if not self._is_idle.is_set():
            raise WrongMode("this node is being drained already")
        self._is_idle.clear()
        self.incoming.refuse_pipes("this node is being drained")
        try:
            targets = await reachable(await addresses_of(target_at(target)))
            async with aclosing(self._moving_each(targets, {})) as steps:
                async for progress in steps:
                    yield progress
        except MegaphoneError:
            await self._report_left_behind()
            raise
        finally:
            self.incoming.accept_pipes()
            self._is_idle.set()

    async def hand_over(
        self, target: str | None, within_s: float, gone_after_s: float | None = None
    ) -> None:
        """Drain this node before it stops, for at most `within_s` seconds.

        Waits first for the end of a drain that is running. Without a target nothing else happens.
        While channels would be lost with this node, it tries a target again that refuses or is
        unreachable, because the target may be a node that is starting. It gives up when the name of
        the target has not existed for `gone_after_s`, because then there will be no such node. This
        node accepts no agents meanwhile, because it could not keep them. Logs the channels that
        could not be moved.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._is_idle.wait()
                if target is not None:
                    self._is_idle.clear()
                    self.incoming.refuse_pipes("this node is being drained")
                    sightings = Sightings(known_after_s(within_s), gone_after_s)
                    await self._drain_in_the_end(target, sightings)
        except TimeoutError:
            log.error("this node did not finish its hand-over within %g s", within_s)
        if target is not None and (left := await self._report_left_behind()):
            names, channels = ", ".join(left), sum(left.values())
            log.error(
                "channels are lost with this node", extra={"channels": channels, "agents": names}
            )

    async def _drain_in_the_end(self, target: str, sightings: "Sightings") -> None:
        """Drain, and try again after an error, until this node has no channels to move, or until
        the name of the target is gone."""
        logged: dict[str, str] = {}
        while True:
            try:
                known = await sightings.known(target_at(target))
                async with aclosing(self._moving_each(await reachable(known), logged)) as steps:
                    async for _ in steps:
                        pass
                return
            except MegaphoneError as error:
                log_once(logged, "", "this node cannot be handed over: %s", error)
            if sightings.name_is_gone or not await self._channels_here():
                return
            await asyncio.sleep(RETRY_S)

    async def _report_left_behind(self) -> dict[str, int]:
        """Report the agents with channels that a drain has not moved. Returns: how many channels
        each of them has."""
        counts = {agent.name: await self.store.count(agent.name) for agent in self._left(())}
        left = {name: count for name, count in counts.items() if count}
        self.observer.agents_left_behind(len(left))
        return left

    async def _channels_here(self) -> int:
        """Return how many channels this node has to move."""
        return sum([await self.store.count(agent.name) for agent in self._left(())])

    async def _moving_each(
        self, targets: Sequence[Target], logged: dict[str, str]
    ) -> AsyncGenerator[DrainProgress, None]:
        """Move one agent after the other, and yield the progress, which `progress` is meanwhile.

        `logged` has the last logged error of each agent: see `log_once`.
        """
        try:
            async with aclosing(self._moves(targets, logged)) as steps:
                async for progress in steps:
                    self.progress = progress
                    yield progress
        finally:
            self.progress = None

    async def _moves(
        self, targets: Sequence[Target], logged: dict[str, str]
    ) -> AsyncGenerator[DrainProgress, None]:
        moved = Moved()
        failures: dict[str, MegaphoneError] = {}
        yield await self._progress(moved, failures)
        while left := self._left(failures):
            move = Move(self, left[0], targets)
            moving = asyncio.create_task(move.run())
            try:
                while not moving.done():
                    yield await self._progress(moved, failures, move)
                    await asyncio.wait({moving}, timeout=PROGRESS_S)
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
            raise combined(failures)

    def _left(self, failures: Collection[str]) -> list[Agent]:
        """Return the agents that this node still has to move, without those in `failures`.

        An agent that another node replicates to this one is not among them, because its source
        moves it.
        """
        return [agent for agent in self.agents if not agent.sources and agent.name not in failures]

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


class Sightings:
    """When a stopping node first saw each address of its target's name, and since when the name has
    not existed.

    A node that starts is at its address before the proxies know the address, because name servers
    and proxies keep answers for some seconds. The channels that move there at once would meanwhile
    be nowhere for clients.
    """

    def __init__(self, known_after_s: float, gone_after_s: float | None = None) -> None:
        """Proxies know an address when this node has seen it for `known_after_s` seconds. A name is
        gone when it has not existed for `gone_after_s`; without it no name is ever gone."""
        self._known_after_s = known_after_s
        self._gone_after_s = gone_after_s
        self._missing_since: float | None = None
        self._first: dict[Target, float] = {}
        self._is_first_look = True

    @property
    def name_is_gone(self) -> bool:
        """Whether every look of the last `gone_after_s` seconds found that there is no such
        name."""
        if self._gone_after_s is None or self._missing_since is None:
            return False
        return asyncio.get_running_loop().time() >= self._missing_since + self._gone_after_s

    async def known(self, target: Target) -> list[Target]:
        """Return the targets at those addresses of a target that proxies know. They know all that
        were there at the first look.

        Raises: TargetUnavailable, if they know none, or if the name cannot be resolved.
        """
        is_first, self._is_first_look = self._is_first_look, False
        targets = await self._look(target)
        now = asyncio.get_running_loop().time()
        new_at = now - self._known_after_s if is_first else now
        self._first = {target: self._first.get(target, new_at) for target in targets}
        known = [one for one in targets if now >= self._first[one] + self._known_after_s]
        if not known:
            raise TargetUnavailable("the target is so new that proxies may not know it yet")
        return known

    async def _look(self, target: Target) -> list[Target]:
        now = asyncio.get_running_loop().time()
        missing_since, self._missing_since = self._missing_since, None
        try:
            return await addresses_of(target)
        except NoSuchName:
            self._missing_since = now if missing_since is None else missing_since
            raise


def known_after_s(within_s: float) -> float:
    """Return how many seconds after a target has appeared a hand-over moves agents to it, if the
    hand-over may take `within_s`."""
    return min(PROXIES_KNOW_AFTER_S, within_s * WAITING_SHARE)


def log_once(logged: dict[str, str], about: str, text: str, error: MegaphoneError) -> None:
    """Log an error, unless it repeats the last error that was logged about the same agent.

    `about` is the name of the agent, or "" for an error of the whole drain. `logged` has the last
    errors.
    """
    if logged.get(about) != str(error):
        logged[about] = str(error)
        log.error(text, error)


class Moved:
    """How many agents and channels a drain has moved so far."""

    agents = 0
    channels = 0


def combined(failures: dict[str, MegaphoneError]) -> MegaphoneError:
    """Return the last of several errors, with the names of all agents that did not move."""
    last = list(failures.values())[-1]
    return type(last)(
        f"these agents have not moved, and are as before: {', '.join(failures)}; {last}"
    )


class Move:
    """The move of one agent to the first of several nodes that accepts it."""

    def __init__(self, drains: Drains, agent: Agent, targets: Sequence[Target]) -> None:
        self.agent = agent
        self._broker = drains.broker
        self._agents = drains.agents
        self._store = drains.store
        self._replication = drains.replication
        self._pipes = drains.pipes
        self._incoming = drains.incoming
        self._targets = targets
        self._pipe: OutgoingPipe | None = None

    async def copied(self) -> int:
        """Return how many channels the target has completely, as far as this node knows."""
        if self._pipe is None or self._pipe.connection is None:
            return 0
        return max(0, await self._store.count(self.agent.name) - self._pipe.backlog)

    async def run(self) -> int:
        """Move the agent. After an error, or a cancellation before the cut-over, the agent is in
        the same mode as before.

        Returns: how many channels have moved.
        Raises: MegaphoneError.
        """
        if self.agent.was_replicated and not await self._store.count(self.agent.name):
            return await self._remove_empty()
        pipe, is_new = await self._open_pipe()
        self._pipe = pipe
        try:
            await self._catch_up(pipe)
            # A cut-over must not stop half-way, or else no node or both nodes would own the agent.
            return await uninterrupted(self._cut_over(pipe))
        except BaseException:
            if self._agents.get(self.agent.name) is self.agent:
                await self._stay(pipe, is_new=is_new)
            raise

    async def _remove_empty(self) -> int:
        """Remove an agent that has come from another node and has no channels any more."""
        await self._pipes.close_all(self.agent.name)
        self._incoming.forget_sources(self.agent.name)
        if self._agents.get(self.agent.name) is self.agent:  # it may have been removed meanwhile
            self._agents.remove(self.agent.name)
        log.info("the agent has no channels any more", extra={"agent": self.agent.name})
        return 0

    async def _open_pipe(self) -> tuple[OutgoingPipe, bool]:
        """Return a pipe to a node that accepts the agent, and whether the pipe is new."""
        refusal: MegaphoneError = TargetUnavailable()
        for target in self._targets:
            try:
                is_new = self._pipes.get(self.agent.name, target) is None
                return await self._pipes.open(self.agent.name, target), is_new
            except MegaphoneError as error:
                refusal = error
        raise refusal

    async def _catch_up(self, pipe: OutgoingPipe) -> None:
        """Wait until the target has nearly all changes.

        Raises: TargetUnavailable, when the pipe has been without a connection for too long.
        """
        clock = asyncio.get_running_loop().time
        seen_at = clock()
        while pipe.connection is None or pipe.backlog > CUT_OVER_BACKLOG:
            if pipe.connection is not None:
                seen_at = clock()
            elif not pipe.is_running or clock() > seen_at + TARGET_LOST_S:
                raise TargetUnavailable("the target does not answer any more")
            await asyncio.sleep(BACKLOG_CHECK_S)

    async def _cut_over(self, pipe: OutgoingPipe) -> int:
        """Make the target the owner of the agent. Returns: how many channels have moved.

        Raises: TargetUnavailable, when the target did not confirm that it has everything.
        """
        name = self.agent.name
        with self._agents.moving(name):
            await self._replication.refuse_writers(name)
            await self._broker.end_reads(name)
            channels = await self._store.count(name)
            as_master = self.agent.before_pipe is AgentMode.MASTER
            if not await pipe.complete(as_master=as_master):
                raise TargetUnavailable("the target did not confirm that it has everything")
            await self._pipes.release(self.agent)
            self._incoming.forget_sources(name)
        log.info("the agent has moved to another node", extra={"agent": name, "channels": channels})
        return channels

    async def _stay(self, pipe: OutgoingPipe, *, is_new: bool) -> None:
        """Close a pipe that this move has opened; let a pipe continue that was open before."""
        if is_new:
            await self._pipes.close(pipe)
        elif not pipe.is_running:
            pipe.resume()


async def uninterrupted(work: Coroutine[Any, Any, int]) -> int:
    """Run work to its end even if the calling task is cancelled, and raise CancelledError then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
