"""An open read of a channel in memory."""

import asyncio

from megaphone.core.channel import Lease
from megaphone.core.log import Batch
from megaphone.core.ports import Observer
from megaphone.model import ReadOptions
from megaphone.store.memory.index import StoredChannel
from megaphone.store.memory.waiting import wake


class MemoryLease:
    """Fulfils `core.ports.ChannelLease`."""

    __slots__ = ("_channel", "_interrupted", "_lease", "_loop", "_observer", "_timer", "_waiting")

    def __init__(
        self,
        channel: StoredChannel,
        options: ReadOptions,
        loop: asyncio.AbstractEventLoop,
        observer: Observer,
    ) -> None:
        self._loop = loop
        self._observer = observer
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._interrupted = False
        self._channel = channel
        self._lease: Lease = channel.lease(options, self._wake, loop.time())

    @property
    def position(self) -> str:
        return self._lease.position

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
        while not self.is_over:
            now = self._loop.time()
            if batch := self._take_ready(limit, max_bytes, now):
                return batch
            if now >= until:
                break
            await self._wait(until)
        return None

    def interrupt(self) -> None:
        self._interrupted = True
        self._wake()

    def release(self, *, clean: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lease.release(clean=clean, now=self._loop.time())
        self._lease.wake = wake_nobody  # the two would keep each other alive otherwise

    def _take_ready(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        batch = self._lease.take(limit, max_bytes, now)
        if batch is not None:
            self._observer.events_read(len(batch.events), batch.redelivered)
        return batch

    async def _wait(self, until: float) -> None:
        self._set_timer(until)
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _set_timer(self, until: float) -> None:
        """Be woken at a time. Most waits of a read end at the same one: its timer is kept."""
        if self._timer is not None:
            if self._timer.when() == until:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._on_time)

    def _on_time(self) -> None:
        self._timer = None  # it may be early by the grain of the clock, and then another is needed
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            wake(self._waiting)


def wake_nobody() -> None:
    """Do nothing."""
