"""The rules of a read, without I/O: what to ask for next, what is new, how long to wait.

Whoever reads tells a `ReadState` what came and what the time is, and asks it what to do. All times
are in seconds, on a clock that the caller chooses.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from megaphone_client.errors import ConnectionFailed, MegaphoneError, ReaderBusy
from megaphone_client.events import Arrived, Event, Owner

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 30.0
QUICK_END_S: Final = 0.1
"""A read that ends sooner and brings nothing new is not tried again at once."""
LONGEST_REST_S: Final = 2.0
"""How long the client rests at most after such a read. A failure may need longer."""
BUSY_WAIT_S: Final = 30.0
"""How long a first read waits for the end of another one."""
SILENT_HEARTBEATS: Final = 2.5
"""After so many heartbeats without a byte, a connection is dead."""
IDS_REMEMBERED: Final = 1_000
"""An event that comes again is among the last two windows of 100, unless the broker has a larger
buffer."""
MOST_STREAMS: Final = 100
"""How many streams a read may name."""
START: Final = "-"
"""The cursor before the first event."""
ACK_EVENTS: Final = 50
ACK_AGE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request for a read says."""

    consumer: str = field(repr=False)
    after: str | None
    acknowledges: bool
    takes_over: bool
    limit: int | None
    heartbeat_s: float
    streams: tuple[str, ...]
    """The only streams that the broker should send; none means all."""
    reader: str = field(default="", repr=False)
    """The name of the reader, the same in all its reads."""
    returns: bool = False
    """Whether the reader has read the channel before, so that the broker can tell whether it has
    lost it to another one. An older broker does not look at this, but at `takes_over`."""
    trace: bool = False
    """Whether the app wants the trace contexts of events. An older broker refuses that."""


class Backoff:
    """How long to wait before the next try: a random part of a time that doubles each time."""

    __slots__ = ("_longest_s", "_random", "failures")

    def __init__(
        self, random: Callable[[], float] = random.random, longest_s: float = LONGEST_WAIT_S
    ) -> None:
        self._longest_s = longest_s
        self.failures = 0
        """How many there were since the last success."""
        self._random = random

    def next_s(self, at_least_s: float | None = None) -> float:
        """Count a failure. Returns: how long to wait."""
        most = min(self._longest_s, FIRST_WAIT_S * 2.0 ** min(self.failures, 20))
        self.failures += 1
        return max(self._random() * most, at_least_s or 0.0)

    def reset(self) -> None:
        self.failures = 0


class Repeats:
    """Recognises events that came before. Remembers at least the last `IDS_REMEMBERED` ids."""

    __slots__ = ("_former", "_latest")

    def __init__(self) -> None:
        self._latest: set[str] = set()
        self._former: set[str] = set()

    def new(self, arrived: Sequence[Arrived]) -> list[Arrived]:
        """Return the events whose ids are new, and remember these."""
        if len(self._latest) >= IDS_REMEMBERED:
            self._former = self._latest
            self._latest = set()
        latest, former = self._latest, self._former
        events = []
        for event in arrived:
            event_id = event[1]
            if event_id not in latest and event_id not in former:
                latest.add(event_id)
                events.append(event)
        return events


