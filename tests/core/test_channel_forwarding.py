"""A channel that is replicated to other nodes, or from one: each rule by example.

Events go by single letters, so that `"abc"` stands for three events in the order of writing.
A channel holds three here.
"""

import pytest

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel, Lease, Waiter
from megaphone.model import START, Event, Progress, ReadOptions
from tests.support.settings import limits

PLAIN = ReadOptions()
ACKNOWLEDGING = ReadOptions(acknowledge=True)
EVERY_KIND = pytest.mark.parametrize("options", [PLAIN, ACKNOWLEDGING], ids=["plain", "ack"])


def copy_of(letters: str) -> Channel:
    """Return the channel of a target to which events were replicated."""
    channel = Channel(limits(capacity=3), 0.0, Budget())
    push(channel, letters)
    return channel


def event(name: str) -> Event:
    return Event(name, "s", 0, b"{}")


def push(channel: Channel, letters: str) -> int:
    return sum(channel.apply(event(letter), 0.0) for letter in letters)


def read(channel: Channel, options: ReadOptions = PLAIN, now: float = 0.0) -> Lease:
    return channel.lease(options, now)


def take(lease: Lease, limit: int = 100, now: float = 0.0) -> str:
    batch = lease.take(limit, 1_000_000, now)
    lease.confirm(now)
    return "".join(event.id for event in batch.events) if batch else ""


def read_once(
    channel: Channel, after: str | None = None, *, limit: int = 100, clean: bool = True
) -> str:
    lease = read(channel, ReadOptions(cursor=after))
    letters = ""
    while more := take(lease, limit - len(letters)):
        letters += more
    lease.release(clean=clean, now=0.0)
    return letters


def follow(channel: Channel, position: str, sent: str = START, *, has_gap: bool = False) -> None:
    channel.apply_progress(Progress(position, sent, has_gap), 0.0)


def after(channel: Channel, number: int, limit: int = 100) -> tuple[int, str]:
    first, events = channel.log.after(number, limit)
    return first, "".join(event.id for event in events)


# Push


def test_what_is_pushed_is_read_in_order() -> None:
    assert read_once(copy_of("cab")) == "cab"


def test_what_is_there_stays_once_and_in_its_place() -> None:
    channel = copy_of("ab")
    assert push(channel, "acb") == 0
    assert read_once(channel) == "abc"


def test_what_was_read_is_not_applied_again_while_it_is_kept() -> None:
    channel = copy_of("abc")
    read_once(channel)
    assert push(channel, "cad") == 0
    assert read_once(channel) == "d"


def test_without_room_the_oldest_is_lost_but_kept_for_replay() -> None:
    channel = copy_of("abc")
    assert push(channel, "de") == 2
    assert channel.cursor == "b"
    assert read_once(channel, "a") == "bcde"


def test_what_was_pushed_out_is_not_read_by_default() -> None:
    channel = copy_of("abcde")
    assert read_once(channel) == "cde"


def test_a_repeated_event_pushes_out_none() -> None:
    channel = copy_of("abc")
    assert push(channel, "abc") == 0
    assert read_once(channel) == "abc"


def test_no_more_than_the_capacity_is_kept_for_replay() -> None:
    channel = copy_of("abc")
    assert push(channel, "defghi") == 6
    assert channel.log.before_first == "c"
    assert read_once(channel, START) == "defghi"


def test_an_event_that_makes_room_for_none_is_not_lost_if_a_reader_had_it() -> None:
    channel = copy_of("abc")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease, 2) == "ab"
    assert push(channel, "de") == 0
    assert push(channel, "f") == 1
    assert take(lease) == "def"


def test_a_plain_reader_makes_room() -> None:
    channel = copy_of("abc")
    lease = read(channel)
    assert take(lease, 1) == "a"
    assert push(channel, "de") == 1
    assert take(lease) == "cde"


def test_a_plain_reader_that_breaks_gets_again_what_it_had() -> None:
    channel = copy_of("abc")
    assert read_once(channel, clean=False) == "abc"
    push(channel, "d")
    assert read_once(channel) == "abcd"


