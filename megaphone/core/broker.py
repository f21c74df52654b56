"""The use cases of the broker, one method each: all that the faces call.

Both faces translate to these methods and back, so that a channel behaves the same however it is
reached. Arguments are what clients sent, unchecked; every rule is applied here or below.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from megaphone.core.addresses import (
    CANNOT_WRITE,
    MAX_ADDRESS_LENGTH,
    ConsumerAddress,
    SealedAddress,
    is_consumer_shaped,
)
from megaphone.core.agents import Agents
from megaphone.core.content import (
    CHECKED_AT_ONCE,
    accepted_body,
    checked_body,
    checked_id,
    checked_stream_id,
    new_event_id,
)
from megaphone.core.log import new_tuple
from megaphone.core.pace import ADDRESS_WORK, ANSWER_WORK, EVENT_WORK, SLICE, Pace, many_tasks
from megaphone.core.ports import (
    Append,
    AppendResult,
    Lease,
    Observer,
    Store,
    Stored,
    WouldBlock,
)
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
    NewChannel,
    NewEvent,
    ReadOptions,
    ReadProtocol,
    WriteFailure,
    agent_of,
)
from megaphone.settings import Settings

DEFAULT_PROTOCOL = ReadProtocol.HTTP_STREAM_NDJSON_V1
MAX_PROTOCOLS = 100
"""The most that a request may name."""
ADDRESSES_AT_ONCE = SLICE // ADDRESS_WORK
"""How many addresses are looked up before other tasks get their turn."""
MAX_WINDOW = 100_000
SHORTEST_HEARTBEAT_S = 0.1
SKIPPED_WRITE = WriteFailure(
    SKIPPED, "not tried: the channel was full for an earlier event of the request"
)
WOULD_BLOCK = WouldBlock()
TRIED = WouldBlock()
"""In place of a result that the store is yet to return."""
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
            producer_address=f"{agent.name}.{self._agents.keys.of(agent.name).seal(channel_id)}",
            consumer_address=str(consumer),
            protocols=chosen,
        )

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]:
        """Tell for each address, of a producer or a consumer, whether its channel lives.

        Raises: PayloadTooLarge, for more addresses than a request may name.
        """
        self._check_number(addresses)
        alive: dict[str, bool] = {}
        for start in range(0, len(addresses), ADDRESSES_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = [one for one in addresses[start : start + ADDRESSES_AT_ONCE] if one not in alive]
            alive |= await self._are_alive(some)
        return alive

    async def _are_alive(self, addresses: Sequence[str]) -> dict[str, bool]:
        await self._moves_finished(addresses)
        channel_ids: dict[str, bytes] = {}
        for address in addresses:
            with suppress(MegaphoneError):
                channel_ids[address] = self._channel_of(address)
        living = await self._store.exists(list(channel_ids.values()))
        return {address: channel_ids.get(address) in living for address in addresses}

    def _channel_of(self, address: str) -> bytes:
        if is_consumer_shaped(address):
            return self._consumer(address).channel_id
        return self._open_producer_address(address)

    def _check_number(self, addresses: Sequence[str]) -> None:
        count, allowed = len(addresses), self._settings.max_addresses
        if count > allowed:
            raise PayloadTooLarge(
                f"the request names {count} addresses; at most {allowed} are allowed"
                " (max_addresses)"
            )

    # -- Writing

    async def write(self, address: str, new: NewEvent) -> str:
        """Write one event; when this returns it is in the buffer of its channel.

        Waits for room, first come first served, for at most the write timeout. Atomic with respect
        to cancellation: the event is in the buffer or it is not.

        Returns: the event's id; that of an earlier event when the request id repeats the one that
            it was written with within 60 s.
        Raises: BadRequest; PermissionDenied, for a consumer address; ChannelNotFound;
            PayloadTooLarge; LimitExceeded; WriteTimeout; AgentMoved; ShuttingDown.
        """
        try:
            return self.write_nowait(address, new)
        except WouldBlock:
            event = await self._new_event(new)
            return await self._write_waiting(address, event, new.request_id)

    def write_nowait(self, address: str, new: NewEvent) -> str:
        """Do what `write` does, without waiting.

        Raises: WouldBlock, when that takes a wait: for room, for the check of a large body, or for
            the end of a move; then nothing has happened. Else the errors of `write`.
        """
        self._refuse_if_shutting_down()
        check_request_id(new)
        if len(new.body) > CHECKED_AT_ONCE or self._agents.are_moving:
            raise WouldBlock
        body = checked_body(new.body, self._settings.max_body_bytes)
        event = event_of(new, body)
        try:
            stored = self._store.append_nowait(
                Append(self._writable_channel(address), event, new.request_id)
            )
        except ChannelNotFound:
            self._observer.events_unroutable(1)
            raise
        if stored.is_new:
            self._observer.events_written(1)
        return stored.event_id

    async def _write_waiting(self, address: str, event: Event, request_id: str | None) -> str:
        """Write an event, waiting for room."""
        await self._moves_finished((address,))
        try:
            write = Append(self._writable_channel(address), event, request_id)
            [result] = await self._append([write], wait=False)
            if isinstance(result, WouldBlock):
                self._observer.writer_waits()
                try:
                    [result] = await self._append([write], wait=True)
                finally:
                    self._observer.writer_waited()
        except ChannelNotFound as error:
            result = error
        if isinstance(result, Stored):
            return result.event_id
        if isinstance(result, ChannelNotFound):
            self._observer.events_unroutable(1)
        raise result

    async def _append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        """Add events to their channels, and count those that are new.

        The store returns a result even when the caller was cancelled, if that came too late: then
        this counts it before it raises.
        """
        task = asyncio.current_task()
        cancelled_before = 0 if task is None else task.cancelling()
        results = await self._store.append(writes, wait=wait)
        if new := sum(isinstance(one, Stored) and one.is_new for one in results):
            self._observer.events_written(new)
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        return results

    async def write_each(self, writes: Sequence[tuple[str, NewEvent]]) -> list[str | WriteFailure]:
        """Write each event to the channel of its address, as `write` would.

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
        behind: dict[str, deque[Line]] = {}
        """By channel that is full: the events that are to be written to it, in order."""

        async def write_in_order(address: str) -> None:
            queue = behind[address]
            while queue:
                index, _, event, request_id = queue.popleft()
                try:
                    results[index] = await self._write_waiting(address, event, request_id)
                except MegaphoneError as error:
                    results[index] = failure_of(error)
                    if isinstance(error, WriteTimeout):
                        return  # later events stay behind it
            del behind[address]

        async with many_tasks() as start:
            async for lines in self._lines(writes, results):
                for line, result in await self._write_lines(lines, behind):
                    if not isinstance(result, WouldBlock):
                        results[line.number] = outcome_of(result)
                        if isinstance(result, ChannelNotFound):
                            self._observer.events_unroutable(1)
                    elif (queue := behind.get(line.address)) is not None:
                        queue.append(line)
                    else:
                        behind[line.address] = deque([line])
                        start(write_in_order(line.address))
        return results

    async def _lines(
        self, writes: Sequence[tuple[str, NewEvent]], results: list[str | WriteFailure]
    ) -> AsyncIterator[list["Line"]]:
        """Yield the events in slices; what is wrong with others goes into `results`."""
        lines: list[Line] = []
        pace = Pace()
        for index, (address, new) in enumerate(writes):
            try:
                self._refuse_if_shutting_down()
                lines.append(Line(index, address, await self._new_event(new), new.request_id))
            except MegaphoneError as error:
                results[index] = failure_of(error)
            if pace.is_used_up(EVENT_WORK + ADDRESS_WORK + len(new.body)):
                yield lines
                lines = []
                await asyncio.sleep(0)
        yield lines

    async def _write_lines(
        self, lines: Sequence["Line"], behind: Container[str]
    ) -> Iterable[tuple["Line", AppendResult]]:
        """Write events without waiting. One whose channel is in `behind` would block."""
        await self._moves_finished([line.address for line in lines])
        channels: dict[str, bytes | MegaphoneError] = {}
        for line in lines:
            if line.address not in channels:
                channels[line.address] = self._writable_channel_or_error(line.address)
        results: list[AppendResult] = []
        writes: list[Append] = []
        for line in lines:
            channel = channels[line.address]
            if isinstance(channel, MegaphoneError):
                results.append(channel)
            elif line.address in behind:
                results.append(WOULD_BLOCK)
            else:
                results.append(TRIED)
                writes.append(new_tuple(Append, (channel, line.event, line.request_id)))
        tried = iter(await self._append(writes, wait=False))
        results = [next(tried) if result is TRIED else result for result in results]
        return zip(lines, results, strict=True)

    def _writable_channel_or_error(self, address: str) -> bytes | MegaphoneError:
        try:
            return self._writable_channel(address)
        except MegaphoneError as error:
            return error

    async def write_batch(
        self, addresses: Sequence[str], new: Sequence[NewEvent], request_id: str | None = None
    ) -> list[BatchFailure]:
        """Write the same events to many channels, once to each that is named.

        Channels are written concurrently, the events of one channel in order. One event has the
        same id in all channels. After the first timeout on a channel the rest of its events are
        skipped.

        Returns: the events that were not taken, in the order of the addresses.
        Raises: BadRequest, PayloadTooLarge, ShuttingDown: then nothing was written.
        """
        self._refuse_if_shutting_down()
        self._check_number(addresses)
        addresses = list(dict.fromkeys(addresses))
        count, allowed = len(addresses) * len(new), self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the batch writes {count} events ({len(addresses)} channels with "
                f"{len(new)} messages each); at most {allowed} are allowed"
            )
        refuse_long(addresses)
        if request_id is not None:
            checked_id("request id", request_id)
        pace = Pace()
        events = []
        for index, one in enumerate(new):
            events.append(await self._new_batch_event(index, one))
            await pace.work(EVENT_WORK + len(one.body))
        batch = Batch(events, request_id, pace)
        return await self._write_to_all(addresses, batch)

    async def _new_batch_event(self, index: int, new: NewEvent) -> Event:
        try:
            return await self._new_event(new)
        except MegaphoneError as error:
            raise type(error)(f"message {index}: {error}") from None

    async def _write_to_all(self, addresses: Sequence[str], batch: "Batch") -> list[BatchFailure]:
        """Write to all channels in slices; those that are full go on in tasks of their own."""
        untaken: dict[str, Untaken] = {}
        behind: set[str] = set()

        async def write_rest(address: str, first: int) -> None:
            if (rest := await self._write_rest(address, batch, first)) is not None:
                untaken[address] = rest

        async with many_tasks() as start:
            for segment in batch.slices(addresses):
                lines = [
                    line
                    for line in segment
                    if line.address not in behind and line.address not in untaken
                ]
                for line, result in await self._write_lines(lines, ()):
                    address = line.address
                    if isinstance(result, Stored) or address in behind or address in untaken:
                        continue
                    if isinstance(result, WouldBlock):
                        behind.add(address)
                        start(write_rest(address, line.number))
                    else:
                        untaken[address] = batch.untaken(line.number, result)
                        if isinstance(result, ChannelNotFound):
                            self._observer.events_unroutable(len(batch.events) - line.number)
                await asyncio.sleep(0)
        failures: list[BatchFailure] = []
        for address in addresses:
            if (rest := untaken.get(address)) is not None:
                await batch.add_failures(address, rest, failures)
        return failures

    async def _write_rest(self, address: str, batch: "Batch", first: int) -> "Untaken | None":
        """Write the events of a batch from `first` on to one channel, waiting for room.

        Returns: the events that were not taken.
        """
        for index in range(first, len(batch.events)):
            try:
                await self._write_waiting(address, batch.events[index], batch.key(index))
            except MegaphoneError as error:
                if isinstance(error, ChannelNotFound):  # the first is counted
                    self._observer.events_unroutable(len(batch.events) - index - 1)
                return batch.untaken(index, error)
            await batch.pace.work(EVENT_WORK)
        return None

    async def _new_event(self, new: NewEvent) -> Event:
        check_request_id(new)
        return event_of(new, await accepted_body(new.body, self._settings.max_body_bytes))

    # -- Reading

    def read(
        self, address: str, options: ReadOptions | None = None, *, within_s: float = math.inf
    ) -> Reader:
        """Return a reader, which is the one reader of its channel once it is entered.

        It reads for the poll duration, or for `within_s` if that is less.
        """
        options = options or ReadOptions()
        wait_s = math.inf if options.wait_s is None else options.wait_s

        async def opening(reader: Reader) -> Lease:
            self._refuse_if_shutting_down()
            await self._moves_finished((address,))
            consumer = self._consumer(address)
            lease = await self._store.open(consumer.channel_id, address, checked_options(options))
            self._readers.add(reader)
            return lease

        return Reader(
            opening,
            options,
            agent=agent_of(address),
            time_s=min(self._poll_duration_s, wait_s, within_s),
            observer=self._observer,
            on_exit=self._reader_left,
        )

    async def acknowledge(self, address: str, event_id: str) -> int:
        """Count an event and all before it on its channel as delivered.

        May be repeated, and needs no open read.

        Returns: how many were not yet; 0 also for an event that is not known, or not any more.
        Raises: BadRequest; ChannelNotFound.
        """
        await self._moves_finished((address,))
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return await self._store.acknowledge(consumer.channel_id, address, event_id)

    # -- Finding the right node

    async def owns(self, agent: str) -> bool:
        """Tell whether calls for the channels of an agent belong to this node.

        Waits while the agent is on its way to another one, so that the answer holds.
        """
        await self._agents.move_finished(agent)
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

    async def _moves_finished(self, addresses: Sequence[str]) -> None:
        """Wait while the agent of an address is being moved: then its calls have a node."""
        while self._agents.are_moving:
            moving = [one for one in map(agent_of, addresses) if self._agents.is_moving(one)]
            if not moving:
                return
            await self._agents.move_finished(moving[0])

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
            self._agents.served(name)
        except (AgentMoved, ChannelNotFound):
            SealedAddress.parse(address)  # what is no address at all is a bad request
            raise
        return self._agents.keys.of(name).open(sealed)


