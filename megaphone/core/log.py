"""The log of a channel: its events in the order of writing, cut by offsets.

The *offset* of an event is its number in the log, from 1, without holes. Four cuts divide the log;
each is the offset of the last event before it:

    ┌── dropped ──┬──── replay ────┬─── in flight ──┬── backlog ──┐
    │ not kept    │ delivered,     │ sent, not yet  │ what take   │
    │ any more    │ for resuming   │ acknowledged   │ returns     │
    0          dropped         delivered          sent          end

Beside them lies `freed`, between `delivered` and `end`: an event holds a place, and so counts
against the capacity, from the moment it is appended until it is delivered or evicted. Places are
freed from the front only, so the events after `freed` hold one. Every rule compares offsets; no
event carries a flag.

The log drops delivered events beyond `capacity` by itself. An event is found by its offset in
constant time, and by its id in constant time too, whatever the capacity: near `delivered`, where
cursors and acknowledgements point, the log is searched, and farther away an index is made.
"""

from typing import TYPE_CHECKING, NamedTuple

from megaphone.core.budget import Budget
from megaphone.model import START, ChannelLimits, Event, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT_OVERHEAD_BYTES = 200
"""What an event costs in a batch beside its body: its ids, its time, and names of fields."""
SEARCHED = 100
"""How many events before and after `delivered` are searched before the index of ids is made."""
INDEXED_FROM = 32
"""How many events a log keeps before `has` makes the index of ids."""

DROPPED = Event("", "", 0, b"")
"""In the place of an event that was dropped, until the list is compacted."""
NO_EVENTS: list[Event] = []
"""The list of every log that keeps nothing. Most channels never need their own. Never changed."""


class Batch(NamedTuple):
    """Events that follow each other in one log."""

    epoch: int
    first_offset: int
    events: list[Event]
    redelivered: int
    """How many of the events had been sent to a reader before."""


