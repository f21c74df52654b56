"""Each rule of the channel state machine by example.

Events go by single letters, so that `"abc"` stands for three events in the order of writing.
"""

from collections.abc import Callable
from functools import partial

import pytest

from megaphone.core.budget import Budget
from megaphone.core.channel import Channel, Lease, Waiter
from megaphone.core.idempotency import MOST_KEYS
from megaphone.core.log import EVENT_OVERHEAD_BYTES
from megaphone.core.sendings import KEPT
from megaphone.errors import ReaderBusy
from megaphone.model import Event, ReadOptions
from tests.support.settings import limits

PLAIN = ReadOptions()
ACKNOWLEDGING = ReadOptions(acknowledge=True)
EITHER_WAY = pytest.mark.parametrize("clean", [True, False], ids=["clean", "broken"])
EVERY_KIND = pytest.mark.parametrize("options", [PLAIN, ACKNOWLEDGING], ids=["plain", "ack"])

EVERY_ENDING = pytest.mark.parametrize(
    ("options", "clean"),
    [(PLAIN, True), (PLAIN, False), (ACKNOWLEDGING, True), (ACKNOWLEDGING, False)],
)


def make(
    capacity: int = 3,
    *,
    ttl_s: float = 60.0,
    redelivery_window_s: float = 10.0,
    idempotency_window_s: float = 60.0,
) -> Channel:
    bounds = limits(
        capacity=capacity,
        ttl_s=ttl_s,
        redelivery_window_s=redelivery_window_s,
        idempotency_window_s=idempotency_window_s,
    )
    return Channel(bounds, 0.0, Budget())


def holding(letters: str, capacity: int = 3) -> Channel:
    channel = make(capacity)
    write(channel, letters)
    return channel


def event(name: str) -> Event:
    return Event(event_id=name, stream_id="s", timestamp_us=0, body=b"{}")


def write(channel: Channel, letters: str | list[str], now: float = 0.0) -> None:
    for letter in letters:
        assert channel.offer(event(letter), now=now) == letter


def write_and_wait(channel: Channel, name: str, request_id: str | None = None) -> Waiter:
    waiter = channel.offer(event(name), now=0.0, request_id=request_id)
    assert isinstance(waiter, Waiter)
    return waiter


def ignore() -> None:
    """Nobody waits."""


def resuming(event_id: str, *, acknowledge: bool = False) -> ReadOptions:
    return ReadOptions(cursor=event_id, acknowledge=acknowledge)


def windowed(window: int) -> ReadOptions:
    return ReadOptions(acknowledge=True, in_flight=window)


def read(
    channel: Channel,
    options: ReadOptions = PLAIN,
    now: float = 0.0,
    wake: Callable[[], None] = ignore,
) -> Lease:
    lease = channel.lease(options, now)
    lease.on_ready = wake
    return lease


def take(lease: Lease, limit: int = 100, now: float = 0.0) -> str:
    """Take events, and confirm them."""
    letters = take_only(lease, limit, now=now)
    lease.confirm(now)
    return letters


def take_only(lease: Lease, limit: int = 100, max_bytes: int = 1_000_000, now: float = 0.0) -> str:
    batch = lease.take(limit, max_bytes, now)
    return "".join(event.id for event in batch.events) if batch else ""


def redelivered(lease: Lease, limit: int = 100) -> int:
    """Take events. Returns: how many had been sent before."""
    batch = lease.take(limit, 1_000_000, 0.0)
    return batch.redelivered if batch else 0


def read_once(
    channel: Channel,
    options: ReadOptions = PLAIN,
    *,
    clean: bool = True,
    limit: int = 100,
    now: float = 0.0,
) -> str:
    lease = read(channel, options, now)
    letters = take_all(lease, limit, now)
    lease.release(clean=clean, now=now)
    return letters


def take_all(lease: Lease, limit: int = 100, now: float = 0.0) -> str:
    """Take again and again, because a plain lease takes no more than the capacity at once."""
    letters = ""
    while more := take(lease, limit - len(letters), now):
        letters += more
    return letters


def room(channel: Channel) -> int:
    """How many more events the channel takes. Fills it."""
    count = 0
    while isinstance(channel.offer(event(f"filler{count}"), now=0.0), str):
        count += 1
    return count


# Order and capacity


def test_offer_returns_the_id_of_the_event_it_took() -> None:
    assert make().offer(event("a"), now=0.0) == "a"


def test_events_are_read_in_the_order_of_writing() -> None:
    assert read_once(holding("cab")) == "cab"


def test_take_hands_over_the_event_as_it_was_written() -> None:
    channel, written = make(), event("a")
    channel.offer(written, now=0.0)
    batch = read(channel).take(1, 1_000_000, 0.0)
    assert batch is not None
    assert batch.events[0] is written


def test_take_names_the_epoch_and_the_first_offset() -> None:
    channel = Channel(limits(capacity=3), 0.0, Budget(), epoch=7)
    write(channel, "abc")
    lease = read(channel)
    for first, letters in ((1, "ab"), (3, "c")):
        batch = lease.take(2, 1_000_000, 0.0)
        assert batch is not None
        taken = "".join(event.id for event in batch.events)
        assert (batch.epoch, batch.first_offset, taken) == (7, first, letters)


def test_take_returns_at_most_its_limit_and_goes_on_where_it_stopped() -> None:
    lease = read(holding("abc"))
    assert [take(lease, 2), take(lease, 2), take(lease, 2)] == ["ab", "c", ""]


def test_events_written_during_a_read_belong_to_it() -> None:
    channel = holding("a")
    lease = read(channel)
    assert take(lease) == "a"
    write(channel, "b")
    assert take(lease) == "b"


@pytest.mark.parametrize("capacity", [1, 2, 100])
def test_as_many_events_fit_as_the_capacity_says(capacity: int) -> None:
    assert room(make(capacity)) == capacity


