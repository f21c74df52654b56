"""The use cases of writers, one method each. `core.broker` has the others."""

import asyncio
import time
from collections import deque
from collections.abc import (
    Callable,
    Container,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from functools import partial
from typing import Any, Never

from megaphone.core.access import ANYONE, Action, Caller
from megaphone.core.addresses import (
    CANNOT_WRITE,
    ConsumerAddress,
    SealedAddress,
    is_consumer_shaped,
)
from megaphone.core.agents import Agents
from megaphone.core.batches import (
    Batch,
    Line,
    Refused,
    Slice,
    failure_of,
    outcome_of,
    refuse_long,
)
from megaphone.core.blocked import BlockedChannels
from megaphone.core.content import (
    CHECKED_AT_ONCE,
    accepted_body,
    are_simple,
    checked_bodies,
    checked_body,
    checked_id,
    checked_stream_id,
    new_event_id,
    new_event_ids,
    work_of,
    work_of_all,
)
from megaphone.core.log import new_tuple
from megaphone.core.pace import ADDRESS_WORK, EVENT_WORK, SLICE, Pace, loop_time
from megaphone.core.ports import Append, AppendResult, Observer, Store, Stored, WouldBlock
from megaphone.core.tasks import Start, with_tasks
from megaphone.core.tenants import Tenant
from megaphone.core.waits import current as current_waits
from megaphone.errors import (
    AgentMoved,
    BadRequest,
    ChannelNotFound,
    LimitExceeded,
    MegaphoneError,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    ShuttingDown,
    StoreUnavailable,
    Unavailable,
    WriteTimeout,
)
from megaphone.model import SKIPPED, BatchWritten, Event, NewEvent, WriteFailure, agent_of
from megaphone.settings import Settings

SKIPPED_WRITE = WriteFailure(
    SKIPPED, "not tried: the channel could not take an earlier event of the request"
)
MAY_HEAL = (LimitExceeded, RateLimited, WriteTimeout, Unavailable)
"""The errors after which a client sends the same event again."""
WOULD_BLOCK = WouldBlock()
PENDING = WouldBlock()
"""Stands for a result that the store has not returned yet."""

SLICES_UNDER_WAY = 3
"""How many slices of a batch a store has at a time: enough for it to go on while this node makes
the next one, and few enough for other calls to come between."""


class Write:
    """A write of an event that a caller asks for."""

    # No dataclass, because there is one for each write, and a frozen one takes long to make.
    __slots__ = ("address", "caller", "event")

    def __init__(self, caller: Caller, address: str, event: NewEvent) -> None:
        self.caller = caller
        self.address = address
        self.event = event


class Writing:
    """Writes events to the channels of one node, and finds the channels of addresses."""

    def __init__(
        self, *, store: Store, agents: Agents, settings: Settings, observer: Observer
    ) -> None:
        self._store = store
        self._agents = agents
        self._settings = settings
        self._observer = observer
        self._max_body_bytes = settings.max_body_bytes
        self._clock = asyncio.get_running_loop().time
        self._shutting_down = False
        self.blocked = BlockedChannels()

    # -- Writing

    async def write(self, caller: Caller, address: str, new: NewEvent) -> str:
        """Write one event. When the method returns, the channel has accepted the event.

        Waits for a free place, first come, first served, for at most the write timeout. If the call
        is cancelled, the channel either has accepted the event already, or never accepts it.

        Returns: the id of the event, or of an earlier event that was accepted with the same
            idempotency key less than 60 s ago.
        Raises: BadRequest; the errors of `Caller.check`; PermissionDenied, for a consumer address;
            ChannelNotFound; PayloadTooLarge; RateLimited; LimitExceeded; WriteTimeout; AgentMoved;
            ShuttingDown.
        """
        try:
            return self.write_nowait(caller, address, new)
        except WouldBlock:
            pass  # and wait below: a compiled handler must not (see `megaphone.core.tasks`)
        except ChannelNotFound:
            self._observer.events_unroutable(1)
            raise
        tenant = checked(caller, Action.WRITE, new.stream_id)
        event = await self._new_event(new)
        take_writes(caller, 1, len(new.body))
        try:
            return await self._write_waiting(address, event, new.request_id, tenant)
        except Exception as error:
            if not may_be_written(error):
                give_back_writes(caller, 1, len(new.body))
            raise

    def write_nowait(self, caller: Caller, address: str, new: NewEvent) -> str:
        """Do the same as `write`, without waiting.

        Raises: WouldBlock, when the call would have to wait for a free place, for the check of a
            large body, or for a cut-over; also the errors of `write`. In each case nothing has
            changed, and nothing was counted, so that the caller may call `write` instead.
        """
        checked = self._checked_write(caller, address, new)
        event_id, is_new = self._append_nowait(caller, new, checked)
        if is_new:
            self._observer.events_written(1)
        return event_id

    def write_all_nowait(self, writes: list[Write]) -> list[str | MegaphoneError | WouldBlock]:
        """Do the same as `write_nowait` for each of some writes: first one step of all of them, and
        then the next, which takes less time. Errors are returned, not raised."""
        events = self._simple_events([one.event for one in writes])
        checked: list[Append | MegaphoneError | WouldBlock] = []
        # By numbers, because mypyc makes a tuple for each element of `zip` with `strict`.
        for number, write in enumerate(writes):
            try:
                checked.append(
                    self._checked_write(write.caller, write.address, write.event, events[number])
                )
            except (MegaphoneError, WouldBlock) as error:
                checked.append(error.with_traceback(None))
        results: list[str | MegaphoneError | WouldBlock] = []
        new_ones = 0
        try:
            for number, write in enumerate(writes):
                append = checked[number]
                if not isinstance(append, Append):
                    results.append(append)
                    continue
                try:
                    event_id, is_new = self._append_nowait(write.caller, write.event, append)
                except (MegaphoneError, WouldBlock) as error:
                    results.append(error.with_traceback(None))
                else:
                    results.append(event_id)
                    new_ones += is_new
        finally:  # also if a bug ends the turn
            self._observer.events_written(new_ones)
        return results

    def _simple_events(self, new: list[NewEvent]) -> Sequence[Event | None]:
        """Make some events together, which takes less time. Returns only None if one of them is not
        simple: then each must be checked alone."""
        bodies = [one.body for one in new]
        with suppress(BadRequest):
            if len(bodies) > 1 and are_simple(bodies, self._max_body_bytes):
                return events_of(new, bodies)
        return [None] * len(bodies)

    def _checked_write(
        self, caller: Caller, address: str, new: NewEvent, event: Event | None = None
    ) -> Append:
        """Check a write, and count it against the share of the caller's tenant. If it is not made,
        `give_back_writes` must be called."""
        if self._shutting_down:
            self._refuse_when_stopping([address])
        if caller is ANYONE:
            return self._new_append(address, new, event, None)
        now, size = self._clock(), len(new.body)
        tenant = caller.check(Action.WRITE, now, new.stream_id)
        caller.tenant.take_writes(1, size, now)
        try:
            return self._new_append(address, new, event, tenant)
        except Exception:
            caller.tenant.give_back_writes(1, size)
            raise

    def _new_append(
        self, address: str, new: NewEvent, event: Event | None, tenant: Tenant | None
    ) -> Append:
        if len(new.body) > CHECKED_AT_ONCE:
            raise WouldBlock
        agents = self._agents
        if agents.any_unsettled and agents.is_unsettled(agent_of(address)):
            raise WouldBlock
        if event is None:
            event = self._small_event(new)
        else:
            check_request_id(new)
        return new_tuple(Append, (self._writable_channel(address), event, new.request_id, tenant))

    def _append_nowait(self, caller: Caller, new: NewEvent, append: Append) -> Stored:
        try:
            return self._store.append_nowait(append)
        except Exception:
            give_back_writes(caller, 1, len(new.body))
            raise

    def begin_write(
        self,
        caller: Caller,
        address: str,
        new: NewEvent,
        on_result: Callable[[str | Exception], None],
    ) -> None:
        """Begin to do the same as `write`, if the channel has a place then, and return at once.

        `on_result` is called in a later turn of the event loop, with the id of the event or with an
        error: WouldBlock, when there is no place; StoreUnavailable, after which the event may have
        been written if the error says so; another error of `write`; or the exception with which the
        store has failed. But for these two nothing has changed then, and nothing was counted.

        Raises: as `write_nowait`. Then `on_result` is not called.
        """
        self._store.begin_append(
            self._checked_write(caller, address, new),
            partial(self._conclude, caller, len(new.body), on_result),
        )

    def _conclude(
        self,
        caller: Caller,
        size: int,
        on_result: Callable[[str | Exception], None],
        result: AppendResult | Exception,
    ) -> None:
        """Count an event that was accepted, and say so."""
        if not isinstance(result, Stored):
            if not may_be_written(result):
                give_back_writes(caller, 1, size)
            on_result(result)
            return
        if result.is_new:
            self._observer.events_written(1)
        on_result(result.event_id)

    async def _write_waiting(
        self, address: str, event: Event, request_id: str | None, tenant: Tenant | None
    ) -> str:
        """Write an event. Waits for a free place, and for the end of a cut-over."""
        await self._settled((address,))
        try:
            write = Append(self._writable_channel(address), event, request_id, tenant)
            [result] = await self._append([write], wait=False)
            if isinstance(result, WouldBlock):
                result = await self._append_waiting(write, agent_of(address))
        except ChannelNotFound as error:
            result = error
        if isinstance(result, Stored):
            return result.event_id
        if isinstance(result, ChannelNotFound):
            self._observer.events_unroutable(1)
        elif isinstance(result, WriteTimeout):
            self._observer.writer_timed_out()
        try:
            raise result
        finally:
            del result  # or the error and this frame, with the event, would refer to each other

    async def _append_waiting(self, write: Append, agent: str) -> AppendResult:
        """Append an event to a channel that was full, and measure the wait."""
        channel_id, waits, began_at = write.channel_id, current_waits(), self._clock()
        self._observer.writer_waits(channel_id)
        number = self.blocked.begin(channel_id, agent, began_at)
        if waits is not None:
            waits.begin(began_at)
        try:
            [result] = await self._append([write], wait=True)
            return result
        finally:
            now = self._clock()
            self.blocked.end(channel_id, number)
            self._observer.writer_waited(channel_id, now - began_at)
            if waits is not None:
                waits.end(now)

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

    async def write_each(
        self, caller: Caller, writes: Sequence[tuple[str, NewEvent]]
    ) -> list[str | WriteFailure]:
        """Write each event to the channel of its address, with the same rules as `write`.

        Writes to different channels run concurrently; the events of one channel keep their order.
        After the first error of a channel that may heal its later events are skipped: they would
        overtake the one that the writer sends again, and a full channel would cost a write timeout
        for each.

        Returns: for each event its id, or the reason for which it was not accepted.
        Raises: TokenExpired, Unauthenticated or PermissionDenied, when the caller may not write at
            all; PayloadTooLarge, when there are more than `max_batch_events` events. None of them
            is written then.
        """
        tenant = checked(caller, Action.WRITE)
        count, allowed = len(writes), self._settings.max_batch_events
        if count > allowed:
            raise PayloadTooLarge(
                f"the message publishes {count} events; at most {allowed} are allowed"
                " (max_batch_events)"
            )
        try:
            take_writes(caller, count, size_of(caller, (new for _, new in writes)))
        except RateLimited as error:
            self._observer.refused(error)
            return [failure_of(error)] * count
        results: list[str | WriteFailure] = [SKIPPED_WRITE] * count
        unclear: set[int] = set()
        """The indices of events that may have been written although they failed."""
        # A method, because a compiled function that stands in another would keep the events.
        await with_tasks(
            partial(self._write_lines_in_tasks, caller, writes, tenant, results, unclear)
        )
        if caller is not ANYONE:
            refused = [
                new
                for index, (_, new) in enumerate(writes)
                if isinstance(results[index], WriteFailure) and index not in unclear
            ]
            give_back_writes(caller, len(refused), size_of(caller, refused))
        return results

    async def _write_lines_in_tasks(
        self,
        caller: Caller,
        writes: Sequence[tuple[str, NewEvent]],
        tenant: Tenant | None,
        results: list[str | WriteFailure],
        unclear: set[int],
        start: Start,
    ) -> None:
        """Write the events of `write_each`. Each full channel gets a task that waits for places.
        What becomes of them goes into `results` and `unclear`."""
        count = len(writes)
        behind: dict[str, deque[Line]] = {}
        """By address: the events that still have to be written to a full channel, in order; or,
        behind an event that must be sent again, those that never will be."""

        async def write_in_order(address: str) -> None:
            queue = behind[address]
            while queue:
                index, _, event, request_id = queue.popleft()
                try:
                    results[index] = await self._write_waiting(address, event, request_id, tenant)
                except MegaphoneError as error:
                    results[index] = failure_of(error)
                    if may_be_written(error):
                        unclear.add(index)
                    if isinstance(error, MAY_HEAL):
                        return  # the rest of the queue, and all that comes to it, is skipped
            del behind[address]

        begun = 0
        while begun < count:
            if begun:
                await asyncio.sleep(0)
            lines, begun = await self._lines(caller, writes, begun, results)
            lines = self._accept_lines(lines, tenant, behind, results)
            for line, result in await self._write_lines(lines, tenant, behind):
                if (queue := behind.get(line.address)) is not None:
                    queue.append(line)
                elif isinstance(result, WouldBlock):
                    behind[line.address] = deque([line])
                    start(write_in_order(line.address))
                else:
                    results[line.number] = outcome_of(result)
                    if may_be_written(result):
                        unclear.add(line.number)
                    if isinstance(result, ChannelNotFound):
                        self._observer.events_unroutable(1)
                    elif isinstance(result, MAY_HEAL):
                        self._observer.refused(result)
                        behind[line.address] = deque()

    async def _lines(
        self,
        caller: Caller,
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
                    self._refuse_when_stopping([address])
                if caller is not ANYONE:
                    caller.check(Action.WRITE, loop_time(), new.stream_id)
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
        self,
        lines: list["Line"],
        tenant: Tenant | None,
        behind: Container[str],
        results: list[str | WriteFailure],
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
                accepted = self._accept_run(address, [line.event for line in some], tenant)
                for line in some[:accepted]:
                    results[line.number] = line.event.id
            left += some[accepted:]
        return left

    def _accept_run(self, address: str, events: list[Event], tenant: Tenant | None) -> int:
        """Write the first of some events to a channel, as many as have a place at once.

        Returns: how many. It may be 0 for any reason: `_write_lines` finds out which.
        """
        if self._agents.any_unsettled:
            return 0
        try:
            accepted = self._store.append_run_nowait(
                self._writable_channel(address), events, tenant
            )
        except (MegaphoneError, WouldBlock):
            return 0
        if accepted:
            self._observer.events_written(accepted)
        return accepted

    async def _write_lines(
        self, lines: Sequence["Line"], tenant: Tenant | None, behind: Container[str]
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
                writes.append(new_tuple(Append, (channel, line.event, line.request_id, tenant)))
        tried = iter(await self._append(writes, wait=False))
        results = [next(tried) if result is PENDING else result for result in results]
        return zip(lines, results, strict=True)

    def _writable_channel_or_error(self, address: str) -> bytes | MegaphoneError:
        try:
            return self._writable_channel(address)
        except MegaphoneError as error:
            return error.with_traceback(None)

    async def write_batch(
        self,
        caller: Caller,
        addresses: Sequence[str],
        new: Sequence[NewEvent],
        request_id: str | None = None,
    ) -> BatchWritten:
        """Write the same events to many channels. An address that is repeated counts once.

        Writes to different channels run concurrently; the events of one channel keep their order.
        An event has the same id in all channels, unless a repeated batch writes it to a channel
        that did not accept it before. After the first timeout on a channel its later events are
        skipped.

        Raises: the errors of `Caller.check`, BadRequest, PayloadTooLarge, ShuttingDown, or still
            AgentMoved if one agent has all the channels. Nothing is written then.
        """
        tenant = checked_streams(caller, Action.WRITE, {one.stream_id for one in new})
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
        take_writes(caller, *cost_of_batch(caller, addresses, new))
        batch = Batch(events, request_id, tenant, pace)
        return await self._write_to_all(caller, addresses, batch, {})

    def begin_batch(
        self, caller: Caller, addresses: Sequence[str], new: Sequence[NewEvent]
    ) -> BatchWritten | Coroutine[Any, Any, BatchWritten]:
        """Do the same as `write_batch`, without waiting.

        Returns: what `write_batch` returns; or, if some of the events must wait for places, a
            coroutine that writes those and then returns it.
        Raises: WouldBlock, when the call would have to wait for a cut-over, or would hold the event
            loop for long; nothing has changed then. Also the errors of `write_batch`, without the
            number of the message.
        """
        tenant = checked_streams(caller, Action.WRITE, {one.stream_id for one in new})
        addresses = self._checked_addresses(addresses, len(new))
        work_of_each = ADDRESS_WORK + EVENT_WORK * len(new)
        if self._agents.any_unsettled or len(addresses) * work_of_each > SLICE:
            raise WouldBlock
        members = list(new)
        bodies = [one.body for one in members]
        if EVENT_WORK * len(bodies) + work_of_all(bodies) > SLICE:
            raise WouldBlock
        events = events_of(members, checked_bodies(bodies, self._max_body_bytes))
        take_writes(caller, *cost_of_batch(caller, addresses, members))
        begun: dict[str, int] = {}
        if not self._store.is_remote:
            begun = {address: self._accept_run(address, events, tenant) for address in addresses}
        if len(begun) == len(addresses) and all(count == len(events) for count in begun.values()):
            return BatchWritten(events, len(events) if addresses else 0, {}, ())
        batch = Batch(events, None, tenant, Pace())
        return self._write_to_all(caller, addresses, batch, begun)

    def _checked_addresses(self, addresses: Sequence[str], messages: int) -> list[str]:
        """Return the different ones of the addresses for a batch with so many messages.

        Raises: BadRequest, PayloadTooLarge, ShuttingDown, AgentMoved.
        """
        self._check_number(addresses)
        self._refuse_if_shutting_down(addresses)
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
        self,
        caller: Caller,
        addresses: Sequence[str],
        batch: "Batch",
        begun: Mapping[str, int],
    ) -> BatchWritten:
        """Write to all channels in slices. Each full channel gets a task that waits for places.
        What they refuse does not count against the share of the caller's tenant.

        A remote store takes a while for a slice, so later ones follow meanwhile, but never one with
        events of the same channel.

        `begun` says for some addresses how many events of the batch their channels have.
        """
        refused: dict[str, Refused] = {}
        await with_tasks(partial(self._write_slices, addresses, batch, begun, refused))
        if refused:
            give_back_writes(caller, *batch.cost_of(refused.values()))
        return await batch.written(addresses, refused)

    async def _write_slices(
        self,
        addresses: Sequence[str],
        batch: "Batch",
        begun: Mapping[str, int],
        refused: dict[str, Refused],
        start: Start,
    ) -> None:
        """Write the slices of a batch, and the rest of what full channels did not take at once.
        What channels refuse goes into `refused`."""
        behind: set[str] = set()

        async def write_rest(address: str, first: int) -> None:
            if (rest := await self._write_rest(address, batch, first)) is not None:
                refused[address] = rest

        for address, count in begun.items():
            if 0 < count < len(batch.events):
                start(write_rest(address, count))
        under_way: deque[asyncio.Task[Iterable[tuple[Line, AppendResult]]]] = deque()
        for part in batch.slices([one for one in addresses if not begun.get(one)]):
            # A slice that goes on with the channels of the last one must wait for it.
            while under_way and (part.first or len(under_way) >= SLICES_UNDER_WAY):
                results = await under_way.popleft()
                for line in self._full_channels(results, batch, refused, behind):
                    start(write_rest(line.address, line.number))
            part = part.without(behind, refused)
            if self._store.is_remote:
                under_way.append(start(self._write_slice(part, batch)))
            else:
                results = await self._write_slice(part, batch)
                for line in self._full_channels(results, batch, refused, behind):
                    start(write_rest(line.address, line.number))
            await asyncio.sleep(0)
        while under_way:
            results = await under_way.popleft()
            for line in self._full_channels(results, batch, refused, behind):
                start(write_rest(line.address, line.number))

    async def _write_slice(
        self, part: Slice, batch: "Batch"
    ) -> Iterable[tuple["Line", AppendResult]]:
        """Write a slice of a batch without waiting for places. Returns what has become of each
        event; or, of a batch without keys, the first event that a channel did not accept, and
        why."""
        if batch.request_id is not None:
            return await self._write_lines(batch.lines(part), batch.tenant, ())
        return [
            (batch.line(address, part.first + count), result)
            for address, count, result in await self._append_to_all(part, batch.tenant)
        ]

    async def _append_to_all(
        self, part: Slice, tenant: Tenant | None
    ) -> list[tuple[str, int, AppendResult]]:
        """Append events without keys, and count them.

        Returns: the address of each channel that did not accept all of them, how many it accepted,
            and why not the next one.
        """
        _, events, addresses = part
        await self._settled(addresses)
        stopped: list[tuple[str, int, AppendResult]] = []
        known: list[str] = []
        channel_ids: list[bytes] = []
        for address in addresses:
            try:
                channel_ids.append(self._writable_channel(address))
                known.append(address)
            except MegaphoneError as error:
                stopped.append((address, 0, error.with_traceback(None)))
        accepted, wanted = 0, len(events)
        results = await self._store.append_to_all(channel_ids, events, tenant)
        for address, result in zip(known, results, strict=True):
            if isinstance(result, MegaphoneError):
                stopped.append((address, 0, result))
                continue
            accepted += result
            if result < wanted:
                stopped.append((address, result, WOULD_BLOCK))
        if accepted:
            self._observer.events_written(accepted)
        return stopped

    def _full_channels(
        self,
        results: Iterable[tuple["Line", AppendResult]],
        batch: "Batch",
        refused: dict[str, "Refused"],
        behind: set[str],
    ) -> Iterator["Line"]:
        """Note what has become of the events of a slice. Yields the first event that found no place
        in a channel; `behind` has the channel from then on."""
        for line, result in results:
            address = line.address
            if isinstance(result, Stored):
                batch.accepted(line.number, result.event_id)
            elif address in behind or address in refused:
                continue
            elif isinstance(result, WouldBlock):
                behind.add(address)
                yield line
            else:
                refused[address] = batch.refused(line.number, result)
                if isinstance(result, ChannelNotFound):
                    self._observer.events_unroutable(len(batch.events) - line.number)
                else:
                    self._observer.refused(result)

    async def _write_rest(self, address: str, batch: "Batch", first: int) -> "Refused | None":
        """Write the events of a batch from index `first` on to one channel. Waits for free places.

        Returns: the events that were not accepted; None if all were.
        """
        for index in range(first, len(batch.events)):
            try:
                event_id = await self._write_waiting(
                    address, batch.events[index], batch.key(index), batch.tenant
                )
                batch.accepted(index, event_id)
            except MegaphoneError as error:
                if isinstance(error, ChannelNotFound):  # `_write_waiting` has counted one event
                    self._observer.events_unroutable(len(batch.events) - index - 1)
                else:
                    self._observer.refused(error)
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

    # -- Addresses

    async def _settled(self, addresses: Sequence[str]) -> None:
        """Wait until it is known which node serves the agents of these addresses: for the ends of
        their cut-overs, and for the directory."""
        while self._agents.any_unsettled:
            unsettled = {one for one in map(agent_of, addresses) if self._agents.is_unsettled(one)}
            if not unsettled:
                return
            # At once: by the time the last is known, what is known of the first may be outdated.
            await asyncio.gather(*map(self._agents.settled, unsettled))

    def _consumer(self, address: str) -> ConsumerAddress:
        consumer = ConsumerAddress.parse(address)
        self._agents.served(consumer.agent)
        return consumer

    def _writable_channel(self, address: str) -> bytes:
        try:
            return self._open_producer_address(address)
        except BadRequest:
            if address.count(".") == 1:  # as in a producer address; a consumer address has two
                raise
        return self._legacy_channel(address)

    def _open_producer_address(self, address: str) -> bytes:
        try:
            name, channel_id = self._agents.keys.open(address)
        except (KeyError, BadRequest):
            pass  # and raise the error later, or it would refer to this one and its frames
        else:
            self._agents.served(name)
            return channel_id
        return self._open_unknown_address(address)

    def _open_unknown_address(self, address: str) -> bytes:
        """Raise the error of an address that the keys do not open."""
        name, _, sealed = address.partition(".")
        try:
            self._agents.served(name)
        except (AgentMoved, ChannelNotFound):
            SealedAddress.parse(address)  # because a text that is not an address is a bad request
            raise
        return self._agents.keys.of(name).open(sealed)

    def _legacy_channel(self, address: str) -> bytes:
        """Return the channel of a consumer address, by which some old clients write."""
        if is_consumer_shaped(address) and not self._settings.legacy_channel_id_writes:
            raise PermissionDenied(CANNOT_WRITE)
        return self._consumer(address).channel_id

    def _check_number(self, addresses: Sequence[str]) -> None:
        count, allowed = len(addresses), self._settings.max_addresses
        if count > allowed:
            raise PayloadTooLarge(
                f"the request names {count} addresses; at most {allowed} are allowed"
                " (max_addresses)"
            )

    def _refuse_if_shutting_down(self, addresses: Sequence[str] = ()) -> None:
        """Refuse a call for the channels of some addresses, if the node is stopping.

        Raises: AgentMoved, when they belong to one agent and it has moved, so that a proxy asks the
            node that serves it now; else ShuttingDown.
        """
        if self._shutting_down:
            self._refuse_when_stopping(addresses)

    def _refuse_when_stopping(self, addresses: Sequence[str]) -> Never:
        agents = {agent_of(address) for address in addresses}
        if len(agents) == 1:
            self._agents.refuse_moved(agents.pop())
        raise ShuttingDown


def checked(caller: Caller, action: Action, stream_id: str | None = None) -> Tenant | None:
    """Do what `Caller.check` does, at no cost for ANYONE."""
    if caller is ANYONE:
        return None
    return caller.check(action, loop_time(), stream_id)


def checked_streams(
    caller: Caller, action: Action, stream_ids: Iterable[str] | None
) -> Tenant | None:
    """Do what `Caller.check_streams` does, at no cost for ANYONE."""
    if caller is ANYONE:
        return None
    return caller.check_streams(action, loop_time(), stream_ids)


def take_writes(caller: Caller, events: int, size: int) -> None:
    """Count events, of `size` bytes together, against the share of the caller's tenant.

    Raises: RateLimited.
    """
    if caller is not ANYONE:
        caller.tenant.take_writes(events, size, loop_time())


def give_back_writes(caller: Caller, events: int, size: int) -> None:
    """Count events less, because they were not written."""
    if caller is not ANYONE:
        caller.tenant.give_back_writes(events, size)


def may_be_written(result: AppendResult | Exception) -> bool:
    """Return whether an event may have been written although the store has failed."""
    return isinstance(result, StoreUnavailable) and result.may_have_happened


def size_of(caller: Caller, new: Iterable[NewEvent]) -> int:
    """Return how many bytes some events have together, if a limit needs to know."""
    if caller is ANYONE or caller.tenant.limits.bytes_per_s is None:
        return 0
    return sum([len(one.body) for one in new])


def cost_of_batch(
    caller: Caller, addresses: Sequence[str], new: Sequence[NewEvent]
) -> tuple[int, int]:
    """Return how many events a batch writes in all its channels, and how many bytes they have."""
    return len(addresses) * len(new), len(addresses) * size_of(caller, new)


def event_of(new: NewEvent, body: bytes) -> Event:
    """Make an event with an id and a timestamp. Raises: BadRequest, for an invalid stream id."""
    stream_id, now_us = checked_stream_id(new.stream_id), time.time_ns() // 1000
    return Event(new_event_id(), stream_id, now_us, body, new.trace)


def events_of(new: list[NewEvent], bodies: list[bytes]) -> list[Event]:
    """Make some events, all with the same timestamp. Raises: BadRequest, as `event_of`."""
    ids, now_us = new_event_ids(len(new)), time.time_ns() // 1000
    return [
        Event(ids[number], checked_stream_id(one.stream_id), now_us, bodies[number], one.trace)
        for number, one in enumerate(new)
    ]


def check_request_id(new: NewEvent) -> None:
    """Raises: BadRequest."""
    if new.request_id is not None:
        checked_id("request id", new.request_id)