@EVERY_KIND
def test_a_reader_that_waits_is_woken(options: ReadOptions) -> None:
    channel, woken = copy_of(""), list[str]()
    channel.lease(options, 0.0).on_ready = lambda: woken.append("woken")
    push(channel, "a")
    assert woken


@EVERY_KIND
def test_a_resuming_reader_gets_what_is_pushed_after_its_event(options: ReadOptions) -> None:
    channel = copy_of("abc")
    lease = read(channel, ReadOptions("b", acknowledge=options.acknowledge))
    assert push(channel, "de") == 0
    assert take(lease) == "cde"
    assert lease.recovered


def test_a_writer_that_waits_does_not_get_the_room_that_was_made_for_another_event() -> None:
    channel = copy_of("abc")
    waiter = channel.offer(event("w"), now=0.0)
    assert isinstance(waiter, Waiter)
    assert push(channel, "d") == 1
    assert waiter.accepted is None
    lease = read(channel)
    assert [take(lease, 1), waiter.accepted, take(lease)] == ["b", True, "cdw"]


def test_an_acknowledging_reader_goes_on_however_much_was_pushed_out_before_it() -> None:
    channel = copy_of("abc")
    lease = read(channel, ReadOptions(acknowledge=True, in_flight=2))
    assert take(lease) == "ab"
    push(channel, "defghijkl")
    channel.acknowledge("b", 0.0)
    assert take(lease) == "jk"
    assert channel.acknowledge("k", 0.0) == 2
    assert take(lease) == "l"


def test_an_acknowledging_reader_that_takes_nothing_does_not_keep_what_was_pushed_out() -> None:
    channel = copy_of("abc")
    read(channel, ACKNOWLEDGING)
    push(channel, "defghijklm")
    assert after(channel, 0) == (8, "hijklm")


# Push out


def test_push_out_gives_the_place_to_the_next_writer() -> None:
    channel = copy_of("abc")
    waiter = channel.offer(event("d"), now=0.0)
    assert isinstance(waiter, Waiter)
    assert channel.evict_oldest(0.0) == 1
    assert waiter.accepted
    assert read_once(channel) == "bcd"


def test_push_out_takes_the_oldest_place_that_is_held() -> None:
    channel = copy_of("abc")
    read_once(channel, limit=1)
    assert channel.log.freed + 1 == 2
    assert channel.evict_oldest(0.0) == 1
    assert channel.log.freed + 1 == 3
    assert (channel.cursor, read_once(channel)) == ("b", "c")


def test_what_a_broken_reader_had_is_pushed_out_of_its_place_and_read_again() -> None:
    channel = copy_of("abc")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease, 2) == "ab"
    assert channel.evict_oldest(0.0) == 0
    lease.release(clean=False, now=0.0)
    assert read_once(channel) == "abc"


# Position


def test_the_next_read_starts_after_the_event_and_only_later_ones_hold_places() -> None:
    channel = copy_of("abc")
    follow(channel, "b")
    assert (channel.cursor, channel.log.delivered, channel.unsent) == ("b", 2, 1)
    assert push(channel, "de") == 0
    assert push(channel, "f") == 1
    assert read_once(channel) == "def"


def test_the_position_moves_back_as_well() -> None:
    channel = copy_of("abc")
    follow(channel, "c")
    follow(channel, "a")
    assert read_once(channel) == "bc"
    channel = copy_of("abc")
    follow(channel, "b")
    follow(channel, START)
    assert read_once(channel) == "abc"


def test_an_event_that_is_not_known_moves_nothing() -> None:
    channel = copy_of("abc")
    follow(channel, "b")
    follow(channel, "z")
    assert channel.cursor == "b"


def test_the_position_of_an_empty_channel_is_before_its_first_event() -> None:
    channel = copy_of("")
    follow(channel, "z")
    assert (channel.cursor, channel.log.before_first) == ("z", "z")
    push(channel, "ab")
    follow(channel, "b")
    follow(channel, "z")
    lease = read(channel, ReadOptions("z"))
    assert (lease.recovered, lease.cursor, take(lease)) == (True, "z", "ab")


