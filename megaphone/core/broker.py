"""The use cases of clients, one method each.

Both faces call these methods, so a channel behaves the same in HTTP and gRPC. Arguments are
unchecked values from clients; these methods, or the code that they call, apply all rules.
"""

import asyncio
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from sys import intern
from typing import TypeAlias

from megaphone.core.access import ANYONE, Action, Caller
from megaphone.core.addresses import (
    CANNOT_DISPOSE,
    ConsumerAddress,
    is_consumer_shaped,
    is_producer_shaped,
)
from megaphone.core.agents import Agents
from megaphone.core.alarms import Alarms
from megaphone.core.audit import Sample
from megaphone.core.content import checked_id, checked_stream_id
from megaphone.core.creation import AllowedOptions
from megaphone.core.lookout import Lookout
from megaphone.core.many import ManyReader
from megaphone.core.pace import ADDRESS_WORK, SLICE, loop_time
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import Lease, Observer, Store, Tracing, WouldBlock
from megaphone.core.reader import Reader
from megaphone.core.reading import Reading
from megaphone.core.tasks import Start, with_tasks, within
from megaphone.core.tenants import Tenant, Tenants
from megaphone.core.traces import UNTRACED
from megaphone.core.writing import Writing, checked, checked_streams
from megaphone.errors import (
    AgentMoved,
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    PayloadTooLarge,
    PermissionDenied,
    ShuttingDown,
)
from megaphone.model import (
    NO_OPTIONS,
    READER_PATTERN,
    ChannelOptions,
    NewChannel,
    ReadEnd,
    ReadOptions,
    ReadProtocol,
    agent_of,
    short_id,
)
from megaphone.settings import Settings

DEFAULT_PROTOCOL = ReadProtocol.HTTP_STREAM_NDJSON_V1
MAX_PROTOCOLS = 100
"""How many protocols a request may name."""
ADDRESSES_AT_ONCE = SLICE // ADDRESS_WORK
"""How many addresses `exists` looks up before other tasks get a turn."""
MAX_WINDOW = 100_000
MAX_CHANNELS_OF_A_READ = 100
ManyChannel: TypeAlias = tuple[str, str | None]
"""A channel of a read of many channels: its consumer address, and its cursor, if there is one."""
MAX_STREAMS = 100
"""How many streams a read may ask for."""
SHORTEST_HEARTBEAT_S = 0.1
EARLY_S = 5.0
DRAIN_GRACE_S = 1.0
"""How long a read whose agent moves may take to send its last batch before it is aborted."""


