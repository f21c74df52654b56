"""Faults that are planted in nodes, or between a node and a reader, to test the judge.

A plant alters either what the store of a node does, or what a reader gets from a read. It does this
a few times, and counts how often.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from megaphone.app import App
from megaphone.core.content import new_event_id
from megaphone.core.ports import Append, AppendResult, Stored, WouldBlock
from megaphone.errors import MegaphoneError, WriteTimeout
from megaphone.model import Event, EventAdded, HistoryChange
from tests.support.checker import Ending, History, Kind, Seen
from tests.support.fault_readers import Cut, HttpRead, OpenRead
from tests.support.move_ledger import parse_stream_id

TIMES = 3


class Plant:
    """A fault, and how often it has happened."""

    def __init__(self) -> None:
        self.times = 0

    def is_due(self) -> bool:
        """Return whether the fault is to happen now, and count it."""
        if self.times < TIMES:
            self.times += 1
            return True
        return False

    def sabotage(self, app: App) -> None:
        """Alter a node that has just started."""

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        """Alter the read of a reader."""
        return read


# -- In nodes


class AlteredStore:
    """Stands before a store. A plant replaces single calls of it, which a compiled store does not
    let anybody do."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def store_of(app: App) -> Any:
    """Return the store of a node, for a plant to alter. Only planted faults may use it."""
    broker: Any = app.broker
    if not isinstance(broker._store, AlteredStore):
        broker._store = AlteredStore(broker._store)
    return broker._store


