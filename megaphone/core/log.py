"""The log of a channel: its events in the order of writing, cut by offsets.

The *offset* of an event is its number in the log, from 1, without holes. Four cuts divide the log.
A cut is the offset of the last event before it:

    ┌── dropped ──┬──── replay ────┬─── in flight ──┬── backlog ──┐
    │ deleted     │ delivered, for │ sent, not yet  │ not sent    │
    │ from memory │ later readers  │ acknowledged   │ yet         │
    0          dropped         delivered          sent          end

A fifth number, `freed`, lies between `delivered` and `end`. An event occupies a place, and so
counts against the capacity, from the append until the event is delivered or evicted. Places become
free from the front only, so exactly the events after `freed` occupy a place. Every rule compares
offsets; no event carries a flag.

The log drops delivered events beyond `capacity` without being asked. It finds an event by its
offset or by its id in constant time, whatever the capacity: it searches a fixed number of events
near `delivered`, where cursors and acknowledgements usually point, and uses an index for the rest.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple

from megaphone.core.budget import Budget
from megaphone.model import START, ChannelLimits, Event, Progress

EVENT_OVERHEAD_BYTES: Final = 200
"""How many bytes each event of a batch counts in addition to its body: for ids, timestamp and field
names."""
SEARCHED = 100
"""How many events before and after `delivered` the log searches before it makes the index."""
INDEXED_FROM = 32
"""With more events than this, `has` makes the index instead of searching the log."""

DROPPED: Final = Event("", "", 0, b"")
"""Replaces a dropped event in the list, until the list is compacted."""
NO_EVENTS: Final[list[Event]] = []
"""The list that all empty logs share, because most logs are empty. It never changes."""


class Batch(NamedTuple):
    """Events that follow each other in one log."""

    epoch: int
    first_offset: int
    events: list[Event]
    redelivered: int
    """How many of the events were sent to a reader before."""


new_tuple: Final = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes."""


body_of: Final[Callable[[Event], bytes]] = attrgetter("body")


def cut_off(events: list[Event], max_bytes: int) -> None:
    """Leave out the last events, so that the others have at most so many bytes of bodies and
    overhead. The first event stays, however large it is."""
    if sum(map(len, map(body_of, events))) + EVENT_OVERHEAD_BYTES * len(events) <= max_bytes:
        return
    for count, event in enumerate(events):
        max_bytes -= len(event.body) + EVENT_OVERHEAD_BYTES
        if max_bytes < 0 and count:
            del events[count:]
            return


