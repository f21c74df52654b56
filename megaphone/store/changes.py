"""Following the channels of an agent, for another node to have the same.

A follower has a cursor for each channel and the set of channels that have changed since they were
looked at. Events are never copied: they are looked up in the channel's log when they are asked for.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel
from megaphone.model import (
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    ChannelLimits,
    Event,
    EventAdded,
    EventsForgotten,
    KeyAdded,
    KeyOf,
    Progress,
    ProgressMade,
)


class StoredChannel(Channel):
    """A channel with its identity, and those who follow it."""

    __slots__ = ("channel_id", "consumer_address", "followers", "is_exempt")

    def __init__(
        self,
        channel_id: bytes,
        consumer_address: str,
        limits: ChannelLimits,
        now: float,
        budget: Budget,
    ) -> None:
        super().__init__(limits, now, budget)
        self.channel_id = channel_id
        self.consumer_address = consumer_address
        self.followers: tuple[MemoryChanges, ...] = ()
        self.is_exempt = False
        """Whether it may expire though its agent is held."""

    @property
    def agent(self) -> str:
        return self.consumer_address.partition(".")[0]

    def set_followers(self, followers: "tuple[MemoryChanges, ...]") -> None:
        """Have each of these hear of every change from now on, and nobody else."""
        self.followers = followers
        self.listener = self._tell_followers if followers else None

    def _tell_followers(self) -> None:
        for follower in self.followers:
            follower.channel_changed(self)

    @property
    def may_evict(self) -> bool:
        """Whether it is followed only by those that cannot say how far it is read elsewhere."""
        return bool(self.followers) and not any(f.with_read for f in self.followers)

    def is_told_to_all(self, number: int) -> bool:
        """Whether every follower has taken the event of a number."""
        return all(follower.has_told(self, number) for follower in self.followers)


UNREAD = Progress()


@dataclass(slots=True)
class Cursor:
    """How far a follower has been told of one channel."""

    number: int
    """The number of the last event that was told, or passed over."""
    keys: int = -1
    """Up to which number the keys of events were told."""
    progress: Progress = UNREAD
    """What was told last."""


class MemoryChanges:
    """Fulfils `core.ports.ChannelChanges`. Follows from the moment it is made."""

    def __init__(
        self,
        agent: str,
        channels: Mapping[bytes, StoredChannel],
        *,
        on_told: Callable[[StoredChannel], None],
        on_close: Callable[["MemoryChanges"], None],
        now: Callable[[], float],
    ) -> None:
        self._prefix = f"{agent}."
        self._channels = channels
        self._on_told = on_told
        """Called when events of a channel were told for which writers may wait."""
        self._on_close = on_close
        self._now = now
        self.with_read = False
        """Whether the follower has asked for what was read, too."""
        self._cursors: dict[bytes, Cursor] = {}
        self._changed: dict[bytes, None] = {}  # in the order in which they are looked at
        self._ended: deque[str] = deque()
        self._woken = asyncio.Event()
        for channel in channels.values():
            self.channel_created(channel)

    # -- What the store says

    def channel_created(self, channel: StoredChannel) -> None:
        if channel.consumer_address.startswith(self._prefix):
            channel.set_followers((*channel.followers, self))
            self.channel_changed(channel)

    def channel_changed(self, channel: StoredChannel) -> None:
        self._changed[channel.channel_id] = None
        self._woken.set()

    def channel_ended(self, channel: StoredChannel) -> None:
        self._changed.pop(channel.channel_id, None)
        if self._cursors.pop(channel.channel_id, None) is not None:
            self._ended.append(channel.consumer_address)
            self._woken.set()

    def has_told(self, channel: StoredChannel, number: int) -> bool:
        cursor = self._cursors.get(channel.channel_id)
        return cursor is not None and cursor.number >= number

    # -- What the follower asks

    async def take(self, limit: int) -> Sequence[ChannelChange]:
        while not (changes := self._take_ready(limit)):
            self._woken.clear()
            await self._woken.wait()
        return changes

    @property
    def are_pending(self) -> bool:
        return bool(self._ended) or any(map(self._has_news, self._changed))

    @property
    def untold(self) -> int:
        return len(self._ended) + len(self._changed)

    def restart(self, *, with_read: bool) -> None:
        self.with_read = with_read
        self._cursors.clear()
        self._ended.clear()
        for channel in self._followed():
            self.channel_changed(channel)

    def close(self) -> None:
        for channel in self._followed():
            channel.set_followers(tuple(f for f in channel.followers if f is not self))
        self._on_close(self)

    # -- Inside

    def _followed(self) -> list[StoredChannel]:
        return [channel for channel in self._channels.values() if self in channel.followers]

    def _has_news(self, channel_id: bytes) -> bool:
        if (channel := self._channels.get(channel_id)) is None:
            return False
        if (cursor := self._cursors.get(channel_id)) is None:
            return True
        if self.with_read and channel.progress(cursor.number) != cursor.progress:
            return True
        return bool(channel.events_after(cursor.number, 1)[1])

    def _take_ready(self, limit: int) -> list[ChannelChange]:
        changes: list[ChannelChange] = []
        while self._ended:
            changes.append(ChannelEnded(self._ended.popleft()))
        while self._changed and len(changes) < limit:
            channel_id = next(iter(self._changed))
            del self._changed[channel_id]
            if (channel := self._channels.get(channel_id)) is not None:
                changes += self._changes_of(channel, limit)
        return changes

    def _changes_of(self, channel: StoredChannel, limit: int) -> list[ChannelChange]:
        changes = [] if channel.channel_id in self._cursors else self._begin(channel)
        cursor = self._cursors[channel.channel_id]
        first, events = channel.events_after(cursor.number, limit)
        if self.with_read and first > cursor.number + 1:
            cursor.progress = Progress(channel.before_first)
            changes.append(
                EventsForgotten(channel.consumer_address, channel.before_first, first - 1)
            )
        cursor.number = first + len(events) - 1
        changes += self._events(channel, cursor, first, events)
        if self.with_read and (progress := channel.progress(cursor.number)) != cursor.progress:
            cursor.progress = progress
            changes.append(ProgressMade(channel.consumer_address, progress))
        if len(events) == limit:
            self.channel_changed(channel)  # there may be more; its turn comes again
        if events and channel.waiting_writers:
            self._on_told(channel)
        return changes

    def _events(
        self, channel: StoredChannel, cursor: Cursor, first: int, events: Sequence[Event]
    ) -> Iterator[ChannelChange]:
        """Yield events with their keys, and before them the keys of events that are gone."""
        address, now = channel.consumer_address, self._now()
        keys = dict[str, KeyOf]()
        ids = {event.id for event in events}
        for request_id, key in channel.keys_after(cursor.keys, now) if self.with_read else ():
            event_id = str(key.answer)
            if key.number > cursor.number:
                break
            if event_id in ids:
                keys[event_id] = KeyOf(request_id, now - key.at)
            else:
                yield KeyAdded(address, event_id, KeyOf(request_id, now - key.at))
        cursor.keys = cursor.number
        for number, event in enumerate(events, first):
            yield EventAdded(address, event, number, keys.get(event.id))

    def _begin(self, channel: StoredChannel) -> list[ChannelChange]:
        changes: list[ChannelChange] = [ChannelAdded(channel.consumer_address, channel.capacity)]
        cursor = Cursor(0 if self.with_read else channel.read_number)
        self._cursors[channel.channel_id] = cursor
        return changes
