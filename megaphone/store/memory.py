"""Channels in the memory of this process.

Puts an event loop around `core.channel.Channel`: writers and readers that must wait do so here, and
a timer ends channels at their deadline. Every change to a channel is one step without an `await`,
which is what makes it atomic with respect to cancellation and to every other task.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from megaphone.core.budget import CHANNEL_BYTES, Budget, cost
from megaphone.core.channel import Lease, Waiter
from megaphone.core.expiry import Deadlines
from megaphone.core.ports import Observer
from megaphone.errors import (
    AgentMoved,
    ChannelNotFound,
    LimitExceeded,
    ShuttingDown,
    WriteTimeout,
)
from megaphone.model import ChannelLimits, Event, KeyOf, Progress, ReadOptions
from megaphone.store.changes import MemoryChanges, StoredChannel

SWEPT_AT_ONCE = 500
"""How many channels end before other tasks get their turn."""
UNREAD_S = 5.0
"""How long a channel that is forwarded must be unread for its writers not to wait for readers."""


class MemoryStore:
    """Fulfils `core.ports.Store`. Belongs to the event loop in which it is made.

    `on_removed` is called with the consumer address of every channel that has gone, after the
    observer; like that it must not raise or wait. `owns` tells whether this node answers for the
    channels of an agent: what is lost with a copy is not counted.
    """

    def __init__(
        self,
        *,
        limits: ChannelLimits,
        max_channels: int,
        write_timeout_s: float,
        budget: Budget,
        observer: Observer,
        on_removed: Callable[[str], None] = lambda consumer_address: None,
        owns: Callable[[str], bool] = lambda agent: True,
    ) -> None:
        self._limits = limits
        self._limits_by_capacity = {limits.capacity: limits}
        self._max_channels = max_channels
        self._write_timeout_s = write_timeout_s
        self._budget = budget
        self._observer = observer
        self._on_removed = on_removed
        self._owns = owns
        self._loop = asyncio.get_running_loop()
        self._channels: dict[bytes, StoredChannel] = {}
        self._counts: Counter[str] = Counter()
        """By agent: how many channels it has."""
        self._deadlines = Deadlines()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._waiting: dict[asyncio.Future[None], StoredChannel] = {}
        """What writers wait for, and at which channels."""
        self._dismissed: set[asyncio.Future[None]] = set()
        self._held: Counter[str] = Counter()
        """Agents whose channels do not expire, and by how many they are held."""
        self._overdue: dict[str, dict[bytes, None]] = {}
        """By agent: the channels that live on only since they are held."""
        self._followers: list[MemoryChanges] = []
        self._refuses_writers = False

    def __len__(self) -> int:
        return len(self._channels)

    async def create(
        self, channel_id: bytes, consumer_address: str, capacity: int | None = None
    ) -> None:
        await self.check_room()
        now = self._loop.time()
        limits = self._limits_of(capacity)
        channel = StoredChannel(channel_id, consumer_address, limits, now, self._budget)
        self._channels[channel_id] = channel
        self._counts[channel.agent] += 1
        for changes in self._followers:
            changes.channel_created(channel)
        self._deadlines.add(channel_id, now + self._limits.ttl_s)
        if self._sweep_timer is None:
            self._schedule_sweep()

    def _limits_of(self, capacity: int | None) -> ChannelLimits:
        """Return limits that all channels of a capacity share."""
        if capacity is None:
            return self._limits
        if capacity not in self._limits_by_capacity:
            self._limits_by_capacity[capacity] = replace(self._limits, capacity=capacity)
        return self._limits_by_capacity[capacity]

    async def check_room(self) -> None:
        if len(self._channels) >= self._max_channels:
            raise LimitExceeded(
                f"this node holds {self._max_channels} channels already; no more are allowed"
            )
        self._budget.ensure(CHANNEL_BYTES, self._loop.time())

    async def append(self, channel_id: bytes, event: Event, request_id: str | None) -> str:
        channel = self._living(channel_id)
        self._make_room(channel)
        answer = self._offer(channel, event, request_id)
        if isinstance(answer, Waiter):
            return await self._wait_for_room(channel, answer)
        return answer

    async def append_now(
        self, channel_id: bytes, event: Event, request_id: str | None
    ) -> str | None:
        channel = self._living(channel_id)
        self._make_room(channel)
        if channel.waiting_writers or not channel.has_room:
            return None
        answer = self._offer(channel, event, request_id)
        assert isinstance(answer, str)
        return answer

    def _offer(self, channel: StoredChannel, event: Event, request_id: str | None) -> str | Waiter:
        answer = channel.offer(event, now=self._loop.time(), request_id=request_id)
        if answer == event.id:  # and not that of an earlier event, or a waiter
            self._observer.events_written(1)
        return answer

    async def lease(
        self, channel_id: bytes, consumer_address: str, options: ReadOptions
    ) -> "MemoryLease":
        channel = self._with_address(channel_id, consumer_address)
        return MemoryLease(channel, options, self._loop, self._observer)

    async def acknowledge(self, channel_id: bytes, consumer_address: str, event_id: str) -> int:
        channel = self._with_address(channel_id, consumer_address)
        return channel.acknowledge(event_id, self._loop.time())

    async def exists(self, channel_id: bytes) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and not self._is_expired(channel)

    async def remove(self, channel_id: bytes) -> None:
        self._living(channel_id)
        self._remove(channel_id)

    async def addresses(self, skip: int, limit: int, agent: str | None = None) -> Sequence[str]:
        return [c.consumer_address for c in islice(self._of(agent), skip, skip + limit)]

    async def count(self, agent: str) -> int:
        return self._counts[agent]

    async def largest_capacity(self, agent: str) -> int:
        return max((channel.capacity for channel in self._of(agent)), default=0)

    def follow(self, agent: str) -> MemoryChanges:
        changes = MemoryChanges(
            agent,
            self._channels,
            on_told=self._make_room,
            on_close=lambda changes: self._followers.remove(changes),
            now=self._loop.time,
        )
        self._followers.append(changes)
        return changes

    def hold(self, agent: str) -> None:
        self._held[agent] += 1

    def unhold(self, agent: str) -> None:
        self._held -= Counter([agent])
        self._overdue.pop(agent, None)
        deadline = self._loop.time() + self._limits.ttl_s
        for channel in self._of(agent):
            channel.postpone(deadline)

    def pop_overdue(self, agent: str) -> Sequence[str]:
        overdue = self._overdue.pop(agent, {})
        channels = (self._channels.get(channel_id) for channel_id in overdue)
        return [c.consumer_address for c in channels if c is not None and self._is_overdue(c)]

    async def expire(self, channel_id: bytes) -> None:
        channel = self._channels.get(channel_id)
        if channel is not None and self._is_overdue(channel):
            self._remove(channel_id)

    async def exempt(self, channel_id: bytes) -> None:
        self._living(channel_id).is_exempt = True

    async def push(
        self,
        channel_id: bytes,
        event: Event,
        key: KeyOf | None = None,
        *,
        is_followed: bool = False,
    ) -> None:
        channel, now = self._living(channel_id), self._loop.time()
        self._budget.ensure(cost(event), now, channel)
        self._observer.events_fed(1)
        self._count_lost(channel.push(event, now, is_followed=is_followed))
        if key is not None:
            channel.learn_key(key.request_id, event.id, now - key.age_s, now)

    async def learn_key(self, channel_id: bytes, event_id: str, key: KeyOf) -> None:
        channel, now = self._living(channel_id), self._loop.time()
        channel.learn_key(key.request_id, event_id, now - key.age_s, now)

    async def follow_progress(self, channel_id: bytes, progress: Progress) -> None:
        channel = self._living(channel_id)
        channel.follow(progress, self._loop.time())

    async def skip_to(self, channel_id: bytes, event_id: str) -> None:
        channel = self._living(channel_id)
        channel.skip_to(event_id, self._loop.time())

    async def blocked(self, agent: str) -> Sequence[str]:
        channels = dict.fromkeys(c for c in self._waiting.values() if c.agent == agent)
        return [channel.consumer_address for channel in channels]

    async def read_here(self, channel_id: bytes) -> str | None:
        channel = self._channels.get(channel_id)
        return channel.position if channel is not None and channel.was_used else None

    async def advance(self, channel_id: bytes, event_id: str) -> None:
        channel = self._living(channel_id)
        channel.advance(event_id, self._loop.time())

    async def is_copy(self, channel_id: bytes) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and channel.is_copy

    async def is_read(self, channel_id: bytes) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and channel.is_read

    async def is_in_use(self, channel_id: bytes) -> bool:
        channel = self._channels.get(channel_id)
        return channel is not None and channel.is_in_use(self._loop.time())

    async def forget(self, channel_id: bytes) -> None:
        self._living(channel_id).close()
        self._pop(channel_id)
        self._observer.channel_forgotten()

    async def dismiss_writers(self, agent: str) -> None:
        for waiting, channel in self._waiting.items():
            if channel.agent == agent:
                self._dismissed.add(waiting)
                wake(waiting)

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

    def _living(self, channel_id: bytes) -> StoredChannel:
        channel = self._channels.get(channel_id)
        if channel is None or self._is_expired(channel):
            raise ChannelNotFound
        return channel

    def _is_expired(self, channel: StoredChannel) -> bool:
        return channel.is_expired(self._loop.time()) and not self._is_held(channel)

    def _is_overdue(self, channel: StoredChannel) -> bool:
        return channel.is_expired(self._loop.time()) and self._is_held(channel)

    def _is_held(self, channel: StoredChannel) -> bool:
        return channel.agent in self._held and not channel.is_exempt

    def _with_address(self, channel_id: bytes, consumer_address: str) -> StoredChannel:
        channel = self._living(channel_id)
        if channel.consumer_address != consumer_address:
            raise ChannelNotFound
        return channel

    def _of(self, agent: str | None) -> Iterator[StoredChannel]:
        prefix = "" if agent is None else f"{agent}."
        return (c for c in self._channels.values() if c.consumer_address.startswith(prefix))

    # -- Room

    def _make_room(self, channel: StoredChannel) -> None:
        """Evict what other nodes have, where nobody reads here: see `ports.Store.follow`."""
        if channel.has_room or not channel.may_evict:
            return
        if not channel.is_unread_for(UNREAD_S, self._loop.time()):
            return
        if channel.is_told_to_all(channel.oldest_held_number):
            self._count_lost(channel.push_out(self._loop.time()))

    def _count_lost(self, lost: int) -> None:
        if lost:
            self._observer.events_lost(lost)

    async def _wait_for_room(self, channel: StoredChannel, waiter: Waiter) -> str:
        settled = self._loop.create_future()
        timer = self._loop.call_later(self._write_timeout_s, wake, settled)
        unread = self._loop.call_later(UNREAD_S, self._make_room, channel)

        def on_settled() -> None:
            if waiter.taken and not waiter.reported:
                waiter.reported = True
                self._observer.events_written(1)
            wake(settled)

        waiter.join(on_settled)
        self._waiting[settled] = channel
        self._observer.writer_waits()
        try:
            if not self._refuses_writers:
                await settled
        finally:
            timer.cancel()
            unread.cancel()
            del self._waiting[settled]
            is_dismissed = settled in self._dismissed
            self._dismissed.discard(settled)
            self._observer.writer_waited()
            channel.withdraw(waiter, on_settled)
        if waiter.taken:
            return waiter.event.id
        if waiter.taken is False:
            raise ChannelNotFound
        if is_dismissed:
            raise AgentMoved(f"agent {channel.agent} moves to another node")
        raise ShuttingDown if self._refuses_writers else WriteTimeout

    # -- Expiry

    def _schedule_sweep(self) -> None:
        due = self._deadlines.next
        self._sweep_timer = None if due is None else self._loop.call_at(due, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for channel_id, channel in self._due(now):
            if self._is_expired(channel):
                self._remove(channel_id)
            else:
                # A channel that is read or held now cannot die before a whole ttl has passed.
                if self._is_overdue(channel):
                    self._overdue.setdefault(channel.agent, {})[channel_id] = None
                deadline = channel.deadline
                if deadline is None or deadline <= now:
                    deadline = now + self._limits.ttl_s
                self._deadlines.add(channel_id, deadline)
        self._schedule_sweep()

    def _due(self, now: float) -> Iterator[tuple[bytes, StoredChannel]]:
        for channel_id in self._deadlines.pop_due(now, SWEPT_AT_ONCE):
            if (channel := self._channels.get(channel_id)) is not None:
                yield channel_id, channel

    def _pop(self, channel_id: bytes) -> StoredChannel:
        channel = self._channels.pop(channel_id)
        agent = channel.agent
        self._counts[agent] -= 1
        if not self._counts[agent]:
            del self._counts[agent]
        return channel

    def _remove(self, channel_id: bytes) -> None:
        channel = self._pop(channel_id)
        for changes in channel.followers:
            changes.channel_ended(channel)
        lost = channel.close()
        if not self._owns(channel.agent):
            lost = 0  # the node that feeds this one has the events, and counts them
        age_s = self._loop.time() - channel.created_at
        self._observer.channel_removed(channel.consumer_address, age_s, lost)
        self._on_removed(channel.consumer_address)


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

    async def take(self, limit: int, max_bytes: int, until: float) -> list[Event]:
        while not self.is_over:
            now = self._loop.time()
            if events := self._take_ready(limit, max_bytes, now):
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
        self._lease.wake = wake_nobody  # the two would keep each other alive otherwise

    def _take_ready(self, limit: int, max_bytes: int, now: float) -> list[Event]:
        resent = self._lease.resent
        events = self._lease.take(limit, max_bytes, now)
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


def wake_nobody() -> None:
    """Do nothing."""