class Broker(Writing):
    """The channels of one node, as clients use them.

    Each method asks the caller first whether it may do this, before it looks at anything else.

    After `begin_shutdown`, each method that would write or read raises AgentMoved, if the agent has
    moved, and else ShuttingDown. Each that would create raises the latter after `begin_leaving`.
    """

    def __init__(
        self,
        *,
        store: Store,
        agents: Agents,
        settings: Settings,
        observer: Observer,
        tenants: Tenants | None = None,
        peers: PeerLimits | None = None,
        tracing: Tracing = UNTRACED,
    ) -> None:
        """Without `tenants` and `peers`, no tenant and no address has limits of its own. Without
        `tracing`, events only keep the trace contexts of their writers."""
        super().__init__(store=store, agents=agents, settings=settings, observer=observer)
        self._tenants = tenants or Tenants()
        self.peers = peers or PeerLimits(settings)
        self._poll_duration_s = settings.poll_duration_millis / 1000
        self._max_read_s = max(self._poll_duration_s, settings.max_read_secs)
        self._allowed = AllowedOptions(
            max_ttl_s=max(settings.max_channel_ttl_secs, settings.channel_ttl_secs),
            max_capacity=max(settings.max_buffer_capacity, settings.buffer_capacity),
        )
        self.has_remote_store = store.is_remote
        """Whether the calls that do not wait always raise WouldBlock."""
        self.tracing = tracing
        """Makes the spans of writers, and of reads."""
        self._tracing_of_reads = tracing if tracing.makes_spans else None
        self._alarms = Alarms()
        self._is_leaving = False
        self._readers: set[Reader] = set()
        self.lookout = Lookout(self.blocked.waiting_since, lambda: self._readers)
        self._audited_creates = Sample("a channel was created")
        self._audited_disposals = Sample("a client disposed of a channel")
        self._on_close = self._on_read_end
        """One object for all readers, to save memory."""
        self._nobody = ANYONE
        """The caller who has no proof, in place of whom ANYONE may have begun a read."""
        self._read_ended = asyncio.Event()
        """Set whenever a read ends."""

    # -- Channels

    async def create(
        self,
        caller: Caller,
        protocols: Sequence[str] = (),
        options: ChannelOptions = NO_OPTIONS,
        ip: str | None = None,
    ) -> NewChannel:
        """Create a channel under one of the agents that take new channels. `ip` is the address of
        the client; empty for a process of this machine.

        Raises: the errors of `Caller.check`; BadRequest, when `protocols` is not empty and none of
            them is supported, or when `options` asks for more than the settings allow;
            PayloadTooLarge, when there are more than `MAX_PROTOCOLS`; NoAgentAvailable;
            RateLimited; LimitExceeded; ShuttingDown. WouldBlock, if `ip` is None and must be known.
        """
        channel_id, channel = self._new_channel(caller, protocols)
        tenant, options = self._take_create(caller, options, ip)
        try:
            await self._store.create(channel_id, channel.consumer_address, options, tenant)
        except BaseException:
            self._give_back_create(caller, tenant, ip)
            raise
        self._observer.channel_created()
        if caller.has_proof:
            self._audited_creates.add(caller, channel.agent, channel_id, self._clock())
        return channel

    def create_nowait(
        self,
        caller: Caller,
        protocols: Sequence[str] = (),
        options: ChannelOptions = NO_OPTIONS,
    ) -> NewChannel:
        """Do the same as `create`, without waiting.

        Raises: WouldBlock, when the store would have to wait; nothing has changed then. Also the
            errors of `create`.
        """
        channel_id, channel = self._new_channel(caller, protocols)
        tenant, options = self._take_create(caller, options, None)
        try:
            self._store.create_nowait(channel_id, channel.consumer_address, options, tenant)
        except BaseException:
            self._give_back_create(caller, tenant, None)
            raise
        self._observer.channel_created()
        if caller.has_proof:
            self._audited_creates.add(caller, channel.agent, channel_id, self._clock())
        return channel

    def _take_create(
        self, caller: Caller, options: ChannelOptions, ip: str | None
    ) -> tuple[Tenant, ChannelOptions]:
        """Count a creation. Returns: the tenant of the new channel, and its options.

        Raises: BadRequest; RateLimited; LimitExceeded; WouldBlock, if `ip` is None and must be
            known.
        """
        is_limited = self.peers.limit_creates and not caller.has_proof
        if is_limited and ip is None:
            raise WouldBlock
        tenant, now = self._tenants.own(caller.tenant), loop_time()
        chosen = tenant.options_of(options, self._allowed)
        if is_limited:
            self.peers.take_create(ip or "", now)
        try:
            if not self.has_remote_store:  # which counts for all nodes together
                tenant.take_create(now)
        except MegaphoneError:
            if is_limited:
                self.peers.give_back_create(ip or "")
            raise
        return tenant, chosen

    def _give_back_create(self, caller: Caller, tenant: Tenant, ip: str | None) -> None:
        """Count a creation less, because it has failed."""
        if not self.has_remote_store:
            tenant.give_back_create()
        if ip is not None and not caller.has_proof:
            self.peers.give_back_create(ip)

    def _new_channel(self, caller: Caller, protocols: Sequence[str]) -> tuple[bytes, NewChannel]:
        """Return the id and the addresses for a new channel, which is not in the store yet."""
        checked(caller, Action.CREATE)
        self._refuse_if_leaving()
        chosen = negotiate(protocols)
        agent = self._agents.pick_for_new_channel(loop_time())
        name = agent.name
        consumer = ConsumerAddress.mint(name)
        channel_id = consumer.channel_id
        producer_address = f"{name}.{self._agents.keys.of(name).seal(channel_id)}"
        return channel_id, NewChannel(name, producer_address, str(consumer), chosen)

    async def dispose(self, caller: Caller, address: str) -> None:
        """Remove a channel with all its events now, by its producer address.

        Raises: the errors of `Caller.check`; BadRequest; PermissionDenied, for a consumer address;
            ChannelNotFound; AgentMoved.
        """
        tenant = checked(caller, Action.DISPOSE)
        if is_consumer_shaped(address):
            raise PermissionDenied(CANNOT_DISPOSE)
        await self._settled((address,))
        channel_id = self._open_producer_address(address)
        await self._store.remove(channel_id, tenant)
        self._audited_disposals.add(caller, agent_of(address), channel_id, self._clock())

    async def exists(self, caller: Caller, addresses: Sequence[str]) -> dict[str, bool]:
        """Return for each producer or consumer address whether its channel exists.

        Raises: the errors of `Caller.check`; PayloadTooLarge, when there are more than
            `max_addresses` addresses; AgentMoved, when the agent of one of them has moved to
            another node, which alone knows.
        """
        tenant = checked(caller, Action.EXISTS)
        self._check_number(addresses)
        alive: dict[str, bool] = {}
        for start in range(0, len(addresses), ADDRESSES_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = [one for one in addresses[start : start + ADDRESSES_AT_ONCE] if one not in alive]
            alive |= await self._are_alive(some, tenant)
        return alive

    def exists_nowait(self, caller: Caller, addresses: Sequence[str]) -> dict[str, bool]:
        """Do the same as `exists`, without waiting.

        Raises: WouldBlock, when the call would have to wait, or would hold the event loop for long.
            Also the errors of `exists`.
        """
        tenant = checked(caller, Action.EXISTS)
        self._check_number(addresses)
        if self._agents.any_unsettled or len(addresses) > ADDRESSES_AT_ONCE:
            raise WouldBlock
        channel_ids = self._channels_of(addresses)
        living = self._store.exists_nowait(list(channel_ids.values()), tenant)
        return {one: is_alive(one, channel_ids.get(one), living) for one in addresses}

    async def _are_alive(self, addresses: Sequence[str], tenant: Tenant | None) -> dict[str, bool]:
        await self._settled(addresses)
        channel_ids = self._channels_of(addresses)
        living = await self._store.exists(list(channel_ids.values()), tenant)
        return {one: is_alive(one, channel_ids.get(one), living) for one in addresses}

    def _channels_of(self, addresses: Sequence[str]) -> dict[str, bytes]:
        """Return the channel ids of those addresses that are addresses of agents served here.

        Raises: AgentMoved.
        """
        channel_ids: dict[str, bytes] = {}
        for address in addresses:
            try:
                channel_ids[address] = self._channel_of(address)
            except AgentMoved:
                raise
            except MegaphoneError:
                pass
        return channel_ids

    def short_id_of(self, address: str) -> str | None:
        """Return the short id of the channel of a producer or consumer address; None if the address
        is none of this node."""
        try:
            return short_id(self._channel_of(address))
        except MegaphoneError:
            return None

    def _channel_of(self, address: str) -> bytes:
        if is_consumer_shaped(address):
            return self._consumer(address).channel_id
        return self._open_producer_address(address)

    def channel_id_of(self, address: str) -> bytes | None:
        """Return the channel id in an address, for log lines; None if it is not an address of an
        agent that is served here."""
        try:
            return self._channel_of(address)
        except MegaphoneError:
            return None

    # -- Reading

    def read(
        self,
        caller: Caller,
        address: str,
        options: ReadOptions | None = None,
        *,
        within_s: float = math.inf,
    ) -> Reading[Reader]:
        """Return a read for a face that waits. It takes the lease when its context is entered."""
        chosen = options or ReadOptions()
        return Reading(lambda: self.open_read(caller, address, chosen, within_s=within_s))

    async def open_read(
        self, caller: Caller, address: str, options: ReadOptions, *, within_s: float = math.inf
    ) -> Reader:
        """Take the lease of a channel. The caller must close the reader.

        The read time is `options.wait_s`, at most `max_read_secs`, or without it the poll duration;
        and it is at most `within_s`.

        Raises: the errors of `Caller.check_streams`; BadRequest; ChannelNotFound; ReaderBusy;
            LimitExceeded, when the tenant of the caller reads as many channels as it may;
            AgentMoved; ShuttingDown.
        """
        tenant = checked_streams(caller, Action.READ, options.streams)
        return await self._open(caller, tenant, address, options, within_s)

    async def _open(
        self,
        caller: Caller,
        tenant: Tenant | None,
        address: str,
        options: ReadOptions,
        within_s: float,
    ) -> Reader:
        self._refuse_if_shutting_down([address])
        await self._settled((address,))
        consumer = self._consumer(address)
        checked_options(options)
        owner = self._tenants.own(caller.tenant)
        owner.begin_read()
        try:
            lease = await self._store.open(consumer.channel_id, address, options, tenant)
        except BaseException:
            owner.end_read()
            raise
        return self._reader(caller, tenant, lease, address, options, within_s)

    def read_many(
        self,
        caller: Caller,
        channels: Sequence[ManyChannel],
        options: ReadOptions,
        *,
        within_s: float = math.inf,
    ) -> Reading[ManyReader]:
        """Do the same as `read` for many channels: see `open_many`."""
        return Reading(lambda: self.open_many(caller, channels, options, within_s=within_s))

    async def open_many(
        self,
        caller: Caller,
        channels: Sequence[ManyChannel],
        options: ReadOptions,
        *,
        within_s: float = math.inf,
    ) -> ManyReader:
        """Take the leases of many channels, at most `MAX_CHANNELS_OF_A_READ`. The caller must close
        the reader.

        Each channel has a cursor of its own, so `options` has none. A channel that cannot be read
        is reported by the reader, and disturbs no other.

        Raises: the errors of `Caller.check_streams`; BadRequest, also if two channels are the same;
            PayloadTooLarge; ShuttingDown, or still AgentMoved if one agent has all the channels.
        """
        tenant = checked_streams(caller, Action.READ, options.streams)
        check_channels(channels)
        self._refuse_if_shutting_down([address for address, _ in channels])
        checked_options(options)
        opened: list[Reader | MegaphoneError] = [ChannelNotFound()] * len(channels)
        of_each = replace(options, limit=None, heartbeat_s=None)

        try:
            await with_tasks(
                partial(self._open_each, caller, tenant, channels, of_each, within_s, opened)
            )
        except BaseException:
            for one in opened:
                if isinstance(one, Reader):
                    one.close(clean=False)
            raise
        return ManyReader(opened, options, self._observer, self._alarms)

    async def _open_each(
        self,
        caller: Caller,
        tenant: Tenant | None,
        channels: Sequence[ManyChannel],
        options: ReadOptions,
        within_s: float,
        opened: list[Reader | MegaphoneError],
        start: Start,
    ) -> None:
        """Open the reads of many channels at the same time. The readers, or the errors of channels
        that cannot be read, go into `opened`."""

        async def open_one(index: int, address: str, cursor: str | None) -> None:
            try:
                of_one = replace(options, cursor=cursor)
                opened[index] = await self._open(caller, tenant, address, of_one, within_s)
            except MegaphoneError as error:
                opened[index] = error.with_traceback(None)

        for index, (address, cursor) in enumerate(channels):
            start(open_one(index, address, cursor))

    def open_read_nowait(self, caller: Caller, address: str, options: ReadOptions) -> Reader:
        """Do the same as `open_read`, without waiting.

        Raises: WouldBlock, when the call would have to wait; nothing has changed then. Also the
            errors of `open_read`.
        """
        tenant = checked_streams(caller, Action.READ, options.streams)
        self._refuse_if_shutting_down([address])
        if self._agents.any_unsettled:
            raise WouldBlock
        consumer = self._consumer(address)
        checked_options(options)
        owner = self._tenants.own(caller.tenant)
        owner.begin_read()
        try:
            lease = self._store.open_nowait(consumer.channel_id, address, options, tenant)
        except BaseException:
            owner.end_read()
            raise
        return self._reader(caller, tenant, lease, address, options)

    def _reader(
        self,
        caller: Caller,
        tenant: Tenant | None,
        lease: Lease,
        address: str,
        options: ReadOptions,
        within_s: float = math.inf,
    ) -> Reader:
        wait_s = self._poll_duration_s if options.wait_s is None else options.wait_s
        reader = Reader(
            lease,
            options,
            caller=caller,
            tenant=tenant,
            agent=intern(agent_of(address)),  # one object for all reads of an agent
            time_s=min(wait_s, self._max_read_s, within_s),
            expires_s=seconds_to_expiry(caller, loop_time()),
            observer=self._observer,
            alarms=self._alarms,
            on_close=self._on_close,
            tracing=self._tracing_of_reads,
            short_id="" if self._tracing_of_reads is None else self.short_id_of(address) or "",
        )
        self._readers.add(reader)
        # A reload while the call waited did not find it among the open reads.
        try:
            self._check_reader(reader)
        except MegaphoneError as error:
            reader.refuse(error)
            reader.close(clean=False)
            raise
        return reader

    async def acknowledge(self, caller: Caller, address: str, event_id: str) -> int:
        """Deliver an event of a channel and all events before it.

        The call may be repeated, and needs no open read.

        Returns: how many events were not delivered before; 0 if the log does not have the event.
        Raises: the errors of `Caller.check`; BadRequest; ChannelNotFound; AgentMoved.
        """
        tenant = checked(caller, Action.ACK)
        await self._settled((address,))
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return await self._store.acknowledge(consumer.channel_id, address, event_id, tenant)

    def acknowledge_nowait(self, caller: Caller, address: str, event_id: str) -> int:
        """Do the same as `acknowledge`, without waiting.

        Raises: WouldBlock, when the call would have to wait; nothing has changed then. Also the
            errors of `acknowledge`.
        """
        tenant = checked(caller, Action.ACK)
        if self._agents.any_unsettled:
            raise WouldBlock
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return self._store.acknowledge_nowait(consumer.channel_id, address, event_id, tenant)

    # -- Finding the right node

    async def owns(self, agent: str) -> bool:
        """Return whether this node serves calls for an agent.

        Waits for the end of a cut-over of the agent, because the answer may change until then.
        """
        await self._agents.settled(agent)
        known = self._agents.get(agent)
        return known is not None and known.is_owned

    def check_serves(self) -> None:
        """Raises: ShuttingDown, also while the node moves its agents away before that;
        StoreUnavailable, when the store has not been there for several seconds."""
        self._refuse_if_leaving()
        self._store.check_serves()

    def _refuse_if_leaving(self) -> None:
        self._refuse_if_shutting_down()
        if self._is_leaving:
            raise ShuttingDown

    async def check_takes_channels(self) -> None:
        """Raises: NoAgentAvailable, LimitExceeded, ShuttingDown or StoreUnavailable, when `create`
        would raise it."""
        self.check_serves()
        self._agents.pick_for_new_channel(loop_time())
        await self._store.check_room()

    # -- The end

    async def end_reads(self, agent: str) -> None:
        """End all open reads of an agent that moves to another node.

        A read ends cleanly if its client takes the last batch within `DRAIN_GRACE_S`; otherwise it
        is aborted. The caller must make new reads wait (`Agents.moving`).
        """
        readers = {reader for reader in self._readers if reader.agent == agent}
        for reader in readers:
            reader.end(ReadEnd.MOVED)
        await within(DRAIN_GRACE_S, self._until_ended(readers))
        for reader in readers & self._readers:
            reader.abort()

    async def _until_ended(self, readers: set[Reader]) -> None:
        while readers & self._readers:
            self._read_ended.clear()
            await self._read_ended.wait()

    def _on_read_end(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._tenants.own(reader.caller.tenant).end_read()
        self._read_ended.set()
        if reader.ended_by is ReadEnd.STALLED:
            self.lookout.cut_off(reader)

    @property
    def is_shutting_down(self) -> bool:
        return self._shutting_down

    def end_all_reads(self) -> None:
        """End all open reads cleanly. Clients may read again at once."""
        for reader in self._readers:
            reader.end(ReadEnd.SHUTDOWN)

    def end_refused_reads(self, nobody: Caller) -> None:
        """End cleanly all open reads whose callers may not read any more. `nobody` is the caller
        who has no proof, in place of whom ANYONE may have begun a read.

        A read also ends if its caller may read the channels of only one tenant from now on: the
        next read of the client finds out whether its channel is one of them.
        """
        self._nobody = nobody
        for reader in self._readers:
            try:
                self._check_reader(reader)
            except MegaphoneError as error:
                reader.refuse(error)

    def _check_reader(self, reader: Reader) -> None:
        """Raises: the errors of `Caller.check_streams`, if the caller may not read any more."""
        caller = self._nobody if reader.caller is ANYONE else reader.caller
        tenant = caller.check_streams(Action.READ, loop_time(), reader.streams)
        if tenant is not None and reader.tenant is None:
            reader.end(ReadEnd.REVOKED)

    def begin_leaving(self) -> None:
        """From now on make no channels, and be not ready: the node is about to stop. It goes on to
        serve the channels that it has."""
        self._is_leaving = True

    async def begin_shutdown(self) -> None:
        """Refuse new calls and waiting writers from now on, and end all open reads cleanly."""
        self._shutting_down = True
        await self._store.quiesce()
        self.end_all_reads()


def seconds_to_expiry(caller: Caller, now: float) -> float:
    """Return after how many seconds a read must end because of its caller. That is up to `EARLY_S`
    too early, at random, because many tokens may expire at once."""
    left = caller.expires_at - now
    return left - random.random() * min(EARLY_S, left / 2)


def negotiate(protocols: Sequence[str]) -> tuple[ReadProtocol, ...]:
    """Return the supported ones of the named protocols, in the same order.

    Raises: BadRequest, when protocols are named and none is supported; PayloadTooLarge.
    """
    if not protocols:
        return (DEFAULT_PROTOCOL,)
    if len(protocols) > MAX_PROTOCOLS:
        raise PayloadTooLarge(
            f"the request names {len(protocols)} protocols; at most {MAX_PROTOCOLS} are allowed"
        )
    supported = [ReadProtocol[name] for name in protocols if name in ReadProtocol.__members__]
    if not supported:
        names = ", ".join(ReadProtocol.__members__)
        raise BadRequest(f"none of the named protocols is supported; supported are {names}")
    return tuple(supported)


def checked_options(options: ReadOptions) -> ReadOptions:
    """Check and return the options of a read. Raises: BadRequest."""
    if options.cursor is not None:
        checked_id("event id", options.cursor)
    if options.reader and not re.fullmatch(READER_PATTERN, options.reader):
        raise BadRequest("the name of a reader is 1 to 64 letters, digits, `-` or `_`")
    if options.returning and not options.reader:
        raise BadRequest("a reader that is `returning` must give its name: `reader`")
    if not 1 <= options.in_flight <= MAX_WINDOW:
        raise BadRequest(f"the window must be 1 to {MAX_WINDOW} events, not {options.in_flight}")
    if options.limit is not None and options.limit < 1:
        raise BadRequest("the limit must be at least 1 event")
    if options.heartbeat_s is not None and options.heartbeat_s < SHORTEST_HEARTBEAT_S:
        shortest_ms = round(SHORTEST_HEARTBEAT_S * 1000)
        raise BadRequest(f"the heartbeat must be at least {shortest_ms} ms")
    if options.streams is not None:
        check_streams(options.streams)
    return options


def is_alive(address: str, channel_id: bytes | None, living: dict[bytes, str]) -> bool:
    """Return whether an address is one of a living channel, given the consumer addresses of these.
    The channel id is only in a part of a consumer address, and the rest must be right too."""
    if channel_id is None or (consumer_address := living.get(channel_id)) is None:
        return False
    return address == consumer_address or is_producer_shaped(address)


def check_channels(channels: Sequence[ManyChannel]) -> None:
    """Check the channels of a read of many channels. Raises: BadRequest, PayloadTooLarge."""
    if not channels:
        raise BadRequest("the read names no channels: `channels` must have at least one")
    if len(channels) > MAX_CHANNELS_OF_A_READ:
        raise PayloadTooLarge(
            f"the read names {len(channels)} channels; at most {MAX_CHANNELS_OF_A_READ} are allowed"
        )
    first: dict[str, int] = {}
    for index, (address, _) in enumerate(channels):
        if first.setdefault(address, index) != index:
            raise BadRequest(f"channel {index} is the same as channel {first[address]}")


def check_streams(streams: frozenset[str]) -> None:
    """Raises: BadRequest, PayloadTooLarge."""
    if len(streams) > MAX_STREAMS:
        raise PayloadTooLarge(
            f"the read asks for {len(streams)} streams; at most {MAX_STREAMS} are allowed"
        )
    for stream_id in streams:
        checked_stream_id(stream_id)
