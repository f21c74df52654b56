"""What an operator may see of the channels in a shared store.

The store knows a channel, and only the node of its reader knows how the read goes. So a node that
is asked for one channel asks that node too, by a message to its inbox.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from megaphone.core.ports import Surveyed
from megaphone.errors import ChannelNotFound
from megaphone.model import ChannelInfo, ReaderInfo
from megaphone.store.redis.calls import Functions
from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.encoding import timestamp_in
from megaphone.store.redis.keys import Names, id_of, tag_of
from megaphone.store.redis.lease import RemoteLease
from megaphone.store.redis.membership import Membership
from megaphone.store.redis.questions import Questions

LOOKED_AT_ONCE = 50
"""How many channels the store is asked for at once, so that it is not held for long."""
SCANNED_AT_ONCE = 500
DIGITS_OF_A_CHARACTER = 6 / 4
"""How many hexadecimal digits a character of a tag stands for."""


class ReadOfNode(msgspec.Struct):
    """What the node of a reader says of its read."""

    face: str
    age_s: float
    taken_s: float | None


ANSWER: msgspec.json.Decoder[ReadOfNode | None] = msgspec.json.Decoder(ReadOfNode | None)


@dataclass(frozen=True, slots=True)
class Seen:
    """A channel as the store described it. Fulfils `core.ports.Surveyed`."""

    channel_id: bytes
    consumer_address: str = field(repr=False)
    label: str
    tenant_name: str
    created_at: float
    expires_s: float | None
    capacity: int
    ttl_s: float
    dropped: int
    delivered: int
    sent: int
    accepted: int
    freed: int
    waiting_writers: int
    memory: int | None
    """What `size` says; None if the store did not."""
    leases: int
    """How many reads there were."""
    lease: "Sequence[Any]"
    """The inbox, the handle, whether it acknowledges and the name of the open read; or nothing."""
    oldest_us: int | None
    written_us: int | None
    waiting_us: int | None
    """The times of the oldest event with a place, of the last one, and of the first that waits."""
    with_size: bool

    @property
    def depth(self) -> int:
        return self.accepted - self.freed

    @property
    def in_flight(self) -> int:
        return self.sent - self.delivered

    @property
    def unsent(self) -> int:
        return self.accepted - self.sent

    @property
    def is_read(self) -> bool:
        return bool(self.lease)

    @property
    def size(self) -> int:
        return self.memory or 0

    @property
    def read_s(self) -> float | None:
        """How long ago the last read ended; None if there was none."""
        if self.expires_s is None:
            return 0.0
        return self.ttl_s - self.expires_s if self.leases else None


class Inspection:
    """Looks at the channels of a store, and answers the other nodes."""

    def __init__(
        self,
        functions: Functions,
        link: AnyLink,
        names: Names,
        membership: Membership,
        questions: Questions,
        leases: Mapping[str, RemoteLease],
    ) -> None:
        """`leases` are the open reads of this node, by their handles."""
        self._functions = functions
        self._link = link
        self._names = names
        self._membership = membership
        self._questions = questions
        self._leases = leases

    # -- Many channels

    async def survey(
        self, agents: Sequence[str], *, with_size: bool
    ) -> AsyncIterator[Sequence[Surveyed]]:
        """Yield the channels of some agents, in slices."""
        async for channel_ids in self._ids(agents, "*"):
            for start in range(0, len(channel_ids), LOOKED_AT_ONCE):
                some = channel_ids[start : start + LOOKED_AT_ONCE]
                yield await self._look(some, with_size=with_size)

    async def look_again(self, channels: Sequence[Surveyed]) -> Sequence[Surveyed]:
        """Return those of these channels that are still there, as they are now."""
        seen: list[Surveyed] = []
        for start in range(0, len(channels), LOOKED_AT_ONCE):
            some = channels[start : start + LOOKED_AT_ONCE]
            with_size = any(isinstance(one, Seen) and one.with_size for one in some)
            seen += await self._look([one.channel_id for one in some], with_size=with_size)
        return seen

    async def find(self, agents: Sequence[str], digits: str) -> Sequence[bytes]:
        """Return the ids of the channels whose id begins with these hexadecimal digits."""
        whole = len(digits) // 2
        known = int(whole * 2 / DIGITS_OF_A_CHARACTER)
        begin = tag_of(bytes.fromhex(digits[: whole * 2]))[:known]
        found: list[bytes] = []
        async for channel_ids in self._ids(agents, f"{begin}*"):
            found += [one for one in channel_ids if one.hex().startswith(digits)]
        different = list(dict.fromkeys(found))
        return [one.channel_id for one in await self._look(different, with_size=False)]

    async def _ids(self, agents: Sequence[str], tags: str) -> AsyncIterator[Sequence[bytes]]:
        """Yield the ids of the channels of some agents, whose tags fit a pattern; perhaps some of
        them twice."""
        for agent in agents:
            cursor = b"0"
            while True:
                cursor, scored = await self._link.call(
                    "ZSCAN",
                    self._names.of_agent(agent),
                    cursor,
                    "MATCH",
                    tags,
                    "COUNT",
                    SCANNED_AT_ONCE,
                )
                yield [id_of(tag.decode()) for tag in members_of(scored)]
                if cursor in (b"0", 0):
                    break

    async def _look(self, channel_ids: Sequence[bytes], *, with_size: bool) -> list[Seen]:
        answers = await asyncio.gather(
            *(self._functions.start("look", one, int(with_size)) for one in channel_ids)
        )
        return [
            seen_in(channel_id, answer, with_size=with_size)
            for channel_id, answer in zip(channel_ids, answers, strict=True)
            if answer is not None
        ]

    # -- One channel

    async def info(self, channel_id: bytes) -> ChannelInfo:
        """Return how a channel is now. Raises: ChannelNotFound; StoreUnavailable."""
        found = await self._look([channel_id], with_size=True)
        if not found:
            raise ChannelNotFound
        [seen] = found
        reader = await self._reader(seen) if seen.is_read else None
        return ChannelInfo(
            address=seen.consumer_address,
            channel_id=channel_id,
            tenant=seen.tenant_name,
            label=seen.label,
            age_s=asyncio.get_running_loop().time() - seen.created_at,
            expires_s=seen.expires_s,
            capacity=seen.capacity,
            ttl_s=seen.ttl_s,
            unsent=seen.unsent,
            in_flight=seen.in_flight,
            kept=seen.delivered - seen.dropped,
            bytes=seen.memory,
            waiting_writers=seen.waiting_writers,
            waiting_s=age_s(seen.waiting_us),
            written_s=age_s(seen.written_us),
            read_s=seen.read_s,
            reader=reader,
        )

    async def _reader(self, seen: Seen) -> ReaderInfo:
        inbox, handle, acknowledges, name = seen.lease
        inbox, handle = inbox.decode(), handle.decode()
        node = None
        if inbox == self._membership.inbox:
            of_node = self._read_of(handle)
        else:
            node = self._names.node_of(inbox)
            answer = await self._questions.ask("A", inbox, handle)
            of_node = None if answer is None else ANSWER.decode(answer)
        info = ReaderInfo(bool(acknowledges), name.decode(), None, None, None, node)
        if of_node is None:
            return info
        return replace(
            info, face=of_node.face or None, age_s=of_node.age_s, taken_s=of_node.taken_s
        )

    def _read_of(self, handle: str) -> ReadOfNode | None:
        """Return how a read of this node goes."""
        lease = self._leases.get(handle)
        if lease is None:
            return None
        now = asyncio.get_running_loop().time()
        taken_s = None if lease.taken_at is None else now - lease.taken_at
        return ReadOfNode(lease.face, now - lease.began_at, taken_s)

    # -- Messages

    def asked(self, handle: str, inbox: str, number: str) -> None:
        """Answer the question of another node."""
        self._questions.answer(inbox, number, msgspec.json.encode(self._read_of(handle)))


def members_of(scored: Sequence[Any]) -> Sequence[bytes]:
    """Return the members in an answer to ZSCAN, without their scores."""
    if scored and isinstance(scored[0], list | tuple):
        return [member for member, _ in scored]
    return scored[::2]


def seen_in(channel_id: bytes, answer: Sequence[Any], *, with_size: bool) -> Seen:
    """Return the channel that the function `look` has described."""
    address, label, tenant, age_ms, left_ms, capacity, ttl_ms, *rest = answer
    dropped, delivered, sent, end, freed, waiting, memory, leases, lease, *heads = rest
    oldest, last, first = heads
    return Seen(
        channel_id=channel_id,
        consumer_address=address.decode(),
        label=label.decode(),
        tenant_name=tenant.decode(),
        created_at=asyncio.get_running_loop().time() - age_ms / 1000,
        expires_s=None if left_ms < 0 else left_ms / 1000,
        capacity=capacity,
        ttl_s=ttl_ms / 1000,
        dropped=dropped,
        delivered=delivered,
        sent=sent,
        accepted=end,
        freed=freed,
        waiting_writers=waiting,
        memory=None if memory < 0 else memory,
        leases=leases,
        lease=lease,
        oldest_us=timestamp_in(oldest),
        written_us=timestamp_in(last),
        waiting_us=timestamp_in(first),
        with_size=with_size,
    )


def age_s(timestamp_us: int | None) -> float | None:
    """Return how long ago an event was accepted."""
    return None if timestamp_us is None else max(0.0, time.time() - timestamp_us / 1_000_000)
