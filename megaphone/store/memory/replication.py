"""The part of the memory store that replication needs: copying channels between two nodes."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megaphone.core.budget import cost
from megaphone.core.pace import free_in_slices
from megaphone.model import (
    ChannelState,
    EventAdded,
    EventsForgotten,
    HistoryChange,
    KeyAdded,
    ProgressMade,
)
from megaphone.store.memory.changes import MemoryChanges
from megaphone.store.memory.parts import Parts
from megaphone.store.memory.table import Table
from megaphone.store.memory.waiting import WaitingWriters

LISTED_AT_ONCE = 100
"""How many channels `blocked` looks at before other tasks get a turn."""


class MemoryReplication:
    """Fulfils `cluster.ports.Replicable`."""

    def __init__(self, table: Table, writers: WaitingWriters) -> None:
        self._table = table
        self._index = table.index
        self._writers = writers
        self._loop = asyncio.get_running_loop()

    # -- For the targets of this node

    def follow(self, agent: str) -> MemoryChanges:
        home = self._index.agent(agent)

        def closed(changes: MemoryChanges) -> None:
            home.followers = tuple(one for one in home.followers if one is not changes)
            self._index.tidy(home)

        changes = MemoryChanges(
            home,
            self._index,
            on_taken=self._writers.evict_if_unread,
            on_close=closed,
            now=self._loop.time,
        )
        home.followers += (changes,)
        return changes

    async def blocked(self, agent: str) -> Sequence[str]:
        home = self._index.find_agent(agent)
        addresses: list[str] = []
        if home is None:
            return addresses
        for number in range(len(home.blocked)):
            if number and number % LISTED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not home.blocked:
                break
            channel = next(iter(home.blocked))
            home.blocked.move_to_end(channel)
            if channel.waiting_writers:
                addresses.append(channel.consumer_address)
        return addresses

    async def advance(self, channel_id: bytes, event_id: str) -> None:
        channel = self._table.living(channel_id, self._loop.time())
        channel.advance(event_id, self._loop.time())

    async def refuse_writers(self, agent: str) -> None:
        if (home := self._index.find_agent(agent)) is not None:
            await self._writers.refuse(home)

    async def release(self, channel_id: bytes) -> None:
        self._table.release(self._table.living(channel_id, self._loop.time()))

    async def largest_capacity(self, agent: str) -> int:
        home = self._index.find_agent(agent)
        return 0 if home is None else max(home.capacities, default=0)

    # -- For the sources of this node

    async def apply(self, channel_id: bytes, change: HistoryChange) -> int:
        channel, now = self._table.living(channel_id, self._loop.time()), self._loop.time()
        lost = 0
        match change:
            case EventAdded(event=event, offset=offset, key=key):
                self._table.budget.ensure(cost(event), now, channel)
                lost = channel.apply(event, now, knows_progress=offset > 0)
                if key is not None:
                    channel.learn_key(key.request_id, event.id, now - key.age_s, now)
            case KeyAdded(event_id=event_id, key=key):
                channel.learn_key(key.request_id, event_id, now - key.age_s, now)
            case ProgressMade(progress=progress):
                channel.apply_progress(progress, now)
            case EventsForgotten(event_id=event_id):
                channel.skip_to(event_id, now)
        return lost

    async def state(self, channel_id: bytes) -> ChannelState | None:
        channel = self._index.get(channel_id)
        now = self._loop.time()
        if channel is None or channel.is_expired(now):
            return None
        return ChannelState(
            is_read=channel.is_read,
            is_in_use=channel.is_in_use(now),
            is_copy=channel.is_copy,
            cursor=channel.cursor if channel.was_used else None,
        )

    # -- Expiry

    @contextmanager
    def keep_alive(self, agent: str) -> Iterator[None]:
        home = self._index.agent(agent)
        home.keepers += 1
        try:
            yield
        finally:
            home.keepers -= 1
            home.kept_until = self._loop.time()
            kept, home.kept = home.kept, Parts()
            free_in_slices(kept)
            self._index.tidy(home)

    async def expired_but_kept(self, agent: str, limit: int) -> Sequence[str]:
        home = self._index.find_agent(agent)
        addresses: list[str] = []
        now = self._loop.time()
        while home is not None and len(home.kept) and len(addresses) < limit:
            _, channel = home.kept.popitem()
            if channel.is_kept_past_deadline(now):
                addresses.append(channel.consumer_address)
        return addresses

    async def allow_expiry(self, channel_id: bytes) -> None:
        self._table.living(channel_id, self._loop.time()).may_expire = True

    async def expire(self, channel_id: bytes) -> None:
        channel = self._index.get(channel_id)
        if channel is not None and channel.is_kept_past_deadline(self._loop.time()):
            self._table.remove(channel)
