"""Calls of the functions of the store, which load the functions where they are missing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from megaphone.store.redis.connection import Argument, Calls, Reply
from megaphone.store.redis.errors import FunctionMissing
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Link


class Functions:
    """The functions of one store, by name."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._names = names
        self.away = "0"
        """How long the store was out of order until now, in milliseconds, as the last heartbeat
        said: the functions need it to tell the time."""

    def start(self, name: str, channel_id: bytes, *arguments: Argument) -> Awaitable[Reply]:
        """Call a function of a channel. The command leaves in this turn of the event loop, even if
        nobody waits for the answer.

        Raises: StoreUnavailable; LimitExceeded.
        """
        keys = self._names.channel(channel_id)
        return self._answer(("FCALL", name_of(name), len(keys), *keys, self.away, *arguments))

    def of_store(self, name: str, *arguments: Argument) -> Awaitable[Reply]:
        """Call a function of the whole store."""
        names = self._names
        return self._answer(("FCALL", name_of(name), 2, names.nodes, names.meta, *arguments))

    def _answer(self, command: Sequence[Argument]) -> Awaitable[Reply]:
        first = self._link.call(*command)
        return self._checked(first, command)

    async def _checked(self, first: asyncio.Future[Reply], command: Sequence[Argument]) -> Reply:
        try:
            return await first
        except FunctionMissing:  # somebody has flushed them
            await load(self._link)
            return await self._link.call(*command)


async def load(calls: Calls) -> None:
    """Load the functions. Does no harm if they are there.

    Raises: StoreUnavailable; NoPermission.
    """
    await calls.call("FUNCTION", "LOAD", "REPLACE", source())


Greet = Callable[[Calls], Awaitable[None]]
