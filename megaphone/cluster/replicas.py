"""Limits and removes the agents that are on this node only because other nodes replicated them.

The first message of a source adds an agent to this node. So their number is limited, and this node
removes an agent that is not needed any more: it has no channels, no node replicates it, and this
node does not need it for new channels. If its source reconnects, the agent is added again.
"""

import asyncio
import logging
from collections.abc import Callable

from megaphone.core.agents import Agent, Agents
from megaphone.core.ports import Store
from megaphone.errors import LimitExceeded

log = logging.getLogger(__name__)

UNNEEDED_S = 60.0
"""An agent that another node added to this one is removed when it has not been needed for this
long, or earlier to make room for another such agent."""


class Replicas:
    """The agents that other nodes added to this one. Some may have been promoted since."""

    def __init__(
        self, *, agents: Agents, store: Store, limit: int, on_removed: Callable[[str], None]
    ) -> None:
        self._agents = agents
        self._store = store
        self._limit = limit
        self._on_removed = on_removed
        self._unneeded: set[Agent] = set()
        """The agents that were not needed at the last check, and that no node replicated since."""
        self._looking: asyncio.Task[None] | None = None

    async def make_room(self) -> None:
        """Make sure that one more agent may be added. If the limit is reached, remove an agent
        that is not needed.

        Raises: LimitExceeded, when all of them are needed.
        """
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_after())
        made = self._agents.added_by_sources()
        if len(made) < self._limit:
            return
        for agent in made:
            if await self._remove_if_unneeded(agent):
                return
        raise LimitExceeded(
            f"other nodes have brought {self._limit} agents to this one; no more are allowed"
        )

    def mark_needed(self, agent: Agent) -> None:
        """Note that a node has started to replicate an agent to this one."""
        self._unneeded.discard(agent)

    async def aclose(self) -> None:
        """Stop removing agents."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(UNNEEDED_S)
            for agent in self._unneeded.copy():
                await self._remove_if_unneeded(agent)
            self._unneeded = {
                a for a in self._agents.added_by_sources() if await self._is_unneeded(a)
            }

    async def _remove_if_unneeded(self, agent: Agent) -> bool:
        if not await self._is_unneeded(agent):
            return False
        self._unneeded.discard(agent)
        self._agents.remove(agent.name)
        self._on_removed(agent.name)
        log.info(
            "the agent is removed: no node replicates it here, and it has no channels",
            extra={"agent": agent.name},
        )
        return True

    async def _is_unneeded(self, agent: Agent) -> bool:
        channels = await self._store.count(agent.name)
        return not channels and self._agents.is_unneeded(agent)
