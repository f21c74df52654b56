"""Adds channels to a store, and removes them: at their deadline, by a call, or with the store."""

import asyncio
import math
import time
from dataclasses import replace

from megaphone.core.budget import CHANNEL_BYTES, Budget
from megaphone.core.ports import OnRemoved
from megaphone.core.tenants import Tenant
from megaphone.errors import ChannelNotFound, LimitExceeded
from megaphone.model import ChannelLimits, ChannelOptions, agent_of
from megaphone.store.memory.deadlines import Deadlines
from megaphone.store.memory.index import Index, StoredChannel

ENDED_AT_ONCE = 50
"""How many channels are removed before other tasks get a turn."""
SHARED_LIMITS = 1_000
"""How many different limits are remembered, so that channels with equal limits share an object."""


class Table:
    """The channels of a store. Every method but `aclose` takes effect at once."""

    def __init__(
        self, *, limits: ChannelLimits, max_channels: int, budget: Budget, on_removed: OnRemoved
    ) -> None:
        self.index = Index()
        self.limits = limits
        self.budget = budget
        self._shared_limits: dict[tuple[int, float], ChannelLimits] = {}
        """By capacity and TTL."""
        self._max_channels = max_channels
        self._on_removed = on_removed
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time_ns() // 1_000_000
        """The epoch of this store: its start time in milliseconds. After a restart, when all events
        are lost, the new store has another epoch."""
        self._deadlines = Deadlines()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweeps_at = math.inf
        """When the timer is due."""

    # -- Adding

    def check_room(self) -> None:
        """Raises: LimitExceeded, when the store has as many channels as it may have, or no memory
        for one more."""
        if len(self.index) >= self._max_channels:
            raise LimitExceeded(
                f"this node holds {self._max_channels} channels already; no more are allowed"
            )
        self.budget.ensure(CHANNEL_BYTES, self._loop.time())

    def create(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions,
        tenant: Tenant,
    ) -> None:
        """Add an empty channel. Replaces a channel with the same id that has expired but is not
        removed yet.

        Raises: LimitExceeded.
        """
        if (expired := self.index.get(channel_id)) is not None:
            self.remove(expired)
        self.check_room()
        home = self.index.agent(agent_of(consumer_address))
        channel = StoredChannel(
            channel_id,
            consumer_address,
            home,
            self._limits_of(options),
            self._loop.time(),
            tenant.budget_in(self.budget),
            self._epoch,
            options.label,
            tenant,
        )
        self.index.add(channel)
        for changes in home.followers:
            changes.channel_changed(channel_id)
        assert channel.deadline is not None
        self._deadlines.add(channel_id, channel.deadline)
        if channel.deadline < self._sweeps_at:  # shorter-lived than all others, or the first
            self._schedule_sweep()

    def _limits_of(self, options: ChannelOptions) -> ChannelLimits:
        """Return the limits for a channel: mostly one object for all channels with equal limits."""
        limits = self.limits
        capacity = limits.capacity if options.capacity is None else options.capacity
        ttl_s = limits.ttl_s if options.ttl_s is None else options.ttl_s
        if capacity == limits.capacity and ttl_s == limits.ttl_s:
            return limits
        shared = self._shared_limits.get((capacity, ttl_s))
        if shared is None:
            if len(self._shared_limits) >= SHARED_LIMITS:
                self._shared_limits.clear()
            shared = replace(limits, capacity=capacity, ttl_s=ttl_s)
            self._shared_limits[capacity, ttl_s] = shared
        return shared

    # -- Finding

    def living(self, channel_id: bytes, now: float, tenant: Tenant | None = None) -> StoredChannel:
        """Return a channel.

        Raises: ChannelNotFound, also when the channel has expired or belongs to another tenant.
        """
        channel = self.index.get(channel_id)
        if channel is None:
            raise ChannelNotFound
        if tenant is not None and tenant is not channel.tenant and not channel.is_of(tenant):
            raise ChannelNotFound
        deadline = channel.deadline
        if deadline is not None and deadline <= now and channel.is_expired(now):
            raise ChannelNotFound
        return channel

    def readable(
        self, channel_id: bytes, consumer_address: str, tenant: Tenant | None
    ) -> StoredChannel:
        """Return a channel for a reader.

        Raises: as `living`; also when its consumer address is not exactly the given one.
        """
        channel = self.living(channel_id, self._loop.time(), tenant)
        if channel.consumer_address != consumer_address:
            raise ChannelNotFound
        return channel

    # -- Removing

    def remove(self, channel: StoredChannel) -> None:
        """Remove a channel: end its read, refuse its waiting writers, and notify its followers and
        `on_removed`."""
        self.index.remove(channel)
        for changes in channel.home.followers:
            changes.channel_ended(channel)
        lost = channel.close()
        age_s = self._loop.time() - channel.created_at
        self._on_removed(channel.consumer_address, age_s, lost)

    def release(self, channel: StoredChannel) -> None:
        """Delete a channel that another node owns, without notifying followers or `on_removed`."""
        channel.close()
        self.index.remove(channel)

    async def aclose(self) -> None:
        """Remove all channels, in slices."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for home in self.index.agents():
            for number, channel in enumerate(home):
                if self.index.holds(channel):
                    self.remove(channel)
                if number % ENDED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    # -- Expiry

    def _schedule_sweep(self) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        due = self._deadlines.next
        self._sweeps_at = math.inf if due is None else due
        self._sweep_timer = None if due is None else self._loop.call_at(due, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for channel_id in self._deadlines.pop_due(now, ENDED_AT_ONCE):
            if (channel := self.index.get(channel_id)) is None:
                continue
            if channel.is_expired(now):
                self.remove(channel)
                continue
            if channel.is_kept_past_deadline(now):
                channel.home.kept[channel_id] = channel
            expires_at = channel.expires_at
            if expires_at is None or expires_at <= now:
                # A channel that is read or kept alive now cannot expire within the next TTL.
                expires_at = now + channel.log.limits.ttl_s
            self._deadlines.add(channel_id, expires_at)
        self._schedule_sweep()
