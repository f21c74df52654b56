"""The use cases of the broker, one method each: all that the faces call.

Both faces translate to these methods and back, so that a channel behaves the same however it is
reached. Arguments are what clients sent, unchecked; every rule is applied here or below.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from megaphone.core.addresses import (
    CANNOT_WRITE,
    MAX_ADDRESS_LENGTH,
    ConsumerAddress,
    SealedAddress,
    is_consumer_shaped,
)
from megaphone.core.agents import Agents
from megaphone.core.content import accepted_body, checked_id, checked_stream_id, new_event_id
from megaphone.core.pace import ADDRESS_WORK, ANSWER_WORK, EVENT_WORK, SLICE, Pace, many_tasks
from megaphone.core.ports import Append, Observer, Store
from megaphone.core.reader import Reader
from megaphone.errors import (
    AgentMoved,
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    PayloadTooLarge,
    PermissionDenied,
    ShuttingDown,
    WriteTimeout,
)
from megaphone.model import (
    SKIPPED,
    BatchFailure,
    Event,
    Message,
    NewChannel,
    ReadOptions,
    ReadProtocol,
    Write,
    WriteFailure,
)
from megaphone.settings import Settings

DEFAULT_PROTOCOL = ReadProtocol.HTTP_STREAM_NDJSON_V1
MAX_PROTOCOLS = 100
"""The most that a request may name."""
BATCH_SLICE_EVENTS = SLICE // EVENT_WORK
"""How many events of a batch are written to one channel before other tasks get their turn."""
MAX_WINDOW = 100_000
SHORTEST_HEARTBEAT_S = 0.1
SKIPPED_WRITE = WriteFailure(
    SKIPPED, "not tried: the channel was full for an earlier event of the request"
)
DRAIN_GRACE_S = 1.0
"""How long a read whose agent leaves may take to send what it has."""


class Broker:
    """The channels of one node.

    Every method raises ShuttingDown, where it would start something, once `begin_shutdown` was
    called.
    """

    def __init__(
        self, *, store: Store, agents: Agents, settings: Settings, observer: Observer
    ) -> None:
        self._store = store
        self._agents = agents
        self._settings = settings
        self._observer = observer
        self._poll_duration_s = settings.poll_duration_millis / 1000
        self._readers: set[Reader] = set()
        self._left = asyncio.Event()
        """Set when a reader has left."""
        self._shutting_down = False

    # -- Channels

    async def create(self, protocols: Sequence[str] = ()) -> NewChannel:
        """Make a channel under any agent that takes new ones.

        Raises: BadRequest, when `protocols` are named and none is supported; PayloadTooLarge, when
            very many are; NoAgentAvailable; LimitExceeded; ShuttingDown.
        """
        self._refuse_if_shutting_down()
        chosen = negotiate(protocols)
        agent = self._agents.pick_for_new_channel(loop_time())
        consumer = ConsumerAddress.mint(agent.name)
        channel_id = consumer.channel_id
        await self._store.create(channel_id, str(consumer))
        self._observer.channel_created()
        return NewChannel(
            agent=agent.name,
            producer_address=f"{agent.name}.{agent.key.seal(channel_id)}",
            consumer_address=str(consumer),
            protocols=chosen,
        )

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]:
        """Tell for each address, of a producer or a consumer, whether its channel lives.

        Raises: PayloadTooLarge, for more addresses than a request may name.
        """
        self._check_number(addresses)
        alive: dict[str, bool] = {}
        pace = Pace()
        for address in addresses:
            if address not in alive:
                alive[address] = await self._is_alive(address)
                await pace.work(ADDRESS_WORK)
        return alive

    def _check_number(self, addresses: Sequence[str]) -> None:
        count, allowed = len(addresses), self._settings.max_addresses
        if count > allowed:
            raise PayloadTooLarge(
                f"the request names {count} addresses; at most {allowed} are allowed"
                " (max_addresses)"
            )

    async def _is_alive(self, address: str) -> bool:
        await self._settled(address)
        try:
            if is_consumer_shaped(address):
                channel_id = self._consumer(address).channel_id
            else:
                channel_id = self._open_producer_address(address)
        except MegaphoneError:
            return False
        return await self._store.exists(channel_id)

    # -- Writing

    async def write(
        self, address: str, stream_id: str, body: bytes, request_id: str | None = None
    ) -> str:
        """Write one event; when this returns it is in the buffer of its channel.

        Waits for room, first come first served, for at most the write timeout. Atomic with respect
        to cancellation: the event is in the buffer or it is not.

        Returns: the event's id; that of an earlier event when `request_id` repeats the one it was
            written with within 60 s.
        Raises: BadRequest; PermissionDenied, for a consumer address; ChannelNotFound;
            PayloadTooLarge; LimitExceeded; WriteTimeout; ShuttingDown.
        """
        event_id = await self._write(address, stream_id, body, request_id, self._store.append)
        assert event_id is not None
        return event_id

    async def _write(
        self, address: str, stream_id: str, body: bytes, request_id: str | None, append: Append
    ) -> str | None:
        self._refuse_if_shutting_down()
        if request_id is not None:
            checked_id("request id", request_id)
        event = await self._new_event(stream_id, body)
        await self._settled(address)
        try:
            return await append(self._writable_channel(address), event, request_id)
        except ChannelNotFound:
            self._observer.events_unroutable(1)
            raise

    async def write_each(self, writes: Sequence[Write]) -> list[str | WriteFailure]:
        """Write each event to a channel of its own, as `write` would.

        Channels are written concurrently, the events of one channel in order. After the first
        timeout on a channel the rest of its events are skipped, so that a full channel costs one
        write timeout and not one for each event.

        Returns: for each event its id, or why it was not taken.
        Raises: PayloadTooLarge, for more events than a batch may write: then none was written.
        """
        count, allowed = len(writes), self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the message publishes {count} events; at most {allowed} are allowed"
                " (max_batch_events)"
            )
        results: list[str | WriteFailure] = [SKIPPED_WRITE] * count
        behind: dict[str, deque[tuple[int, Write]]] = {}
        """By channel that is full: what is to be written to it, in order."""

        async def write_in_order(address: str) -> None:
            queue = behind[address]
            while queue:
                index, one = queue.popleft()
                result = await self._result(one, self._store.append)
                assert result is not None
                results[index] = result
                if isinstance(result, WriteFailure) and result.reason == WriteTimeout.code:
                    return  # and what comes later stays behind it
            del behind[address]

        pace = Pace()
        async with many_tasks() as start:
            for index, one in enumerate(writes):
                if (queue := behind.get(one.address)) is not None:
                    queue.append((index, one))
                elif (result := await self._result(one, self._store.append_now)) is not None:
                    results[index] = result
                else:
                    behind[one.address] = deque([(index, one)])
                    start(write_in_order(one.address))
                await pace.work(EVENT_WORK + ADDRESS_WORK + len(one.body))
        return results

    async def _result(self, one: Write, append: Append) -> str | WriteFailure | None:
        try:
            return await self._write(one.address, one.stream_id, one.body, one.request_id, append)
        except MegaphoneError as error:
            return WriteFailure(error.code, str(error))

    async def write_batch(
        self,
        addresses: Sequence[str],
        messages: Sequence[Message],
        request_id: str | None = None,
    ) -> list[BatchFailure]:
        """Write the same messages to many channels, once to each that is named.

        Channels are written concurrently, the messages of one channel in order. One message has
        the same event id in all channels. After the first timeout on a channel the rest of its
        messages are skipped.

        Returns: what was not taken, in the order of the addresses.
        Raises: BadRequest, PayloadTooLarge, ShuttingDown: then nothing was written.
        """
        self._refuse_if_shutting_down()
        self._check_number(addresses)
        addresses = list(dict.fromkeys(addresses))
        count, allowed = len(addresses) * len(messages), self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the batch writes {count} events ({len(addresses)} channels with "
                f"{len(messages)} messages each); at most {allowed} are allowed"
            )
        refuse_long(addresses)
        if request_id is not None:
            checked_id("request id", request_id)
        pace = Pace()
        events = []
        for index, message in enumerate(messages):
            events.append(await self._new_batch_event(index, message))
            await pace.work(EVENT_WORK + len(message.body))
        batch = Batch(events, request_id, pace)
        return await self._write_to_all(addresses, batch)

    async def _new_batch_event(self, index: int, message: Message) -> Event:
        try:
            return await self._new_event(message.stream_id, message.body)
        except MegaphoneError as error:
            raise type(error)(f"message {index}: {error}") from None

    async def _write_to_all(self, addresses: Sequence[str], batch: "Batch") -> list[BatchFailure]:
        """Write to one channel after the other; those that are full go on in tasks of their own."""
        untaken: list[Untaken | None] = [None] * len(addresses)

        async def write_rest(index: int, first: int) -> None:
            untaken[index] = await self._write_all(addresses[index], batch, first)

        async with many_tasks() as start:
            for index, address in enumerate(addresses):
                try:
                    untaken[index] = await self._write_all(address, batch, waits=False)
                except MustWait as wait:
                    start(write_rest(index, wait.first))
                await batch.pace.work(ADDRESS_WORK)
        failures: list[BatchFailure] = []
        for address, rest in zip(addresses, untaken, strict=True):
            if rest is not None:
                await batch.add_failures(address, rest, failures)
        return failures

    async def _write_all(
        self, address: str, batch: "Batch", first: int = 0, *, waits: bool = True
    ) -> "Untaken | None":
        """Write the events of a batch from `first` on to one channel.

        Returns: what was not taken. Raises: MustWait, unless it `waits`, at a full channel.
        """
        events, append = batch.events, self._store.append if waits else self._store.append_now
        taken = first
        try:
            while taken < len(events):
                # After each pause anew, for the agent may have begun to leave meanwhile.
                await self._settled(address)
                channel_id = self._writable_channel(address)
                stop = min(len(events), taken + BATCH_SLICE_EVENTS)
                began = taken
                while taken < stop:
                    if await append(channel_id, events[taken], batch.key(taken)) is None:
                        raise MustWait(taken)
                    taken += 1
                await batch.pace.work(EVENT_WORK * (taken - began))
        except WriteTimeout as error:
            return Untaken(taken, error.code, SKIPPED)
        except MegaphoneError as error:
            if isinstance(error, ChannelNotFound):
                self._observer.events_unroutable(len(events) - taken)
            return Untaken(taken, error.code, error.code)
        return None

    async def _new_event(self, stream_id: str, body: bytes) -> Event:
        return Event(
            id=new_event_id(),
            stream_id=checked_stream_id(stream_id),
            timestamp_us=time.time_ns() // 1000,
            body=await accepted_body(body, self._settings.max_body_bytes),
        )

    # -- Reading

    async def open_reader(
        self, address: str, options: ReadOptions | None = None, *, within_s: float = math.inf
    ) -> Reader:
        """Become the one reader of a channel, for the poll duration or for `within_s`, if less.

        The reader must be entered at once (`async with`), or the channel stays busy.

        Raises: BadRequest; ChannelNotFound; ReaderBusy; ShuttingDown.
        """
        self._refuse_if_shutting_down()
        await self._settled(address)
        consumer = self._consumer(address)
        options = checked_options(options or ReadOptions())
        lease = await self._store.lease(consumer.channel_id, address, options)
        reader = Reader(
            lease,
            options,
            agent=consumer.agent,
            until=loop_time() + self._window_s(options, within_s),
            observer=self._observer,
            on_exit=self._reader_left,
        )
        self._readers.add(reader)
        return reader

    def _window_s(self, options: ReadOptions, within_s: float) -> float:
        wait_s = math.inf if options.wait_s is None else options.wait_s
        return min(self._poll_duration_s, wait_s, within_s)

    async def acknowledge(self, address: str, event_id: str) -> int:
        """Count an event and all before it on its channel as delivered.

        May be repeated, and needs no open read.

        Returns: how many were not yet; 0 also for an event that is not known, or not any more.
        Raises: BadRequest; ChannelNotFound.
        """
        await self._settled(address)
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return await self._store.acknowledge(consumer.channel_id, address, event_id)

    # -- Finding the right node

    async def owns(self, agent: str) -> bool:
        """Tell whether calls for the channels of an agent belong to this node.

        Waits while the agent is on its way to another one, so that the answer holds.
        """
        await self._agents.settled(agent)
        known = self._agents.get(agent)
        return known is not None and known.is_owned

    async def check_takes_channels(self) -> None:
        """Raises: NoAgentAvailable, LimitExceeded, ShuttingDown: what `create` would now."""
        self._refuse_if_shutting_down()
        self._agents.pick_for_new_channel(loop_time())
        await self._store.check_room()

    # -- The end

    async def end_reads(self, agent: str) -> None:
        """End every read of an agent that leaves for another node.

        A read ends cleanly; if its client takes nothing, it is broken off. The caller keeps new
        reads from coming (`Agents.moving`).
        """
        readers = {reader for reader in self._readers if reader.agent == agent}
        for reader in readers:
            reader.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_GRACE_S):
                while readers & self._readers:
                    self._left.clear()
                    await self._left.wait()
        for reader in readers & self._readers:
            reader.break_off()

    def _reader_left(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._left.set()

    @property
    def is_shutting_down(self) -> bool:
        return self._shutting_down

    async def begin_shutdown(self) -> None:
        """Refuse all that is new, writers that wait for room too, and end every read cleanly."""
        self._shutting_down = True
        await self._store.quiesce()
        for reader in self._readers:
            reader.end()

    def _refuse_if_shutting_down(self) -> None:
        if self._shutting_down:
            raise ShuttingDown

    # -- Addresses

    async def _settled(self, address: str) -> None:
        """Wait if the agent of an address is just leaving: then it is known whose call this is."""
        if self._agents.are_moving:
            await self._agents.settled(address.partition(".")[0])

    def _consumer(self, address: str) -> ConsumerAddress:
        consumer = ConsumerAddress.parse(address)
        self._agents.served(consumer.agent)
        return consumer

    def _writable_channel(self, address: str) -> bytes:
        if address.count(".") == 1:  # as in every address of a producer, and in none of a consumer
            return self._open_producer_address(address)
        if is_consumer_shaped(address) and not self._settings.legacy_channel_id_writes:
            raise PermissionDenied(CANNOT_WRITE)
        return self._consumer(address).channel_id

    def _open_producer_address(self, address: str) -> bytes:
        name, _, sealed = address.partition(".")
        try:
            agent = self._agents.served(name)
        except (AgentMoved, ChannelNotFound):
            SealedAddress.parse(address)  # what is no address at all is a bad request
            raise
        return agent.key.open(sealed)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are written to many channels."""

    events: Sequence[Event]
    request_id: str | None
    pace: Pace

    def key(self, index: int) -> str | None:
        """Return the request id of one event: with a space, so that it is that of no other write.

        No client can send one.
        """
        return None if self.request_id is None else f"{self.request_id} {index}"

    async def add_failures(
        self, address: str, untaken: "Untaken", failures: list[BatchFailure]
    ) -> None:
        reason = untaken.reason
        for index in range(untaken.first, len(self.events)):
            failures.append(BatchFailure(address, index, reason))
            reason = untaken.reason_of_rest
            await self.pace.work(ANSWER_WORK)


