"""What the writers and the reader of one channel learned, in the form that the judge reads.

The promise of a client library to its application is stronger than that of the broker to one read:
within one life of the application, a read of the library shows each event once and in order,
whatever happens to connections. So the judge sees all that a `Reader` gave as one read, or, after
each gap that was reported, as one more read to which a loss was reported.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.clients.driver import ClientError, Event, Gap, Reading
from tests.support.checker import (
    Acknowledgement,
    Ending,
    History,
    Outcome,
    Read,
    Seen,
    Write,
    judge,
)
from tests.support.checker import Kind as CheckedKind

ALPHABET = 'abc {}[]:,"\\/\n\r\u2028\u00e9\u4e2d\U0001f600'
"""Text in which line breaks are escaped, or look like line breaks, or take several bytes."""
NOT_TAKEN_UNLESS = "OutcomeUnknown"
"""The only error after which an event may have been taken."""


@dataclass(slots=True)
class Records:
    """The writes to one channel."""

    rng: random.Random = field(default_factory=random.Random)
    writes: list[Write] = field(default_factory=list)
    errors: dict[tuple[int, int], str] = field(default_factory=dict)
    """What the writers learned about the events that were not taken for certain."""
    _bodies: dict[tuple[int, int], Any] = field(default_factory=dict)
    _ticks: "count[int]" = field(default_factory=count)

    def tick(self) -> int:
        return next(self._ticks)

    def body(self, writer: int, number: int, size: int = 0) -> Any:
        """Return the body of a new event."""
        padding = "".join(self.rng.choices(ALPHABET, k=min(size, 200)))
        body = [writer, number, padding + "x" * (size - len(padding))]
        self._bodies[writer, number] = body
        return body

    def settle(
        self, writer: int, number: int, began: int, result: str | ClientError | None
    ) -> None:
        """Note what a writer learned: the id of its event, that it was taken under an id that it
        did not learn, or an error."""
        outcome = Outcome.TAKEN
        if isinstance(result, ClientError):
            unknown = result.name == NOT_TAKEN_UNLESS
            outcome = Outcome.UNKNOWN if unknown else Outcome.REFUSED
            self.errors[writer, number] = f"{result.name} {result.code} {result.message}"
        event_id = result if isinstance(result, str) else None
        ended = None if outcome is Outcome.UNKNOWN else self.tick()
        self.writes.append(Write(writer, number, outcome, event_id, began, ended))

    @property
    def taken(self) -> set[tuple[int, int]]:
        return {(w.writer, w.number) for w in self.writes if w.outcome is Outcome.TAKEN}

    def are_all_in(self, *readings: Reading) -> bool:
        """Return whether some reads together have shown every event that was taken."""
        shown = {name_of(event) for reading in readings for event in reading.events}
        return self.taken <= shown

    # -- For the judge

    def faults_of_life(self, reading: Reading, *, died: bool = False) -> list[str]:
        """Return every violation of the promise to an application within one life."""
        verdict = judge(self._history([reading], died=died))
        shown = Counter(event.id for event in reading.events)
        again = [name_of(e) for e in reading.events if shown[e.id] > 1]
        twice = [f"{writer}/{number}: shown twice" for writer, number in dict.fromkeys(again)]
        return [*map(str, verdict.anomalies), *twice]

    def faults_of_lives(self, *readings: Reading) -> list[str]:
        """Return every violation of the promise to an application that is killed and starts anew.

        It stores no cursor. Nobody knows how much of what it had dealt with was acknowledged.
        """
        history = History(CheckedKind.ACKNOWLEDGING, writes=self.writes)
        time = count()
        for reading in readings:
            opened = next(time)
            seen = [self._seen(event) for event in reading.events]
            history.reads.append(Read(opened, None, None, Ending.BROKEN, seen))
            history.acknowledgements += [
                Acknowledgement(one.event_id, next(time), None) for one in seen
            ]
        return [str(anomaly) for anomaly in judge(history).anomalies]

    def faults_of_lives_with_cursor(self, *readings: Reading) -> list[str]:
        """Return every violation of the promise to an application that goes on at its cursor."""
        return [str(anomaly) for anomaly in judge(self._history(readings)).anomalies]

    def _history(self, readings: Iterable[Reading], *, died: bool = False) -> History:
        """Return the history of lives of which each names the last event of the one before."""
        history = History(CheckedKind.RESUMING, writes=self.writes, died=died)
        cursor = None
        for reading in readings:
            for is_first, events in stretches(reading):
                recovered = is_first if cursor is not None or not is_first else None
                seen = [self._seen(event) for event in events]
                history.reads.append(Read(0, cursor, recovered, Ending.CLEAN, seen))
                cursor = events[-1].id if events else cursor
        return history

    def _seen(self, event: Event) -> Seen:
        writer, number = name_of(event)
        is_intact = event.body == self._bodies.get((writer, number))
        return Seen(event.id, writer, number, is_intact)


def name_of(event: Event) -> tuple[int, int]:
    match event.body:
        case [int(writer), int(number), *_]:
            return writer, number
    raise AssertionError("an event that nobody wrote")


def stretches(reading: Reading) -> Iterable[tuple[bool, list[Event]]]:
    """Yield the events between the gaps of a read, and whether they are its first."""
    stretch: list[Event] = []
    is_first = True
    for item in reading.items:
        if isinstance(item, Gap):
            yield is_first, stretch
            stretch, is_first = [], False
        else:
            stretch.append(item)
    yield is_first, stretch
