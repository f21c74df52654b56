"""How fast the client of a read takes what it is sent.

It decides how large the next batch may be, and when the client has stalled. A state machine without
an event loop; time is an argument (seconds on any clock that does not go back).
"""

import math

STALL_S = 5.0
"""How long a client may take nothing while a batch waits for it."""
SLOWEST_BYTES_PER_S = 20_000
"""The least that a client must take, where only whole batches are seen to be taken."""
FIRST_BATCH_BYTES = 65_536
SMALLEST_BATCH_BYTES = 16_384
LARGEST_BATCH_BYTES = 1_048_576
LARGEST_UNSEEN_BATCH_BYTES = 262_144
"""Where only whole batches are seen to be taken: a larger one would make it take long to notice a
client that was fast and has stalled."""
QUICK_S = 0.05
"""When a batch is taken within this time, the next may have twice the size, if more is ready."""
SLOW_S = 0.25
"""A batch that takes longer is followed by one of half the size, so that a read can always end
soon after a whole event."""


class Progress:
    """Follows one read: a batch is handed over, perhaps seen to be taken bit by bit, and taken
    wholly."""

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
        """Whether `look` is called in the middle of a batch."""
        self._largest_bytes = LARGEST_BATCH_BYTES if is_seen else LARGEST_UNSEEN_BATCH_BYTES
        self.batch_bytes = FIRST_BATCH_BYTES
        """How large the next batch may be."""
        self.stalls_at = math.inf
        """When the client will have stalled, unless it takes something before."""
        self._handed_over_at = 0.0
        self._more_is_ready = False
        self._taken: int | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the client has not taken all that was handed over."""
        return self.stalls_at < math.inf

    def hand_over(self, size: int, now: float, *, more_is_ready: bool) -> None:
        """Note that the client is to take a batch of `size` bytes, and perhaps more after it."""
        self._handed_over_at = now
        self._more_is_ready = more_is_ready
        self._taken = None
        self.stalls_at = now + STALL_S
        if not self.is_seen:
            self.stalls_at += size / SLOWEST_BYTES_PER_S

    def look(self, taken: int, now: float) -> None:
        """Note how many bytes the client has taken so far; the first look at a batch counts as
        progress, whatever it shows."""
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
            self.batch_bytes = min(self._largest_bytes, self.batch_bytes * 2)