def test_an_event_that_waits_is_not_read() -> None:
    channel = holding("abc")
    lease = read(channel, ACKNOWLEDGING)
    waiter = write_and_wait(channel, "d")
    assert take(lease) == "abc"
    assert waiter.accepted is None


def test_unsent_counts_what_the_next_reader_gets() -> None:
    channel = holding("abc")
    assert channel.unsent == 3
    read_once(channel, limit=2)
    assert channel.unsent == 1


# Writers that wait


def test_waiters_are_served_first_come_first_served() -> None:
    channel = holding("abc")
    resolved: list[str] = []
    waiters = [write_and_wait(channel, name) for name in "def"]
    for waiter in waiters:
        waiter.join(partial(resolved.append, waiter.event.id))
    lease = read(channel)
    order = [(take(lease, 1), "".join(resolved)) for _ in range(3)]
    assert order == [("a", "d"), ("b", "de"), ("c", "def")]
    assert [waiter.accepted for waiter in waiters] == [True] * 3
    assert take(lease) == "def"


def test_a_take_that_frees_several_places_lets_in_as_many_waiters() -> None:
    channel = holding("abc")
    waiters = [write_and_wait(channel, name) for name in "def"]
    lease = read(channel)
    assert take(lease, 2) == "ab"
    assert [waiter.accepted for waiter in waiters] == [True, True, None]
    assert channel.waiting_writers == 1


def test_an_acknowledgement_lets_waiters_in() -> None:
    channel = holding("abc")
    waiters = [write_and_wait(channel, name) for name in "de"]
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease) == "abc"
    assert channel.waiting_writers == 2
    channel.acknowledge("a", 0.0)
    assert [waiter.accepted for waiter in waiters] == [True, None]
    assert take(lease) == "d"


def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    channel = holding("abc")
    write_and_wait(channel, "d")
    lease = read(channel)
    take(lease, 1)
    newcomer = write_and_wait(channel, "e")
    assert newcomer.accepted is None
    take(lease, 1)
    assert take(lease) == "cde"


def test_a_waiter_knows_that_it_was_accepted_when_it_is_called() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d")
    seen: list[bool | None] = []
    waiter.join(lambda: seen.append(waiter.accepted))
    lease = read(channel)
    take(lease, 1)
    take(lease)
    assert seen == [True]


def test_a_withdrawn_waiter_leaves_nothing_behind() -> None:
    channel = holding("abc")
    resolved: list[str] = []
    withdrawn, next_in_line = write_and_wait(channel, "d"), write_and_wait(channel, "e")
    leave = partial(resolved.append, "d")
    withdrawn.join(leave)
    channel.withdraw(withdrawn, leave)
    assert channel.waiting_writers == 1
    lease = read(channel)
    assert take(lease, 1) == "a"
    assert (withdrawn.accepted, next_in_line.accepted) == (None, True)
    assert take(lease) == "bce"
    assert resolved == []


def test_withdrawal_makes_no_room_and_takes_none() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d")
    waiter.join(ignore)
    channel.withdraw(waiter, ignore)
    assert channel.waiting_writers == 0
    write_and_wait(channel, "e")
    assert read_once(channel, limit=3) == "abc"


def test_a_waiter_of_two_writers_stays_when_one_leaves() -> None:
    channel = holding("abc")
    resolved: list[str] = []
    first, second = partial(resolved.append, "first"), partial(resolved.append, "second")
    waiter = write_and_wait(channel, "d", "r")
    assert write_and_wait(channel, "e", "r") is waiter
    waiter.join(first)
    waiter.join(second)
    channel.withdraw(waiter, first)
    lease = read(channel)
    take(lease)
    assert (resolved, waiter.accepted, take(lease)) == (["second"], True, "d")


def test_a_waiter_of_two_writers_is_gone_when_both_left() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d", "r")
    first, second = partial(ignore), partial(ignore)
    waiter.join(first)
    waiter.join(second)
    channel.withdraw(waiter, first)
    assert channel.waiting_writers == 1
    channel.withdraw(waiter, second)
    assert channel.waiting_writers == 0
    lease = read(channel)
    assert take(lease) + take(lease) == "abc"


def test_both_writers_of_one_waiter_are_told() -> None:
    channel = holding("abc")
    resolved: list[str] = []
    waiter = write_and_wait(channel, "d", "r")
    waiter.join(partial(resolved.append, "first"))
    write_and_wait(channel, "e", "r").join(partial(resolved.append, "second"))
    take(read(channel))
    assert resolved == ["first", "second"]


# One reader at a time


@EVERY_KIND
def test_second_reader_is_refused(options: ReadOptions) -> None:
    channel = make()
    read(channel, options)
    with pytest.raises(ReaderBusy):
        read(channel, options)


@EVERY_KIND
@EITHER_WAY
def test_a_reader_may_come_when_the_last_one_has_ended(options: ReadOptions, clean: bool) -> None:
    channel = holding("ab")
    read(channel, options).release(clean=clean, now=0.0)
    assert not channel.is_read
    assert read_once(channel) == "ab"


def test_a_refused_reader_changes_nothing() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d")
    first = read(channel, ACKNOWLEDGING)
    assert take(first, 1) == "a"
    with pytest.raises(ReaderBusy):
        read(channel, resuming("b"))
    assert waiter.accepted is None
    assert (first.is_open, channel.deadline) == (True, None)
    assert take(first) == "bc"


def test_is_read_says_whether_there_is_a_reader() -> None:
    channel = make()
    answers = [channel.is_read]
    lease = read(channel)
    answers.append(channel.is_read)
    lease.release(clean=True, now=0.0)
    answers.append(channel.is_read)
    assert answers == [False, True, False]


@EITHER_WAY
def test_a_released_lease_takes_nothing(clean: bool) -> None:
    channel = holding("abc")
    lease = read(channel)
    take(lease, 1)
    lease.release(clean=clean, now=0.0)
    assert not lease.is_open
    assert take(lease) == ""


