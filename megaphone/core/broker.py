"""The use cases of clients, one method each.

Both faces call these methods, so a channel behaves the same in HTTP and gRPC. Arguments are
unchecked values from clients; these methods, or the code that they call, apply all rules.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    work_of,
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
from megaphone.core.reading import Reading
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
"""How many protocols a request may name."""
ADDRESSES_AT_ONCE = SLICE // ADDRESS_WORK
"""How many addresses `exists` looks up before other tasks get a turn."""
RUN_EVENTS = SLICE // EVENT_WORK
"""How many events of a batch are written to one channel before other tasks get a turn."""
MAX_WINDOW = 100_000
SHORTEST_HEARTBEAT_S = 0.1
SKIPPED_WRITE = WriteFailure(
    SKIPPED, "not tried: the channel was full for an earlier event of the request"
)
WOULD_BLOCK = WouldBlock()
PENDING = WouldBlock()
"""Stands for a result that the store has not returned yet."""
DRAIN_GRACE_S = 1.0
"""How long a read whose agent moves may take to send its last batch before it is aborted."""


class Broker:
    """The channels of one node, as clients use them.

    After `begin_shutdown`, each method that would create, write or read raises ShuttingDown.
    """

    def __init__(
        self, *, store: Store, agents: Agents, settings: Settings, observer: Observer
    ) -> None:
        self._store = store
        self._agents = agents
        self._settings = settings
        self._observer = observer
        self._max_body_bytes = settings.max_body_bytes
        self._poll_duration_s = settings.poll_duration_millis / 1000
        self.has_remote_store = store.is_remote
        """Whether the calls that do not wait always raise WouldBlock."""
        self._readers: set[Reader] = set()
        self._on_close = self._on_read_end
        """One object for all readers, to save memory."""
        self._read_ended = asyncio.Event()
        """Set whenever a read ends."""
        self._shutting_down = False

    # -- Channels

    async def create(self, protocols: Sequence[str] = ()) -> NewChannel:
        """Create a channel under one of the agents that take new channels.

        Raises: BadRequest, when `protocols` is not empty and none of them is supported;
            PayloadTooLarge, when there are more than `MAX_PROTOCOLS`; NoAgentAvailable;
            LimitExceeded; ShuttingDown.
        """
        channel_id, channel = self._new_channel(protocols)
        await self._store.create(channel_id, channel.consumer_address)
        self._observer.channel_created()
        return channel

    def create_nowait(self, protocols: Sequence[str] = ()) -> NewChannel:
        """Do the same as `create`, without waiting.

        Raises: WouldBlock, when the store would have to wait; nothing has changed then. Also the
            errors of `create`.
        """
        channel_id, channel = self._new_channel(protocols)
        self._store.create_nowait(channel_id, channel.consumer_address)
        self._observer.channel_created()
        return channel

    def _new_channel(self, protocols: Sequence[str]) -> tuple[bytes, NewChannel]:
        """Return the id and the addresses for a new channel, which is not in the store yet."""
        self._refuse_if_shutting_down()
        chosen = negotiate(protocols)
        agent = self._agents.pick_for_new_channel(loop_time())
        name = agent.name
        consumer = ConsumerAddress.mint(name)
        channel_id = consumer.channel_id
        producer_address = f"{name}.{self._agents.keys.of(name).seal(channel_id)}"
        return channel_id, NewChannel(name, producer_address, str(consumer), chosen)

    async def exists(self, addresses: Sequence[str]) -> dict[str, bool]:
        """Return for each producer or consumer address whether its channel exists.

        Raises: PayloadTooLarge, when there are more than `max_addresses` addresses.
        """
        self._check_number(addresses)
        alive: dict[str, bool] = {}
        for start in range(0, len(addresses), ADDRESSES_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = [one for one in addresses[start : start + ADDRESSES_AT_ONCE] if one not in alive]
            alive |= await self._are_alive(some)
        return alive

    def exists_nowait(self, addresses: Sequence[str]) -> dict[str, bool]:
        """Do the same as `exists`, without waiting.

        Raises: WouldBlock, when the call would have to wait, or would hold the event loop for long.
            Also the error of `exists`.
        """
        self._check_number(addresses)
        if self._agents.any_unsettled or len(addresses) > ADDRESSES_AT_ONCE:
            raise WouldBlock
        channel_ids = self._channels_of(addresses)
        living = self._store.exists_nowait(list(channel_ids.values()))
        return {address: channel_ids.get(address) in living for address in addresses}

    async def _are_alive(self, addresses: Sequence[str]) -> dict[str, bool]:
        await self._settled(addresses)
        channel_ids = self._channels_of(addresses)
        living = await self._store.exists(list(channel_ids.values()))
        return {address: channel_ids.get(address) in living for address in addresses}

    def _channels_of(self, addresses: Sequence[str]) -> dict[str, bytes]:
        """Return the channel ids of those addresses that are addresses of agents served here."""
        channel_ids: dict[str, bytes] = {}
        for address in addresses:
            with suppress(MegaphoneError):
                channel_ids[address] = self._channel_of(address)
        return channel_ids

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
        """Write one event. When the method returns, the channel has accepted the event.

        Waits for a free place, first come, first served, for at most the write timeout. If the call
        is cancelled, the channel either has accepted the event already, or never accepts it.

        Returns: the id of the event, or of an earlier event that was accepted with the same
            idempotency key less than 60 s ago.
        Raises: BadRequest; PermissionDenied, for a consumer address; ChannelNotFound;
            PayloadTooLarge; LimitExceeded; WriteTimeout; AgentMoved; ShuttingDown.
        """
        try:
            return self.write_nowait(address, new)
        except WouldBlock:
            event = await self._new_event(new)
            return await self._write_waiting(address, event, new.request_id)
        except ChannelNotFound:
            self._observer.events_unroutable(1)
            raise

    def write_nowait(self, address: str, new: NewEvent) -> str:
        """Do the same as `write`, without waiting.

        Raises: WouldBlock, when the call would have to wait for a free place, for the check of a
            large body, or for a cut-over; also the errors of `write`. In each case nothing has
            changed, and nothing was counted, so that the caller may call `write` instead.
        """
        return self._append_nowait(self._checked_write(address, new))

    def write_all_nowait(
        self, writes: Sequence[tuple[str, NewEvent]]
    ) -> list[str | MegaphoneError | WouldBlock]:
        """Do the same as `write_nowait` for each of some writes: first one step of all of them, and
        then the next, which takes less time. Errors are returned, not raised."""
        checked: list[Append | MegaphoneError | WouldBlock] = []
        for address, new in writes:
            try:
                checked.append(self._checked_write(address, new))
            except (MegaphoneError, WouldBlock) as error:
                checked.append(error)
        results: list[str | MegaphoneError | WouldBlock] = []
        for one in checked:
            try:
                results.append(self._append_nowait(one) if isinstance(one, Append) else one)
            except (MegaphoneError, WouldBlock) as error:
                results.append(error)
        return results

    def _checked_write(self, address: str, new: NewEvent) -> Append:
        if self._shutting_down:
            raise ShuttingDown
        if len(new.body) > CHECKED_AT_ONCE or self._agents.any_unsettled:
            raise WouldBlock
        event = self._small_event(new)
        return new_tuple(Append, (self._writable_channel(address), event, new.request_id))

    def _append_nowait(self, append: Append) -> str:
        stored = self._store.append_nowait(append)
        if stored.is_new:
            self._observer.events_written(1)
        return stored.event_id

    async def write_at_once(self, address: str, new: NewEvent) -> str:
        """Do the same as `write`, if the channel has a place now.

        Raises: WouldBlock, when the call would have to wait for a free place, or for the check of a
            large body; nothing has changed then. StoreUnavailable, after which the event may have
            been written if the error says so. Also the other errors of `write`; nothing has changed
            then, and nothing was counted.
        """
        self._refuse_if_shutting_down()
        if len(new.body) > CHECKED_AT_ONCE:
            raise WouldBlock
        event = self._small_event(new)
        await self._settled((address,))
        write = new_tuple(Append, (self._writable_channel(address), event, new.request_id))
        [result] = await self._append([write], wait=False)
        if isinstance(result, Stored):
            return result.event_id
        raise result

    async def _write_waiting(self, address: str, event: Event, request_id: str | None) -> str:
        """Write an event. Waits for a free place, and for the end of a cut-over."""
        await self._settled((address,))
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
        """Append events, and count the new ones.

        The store may return results although the task was cancelled, because the events were
        accepted just before. The method then counts them before it raises CancelledError.
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
        """Write each event to the channel of its address, with the same rules as `write`.

        Writes to different channels run concurrently; the events of one channel keep their order.
        After the first timeout on a channel its later events are skipped, so that a full channel
        costs one write timeout, not one for each event.

        Returns: for each event its id, or the reason for which it was not accepted.
        Raises: PayloadTooLarge, when there are more than `max_batch_events` events. None of them is
            written then.
        """
        count, allowed = len(writes), self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the message publishes {count} events; at most {allowed} are allowed"
                " (max_batch_events)"
            )
        results: list[str | WriteFailure] = [SKIPPED_WRITE] * count
        behind: dict[str, deque[Line]] = {}
        """The events that still have to be written to full channels, in order, by address."""

        async def write_in_order(address: str) -> None:
            queue = behind[address]
            while queue:
                index, _, event, request_id = queue.popleft()
                try:
                    results[index] = await self._write_waiting(address, event, request_id)
                except MegaphoneError as error:
                    results[index] = failure_of(error)
                    if isinstance(error, WriteTimeout):
                        return  # the rest of the queue is skipped
            del behind[address]

        async with many_tasks() as start:
            begun = 0
            while begun < count:
                if begun:
                    await asyncio.sleep(0)
                lines, begun = await self._lines(writes, begun, results)
                lines = self._accept_lines(lines, behind, results)
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
        self,
        writes: Sequence[tuple[str, NewEvent]],
        first: int,
        results: list[str | WriteFailure],
    ) -> tuple[list["Line"], int]:
        """Check the events of one slice, from the index `first` on.

        Returns: the valid ones, and the index of the next slice. The errors of the others go into
        `results`.
        """
        lines: list[Line] = []
        pace = Pace()
        known = ""
        for index, (address, new) in enumerate(writes[first:], first):
            try:
                if self._shutting_down:
                    raise ShuttingDown
                is_small = len(new.body) <= CHECKED_AT_ONCE
                event = self._small_event(new) if is_small else await self._new_event(new)
                lines.append(new_tuple(Line, (index, address, event, new.request_id)))
            except MegaphoneError as error:
                results[index] = failure_of(error)
            work = EVENT_WORK + work_of(new.body)
            if pace.is_used_up(work if address == known else work + ADDRESS_WORK):
                return lines, index + 1
            known = address
        return lines, len(writes)

    def _accept_lines(
        self, lines: list["Line"], behind: Container[str], results: list[str | WriteFailure]
    ) -> list["Line"]:
        """Write the events that have a place at once, and put their ids into `results`.

        Returns: the other lines, in the same order.
        """
        by_address: dict[str, list[Line]] = {}
        for line in lines:
            by_address.setdefault(line.address, []).append(line)
        left: list[Line] = []
        for address, some in by_address.items():
            accepted = 0
            if address not in behind and not any(line.request_id for line in some):
                accepted = self._accept_run(address, [line.event for line in some])
                for line in some[:accepted]:
                    results[line.number] = line.event.id
            left += some[accepted:]
        return left

    def _accept_run(self, address: str, events: Sequence[Event]) -> int:
        """Write the first of some events to a channel, as many as have a place at once.

        Returns: how many. It may be 0 for any reason: `_write_lines` finds out which.
        """
        if self._agents.any_unsettled:
            return 0
        try:
            accepted = self._store.append_run_nowait(self._writable_channel(address), events)
        except (MegaphoneError, WouldBlock):
            return 0
        if accepted:
            self._observer.events_written(accepted)
        return accepted

    async def _write_lines(
        self, lines: Sequence["Line"], behind: Container[str]
    ) -> Iterable[tuple["Line", AppendResult]]:
        """Write events without waiting. The result is WouldBlock for an address in `behind`,
        because earlier events of its channel still wait."""
        await self._settled([line.address for line in lines])
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
                results.append(PENDING)
                writes.append(new_tuple(Append, (channel, line.event, line.request_id)))
        tried = iter(await self._append(writes, wait=False))
        results = [next(tried) if result is PENDING else result for result in results]
        return zip(lines, results, strict=True)

    def _writable_channel_or_error(self, address: str) -> bytes | MegaphoneError:
        try:
            return self._writable_channel(address)
        except MegaphoneError as error:
            return error

    async def write_batch(
        self, addresses: Sequence[str], new: Sequence[NewEvent], request_id: str | None = None
    ) -> list[BatchFailure]:
        """Write the same events to many channels. An address that is repeated counts once.

        Writes to different channels run concurrently; the events of one channel keep their order.
        An event has the same id in all channels. After the first timeout on a channel its later
        events are skipped.

        Returns: the events that were not accepted, in the order of the addresses.
        Raises: BadRequest, PayloadTooLarge, ShuttingDown. Nothing is written then.
        """
        addresses = self._checked_addresses(addresses, len(new))
        if request_id is not None:
            checked_id("request id", request_id)
        pace = Pace()
        events: list[Event] = []
        for index, one in enumerate(new):
            try:
                is_small = len(one.body) <= CHECKED_AT_ONCE
                events.append(self._small_event(one) if is_small else await self._new_event(one))
            except MegaphoneError as error:
                raise type(error)(f"message {index}: {error}") from None
            if pace.is_used_up(EVENT_WORK + work_of(one.body)):
                await asyncio.sleep(0)
        return await self._write_to_all(addresses, Batch(events, request_id, pace), {})

    def begin_batch(
        self, addresses: Sequence[str], new: Sequence[NewEvent]
    ) -> list[BatchFailure] | Coroutine[Any, Any, list[BatchFailure]]:
        """Do the same as `write_batch`, without waiting.

        Returns: what `write_batch` returns; or, if some of the events must wait for places, a
            coroutine that writes those and then returns it.
        Raises: WouldBlock, when the call would have to wait for a cut-over, or would hold the event
            loop for long; nothing has changed then. Also the errors of `write_batch`, without the
            number of the message.
        """
        addresses = self._checked_addresses(addresses, len(new))
        work_of_each = ADDRESS_WORK + EVENT_WORK * len(new)
        if self._agents.any_unsettled or len(addresses) * work_of_each > SLICE:
            raise WouldBlock
        members = list(new)
        if sum([EVENT_WORK + work_of(one.body) for one in members]) > SLICE:
            raise WouldBlock
        events = [self._small_event(one) for one in members]
        accepted = {address: self._accept_run(address, events) for address in addresses}
        if all(count == len(events) for count in accepted.values()):
            return []
        return self._write_to_all(addresses, Batch(events, None, Pace()), accepted)

    def _checked_addresses(self, addresses: Sequence[str], messages: int) -> list[str]:
        """Return the different ones of the addresses for a batch with so many messages.

        Raises: BadRequest, PayloadTooLarge, ShuttingDown.
        """
        self._refuse_if_shutting_down()
        self._check_number(addresses)
        addresses = list(dict.fromkeys(addresses))
        count, allowed = len(addresses) * messages, self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the batch writes {count} events ({len(addresses)} channels with "
                f"{messages} messages each); at most {allowed} are allowed"
            )
        refuse_long(addresses)
        return addresses

    async def _write_to_all(
        self, addresses: Sequence[str], batch: "Batch", already: Mapping[str, int]
    ) -> list[BatchFailure]:
        """Write to all channels in slices. Each full channel gets a task that waits for places.

        `already` says for some addresses how many events of the batch their channels have. Such a
        batch must fit into one run.
        """
        refused: dict[str, Refused] = {}
        behind: set[str] = set()
        request_id = batch.request_id

        async def write_rest(address: str, first: int) -> None:
            if (rest := await self._write_rest(address, batch, first)) is not None:
                refused[address] = rest

        async with many_tasks() as start:
            for runs in batch.slices(addresses):
                lines: list[Line] = []
                for run in runs:
                    if run.address not in behind and run.address not in refused:
                        accepted = already.get(run.address, 0)
                        if request_id is None and not already:
                            accepted = self._accept_run(run.address, run.events)
                        if accepted < len(run.events):
                            lines += batch.lines(run, accepted)
                for line, result in await self._write_lines(lines, ()) if lines else ():
                    address = line.address
                    if isinstance(result, Stored) or address in behind or address in refused:
                        continue
                    if isinstance(result, WouldBlock):
                        behind.add(address)
                        start(write_rest(address, line.number))
                    else:
                        refused[address] = batch.refused(line.number, result)
                        if isinstance(result, ChannelNotFound):
                            self._observer.events_unroutable(len(batch.events) - line.number)
                await asyncio.sleep(0)
        failures: list[BatchFailure] = []
        for address in addresses:
            if (rest := refused.get(address)) is not None:
                await batch.add_failures(address, rest, failures)
        return failures

    async def _write_rest(self, address: str, batch: "Batch", first: int) -> "Refused | None":
        """Write the events of a batch from index `first` on to one channel. Waits for free places.

        Returns: the events that were not accepted; None if all were.
        """
        for index in range(first, len(batch.events)):
            try:
                await self._write_waiting(address, batch.events[index], batch.key(index))
            except MegaphoneError as error:
                if isinstance(error, ChannelNotFound):  # `_write_waiting` has counted one event
                    self._observer.events_unroutable(len(batch.events) - index - 1)
                return batch.refused(index, error)
            await batch.pace.work(EVENT_WORK)
        return None

    def _small_event(self, new: NewEvent) -> Event:
        """Make an event whose body has at most `CHECKED_AT_ONCE` bytes."""
        check_request_id(new)
        return event_of(new, checked_body(new.body, self._max_body_bytes))

    async def _new_event(self, new: NewEvent) -> Event:
        check_request_id(new)
        return event_of(new, await accepted_body(new.body, self._max_body_bytes))

    # -- Reading

    def read(
        self, address: str, options: ReadOptions | None = None, *, within_s: float = math.inf
    ) -> Reading:
        """Return a read for a face that waits. It takes the lease when its context is entered."""
        return Reading(lambda: self.open_read(address, options or ReadOptions(), within_s=within_s))

    async def open_read(
        self, address: str, options: ReadOptions, *, within_s: float = math.inf
    ) -> Reader:
        """Take the lease of a channel. The caller must close the reader.

        The read time is the poll duration, or `options.wait_s` or `within_s` if one is less.

        Raises: BadRequest; ChannelNotFound; ReaderBusy; AgentMoved; ShuttingDown.
        """
        self._refuse_if_shutting_down()
        await self._settled((address,))
        consumer = self._consumer(address)
        lease = await self._store.open(consumer.channel_id, address, checked_options(options))
        return self._reader(lease, address, options, within_s)

    def open_read_nowait(self, address: str, options: ReadOptions) -> Reader:
        """Do the same as `open_read`, without waiting.

        Raises: WouldBlock, when the call would have to wait; nothing has changed then. Also the
            errors of `open_read`.
        """
        self._refuse_if_shutting_down()
        if self._agents.any_unsettled:
            raise WouldBlock
        consumer = self._consumer(address)
        lease = self._store.open_nowait(consumer.channel_id, address, checked_options(options))
        return self._reader(lease, address, options)

    def _reader(
        self, lease: Lease, address: str, options: ReadOptions, within_s: float = math.inf
    ) -> Reader:
        wait_s = math.inf if options.wait_s is None else options.wait_s
        reader = Reader(
            lease,
            options,
            agent=agent_of(address),
            time_s=min(self._poll_duration_s, wait_s, within_s),
            observer=self._observer,
            on_close=self._on_close,
        )
        self._readers.add(reader)
        return reader

    async def acknowledge(self, address: str, event_id: str) -> int:
        """Deliver an event of a channel and all events before it.

        The call may be repeated, and needs no open read.

        Returns: how many events were not delivered before; 0 if the log does not have the event.
        Raises: BadRequest; ChannelNotFound; AgentMoved.
        """
        await self._settled((address,))
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return await self._store.acknowledge(consumer.channel_id, address, event_id)

    def acknowledge_nowait(self, address: str, event_id: str) -> int:
        """Do the same as `acknowledge`, without waiting.

        Raises: WouldBlock, when the call would have to wait; nothing has changed then. Also the
            errors of `acknowledge`.
        """
        if self._agents.any_unsettled:
            raise WouldBlock
        consumer = self._consumer(address)
        checked_id("event id", event_id)
        return self._store.acknowledge_nowait(consumer.channel_id, address, event_id)

    # -- Finding the right node

    async def owns(self, agent: str) -> bool:
        """Return whether this node serves calls for an agent.

        Waits for the end of a cut-over of the agent, because the answer may change until then.
        """
        await self._agents.settled(agent)
        known = self._agents.get(agent)
        return known is not None and known.is_owned

    def check_serves(self) -> None:
        """Raises: ShuttingDown; StoreUnavailable, when the store has not been there for several
        seconds."""
        self._refuse_if_shutting_down()
        self._store.check_serves()

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
            reader.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_GRACE_S):
                while readers & self._readers:
                    self._read_ended.clear()
                    await self._read_ended.wait()
        for reader in readers & self._readers:
            reader.abort()

    def _on_read_end(self, reader: Reader) -> None:
        self._readers.discard(reader)
        self._read_ended.set()

    @property
    def is_shutting_down(self) -> bool:
        return self._shutting_down

    async def begin_shutdown(self) -> None:
        """Refuse new calls and waiting writers from now on, and end all open reads cleanly."""
        self._shutting_down = True
        await self._store.quiesce()
        for reader in self._readers:
            reader.end()

    def _refuse_if_shutting_down(self) -> None:
        if self._shutting_down:
            raise ShuttingDown

    # -- Addresses

    async def _settled(self, addresses: Sequence[str]) -> None:
        """Wait for the cut-overs of the agents of these addresses, because their end decides which
        node serves the calls."""
        while self._agents.any_unsettled:
            moving = [one for one in map(agent_of, addresses) if self._agents.is_unsettled(one)]
            if not moving:
                return
            await self._agents.settled(moving[0])

    def _consumer(self, address: str) -> ConsumerAddress:
        consumer = ConsumerAddress.parse(address)
        self._agents.served(consumer.agent)
        return consumer

    def _writable_channel(self, address: str) -> bytes:
        if address.count(".") == 1:  # a producer address has one dot, a consumer address has two
            return self._open_producer_address(address)
        if is_consumer_shaped(address) and not self._settings.legacy_channel_id_writes:
            raise PermissionDenied(CANNOT_WRITE)
        return self._consumer(address).channel_id

    def _open_producer_address(self, address: str) -> bytes:
        name, _, sealed = address.partition(".")
        try:
            self._agents.served(name)
        except (AgentMoved, ChannelNotFound):
            SealedAddress.parse(address)  # because a text that is not an address is a bad request
            raise
        return self._agents.keys.of(name).open(sealed)