def test_the_position_of_an_empty_channel_moves_to_the_start() -> None:
    channel = copy_of("")
    follow(channel, "z")
    follow(channel, START)
    assert channel.cursor == START


@EVERY_KIND
def test_a_reader_that_is_here_knows_better(options: ReadOptions) -> None:
    channel = copy_of("abc")
    lease = read(channel, options)
    follow(channel, "b")
    assert take(lease) == "abc"


def test_readers_that_were_here_know_better_than_a_position_before_theirs() -> None:
    channel = copy_of("abc")
    read_once(channel, limit=2)
    follow(channel, "a")
    assert read_once(channel) == "c"


def test_who_acknowledges_here_knows_better_than_a_position_before() -> None:
    channel = copy_of("abc")
    follow(channel, START, sent="b")
    assert channel.acknowledge("b", 0.0) == 2
    follow(channel, "a", sent="b")
    assert read_once(channel) == "c"


def test_a_reader_that_goes_on_elsewhere_moves_the_position_on() -> None:
    channel = copy_of("abc")
    read_once(channel, limit=1)
    follow(channel, "b", sent="b")
    assert read_once(channel) == "c"


def test_a_move_of_the_position_lets_in_who_waits() -> None:
    channel = copy_of("abc")
    waiters = [channel.offer(event(name), now=0.0) for name in "de"]
    follow(channel, "a")
    assert [isinstance(w, Waiter) and w.accepted for w in waiters] == [True, None]


def test_position_and_number_are_of_what_is_taken_by_a_plain_reader() -> None:
    channel = copy_of("abc")
    assert (channel.cursor, channel.log.delivered) == (START, 0)
    lease = read(channel)
    take(lease, 2)
    assert (channel.cursor, channel.log.delivered) == ("b", 2)
    lease.release(clean=False, now=1.0)
    assert (channel.cursor, channel.log.delivered) == (START, 0)


def test_position_and_number_are_of_what_is_acknowledged() -> None:
    channel = copy_of("abc")
    lease = read(channel, ACKNOWLEDGING)
    take(lease, 2)
    assert (channel.cursor, channel.log.delivered) == (START, 0)
    channel.acknowledge("a", 0.0)
    assert (channel.cursor, channel.log.delivered) == ("a", 1)


def test_position_and_number_follow_a_reader_that_resumes() -> None:
    channel = copy_of("abc")
    read_once(channel)
    read(channel, ReadOptions("a"))
    assert (channel.cursor, channel.log.delivered) == ("a", 1)


def test_numbers_stay_when_events_are_forgotten() -> None:
    channel = copy_of("abc")
    for letters in ("de", "fg"):
        read_once(channel)
        push(channel, letters)
    assert channel.log.before_first == "b"
    assert (channel.cursor, channel.log.delivered, channel.log.freed + 1) == ("e", 5, 6)
    read(channel, ReadOptions("unknown"))
    assert (channel.cursor, channel.log.delivered) == ("b", 2)


# Events after


@pytest.mark.parametrize(
    ("number", "limit", "expected"),
    [
        (0, 100, (1, "abc")),
        (1, 100, (2, "bc")),
        (1, 1, (2, "b")),
        (3, 100, (4, "")),
        (0, 0, (1, "")),
    ],
)
def test_events_after_a_number(number: int, limit: int, expected: tuple[int, str]) -> None:
    assert after(copy_of("abc"), number, limit) == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(0, (3, "cdefg")), (2, (3, "cdefg")), (3, (4, "defg")), (7, (8, ""))]
)
def test_events_after_a_number_that_is_forgotten(number: int, expected: tuple[int, str]) -> None:
    channel = copy_of("abc")
    for letters in ("de", "fg"):
        read_once(channel)
        push(channel, letters)
    assert after(channel, number) == expected


# Room and time


@EVERY_KIND
def test_there_is_room_until_the_capacity_is_held(options: ReadOptions) -> None:
    channel = copy_of("ab")
    rooms = [channel.has_free_place]
    push(channel, "c")
    rooms.append(channel.has_free_place)
    take(read(channel, options), 1)
    rooms.append(channel.has_free_place)
    channel.acknowledge("a", 0.0)
    rooms.append(channel.has_free_place)
    assert rooms == [True, False, not options.acknowledge, True]


