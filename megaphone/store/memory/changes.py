"""The changes of the channels of one agent, for one target.

A follower remembers, for each channel, how much of its log `take` has returned, and which channels
have changed since then. It copies no events: `take` reads them from the logs.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from megaphone.core.pace import free_in_slices
from megaphone.model import (
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    Event,
    EventAdded,
    EventsForgotten,
    KeyAdded,
    KeyOf,
    Progress,
    ProgressMade,
)
from megaphone.store.memory.index import AgentChannels, Index, StoredChannel
from megaphone.store.memory.parts import Parts

LOOKED_AT_ONCE = 25
"""How many channels `take` looks at before other tasks get a turn."""
NO_PROGRESS = Progress()


@dataclass(slots=True)
class FollowerState:
    """How far `take` has returned the changes of one channel."""

    offset: int
    """For each event up to this offset, `take` has returned it or will never return it."""
    keys: int = -1
    """The offset up to which the idempotency keys of events were returned."""
    progress: Progress = NO_PROGRESS
    """The progress that was returned last."""


class MemoryChanges:
    """Fulfils `cluster.ports.Changes`. It follows the channels from its creation to `close`."""

    def __init__(
        self,
        home: AgentChannels,
        index: Index,
        *,
        on_taken: Callable[[StoredChannel], None],
        on_close: Callable[["MemoryChanges"], None],
        now: Callable[[], float],
    ) -> None:
        self._home = home
        self._index = index
        self._on_taken = on_taken
        """Called when `take` returns events of a channel in which writers wait."""
        self._on_close = on_close
        self._now = now
        self.with_read = False
        """Whether `take` also returns delivered events, progress and idempotency keys."""
        self._states = Parts[FollowerState]()
        self._walk = iter(home)
        """The rest of the channels that existed at the start, oldest first. `take` looks at these
        channels before it looks at `_changed`."""
        self._left_to_walk = home.count
        self._changed: OrderedDict[bytes, None] = OrderedDict()
        """The channels that have changed since `take` looked at them."""
        self._ended: deque[str] = deque()
        """The consumer addresses of channels that have ended, but whose end was not returned."""
        self._woken = asyncio.Event()

    # -- Calls of the store

    def channel_changed(self, channel_id: bytes) -> None:
        """Note that `take` must look at a channel again."""
        self._changed[channel_id] = None
        self._woken.set()

    def channel_ended(self, channel: StoredChannel) -> None:
        """Note that a channel was removed. `take` returns its end if it returned the channel."""
        self._changed.pop(channel.channel_id, None)
        if self._states.pop(channel.channel_id) is not None:
            self._ended.append(channel.consumer_address)
            self._woken.set()

    def has_taken(self, channel: StoredChannel, offset: int) -> bool:
        """Return whether `take` has returned the event of a channel at an offset."""
        state = self._states.get(channel.channel_id)
        return state is not None and state.offset >= offset

    # -- Calls of the pipe

    async def take(self, limit: int, *, wait: bool = True) -> Sequence[ChannelChange]:
        while True:
            if changes := self._take_ready(limit):
                return changes
            if self.backlog:
                await asyncio.sleep(0)
            elif wait:
                self._woken.clear()
                await self._woken.wait()
            else:
                return ()

    @property
    def backlog(self) -> int:
        return len(self._ended) + len(self._changed) + self._left_to_walk

    def restart(self, *, with_read: bool) -> None:
        self.with_read = with_read
        self._forget_states()
        self._ended.clear()
        self._walk = iter(self._home)
        self._left_to_walk = self._home.count
        self._woken.set()

    def close(self) -> None:
        self._on_close(self)
        self._walk = iter(())
        self._left_to_walk = 0
        self._forget_states()
        changed, self._changed = self._changed, OrderedDict()
        free_in_slices(changed)

    # -- Inside

    def _forget_states(self) -> None:
        states, self._states = self._states, Parts()
        free_in_slices(states)

    def _take_ready(self, limit: int) -> list[ChannelChange]:
        """Look at some channels, and return their changes. The list may be empty although there
        are changes in other channels."""
        changes: list[ChannelChange] = []
        while self._ended and len(changes) < limit:
            changes.append(ChannelEnded(self._ended.popleft()))
        for _ in range(LOOKED_AT_ONCE):
            if len(changes) >= limit or (channel := self._next_channel()) is None:
                break
            changes += self._changes_of(channel, limit)
        return changes

    def _next_channel(self) -> StoredChannel | None:
        """Remove the next channel from the channels to look at, and return it."""
        for channel in self._walk:
            self._left_to_walk = max(0, self._left_to_walk - 1)
            if self._index.holds(channel):
                self._changed.pop(channel.channel_id, None)
                return channel
        self._left_to_walk = 0
        while self._changed:
            channel_id, _ = self._changed.popitem(last=False)
            if (changed := self._index.get(channel_id)) is not None:
                return changed
        return None

    def _changes_of(self, channel: StoredChannel, limit: int) -> list[ChannelChange]:
        """Return the changes of a channel since the last time, with up to `limit` events."""
        changes: list[ChannelChange] = []
        if (state := self._states.get(channel.channel_id)) is None:
            state = FollowerState(0 if self.with_read else channel.log.delivered)
            self._states[channel.channel_id] = state
            limits = channel.log.limits
            changes.append(
                ChannelAdded(
                    channel.consumer_address,
                    limits.capacity,
                    limits.ttl_s,
                    channel.label,
                    channel.tenant.name,
                )
            )
        first, events = channel.log.after(state.offset, limit)
        if self.with_read and first > state.offset + 1:
            state.progress = Progress(channel.log.before_first)
            changes.append(
                EventsForgotten(channel.consumer_address, channel.log.before_first, first - 1)
            )
        state.offset = first + len(events) - 1
        changes += self._events(channel, state, first, events)
        if self.with_read and (progress := channel.log.progress(state.offset)) != state.progress:
            state.progress = progress
            changes.append(ProgressMade(channel.consumer_address, progress))
        if len(events) == limit:
            self.channel_changed(channel.channel_id)  # because there may be more events
        if events and channel.waiting_writers:
            self._on_taken(channel)
        return changes

    def _events(
        self, channel: StoredChannel, state: FollowerState, first: int, events: Sequence[Event]
    ) -> Iterator[ChannelChange]:
        """Yield events with their idempotency keys, and before them the keys of older events."""
        address, now = channel.consumer_address, self._now()
        keys = dict[str, KeyOf]()
        ids = {event.id for event in events}
        for request_id, key in channel.keys_after(state.keys, now) if self.with_read else ():
            event_id = str(key.answer)
            if key.offset > state.offset:
                break
            if event_id in ids:
                keys[event_id] = KeyOf(request_id, now - key.at)
            else:
                yield KeyAdded(address, event_id, KeyOf(request_id, now - key.at))
        state.keys = state.offset
        for offset, event in enumerate(events, first):
            yield EventAdded(address, event, offset, keys.get(event.id))
