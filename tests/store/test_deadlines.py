"""Deadlines come due in the order of their time, each once."""

from hypothesis import given
from hypothesis import strategies as st

from megaphone.store.memory.deadlines import Deadlines

times = st.floats(0, 1e6) | st.integers(0, 5).map(float)
entries = st.lists(st.tuples(st.binary(min_size=1, max_size=4), times))


def queue(*pairs: tuple[bytes, float]) -> Deadlines:
    deadlines = Deadlines()
    for channel_id, time in pairs:
        deadlines.add(channel_id, time)
    return deadlines


def test_an_empty_queue_has_nothing_due() -> None:
    assert Deadlines().next is None
    assert Deadlines().pop_due(1e9) == []


def test_the_next_deadline_is_the_earliest() -> None:
    deadlines = queue((b"a", 3.0), (b"b", 1.0), (b"c", 2.0))
    assert deadlines.next == 1.0
    deadlines.pop_due(1.0)
    assert deadlines.next == 2.0


def test_a_deadline_is_due_at_its_time_and_not_before() -> None:
    deadlines = queue((b"a", 60.0))
    assert deadlines.pop_due(59.999) == []
    assert deadlines.pop_due(60.0) == [b"a"]


def test_what_is_due_comes_in_the_order_of_time() -> None:
    deadlines = queue((b"a", 3.0), (b"b", 1.0), (b"c", 2.0), (b"d", 4.0))
    assert deadlines.pop_due(3.5) == [b"b", b"c", b"a"]


def test_what_was_returned_is_removed() -> None:
    deadlines = queue((b"a", 1.0))
    deadlines.pop_due(1.0)
    assert deadlines.pop_due(1e9) == []
    assert deadlines.next is None


def test_a_channel_can_be_entered_again() -> None:
    deadlines = queue((b"a", 1.0))
    assert deadlines.pop_due(1.0) == [b"a"]
    deadlines.add(b"a", 61.0)
    assert deadlines.pop_due(60.0) == []
    assert deadlines.pop_due(61.0) == [b"a"]


def test_several_channels_can_be_due_at_once() -> None:
    deadlines = queue((b"a", 1.0), (b"b", 1.0), (b"c", 1.0))
    assert sorted(deadlines.pop_due(1.0)) == [b"a", b"b", b"c"]


@given(entries, times)
def test_exactly_those_due_are_returned_in_order(
    pairs: list[tuple[bytes, float]], now: float
) -> None:
    deadlines = queue(*pairs)
    due = [channel_id for channel_id, time in pairs if time <= now]
    later = [time for _, time in pairs if time > now]
    returned = deadlines.pop_due(now)
    assert sorted(returned) == sorted(due)
    assert deadlines.next == min(later, default=None)
    assert len(deadlines.pop_due(1e6)) == len(later)
    known: dict[bytes, list[float]] = {}
    for channel_id, time in sorted(pairs, key=lambda pair: pair[1]):
        known.setdefault(channel_id, []).append(time)
    moments = [known[channel_id].pop(0) for channel_id in returned]
    assert moments == sorted(moments)
