"""A histogram counts each value below the first bound that is not smaller."""

import math

from megaphone.core.histogram import Histogram


def test_values_count_below_their_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    histogram.add_equal(3.0, 4)
    assert histogram.counts == [2, 2, 5]
    assert histogram.total == 7.0 + 12.0


def test_values_count_where_they_belong_whatever_came_before() -> None:
    """A histogram remembers where the last value was."""
    values = (0.5, 1.0, 1.5, 2.5, 1.0, 2.0, 9.0, 2.0, 1.001, -1.0, math.inf)
    histogram = Histogram((1.0, 2.0))
    for value in values:
        histogram.add(value)
    assert histogram.counts == [4, 4, 3]
