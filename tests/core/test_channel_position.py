"""Where a read stands before its first event, for a client to resume after that has none yet."""

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel, Lease
from megaphone.model import START, Event, ReadOptions
from tests.support.settings import limits

CAPACITY = 3


def channel_with(letters: str) -> Channel:
    channel = Channel(limits(capacity=CAPACITY), 0.0, Budget())
    write(channel, letters)
    return channel


def write(channel: Channel, letters: str) -> None:
    for letter in letters:
        assert channel.offer(Event(letter, "s", 0, b"1"), now=0.0) == letter


def read(channel: Channel, after: str | None = None, *, take_over: bool = False) -> Lease:
    options = ReadOptions(cursor=after, take_over=take_over)
    return channel.lease(options, 0.0)


def taken(lease: Lease) -> str:
    batch = lease.take(100, 1_000_000, 0.0)
    return "".join(event.id for event in batch.events) if batch else ""


def read_all(channel: Channel) -> str:
    lease = read(channel)
    letters = taken(lease)
    lease.release(clean=True, now=0.0)
    return letters


def test_the_first_read_stands_at_the_start() -> None:
    assert read(channel_with("ab")).cursor == START


def test_a_later_read_stands_after_what_was_read() -> None:
    channel = channel_with("ab")
    read_all(channel)
    write(channel, "c")
    assert read(channel).cursor == "b"


def test_a_resuming_read_stands_where_it_resumes() -> None:
    channel = channel_with("abc")
    read_all(channel)
    assert read(channel, "a").cursor == "a"


def test_a_read_of_all_that_is_kept_stands_after_what_is_forgotten() -> None:
    channel = channel_with("abc")
    read_all(channel)
    write(channel, "d")
    read_all(channel)
    lease = read(channel, "unknown")
    assert (lease.recovered, lease.cursor, taken(lease)) == (False, "a", "bcd")


def test_from_the_start_all_comes_while_nothing_is_forgotten() -> None:
    channel = channel_with("abc")
    read_all(channel)
    lease = read(channel, START)
    assert (lease.recovered, taken(lease)) == (True, "abc")


def test_from_the_start_a_gap_is_told_once_something_is_forgotten() -> None:
    channel = channel_with("abc")
    read_all(channel)
    write(channel, "d")
    read_all(channel)
    lease = read(channel, START)
    assert (lease.recovered, taken(lease)) == (False, "bcd")


def test_who_resumes_at_the_position_of_a_former_read_misses_nothing_of_it() -> None:
    channel = channel_with("ab")
    read_all(channel)
    write(channel, "cd")
    former = read(channel)
    assert taken(former) == "cd"
    lease = read(channel, former.cursor, take_over=True)
    assert (lease.recovered, taken(lease)) == (True, "cd")
