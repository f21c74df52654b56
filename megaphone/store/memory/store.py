"""Channels in the memory of this process.

Puts an event loop around `core.channel.Channel`. Every change to a channel is one step without an
`await`, which is what makes it atomic with respect to cancellation and to every other task.
"""

import asyncio
from collections.abc import Sequence

from megaphone.core.budget import Budget
from megaphone.core.channel import Waiter
from megaphone.core.ports import Observer, OnRemoved
from megaphone.model import ChannelLimits, Event, ReadOptions
from megaphone.store.memory.index import StoredChannel
from megaphone.store.memory.lease import MemoryLease
from megaphone.store.memory.replication import MemoryReplication
from megaphone.store.memory.table import Table
from megaphone.store.memory.waiting import Room

LISTED_AT_ONCE = 500
"""How many channels a listing passes before other tasks get their turn."""


class MemoryStore:
    """Fulfils `core.ports.Store`. Belongs to the event loop in which it is made."""

    def __init__(
        self,
        *,
        limits: ChannelLimits,
        max_channels: int,
        write_timeout_s: float,
        budget: Budget,
        observer: Observer,
        on_removed: OnRemoved = lambda consumer_address, age_s, lost: None,
    ) -> None:
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._table = Table(
            limits=limits, max_channels=max_channels, budget=budget, on_removed=on_removed
        )
        self._index = self._table.index
        self._room = Room(write_timeout_s, observer)
        self.replication = MemoryReplication(self._table, self._room)
        """What other nodes of this kind need of the channels."""

    async def create(
        self, channel_id: bytes, consumer_address: str, capacity: int | None = None
    ) -> None:
        self._table.create(channel_id, consumer_address, capacity)

    async def check_room(self) -> None:
        self._table.check_room()

    async def append(self, channel_id: bytes, event: Event, request_id: str | None) -> str:
        channel = self._table.living(channel_id)
        self._room.make(channel)
        answer = self._offer(channel, event, request_id)
        if isinstance(answer, Waiter):
            return await self._room.wait(channel, answer)
        return answer

    async def append_now(
        self, channel_id: bytes, event: Event, request_id: str | None
    ) -> str | None:
        channel = self._table.living(channel_id)
        self._room.make(channel)
        if channel.waiting_writers or not channel.has_room:
            return None
        answer = self._offer(channel, event, request_id)
        assert isinstance(answer, str)
        return answer

    def _offer(self, channel: StoredChannel, event: Event, request_id: str | None) -> str | Waiter:
        answer = channel.offer(event, now=self._loop.time(), request_id=request_id)
        if answer == event.id:  # and not that of an earlier event
            self._observer.events_written(1)
        return answer

    async def lease(
        self, channel_id: bytes, consumer_address: str, options: ReadOptions
    ) -> MemoryLease:
        channel = self._table.readable(channel_id, consumer_address)
        return MemoryLease(channel, options, self._loop, self._observer)

    async def acknowledge(self, channel_id: bytes, consumer_address: str, event_id: str) -> int:
        channel = self._table.readable(channel_id, consumer_address)
        return channel.acknowledge(event_id, self._loop.time())

    async def exists(self, channel_id: bytes) -> bool:
        channel = self._index.get(channel_id)
        return channel is not None and not channel.is_dead(self._loop.time())

    async def remove(self, channel_id: bytes) -> None:
        self._table.remove(self._table.living(channel_id))

    async def list(self, agent: str | None, skip: int, limit: int) -> Sequence[str]:
        addresses: list[str] = []
        passed = 0
        for channel in self._index.walk(agent):
            if len(addresses) >= limit:
                break
            if self._index.holds(channel):
                passed += 1
                if passed > skip:
                    addresses.append(channel.consumer_address)
            if passed % LISTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return addresses

    async def count(self, agent: str) -> int:
        home = self._index.find_agent(agent)
        return 0 if home is None else home.count

    async def quiesce(self) -> None:
        await self._room.quiesce(self._index.agents())

    async def aclose(self) -> None:
        await self._table.aclose()