def test_releasing_again_changes_nothing() -> None:
    channel = holding("ab")
    lease = read(channel)
    take(lease)
    lease.release(clean=True, now=1.0)
    lease.release(clean=False, now=5.0)
    assert (channel.deadline, channel.unsent) == (61.0, 0)


def test_releasing_an_old_lease_again_leaves_the_present_one_alone() -> None:
    channel = holding("ab")
    old = read(channel)
    old.release(clean=True, now=0.0)
    present = read(channel)
    take(present, 1)
    old.release(clean=False, now=1.0)
    assert (channel.is_read, present.is_open, channel.deadline) == (True, True, None)
    assert take(old) == ""
    assert take(present) == "b"


# Taking over

TAKE_OVER = ReadOptions(take_over=True)


@EVERY_KIND
def test_a_reader_may_take_over_from_another(options: ReadOptions) -> None:
    channel, woken = holding("abc"), list[bool]()
    old = read(channel, options, wake=lambda: woken.append(old.is_open))
    assert take(old, 2) == "ab"
    woken.clear()
    new = read(channel, TAKE_OVER)
    assert woken[-1:] == [False]
    assert (old.is_open, take(old), new.is_open) == (False, "", True)
    assert take(new) == "abc"


@EITHER_WAY
def test_a_reader_that_lost_its_place_changes_nothing_by_releasing(clean: bool) -> None:
    channel = holding("abc")
    old = read(channel)
    take(old, 1)
    new = read(channel, TAKE_OVER)
    assert take(new, 2) == "ab"
    old.release(clean=clean, now=5.0)
    assert (channel.is_read, channel.deadline, new.is_open) == (True, None, True)
    assert take(new) == "c"


def test_what_the_former_reader_had_counts_as_sent_by_a_broken_read() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "abc")
    old = read(channel, now=0.0)
    assert take(old, 1, now=0.0) == "a"
    assert take(old, 1, now=0.5) == "b"
    assert take(read(channel, TAKE_OVER, now=10.0), now=10.0) == "bc"


def test_a_resuming_reader_may_take_over() -> None:
    channel = holding("abc")
    take(read(channel))
    new = read(channel, ReadOptions(cursor="b", take_over=True))
    assert (new.recovered, take(new)) == (True, "c")


def test_there_need_not_be_a_reader_to_take_over_from() -> None:
    assert read_once(holding("abc"), TAKE_OVER) == "abc"


def test_who_took_over_is_the_one_reader() -> None:
    channel = make()
    read(channel)
    new = read(channel, TAKE_OVER)
    with pytest.raises(ReaderBusy):
        read(channel)
    assert new.is_open


def test_a_channel_does_not_die_when_its_reader_changes() -> None:
    channel = make()
    read(channel)
    new = read(channel, TAKE_OVER, now=100.0)
    assert channel.deadline is None
    new.release(clean=True, now=200.0)
    assert channel.deadline == 260.0


# Waking the reader


@EVERY_KIND
def test_a_reader_is_woken_by_an_event(options: ReadOptions) -> None:
    channel, woken = make(), list[str]()
    lease = read(channel, options, wake=lambda: woken.append("up"))
    assert take(lease) == ""
    woken.clear()
    write(channel, "a")
    assert woken


def test_a_reader_is_woken_by_a_waiter_that_gets_in() -> None:
    channel, woken = holding("abc"), list[str]()
    write_and_wait(channel, "d")
    lease = read(channel, ACKNOWLEDGING, wake=lambda: woken.append("up"))
    take(lease)
    woken.clear()
    channel.acknowledge("a", 0.0)
    assert woken
    assert take(lease) == "d"


def test_a_reader_is_woken_when_its_window_opens() -> None:
    channel, woken = holding("ab"), list[str]()
    lease = read(channel, windowed(1), wake=lambda: woken.append("up"))
    assert (take(lease), take(lease)) == ("a", "")
    woken.clear()
    channel.acknowledge("a", 0.0)
    assert woken
    assert take(lease) == "b"


# Plain readers


def test_a_plain_reader_frees_places_by_taking() -> None:
    channel = holding("abc")
    lease = read(channel)
    take(lease, 2)
    assert room(channel) == 2


def test_a_plain_reader_has_no_window() -> None:
    assert read_once(holding("abc"), ReadOptions(in_flight=1)) == "abc"


def test_what_a_plain_reader_had_is_done_after_a_clean_end() -> None:
    channel = holding("abc")
    assert read_once(channel, limit=2) == "ab"
    assert read_once(channel) == "c"


def test_what_a_broken_plain_reader_had_comes_again_before_anything_newer() -> None:
    channel = holding("abc")
    assert read_once(channel, limit=2, clean=False) == "ab"
    write(channel, "d")
    assert read_once(channel) == "abcd"


def test_what_a_broken_plain_reader_had_holds_no_place() -> None:
    channel = holding("abc")
    read_once(channel, clean=False)
    write(channel, "def")
    write_and_wait(channel, "g")
    lease = read(channel)
    assert take(lease, 3) == "abc"
    assert channel.waiting_writers == 1
    assert take(lease, 1) == "d"
    assert channel.waiting_writers == 0


def test_events_come_again_until_a_read_ends_clean() -> None:
    channel = holding("ab")
    assert [read_once(channel, clean=clean) for clean in (False, False, True, True)] == [
        "ab",
        "ab",
        "ab",
        "",
    ]


def test_a_broken_read_gives_back_what_it_had_and_not_what_earlier_reads_had() -> None:
    channel = holding("abc")
    assert read_once(channel, limit=1) == "a"
    assert read_once(channel, limit=1, clean=False) == "b"
    assert read_once(channel) == "bc"


