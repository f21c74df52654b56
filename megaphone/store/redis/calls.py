"""Calls of the functions of the store, which load the functions where they are missing."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.confirmation import Confirmation
from megaphone.store.redis.connection import Argument, Calls, Reply, pack
from megaphone.store.redis.errors import FunctionMissing
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import KEYS_OF_A_CHANNEL, Names
from megaphone.store.redis.link import Link

Command: TypeAlias = tuple[str, bytes]
"""A call of a function as bytes, and its first key."""
BEGUN_WORDS = 3 + KEYS_OF_A_CHANNEL
REMEMBERED = 5_000
"""How many beginnings of commands are remembered, because most channels are used again."""


class Functions:
    """The functions of one store, by name.

    A command leaves in the turn of the event loop in which it is given, even if nobody waits for
    the answer.
    """

    def __init__(self, link: AnyLink, names: Names, replicas: int) -> None:
        """`replicas` is how many replicas must have what is stored."""
        self.link = link
        self.confirmation = Confirmation(names, replicas)
        self._names = names
        self.begun: Callable[[str, bytes], bytes] = lru_cache(REMEMBERED)(self._begun)
        """Return the first `BEGUN_WORDS` words of a command that calls a function of a channel,
        packed, but without how many words there are."""
        self._repeating: set[asyncio.Task[None]] = set()
        self.away = "0"
        """How long the store was out of order until now, in milliseconds, as the last heartbeat
        said: the functions need it to tell the time."""

    @property
    def takes_many_channels(self) -> bool:
        """Whether one call may be for many channels, as that of `store_in_all` is."""
        return not self.link.has_slots

    def start(self, name: str, channel_id: bytes, *arguments: Argument) -> asyncio.Future[Reply]:
        """Call a function of a channel.

        The future fails with StoreUnavailable or LimitExceeded.
        """
        return Awaited(self, self.command(name, channel_id, *arguments)).reply

    def of_store(self, name: str, *arguments: Argument) -> asyncio.Future[Reply]:
        """Call a function of the whole store."""
        return Awaited(self, _command(name, (self._names.nodes, self._names.meta), arguments)).reply

    def of_tenant(self, name: str, tenant: str, *arguments: Argument) -> asyncio.Future[Reply]:
        """Call a function that counts for a tenant."""
        keys = self._names.of_tenant(tenant)
        return Awaited(self, _command(name, keys, (self.away, *arguments))).reply

    def store(self, name: str, channel_id: bytes, *arguments: Argument) -> "Awaited":
        """Call a function of a channel that stores something, which replicas shall have too."""
        return Awaited(self, self.command(name, channel_id, *arguments), stores=True)

    def store_in_all(
        self, name: str, channel_ids: Sequence[bytes], *arguments: Argument
    ) -> "Awaited":
        """Call a function of many channels that stores something, with the first key of each: see
        `takes_many_channels`."""
        keys = list(map(self.key_of, channel_ids))
        return Awaited(self, _command(name, keys, (self.away, *arguments)), stores=True)

    def command(self, name: str, channel_id: bytes, *arguments: Argument) -> Command:
        """Return the command that calls a function of a channel."""
        return _command(name, self._names.channel(channel_id), (self.away, *arguments))

    def key_of(self, channel_id: bytes) -> str:
        """Return the first key of a channel."""
        return self._names.channel(channel_id)[0]

    def _begun(self, name: str, channel_id: bytes) -> bytes:
        keys = self._names.channel(channel_id)
        return b"".join(map(word, ("FCALL", name_of(name), str(len(keys)), *keys)))

    def confirmed(self, channel_id: bytes) -> asyncio.Future[None] | None:
        """Return a future that is done when enough replicas have all that the master of a channel
        has stored so far, and fails with StoreUnavailable if they do not have it in time; None if
        no replica has to have it. All calls of a turn share the future, so one that waits must
        shield it."""
        if not self.confirmation.is_needed:
            return None
        return self.confirmation.ask(self.link.master_of(self.key_of(channel_id)))

    def repeat(self, call: "Call", master: Link) -> None:
        """Load the functions at a master that lacked them, and make the call again."""
        task = asyncio.create_task(self._repeat(call, master))
        self._repeating.add(task)
        task.add_done_callback(self._repeating.discard)

    @staticmethod
    async def _repeat(call: "Call", master: Link) -> None:
        try:
            await load(master)
        except Exception as error:
            if not call.done():
                call.fail_for_good(error)
        else:
            if not call.done():
                call.send()


def _command(name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Command:
    return keys[0], pack(("FCALL", name_of(name), len(keys), *keys, *arguments))


class Call(ABC):
    """A call of a function, from the moment at which its command leaves. A subclass says what
    follows from the answer."""

    __slots__ = (
        "_asked",
        "_asked_master",
        "_command",
        "_functions",
        "_is_repeated",
        "_sent",
        "_stores",
    )

    def __init__(self, functions: Functions, command: Command, *, stores: bool) -> None:
        """`stores` says whether replicas shall have what the call stores."""
        self._functions = functions
        self._command = command
        self._stores = stores and functions.confirmation.is_needed
        self._is_repeated = False
        self._asked: asyncio.Future[None] | None = None
        self._asked_master: Link | None = None
        self.send()

    def send(self) -> None:
        """Let the command leave."""
        key, packed = self._command
        self._sent = self._functions.link.send(packed, self, key)
        if self._stores:
            self._ask_replicas()

    def _ask_replicas(self) -> None:
        self._asked_master = master = self._sent.link
        if master is not None:
            self._asked = self._functions.confirmation.ask(master)

    def confirmation(self) -> asyncio.Future[None] | None:
        """Return, after the reply, what the replicas answer, as `Functions.confirmed` does."""
        sent = self._sent
        if self._stores and (sent.is_sent_again or sent.link is not self._asked_master):
            self._ask_replicas()  # the master was asked before it took the call, or another one was
        return self._asked

    @abstractmethod
    def done(self) -> bool:
        """Return whether the answer is known, or not wanted any more."""

    @abstractmethod
    def set_result(self, reply: Reply, /) -> None:
        """Take what the function returned."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Take the error in place of a reply."""

    def set_exception(self, error: Exception, /) -> None:
        master = self._sent.link
        is_missing = isinstance(error, FunctionMissing)  # somebody has flushed them
        if is_missing and master is not None and not self._is_repeated:
            self._is_repeated = True
            self._functions.repeat(self, master)
        else:
            self.fail_for_good(error)

    def fail_for_good(self, error: Exception) -> None:
        """Count the failure, and take the error in place of a reply."""
        self._functions.link.counts.note_failure(error)
        self.fail(error)


class Awaited(Call):
    """A call for those who wait for it."""

    __slots__ = ("reply",)

    def __init__(self, functions: Functions, command: Command, *, stores: bool = False) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        """What the function returns. It fails with StoreUnavailable or LimitExceeded."""
        super().__init__(functions, command, stores=stores)

    def done(self) -> bool:
        return self.reply.done()

    def set_result(self, reply: Reply, /) -> None:
        self.reply.set_result(reply)

    def fail(self, error: Exception) -> None:
        self.reply.set_exception(error)

    async def confirmed(self) -> None:
        """Wait, after the reply, until enough replicas have what was stored.

        Raises: StoreUnavailable, when they do not have it in time.
        """
        if (asked := self.confirmation()) is not None:
            await asyncio.shield(asked)


def word(text: str) -> bytes:
    """Return a word of a command, packed."""
    return b"$%d\r\n%b\r\n" % (len(data := text.encode()), data)


async def load(calls: Calls) -> None:
    """Load the functions. Does no harm if they are there.

    Raises: StoreUnavailable; NoPermission.
    """
    await calls.call("FUNCTION", "LOAD", "REPLACE", source())