class Log:
    """The log of one channel. Each call takes effect at once and completely. The docstring of the
    module explains the cuts."""

    __slots__ = (
        "_dropped_id",
        "_events",
        "_index",
        "_passed_over",
        "budget",
        "channel_id",
        "delivered",
        "dropped",
        "end",
        "epoch",
        "freed",
        "has_gap",
        "highest_sent",
        "limits",
        "listener",
        "sent",
    )

    def __init__(
        self, limits: ChannelLimits, epoch: int, budget: Budget, channel_id: bytes = b""
    ) -> None:
        """Make an empty log. Its events count against `budget` until `clear`."""
        self.channel_id = channel_id
        """The argument of the listener."""
        self.limits = limits
        """The limits of the channel. The log itself uses only the capacity."""
        self.budget = budget
        self.epoch = epoch
        """Offsets of two logs can be compared only if both have the same epoch."""
        self._events = NO_EVENTS
        """The events up to `end`. The first entries may be `DROPPED`: see `_drop_to`."""
        self._index: dict[str, int] | None = None
        """The offset of each event id. None until first needed, because memory is scarce."""
        self._dropped_id: str | None = None
        """The id of the last dropped event, or the cursor that the source gave instead of it."""
        self._passed_over: set[int] | None = None
        """Offsets up to `highest_sent` of events that were never sent to a reader, because a reader
        resumed after them or because they were evicted."""
        self.dropped = self.delivered = self.sent = self.end = 0
        self.freed = 0
        self.highest_sent = 0
        """The highest offset that was ever sent to a reader, on this node or on another one."""
        self.has_gap = False
        """Whether events were evicted from the backlog and no reader has learned of it yet."""
        self.listener: Callable[[bytes], None] | None = None
        """Called with the channel id at every change that `after` or `progress` shows.

        The log calls it in the middle of a change, possibly several times. The listener must not
        use the log in this call; it may only note that the log has changed."""

    # -- Looking

    @property
    def held(self) -> int:
        """How many events occupy a place."""
        return self.end - self.freed

    @property
    def before_first(self) -> str:
        """The id of the last event that was dropped, or START."""
        return self._dropped_id or START

    def id_at(self, offset: int) -> str:
        """Return the id of the event at an offset; `before_first` if the event was dropped."""
        return self._event(offset).id if offset > self.dropped else self.before_first

    def find(self, event_id: str) -> int | None:
        """Return the offset of an event; None if the log has no event with this id."""
        if self._index is None:
            cut = self.delivered
            offset = self._search(event_id, cut, min(cut + SEARCHED, self.end))
            if offset is None:
                offset = self._search(event_id, max(cut - SEARCHED, self.dropped), cut)
            if offset is not None:
                return offset
            if cut - self.dropped <= SEARCHED and self.end - cut <= SEARCHED:
                return None
        return self._indexed().get(event_id)

    def find_cursor(self, cursor: str) -> int | None:
        """Return the offset of the event that a cursor names, or of the last dropped event if the
        cursor is `before_first`.

        Returns None if the log does not know the cursor, so that events after it may be missing.
        """
        offset = self.find(cursor)
        return self.dropped if offset is None and cursor == self.before_first else offset

    def has(self, event_id: str) -> bool:
        """Return whether the log has an event. Faster than `find` for ids that it does not have."""
        if self._index is None and self.end - self.dropped <= INDEXED_FROM:
            return self.find(event_id) is not None
        return event_id in self._indexed()

    def after(self, offset: int, limit: int) -> tuple[int, list[Event]]:
        """Return the offset of the next event after an offset, and up to `limit` events from there.

        Dropped events are left out. If no event follows, the returned offset is the one that the
        next event will get.
        """
        last = max(offset, self.dropped)
        return last + 1, self._slice(last, min(last + limit, self.end))

    def progress(self, offset: int) -> Progress:
        """Return how far the log was read, as if it ended at an offset."""
        delivered, sent = min(self.delivered, offset), min(self.highest_sent, offset)
        return Progress(self.id_at(delivered), self.id_at(sent), self.has_gap)

    def was_sent(self, offset: int) -> bool:
        """Return whether the event at an offset was ever sent to a reader, on any node."""
        if self._passed_over is not None and offset in self._passed_over:
            return False
        return offset <= self.highest_sent

    # -- Changing

    def append(self, event: Event) -> None:
        """Add an event at the end. It occupies a place from now on."""
        self.extend([event])

    def extend(self, events: list[Event]) -> None:
        """Add events at the end. They occupy places from now on."""
        self.budget.enter(events)
        if self._events:
            self._events.extend(events)
        else:
            self._events = list(events)
        if self._index is not None:
            self._index.update((event.id, self.end + n) for n, event in enumerate(events, 1))
        self.end += len(events)
        if self.listener is not None:
            self.listener(self.channel_id)

    def take(self, limit: int, max_bytes: int, deliver: bool = False) -> Batch | None:
        """Return the next events of the backlog, and count them as sent.

        They are in flight from now on; with `deliver` they count as delivered instead.

        Returns at most `limit` events and at most `max_bytes` of bodies and overhead, but at least
        one event, however large it is. Returns None if the backlog is empty or `limit` is 0.
        """
        sent, end = self.sent, self.end
        if limit < end - sent:
            end = sent + limit
        if end <= sent:
            return None
        shift = len(self._events) - self.end
        events = self._events[sent + shift : end + shift]
        if end - sent > 1:
            cut_off(events, max_bytes)
        last = sent + len(events)
        is_news = last > self.highest_sent or deliver
        if sent == self.highest_sent:  # which is the rule, and costs nothing to find out
            redelivered, self.highest_sent = 0, last
        else:
            redelivered = self._note_sent(sent + 1, last)
        self.sent = last
        if deliver:
            self.delivered = last
            if self.freed == sent:  # the rule: no event was evicted
                self.budget.deliver(events)
                self.freed = last
                if last - self.limits.capacity > self.dropped:
                    self._drop_to(last - self.limits.capacity)
            else:
                self._free_to(last)
        if is_news and self.listener is not None:
            self.listener(self.channel_id)
        return new_tuple(Batch, (self.epoch, sent + 1, events, redelivered))

    def deliver(self, offset: int) -> None:
        """Count all events up to an offset as delivered, and free their places."""
        if offset > self.delivered:
            self.delivered = offset
            if offset > self.sent:
                self.sent = offset
            self._free_to(offset)
            self._changed()

    def rewind(self, offset: int) -> None:
        """Make the next take start after an offset, with no event in flight.

        All events up to the offset count as delivered. Later events count as backlog again, but a
        freed place stays free.
        """
        if not self.delivered == self.sent == offset:
            self.delivered = self.sent = offset
            self._changed()
            self._free_to(offset)

    def take_back(self) -> None:
        """Move the events in flight back to the backlog, so that the next take starts with them."""
        self.sent = self.delivered

    def evict_oldest(self) -> bool:
        """Take the place from the oldest event that has one. At least one event must have a place.

        The log keeps the event for replay. If the event was in the backlog, the next take starts
        after it, and the log has a gap.

        Returns: whether the event is lost, that is, was never sent to a reader.
        """
        offset = self.freed + 1
        is_passed_over = offset > self.sent
        lost = is_passed_over and not self.was_sent(offset)
        if is_passed_over:
            self.delivered = self.sent = offset
            self.set_gap(True)
            self._changed()
        self._free_to(offset)
        return lost

    def count_as_sent(self, offset: int) -> None:
        """Count an event as sent, because a reader got it on another node.

        The unsent events directly before it count as sent too, back to the nearest event that is
        known to be sent.
        """
        if offset > self.highest_sent:
            self.highest_sent = offset
            self._changed()
        while self._passed_over and offset in self._passed_over:
            self._passed_over.remove(offset)
            offset -= 1

    def drop_to(self, offset: int) -> None:
        """Drop the delivered events up to an offset."""
        if offset > self.dropped:
            self._drop_to(offset)
            self._changed()

    def skip_to(self, event_id: str) -> None:
        """Drop all events, and set the id of the last dropped event to that of the source."""
        self.rewind(self.end)
        self.drop_to(self.end)
        if event_id != self.before_first:
            self._dropped_id = None if event_id == START else event_id
            self._changed()

    def set_gap(self, has_gap: bool) -> None:
        if has_gap != self.has_gap:
            self.has_gap = has_gap
            self._changed()

    def clear(self) -> int:
        """Drop all events, and stop calling the listener.

        Returns: how many events were lost: events of the backlog that were never sent to a reader.
        """
        self.listener = None
        lost = sum(not self.was_sent(offset) for offset in range(self.sent + 1, self.end + 1))
        self.rewind(self.end)
        self.drop_to(self.end)
        return lost

    # -- Inside

    def _event(self, offset: int) -> Event:
        return self._events[offset - self.end - 1]

    def _slice(self, after: int, last: int) -> list[Event]:
        """Return the events after one offset up to and including another. None may be dropped."""
        shift = len(self._events) - self.end
        return self._events[after + shift : last + shift]

    def _search(self, event_id: str, after: int, last: int) -> int | None:
        for offset, event in enumerate(self._slice(after, last), after + 1):
            if event.id == event_id:
                return offset
        return None

    def _indexed(self) -> dict[str, int]:
        if self._index is None:
            kept = enumerate(self._slice(self.dropped, self.end), self.dropped + 1)
            self._index = {event.id: offset for offset, event in kept}
        return self._index

    def _note_sent(self, first: int, last: int) -> int:
        """Count a range of offsets as sent. Returns: how many of the events were sent before."""
        highest = self.highest_sent
        redelivered = 0
        if first <= highest:
            redelivered = min(last, highest) - first + 1
            if self._passed_over:
                before = len(self._passed_over)
                self._passed_over.difference_update(range(first, last + 1))
                redelivered -= before - len(self._passed_over)
        elif first > highest + 1:
            self._pass_over(max(highest, self.dropped) + 1, first)
        if last > highest:
            self.highest_sent = last
        return redelivered

    def _pass_over(self, first: int, end: int) -> None:
        """Note that the events from `first` to before `end` were not sent, but later ones were."""
        if first < end:
            self._passed_over = self._passed_over or set()
            self._passed_over.update(range(first, end))

    def _free_to(self, offset: int) -> None:
        """Free the places up to an offset, and drop delivered events beyond the capacity."""
        if offset > self.freed:
            self.budget.deliver(self._slice(self.freed, offset))
            self.freed = offset
        if self.delivered - self.limits.capacity > self.dropped:
            self._drop_to(self.delivered - self.limits.capacity)

    def _drop_to(self, offset: int) -> None:
        """Drop the events up to an offset. None of them may have a place.

        The list shrinks only when half of it is dropped, so that an event costs the same time
        however long the log is.
        """
        events, index = self._events, self._index
        shift = len(events) - self.end
        start, stop = self.dropped + shift, offset + shift
        if stop - start == 1:  # the rule
            dropped = [events[start]]
            events[start] = DROPPED
        else:
            dropped = events[start:stop]
            events[start:stop] = [DROPPED] * len(dropped)
        self._dropped_id = dropped[-1].id
        self.budget.drop(dropped)
        if index is not None:
            for event in dropped:
                index.pop(event.id, None)
        if self._passed_over is not None:
            self._passed_over.difference_update(range(self.dropped + 1, offset + 1))
            self._passed_over = self._passed_over or None
        self.dropped = offset
        if offset == self.end:
            self._events, self._index = NO_EVENTS, None
        elif 2 * stop >= len(events):
            del events[:stop]

    def _changed(self) -> None:
        if self.listener is not None:
            self.listener(self.channel_id)