def test_an_event_is_sent_again_if_it_was_sent_less_than_the_window_ago() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "abc")
    lease = read(channel)
    for letter, now in ("a", 0.0), ("b", 0.5), ("c", 5.0):
        assert take(lease, 1, now) == letter
    lease.release(clean=False, now=10.0)
    assert read_once(channel, now=10.0) == "bc"


def test_the_redelivery_window_counts_from_sending_not_from_writing() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "a", now=0.0)
    lease = read(channel, now=50.0)
    take(lease, now=50.0)
    lease.release(clean=False, now=59.0)
    assert read_once(channel, now=59.0) == "a"


def test_the_redelivery_window_counts_from_the_last_sending() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "a")
    assert read_once(channel, clean=False, now=0.0) == "a"
    lease = read(channel, now=8.0)
    take(lease, now=8.0)
    lease.release(clean=False, now=17.0)
    assert read_once(channel, now=17.0) == "a"


def test_what_a_broken_read_gave_back_stays_until_it_is_read() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "ab")
    read_once(channel, clean=False, now=0.0)
    assert read_once(channel, now=59.0) == "ab"


def test_what_a_broken_read_gave_back_and_the_next_did_not_take_stays() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "abc")
    read_once(channel, clean=False, now=0.0)
    lease = read(channel, now=1.0)
    assert take(lease, 1, now=1.0) == "a"
    lease.release(clean=False, now=30.0)
    assert read_once(channel, now=30.0) == "bc"


def test_a_redelivery_window_of_zero_sends_nothing_again_that_was_confirmed() -> None:
    channel = make(redelivery_window_s=0.0)
    write(channel, "abc")
    assert read_once(channel, limit=2, clean=False) == "ab"
    assert read_once(channel) == "c"


def test_a_broken_read_gives_back_no_more_than_the_capacity() -> None:
    channel = holding("abc")
    lease = read(channel)
    assert take(lease) == "abc"
    write(channel, "de")
    assert take(lease) == "de"
    lease.release(clean=False, now=0.0)
    assert read_once(channel) == "cde"


# What the connection has not taken


def test_what_was_taken_and_not_confirmed_comes_again_however_old_it_is() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "abc")
    lease = read(channel)
    assert take(lease, 1) == "a"
    assert take_only(lease, 2) == "bc"
    lease.release(clean=False, now=50.0)
    assert read_once(channel, now=50.0) == "bc"


def test_the_next_take_confirms_even_if_nothing_is_ready() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "ab")
    lease = read(channel)
    assert [take_only(lease), take_only(lease)] == ["ab", ""]
    lease.release(clean=False, now=50.0)
    assert read_once(channel, now=50.0) == ""


def test_the_redelivery_window_counts_from_the_confirmation() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "ab")
    lease = read(channel)
    assert take_only(lease, 1, now=0.0) == "a"
    assert take_only(lease, 1, now=30.0) == "b"
    lease.confirm(35.0)
    lease.release(clean=False, now=41.0)
    assert read_once(channel, now=41.0) == "b"


def test_a_clean_end_confirms() -> None:
    channel = make()
    write(channel, "ab")
    lease = read(channel)
    assert take_only(lease) == "ab"
    lease.release(clean=True, now=50.0)
    assert read_once(channel, now=50.0) == ""


def test_who_takes_over_gets_what_the_former_reader_had_not_confirmed() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "ab")
    assert take_only(read(channel)) == "ab"
    assert take_only(read(channel, ReadOptions(take_over=True), now=50.0), now=50.0) == "ab"


def test_what_is_not_confirmed_stays_when_writers_get_in() -> None:
    channel = holding("abc", capacity=3)
    lease = read(channel)
    assert take_only(lease) == "abc"
    write(channel, "def")
    lease.release(clean=False, now=50.0)
    assert read_once(channel, now=50.0) == "abcdef"


def test_an_event_can_be_acknowledged_before_its_batch_is_confirmed() -> None:
    channel = holding("abc")
    assert take_only(read(channel, windowed(3))) == "abc"
    assert channel.acknowledge("b", 0.0) == 2


# The bytes of a batch


def heavy(name: str, body_bytes: int) -> Event:
    return Event(event_id=name, stream_id="s", timestamp_us=0, body=b"x" * body_bytes)


def holding_heavy(*sizes: int) -> Channel:
    channel = make(capacity=len(sizes))
    for name, size in zip("abcdefgh", sizes, strict=False):
        channel.offer(heavy(name, size), now=0.0)
    return channel


@pytest.mark.parametrize("options", [PLAIN, windowed(100)])
def test_a_batch_ends_before_it_has_too_many_bytes(options: ReadOptions) -> None:
    cost = 1_000 + EVENT_OVERHEAD_BYTES
    lease = read(holding_heavy(1_000, 1_000, 1_000, 1_000, 1_000), options)
    batches = [take_only(lease, max_bytes=2 * cost + rest) for rest in (0, cost - 1, cost)]
    assert batches == ["ab", "cd", "e"]


def test_an_event_with_more_bytes_than_a_batch_is_one_of_its_own() -> None:
    lease = read(holding_heavy(10, 5_000, 5_000, 10))
    assert [take_only(lease, max_bytes=1_000) for _ in range(5)] == ["a", "b", "c", "d", ""]


def test_small_events_count_with_what_they_cost_beside_their_bodies() -> None:
    lease = read(holding_heavy(1, 1, 1))
    assert take_only(lease, max_bytes=2 * EVENT_OVERHEAD_BYTES + 2) == "ab"


# Acknowledging readers


def test_an_acknowledging_reader_frees_places_by_acknowledging() -> None:
    channel = holding("abc")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease) == "abc"
    assert room(channel) == 0
    channel.acknowledge("b", 0.0)
    assert channel.waiting_writers == 0
    assert room(channel) == 1  # the other place went to the event that `room` left waiting


def test_an_acknowledgement_counts_for_all_events_before_it() -> None:
    channel = holding("abc")
    take(read(channel, ACKNOWLEDGING))
    assert channel.acknowledge("b", 0.0) == 2
    assert channel.acknowledge("c", 0.0) == 1


