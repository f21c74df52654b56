"""What an operator may see of the channels in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from megaphone.core.channel import Lease
from megaphone.model import ChannelInfo, Event, ReaderInfo
from megaphone.store.memory.index import Index, StoredChannel

SEEN_AT_ONCE = 200
"""How many channels a slice has."""


async def slices_of(index: Index, agent: str | None) -> AsyncIterator[Sequence[StoredChannel]]:
    """Yield the channels of an agent, or of all agents, oldest first."""
    some: list[StoredChannel] = []
    for channel in index.walk(agent):
        if index.holds(channel):
            some.append(channel)
        if len(some) >= SEEN_AT_ONCE:
            yield some
            some = []
    yield some


async def ids_with(index: Index, digits: str) -> Sequence[bytes]:
    """Return the ids of the channels whose id begins with these hexadecimal digits."""
    found: list[bytes] = []
    async for some in slices_of(index, None):
        ids = [channel.channel_id for channel in some]
        found += [one for one in ids if one.hex().startswith(digits)]
        await asyncio.sleep(0)
    return found


def info_of(channel: StoredChannel, now: float) -> ChannelInfo:
    """Return how a channel is now."""
    log, limits, lease = channel.log, channel.log.limits, channel.open_lease
    expires_at = None if channel.is_kept_alive else channel.expires_at
    return ChannelInfo(
        address=channel.consumer_address,
        channel_id=channel.channel_id,
        tenant=channel.tenant.name,
        label=channel.label,
        age_s=now - channel.created_at,
        expires_s=None if expires_at is None else max(0.0, expires_at - now),
        capacity=limits.capacity,
        ttl_s=limits.ttl_s,
        unsent=channel.unsent,
        in_flight=channel.in_flight,
        kept=log.delivered - log.dropped,
        bytes=channel.size,
        waiting_writers=channel.waiting_writers,
        waiting_s=passed_s(channel.waiting_since, now),
        written_s=age_s(channel.last_event),
        read_s=passed_s(channel.read_until(now), now),
        reader=None if lease is None else reader_of(lease, now),
    )


def reader_of(lease: Lease, now: float) -> ReaderInfo:
    return ReaderInfo(
        acknowledges=lease.acknowledging,
        name=lease.reader,
        face=lease.face or None,
        age_s=now - lease.began_at,
        taken_s=passed_s(lease.taken_at, now),
    )


def passed_s(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


def age_s(event: Event | None) -> float | None:
    """Return how long ago an event was accepted."""
    return None if event is None else max(0.0, time.time() - event.timestamp_us / 1_000_000)
