"""Judges a run: compares the answers to writers with what a reader got, as Jepsen's checkers do.

The judge knows only the promise in `docs/delivery.md`. Its input is a history: when each write
began and was answered, and what each read of the one reader delivered. The judge takes the order of
the first deliveries as the order of the channel, and checks it: if one write was answered before
another write began, its event must come first, and the events of one writer must come in order.

If something is uncertain, such as the place of a lost event, or which events were on their way when
a connection broke, the judge assumes whatever excuses the broker most. So every fault that it
reports is a real fault.

A channel that moves between nodes is judged in the same way, because the promise is the same.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

START = "-"
"""The cursor before the first event."""


class Kind(Enum):
    """How a reader keeps its place. The promise to the reader depends on it."""

    PLAIN = "plain"
    RESUMING = "resuming"
    ACKNOWLEDGING = "acknowledging"


class Outcome(Enum):
    """What a writer knows about its event."""

    TAKEN = "taken"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Ending(Enum):
    """How a read ended, as its reader saw it."""

    CLEAN = "clean"
    BROKEN = "broken"
    BROKEN_AT_WINDOW_END = "broken at the end of its window"
    """The node may have ended it cleanly while events were on their way that nobody received."""


class Fault(Enum):
    """A violation of the promise that a history shows."""

    LOST = "lost, and nobody was told"
    UNASKED = "delivered, but never taken from a writer"
    STORED_TWICE = "one write under two ids"
    CHANGED = "delivered with another body"
    FOREIGN = "delivered in another channel"
    TORN = "ended cleanly in the middle of an event"
    OUT_OF_ORDER = "out of order"
    SKIPPED = "passed over"
    REPEATED = "delivered again, though it was settled"
    MISCOUNTED = "the nodes counted other losses than there were"


@dataclass(frozen=True, slots=True)
class Write:
    """One write. Times are ticks of a clock that counts the steps of the run."""

    writer: int
    number: int
    """Counts the writes of one writer, which makes one write after the other."""
    outcome: Outcome
    event_id: str | None
    """None if no answer contained it."""
    began: int
    ended: int | None
    """When the answer came; None if no answer came."""
    repeated_ids: tuple[str, ...] = ()
    """The ids in the answers to repetitions of the write with the same key."""
    is_in_sequence: bool = True
    """Whether the event must come after all events of its writer with smaller numbers. False if a
    part of one call had to be written again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event, as a reader got it."""

    event_id: str
    writer: int
    number: int
    is_intact: bool = True
    """Whether the body is the body that was written."""
    is_own: bool = True
    """Whether the event was written to the channel that was read."""


@dataclass(slots=True)
class Read:
    """One read. A history has reads in the order in which the reader made them."""

    opened: int
    """When the reader sent the request."""
    cursor: str | None = None
    recovered: bool | None = None
    ending: Ending = Ending.BROKEN
    events: list[Seen] = field(default_factory=list)
    is_torn: bool = False
    """Whether the read ended with a part of an event."""
    asked_at: float = 0.0
    """When the reader sent the request, in seconds."""
    answered: int | None = None
    """When the answer began to arrive; None if no answer came."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    event_id: str
    began: int
    answered: int | None
    """When the answer came; None if no answer came."""


