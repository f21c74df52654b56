"""Appends events to channels in Redis: to each channel in order, to all channels at once."""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from megaphone.core.log import new_tuple
from megaphone.core.ports import Append, AppendResult, Stored, WouldBlock
from megaphone.core.tenants import Tenant
from megaphone.errors import ChannelNotFound, MegaphoneError, StoreUnavailable
from megaphone.model import Event
from megaphone.store.redis.calls import BEGUN_WORDS, Awaited, Call, Command, Functions, word
from megaphone.store.redis.connection import Argument, Reply
from megaphone.store.redis.encoding import encoded, name_of
from megaphone.store.redis.membership import Membership
from megaphone.store.redis.writers import Writers

CHANNELS_AT_ONCE = 100
EVENTS_AT_ONCE = 200
"""How many events one call appends at most, in all channels together, unless they are for one
channel: Redis does nothing else meanwhile."""
NO_CHANNEL = -1
ORIGIN_WORDS = 4
TENANTS_REMEMBERED = 100
EVENT_WORDS = 3
WORDS_TOLD = 4
"""How many words `append_to_all` returns about each reader of this node."""


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
        *,
        on_handed: Callable[[str, int, Sequence[Event], bool], None],
        on_lost: Callable[[bytes], None],
    ) -> None:
        """`on_handed` is called for events that a reader of this node is sent by a writer of this
        node: with the handle of its lease, the first offset, the events, and whether the lease must
        ask to get more. `on_lost` is called with the channel of a write that may have happened,
        although the answer with such events is lost."""
        self.functions = functions
        self._membership = membership
        self._writers = writers
        self._on_handed = on_handed
        self._on_lost = on_lost

    def begin(self, write: Append, on_result: Callable[[AppendResult | Exception], None]) -> None:
        """See `core.ports.Store.begin_append`."""
        RunCall(
            self,
            (write,),
            lambda results: on_result(results if isinstance(results, Exception) else results[0]),
        )

    async def append(self, writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
        """See `core.ports.Store.append`."""
        if len(writes) == 1:
            return await self._finish(writes, await self._start(writes), wait)
        results: list[AppendResult] = [WouldBlock()] * len(writes)
        started = [(run, self._start(run.writes)) for run in runs_of(writes).values()]
        for run, results_to_come in started:
            finished = await self._finish(run.writes, await results_to_come, wait)
            for index, result in zip(run.indexes, finished, strict=True):
                results[index] = result
        return results

    async def _finish(
        self, run: Sequence[Append], so_far: Sequence[AppendResult], wait: bool
    ) -> Sequence[AppendResult]:
        """Append those events of a run that found no place, one after the other, if that is
        wanted."""
        if not (wait and isinstance(so_far[-1], WouldBlock)):
            return so_far
        results: list[AppendResult] = [one for one in so_far if not isinstance(one, WouldBlock)]
        for write in run[len(results) :]:
            result = await self._writers.append(self._membership.inbox, write, self._on_accepted)
            results.append(result)
            if not isinstance(result, Stored):
                self.note_failure(write.channel_id, result)
                break
        return results + [results[-1]] * (len(run) - len(results))

    # -- One channel

    def _start(self, run: Sequence[Append]) -> asyncio.Future[Sequence[AppendResult]]:
        """Append a run. The command leaves in this turn of the event loop."""
        future: asyncio.Future[Sequence[AppendResult]] = asyncio.get_running_loop().create_future()

        def conclude(results: Sequence[AppendResult] | Exception) -> None:
            if future.done():
                return
            if isinstance(results, Exception):
                future.set_exception(results)
            else:
                future.set_result(results)

        RunCall(self, run, conclude)
        return future

    def results_of(self, run: Sequence[Append], answer: Reply) -> Sequence[AppendResult]:
        """Return what has become of the events of a run, and give them to a reader of this node."""
        if answer is None:
            return [ChannelNotFound()] * len(run)
        words, *handed = answer
        results: list[AppendResult] = []
        accepted: list[Event] = []
        for write, result in zip(run, words.split(), strict=False):
            if result == b"A":
                accepted.append(write.event)
                results.append(new_tuple(Stored, (write.event.id, True)))
            elif result == b"F":
                results += [WouldBlock()] * (len(run) - len(results))
            else:
                results.append(Stored(result[1:].decode(), is_new=False))
        self._hand(handed, accepted)
        return results

    def command(self, run: Sequence[Append]) -> Command:
        """Return the command that appends the events of a run. The parts that repeat are packed
        already, because a pack of them takes as long as all other steps of a write together."""
        functions, membership = self.functions, self._membership
        channel_id = run[0].channel_id
        return functions.key_of(channel_id), b"*%d\r\n%b%b%b" % (
            BEGUN_WORDS + ORIGIN_WORDS + EVENT_WORDS * len(run),
            functions.begun("append", channel_id),
            origin_of(functions.away, membership.epoch, membership.inbox, name_of(run[0].tenant)),
            b"".join([words_of(write) for write in run]),
        )

    # -- The same events for many channels

    async def append_to_all(
        self, channel_ids: Sequence[bytes], events: Sequence[Event], tenant: Tenant | None
    ) -> Sequence[int | MegaphoneError]:
        """See `core.ports.Store.append_to_all`."""
        if not self.functions.takes_many_channels:
            return await self._append_to_each(channel_ids, events, tenant)
        at_once = max(1, min(CHANNELS_AT_ONCE, EVENTS_AT_ONCE // len(events)))
        groups = [
            channel_ids[start : start + at_once] for start in range(0, len(channel_ids), at_once)
        ]
        arguments: list[Argument] = [name_of(tenant)]
        for event in events:
            arguments += (event.id, encoded(event))
        epoch, inbox = self._membership.epoch, self._membership.inbox
        started = [
            self.functions.store_in_all("append_to_all", group, epoch, inbox, *arguments)
            for group in groups
        ]
        results: list[int | MegaphoneError] = []
        for group, one in zip(groups, started, strict=True):
            results += await self._results_of_group(group, events, one)
        return results

    async def _append_to_each(
        self, channel_ids: Sequence[bytes], events: Sequence[Event], tenant: Tenant | None
    ) -> Sequence[int | MegaphoneError]:
        """Append to each channel by a call of its own."""
        started = [
            self._start([Append(channel_id, event, None, tenant) for event in events])
            for channel_id in channel_ids
        ]
        results: list[int | MegaphoneError] = []
        for one in started:
            of_channel = await one
            last = of_channel[-1]
            count = sum(isinstance(result, Stored) for result in of_channel)
            results.append(last if isinstance(last, MegaphoneError) else count)
        return results

    async def _results_of_group(
        self, group: Sequence[bytes], events: Sequence[Event], started: Awaited
    ) -> Sequence[int | MegaphoneError]:
        """Return what has become of the events, and give them to readers of this node."""
        try:
            counts, told = await started.reply
            for place in range(0, len(told), WORDS_TOLD):
                self._hand(told[place : place + WORDS_TOLD], events)
            await started.confirmed()
        except MegaphoneError as error:
            for channel_id in group:
                self.note_failure(channel_id, error)
            return [error.with_traceback(None)] * len(group)
        return [ChannelNotFound() if count == NO_CHANNEL else count for count in counts]

    # -- Readers of this node

    def note_failure(self, channel_id: bytes, error: object) -> None:
        """Note that a write to a channel has failed, and perhaps happened."""
        if isinstance(error, StoreUnavailable) and error.may_have_happened:
            self._on_lost(channel_id)

    def _on_accepted(self, write: Append, handed: object) -> None:
        self._hand(handed, [write.event])

    def _hand(self, handed: Any, accepted: Sequence[Event]) -> None:
        if handed:
            handle, first, count, must_ask = handed
            self._on_handed(handle.decode(), first, accepted[:count], bool(must_ask))


class RunCall(Call):
    """The append of events to one channel, which waits for nothing."""

    __slots__ = ("_appending", "_on_results", "_run")

    def __init__(
        self,
        appending: Appending,
        run: Sequence[Append],
        on_results: Callable[[Sequence[AppendResult] | Exception], None],
    ) -> None:
        """`on_results` is called once, with a result for each event, or with the exception with
        which the store has failed."""
        self._appending = appending
        self._run = run
        self._on_results: Callable[[Sequence[AppendResult] | Exception], None] | None = on_results
        super().__init__(appending.functions, appending.command(run), stores=True)

    def done(self) -> bool:
        return self._on_results is None

    def set_result(self, answer: Reply, /) -> None:
        results = self._appending.results_of(self._run, answer)
        if (asked := self.confirmation()) is None:
            self._conclude(results)
        else:
            asked.add_done_callback(lambda asked: self._confirm(results, asked.exception()))

    def _confirm(self, results: Sequence[AppendResult], error: BaseException | None) -> None:
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self._conclude(results)

    def fail(self, error: Exception) -> None:
        self._appending.note_failure(self._run[0].channel_id, error)
        self._conclude([error] * len(self._run) if isinstance(error, MegaphoneError) else error)

    def _conclude(self, results: Sequence[AppendResult] | Exception) -> None:
        if (on_results := self._on_results) is not None:
            self._on_results = None
            on_results(results)


@lru_cache(TENANTS_REMEMBERED)
def origin_of(away: str, epoch: int, inbox: str, tenant: str) -> bytes:
    """Return the words of an append that are the same for all writes of a tenant: how long the
    store was out of order, the epoch, the inbox of this node, and the tenant."""
    return word(away) + word(str(epoch)) + word(inbox) + word(tenant)


def words_of(write: Append) -> bytes:
    """Return the words of an append that say what is written."""
    _, event, request_id, _ = write
    key = b"" if request_id is None else request_id.encode()
    data = encoded(event)
    event_id = event.id.encode()
    return b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(event_id),
        event_id,
        len(key),
        key,
        len(data),
        data,
    )


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
