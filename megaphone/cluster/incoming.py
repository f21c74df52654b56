"""The target's end of replication: applies what other nodes send about their agents and channels.

An incoming pipe replicates one agent from one source to this node, while the stream of the source
lasts. During that time the source decides which channels expire, after it has asked this node
whether they are in use. Whatever a source sends, it cannot change a channel of another agent, and
it cannot create a channel that lives here already.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from megaphone.cluster.ports import Replicable, Usage
from megaphone.cluster.replicas import Replicas
from megaphone.core.addresses import ConsumerAddress, SealedAddress, is_consumer_shaped
from megaphone.core.agents import Agent, Agents
from megaphone.core.content import (
    accepted_body,
    checked_id,
    checked_key,
    checked_label,
    checked_stream_id,
)
from megaphone.core.pace import ADDRESS_WORK, Pace, free_in_slices
from megaphone.core.ports import Observer, Store
from megaphone.core.tenants import Tenants, checked_tenant
from megaphone.core.traces import sampled
from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    LimitExceeded,
    MegaphoneError,
    ShuttingDown,
)
from megaphone.model import (
    AgentMode,
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    ChannelOptions,
    ChannelState,
    EventAdded,
    EventsForgotten,
    HistoryChange,
    KeyAdded,
    ProgressMade,
)
from megaphone.settings import DAY_S, MAX_CAPACITY, Settings

log = logging.getLogger(__name__)

LATEST_TIMESTAMP_US = 253_402_300_799_999_999
"""The last microsecond of the year 9999, the last year that RFC 3339 can express."""

SOURCES_REMEMBERED = 100
"""For how many sources of one agent this node remembers which events they have sent."""

RUST_CAPACITY = 100
"""The capacity of each channel of the Rust broker (0.10). Its messages do not contain it."""

Offsets = dict[bytes, int]
"""The offset of the last event that a source sent, by channel id."""


class IncomingPipes:
    """All incoming pipes of this node."""

    def __init__(
        self,
        *,
        store: Store,
        replication: Replicable,
        agents: Agents,
        settings: Settings,
        observer: Observer,
        tenants: Tenants,
    ) -> None:
        self.store = store
        self.replication = replication
        self.agents = agents
        self.settings = settings
        self.observer = observer
        self.tenants = tenants
        self._pipes: dict[tuple[str, str], IncomingPipe] = {}
        """The open pipes, by agent and source id. Pipes without a source id are not in it."""
        self._offsets: dict[str, dict[str, Offsets]] = {}
        """The offsets up to which this node has the events of a source, by agent and source id.
        They stay after the end of a pipe, for the case that the source reconnects."""
        self._why_closed = ""
        """Why new pipes are refused; empty while they are accepted."""
        self._replicas = Replicas(
            agents=agents, store=store, limit=settings.max_replicas, on_removed=self.forget_sources
        )

    async def open(self, agent: str, key: bytes, source_id: str) -> "IncomingPipe":
        """Open a pipe that replicates an agent to this node. The caller must close the pipe.

        A source that reconnects sends the same `source_id` again. This node then ignores the
        events that it has from the source already, and closes the pipe that the source had before.
        An empty `source_id` means that the source will not reconnect.

        Raises: BadRequest, when the name or the key is not valid; WrongMode, when the mode or the
            key that the agent has here does not allow it; ShuttingDown; LimitExceeded, when other
            nodes replicate as many agents to this node as is allowed.
        """
        if self._why_closed:
            raise ShuttingDown(self._why_closed)
        if source_id:
            checked_id("source id", source_id)
        if self.agents.get(agent) is None:
            await self._replicas.make_room()
        replica = self.agents.replicate(agent, key)
        self._replicas.mark_needed(replica)
        pipe = IncomingPipe(self, replica, source_id, self._offsets_of(agent, source_id))
        if source_id:
            if (earlier := self._pipes.get((agent, source_id))) is not None:
                earlier.close()
            self._pipes[agent, source_id] = pipe
        log.info("another node replicates the agent to this one", extra={"agent": agent})
        return pipe

    def closed(self, agent: str, source_id: str, pipe: "IncomingPipe") -> None:
        """Forget a pipe that was closed."""
        if self._pipes.get((agent, source_id)) is pipe:
            del self._pipes[agent, source_id]

    def _offsets_of(self, agent: str, source_id: str) -> Offsets:
        """Return the offsets of a source, and count the source as the most recent one."""
        if not source_id:
            return {}
        remembered = self._offsets.setdefault(agent, {})
        offsets = remembered[source_id] = remembered.pop(source_id, {})
        if len(remembered) > SOURCES_REMEMBERED:
            del remembered[next(iter(remembered))]
        return offsets

    def refuse_pipes(self, why: str) -> None:
        """Refuse new pipes until `accept_pipes` is called. `why` is the text of the error."""
        self._why_closed = why

    def accept_pipes(self) -> None:
        """Accept new pipes again."""
        self._why_closed = ""

    def promote(self, agent: Agent) -> None:
        """Make a replica a MASTER, because its source has sent everything."""
        self.forget_sources(agent.name)
        self.agents.promote(agent.name, asyncio.get_running_loop().time())
        log.info(
            "the agent is MASTER here now: its source has sent everything",
            extra={"agent": agent.name},
        )

    async def usage(self, addresses: Sequence[str]) -> Usage:
        """Return how the channels with these consumer addresses are used here.

        Raises: BadRequest, when a text is not a consumer address.
        """
        usage = Usage([], {})
        pace = Pace()
        for address in dict.fromkeys(addresses):
            state = await self.replication.state(ConsumerAddress.parse(address).channel_id)
            if state is not None and state.is_in_use:
                usage.in_use.append(address)
            if state is not None and state.cursor is not None:
                usage.cursors[address] = state.cursor
            await pace.work(ADDRESS_WORK)
        return usage

    async def aclose(self) -> None:
        """Stop removing agents that are not needed any more."""
        await self._replicas.aclose()

    def forget_sources(self, agent: str) -> None:
        """Forget the sources of an agent, and which events they have sent."""
        for offsets in self._offsets.pop(agent, {}).values():
            free_in_slices(offsets)
        self._pipes = {key: pipe for key, pipe in self._pipes.items() if key[0] != agent}


class IncomingPipe:
    """The target's end of one pipe: applies the changes of one agent from one source."""

    def __init__(
        self, pipes: IncomingPipes, agent: Agent, source_id: str, offsets: Offsets
    ) -> None:
        self._pipes = pipes
        self._store = pipes.store
        self._replication = pipes.replication
        self._agent = agent
        self._source_id = source_id
        self._offsets = offsets
        self._is_open = True
        self._refused = 0
        agent.sources += 1
        self._keeping_alive = ExitStack()
        self._keeping_alive.enter_context(self._replication.keep_alive(agent.name))

    async def apply(self, change: ChannelChange) -> None:
        """Apply a change, unless this node has newer information about the channel.

        An event that is not valid counts as lost and does not end the pipe, because that would
        also stop all later events. After an error the caller should end the stream.

        Raises: BadRequest, when the channel is not one of the agent, when another part of the
            change is not valid, or when the pipe is closed; LimitExceeded, when there is no memory
            for the event.
        """
        if not self._is_open:
            raise BadRequest("this stream is over: its source has begun another one")
        match change:
            case ChannelAdded(address):
                await self._add(self._own(address), change)
            case ChannelEnded(address):
                await self._end(self._own(address).channel_id)
            case EventAdded(address):
                await self._add_event(self._channel_of(address), change)
            case KeyAdded(address, event_id, key):
                checked_id("event id", event_id)
                checked_key(key.request_id)
                await self._apply(self._own(address).channel_id, change)
            case ProgressMade(address, progress):
                checked_id("event id", progress.cursor)
                checked_id("event id", progress.sent)
                await self._apply(self._own(address).channel_id, change)
            case EventsForgotten(address):
                await self._skip(self._own(address).channel_id, change)

    def end(self) -> None:
        """Note that the source has sent everything, and promote the agent if that is configured.

        The agent is not promoted while another source replicates it too, nor a second time.
        """
        if (
            self._is_open
            and self._pipes.settings.promote_replicas
            and self._agent.sources == 1
            and self._agent.mode is AgentMode.REPLICA
        ):
            self._pipes.promote(self._agent)

    def close(self) -> None:
        """End the pipe, because its stream has ended. A second call changes nothing."""
        if self._is_open:
            self._is_open = False
            self._agent.sources -= 1
            self._keeping_alive.close()
            self._pipes.closed(self._agent.name, self._source_id, self)
            log.info("an incoming pipe has ended", extra={"agent": self._agent.name})
            if self._refused > 1:
                log.warning(
                    "replicated events were refused",
                    extra={"agent": self._agent.name, "events": self._refused},
                )

    # -- Changes

    async def _add(self, address: ConsumerAddress, added: ChannelAdded) -> None:
        state = await self._replication.state(address.channel_id)
        if state is not None:
            if not self._is_outdated(address.channel_id, state):
                return
            await self._release(address.channel_id)
        if added.capacity > MAX_CAPACITY:
            raise BadRequest(f"a channel holds at most {MAX_CAPACITY} events, not {added.capacity}")
        if not 0 <= added.ttl_s <= DAY_S:
            raise BadRequest(f"a channel lives at most {DAY_S} s unread, not {added.ttl_s:g}")
        options = ChannelOptions(
            added.capacity or max(RUST_CAPACITY, self._pipes.settings.buffer_capacity),
            added.ttl_s or None,
            checked_label(added.label),
        )
        tenant = self._pipes.tenants.named(checked_tenant(added.tenant))
        await self._store.create(address.channel_id, str(address), options, tenant)
        self._pipes.observer.channel_applied()

    def _is_outdated(self, channel_id: bytes, state: ChannelState) -> bool:
        """Return whether a channel is only the copy of an earlier source.

        The copy must be replaced, because this source may have events that the copy lacks. The
        copy would get them after later events, and so in the wrong order.
        """
        is_from_here = channel_id in self._offsets
        is_alone = self._agent.sources == 1
        return is_alone and not is_from_here and state.is_copy

    async def _end(self, channel_id: bytes) -> None:
        state = await self._replication.state(channel_id)
        with suppress(ChannelNotFound):
            if state is not None and state.is_read:
                await self._replication.allow_expiry(channel_id)
            elif state is not None:
                await self._release(channel_id)

    async def _release(self, channel_id: bytes) -> None:
        await self._replication.release(channel_id)
        self._pipes.observer.channel_released()

    async def _add_event(self, channel_id: bytes, change: EventAdded) -> None:
        if change.offset and change.offset <= self._offsets.get(channel_id, 0):
            return
        try:
            await self._check(change)
            lost = await self._replication.apply(channel_id, change)
            self._pipes.observer.events_applied(1)
            if lost:
                self._pipes.observer.events_lost(lost)
        except LimitExceeded:
            raise  # the source keeps the event, and sends it again when it has reconnected
        except MegaphoneError as error:
            self._pipes.observer.events_lost(1)
            self._refused += 1
            if self._refused == 1:  # only once, so that a source cannot fill the log file
                log.warning(
                    "a replicated event was refused: %s",
                    error,
                    extra={"agent": self._agent.name},
                )
        if change.offset:
            self._offsets[channel_id] = change.offset

    async def _skip(self, channel_id: bytes, change: EventsForgotten) -> None:
        checked_id("event id", change.event_id)
        if change.offset > self._offsets.get(channel_id, 0) and await self._apply(
            channel_id, change
        ):
            self._offsets[channel_id] = change.offset

    async def _apply(self, channel_id: bytes, change: HistoryChange) -> bool:
        """Apply a change if its channel is on this node. Returns: whether the channel is."""
        try:
            await self._replication.apply(channel_id, change)
        except ChannelNotFound:
            return False
        return True

    # -- Checks of what a source sends

    async def _check(self, change: EventAdded) -> None:
        event = change.event
        if not 0 <= event.timestamp_us <= LATEST_TIMESTAMP_US:
            raise BadRequest("the timestamp of an event must be from 1970 to 9999")
        checked_id("event id", event.id)
        checked_stream_id(event.stream_id)
        event.body = await accepted_body(event.body, self._pipes.settings.max_body_bytes)
        event.trace = sampled(event.trace)
        if change.key is not None:
            checked_key(change.key.request_id)

    def _own(self, address: str) -> ConsumerAddress:
        consumer = ConsumerAddress.parse(address)
        self._refuse_others(consumer.agent)
        return consumer

    def _channel_of(self, address: str) -> bytes:
        if is_consumer_shaped(address):
            return self._own(address).channel_id
        producer = SealedAddress.parse(address)
        self._refuse_others(producer.agent)
        return self._pipes.agents.keys.open(address)[1]

    def _refuse_others(self, agent: str) -> None:
        if agent != self._agent.name:
            raise BadRequest(f"the pipe of agent {self._agent.name} has a channel of agent {agent}")
