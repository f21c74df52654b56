"""An open read of a channel in memory."""

import asyncio
from typing import TYPE_CHECKING

from megaphone.core.log import Batch
from megaphone.core.ports import WouldBlock
from megaphone.model import ReadOptions
from megaphone.store.memory.index import StoredChannel
from megaphone.store.memory.waiting import wake

if TYPE_CHECKING:
    from collections.abc import Callable


class MemoryLease:
    """Fulfils `core.ports.Lease`."""

    __slots__ = ("_channel", "_interrupted", "_lease", "_loop", "_timer", "_waiting", "on_ready")

    def __init__(
        self, channel: StoredChannel, options: ReadOptions, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self.on_ready: Callable[[], None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._interrupted = False
        self._channel = channel
        self._lease = channel.lease(options, self._wake, loop.time())

    @property
    def cursor(self) -> str:
        return self._lease.cursor

    @property
    def recovered(self) -> bool | None:
        return self._lease.recovered

    @property
    def ready(self) -> int:
        return self._channel.unsent

    @property
    def is_over(self) -> bool:
        return self._interrupted or not self._lease.is_open

    async def take(self, limit: int, max_bytes: int, until: float) -> Batch | None:
        while True:
            try:
                return self.take_nowait(limit, max_bytes)
            except WouldBlock:
                if self._loop.time() >= until:
                    return None
            await self._wait(until)

    def take_nowait(self, limit: int, max_bytes: int) -> Batch | None:
        if self.is_over:
            return None
        batch = self._lease.take(limit, max_bytes, self._loop.time())
        if batch is None:
            raise WouldBlock
        return batch

    def interrupt(self) -> None:
        self._interrupted = True
        self._wake()

    def release(self, *, clean: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lease.release(clean=clean, now=self._loop.time())
        # Without this the two leases would refer to each other, and only the garbage collector
        # would free them.
        self._lease.wake = do_nothing
        self.on_ready = None

    async def _wait(self, until: float) -> None:
        self._set_timer(until)
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _set_timer(self, until: float) -> None:
        """Start a timer that wakes the reader at a time. Keeps the present timer if it has the same
        time, as in most waits of one read."""
        if self._timer is not None:
            if self._timer.when() == until:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._on_time)

    def _on_time(self) -> None:
        self._timer = None  # The event loop may call this slightly early; then a new timer starts.
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            wake(self._waiting)
        if self.on_ready is not None:
            self.on_ready()


def do_nothing() -> None:
    """The callback of a released lease."""
