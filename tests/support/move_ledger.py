"""Records a run in which channels move, and identifies its events.

A body may have only one byte, so the stream id of an event says which event it is. The ledger
remembers each body, so that it notices a changed one.
"""

import random
from itertools import count
from typing import Any

from tests.support.checker import History, Kind, Outcome, Read, Seen, Write
from tests.support.fault_readers import Recognize

SMALLEST_BYTES = 1
LARGEST_BYTES = 1_048_576
EVERY_CHANNEL = "*"


class Ledger:
    """The histories of the channels of one run, with one common clock."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.histories = [History(kind) for kind in kinds]
        self.all_written = False
        self._ticks = count()
        self._bodies: dict[tuple[int, int], Any] = {}
        self._taken: list[set[tuple[int, int]]] = [set() for _ in kinds]
        self._seen: list[set[tuple[int, int]]] = [set() for _ in kinds]

    def tick(self) -> int:
        return next(self._ticks)

    # -- Writing

    def make_body(self, writer: int, number: int, size: int) -> bytes:
        """Return a new body for an event, and remember it."""
        if size < 2:
            self._bodies[writer, number] = digit = number % 10
            return str(digit).encode()
        text = random.Random(f"{writer}/{number}").randbytes(size // 2).hex()[: size - 2]
        text += "~" * (size - 2 - len(text))
        self._bodies[writer, number] = text
        return f'"{text}"'.encode()

    def note_write(self, channel: int, write: Write) -> None:
        self.histories[channel].writes.append(write)
        if write.outcome is Outcome.TAKEN:
            self._taken[channel].add((write.writer, write.number))

    # -- Reading

    def recognizer(self, channel: int) -> Recognize:
        """Return the function that identifies the events of a channel."""

        def recognize(event_id: str, stream_id: str, body: Any) -> Seen:
            writer, number, whose = parse_stream_id(stream_id)
            return Seen(
                event_id,
                writer,
                number,
                is_intact=self._bodies.get((writer, number)) == body,
                is_own=whose in (EVERY_CHANNEL, str(channel)),
            )

        return recognize

    def note_seen(self, channel: int, read: Read, seen: Seen) -> None:
        read.events.append(seen)
        self._seen[channel].add((seen.writer, seen.number))

    def has_all(self, channel: int) -> bool:
        """Whether all events are written, and the reader has got every accepted event."""
        return self.all_written and self._taken[channel] <= self._seen[channel]

    # -- Counting

    def unseen(self) -> int:
        """Return how many events may be, or may have been, in a channel that no reader has got."""
        return sum(
            write.outcome is not Outcome.REFUSED and (write.writer, write.number) not in seen
            for history, seen in zip(self.histories, self._seen, strict=True)
            for write in history.writes
        )


def stream_id_of(writer: int, number: int, channel: int | None) -> str:
    whose = EVERY_CHANNEL if channel is None else str(channel)
    return f"{writer}.{number}.{whose}"


def parse_stream_id(stream_id: str) -> tuple[int, int, str]:
    writer, number, whose = stream_id.split(".")
    return int(writer), int(number), whose


def draw_size(rng: random.Random, largest: int = LARGEST_BYTES) -> int:
    """Draw the size of a body. Each order of magnitude is equally probable."""
    return min(largest, int(SMALLEST_BYTES * (largest / SMALLEST_BYTES) ** rng.random()))
