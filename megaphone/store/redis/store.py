"""Channels in a Redis or Valkey that many nodes share. Fulfils `core.ports.Store`.

The rules of a channel are functions in Redis (`functions.lua`), each of which is one step. A node
keeps nothing of a channel but its open reads and its waiting writers. Redis tells a node about them
by messages to its inbox.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from heapq import merge
from itertools import islice
from typing import Any

from megaphone.core.ports import Append, AppendResult, OnRemoved, Stored, Surveyed, WouldBlock
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import (
    ChannelNotFound,
    LimitExceeded,
    MegaphoneError,
    ReaderBusy,
    StoreUnavailable,
    TakenOver,
)
from megaphone.model import (
    NO_OPTIONS,
    ChannelInfo,
    ChannelLimits,
    ChannelOptions,
    Event,
    ReadEnd,
    ReadOptions,
    agent_of,
)
from megaphone.store.redis.appending import Appending
from megaphone.store.redis.asking import keep_asking
from megaphone.store.redis.calls import Functions
from megaphone.store.redis.cluster_link import link_of
from megaphone.store.redis.connection import Argument, Place, Reply
from megaphone.store.redis.directory import RedisDirectory
from megaphone.store.redis.encoding import decoded, name_of
from megaphone.store.redis.errors import FAILURES
from megaphone.store.redis.expiry import Sweeper
from megaphone.store.redis.inspection import Inspection
from megaphone.store.redis.keys import KNOWN, Names, id_of, tag_of
from megaphone.store.redis.lease import NOT_OPEN, RemoteLease, Taken
from megaphone.store.redis.link import Greeted
from megaphone.store.redis.membership import SILENT_S, Membership
from megaphone.store.redis.questions import Questions
from megaphone.store.redis.requirements import Facts, examine, together
from megaphone.store.redis.subscription import Subscription
from megaphone.store.redis.url import StoreUrl
from megaphone.store.redis.writers import Writers

log = logging.getLogger(__name__)

CREDIT_BYTES = 65_536
"""How many bytes of events a reader may be sent unasked, so that it takes a round trip less."""
TAKE_BYTES = 262_144
"""The largest answer to a take, unless one event alone is larger."""
FROM_OWN = 2
"""What the function `lease` is given if a reader takes over only from itself."""
BUSY_TRIES = 6
BUSY_WAIT_S = 0.05
"""A client may have the end of its last read before Redis knows of it from another node. So a node
that finds a lease of another node asks again, so often and after such a time."""
COUNT_S = 1.0
"""How often a node counts the channels of all nodes."""
DOWN_S = 5.0
"""How long the store may be silent or away before this node reports that it does not serve."""
RELEASE_AGAIN_S = 0.1
RELEASED_WITHIN_S = 2.0
SETTLED_WITHIN_S = SILENT_S + 3.0
"""How long the client of a read waits for its end while the store is away. By then the other nodes
take this one for dead, if they do."""
RELEASED = 1
TAKEN = "taken"
"""The word that a message about the end of a lease has if another reader has it now."""
TOO_OFTEN, TOO_MANY = 1, 2
"""What the function `claim` returns if a tenant may not create a channel."""
RELEASE_AT_END_S = 2.0
RECOVERED = {1: True, 0: False, -1: None}


class RedisStore:
    """The channels of all nodes with the same Redis and prefix. Belongs to one event loop."""

    is_remote = True

    def __init__(
        self,
        url: StoreUrl,
        *,
        prefix: str,
        limits: ChannelLimits,
        max_channels: int,
        write_timeout_s: float,
        on_removed: OnRemoved,
        wait_replicas: int = 0,
    ) -> None:
        """`wait_replicas` is how many replicas must have an event, or a new channel, before it
        counts as stored.

        Raises: UnusableStore.
        """
        names = Names(prefix)
        self._names = names
        self._limits = limits
        self._max_channels = max_channels
        self._facts: dict[Place, Facts] = {}
        """What each master said of itself when it was last connected."""
        self.link = link_of(url, name="megaphone", greet=self._greet)
        self.functions = Functions(self.link, names, wait_replicas)
        self.directory = RedisDirectory(self.link, names)
        self.membership = Membership(self.functions, names, self._on_epoch)
        self.link.on_old_answers = self._on_old_answers
        self._subscription = Subscription(
            self.link,
            [self.membership.inbox],
            on_message=self._on_message,
            on_subscribed=self._ask_all,
            on_lost=lambda: None,
        )
        self._writers = Writers(
            self.functions,
            self.membership.node,
            lambda: self.membership.epoch,
            write_timeout_s,
            limits.max_waiting_writers,
        )
        self._appending = Appending(
            self.functions,
            self.membership,
            self._writers,
            on_handed=self._on_handed,
            on_lost=self._on_lost,
        )
        self._sweeper = Sweeper(self.link, self.functions, names, self.membership, on_removed)
        self._handles = itertools.count(1)
        self._leases: dict[str, RemoteLease] = {}
        """By their handles."""
        self._by_channel: dict[bytes, RemoteLease] = {}
        self._questions = Questions(self.link, self.membership)
        self._inspection = Inspection(
            self.functions, self.link, names, self.membership, self._questions, self._leases
        )
        self._known_agents: set[str] = set()
        """The agents that this node has listed in the store in this epoch."""
        self._known_tenants: set[str] = set()
        """The same for tenants."""
        self._counted = 0
        """How many channels all nodes have, as far as this node knows."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._releases: set[asyncio.Task[None]] = set()
        """Releases that Redis has not confirmed yet."""
        self._releasing: dict[str, asyncio.Task[None]] = {}
        """The same, by the handles of the leases."""
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Connect. Raises: StoreUnavailable; UnusableStore; ReplyError."""
        async with AsyncExitStack() as stack:
            await self.link.start()
            stack.push_async_callback(self.link.aclose)
            await self._subscription.start()
            stack.push_async_callback(self._subscription.aclose)
            await self.membership.start()
            stack.push_async_callback(self.membership.aclose)
            self._sweeper.start()
            stack.push_async_callback(self._sweeper.aclose)
            await self._count()
            self._start_task(self._keep_counting(), self._tasks)
            self._start_task(keep_asking(self._leases), self._tasks)
            stack.push_async_callback(self._end_tasks)
            self._stack = stack.pop_all()

    def keys_of(self, channel_id: bytes) -> Sequence[str]:
        """Return the keys of a channel, for those who look into the store."""
        return self._names.channel(channel_id)

    @property
    def counted(self) -> int:
        """How many channels all nodes have, as this node has counted them last."""
        return self._counted

    @property
    def facts(self) -> Facts | None:
        """What the masters said of themselves when they were last connected, together."""
        places = [one.place for one in self.link.masters()]
        known = [self._facts[place] for place in places if place in self._facts]
        return together(known) if known else None

    async def _greet(self, new: Greeted) -> None:
        self._facts[new.place] = await examine(new.calls, new.server, self._names.prefix)
        await self.membership.greet(new)

    # -- Channels

    async def create(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        epoch = self.membership.epoch
        await self.check_room()
        await self._claim(channel_id, tenant)
        names, agent = self._names, agent_of(consumer_address)
        ttl_s = self._limits.ttl_s if options.ttl_s is None else options.ttl_s
        now, ttl_ms = self.membership.store_time_ms(), max(1, round(ttl_s * 1000))
        call = self.link.call
        due, tag = names.due(names.shard_of(channel_id)), tag_of(channel_id)
        first: list[Awaitable[Reply]] = [call("ZADD", due, now + ttl_ms, tag)]
        if agent not in self._known_agents:
            first.append(call("SADD", names.agents_with_channels, agent))
        if self.link.has_slots:
            await asyncio.gather(*first)  # whatever else is stored, the sweeper must find it
        listed = [call("ZADD", names.of_agent(agent), now, tag)]
        if tenant.limits.channels is not None:
            listed.append(call("ZADD", names.of_tenant(tenant.name)[0], "XX", KNOWN, tag))
        created = self.functions.store(
            "create",
            channel_id,
            consumer_address,
            options.capacity or self._limits.capacity,
            ttl_ms,
            self.membership.epoch,
            options.label,
            tenant.name,
        )
        self._counted += 1
        try:
            await asyncio.gather(*first, *listed, created.reply)
            await created.confirmed()
        except MegaphoneError:
            self._counted -= 1
            raise
        if epoch == self.membership.epoch:
            self._known_agents.add(agent)

    async def _claim(self, channel_id: bytes, tenant: Tenant) -> None:
        """Count a channel that a tenant is about to create, on all nodes together.

        Raises: RateLimited or LimitExceeded, if the tenant has a limit that it has reached.
        """
        most, per_s = tenant.limits.channels, tenant.limits.creates_per_s
        if most is None and per_s is None:
            return
        if most is not None and tenant.name not in self._known_tenants:
            await self.link.call("SADD", self._names.tenants, tenant.name)
            self._known_tenants.add(tenant.name)
        result, *wait_us = await self.functions.of_tenant(
            "claim",
            tenant.name,
            tag_of(channel_id),
            -1 if most is None else most,
            "0" if per_s is None else repr(per_s),
        )
        if result == TOO_MANY and most is not None:
            raise tenant.too_many_channels(most)
        if result == TOO_OFTEN and per_s is not None:
            raise tenant.too_many_creates(per_s, wait_us[0] / 1e6)

    def create_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ChannelOptions = NO_OPTIONS,
        tenant: Tenant = DEFAULT,
    ) -> None:
        raise WouldBlock

    async def check_room(self) -> None:
        if self._counted >= self._max_channels:
            raise LimitExceeded(
                f"the store has {self._counted} channels; no more are allowed (max_channels)"
            )

    async def exists(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        different = list(dict.fromkeys(channel_ids))
        addresses = await self._each("exists", different, name_of(tenant))
        found = zip(different, addresses, strict=True)
        return {channel_id: one.decode() for channel_id, one in found if one is not None}

    def exists_nowait(
        self,
        channel_ids: Sequence[bytes],
        tenant: Tenant | None = None,
    ) -> dict[bytes, str]:
        raise WouldBlock

    async def remove(
        self,
        channel_id: bytes,
        tenant: Tenant | None = None,
    ) -> None:
        result = await self.functions.start("remove", channel_id, name_of(tenant))
        if result is None:
            raise ChannelNotFound
        self._counted -= 1
        await self._sweeper.removed(channel_id, result)

    async def list(self, agent: str | None, skip: int, limit: int) -> Sequence[str]:
        names = self._names
        agents = await self._agents(agent)
        found = await asyncio.gather(
            *(
                self.link.call("ZRANGE", names.of_agent(one), 0, skip + limit - 1, "WITHSCORES")
                for one in agents
                if skip + limit
            )
        )
        by_age = merge(*(_by_score(one) for one in found))
        page = islice(by_age, skip, skip + limit)
        addresses = await self._each("address", [id_of(tag.decode()) for _, tag in page])
        return [address.decode() for address in addresses if address is not None]

    async def survey(
        self, agent: str | None = None, *, with_size: bool = False
    ) -> AsyncIterator[Sequence[Surveyed]]:
        agents = await self._agents(agent)
        async for some in self._inspection.survey(agents, with_size=with_size):
            yield some

    async def look_again(self, channels: Sequence[Surveyed]) -> Sequence[Surveyed]:
        return await self._inspection.look_again(channels)

    async def info(self, channel_id: bytes) -> ChannelInfo:
        return await self._inspection.info(channel_id)

    async def find(self, digits: str) -> Sequence[bytes]:
        return await self._inspection.find(await self._agents(None), digits)

    async def _agents(self, agent: str | None) -> Sequence[str]:
        """Return the named agent, or all that have or had channels."""
        if agent is not None:
            return [agent]
        members = await self._members(self._names.agents_with_channels)
        return [one.decode() for one in members]

    async def count(self, agent: str) -> int:
        return int(await self.link.call("ZCARD", self._names.of_agent(agent)))

    async def _members(self, key: str) -> Iterable[bytes]:
        members: Iterable[bytes] = await self.link.call("SMEMBERS", key)
        return members

    async def _count(self) -> None:
        agents = await self._members(self._names.agents_with_channels)
        counts = await asyncio.gather(*(self.count(agent.decode()) for agent in agents))
        self._counted = sum(counts)

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(COUNT_S)
            with suppress(*FAILURES):
                await self._count()

    # -- Writing

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        return await self._appending.append(writes, wait=wait)

    def begin_append(
        self, write: Append, on_result: Callable[[AppendResult | Exception], None]
    ) -> None:
        self._appending.begin(write, on_result)

    def append_nowait(self, write: Append) -> Stored:
        raise WouldBlock

    def append_run_nowait(
        self,
        channel_id: bytes,
        events: Sequence[Event],
        tenant: Tenant | None = None,
    ) -> int:
        raise WouldBlock

    async def append_to_all(
        self,
        channel_ids: Sequence[bytes],
        events: Sequence[Event],
        tenant: Tenant | None = None,
    ) -> Sequence[int | MegaphoneError]:
        return await self._appending.append_to_all(channel_ids, events, tenant)

    def _on_handed(
        self, handle: str, first_offset: int, events: Sequence[Event], must_ask: bool
    ) -> None:
        """Give events of a writer of this node to a reader of this node."""
        lease = self._leases.get(handle)
        if lease is None:
            return
        if events:
            lease.sent(first_offset, events)
        if must_ask:
            lease.ask()

    def _on_lost(self, channel_id: bytes) -> None:
        """Let a reader of this node ask: an answer to a writer may have had events for it."""
        if (lease := self._by_channel.get(channel_id)) is not None:
            lease.ask()

    # -- Reading

    async def open(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> RemoteLease:
        await self._make_room(channel_id, consumer_address, options, tenant)
        lease = RemoteLease(
            self,
            channel_id,
            str(next(self._handles)),
            options,
            self._limits.redelivery_window_s,
            now=asyncio.get_running_loop().time(),
        )
        # A writer may send events before the answer is here.
        self._leases[lease.handle] = lease
        try:
            answer = await self._opened(lease, consumer_address, options, tenant)
        except (StoreUnavailable, asyncio.CancelledError):
            self._leases.pop(lease.handle, None)  # `aclose` may have removed it
            self._start_task(self._give_back(lease), self._releases)
            raise
        except BaseException:
            self._leases.pop(lease.handle, None)  # `aclose` may have removed it
            raise
        _, number, recovered, cursor, position, _, sent_before, taken = answer
        epoch = self.membership.epoch
        lease.opened(number, epoch, RECOVERED[recovered], cursor.decode(), position, sent_before)
        lease.taken(_taken(taken))
        self._by_channel[channel_id] = lease
        return lease

    async def _make_room(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None,
    ) -> None:
        """End a read of this node from which another reader takes over, if the channel is one that
        the other reader may read. Only this node knows how much the read has sent.

        Raises: ChannelNotFound; StoreUnavailable.
        """
        if not self._has_read_to_end(channel_id, options):
            return
        address = await self.functions.start("exists", channel_id, name_of(tenant))
        if address is None or address.decode() != consumer_address:
            raise ChannelNotFound
        if self._has_read_to_end(channel_id, options):
            self._end_as_broken(self._by_channel[channel_id])

    def _has_read_to_end(self, channel_id: bytes, options: ReadOptions) -> bool:
        old = self._by_channel.get(channel_id)
        return old is not None and options.ends_read_of(old.reader)

    async def _opened(
        self,
        lease: RemoteLease,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None,
    ) -> Any:
        """Take a lease in Redis. Returns: the answer of the function."""
        dead = asked = ""
        for left in reversed(range(BUSY_TRIES)):
            answer = await self._lease(lease, consumer_address, options, dead, asked, tenant)
            if answer is None:
                raise ChannelNotFound
            if answer[0] != b"B":
                return answer
            inbox, handle, may_end = answer[1].decode(), answer[2].decode(), answer[3]
            if may_end:
                # Only that node knows how much the read has sent. If it does not answer, it counts
                # as asked all the same.
                await self._questions.ask("T", inbox, handle)
                asked = inbox
                continue
            is_mine = inbox == self.membership.inbox
            if is_mine and (released := self._releasing.get(handle)) is not None:
                await asyncio.wait([released], timeout=RELEASED_WITHIN_S)
                continue
            if not left or (is_mine and handle in self._leases):
                break
            if is_mine or await self.membership.is_dead(inbox):
                dead = inbox  # nobody has this lease any more
            else:
                await asyncio.sleep(BUSY_WAIT_S)
        raise TakenOver if options.returning else ReaderBusy

    def _lease(
        self,
        lease: RemoteLease,
        consumer_address: str,
        options: ReadOptions,
        dead: str,
        asked: str,
        tenant: Tenant | None,
    ) -> Awaitable[Reply]:
        return self.functions.start(
            "lease",
            lease.channel_id,
            self.membership.epoch,
            self.membership.inbox,
            lease.handle,
            consumer_address,
            int(options.cursor is not None),
            options.cursor or "",
            int(options.acknowledge),
            options.in_flight,
            FROM_OWN if options.returning else int(options.take_over),
            dead,
            self._limits.capacity if options.limit is None else options.limit,
            TAKE_BYTES,
            CREDIT_BYTES,
            name_of(tenant),
            options.reader,
            asked,
        )

    async def _give_back(self, lease: RemoteLease) -> None:
        """Release a lease that this node may have got, although it has no answer that says so."""
        while True:
            try:
                await self.functions.start(
                    "give_back", lease.channel_id, self.membership.inbox, lease.handle
                )
            except FAILURES:
                await asyncio.sleep(RELEASE_AGAIN_S)
            else:
                return

    def _end_as_broken(self, lease: RemoteLease) -> None:
        """End a lease of this node, because another reader takes over."""
        notify = lease.on_ready
        lease.ended_by = ReadEnd.TAKEN_OVER
        lease.release(clean=False, now=asyncio.get_running_loop().time())
        if notify is not None:
            notify()

    def _end_for_other(self, handle: str, inbox: str, number: str) -> None:
        """End a lease of this node, because a reader of another node takes over. The other node is
        told when the store knows of the end."""
        lease = self._leases.get(handle)
        if lease is not None and lease.is_open and lease.number != NOT_OPEN:
            self._end_as_broken(lease)

        def tell(_: object = None) -> None:
            self._questions.answer(inbox, number, b"")

        if (released := self._releasing.get(handle)) is None:
            tell()
        else:
            released.add_done_callback(tell)

    def open_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        options: ReadOptions,
        tenant: Tenant | None = None,
    ) -> RemoteLease:
        raise WouldBlock

    async def acknowledge(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        count = await self.functions.start(
            "acknowledge", channel_id, consumer_address, event_id, name_of(tenant)
        )
        if count is None:
            raise ChannelNotFound
        return int(count)

    def acknowledge_nowait(
        self,
        channel_id: bytes,
        consumer_address: str,
        event_id: str,
        tenant: Tenant | None = None,
    ) -> int:
        raise WouldBlock

    # -- What leases call

    def take(self, lease: RemoteLease, resend_after: int) -> None:
        self._start_task(self._take(lease, resend_after), self._tasks)

    async def _take(self, lease: RemoteLease, resend_after: int) -> None:
        try:
            answer = await self.functions.start(
                "take",
                lease.channel_id,
                lease.number,
                lease.have,
                resend_after,
                self._limits.capacity,
                TAKE_BYTES,
                CREDIT_BYTES,
            )
        except FAILURES:
            lease.not_taken()
            return
        if answer is None:
            lease.end(ReadEnd.CHANNEL_GONE)
        elif answer == -1:
            lease.end(ReadEnd.TAKEN_OVER)
        else:
            lease.taken(_taken(answer))

    def pass_over(self, lease: RemoteLease, after: int, last: int) -> None:
        # It leaves now, and not with its task: the end of the read may follow in the same turn.
        started = self.functions.start("pass_over", lease.channel_id, lease.number, after, last)
        self._start_task(self._passed_over(started), self._tasks)

    @staticmethod
    async def _passed_over(started: Awaitable[Reply]) -> None:
        with suppress(*FAILURES):  # the next one, or the next acknowledgement, makes up for it
            await started

    def release(
        self, lease: RemoteLease, *, clean: bool, resend_after: int
    ) -> asyncio.Future[bool]:
        self._leases.pop(lease.handle, None)
        if self._by_channel.get(lease.channel_id) is lease:
            del self._by_channel[lease.channel_id]
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(SETTLED_WITHIN_S, resolve, settled, False)
        settled.add_done_callback(lambda _: timer.cancel())
        started = self._release(lease, clean, resend_after)
        work = self._released(started, lease, clean, resend_after, settled)
        self._releasing[lease.handle] = self._start_task(work, self._releases)
        return settled

    def _release(self, lease: RemoteLease, clean: bool, resend_after: int) -> Awaitable[Reply]:
        return self.functions.start(
            "release", lease.channel_id, lease.number, int(clean), resend_after, lease.given
        )

    async def _released(
        self,
        started: Awaitable[Reply],
        lease: RemoteLease,
        clean: bool,
        resend_after: int,
        settled: asyncio.Future[bool],
    ) -> None:
        while True:
            try:
                answer = await started
            except FAILURES:
                await asyncio.sleep(RELEASE_AGAIN_S)
                started = self._release(lease, clean, resend_after)
            else:
                del self._releasing[lease.handle]
                # Nobody can read a channel that is gone, and so get its events again.
                resolve(settled, answer is None or answer == RELEASED)
                return

    # -- Messages

    def _on_message(self, payload: bytes) -> None:
        head, _, body = payload.partition(b"\n")
        kind, subject, *words = head.decode().split(" ")
        if kind == "W":
            self._writers.told(subject, int(words[0]))
        elif kind == "A":
            self._inspection.asked(subject, *words)
        elif kind == "I":
            self._questions.answered(subject, body)
        elif kind == "T":
            self._end_for_other(subject, *words)
        elif (lease := self._leases.get(subject)) is None:
            return
        elif kind == "E" and len(words) == 2:  # one event, as most messages have
            lease.sent(int(words[0]), [decoded(body)])
        elif kind == "E":
            lease.sent(int(words[0]), _cut(body, map(int, words[1:])))
        elif kind == "R":
            lease.ask()
        elif kind == "X":
            lease.end(ReadEnd.TAKEN_OVER if words == [TAKEN] else ReadEnd.CHANNEL_GONE)

    def _ask_all(self) -> None:
        """Let each reader ask, because messages may have been lost."""
        for lease in list(self._leases.values()):
            lease.ask()

    def _on_epoch(self) -> None:
        """End the reads, so that their clients learn that events may be missing. Forget which
        agents and tenants this node has listed in the store, because it may have lost the lists,
        and add the agents to the directory again."""
        self._start_task(self.directory.restore(), self._tasks)
        self._known_agents.clear()
        self._known_tenants.clear()
        for lease in list(self._leases.values()):
            lease.lose()

    def _on_old_answers(self) -> None:
        """Let all nodes know that events may be missing. The new master began an epoch with its
        first connection, but a server that it had replaced may have taken events after that."""
        log.warning("a former master of the store may have taken events that are lost")
        self._start_task(self.membership.begin_epoch(), self._releases)

    # -- Life cycle

    def check_serves(self) -> None:
        away_s = self.link.master_of(self._names.meta).away_s
        if away_s > DOWN_S:
            raise StoreUnavailable(f"the store of channels is not there for {away_s:.0f} s")

    async def quiesce(self) -> None:
        self._writers.quiesce()
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        self._writers.quiesce()
        for lease in list(self._leases.values()):
            lease.interrupt()
            lease.release(clean=True, now=asyncio.get_running_loop().time())
        await self._writers.settled(RELEASE_AT_END_S)
        if self._releases:
            await asyncio.wait(self._releases, timeout=RELEASE_AT_END_S)
        await self._stack.aclose()

    @staticmethod
    def _start_task(
        work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        return task

    async def _end_tasks(self) -> None:
        tasks = self._tasks | self._releases
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _each(
        self, name: str, channel_ids: Sequence[bytes], *arguments: Argument
    ) -> Sequence[Reply]:
        """Call a function of many channels at once."""
        return await asyncio.gather(
            *(self.functions.start(name, channel_id, *arguments) for channel_id in channel_ids)
        )


def resolve(future: asyncio.Future[bool], result: bool) -> None:
    """Resolve a future, if nobody has."""
    if not future.done():
        future.set_result(result)


def _taken(answer: Any) -> Taken:
    first, backlog, events = answer
    return Taken(first, backlog, [decoded(event) for event in events])


def _by_score(members: Iterable[tuple[bytes, float]]) -> list[tuple[float, bytes]]:
    return [(float(score), member) for member, score in members]


def _cut(body: bytes, sizes: Iterable[int]) -> list[Event]:
    """Return the events in a message."""
    events = []
    start = 0
    for size in sizes:
        events.append(decoded(body[start : start + size]))
        start += size
    return events
