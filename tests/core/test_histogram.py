"""A histogram counts each value below the first bound that is not smaller."""

from megaphone.core.histogram import Histogram


def test_values_count_below_their_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    histogram.add_equal(3.0, 4)
    assert histogram.counts == [2, 2, 5]
    assert histogram.total == 7.0 + 12.0