def test_it_is_unread_for_the_time_since_its_last_read() -> None:
    channel = copy_of("abc")
    assert not channel.is_unread_for(5.0, 4.5)
    assert channel.is_unread_for(5.0, 5.0)
    lease = read(channel, now=6.0)
    assert not channel.is_unread_for(5.0, 100.0)
    lease.release(clean=True, now=20.0)
    assert not channel.is_unread_for(5.0, 24.5)
    assert channel.is_unread_for(5.0, 25.0)


# What was sent elsewhere


def test_only_what_was_sent_elsewhere_can_be_acknowledged() -> None:
    channel = copy_of("abc")
    assert channel.acknowledge("a", 0.0) == 0
    follow(channel, START, sent="b")
    assert channel.acknowledge("c", 0.0) == 0
    assert channel.acknowledge("b", 0.0) == 2
    assert read_once(channel) == "c"


def test_what_was_sent_elsewhere_comes_again_and_is_not_lost() -> None:
    channel = copy_of("abc")
    follow(channel, START, sent="b")
    lease = read(channel)
    batch = lease.take(100, 1_000_000, 0.0)
    assert batch is not None
    assert ([event.id for event in batch.events], batch.redelivered) == (["a", "b", "c"], 2)
    channel = copy_of("abc")
    follow(channel, START, sent="b")
    assert channel.close() == 1


def test_progress_is_told_in_terms_of_what_the_follower_has() -> None:
    channel = copy_of("abc")
    lease = read(channel)
    assert take(lease, 2) == "ab"
    assert channel.log.progress(1) == Progress("a", "a")
    assert channel.log.progress(3) == Progress("b", "b")
    lease.release(clean=False, now=0.0)
    assert channel.log.progress(3) == Progress(START, "b")


def test_skipping_forgets_all() -> None:
    channel = copy_of("abc")
    waiter = channel.offer(event("x"), now=0.0)
    channel.skip_to("f", 0.0)
    assert isinstance(waiter, Waiter)
    assert waiter.accepted
    push(channel, "gh")
    assert read(channel, ReadOptions("a")).recovered is False
    assert read_once_after_taking_over(channel, "f") == (True, "xgh")


def read_once_after_taking_over(channel: Channel, cursor: str) -> tuple[bool | None, str]:
    lease = read(channel, ReadOptions(cursor, take_over=True))
    return lease.recovered, take(lease)


# Gaps


def test_the_next_reader_learns_of_what_was_evicted_until_a_read_ends_clean() -> None:
    channel = copy_of("abcd")
    for clean in (False, True):
        lease = read(channel)
        assert lease.recovered is False
        lease.release(clean=clean, now=0.0)
    assert read(channel).recovered is None


def test_a_reader_that_resumes_before_what_was_evicted_has_no_gap() -> None:
    channel = copy_of("abcd")
    lease = read(channel, ReadOptions(START))
    assert (lease.recovered, take(lease) + take(lease)) == (True, "abcd")
    lease.release(clean=True, now=0.0)
    assert read(channel).recovered is None


@EVERY_KIND
def test_what_is_evicted_during_a_read_is_told_to_the_next(options: ReadOptions) -> None:
    channel = copy_of("abc")
    lease = read(channel, options)
    assert lease.recovered is None
    push(channel, "d")
    lease.release(clean=True, now=0.0)
    assert read(channel).recovered is False


def test_a_gap_is_told_where_the_channel_goes() -> None:
    assert copy_of("abcd").log.progress(4).has_gap
    channel = copy_of("d")
    follow(channel, START, has_gap=True)
    assert read(channel).recovered is False


def test_a_gap_that_a_reader_has_learned_of_is_told_nowhere_else() -> None:
    channel = copy_of("d")
    follow(channel, START, has_gap=True)
    follow(channel, "d", has_gap=False)
    assert read(channel).recovered is None
