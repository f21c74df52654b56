"""Counts of a load: how long things took, and what each channel got of what was written to it."""

from collections import Counter
from typing import Final

PRECISE_BITS: Final = 7
NS_PER_MS: Final = 1_000_000


class Times:
    """Lengths of time, each to within one percent. Its memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, time_ns: int, count: int = 1) -> None:
        """Add a time that was measured `count` times."""
        time_ns = max(time_ns, 0)
        shift = max(0, time_ns.bit_length() - PRECISE_BITS - 1)
        self._counts[time_ns >> shift << shift] += count

    def percentiles_ms(self, *shares: float) -> list[float | None]:
        """Return for each share (0.99, for example) the time that so many did not exceed."""
        times = sorted(self._counts.items())
        total = sum(count for _, count in times)
        return [percentile(times, total * share) for share in shares]


def percentile(times: list[tuple[int, int]], rank: float) -> float | None:
    seen = 0
    for time_ns, count in times:
        seen += count
        if seen >= rank:
            return time_ns / NS_PER_MS
    return None


class Deliveries:
    """What was written to one channel, as events with the numbers 1, 2, 3 and so on, and what was
    read of it."""

    def __init__(self) -> None:
        self.repeated = 0
        self.out_of_order = 0
        self._written = 0
        self._unsure: set[int] = set()
        self._read = 0
        self._missing: set[int] = set()

    def written(self, number: int) -> None:
        """Note that the broker has taken this event, and that all before it were tried."""
        self._written = max(self._written, number)

    def not_written(self, number: int) -> None:
        """Note that the broker refused this event, or that nobody knows whether it took it."""
        self._unsure.add(number)

    def read(self, number: int) -> None:
        """Note that this event was read."""
        if number > self._read:
            self._missing.update(range(self._read + 1, number))
            self._read = number
        elif number in self._missing:
            self._missing.remove(number)
            self.out_of_order += 1
        else:
            self.repeated += 1

    @property
    def is_complete(self) -> bool:
        """Whether all that the broker took was read."""
        return self._read >= self._written and not self.lost

    @property
    def lost(self) -> int:
        """How many events the broker took that were not read."""
        unread = self._missing.union(range(self._read + 1, self._written + 1))
        return len(unread - self._unsure)