new_tuple = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes."""


class Log:
    """See the module. Every call takes effect at once and wholly."""

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
        """What the log keeps counts against `budget`, until it is cleared."""
        self.channel_id = channel_id
        """Names the channel to the listener."""
        self.limits = limits
        """Those of the channel. The log itself looks at the capacity only."""
        self.budget = budget
        self.epoch = epoch
        """Offsets of two logs can be compared only if both have the same epoch."""
        self._events = NO_EVENTS
        """The events up to `end`. The first ones may be dropped: see `_drop_to`."""
        self._index: dict[str, int] | None = None
        """The offset of each event id. None until it is needed, since memory counts."""
        self._dropped_id: str | None = None
        self._passed_over: set[int] | None = None
        """The offsets up to `highest_sent` of events that no reader was ever sent, because a
        cursor or an eviction passed over them."""
        self.dropped = self.delivered = self.sent = self.end = 0
        self.freed = 0
        self.highest_sent = 0
        """The highest offset that any reader was sent, here or on another node."""
        self.has_gap = False
        """Whether events were evicted, and no reader has learned of it."""
        self.listener: Callable[[bytes], None] | None = None
        """Called with the channel id whenever `after` or `progress` would answer otherwise than
        before.

        The call comes in the middle of the change, and maybe several times: the listener must only
        take note, and look later."""

    # -- Looking

    @property
    def held(self) -> int:
        """How many events hold a place."""
        return self.end - self.freed

    @property
    def before_first(self) -> str:
        """The id of the last event that was dropped, or START."""
        return self._dropped_id or START

    def id_at(self, offset: int) -> str:
        """Return the id of an event; `before_first` for an event that was dropped."""
        return self._event(offset).id if offset > self.dropped else self.before_first

    def find(self, event_id: str) -> int | None:
        """Return the offset of an event that is kept; None if there is none of this id."""
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
        """Return the offset after which a read resumes that names this cursor; None if the events
        that follow it are not all kept."""
        offset = self.find(cursor)
        return self.dropped if offset is None and cursor == self.before_first else offset

    def has(self, event_id: str) -> bool:
        """Whether an event is kept. For ids that mostly are not: `find` would search in vain."""
        if self._index is None and self.end - self.dropped <= INDEXED_FROM:
            return self.find(event_id) is not None
        return event_id in self._indexed()

    def after(self, offset: int, limit: int) -> tuple[int, list[Event]]:
        """Return the offset of the first event kept after one, and up to `limit` events from it."""
        last = max(offset, self.dropped)
        return last + 1, self._slice(last, min(last + limit, self.end))

    def progress(self, offset: int) -> Progress:
        """Return how far the log was read, in terms of the events up to an offset."""
        delivered, sent = min(self.delivered, offset), min(self.highest_sent, offset)
        return Progress(self.id_at(delivered), self.id_at(sent), self.has_gap)

    def was_sent(self, offset: int) -> bool:
        """Whether any reader was sent an event, here or on another node."""
        if self._passed_over is not None and offset in self._passed_over:
            return False
        return offset <= self.highest_sent

    # -- Changing

    def append(self, event: Event) -> None:
        """Add an event, which holds a place from now on."""
        self.budget.hold(event)
        self.budget.expect(event)
        self.end += 1
        if self._events:
            self._events.append(event)
        else:
            self._events = [event]
        if self._index is not None:
            self._index[event.id] = self.end
        if self.listener is not None:
            self.listener(self.channel_id)

    def take(self, limit: int, max_bytes: int, *, deliver: bool = False) -> Batch | None:
        """Send the next events: they are in flight from now on, or delivered at once.

        Returns up to `limit` events, and up to `max_bytes` of bodies and overhead, but one at
        least, however large; None if there is none or the limit is 0.
        """
        sent, end = self.sent, self.end
        if limit < end - sent:
            end = sent + limit
        shift = len(self._events) - self.end
        events = self._events[sent + shift : end + shift]
        if not events:
            return None
        for count, event in enumerate(events):
            max_bytes -= len(event.body) + EVENT_OVERHEAD_BYTES
            if max_bytes < 0 and count:
                del events[count:]
                break
        self.sent += len(events)
        is_news = self.sent > self.highest_sent or deliver
        redelivered = self._note_sent(sent + 1, self.sent)
        if deliver:
            self.delivered = self.sent
            self._free_to(self.sent)
        if is_news and self.listener is not None:
            self.listener(self.channel_id)
        return new_tuple(Batch, (self.epoch, sent + 1, events, redelivered))

    def deliver(self, offset: int) -> None:
        """Count the events up to an offset as delivered, and free their places."""
        if offset > self.delivered:
            self.delivered = offset
            if offset > self.sent:
                self.sent = offset
            self._free_to(offset)
            self._changed()

    def rewind(self, offset: int) -> None:
        """Have the next take start after an offset, with nothing in flight.

        The events up to it count as delivered, those after it do no more. They get no place back.
        """
        if not self.delivered == self.sent == offset:
            self.delivered = self.sent = offset
            self._changed()
            self._free_to(offset)

    def take_back(self) -> None:
        """Have the next take start with what is in flight."""
        self.sent = self.delivered

    def evict_oldest(self) -> bool:
        """Take the place from the oldest event that holds one. There must be one.

        The event is kept for replay. If it was yet to be sent, the next take starts after it, and
        the log has a gap.

        Returns: whether the event is lost, because no reader was ever sent it.
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
        """Count an event as sent, because a reader got it on another node, and so all that it got
        before: up to the last one that is known to be sent."""
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
        """Drop all events, and go on after one of another log."""
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
        """Drop everything, and call the listener no more.

        Returns: how many events were lost, that is, are in the backlog and were never sent.
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
        """Return the events after one offset up to another. All of them must be kept."""
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
        """Note that events were sent. Returns: how many of them had been before."""
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
        """Note that the events before `end` were not sent, though later ones are."""
        if first < end:
            self._passed_over = self._passed_over or set()
            self._passed_over.update(range(first, end))

    def _free_to(self, offset: int) -> None:
        """Free the places up to an offset, and drop what is too old."""
        if offset > self.freed:
            deliver, events = self.budget.deliver, self._events
            shift = len(events) - self.end
            for position in range(self.freed + shift, offset + shift):
                deliver(events[position])
            self.freed = offset
        if self.delivered - self.limits.capacity > self.dropped:
            self._drop_to(self.delivered - self.limits.capacity)

    def _drop_to(self, offset: int) -> None:
        """Drop events that hold no place. The list shrinks once half of it is dropped, so that the
        cost for each event stays the same however many are kept."""
        events, index, drop = self._events, self._index, self.budget.drop
        shift = len(events) - self.end
        stop = offset + shift
        self._dropped_id = events[stop - 1].id
        for position in range(self.dropped + shift, stop):
            event = events[position]
            events[position] = DROPPED
            drop(event)
            if index is not None:
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