class ReadState:
    """What is known about the read of one channel."""

    def __init__(
        self,
        consumer: str,
        *,
        after: str | None = None,
        acknowledges: bool = True,
        limit: int | None = None,
        heartbeat_s: float = 10.0,
        streams: Iterable[str] | None = None,
        takes_over: bool = False,
        reader: str = "",
        trace: bool = False,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.cursor = after
        """The id of the last event dealt with, or one that stands before the first event."""
        self.consumer = consumer
        self.acknowledges = acknowledges
        self._left = limit
        self._heartbeat_s = heartbeat_s
        self._streams = None if streams is None else frozenset(streams)
        self._named_streams = self._streams_of_broker()
        self._backoff = Backoff(random)
        self._rest = Backoff(random, LONGEST_REST_S)
        self._repeats = Repeats()
        self.has_begun = False
        """Whether the broker has ever answered a request for the read."""
        self.has_ended = False
        """Whether an error has ended the read."""
        self._takes_over = takes_over
        self._reader = reader
        self._trace = trace
        self._may_have_read = False  # an answer to a request for a read may have been lost
        self._busy_since: float | None = None
        self._last: Event[Any] | None = None
        self._received: str | None = after
        self._number = 0  # of the last event that came
        self._dealt = 0  # the number of the last event dealt with
        self._acknowledged = 0
        self._asked_after = 0  # how many events had come at the last request for a read
        self._asked = 0  # the number of the event that the last request for a read named
        self._sending = 0  # the number of the event that an open request acknowledges
        self._due_since = 0.0

    # -- Asking

    def _streams_of_broker(self) -> tuple[str, ...]:
        """Return the streams that the broker is asked for; none means all. An older broker sends
        all in any case."""
        streams = self._streams or ()
        if not self.acknowledges or len(streams) > MOST_STREAMS:
            return ()
        return tuple(sorted(streams))

    def ask(self) -> Ask:
        """Return what to ask for now.

        A read that does not acknowledge resumes behind the last event that came, because the log
        keeps too few events for an app that is far behind. A reader that has read before knows that
        its former read is dead, so it takes over from that, but not from another reader. If the
        answer to such a read was lost before it said where it began, so may be events that the
        broker takes for delivered: then the next one begins at the oldest event that there is.

        If the broker passes over the streams that are not wanted, the log may drop the last wanted
        event, so that a cursor would look like a gap. Events that are acknowledged need no cursor.

        The broker sends events that are here, but not dealt with, again. They count in the limit of
        the request.
        """
        self._asked = self._dealt
        self._asked_after = self._number
        after, limit = self.cursor, self._left
        if not self.acknowledges:
            after = self._received or (START if self._may_have_read else None)
        elif limit is not None:
            limit += self._number - self._dealt
        if self._named_streams and self.has_begun and self._dealt == self._acknowledged:
            after = None
        return Ask(
            self.consumer,
            after,
            self.acknowledges,
            self.has_begun or self._takes_over,
            limit,
            self._heartbeat_s,
            self._named_streams,
            self._reader,
            self.has_begun and bool(self._reader),
            self._trace,
        )

    @property
    def silence_s(self) -> float:
        """How long a connection may bring nothing before it is given up."""
        return SILENT_HEARTBEATS * self._heartbeat_s

    @property
    def is_finished(self) -> bool:
        """Whether as many events came as were wanted."""
        return self._left is not None and self._left <= 0

    # -- What came

    def opened(self, recovered: bool | None, position: str | None) -> bool:
        """Note that a read has begun behind `position`, if the broker names it. Returns: whether
        events are missing before it."""
        self.has_begun = True
        self._busy_since = None
        self._acknowledged = max(self._acknowledged, self._asked)  # by `after`
        is_gap = recovered is False
        if position is not None:
            if is_gap or self._received is None:
                self._received = position
            if is_gap or self.cursor is None:
                self.cursor = position
        return is_gap

    def alive(self) -> None:
        """Note that bytes came."""
        self._backoff.reset()

    def ended(self, lasted_s: float) -> float:
        """Note that a read ended cleanly, so long after it was asked for. Returns: how long to wait
        before the next one.

        That is no time, unless something between client and broker ends each read at once.
        """
        self._backoff.reset()
        if lasted_s >= QUICK_END_S or self._number > self._asked_after:
            self._rest.reset()
            return 0.0
        return self._rest.next_s(at_least_s=FIRST_WAIT_S)

    def received(
        self,
        arrived: Sequence[Arrived],
        decode: Callable[[bytes], Any],
        owner: Owner,
        now: float,
    ) -> list[Event[Any]]:
        """Return the events that are new and wanted.

        An event of a stream that is not wanted is dealt with when the wanted one before it is.
        """
        events: list[Event[Any]] = []
        consumer, streams = self.consumer, self._streams
        last, number = self._last, self._number
        new = self._repeats.new(arrived)
        for stream, event_id, at, raw, trace in new:
            number += 1
            if streams is not None and stream not in streams:
                self._pass_over(event_id, number, last, now)
                continue
            last = Event(consumer, stream, event_id, at, raw, decode, owner, number, trace)
            events.append(last)
        self._last, self._number = last, number
        if new:
            self._received = new[-1][1]
        if self._left is not None:
            self._left -= len(events)
        return events

    def _pass_over(self, event_id: str, number: int, before: Event[Any] | None, now: float) -> None:
        if before is None or before._number <= self._dealt:
            self._deal(event_id, number, now)
        else:
            before._up_to, before._number = event_id, number

    # -- After a failure

    @property
    def failures(self) -> int:
        """How many there were since bytes came."""
        return self._backoff.failures

    def wait_s(self, error: MegaphoneError, now: float) -> float | None:
        """Return how long to wait before the next try; None if the error ends the read."""
        wait_s = self._wait_s(error, now)
        self.has_ended = wait_s is None
        return wait_s

    def _wait_s(self, error: MegaphoneError, now: float) -> float | None:
        if not error.may_heal:
            return None
        if isinstance(error, ConnectionFailed) and error.may_have_arrived:
            self._may_have_read = True
        if isinstance(error, ReaderBusy) and not self.has_begun:
            if self._busy_since is None:
                self._busy_since = now
            if now - self._busy_since >= BUSY_WAIT_S:
                return None
        return self._backoff.next_s(error.retry_after_s)

    # -- Acknowledging

    def dealt(self, event: Event[Any], now: float) -> None:
        """Note that the app has dealt with an event and with every event before it."""
        if event._number > self._dealt:
            self._deal(event._up_to, event._number, now)

    def _deal(self, event_id: str, number: int, now: float) -> None:
        if self._dealt == max(self._acknowledged, self._sending):
            self._due_since = now
        self._dealt = number
        self.cursor = event_id

    def is_known(self, event: Event[Any]) -> bool:
        """Return whether the broker knows that an event is dealt with."""
        return event._number <= self._acknowledged

    def ack_at(self) -> float | None:
        """Return when to acknowledge; None if there is nothing to acknowledge."""
        due = self._dealt - max(self._acknowledged, self._sending)
        if not self.acknowledges or due <= 0:
            return None
        return self._due_since + (ACK_AGE_S if due < ACK_EVENTS else 0.0)

    def begin_ack(self, now: float) -> tuple[str, int]:
        """Return the event to acknowledge, and a number for `end_ack`."""
        assert self.cursor is not None
        self._sending = self._dealt
        self._due_since = now
        return self.cursor, self._dealt

    def end_ack(self, number: int, *, is_known: bool) -> None:
        """Note the end of a request that acknowledged, and whether the broker knows it now."""
        self._sending = 0
        if is_known:
            self._acknowledged = max(self._acknowledged, number)


class Prefix:
    """Which events of one read are dealt with, if the app deals with them in any order.

    The broker can be told only of an event and all before it.
    """

    __slots__ = ("_is_dealt",)

    def __init__(self) -> None:
        self._is_dealt: OrderedDict[Event[Any], bool] = OrderedDict()

    def __len__(self) -> int:
        """How many events are not dealt with, or are behind one that is not."""
        return len(self._is_dealt)

    def __contains__(self, event: Event[Any]) -> bool:
        """Whether an event is not dealt with, or is behind one that is not."""
        return event in self._is_dealt

    @property
    def first(self) -> Event[Any] | None:
        """The first event that is not dealt with."""
        return next(iter(self._is_dealt), None)

    def add(self, event: Event[Any]) -> None:
        self._is_dealt[event] = False

    def deal(self, event: Event[Any]) -> Event[Any] | None:
        """Note that an event is dealt with. Returns: the last event of those that are all dealt
        with, if there are more of them now."""
        if event in self._is_dealt:
            self._is_dealt[event] = True
        last = None
        while self._is_dealt and self._is_dealt[first := next(iter(self._is_dealt))]:
            last = first
            del self._is_dealt[first]
        return last

    def up_to(self, event: Event[Any]) -> list[Event[Any]]:
        """Return the events of one stream that are not dealt with, the last of them this one."""
        found: list[Event[Any]] = []
        for one, is_dealt in self._is_dealt.items():
            if one.stream == event.stream and not is_dealt:
                found.append(one)
            if one is event:
                return found
        return []
