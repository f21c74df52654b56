"""Counts how long something takes, at a cost that each request and each batch can bear."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# Without its type, mypyc takes the compiled tuple for one that was never set.
SECONDS: Final[tuple[float, ...]] = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""The usual bounds, in seconds."""


class Histogram:
    """How many values lie between some bounds, and their sum."""

    __slots__ = ("_above", "_index", "_upto", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds` ascend. A value that is a bound counts below it."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many values lie below each bound and above the one before it; at the end, how many
        lie above all."""
        self.total = 0.0
        """The sum of all values."""
        # Where the last value was, because the next one is there too most of the time.
        self._index, self._above, self._upto = 0, -math.inf, self.bounds[0]

    def add(self, value: float) -> None:
        """Count a value."""
        if not self._above < value <= self._upto:
            self._look_for(value)
        self.counts[self._index] += 1
        self.total += value

    def add_equal(self, value: float, times: int) -> None:
        """Count several values that are equal."""
        if not self._above < value <= self._upto:
            self._look_for(value)
        self.counts[self._index] += times
        self.total += value * times

    def _look_for(self, value: float) -> None:
        """Find the bounds between which a value lies."""
        bounds, index = self.bounds, bisect_left(self.bounds, value)
        self._index = index
        self._above = bounds[index - 1] if index else -math.inf
        self._upto = bounds[index] if index < len(bounds) else math.inf