def test_acknowledging_again_or_what_lies_before_returns_zero() -> None:
    channel = holding("abc")
    take(read(channel, ACKNOWLEDGING))
    channel.acknowledge("b", 0.0)
    assert [channel.acknowledge(name, 0.0) for name in "ab"] == [0, 0]


@EITHER_WAY
def test_what_was_not_acknowledged_is_read_again_first(clean: bool) -> None:
    channel = holding("abc")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease, 2) == "ab"
    channel.acknowledge("a", 0.0)
    lease.release(clean=clean, now=1000.0)
    write(channel, "d", now=1000.0)
    assert read_once(channel, ACKNOWLEDGING, now=1000.0) == "bcd"


def test_what_is_read_again_holds_its_place_all_the_time() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING)
    write_and_wait(channel, "d")
    take(read(channel, ACKNOWLEDGING))
    assert channel.waiting_writers == 1


def test_at_most_a_window_of_events_is_in_flight() -> None:
    channel = holding("abcde", capacity=5)
    lease = read(channel, windowed(2))
    assert [take(lease), take(lease)] == ["ab", ""]
    channel.acknowledge("a", 0.0)
    assert [take(lease), take(lease)] == ["c", ""]
    channel.acknowledge("c", 0.0)
    assert take(lease, 1) + take(lease, 5) == "de"


def test_a_window_wider_than_the_capacity_does_not_widen_it() -> None:
    channel = holding("abc")
    lease = read(channel, windowed(1_000))
    assert take(lease, 1_000) == "abc"
    write_and_wait(channel, "d")
    assert take(lease) == ""


def test_the_window_counts_what_is_read_again() -> None:
    channel = holding("abc")
    read_once(channel, clean=False)
    write(channel, "de")
    lease = read(channel, windowed(2))
    assert [take(lease), take(lease)] == ["ab", ""]


def test_an_unknown_event_cannot_be_acknowledged() -> None:
    channel = holding("abc")
    take(read(channel, ACKNOWLEDGING), 2)
    assert channel.acknowledge("z", 0.0) == 0
    assert channel.acknowledge("b", 0.0) == 2


def test_an_event_that_was_never_sent_cannot_be_acknowledged() -> None:
    channel = holding("abc")
    lease = read(channel, windowed(2))
    assert take(lease) == "ab"
    assert channel.acknowledge("c", 0.0) == 0
    assert room(channel) == 0
    assert channel.acknowledge("b", 0.0) == 2
    assert take(lease, 1) == "c"


def test_an_event_that_waits_cannot_be_acknowledged() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d")
    take(read(channel, ACKNOWLEDGING))
    assert channel.acknowledge("d", 0.0) == 0
    assert waiter.accepted is None


@EITHER_WAY
def test_an_event_can_be_acknowledged_after_its_read_ended(clean: bool) -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING, limit=2, clean=clean)
    assert channel.acknowledge("b", 0.0) == 2
    assert room(channel) == 2
    assert read_once(channel, limit=1) == "c"


def test_an_event_of_an_earlier_read_can_be_acknowledged_during_the_next() -> None:
    channel = holding("abcd", capacity=4)
    read_once(channel, ACKNOWLEDGING, limit=3)
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease, 1) == "a"
    assert channel.acknowledge("c", 0.0) == 3
    assert take(lease) == "d"


def test_a_late_acknowledgement_lets_a_waiter_in() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING)
    waiter = write_and_wait(channel, "d")
    assert channel.acknowledge("a", 0.0) == 1
    assert waiter.accepted is True


def test_an_event_of_a_plain_read_can_be_acknowledged() -> None:
    channel = holding("abc")
    lease = read(channel)
    take(lease)
    assert channel.acknowledge("b", 0.0) == 2
    lease.release(clean=False, now=0.0)
    assert read_once(channel) == "c"


def test_an_event_of_a_broken_plain_read_can_be_acknowledged_after_it() -> None:
    channel = holding("abc")
    read_once(channel, clean=False)
    assert channel.acknowledge("b", 0.0) == 2
    assert read_once(channel) == "c"


def test_an_event_of_a_clean_plain_read_is_delivered_already() -> None:
    channel = holding("abc")
    read_once(channel)
    assert channel.acknowledge("c", 0.0) == 0


# Resuming readers


def test_recovered_is_none_without_a_cursor() -> None:
    assert read(holding("a")).recovered is None


def test_a_resuming_reader_gets_everything_after_the_event() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "de")
    lease = read(channel, resuming("b"))
    assert lease.recovered is True
    assert take(lease) == "cde"


def test_resuming_after_the_last_event_gets_nothing_old() -> None:
    channel = holding("abc")
    read_once(channel, clean=False)
    lease = read(channel, resuming("c"))
    assert (lease.recovered, take(lease)) == (True, "")
    write(channel, "d")
    assert take(lease) == "d"


def test_resuming_after_an_unknown_event_starts_at_the_oldest_kept() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "d")
    lease = read(channel, resuming("z"))
    assert lease.recovered is False
    assert take_all(lease) == "abcd"


def test_resuming_after_an_unknown_event_frees_no_place() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d")
    read(channel, resuming("z"))
    assert waiter.accepted is None


def test_resuming_in_an_empty_channel_is_not_recovered() -> None:
    channel = make()
    lease = read(channel, resuming("z"))
    assert (lease.recovered, take(lease)) == (False, "")


def test_a_cursor_frees_the_places_of_its_event_and_all_before() -> None:
    channel = holding("abc")
    waiters = [write_and_wait(channel, name) for name in "def"]
    read_once(channel, windowed(3))
    assert channel.waiting_writers == 3
    lease = read(channel, resuming("b", acknowledge=True))
    assert [waiter.accepted for waiter in waiters] == [True, True, None]
    assert take(lease) == "cde"