class Line(NamedTuple):
    """One of many events that a call writes."""

    number: int
    """The index of the event in the call, or in the batch that goes to each channel."""
    address: str
    event: Event
    request_id: str | None


class Run(NamedTuple):
    """Some events of a batch for one channel."""

    address: str
    first: int
    """The index of the first of them in the batch."""
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are written to many channels."""

    events: Sequence[Event]
    request_id: str | None
    pace: Pace

    def slices(self, addresses: Sequence[str]) -> Iterator[list["Run"]]:
        """Yield all events for each address, in lists of runs. Each list is one slice of work."""
        starts = range(0, len(self.events), RUN_EVENTS)
        parts = [(first, self.events[first : first + RUN_EVENTS]) for first in starts]
        runs: list[Run] = []
        pace = Pace()
        for address in addresses:
            for first, events in parts:
                runs.append(new_tuple(Run, (address, first, events)))
                if pace.is_used_up(ADDRESS_WORK + EVENT_WORK * len(events)):
                    yield runs
                    runs = []
        yield runs

    def lines(self, run: "Run", accepted: int) -> list[Line]:
        """Return the events of a run without the first ones, which were accepted, one by one."""
        return [
            Line(run.first + number, run.address, event, self.key(run.first + number))
            for number, event in enumerate(run.events[accepted:], accepted)
        ]

    def key(self, index: int) -> str | None:
        """Return the idempotency key of one event of the batch: the request id and the index.

        The space between them makes it different from the keys of all other writes, because a
        client cannot send a space in a request id.
        """
        return None if self.request_id is None else f"{self.request_id} {index}"

    def refused(self, first: int, error: MegaphoneError) -> "Refused":
        """Return that a channel refused the event at index `first`, so that all later ones count as
        refused too."""
        is_timeout = isinstance(error, WriteTimeout)
        return Refused(first, error.code, SKIPPED if is_timeout else error.code)

    async def add_failures(
        self, address: str, refused: "Refused", failures: list[BatchFailure]
    ) -> None:
        """Add one failure for each event that a channel refused to `failures`, in slices."""
        reason = refused.reason
        for index in range(refused.first, len(self.events)):
            failures.append(BatchFailure(address, index, reason))
            reason = refused.reason_of_rest
            await self.pace.work(ANSWER_WORK)


@dataclass(frozen=True, slots=True)
class Refused:
    """The events of a batch that one channel did not accept: one event and all after it."""

    first: int
    """The index of the first of these events."""
    reason: str
    reason_of_rest: str


def event_of(new: NewEvent, body: bytes) -> Event:
    """Make an event with an id and a timestamp. Raises: BadRequest, for an invalid stream id."""
    return Event(new_event_id(), checked_stream_id(new.stream_id), time.time_ns() // 1000, body)


def check_request_id(new: NewEvent) -> None:
    """Raises: BadRequest."""
    if new.request_id is not None:
        checked_id("request id", new.request_id)


def failure_of(error: MegaphoneError) -> WriteFailure:
    return WriteFailure(error.code, str(error))


def outcome_of(result: Stored | MegaphoneError) -> str | WriteFailure:
    return result.event_id if isinstance(result, Stored) else failure_of(result)


def refuse_long(addresses: Sequence[str]) -> None:
    """Raises: BadRequest, for an address that is too long, because the response would repeat it for
    each event."""
    for index, address in enumerate(addresses):
        if len(address) > MAX_ADDRESS_LENGTH:
            raise BadRequest(
                f"address {index} has {len(address)} characters; no address has more than"
                f" {MAX_ADDRESS_LENGTH}"
            )


def loop_time() -> float:
    return asyncio.get_running_loop().time()


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
    if not 1 <= options.in_flight <= MAX_WINDOW:
        raise BadRequest(f"the window must be 1 to {MAX_WINDOW} events, not {options.in_flight}")
    if options.limit is not None and options.limit < 1:
        raise BadRequest("the limit must be at least 1 event")
    if options.heartbeat_s is not None and options.heartbeat_s < SHORTEST_HEARTBEAT_S:
        shortest_ms = round(SHORTEST_HEARTBEAT_S * 1000)
        raise BadRequest(f"the heartbeat must be at least {shortest_ms} ms")
    return options
