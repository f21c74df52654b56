"""This node among the nodes of a store: its heartbeat, the time, the epoch, and who else lives."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

from megaphone.errors import MegaphoneError
from megaphone.store.redis.calls import Functions, load
from megaphone.store.redis.errors import OutOfMemory, ReplyError
from megaphone.store.redis.functions import name_of
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Greeted

log = logging.getLogger(__name__)

BEAT_S = 1.0
"""How often a node shows that it lives."""
SILENT_S = 5.0
"""A node that was silent for this long counts as dead: others may take its leases."""
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
        self._beaten_at = -SILENT_S
        self._offset_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def living(self) -> frozenset[str]:
        """The nodes that have shown within `SILENT_S` that they live."""
        return self._living

    def is_dead(self, inbox: str) -> bool:
        """Return whether the node with an inbox is surely dead."""
        loop_time = asyncio.get_running_loop().time()
        is_fresh = loop_time - self._beaten_at < SILENT_S / 2
        return is_fresh and inbox not in map(self._names.inbox, self._living)

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
        run_id = _run_id(await new.calls.call("INFO", "server"))
        names = self._names
        keys = (names.nodes, names.meta)
        epoch = await new.home.call("FCALL", name_of("greet"), 2, *keys, run_id)
        self._enter(int(epoch))

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
        self._beaten_at = asyncio.get_running_loop().time()
        self._functions.away = away.decode()
        self._offset_s = (int(time) - int(away)) / 1000 - self._beaten_at
        self._living = frozenset(node.decode() for node in living)
        self._enter(int(epoch))

    def _enter(self, epoch: int) -> None:
        if epoch > self.epoch:
            is_new = self.epoch > 0
            self.epoch = epoch
            if is_new:
                log.warning("the store may have lost events: it was restarted, or has a new master")
                self._on_epoch()


def _run_id(info: bytes | str) -> str:
    text = info.decode() if isinstance(info, bytes) else info
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "run_id":
            return value
    raise ValueError("the server does not name its run")