def test_a_cursor_acknowledges() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING)
    read(channel, resuming("b")).release(clean=False, now=0.0)
    assert channel.acknowledge("b", 0.0) == 0
    assert read_once(channel, ACKNOWLEDGING) == "c"


def test_a_cursor_in_the_unsent_events_skips_them() -> None:
    channel = holding("abc")
    lease = read(channel, resuming("b"))
    assert (lease.recovered, take(lease)) == (True, "c")


def test_a_cursor_that_still_waits_for_room_is_not_known() -> None:
    channel = holding("abc")
    write_and_wait(channel, "d")
    lease = read(channel, resuming("d"))
    assert (lease.recovered, take(lease)) == (False, "abc")


def test_a_resuming_acknowledging_reader_gets_again_what_it_does_not_acknowledge() -> None:
    channel = holding("abc")
    read_once(channel)
    options = resuming("a", acknowledge=True)
    assert read_once(channel, options) == "bc"
    assert channel.acknowledge("b", 0.0) == 1
    assert read_once(channel, ACKNOWLEDGING) == "c"


def test_a_cursor_moves_the_next_plain_read_too() -> None:
    channel = holding("abc")
    read_once(channel)
    assert read_once(channel, resuming("a"), clean=False) == "bc"
    assert read_once(channel) == "bc"


# What is kept for replay


def test_the_last_capacity_sent_events_are_kept() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "de")
    read_once(channel)
    lease = read(channel, resuming("c"))
    assert (lease.recovered, take(lease)) == (True, "de")
    lease.release(clean=True, now=0.0)
    lease = read(channel, resuming("z"))
    assert (lease.recovered, take(lease)) == (False, "cde")


def test_nothing_is_missing_after_the_last_event_that_fell_out() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "de")
    read_once(channel)
    lease = read(channel, resuming("b"))
    assert (lease.recovered, take(lease)) == (True, "cde")


def test_an_event_older_than_the_last_that_fell_out_is_not_known() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "de")
    read_once(channel)
    lease = read(channel, resuming("a"))
    assert (lease.recovered, take(lease)) == (False, "cde")


def test_a_forgotten_event_cannot_be_acknowledged() -> None:
    channel = holding("abc")
    lease = read(channel)
    take(lease)
    write(channel, "d")
    take(lease)
    assert channel.acknowledge("a", 0.0) == 0
    assert channel.acknowledge("b", 0.0) == 1


def test_acknowledged_events_are_kept_for_replay_as_well() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING)
    channel.acknowledge("c", 0.0)
    write(channel, "de")
    assert read_once(channel, resuming("a")) == "bcde"


def test_acknowledged_events_fall_out_by_count_as_well() -> None:
    channel = holding("abc")
    lease = read(channel, ACKNOWLEDGING)
    for letters in "abc", "def":
        assert take(lease) == letters
        channel.acknowledge(letters[-1], 0.0)
        if letters == "abc":
            write(channel, "def")
    lease.release(clean=True, now=0.0)
    lease = read(channel, resuming("b"))
    assert (lease.recovered, take(lease)) == (False, "def")


def test_events_that_hold_a_place_do_not_fall_out() -> None:
    channel = holding("ab", capacity=2)
    read_once(channel)
    write(channel, "cd")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease) == "cd"
    lease.release(clean=True, now=0.0)
    lease = read(channel, resuming("a"))
    assert (lease.recovered, take_all(lease)) == (True, "bcd")


def test_events_in_flight_do_not_push_kept_ones_out() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "de")
    lease = read(channel, ACKNOWLEDGING)
    assert take(lease) == "de"
    channel.acknowledge("d", 0.0)
    lease.release(clean=True, now=0.0)
    assert read_once(channel, resuming("z")) == "bcde"


def test_kept_events_do_not_age() -> None:
    channel = make(redelivery_window_s=10.0)
    write(channel, "abc", now=0.0)
    lease = read(channel, now=0.0)
    take(lease, now=0.0)
    lease.release(clean=True, now=100_000.0)
    assert read_once(channel, resuming("a"), now=100_000.0) == "bc"


def test_events_outside_the_redelivery_window_are_kept_for_replay() -> None:
    channel = make(redelivery_window_s=0.0)
    write(channel, "abc")
    read_once(channel, clean=False)
    assert read_once(channel, resuming("a")) == "bc"


def test_a_channel_of_one_keeps_one_event_and_knows_the_one_before() -> None:
    channel = make(capacity=1)
    lease = read(channel)
    for letter in "abc":
        write(channel, letter)
        assert take(lease) == letter
    lease.release(clean=True, now=0.0)
    answers = []
    for cursor in "abc":
        lease = read(channel, resuming(cursor))
        answers.append((lease.recovered, take(lease)))
        lease.release(clean=True, now=0.0)
    assert answers == [(False, "c"), (True, "c"), (True, "")]


# Readers of different kinds one after the other


def test_a_plain_reader_after_an_acknowledging_one_frees_the_places() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING, limit=2)
    lease = read(channel)
    assert take(lease) == "abc"
    assert room(channel) == 3


def test_an_acknowledging_reader_after_a_broken_plain_one_keeps_what_it_gave_back() -> None:
    channel = holding("abc")
    read_once(channel, limit=2, clean=False)
    write(channel, "de")
    for _ in range(2):
        assert read_once(channel, ACKNOWLEDGING) == "abcde"
    assert channel.acknowledge("d", 0.0) == 4
    assert read_once(channel) == "e"


def test_a_plain_reader_counts_only_its_own_events_as_done() -> None:
    channel = holding("abcd", capacity=4)
    read_once(channel, ACKNOWLEDGING, limit=3)
    assert read_once(channel, limit=2) == "ab"
    assert read_once(channel, ACKNOWLEDGING) == "cd"


