"""Agents that are on this node only because other nodes have fed them: how many, and how long.

A source makes an agent here with its first message. So there is a limit, and an agent is removed
once nobody needs it: its channels are gone, no node feeds it, and it is not the one that takes new
channels. One that comes back is made again.
"""

import asyncio
import logging
from collections.abc import Callable

from megaphone.core.agents import Agent, Agents
from megaphone.core.ports import Store
from megaphone.errors import LimitExceeded

log = logging.getLogger(__name__)

UNNEEDED_S = 60.0
"""How long an agent must have been unneeded to be removed, unless its place is needed before."""


class Replicas:
    """The agents of this node that feeds have made, replicas or promoted since."""

    def __init__(
        self, *, agents: Agents, store: Store, limit: int, on_removed: Callable[[str], None]
    ) -> None:
        self._agents = agents
        self._store = store
        self._limit = limit
        self._on_removed = on_removed
        self._unneeded: set[Agent] = set()
        """Those that the last look found unneeded, and that were not fed since."""
        self._looking: asyncio.Task[None] | None = None

    async def make_room(self) -> None:
        """Find room for one more, in the place of one that nobody needs if there is no other.

        Raises: LimitExceeded.
        """
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_after())
        made = self._agents.made_by_feeds()
        if len(made) < self._limit:
            return
        for agent in made:
            if await self._remove_if_unneeded(agent):
                return
        raise LimitExceeded(
            f"other nodes have brought {self._limit} agents to this one; no more are allowed"
        )

    def fed(self, agent: Agent) -> None:
        """A node begins to feed an agent."""
        self._unneeded.discard(agent)

    async def aclose(self) -> None:
        """Remove no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(UNNEEDED_S)
            for agent in self._unneeded.copy():
                await self._remove_if_unneeded(agent)
            self._unneeded = {a for a in self._agents.made_by_feeds() if await self._is_unneeded(a)}

    async def _remove_if_unneeded(self, agent: Agent) -> bool:
        if not await self._is_unneeded(agent):
            return False
        self._unneeded.discard(agent)
        self._agents.remove(agent.name)
        self._on_removed(agent.name)
        log.info(
            "agent %s is removed: no node replicates it here, and it has no channels", agent.name
        )
        return True

    async def _is_unneeded(self, agent: Agent) -> bool:
        channels = await self._store.count(agent.name)
        return not channels and self._agents.is_unneeded(agent)
