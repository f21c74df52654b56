"""A store that keeps its channels in the memory of this process.

The store adds waiting, timers and an index to `core.channel.Channel`. Each change of a channel is
one step without an `await`, so neither a cancellation nor another task can interrupt it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from megaphone.core.budget import Budget
from megaphone.core.channel import Lease
from megaphone.core.log import new_tuple
from megaphone.core.ports import Append, AppendResult, OnRemoved, Stored, Surveyed, WouldBlock
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import MegaphoneError
from megaphone.model import (
    NO_OPTIONS,
    ChannelInfo,
    ChannelLimits,
    ChannelOptions,
    Event,
    ReadOptions,
)
from megaphone.store.memory.inspection import ids_with, info_of, slices_of
from megaphone.store.memory.replication import MemoryReplication
from megaphone.store.memory.table import Table
from megaphone.store.memory.waiting import WaitingWriters

LISTED_AT_ONCE = 200
"""How many channels `list` skips or returns before other tasks get a turn."""


class MemoryStore:
    """Fulfils `core.ports.Store`. Belongs to the event loop in which it is made."""

    is_remote = False

    def __init__(
        self,
        *,
        limits: ChannelLimits,
        max_channels: int,
        write_timeout_s: float,
        budget: Budget,
        on_removed: OnRemoved = lambda consumer_address, age_s, lost: None,
        on_evicted: Callable[[int], None] = lambda lost: None,
    ) -> None:
        """`on_evicted` is called when the store has evicted events to free places for writers. Its
        argument is how many of them were never sent to a reader. It must not raise or wait."""
        self._clock = asyncio.get_running_loop().time
        self._table = Table(
            limits=limits, max_channels=max_channels, budget=budget, on_removed=on_removed
        )
        self._index = self._table.index
        self._writers = WaitingWriters(write_timeout_s, on_evicted)
        self.replication = MemoryReplication(self._table, self._writers)
        """The calls for replication to other nodes, and from them."""

    async def create(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        self._table.create(channel_id, consumer_address, options, tenant)

    def create_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        self._table.create(channel_id, consumer_address, options, tenant)

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        results: list[AppendResult] = []
        refused: dict[bytes, AppendResult] = {}
        """By channel id: the result of a write that was not accepted. The later writes of the
        channel get the same result and are not tried."""
        for write in writes:
            result = refused.get(write.channel_id) if refused else None
            if result is None:
                result = await self._append(write) if wait else self._append_now(write)
                if not isinstance(result, Stored):
                    refused[write.channel_id] = result
            results.append(result)
        return results

    def _append_now(self, write: Append) -> AppendResult:
        try:
            return self.append_nowait(write)
        except (MegaphoneError, WouldBlock) as result:
            return result.with_traceback(None)

    async def _append(self, write: Append) -> AppendResult:
        try:
            return self.append_nowait(write)
        except WouldBlock:
            pass
        except MegaphoneError as error:
            return error.with_traceback(None)
        try:
            return await self._wait_for_room(write)
        except MegaphoneError as error:
            return error.with_traceback(None)

    def begin_append(
        self, write: Append, on_result: Callable[[AppendResult | Exception], None]
    ) -> None:
        asyncio.get_running_loop().call_soon(on_result, self._append_now(write))

    def append_nowait(self, write: Append) -> Stored:
        channel_id, event, request_id, tenant = write
        now = self._clock()
        channel = self._table.living(channel_id, now, tenant)
        accepted = channel.accept(event, now=now, request_id=request_id)
        if accepted is None:
            self._writers.evict_if_unread(channel)
            accepted = channel.accept(event, now=now, request_id=request_id)
            if accepted is None:
                raise WouldBlock
        return new_tuple(Stored, (accepted, accepted == event.id))

    def append_run_nowait(
        self,
        channel_id: bytes,
        events: list[Event],
        tenant: Tenant | None = None,
    ) -> int:
        now = self._clock()
        return self._table.living(channel_id, now, tenant).accept_run(events, now)

    async def append_to_all(
        self,
        channel_ids: Sequence[bytes],
        events: list[Event],
        tenant: Tenant | None = None,
    ) -> Sequence[int | MegaphoneError]:
        results: list[int | MegaphoneError] = []
        for channel_id in channel_ids:
            try:
                results.append(self.append_run_nowait(channel_id, events, tenant))
            except MegaphoneError as error:
                results.append(error.with_traceback(None))
        return results

    async def _wait_for_room(self, write: Append) -> Stored:
        now = self._clock()
        channel = self._table.living(write.channel_id, now, write.tenant)
        answer = channel.offer(write.event, now=now, request_id=write.request_id)
        if isinstance(answer, str):  # the id of an earlier event with the same idempotency key
            return Stored(answer, is_new=False)
        return await self._writers.wait(channel, answer)

    async def open(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> Lease:
        return self.open_nowait(channel_id, consumer_address, options, tenant)

    def open_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> Lease:
        channel = self._table.readable(channel_id, consumer_address, tenant)
        return channel.lease(options, self._clock())

    async def acknowledge(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        return self.acknowledge_nowait(channel_id, consumer_address, event_id, tenant)

    def acknowledge_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        channel = self._table.readable(channel_id, consumer_address, tenant)
        return channel.acknowledge(event_id, self._clock())

    async def exists(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        return self.exists_nowait(channel_ids, tenant)

    def exists_nowait(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        now = self._clock()
        found = ((one, self._index.get(one)) for one in channel_ids)
        return {
            one: channel.consumer_address
            for one, channel in found
            if channel is not None and not channel.is_expired(now) and channel.is_of(tenant)
        }

    async def remove(
        self,
        channel_id: bytes,
        tenant: Tenant | None = None,
    ) -> None:
        self._table.remove(self._table.living(channel_id, self._clock(), tenant))

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

    def survey(
        self, agent: str | None = None, *, with_size: bool = False
    ) -> AsyncIterator[Sequence[Surveyed]]:
        return slices_of(self._index, agent)

    async def look_again(self, channels: Sequence[Surveyed]) -> Sequence[Surveyed]:
        return [one for one in channels if self._index.get(one.channel_id) is one]

    async def info(self, channel_id: bytes) -> ChannelInfo:
        now = self._clock()
        return info_of(self._table.living(channel_id, now), now)

    async def find(self, digits: str) -> Sequence[bytes]:
        return await ids_with(self._index, digits)

    async def count(self, agent: str) -> int:
        home = self._index.find_agent(agent)
        return 0 if home is None else home.count

    async def check_room(self) -> None:
        self._table.check_room()

    def check_serves(self) -> None:
        """A store in memory is always there."""

    async def quiesce(self) -> None:
        await self._writers.quiesce(self._index.agents())

    async def aclose(self) -> None:
        await self._table.aclose()