def test_no_kind_of_reader_breaks_the_order() -> None:
    channel = holding("abc")
    assert read_once(channel, ACKNOWLEDGING, limit=2) == "ab"
    assert read_once(channel, limit=1, clean=False) == "a"
    write(channel, "d")
    assert read_once(channel, resuming("a"), limit=2, clean=False) == "bc"
    assert read_once(channel, windowed(1)) == "b"
    channel.acknowledge("b", 0.0)
    write(channel, "e")
    assert read_once(channel) == "cde"


# Counting what is sent again


def test_redelivered_counts_events_that_had_been_sent_before() -> None:
    channel = holding("abc")
    read_once(channel, limit=2, clean=False)
    lease = read(channel)
    assert redelivered(lease, 1) == 1
    assert redelivered(lease) == 1


def test_redelivered_is_zero_for_a_first_delivery() -> None:
    lease = read(holding("abc"), ACKNOWLEDGING)
    assert redelivered(lease) == 0


def test_redelivered_counts_what_was_not_acknowledged() -> None:
    channel = holding("abc")
    read_once(channel, ACKNOWLEDGING)
    channel.acknowledge("a", 0.0)
    write(channel, "d")
    lease = read(channel, ACKNOWLEDGING)
    assert redelivered(lease) == 2


def test_redelivered_counts_replayed_events() -> None:
    channel = holding("abc")
    read_once(channel)
    write(channel, "d")
    lease = read(channel, resuming("a"))
    assert redelivered(lease) == 2


# Deadlines


def test_a_channel_dies_its_ttl_after_creation() -> None:
    channel = make(ttl_s=60.0)
    assert channel.deadline == 60.0


@EVERY_KIND
@EITHER_WAY
def test_a_channel_dies_its_ttl_after_the_end_of_its_last_read(
    options: ReadOptions, clean: bool
) -> None:
    channel = holding("abc")
    read_once(channel, options, clean=clean, now=10.0)
    read_once(channel, options, clean=clean, now=20.0)
    assert channel.deadline == 80.0


@EVERY_KIND
def test_a_channel_does_not_die_while_it_is_read(options: ReadOptions) -> None:
    channel = make()
    lease = read(channel, options, now=59.0)
    assert channel.deadline is None
    lease.release(clean=True, now=1000.0)
    assert channel.deadline == 1060.0


def test_writing_and_acknowledging_do_not_move_the_deadline() -> None:
    channel = make()
    write(channel, "ab", now=1.0)
    read_once(channel, ACKNOWLEDGING, now=2.0)
    write(channel, "c", now=30.0)
    channel.acknowledge("b", 0.0)
    assert channel.deadline == 62.0


# Request ids


def repeat(channel: Channel, name: str, request_id: str = "r", now: float = 0.0) -> str | Waiter:
    return channel.offer(event(name), now=now, request_id=request_id)


def test_a_repeated_request_id_stores_once_and_answers_alike() -> None:
    channel = make()
    assert [repeat(channel, name) for name in "abc"] == ["a", "a", "a"]
    assert read_once(channel) == "a"


def test_different_request_ids_store_different_events() -> None:
    channel = make()
    assert [repeat(channel, "a", "r1"), repeat(channel, "b", "r2")] == ["a", "b"]
    assert read_once(channel) == "ab"


def test_events_without_request_id_are_all_stored() -> None:
    channel = make()
    assert [channel.offer(event("a"), now=0.0, request_id=None) for _ in "12"] == ["a", "a"]
    assert channel.unsent == 2


def test_a_request_id_is_remembered_for_its_window_and_no_longer() -> None:
    channel = make(idempotency_window_s=60.0)
    assert repeat(channel, "a", now=0.0) == "a"
    assert repeat(channel, "b", now=59.999) == "a"
    assert repeat(channel, "c", now=60.001) == "c"
    assert repeat(channel, "d", now=61.0) == "c"


def test_repeating_does_not_prolong_the_memory() -> None:
    channel = make(idempotency_window_s=60.0)
    repeat(channel, "a", now=0.0)
    assert repeat(channel, "b", now=40.0) == "a"
    assert repeat(channel, "c", now=70.0) == "c"


def test_each_request_id_has_a_window_of_its_own() -> None:
    channel = make(idempotency_window_s=60.0)
    repeat(channel, "a", "r1", now=0.0)
    repeat(channel, "b", "r2", now=30.0)
    assert repeat(channel, "x", "r2", now=70.0) == "b"
    assert repeat(channel, "c", "r1", now=70.0) == "c"


def test_a_request_id_outlives_the_reading_and_forgetting_of_its_event() -> None:
    channel = make(capacity=1)
    repeat(channel, "a")
    for letter in "bcd":
        read_once(channel)
        write(channel, letter)
    assert repeat(channel, "e") == "a"
    assert read_once(channel) == "d"


def test_a_repeated_request_id_is_answered_in_a_full_channel_too() -> None:
    channel = make(capacity=1)
    assert repeat(channel, "a") == "a"
    assert repeat(channel, "b") == "a"
    assert channel.waiting_writers == 0


def test_a_repeat_joins_the_waiter_and_later_gets_its_id() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d", "r")
    assert repeat(channel, "e") is waiter
    assert channel.waiting_writers == 1
    lease = read(channel)
    take(lease)
    assert repeat(channel, "f") == "d"
    assert take(lease) == "d"


def test_a_request_id_is_known_as_long_as_its_event_waits() -> None:
    channel = make(capacity=1, idempotency_window_s=1.0)
    write(channel, "a")
    waiter = write_and_wait(channel, "b", "r")
    assert repeat(channel, "c", now=100.0) is waiter


def test_the_oldest_waiter_keeps_no_other_request_id_alive() -> None:
    channel = make(capacity=2, idempotency_window_s=1.0)
    assert repeat(channel, "a", "early") == "a"
    write(channel, "b")
    waiting = write_and_wait(channel, "c", "waiting")
    assert repeat(channel, "d", "waiting", now=5.0) is waiting
    assert isinstance(repeat(channel, "e", "early", now=5.0), Waiter)
    assert channel.waiting_writers == 2