class Line(NamedTuple):
    """One of many events that are to be written."""

    number: int
    """Its place among them, or among those for its channel."""
    address: str
    event: Event
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are written to many channels."""

    events: Sequence[Event]
    request_id: str | None
    pace: Pace

    def slices(self, addresses: Sequence[str]) -> Iterator[list[Line]]:
        """Yield each event for each address, in lists that are written at once."""
        lines: list[Line] = []
        pace = Pace()
        for address in addresses:
            work = ADDRESS_WORK + EVENT_WORK
            for index, event in enumerate(self.events):
                lines.append(new_tuple(Line, (index, address, event, self.key(index))))
                if pace.is_used_up(work):
                    yield lines
                    lines = []
                work = EVENT_WORK
        yield lines

    def key(self, index: int) -> str | None:
        """Return the request id of one event: with a space, so that it is that of no other write.

        No client can send one.
        """
        return None if self.request_id is None else f"{self.request_id} {index}"

    def untaken(self, first: int, error: MegaphoneError) -> "Untaken":
        is_timeout = isinstance(error, WriteTimeout)
        return Untaken(first, error.code, SKIPPED if is_timeout else error.code)

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


def event_of(new: NewEvent, body: bytes) -> Event:
    """Raises: BadRequest, for a stream id that cannot be one."""
    return Event(
        id=new_event_id(),
        stream_id=checked_stream_id(new.stream_id),
        timestamp_us=time.time_ns() // 1000,
        body=body,
    )


def check_request_id(new: NewEvent) -> None:
    """Raises: BadRequest."""
    if new.request_id is not None:
        checked_id("request id", new.request_id)


def failure_of(error: MegaphoneError) -> WriteFailure:
    return WriteFailure(error.code, str(error))


def outcome_of(result: Stored | MegaphoneError) -> str | WriteFailure:
    return result.event_id if isinstance(result, Stored) else failure_of(result)


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