@dataclass(frozen=True, slots=True)
class Untaken:
    """The events of a batch that one channel did not take."""

    first: int
    """The first of them; the rest are all behind it."""
    reason: str
    reason_of_rest: str


class MustWait(Exception):
    """A channel is full."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        """The first event for which there is no room."""


def refuse_long(addresses: Sequence[str]) -> None:
    """Raises: BadRequest, for an address that is too long: the answer would repeat it often."""
    for index, address in enumerate(addresses):
        if len(address) > MAX_ADDRESS_LENGTH:
            raise BadRequest(
                f"address {index} has {len(address)} characters; no address has more than"
                f" {MAX_ADDRESS_LENGTH}"
            )


def loop_time() -> float:
    return asyncio.get_running_loop().time()


def negotiate(protocols: Sequence[str]) -> tuple[ReadProtocol, ...]:
    """Return those of the named protocols that are supported, in the order of preference.

    Raises: BadRequest, when some are named and none is supported; PayloadTooLarge.
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
    if options.cursor is not None:
        checked_id("event id", options.cursor)
    if not 1 <= options.in_flight <= MAX_WINDOW:
        raise BadRequest(f"the window must be 1 to {MAX_WINDOW} events, not {options.in_flight}")
    if options.limit is not None and options.limit < 1:
        raise BadRequest("the limit must be at least 1 event")
    if options.heartbeat_s is not None and options.heartbeat_s < SHORTEST_HEARTBEAT_S:
        shortest_ms = round(SHORTEST_HEARTBEAT_S * 1000)
        raise BadRequest(f"the heartbeat must be at least {shortest_ms} ms")
    return options
