"""This node among the nodes of a store: its heartbeat, the time, the epoch, and who else lives."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from time import monotonic

from megaphone.errors import MegaphoneError
from megaphone.store.redis.calls import Functions, load
from megaphone.store.redis.errors import FAILURES, OutOfMemory, ReplyError
from megaphone.store.redis.functions import name_of
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Greeted

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""How often a node shows that it lives."""
SILENT_S = 5.0
"""A node that was silent for this long counts as dead: others may take its leases."""
AGAIN_S = 0.1
"""How long it waits before it tries again to tell the store of a loss."""
KNOWN_S = 60.0
"""How long after this node any other may learn at most that a master was replaced, and then die."""
SEEN_REMEMBERED = 1_000
"""Of how many nodes this node remembers when it last saw them alive."""
FORGOTTEN_S = 3600.0
"""A node that was silent for this long is removed from the list of nodes."""


class Membership:
    """What this node knows of the other nodes, and they of it. Belongs to one event loop."""

    def __init__(self, functions: Functions, names: Names, on_epoch: Callable[[], None]) -> None:
        """`on_epoch` is called when a new epoch has begun, because the store may have lost data."""
        self._functions = functions
        self._names = names
        self._on_epoch = on_epoch
        self.node = secrets.token_hex(6)
        """The name of this node."""
        self.inbox = names.inbox(self.node)
        self.epoch = 0
        self._living: frozenset[str] = frozenset()
        self._seen: dict[str, int] = {}
        """When each node was last among those that live, in the time of the store, by its inbox;
        those that are dead first."""
        self._offset_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def living(self) -> frozenset[str]:
        """The nodes that have shown within `SILENT_S` that they live."""
        return self._living

    async def is_dead(self, inbox: str) -> bool:
        """Return whether the node with an inbox is surely dead. Asks the store before it says so,
        because a node that has just started may not be among those that are known to live.

        Raises: StoreUnavailable.
        """
        if self._is_living(inbox):
            return False
        await self._beat()
        return not self._is_living(inbox)

    async def death_of(self, inbox: str) -> int | None:
        """Return when a node died, in milliseconds of the time of the store: now, if it died before
        this node started. None if it may live.

        Raises: StoreUnavailable.
        """
        if not await self.is_dead(inbox):
            return None
        return self._seen.get(inbox, self.store_time_ms())

    def _is_living(self, inbox: str) -> bool:
        return inbox in map(self._names.inbox, self._living)

    def store_time_ms(self) -> int:
        """Return the time of the store, less the time in which it was out of order."""
        return round((asyncio.get_running_loop().time() + self._offset_s) * 1000)

    async def greet(self, new: Greeted) -> None:
        """Do what must come first on each new connection: load the functions, and find out whether
        the server is one that the store does not know, so that it may have lost data.

        Raises: StoreUnavailable; ReplyError.
        """
        with suppress(OutOfMemory):  # a full server may have them, and must be read empty
            await load(new.calls)
        reign = _reign(await new.calls.call("INFO", "server", "replication"))
        names = self._names
        keys = (names.nodes, names.meta)
        epoch = await new.home.call("FCALL", name_of("greet"), 2, *keys, reign)
        self._enter(int(epoch))

    async def begin_epoch(self) -> None:
        """Begin an epoch because this node, and nobody else, knows that the store has lost events.
        Goes on until the store has it."""
        reign = f"{self.node}:{secrets.token_hex(6)}"
        while True:
            try:
                epoch = await self._functions.of_store("greet", reign)
            except FAILURES:
                await asyncio.sleep(AGAIN_S)
            else:
                self._enter(int(epoch))
                return

    async def start(self) -> None:
        """Show for the first time that this node lives, and go on to do so.

        Raises: StoreUnavailable.
        """
        await self._beat()
        self._task = asyncio.create_task(self._keep_beating())

    async def aclose(self) -> None:
        """Stop, and leave the list of nodes."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._beat()
            except MegaphoneError:
                pass  # the link tells about it
            except ReplyError as error:
                log.warning("this node cannot show that it lives: %s", error)

    async def _beat(self) -> None:
        time, epoch, away, living = await self._functions.of_store(
            "beat", self.node, round(SILENT_S * 1000), round(FORGOTTEN_S * 1000)
        )
        now_living = frozenset(node.decode() for node in living)
        await self._tell_losses_of(self._living - now_living)
        loop_time = asyncio.get_running_loop().time()
        self._functions.away = away.decode()
        self._offset_s = (int(time) - int(away)) / 1000 - loop_time
        self._living = now_living
        self._note_seen(int(time) - int(away))
        self._enter(int(epoch))

    def _note_seen(self, now_ms: int) -> None:
        for inbox in map(self._names.inbox, self._living):
            self._seen.pop(inbox, None)
            self._seen[inbox] = now_ms
        for inbox in list(islice(self._seen, max(0, len(self._seen) - SEEN_REMEMBERED))):
            del self._seen[inbox]

    async def _tell_losses_of(self, dead: Iterable[str]) -> None:
        """Begin an epoch for each node that has died not long after a master was replaced: it may
        have known of losses, and told nobody. All nodes together begin one epoch for it."""
        if monotonic() - self._functions.link.replaced_at < KNOWN_S:
            for node in dead:
                self._enter(int(await self._functions.of_store("greet", f"{node}:dead")))

    def _enter(self, epoch: int) -> None:
        if epoch > self.epoch:
            is_new = self.epoch > 0
            self.epoch = epoch
            if is_new:
                log.warning("the store may have lost events: it was restarted, or has a new master")
                self._on_epoch()


def _reign(info: bytes | str) -> str:
    """Return what no other run of a server has, nor the same run before it became the master."""
    text = info.decode() if isinstance(info, bytes) else info
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return f"{facts['run_id']}:{facts['master_replid']}"
