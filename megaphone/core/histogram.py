"""Counts how long something takes, at a cost that each request and each batch can bear."""

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

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds` ascend. A value that is a bound counts below it."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many values lie below each bound and above the one before it; at the end, how many
        lie above all."""
        self.total = 0.0
        """The sum of all values."""

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_equal(self, value: float, times: int) -> None:
        """Count several values that are equal."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times
