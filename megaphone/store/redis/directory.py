"""The agents of all nodes of a store. Fulfils `core.agents.AgentDirectory`."""

from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.keys import Names


class RedisDirectory:
    """Names and address keys of agents, in one hash. Nothing is ever removed from it, because the
    addresses of channels may be known for longer than any node lives."""

    def __init__(self, link: AnyLink, names: Names) -> None:
        self._link = link
        self._key = names.agents

    async def add(self, name: str, secret: bytes) -> bytes:
        self._link.call("HSETNX", self._key, name, secret)
        kept: bytes = await self._link.call("HGET", self._key, name)
        return kept

    async def secret_of(self, name: str) -> bytes | None:
        secret: bytes | None = await self._link.call("HGET", self._key, name)
        return secret