class StoresTwice(Plant):
    """Every write of some writers with a key is stored twice."""

    def __init__(self, *writers: int) -> None:
        super().__init__()
        self._writers = writers

    def sabotage(self, app: App) -> None:
        store = store_of(app)
        append_one, append_many = store.append_nowait, store.append

        def append_again(write: Append) -> None:
            writer, *_ = parse_stream_id(write.event.stream_id)
            if write.request_id is not None and writer in self._writers and self.is_due():
                with suppress(MegaphoneError, WouldBlock):
                    append_one(Append(write.channel_id, copy_of(write.event)))

        def one_twice(write: Append) -> Stored:
            stored: Stored = append_one(write)
            append_again(write)
            return stored

        async def many_twice(writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
            results: Sequence[AppendResult] = await append_many(writes, wait=wait)
            for write, result in zip(writes, results, strict=True):
                if isinstance(result, Stored):
                    append_again(write)
            return results

        store.append_nowait, store.append = one_twice, many_twice


def copy_of(event: Event) -> Event:
    return Event(new_event_id(), event.stream_id, event.timestamp_us, event.body)


class TakesAndRefuses(Plant):
    """The events of one writer are stored, but the answer says that they were refused."""

    def sabotage(self, app: App) -> None:
        store = store_of(app)
        append = store.append_nowait
        stored: set[tuple[bytes, str]] = set()

        def take_and_refuse(write: Append) -> Any:
            writer, number, _ = parse_stream_id(write.event.stream_id)
            if writer != 0 or number >= TIMES:
                return append(write)
            if (write.channel_id, write.event.stream_id) not in stored:
                append(write._replace(request_id=None))
                stored.add((write.channel_id, write.event.stream_id))
                self.times += 1
            raise WriteTimeout

        store.append_nowait = take_and_refuse


class WritesElsewhere(Plant):
    """An event is stored in another channel than the one it was written to."""

    def sabotage(self, app: App) -> None:
        store = store_of(app)
        append = store.append_nowait
        channels: set[bytes] = set()

        def append_elsewhere(write: Append) -> Any:
            channels.add(write.channel_id)
            writer, *_ = parse_stream_id(write.event.stream_id)
            if writer < 2 and (others := channels - {write.channel_id}) and self.is_due():
                with suppress(MegaphoneError, WouldBlock):
                    append(Append(others.pop(), write.event))
            return append(write)

        store.append_nowait = append_elsewhere


class ChangesBodies(Plant):
    """One byte of a body is changed."""

    def sabotage(self, app: App) -> None:
        store = store_of(app)
        append = store.append_nowait

        def append_changed(write: Append) -> Any:
            if len(write.event.body) > 3 and self.is_due():
                write.event.body = write.event.body[:-2] + b"!" + write.event.body[-1:]
            return append(write)

        store.append_nowait = append_changed


class LosesInDrains(Plant):
    """The target of a move ignores every third event, without an error."""

    def sabotage(self, app: App) -> None:
        replication = store_of(app).replication
        apply = replication.apply

        async def apply_or_not(channel_id: bytes, change: HistoryChange) -> int:
            if isinstance(change, EventAdded):
                self.times += 1
                if self.times % 3 == 0:
                    return 0
            lost: int = await apply(channel_id, change)
            return lost

        replication.apply = apply_or_not


class CountsTooMany(Plant):
    """A node counts events as lost although they were read."""

    def sabotage(self, app: App) -> None:
        if self.is_due():
            app.metrics.events_lost(10_000)


# -- Between a node and its reader

Alter = Callable[[list[Seen], "Between"], list[Seen]]


class Between(Plant):
    """Alters the events that readers of the given kinds get."""

    def __init__(self, alter: Alter, *kinds: Kind) -> None:
        super().__init__()
        self._alter = alter
        self._kinds = kinds or tuple(Kind)

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        if history.kind not in self._kinds:
            return read
        return AlteredRead(read, history, lambda events: self._alter(events, self))


class AlteredRead:
    """A read whose events are altered before its reader gets them."""

    def __init__(
        self, read: OpenRead, history: History, alter: Callable[[list[Seen]], list[Seen]]
    ) -> None:
        self._read = read
        self._history = history
        self._alter = alter

    @property
    def recovered(self) -> bool | None:
        return self._read.recovered

    @property
    def is_torn(self) -> bool:
        return self._read.is_torn

    async def begin(self) -> None:
        await self._read.begin()

    async def next(self) -> list[Seen] | None:
        events = await self._read.next()
        return events if events is None else self._alter(events)

    async def cut(self, cut: Cut) -> None:
        await self._read.cut(cut)

    def close(self) -> None:
        self._read.close()


def lose_one(events: list[Seen], plant: Plant) -> list[Seen]:
    return events[:1] + events[2:] if len(events) > 2 and plant.is_due() else events


def swap_two(events: list[Seen], plant: Plant) -> list[Seen]:
    if len(events) > 1 and plant.is_due():
        return [*events[:-2], events[-1], events[-2]]
    return events


class DeliversAgain(Plant):
    """A read begins with an event that must not be delivered again."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self._kind = kind

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        settled = settled_events(history)
        if history.kind is not self._kind or not settled:
            return read
        has_begun = False

        def again(events: list[Seen]) -> list[Seen]:
            nonlocal has_begun
            if events and not has_begun:
                has_begun = True
                return [settled[-1], *events] if self.is_due() else events
            return events

        return AlteredRead(read, history, again)


def settled_events(history: History) -> Sequence[Seen]:
    """Return the events that must not be delivered again, in the order of their delivery."""
    events = [seen for read in history.reads for seen in read.events]
    if history.kind is Kind.ACKNOWLEDGING:
        acknowledged = {one.event_id for one in history.acknowledgements if one.answered}
        return [seen for seen in events if seen.event_id in acknowledged]
    if history.kind is Kind.PLAIN:
        clean = [n for n, read in enumerate(history.reads) if read.ending is Ending.CLEAN]
        until = clean[-1] + 1 if clean else 0
        return [seen for read in history.reads[:until] for seen in read.events]
    return events


class SkipsAfterCursor(Plant):
    """A read says that it continues after its cursor, but does not."""

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        if history.kind is not Kind.RESUMING or not any(one.events for one in history.reads):
            return read
        has_begun = False

        def skip(events: list[Seen]) -> list[Seen]:
            nonlocal has_begun
            if len(events) > 1 and not has_begun:
                has_begun = True
                return events[1:] if self.is_due() else events
            return events

        return AlteredRead(read, history, skip)


class RenamesWhatComesAgain(Plant):
    """An event that is sent again has another id."""

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        if history.kind is not Kind.ACKNOWLEDGING:
            return read
        known = {seen.event_id for one in history.reads for seen in one.events}

        def rename(events: list[Seen]) -> list[Seen]:
            return [
                replace(seen, event_id=f"{seen.event_id[:-1]}-")
                if seen.event_id in known and self.is_due()
                else seen
                for seen in events
            ]

        return AlteredRead(read, history, rename)


class EndsInMidEvent(Plant):
    """A read ends cleanly after a part of an event."""

    def tamper(self, read: OpenRead, history: History) -> OpenRead:
        return TornRead(read, self) if isinstance(read, HttpRead) else read


class TornRead(AlteredRead):
    def __init__(self, read: HttpRead, plant: Plant) -> None:
        super().__init__(read, History(Kind.PLAIN), lambda events: events)
        self._http = read
        self._plant = plant

    async def next(self) -> list[Seen] | None:
        events = await super().next()
        if events is None and self._plant.is_due():
            self._http.parser.feed(b'{"sid":"0.')
        return events
