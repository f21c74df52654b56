"""Making a connection again whenever it ends."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.connection import Connection
from megaphone.store.redis.errors import ReplyError, UnusableStore

log = logging.getLogger(__name__)

MIN_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
STEADY_S = 2.0
"""A connection that lived so long is replaced at once; one that lived less, after a pause."""


class Keeper:
    """Keeps one connection. `make` returns a new one, or raises.

    `on_up` is called with each new connection, `on_down` when one has ended.
    """

    def __init__(
        self,
        what: str,
        make: Callable[[], Awaitable[Connection]],
        *,
        on_up: Callable[[Connection], None],
        on_down: Callable[[], None],
    ) -> None:
        self.connection: Connection | None = None
        self.down_since: float | None = None
        """The loop time since which there is no connection, or the server had said nothing before
        that ended; None while there is one."""
        self._what = what
        self._make = make
        self._on_up = on_up
        self._on_down = on_down
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._pause_s = 0.0
        self._reported = ""

    async def start(self) -> None:
        """Make the first connection. Raises: what `make` raises."""
        self.note_down()
        self._use(await self._make())
        self.start_behind()

    def start_behind(self) -> None:
        """Keep a connection from now on, and do not wait for the first one."""
        if self.connection is None:
            self.note_down()
        self._task = asyncio.create_task(self._keep())

    def note_down(self) -> None:
        """Note that the connection is over."""
        if self.down_since is None:
            self.down_since = _now() - self._silent_s

    @property
    def away_s(self) -> float:
        """For how long the server has said nothing although it was asked, or could not be asked."""
        return self._silent_s if self.down_since is None else _now() - self.down_since

    @property
    def _silent_s(self) -> float:
        return 0.0 if self.connection is None else self.connection.silent_s

    def hurry(self) -> None:
        """If a pause between attempts is under way, end it."""
        self._pause_s = 0.0
        self._hurry.set()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            await self.connection.aclose()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    def _use(self, connection: Connection) -> None:
        self.connection = connection
        self.down_since = None
        self._reported = ""
        self._on_up(connection)

    async def _keep(self) -> None:
        while True:
            if self.connection is not None:
                begun = _now()
                reason = await asyncio.shield(self.connection.ended)
                self._note_end(reason, lived_s=_now() - begun)
            await self._reconnect()

    def _note_end(self, reason: str, *, lived_s: float) -> None:
        self.connection = None
        self.note_down()
        if lived_s >= STEADY_S:
            self._pause_s = 0.0
        log.warning("lost the connection to %s: %s", self._what, reason)
        self._on_down()

    async def _reconnect(self) -> None:
        while True:
            await self._pause()
            try:
                connection = await self._make()
            except (StoreUnavailable, UnusableStore, ReplyError) as error:
                self._report(str(error))
            except Exception:
                log.exception("cannot connect to %s", self._what)
            else:
                if self.down_since is not None:
                    seconds = _now() - self.down_since
                    log.info("connected to %s after %.1f s", self._what, seconds)
                self._use(connection)
                return

    async def _pause(self) -> None:
        """Wait before an attempt, longer each time, and not at all before the first."""
        pause_s = self._pause_s * random.uniform(0.5, 1)
        self._pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, 2 * self._pause_s))
        self._hurry.clear()
        if pause_s:
            with suppress(TimeoutError):
                # Not `wait_for`, which may forget that its task is cancelled.
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()

    def _report(self, reason: str) -> None:
        """Log why an attempt failed, once as long as it stays the reason."""
        if reason != self._reported:
            self._reported = reason
            log.warning("cannot connect to %s: %s", self._what, reason)


def _now() -> float:
    return asyncio.get_running_loop().time()