def test_a_withdrawn_request_id_is_forgotten() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d", "r")
    waiter.join(ignore)
    channel.withdraw(waiter, ignore)
    lease = read(channel)
    take(lease)
    assert repeat(channel, "e") == "e"
    assert take(lease) == "e"


def test_a_request_id_is_kept_while_one_of_its_writers_waits() -> None:
    channel = holding("abc")
    waiter = write_and_wait(channel, "d", "r")
    first, second = partial(ignore), partial(ignore)
    waiter.join(first)
    waiter.join(second)
    channel.withdraw(waiter, first)
    assert repeat(channel, "e") is waiter


def test_a_bounded_number_of_request_ids_is_remembered_oldest_forgotten_first() -> None:
    channel = make(capacity=MOST_KEYS + 10)
    for number in range(MOST_KEYS + 1):
        repeat(channel, f"e{number}", f"r{number}")
    assert repeat(channel, "x", "r1") == "e1"
    assert repeat(channel, "y", f"r{MOST_KEYS}") == f"e{MOST_KEYS}"
    assert repeat(channel, "z", "r0") == "z"


# Closing


def test_close_returns_what_nobody_has_read() -> None:
    assert holding("abc").close() == 3


def test_close_of_an_empty_channel_loses_nothing() -> None:
    assert make().close() == 0


def test_what_a_plain_reader_was_sent_is_not_lost() -> None:
    channel = holding("abc")
    take(read(channel), 2)
    assert channel.close() == 1


def test_what_an_acknowledging_reader_was_sent_is_not_lost() -> None:
    channel = holding("abc")
    take(read(channel, ACKNOWLEDGING), 2)
    channel.acknowledge("a", 0.0)
    assert channel.close() == 1


@EVERY_ENDING
def test_what_was_never_sent_is_lost(options: ReadOptions, clean: bool) -> None:
    channel = holding("abc")
    read_once(channel, options, limit=2, clean=clean)
    assert channel.close() == 1


def test_what_counts_as_done_is_not_lost() -> None:
    channel = make(redelivery_window_s=0.0)
    write(channel, "abc")
    read_once(channel, clean=False)
    assert channel.close() == 0


def test_what_a_resuming_reader_has_acknowledged_is_not_lost() -> None:
    channel = holding("abc")
    read(channel, resuming("b", acknowledge=True))
    assert channel.close() == 1


def test_close_refuses_the_waiters_and_does_not_count_them() -> None:
    channel = holding("abc")
    resolved: list[str] = []
    waiters = [write_and_wait(channel, name) for name in "de"]
    for waiter in waiters:
        waiter.join(partial(resolved.append, waiter.event.id))
    assert channel.close() == 3
    assert [waiter.accepted for waiter in waiters] == [False, False]
    assert resolved == ["d", "e"]
    assert channel.waiting_writers == 0


@EVERY_KIND
def test_close_wakes_the_reader_and_ends_its_lease(options: ReadOptions) -> None:
    channel, woken = holding("abc"), list[bool]()
    lease = read(channel, options, wake=lambda: woken.append(lease.is_open))
    take(lease, 1)
    woken.clear()
    channel.close()
    assert woken[-1:] == [False]
    assert (take(lease), lease.is_open) == ("", False)


@EITHER_WAY
def test_releasing_after_close_changes_nothing(clean: bool) -> None:
    channel = holding("abc")
    lease = read(channel)
    take(lease)
    channel.close()
    lease.release(clean=clean, now=5.0)
    assert (channel.is_read, channel.unsent, lease.is_open) == (False, 0, False)


# Keys


def keyed(channel: Channel, letter: str, now: float, key: str = "key") -> str | Waiter:
    return channel.offer(Event(letter, "s", 0, b"{}"), now=now, request_id=key)


def test_the_window_of_a_key_begins_when_its_event_is_accepted() -> None:
    channel = holding("abc")
    assert isinstance(keyed(channel, "d", now=0.0), Waiter)
    read_once(channel, limit=1, now=50.0)
    assert keyed(channel, "e", now=109.0) == "d"
    read_once(channel, now=110.5)
    assert keyed(channel, "f", now=111.0) == "f"


def test_an_acknowledgement_that_lets_a_writer_in_begins_the_window_of_its_key() -> None:
    channel = holding("abc")
    take(read(channel, ACKNOWLEDGING), 3)
    keyed(channel, "d", now=0.0)
    channel.acknowledge("a", 50.0)
    assert keyed(channel, "e", now=109.0) == "d"


@pytest.mark.parametrize("redelivery_window_s", [0.0, 10.0])
def test_a_long_plain_read_whose_events_were_acknowledged_gets_none_of_them_again(
    redelivery_window_s: float,
) -> None:
    channel = make(redelivery_window_s=redelivery_window_s)
    lease = channel.lease(PLAIN, 0.0)
    for number in range(3 * KEPT):
        write(channel, [name := f"e{number}"], now=float(number))
        assert lease.take(1, 1_000, float(number)) is not None
        channel.acknowledge(name, float(number))
        lease.confirm(float(number))
    channel.drop_replay(3.0 * KEPT)
    assert channel.log.dropped == 3 * KEPT
    lease.release(clean=False, now=3.0 * KEPT)
    assert channel.unsent == 0


def test_a_long_plain_read_gets_again_what_was_sent_within_the_redelivery_window() -> None:
    channel = make(capacity=100)
    lease = channel.lease(PLAIN, 0.0)
    for number in range(3 * KEPT):
        write(channel, [f"e{number}"], now=float(number))
        assert lease.take(1, 1_000, float(number)) is not None
        lease.confirm(float(number))
    lease.release(clean=False, now=3.0 * KEPT)
    assert channel.unsent == 9
