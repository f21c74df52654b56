"""Calls of the functions of the store, which load the functions where they are missing."""

import asyncio
from collections.abc import Awaitable, Sequence

from megaphone.store.redis.confirmation import Confirmation
from megaphone.store.redis.connection import Argument, Calls, Reply
from megaphone.store.redis.errors import FunctionMissing
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Link


class Functions:
    """The functions of one store, by name."""

    def __init__(self, link: Link, names: Names, replicas: int) -> None:
        """`replicas` is how many replicas must have what `store` stores."""
        self._link = link
        self._names = names
        self._confirmation = Confirmation(link, names, replicas)
        self.away = "0"
        """How long the store was out of order until now, in milliseconds, as the last heartbeat
        said: the functions need it to tell the time."""

    def start(self, name: str, channel_id: bytes, *arguments: Argument) -> Awaitable[Reply]:
        """Call a function of a channel. The command leaves in this turn of the event loop, even if
        nobody waits for the answer.

        Raises: StoreUnavailable; LimitExceeded.
        """
        command = self._command(name, channel_id, arguments)
        return self._checked(self._link.call(*command), command)

    def store(self, name: str, channel_id: bytes, *arguments: Argument) -> "Storing":
        """Call a function of a channel that stores something, which replicas shall have too."""
        return Storing(self._link, self._confirmation, self._command(name, channel_id, arguments))

    def store_in_all(
        self, name: str, channel_ids: Sequence[bytes], *arguments: Argument
    ) -> "Storing":
        """Call a function of many channels that stores something."""
        keys = [key for channel_id in channel_ids for key in self._names.channel(channel_id)]
        command = ("FCALL", name_of(name), len(keys), *keys, self.away, *arguments)
        return Storing(self._link, self._confirmation, command)

    def confirmed(self) -> Awaitable[None] | None:
        """Return a future that is done when enough replicas have all that Redis has stored for this
        node so far; None if no replica has to have it."""
        asked = self._confirmation.ask()
        return None if asked is None else asyncio.shield(asked)

    def _command(
        self, name: str, channel_id: bytes, arguments: Sequence[Argument]
    ) -> Sequence[Argument]:
        keys = self._names.channel(channel_id)
        return ("FCALL", name_of(name), len(keys), *keys, self.away, *arguments)

    def of_store(self, name: str, *arguments: Argument) -> Awaitable[Reply]:
        """Call a function of the whole store."""
        names = self._names
        command = ("FCALL", name_of(name), 2, names.nodes, names.meta, *arguments)
        return self._checked(self._link.call(*command), command)

    async def _checked(self, first: asyncio.Future[Reply], command: Sequence[Argument]) -> Reply:
        try:
            return await first
        except FunctionMissing:  # somebody has flushed them
            await load(self._link)
            return await self._link.call(*command)


class Storing:
    """A call that stores something. Its command leaves in the turn of the event loop in which this
    object is made."""

    __slots__ = ("_asked", "_command", "_confirmation", "_link", "_started")

    def __init__(self, link: Link, confirmation: Confirmation, command: Sequence[Argument]) -> None:
        self._link = link
        self._confirmation = confirmation
        self._command = command
        self._start()

    def _start(self) -> None:
        self._started = self._link.call(*self._command)
        self._asked = self._confirmation.ask()

    async def reply(self) -> Reply:
        """Return what the function returns. Raises: StoreUnavailable; LimitExceeded."""
        try:
            return await self._started
        except FunctionMissing:
            await load(self._link)
            self._start()
            return await self._started

    async def confirmed(self) -> None:
        """Wait, after the reply, until enough replicas have what was stored.

        Raises: StoreUnavailable, when they do not have it in time.
        """
        if self._asked is not None:
            await asyncio.shield(self._asked)


async def load(calls: Calls) -> None:
    """Load the functions. Does no harm if they are there.

    Raises: StoreUnavailable; NoPermission.
    """
    await calls.call("FUNCTION", "LOAD", "REPLACE", source())
