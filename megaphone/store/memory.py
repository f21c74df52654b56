"""Channels in the memory of this process.

Puts an event loop around `core.channel.Channel`: writers and readers that must wait do so here, and
a timer ends channels at their deadline. Every change to a channel is one step without an `await`,
which is what makes it atomic with respect to cancellation and to every other task.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from megaphone.core.channel import Channel, Lease, Waiter
from megaphone.core.expiry import Deadlines
from megaphone.core.ports import Observer
from megaphone.errors import ChannelNotFound, LimitExceeded, ShuttingDown, WriteTimeout
from megaphone.model import ChannelLimits, Event, ReadOptions


class MemoryStore:
    """Fulfils `core.ports.Store`. Belongs to the event loop in which it is made.

    `on_removed` is called with the consumer address of every channel that has gone, after the
    observer; like that it must not raise or wait.
    """

    def __init__(
        self,
        *,
        limits: ChannelLimits,
        max_channels: int,
        write_timeout_s: float,
        observer: Observer,
        on_removed: Callable[[str], None] = lambda consumer_address: None,
    ) -> None:
        self._limits = limits
        self._max_channels = max_channels
        self._write_timeout_s = write_timeout_s
        self._observer = observer
        self._on_removed = on_removed
        self._loop = asyncio.get_running_loop()
        self._channels: dict[bytes, StoredChannel] = {}
        self._deadlines = Deadlines()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._refuses_writers = False

    def __len__(self) -> int:
        return len(self._channels)

    async def create(self, channel_id: bytes, consumer_address: str) -> None:
        if len(self._channels) >= self._max_channels:
            raise LimitExceeded(
                f"this node holds {self._max_channels} channels already; no more are allowed"
            )
        now = self._loop.time()
        channel = StoredChannel(consumer_address, self._limits, now)
        self._channels[channel_id] = channel
        self._deadlines.add(channel_id, now + self._limits.ttl_s)
        if self._sweep_timer is None:
            self._schedule_sweep()

    async def append(self, channel_id: bytes, event: Event, request_id: str | None) -> str:
        channel = self._living(channel_id)
        answer = channel.offer(event, now=self._loop.time(), request_id=request_id)
        if isinstance(answer, Waiter):
            return await self._wait_for_room(channel, answer)
        if answer == event.id:  # and not that of an earlier event
            self._observer.events_written(1)
        return answer

    async def lease(
        self, channel_id: bytes, consumer_address: str, options: ReadOptions
    ) -> "MemoryLease":
        channel = self._with_address(channel_id, consumer_address)
        return MemoryLease(channel, options, self._loop, self._observer)

    async def acknowledge(self, channel_id: bytes, consumer_address: str, event_id: str) -> int:
        return self._with_address(channel_id, consumer_address).acknowledge(event_id)

    async def exists(self, channel_id: bytes) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and not channel.is_expired(self._loop.time())

    async def remove(self, channel_id: bytes) -> None:
        self._living(channel_id)
        self._remove(channel_id)

    async def addresses(self, skip: int, limit: int, agent: str | None = None) -> Sequence[str]:
        return [c.consumer_address for c in islice(self._of(agent), skip, skip + limit)]

    async def count(self, agent: str) -> int:
        return sum(1 for _ in self._of(agent))

    async def refuse_writers(self) -> None:
        self._refuses_writers = True
        for waiting in self._waiting:
            wake(waiting)

    async def aclose(self) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for channel_id in list(self._channels):
            self._remove(channel_id)

    # -- Finding

    def _living(self, channel_id: bytes) -> "StoredChannel":
        channel = self._channels.get(channel_id)
        if channel is None or channel.is_expired(self._loop.time()):
            raise ChannelNotFound
        return channel

    def _with_address(self, channel_id: bytes, consumer_address: str) -> "StoredChannel":
        channel = self._living(channel_id)
        if channel.consumer_address != consumer_address:
            raise ChannelNotFound
        return channel

    def _of(self, agent: str | None) -> "Iterator[StoredChannel]":
        prefix = "" if agent is None else f"{agent}."
        return (c for c in self._channels.values() if c.consumer_address.startswith(prefix))

    # -- Waiting for room

    async def _wait_for_room(self, channel: Channel, waiter: Waiter) -> str:
        settled = self._loop.create_future()
        timer = self._loop.call_later(self._write_timeout_s, wake, settled)

        def on_settled() -> None:
            if waiter.taken and not waiter.reported:
                waiter.reported = True
                self._observer.events_written(1)
            wake(settled)

        waiter.join(on_settled)
        self._waiting.add(settled)
        self._observer.writer_waits()
        try:
            if not self._refuses_writers:
                await settled
        finally:
            timer.cancel()
            self._waiting.discard(settled)
            self._observer.writer_waited()
            channel.withdraw(waiter, on_settled)
        if waiter.taken:
            return waiter.event.id
        if waiter.taken is False:
            raise ChannelNotFound
        raise ShuttingDown if self._refuses_writers else WriteTimeout

    # -- Expiry

    def _schedule_sweep(self) -> None:
        due = self._deadlines.next
        self._sweep_timer = None if due is None else self._loop.call_at(due, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for channel_id, channel in self._due(now):
            if channel.is_expired(now):
                self._remove(channel_id)
            else:
                # A channel that is read now cannot die before a whole ttl has passed.
                self._deadlines.add(channel_id, channel.deadline or now + self._limits.ttl_s)
        self._schedule_sweep()

    def _due(self, now: float) -> Iterator[tuple[bytes, "StoredChannel"]]:
        for channel_id in self._deadlines.pop_due(now):
            if (channel := self._channels.get(channel_id)) is not None:
                yield channel_id, channel

    def _remove(self, channel_id: bytes) -> None:
        channel = self._channels.pop(channel_id)
        lost = channel.close()
        age_s = self._loop.time() - channel.created_at
        self._observer.channel_removed(channel.consumer_address, age_s, lost)
        self._on_removed(channel.consumer_address)


class StoredChannel(Channel):
    """A channel and the address of its consumer."""

    __slots__ = ("consumer_address",)

    def __init__(self, consumer_address: str, limits: ChannelLimits, now: float) -> None:
        super().__init__(limits, now)
        self.consumer_address = consumer_address


class MemoryLease:
    """Fulfils `core.ports.ChannelLease`."""

    __slots__ = ("_interrupted", "_lease", "_loop", "_observer", "_timer", "_waiting")

    def __init__(
        self,
        channel: Channel,
        options: ReadOptions,
        loop: asyncio.AbstractEventLoop,
        observer: Observer,
    ) -> None:
        self._loop = loop
        self._observer = observer
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._interrupted = False
        self._lease: Lease = channel.lease(options, self._wake, loop.time())

    @property
    def position(self) -> str:
        return self._lease.position

    @property
    def recovered(self) -> bool | None:
        return self._lease.recovered

    @property
    def is_over(self) -> bool:
        return self._interrupted or not self._lease.is_open

    async def take(self, limit: int, until: float) -> list[Event]:
        while not self.is_over:
            now = self._loop.time()
            if events := self._take_ready(limit, now):
                return events
            if now >= until:
                break
            await self._wait(until)
        return []

    def interrupt(self) -> None:
        self._interrupted = True
        self._wake()

    def release(self, *, clean: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._lease.release(clean=clean, now=self._loop.time())

    def _take_ready(self, limit: int, now: float) -> list[Event]:
        resent = self._lease.resent
        events = self._lease.take(limit, now)
        if events:
            self._observer.events_read(len(events), self._lease.resent - resent)
        return events

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


def wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
