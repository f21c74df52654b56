"""Appends events to channels in Redis: to each channel in order, to all channels at once."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from megaphone.core.ports import Append, AppendResult, Stored, WouldBlock
from megaphone.errors import ChannelNotFound, MegaphoneError
from megaphone.model import Event
from megaphone.store.redis.calls import Functions, Storing
from megaphone.store.redis.connection import Reply
from megaphone.store.redis.encoding import encoded
from megaphone.store.redis.membership import Membership
from megaphone.store.redis.writers import Writers

CHANNELS_AT_ONCE = 100
EVENTS_AT_ONCE = 200
"""How many events one call appends at most, in all channels together, unless they are for one
channel: Redis does nothing else meanwhile."""
NO_CHANNEL = -1


class Handed(NamedTuple):
    """Events that a reader of this node is sent by a writer of this node."""

    handle: str
    """The lease of the reader."""
    first_offset: int
    events: Sequence[Event]
    must_ask: bool
    """Whether the lease must take, to get more."""


class Run(NamedTuple):
    """The writes of one call to one channel, in order."""

    indexes: list[int]
    """Their places in the call."""
    writes: list[Append]


class Appending:
    """The writes of one node. Belongs to one event loop."""

    def __init__(
        self,
        functions: Functions,
        membership: Membership,
        writers: Writers,
        on_handed: Callable[[Handed], None],
    ) -> None:
        self._functions = functions
        self._membership = membership
        self._writers = writers
        self._on_handed = on_handed

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        """See `core.ports.Store.append`."""
        if len(writes) == 1:
            return await self._finish(writes, await self._run(writes, self._start(writes)), wait)
        results: list[AppendResult] = [WouldBlock()] * len(writes)
        started = [
            (group, self._start_group(group)) for group in groups_of(runs_of(writes).values())
        ]
        for group, outcomes_to_come in started:
            for run, outcomes in zip(group, await outcomes_to_come, strict=True):
                finished = await self._finish(run.writes, outcomes, wait)
                for index, outcome in zip(run.indexes, finished, strict=True):
                    results[index] = outcome
        return results

    async def _finish(
        self, run: Sequence[Append], outcomes: Sequence[AppendResult], wait: bool
    ) -> Sequence[AppendResult]:
        """Append those events of a run that found no place, one after the other, if that is
        wanted."""
        if not (wait and isinstance(outcomes[-1], WouldBlock)):
            return outcomes
        results: list[AppendResult] = [one for one in outcomes if not isinstance(one, WouldBlock)]
        for write in run[len(results) :]:
            result = await self._writers.append(
                self._membership.inbox, self._membership.epoch, write, self._on_accepted
            )
            results.append(result)
            if not isinstance(result, Stored):
                break
        return results + [results[-1]] * (len(run) - len(results))

    # -- One channel

    def _start(self, run: Sequence[Append]) -> Storing:
        arguments: list[Any] = []
        for _, event, request_id in run:
            arguments += (event.id, request_id or "", encoded(event))
        membership = self._membership
        return self._functions.store(
            "append", run[0].channel_id, membership.epoch, membership.inbox, *arguments
        )

    async def _run(self, run: Sequence[Append], started: Storing) -> Sequence[AppendResult]:
        try:
            outcomes = self._outcomes(run, await started.reply())
            await started.confirmed()
        except MegaphoneError as error:
            return [error] * len(run)
        return outcomes

    def _outcomes(self, run: Sequence[Append], answer: Reply) -> Sequence[AppendResult]:
        """Return what has become of the events of a run, and give them to a reader of this node."""
        if answer is None:
            return [ChannelNotFound()] * len(run)
        results, *handed = answer
        outcomes: list[AppendResult] = []
        accepted: list[Event] = []
        for write, result in zip(run, results, strict=False):
            if result == b"A":
                accepted.append(write.event)
                outcomes.append(Stored(write.event.id, is_new=True))
            elif result == b"F":
                break
            else:
                outcomes.append(Stored(result[1:].decode(), is_new=False))
        if handed:
            self._hand(handed[0], accepted)
        return outcomes + [WouldBlock()] * (len(run) - len(outcomes))

    # -- The same events for many channels

    def _start_group(self, group: Sequence[Run]) -> Awaitable[Sequence[Sequence[AppendResult]]]:
        """Append a group. The commands leave in this turn of the event loop."""
        if len(group) == 1:
            writes = group[0].writes
            return self._group_of_one(writes, self._start(writes))
        arguments: list[Any] = []
        for _, event, _ in group[0].writes:
            arguments += (event.id, encoded(event))
        membership = self._membership
        storing = self._functions.store_in_all(
            "append_to_all",
            [run.writes[0].channel_id for run in group],
            membership.epoch,
            membership.inbox,
            *arguments,
        )
        return self._group(group, storing)

    async def _group_of_one(
        self, writes: Sequence[Append], started: Storing
    ) -> Sequence[Sequence[AppendResult]]:
        return [await self._run(writes, started)]

    async def _group(
        self, group: Sequence[Run], started: Storing
    ) -> Sequence[Sequence[AppendResult]]:
        size = len(group[0].writes)
        try:
            outcomes = [
                self._outcomes_of_channel(run.writes, *answer)
                for run, answer in zip(group, await started.reply(), strict=True)
            ]
            await started.confirmed()
        except MegaphoneError as error:
            return [[error] * size] * len(group)
        return outcomes

    def _outcomes_of_channel(
        self, run: Sequence[Append], count: int, handed: Any = None
    ) -> Sequence[AppendResult]:
        if count == NO_CHANNEL:
            return [ChannelNotFound()] * len(run)
        accepted = [write.event for write in run[:count]]
        self._hand(handed, accepted)
        stored: list[AppendResult] = [Stored(event.id, is_new=True) for event in accepted]
        return stored + [WouldBlock()] * (len(run) - count)

    # -- Readers of this node

    def _on_accepted(self, write: Append, handed: object) -> None:
        self._hand(handed, [write.event])

    def _hand(self, handed: Any, accepted: Sequence[Event]) -> None:
        if handed:
            handle, first, count, must_ask = handed
            self._on_handed(Handed(handle.decode(), first, accepted[:count], bool(must_ask)))


def runs_of(writes: Sequence[Append]) -> dict[bytes, Run]:
    """Return the writes of each channel."""
    runs: dict[bytes, Run] = {}
    for index, write in enumerate(writes):
        run = runs.get(write.channel_id)
        if run is None:
            run = runs[write.channel_id] = Run([], [])
        run.indexes.append(index)
        run.writes.append(write)
    return runs


def groups_of(runs: Iterable[Run]) -> Iterable[Sequence[Run]]:
    """Yield the runs in groups, each for one call: those with the same events and without keys go
    together, the others alone."""
    alike: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        if any(write.request_id is not None for write in run.writes):
            yield [run]
        else:
            alike.setdefault(tuple(id(write.event) for write in run.writes), []).append(run)
    for events, together in alike.items():
        at_once = max(1, min(CHANNELS_AT_ONCE, EVENTS_AT_ONCE // len(events)))
        left = iter(together)
        while group := list(islice(left, at_once)):
            yield group
