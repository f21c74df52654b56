"""Carries out the operations of a scenario on the nodes and the links between them."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from tests.support.cluster import Cluster, Host, Member, another
from tests.support.move_readers import MovesSeen
from tests.support.move_scenarios import Act, Scenario


class Troubles:
    """Carries out the acts of a scenario on a cluster, and records them."""

    def __init__(
        self,
        cluster: Cluster,
        scenario: Scenario,
        agent: str,
        moves: MovesSeen,
        make_host: Callable[[], Host],
    ) -> None:
        self._cluster = cluster
        self._agent = agent
        self._scenario = scenario
        self._moves = moves
        self._make_host = make_host
        self._rng = scenario.rng("troubles")
        self._began = time.monotonic()
        self.happened: list[str] = []

    async def run(self) -> None:
        for act in self._scenario.acts:
            await asyncio.sleep(self._rng.uniform(0, 3.0) * self._scenario.pace_s)
            if self._cluster.is_gone.is_set():
                return
            owner = await self._owner()
            if owner is None:
                return
            await self._do(act, owner)
        await self._owner()

    async def _owner(self) -> Member | None:
        """Return the node of the channels; None if it was killed with them."""
        owners = await self._cluster.owners_of(self._agent)
        if not owners:
            self._cluster.is_gone.set()
            self._note("the channels are gone")
            return None
        if len(owners) > 1:
            raise AssertionError(f"{len(owners)} nodes say that the agent is theirs")
        return owners[0]

    async def _do(self, act: Act, owner: Member) -> None:
        other = another(self._rng, self._cluster.members, owner)
        match act:
            case Act.DRAIN:
                await self._drain(owner, other)
            case Act.DRAIN_ANOTHER:
                await self._drain(other, another(self._rng, self._cluster.members, other))
            case Act.PIPE:
                answer = await self._cluster.pipe(self._agent, owner, other)
                self._note(f"pipe {owner.number} to {other.number}: {brief(answer)}")
            case Act.CUT:
                self._cut(self._cluster.members)
            case Act.CLOSE:
                await self._close(owner, other)
            case Act.DRAIN_CUT:
                await self._drain_under(owner, other, self._cut_soon(owner, other))
            case Act.DRAIN_KILL:
                await self._drain_under(owner, other, self._kill_soon(other))
            case Act.KILL:
                await self._kill(other)
            case Act.EVICT:
                await self._evict(owner)
            case Act.EVICT_EARLY:
                await self._evict_early(owner)

    async def _drain(self, source: Member, target: Member) -> None:
        self._moves.begun += 1
        began = time.monotonic()
        last = await self._cluster.drain(source, target)
        self._moves.ended += 1
        took = time.monotonic() - began
        self._note(f"drain {source.number} to {target.number}: {brief(last)}, {took:.2f} s")

    async def _drain_under(
        self, source: Member, target: Member, trouble: Coroutine[Any, Any, None]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drain(source, target))
            group.create_task(trouble)

    def _cut(self, members: Iterable[Member]) -> None:
        for member in members:
            for link in member.feeds.values():
                link.cut()
        self._note("cut")

    async def _cut_soon(self, *members: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.15))
        self._cut(members)

    async def _close(self, one: Member, other: Member) -> None:
        for link in self._cluster.links_between(one, other):
            link.close()
        self._note(f"closed between {one.number} and {other.number}")
        await asyncio.sleep(self._rng.uniform(0, 10.0) * self._scenario.pace_s)
        for link in self._cluster.links_between(one, other):
            await link.open()

    async def _kill_soon(self, victim: Member) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.15))
        await self._kill(victim)

    async def _kill(self, victim: Member) -> None:
        self._note(f"kill {victim.number}")
        await self._cluster.kill(victim)
        await asyncio.sleep(self._rng.uniform(0, 5.0) * self._scenario.pace_s)
        await self._cluster.start_again(victim, self._make_host())

    async def _evict_early(self, owner: Member) -> None:
        successor = self._cluster.successor_of(owner)
        self._note(f"kill {successor.number}")
        await self._cluster.kill(successor)

        async def come_back() -> None:
            await asyncio.sleep(self._rng.uniform(0, 1.0))
            await self._cluster.start_again(successor, self._make_host())

        async with asyncio.TaskGroup() as group:
            group.create_task(self._evict(owner))
            group.create_task(come_back())

    async def _evict(self, owner: Member) -> None:
        self._moves.begun += 1
        began = time.monotonic()
        await self._cluster.evict(owner)
        self._moves.ended += 1
        took = time.monotonic() - began
        has_arrived = bool(await self._cluster.owners_of(self._agent))
        what = "done" if has_arrived else "its channels are gone"
        self._note(f"evict {owner.number}: {what}, {took:.2f} s")
        if not has_arrived:
            if len(set(self._scenario.capacities)) == 1:
                raise AssertionError("a node was stopped, and its channels are not elsewhere")
            self._cluster.is_gone.set()
        await self._cluster.start_again(owner, self._make_host())

    def _note(self, what: str) -> None:
        self.happened.append(f"{time.monotonic() - self._began:6.2f} s  {what}")


def brief(answer: dict[str, Any]) -> str:
    if "code" in answer:
        return f"{answer['code']} {answer['message']}"
    return "done" if answer.get("done", True) else str(answer)
