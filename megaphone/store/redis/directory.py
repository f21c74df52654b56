"""The agents of all nodes of a store. Fulfils `core.agents.AgentDirectory`."""

import asyncio
import logging
from typing import TYPE_CHECKING

from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.errors import FAILURES
from megaphone.store.redis.keys import Names

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

AGAIN_S = 0.1
"""How long a node waits before it tries again to add the agents that the store may have lost."""


class RedisDirectory:
    """Names and address keys of agents, in one hash. Nothing is ever removed from it, because the
    addresses of channels may be known for longer than any node lives. What the store loses, the
    nodes that know it add again."""

    def __init__(self, link: AnyLink, names: Names) -> None:
        self._link = link
        self._key = names.agents
        self._known: dict[str, bytes] = {}
        """The agents that this node knows, with their keys."""
        self.on_other_key: Callable[[str, bytes], None] = lambda name, secret: None
        """Called with an agent and its key, if that is another one than this node has known: the
        store had lost the agent, and another node has added it."""

    async def add(self, name: str, secret: bytes) -> bytes:
        kept = self._known[name] = await self._put(name, secret)
        return kept

    async def secret_of(self, name: str) -> bytes | None:
        secret: bytes | None = await self._link.call("HGET", self._key, name)
        if secret is not None:
            self._known[name] = secret
        return secret

    async def restore(self) -> None:
        """Add the agents that this node knows again, because the store may have lost them. Goes on
        until the store has them all."""
        while True:
            try:
                await asyncio.gather(*(self._restore(name) for name in list(self._known)))
            except FAILURES:
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _restore(self, name: str) -> None:
        kept = await self._put(name, self._known[name])
        if kept != self._known[name]:
            log.warning("the store has lost agent %s, and has it again with another key", name)
            self._known[name] = kept
            self.on_other_key(name, kept)

    async def _put(self, name: str, secret: bytes) -> bytes:
        """Add an agent, unless it is there. Returns: the key that it has."""
        added = self._link.call("HSETNX", self._key, name, secret)
        kept: bytes
        _, kept = await asyncio.gather(added, self._link.call("HGET", self._key, name))
        return kept
