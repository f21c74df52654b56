"""Measures how fast the client of a read takes the bytes that the broker sends.

The speed decides how large the next batch is, and when the client has stalled. The module is a
state machine without an event loop; time is an argument (seconds on any clock that does not run
backwards).
"""

import math
from typing import Final

STALL_S = 5.0
"""A client stalls when it takes no bytes for this long although a batch waits for it."""
SLOWEST_BYTES_PER_S = 20_000
"""The lowest allowed speed of a client whose bytes cannot be counted, but only whole batches."""
FIRST_BATCH_BYTES: Final = 65_536
SMALLEST_BATCH_BYTES = 16_384
LARGEST_BATCH_BYTES = 1_048_576
LARGEST_UNSEEN_BATCH_BYTES = 262_144
"""The largest batch for a client whose bytes cannot be counted. With a larger one, the broker would
notice too late that a fast client has stalled."""
QUICK_S = 0.05
"""If the client takes a batch within this time and more events are ready, the next batch may be
twice as large."""
SLOW_S = 0.25
"""If the client needs longer than this for a batch, the batch size is halved, so that a read can
always end soon after a whole event."""


class Progress:
    """The progress of one read. The reader calls `hand_over` for each batch that the client does
    not take at once, `look` while the client takes it, and `finish` when it has taken all."""

    __slots__ = (
        "_handed_over_at",
        "_largest_bytes",
        "_more_is_ready",
        "_taken",
        "batch_bytes",
        "is_seen",
        "stalls_at",
    )

    def __init__(self, *, is_seen: bool) -> None:
        self.is_seen = is_seen
        """Whether the reader can count the bytes that the client takes, and so calls `look`."""
        self._largest_bytes = LARGEST_BATCH_BYTES if is_seen else LARGEST_UNSEEN_BATCH_BYTES
        self.batch_bytes = FIRST_BATCH_BYTES
        """The size limit of the next batch, in bytes."""
        self.stalls_at = math.inf
        """The time at which the client has stalled, unless it takes bytes before."""
        self._handed_over_at = 0.0
        self._more_is_ready = False
        self._taken: int | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a batch still waits for the client."""
        return self.stalls_at < math.inf

    def hand_over(self, size: int, now: float, *, more_is_ready: bool) -> None:
        """Start to wait for the client to take a batch of `size` bytes.

        `more_is_ready` says that events for another batch are ready.
        """
        self._handed_over_at = now
        self._more_is_ready = more_is_ready
        self._taken = None
        self.stalls_at = now + STALL_S
        if not self.is_seen:
            self.stalls_at += size / SLOWEST_BYTES_PER_S

    def look(self, taken: int, now: float) -> None:
        """Note how many bytes the client has taken so far.

        If the number has changed, the stall time starts again. The first call for a batch always
        counts as a change.
        """
        if taken != self._taken:
            self._taken = taken
            self.stalls_at = now + STALL_S

    def finish(self, now: float) -> None:
        """Note that the client has taken all of the batch."""
        if not self.is_waiting:
            return
        self.stalls_at = math.inf
        took_s = now - self._handed_over_at
        if took_s > SLOW_S:
            self.batch_bytes = max(SMALLEST_BATCH_BYTES, self.batch_bytes // 2)
        elif took_s < QUICK_S and self._more_is_ready:
            self.grow()

    def grow(self) -> None:
        """Make the next batch larger, because the client is quick and more events are ready."""
        self.batch_bytes = min(self._largest_bytes, self.batch_bytes * 2)
