"""Calls of the functions of the store, which load the functions where they are missing."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache

from megaphone.store.redis.confirmation import Confirmation
from megaphone.store.redis.connection import Argument, Calls, Reply, pack
from megaphone.store.redis.errors import FunctionMissing
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import KEYS_OF_A_CHANNEL, Names
from megaphone.store.redis.link import Link

BEGUN_WORDS = 3 + KEYS_OF_A_CHANNEL
REMEMBERED = 5_000
"""How many beginnings of commands are remembered, because most channels are used again."""


class Functions:
    """The functions of one store, by name.

    A command leaves in the turn of the event loop in which it is given, even if nobody waits for
    the answer.
    """

    def __init__(self, link: Link, names: Names, replicas: int) -> None:
        """`replicas` is how many replicas must have what is stored."""
        self.link = link
        self._names = names
        self._confirmation = Confirmation(link, names, replicas)
        self.begun: Callable[[str, bytes], bytes] = lru_cache(REMEMBERED)(self._begun)
        """Return the first `BEGUN_WORDS` words of a command that calls a function of a channel,
        packed, but without how many words there are."""
        self._repeating: set[asyncio.Task[None]] = set()
        self.away = "0"
        """How long the store was out of order until now, in milliseconds, as the last heartbeat
        said: the functions need it to tell the time."""

    def start(self, name: str, channel_id: bytes, *arguments: Argument) -> asyncio.Future[Reply]:
        """Call a function of a channel.

        The future fails with StoreUnavailable or LimitExceeded.
        """
        return Awaited(self, self.packed(name, channel_id, *arguments)).reply

    def of_store(self, name: str, *arguments: Argument) -> asyncio.Future[Reply]:
        """Call a function of the whole store."""
        names = self._names
        command = ("FCALL", name_of(name), 2, names.nodes, names.meta, *arguments)
        return Awaited(self, pack(command)).reply

    def store(self, name: str, channel_id: bytes, *arguments: Argument) -> "Awaited":
        """Call a function of a channel that stores something, which replicas shall have too."""
        return Awaited(self, self.packed(name, channel_id, *arguments), stores=True)

    def store_in_all(
        self, name: str, channel_ids: Sequence[bytes], *arguments: Argument
    ) -> "Awaited":
        """Call a function of many channels that stores something."""
        keys = [key for channel_id in channel_ids for key in self._names.channel(channel_id)]
        command = ("FCALL", name_of(name), len(keys), *keys, self.away, *arguments)
        return Awaited(self, pack(command), stores=True)

    def packed(self, name: str, channel_id: bytes, *arguments: Argument) -> bytes:
        """Return the command that calls a function of a channel."""
        keys = self._names.channel(channel_id)
        return pack(("FCALL", name_of(name), len(keys), *keys, self.away, *arguments))

    def _begun(self, name: str, channel_id: bytes) -> bytes:
        keys = self._names.channel(channel_id)
        return b"".join(map(word, ("FCALL", name_of(name), str(len(keys)), *keys)))

    def confirmed(self) -> asyncio.Future[None] | None:
        """Return a future that is done when enough replicas have all that Redis has stored for this
        node so far, and fails with StoreUnavailable if they do not have it in time; None if no
        replica has to have it. All calls of a turn share the future, so one that waits must shield
        it."""
        return self._confirmation.ask()

    def repeat(self, call: "Call", packed: bytes) -> None:
        """Load the functions, and make a call again that lacked them."""
        task = asyncio.create_task(self._repeat(call, packed))
        self._repeating.add(task)
        task.add_done_callback(self._repeating.discard)

    async def _repeat(self, call: "Call", packed: bytes) -> None:
        again = asyncio.get_running_loop().create_future()
        try:
            await load(self.link)
            self.link.send(packed, again)
            call.ask_again()
            reply = await again
        except Exception as error:
            if not call.done():
                call.fail(error)
        else:
            if not call.done():
                call.set_result(reply)


class Call(ABC):
    """A call of a function, from the moment at which its command leaves. A subclass says what
    follows from the answer."""

    __slots__ = ("_asked", "_functions", "_packed")

    def __init__(self, functions: Functions, packed: bytes, *, stores: bool) -> None:
        """`stores` says whether replicas shall have what the call stores."""
        self._functions = functions
        self._packed = packed
        functions.link.send(packed, self)
        self._asked = functions.confirmed() if stores else None
        """The answer of the replicas: see `Functions.confirmed`."""

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
        if isinstance(error, FunctionMissing):  # somebody has flushed them
            self._functions.repeat(self, self._packed)
        else:
            self.fail(error)

    def ask_again(self) -> None:
        """Ask the replicas for a call that leaves once more."""
        if self._asked is not None:
            self._asked = self._functions.confirmed()


class Awaited(Call):
    """A call for those who wait for it."""

    __slots__ = ("reply",)

    def __init__(self, functions: Functions, packed: bytes, *, stores: bool = False) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        """What the function returns. It fails with StoreUnavailable or LimitExceeded."""
        super().__init__(functions, packed, stores=stores)

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
        if self._asked is not None:
            await asyncio.shield(self._asked)


def word(text: str) -> bytes:
    """Return a word of a command, packed."""
    return b"$%d\r\n%b\r\n" % (len(data := text.encode()), data)


async def load(calls: Calls) -> None:
    """Load the functions. Does no harm if they are there.

    Raises: StoreUnavailable; NoPermission.
    """
    await calls.call("FUNCTION", "LOAD", "REPLACE", source())