@dataclass(slots=True)
class History:
    kind: Kind
    capacity: int = 100
    """The smallest capacity that the channel has on any node."""
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    largest_capacity: int | None = None
    """The largest capacity that it has on any node; None if they are equal."""
    redelivery_window_s: float = math.inf
    """For how long after an event was sent a plain reader gets it again."""
    died: bool = False
    """Whether the channel ended because its node died."""
    may_go_back: bool = False
    """Whether the store may lose its latest steps. The next read is told so, and from then on a
    reader may get again what it had."""
    may_repeat: bool = False
    """Whether a reader may get again what it had, if its read is told that events may be missing,
    although in truth none is."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    fault: Fault
    what: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fault.value}"


@dataclass(slots=True)
class Verdict:
    """What happened to the events that were accepted. Each field is a number of events."""

    taken: int = 0
    once: int = 0
    repeated: int = 0
    """Delivered more than once; each event counts once."""
    lost_told: int = 0
    """Lost before a read that reported a loss, because its cursor was not known any more."""
    lost_beyond_ring: int = 0
    """Lost by a plain read, and followed by at least one capacity of events: this is allowed."""
    lost_at_window_end: int = 0
    """Lost by a plain read whose reader left at about the same time as the node ended the read."""
    lost_beyond_age: int = 0
    """Lost by a plain read that may have been sent the event before the redelivery window."""
    lost_with_node: int = 0
    """Written after every delivered event, and lost when the node of the channel died."""
    anomalies: list[Anomaly] = field(default_factory=list)

    def found(self, fault: Fault) -> int:
        return sum(anomaly.fault is fault for anomaly in self.anomalies)

    def blame(self, fault: Fault, what: str) -> None:
        self.anomalies.append(Anomaly(fault, what))


def judge(history: History) -> Verdict:
    """Return what happened to each event, and every violation of the promise."""
    return Judge(history).verdict()


@dataclass(frozen=True, slots=True)
class Place:
    """The range of positions at which a read may begin."""

    earliest: int
    latest: int


class Judge:
    def __init__(self, history: History) -> None:
        self._history = history
        self._verdict = Verdict()
        self._by_number = {(write.writer, write.number): write for write in history.writes}
        self._order: list[Seen] = []
        """The events in the order of their first delivery."""
        self._position: dict[str, int] = {}
        """The position of each event in that order, by event id."""
        self._first_read: list[int] = []
        """For each event, the number of the read that delivered it first."""
        for number, read in enumerate(history.reads):
            for seen in read.events:
                self._note(seen, number)

    def _note(self, seen: Seen, read_number: int) -> None:
        if seen.event_id not in self._position:
            self._position[seen.event_id] = len(self._order)
            self._order.append(seen)
            self._first_read.append(read_number)

    def verdict(self) -> Verdict:
        self._check_identities()
        self._check_order_of_writes()
        self._check_reads()
        self._count()
        return self._verdict

    # -- Was each event that the reader got written?

    def _check_identities(self) -> None:
        copies: dict[tuple[int, int], list[int]] = {}
        for position, seen in enumerate(self._order):
            name = (seen.writer, seen.number)
            write = self._by_number.get(name)
            if write is None or write.outcome is Outcome.REFUSED:
                self._verdict.blame(Fault.UNASKED, named(seen))
            copies.setdefault(name, []).append(position)
        for name, positions in copies.items():
            known = self._by_number[name].event_id if name in self._by_number else None
            ids = {self._order[position].event_id for position in positions}
            if len(ids | {known} - {None}) > 1 and not self._was_lost_before(positions, known):
                self._verdict.blame(Fault.STORED_TWICE, named(self._order[positions[-1]]))
        for write in self._history.writes:
            if len({write.event_id, *write.repeated_ids} - {None}) > 1:
                self._verdict.blame(
                    Fault.STORED_TWICE, f"{write.writer}/{write.number}, to its writer"
                )

    def _was_lost_before(self, positions: Sequence[int], known: str | None) -> bool:
        """Return whether the store may have lost a write each time before it stored it anew, as the
        writer asked it to, because the writer had no answer yet. The reader, which had got the
        write already, learned each time that the store had lost events.

        `positions` are those of the events that the write became, `known` is the id that its writer
        got at last.
        """
        ids = [self._order[position].event_id for position in positions]
        if not self._history.may_go_back or known in ids[:-1]:
            return False
        stored = [self._first_read[position] for position in positions]
        if known not in (None, ids[-1]):
            stored.append(len(self._history.reads))
        return all(
            any(read.recovered is False for read in self._history.reads[before + 1 : after + 1])
            for before, after in pairwise(stored)
        )

    # -- Does the order of the channel agree with the order of the writes?

    def _check_order_of_writes(self) -> None:
        latest_begun = -1
        last_number: dict[int, int] = {}
        for seen, write in self._delivered_writes():
            if write.ended is not None and write.ended < latest_begun:
                self._verdict.blame(Fault.OUT_OF_ORDER, f"{named(seen)}, among all writers")
            latest_begun = max(latest_begun, write.began)
            if write.outcome is Outcome.TAKEN and write.is_in_sequence:
                if last_number.get(write.writer, -1) > write.number:
                    self._verdict.blame(Fault.OUT_OF_ORDER, f"{named(seen)}, of its writer")
                last_number[write.writer] = write.number

    def _delivered_writes(self) -> Iterator[tuple[Seen, Write]]:
        """Yield each delivered event with its write.

        If a write was stored twice, yield only the first event, because the second has no right
        place.
        """
        known: set[tuple[int, int]] = set()
        for seen in self._order:
            name = (seen.writer, seen.number)
            if name in self._by_number and name not in known:
                known.add(name)
                yield seen, self._by_number[name]

    # -- Is each read a segment of that order, and does it begin where it may?

    def _check_reads(self) -> None:
        place = Place(0, 0)
        for number, read in enumerate(self._history.reads):
            self._check_events(number, read)
            positions = [self._position[seen.event_id] for seen in read.events]
            self._check_inside(number, positions)
            if read.recovered is False and self._history.may_go_back:
                place = Place(0, len(self._order))
            elif read.recovered is False and self._history.may_repeat:
                place = Place(0, place.latest)
            if positions:
                self._check_beginning(number, positions[0], self._may_begin(read, place))
            place = self._place_after(number, positions, place)

    def _check_events(self, number: int, read: Read) -> None:
        for seen in read.events:
            if not seen.is_own:
                self._verdict.blame(Fault.FOREIGN, f"{named(seen)}, within read {number}")
            elif not seen.is_intact:
                self._verdict.blame(Fault.CHANGED, f"{named(seen)}, within read {number}")
        if read.is_torn and read.ending is Ending.CLEAN:
            self._verdict.blame(Fault.TORN, f"read {number}")

    def _check_inside(self, number: int, positions: Sequence[int]) -> None:
        for before, after in pairwise(positions):
            if after <= before:
                what = f"{named(self._order[after])}, within read {number}"
                self._verdict.blame(Fault.OUT_OF_ORDER, what)
            elif after > before + 1 and not self._went_back(number, range(before + 1, after)):
                what = f"{named(self._order[before + 1])}, within read {number}"
                self._verdict.blame(Fault.SKIPPED, what)

    def _went_back(self, number: int, positions: range) -> bool:
        """Return whether the store may have lost these events when it went back, after a reader had
        got them and before it got the events around them again."""
        return (
            self._history.may_go_back
            and self._history.reads[number].recovered is False
            and all(self._first_read[position] < number for position in positions)
        )

    def _check_beginning(self, number: int, first: int, place: "Place") -> None:
        if first < place.earliest:
            what = f"{named(self._order[first])}, at the beginning of read {number}"
            self._verdict.blame(Fault.REPEATED, what)
        if first > place.latest:
            what = f"{named(self._order[place.latest])}, at the beginning of read {number}"
            self._verdict.blame(Fault.SKIPPED, what)

    def _may_begin(self, read: Read, place: "Place") -> "Place":
        everywhere = len(self._order)
        if self._history.kind is Kind.ACKNOWLEDGING:
            known = self._after_acknowledged(read.opened)
            place = (
                Place(min(place.earliest, known.earliest), known.latest)
                if (self._history.may_go_back)
                else known
            )
        if read.cursor is None or self._history.kind is Kind.ACKNOWLEDGING:
            return Place(place.earliest, everywhere) if read.recovered is False else place
        if read.recovered and read.cursor == START:
            return Place(0, 0)
        if read.recovered and read.cursor in self._position:
            after = self._position[read.cursor] + 1
            return Place(after, after)
        return Place(0, everywhere)

    def _place_after(self, number: int, positions: Sequence[int], place: "Place") -> "Place":
        """Return where a plain read may begin after the given read."""
        read = self._history.reads[number]
        if read.ending is Ending.CLEAN:
            return Place(positions[-1] + 1, positions[-1] + 1) if positions else place
        known = self._known_after(number)
        if not positions:
            return Place(place.earliest, known)
        # The next read may get again everything that this read was sent, up to one capacity.
        kept = self._history.largest_capacity or self._history.capacity
        return Place(max(positions[0], positions[-1] + 1 - kept), known)

    def _known_after(self, number: int) -> int:
        """Return how many events had been delivered when a read ended."""
        return bisect_right(self._first_read, number)

    def _after_acknowledged(self, time: int) -> "Place":
        """Return where an acknowledging read may begin if it is opened at the given time."""
        earliest = latest = 0
        for one in self._history.acknowledgements:
            after = self._position.get(one.event_id, -1) + 1
            if one.began < time:
                latest = max(latest, after)
            if one.answered is not None and one.answered < time:
                earliest = max(earliest, after)
        return Place(earliest, latest)

    # -- What happened to each event?

    def _count(self) -> None:
        times = Counter(seen.event_id for read in self._history.reads for seen in read.events)
        delivered = {(seen.writer, seen.number): times[seen.event_id] for seen in self._order}
        for write in self._history.writes:
            if write.outcome is not Outcome.TAKEN:
                continue
            self._verdict.taken += 1
            match delivered.get((write.writer, write.number), 0):
                case 0:
                    self._count_lost(write)
                case 1:
                    self._verdict.once += 1
                case _:
                    self._verdict.repeated += 1

    def _count_lost(self, write: Write) -> None:
        before, after = self._reads_around(write)
        reads = self._history.reads
        if any(read.recovered is False for read in reads[before + 1 : after + 1]):
            self._verdict.lost_told += 1
            return
        if self._history.died and not any(precedes(write, other) for _, other in self._placed()):
            self._verdict.lost_with_node += 1
            return
        broken = [
            number
            for number in range(max(0, before), after)
            if reads[number].ending is not Ending.CLEAN and self._is_plain(reads[number + 1])
        ]
        if any(self._could_follow(write, n) >= self._history.capacity for n in broken):
            self._verdict.lost_beyond_ring += 1
        elif any(reads[n].ending is Ending.BROKEN_AT_WINDOW_END for n in broken):
            self._verdict.lost_at_window_end += 1
        elif any(self._could_be_too_old(reads[n], reads[n + 1]) for n in broken):
            self._verdict.lost_beyond_age += 1
        else:
            self._verdict.blame(Fault.LOST, f"{write.writer}/{write.number}")

    def _could_be_too_old(self, broken: Read, following: Read) -> bool:
        """Return whether events of a broken read may be too old for the next read to get again."""
        return following.asked_at - broken.asked_at > self._history.redelivery_window_s

    def _is_plain(self, read: Read) -> bool:
        return self._history.kind is not Kind.ACKNOWLEDGING and read.cursor is None

    def _reads_around(self, lost: Write) -> tuple[int, int]:
        """Return the read with the last event that must come before the lost one, and the read with
        the first event that must come after it.

        If there is no such event, return -1 and the number of the last read.
        """
        before = [n for n, write in self._placed() if precedes(write, lost)]
        after = [n for n, write in self._placed() if precedes(lost, write)]
        last = len(self._history.reads) - 1
        return max(before, default=-1), min(after, default=last)

    def _placed(self) -> Iterator[tuple[int, Write]]:
        """Yield each delivered write with the number of the read that delivered it first."""
        for seen, read_number in zip(self._order, self._first_read, strict=True):
            write = self._by_number.get((seen.writer, seen.number))
            if write is not None:
                yield read_number, write

    def _could_follow(self, lost: Write, broken: int) -> int:
        """Return how many events a broken read may have been sent after the lost event."""
        over = self._known_to_be_over(broken)
        return sum(
            write.began < over and write is not lost and not precedes(write, lost)
            for write in self._history.writes
            if write.outcome is not Outcome.REFUSED
        )

    def _known_to_be_over(self, number: int) -> float:
        """Return when the node must have ended a broken read: when it answered a later read.

        The node may have continued the broken read for long after the later request.
        """
        later = self._history.reads[number + 1 :]
        return min((read.answered for read in later if read.answered is not None), default=math.inf)


def precedes(one: Write, other: Write) -> bool:
    """Return whether one write must come before another in the channel."""
    if one.ended is not None and one.ended < other.began:
        return True
    both_taken = one.outcome is Outcome.TAKEN and other.outcome is Outcome.TAKEN
    in_sequence = both_taken and one.is_in_sequence and other.is_in_sequence
    return in_sequence and one.writer == other.writer and one.number < other.number


def named(seen: Seen) -> str:
    return f"{seen.writer}/{seen.number}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return one line that sums up what happened to the events of some runs."""
    parts = (
        ("taken", sum(v.taken for v in verdicts)),
        ("once", sum(v.once for v in verdicts)),
        ("repeated", sum(v.repeated for v in verdicts)),
        ("lost and told", sum(v.lost_told for v in verdicts)),
        ("lost beyond the ring", sum(v.lost_beyond_ring for v in verdicts)),
        ("lost at a window's end", sum(v.lost_at_window_end for v in verdicts)),
        ("lost beyond the redelivery window", sum(v.lost_beyond_age for v in verdicts)),
        ("lost with their node", sum(v.lost_with_node for v in verdicts)),
        ("anomalies", sum(len(v.anomalies) for v in verdicts)),
    )
    return f"{len(verdicts)} runs: " + ", ".join(f"{count} {what}" for what, count in parts)
