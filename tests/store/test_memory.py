"""The store in memory: waiting, cancellation and time, on a virtual clock.

A channel holds three events here, called by letters, where a test does not say otherwise.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from megaphone.errors import (
    ChannelNotFound,
    ReaderBusy,
    ShuttingDown,
    WriteTimeout,
)
from megaphone.model import ChannelOptions, ReadOptions
from megaphone.store.memory.store import LISTED_AT_ONCE
from megaphone.store.memory.table import ENDED_AT_ONCE, SHARED_LIMITS
from tests.store.conftest import Removed
from tests.support.leases import release
from tests.support.settings import IS_LONG

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.store.conftest import Bench

PLAIN = ReadOptions()
ACKNOWLEDGING = ReadOptions(acknowledge=True)
EVERY_KIND = pytest.mark.parametrize("options", [PLAIN, ACKNOWLEDGING], ids=["plain", "ack"])
EITHER_WAY = pytest.mark.parametrize("clean", [True, False], ids=["clean", "broken"])

virtual_time = pytest.mark.looptime


async def outcome(task: asyncio.Task[str]) -> str:
    """What became of a write: the event's id, or the name of the error."""
    await asyncio.wait([task])
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return type(error).__name__ if error else task.result()


# Waiting for room


@virtual_time
async def test_the_101st_event_waits_10_seconds_and_is_not_taken(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(capacity=100)
    await bench.fill([f"e{n}" for n in range(100)])
    writing = await bench.start(bench.write("late"))
    await bench.at(9.999)
    assert not writing.done()
    assert await outcome(writing) == "WriteTimeout"
    assert bench.now() == 10.0
    assert await bench.read_once() == [f"e{n}" for n in range(100)]
    assert bench.written == 100


@EVERY_KIND
@virtual_time
async def test_the_101st_event_is_taken_at_the_moment_a_reader_makes_room(
    make_bench: Callable[..., Bench], options: ReadOptions
) -> None:
    bench = make_bench(capacity=100)
    await bench.fill([f"e{n}" for n in range(100)])
    writing = await bench.start(bench.write("late"))
    await bench.at(9.999)
    lease = await bench.read(options)
    assert await bench.take(lease, 1) == ["e0"]
    if options.acknowledge:
        await bench.acknowledge("e0")
    assert await writing == "late"
    assert bench.now() == 9.999
    assert (await bench.take(lease))[-1] == "late"
    assert bench.written == 101


@virtual_time
async def test_a_write_after_a_timeout_is_a_new_one(bench: Bench) -> None:
    await bench.fill("abc")
    for event_id in "de":
        with pytest.raises(WriteTimeout):
            await bench.write(event_id)
    assert bench.now() == 20.0
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    assert await bench.write("d") == "d"
    assert await bench.take(lease) == ["d"]


@virtual_time
async def test_20_writers_get_in_first_come_first_served(bench: Bench) -> None:
    await bench.fill("abc")
    finished: list[str] = []

    async def write(event_id: str) -> None:
        finished.append(await bench.write(event_id))

    names = [f"w{n}" for n in range(20)]
    async with asyncio.TaskGroup() as writers:
        for name in names:
            writers.create_task(write(name))
        await asyncio.sleep(0)
        lease = await bench.read()
        taken = [event_id for _ in range(23) for event_id in await bench.take(lease, 1)]
    assert finished == names
    assert taken == ["a", "b", "c", *names]


@virtual_time
async def test_a_newcomer_does_not_overtake_in_the_tick_in_which_room_is_made(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    waiting = await bench.start(bench.write("d"))
    lease = await bench.read()
    await bench.take(lease, 1)
    newcomer = await bench.start(bench.write("e"))
    assert (await waiting, newcomer.done()) == ("d", False)
    assert await bench.take(lease) == ["b", "c", "d"]
    assert await newcomer == "e"


@virtual_time
async def test_room_made_at_the_very_end_of_the_wait_is_told_truly(bench: Bench) -> None:
    await bench.fill("abc")
    writing = await bench.start(bench.write("d"))
    lease = await bench.read()
    await bench.at(10.0)
    assert await bench.take(lease) == ["a", "b", "c"]
    told = await outcome(writing)
    assert told in {"d", "WriteTimeout"}
    assert await bench.take(lease, until=11.0) == (["d"] if told == "d" else [])


# Writers that are cancelled


@virtual_time
async def test_the_next_in_line_gets_the_room_of_a_cancelled_writer(bench: Bench) -> None:
    await bench.fill("abc")
    cancelled, next_in_line = [await bench.start(bench.write(name)) for name in "de"]
    cancelled.cancel()
    lease = await bench.read()
    await bench.at(5.0)
    assert await bench.take(lease, 1) == ["a"]
    assert await next_in_line == "e"
    assert bench.now() == 5.0
    assert await bench.take(lease) == ["b", "c", "e"]


@virtual_time
async def test_the_next_in_line_gets_the_room_also_if_both_happen_in_one_tick(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    cancelled, next_in_line = [await bench.start(bench.write(name)) for name in "de"]
    lease = await bench.read()
    cancelled.cancel()
    assert await bench.take(lease, 2) == ["a", "b"]
    assert await next_in_line == "e"
    await asyncio.wait([cancelled])
    taken = await bench.take(lease)
    assert taken in (["c", "e"], ["c", "d", "e"])
    assert bench.written == 3 + len(taken) - 1


@virtual_time
async def test_an_event_whose_writer_is_cancelled_as_it_gets_in_is_there_once(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    writing = await bench.start(bench.write("d"))
    lease = await bench.read()
    assert await bench.take(lease, 1) == ["a"]
    assert writing.cancel()
    await asyncio.wait([writing])
    assert await bench.take(lease) == ["b", "c", "d"]
    assert await bench.take(lease, until=1.0) == []
    assert bench.written == 4


@virtual_time
async def test_a_writer_may_give_up_by_a_timeout_of_its_own(bench: Bench) -> None:
    await bench.fill("abc")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await bench.write("d")
    assert bench.now() == 2.0
    assert await bench.read_once() == ["a", "b", "c"]


# Request ids


@virtual_time
async def test_a_request_id_is_forgotten_after_a_minute(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    assert await bench.write("a", request_id="r") == "a"
    await bench.at(59.999)
    assert await bench.write("b", request_id="r") == "a"
    await bench.at(60.001)
    assert await bench.write("c", request_id="r") == "c"
    assert await bench.take(lease) == ["a", "c"]


@pytest.mark.parametrize("leaves", [0, 1], ids=["the first", "the second"])
@virtual_time
async def test_when_one_of_them_is_cancelled_the_other_gets_its_answer(
    bench: Bench, leaves: int
) -> None:
    await bench.fill("abc")
    writers = [await bench.start(bench.write(name, request_id="r")) for name in "de"]
    writers.pop(leaves).cancel()
    await bench.at(1.0)
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    assert await writers[0] == "d"
    assert await bench.take(lease) == ["d"]
    assert bench.written == 4


@virtual_time
async def test_when_one_of_them_is_cancelled_as_it_gets_in_the_other_gets_its_answer(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    first, second = [await bench.start(bench.write(name, request_id="r")) for name in "de"]
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    first.cancel()
    assert await second == "d"
    assert await bench.take(lease) == ["d"]
    assert bench.written == 4


@virtual_time
async def test_when_all_of_them_are_cancelled_the_request_id_is_free(bench: Bench) -> None:
    await bench.fill("abc")
    writers = [await bench.start(bench.write(name, request_id="r")) for name in "de"]
    for writing in writers:
        writing.cancel()
    await asyncio.wait(writers)
    assert await bench.read_once() == ["a", "b", "c"]
    assert await bench.write("f", request_id="r") == "f"


@virtual_time
async def test_each_writer_waits_for_its_own_10_seconds(bench: Bench) -> None:
    await bench.fill("abc")
    first = await bench.start(bench.write("d", request_id="r"))
    await bench.at(5.0)
    second = await bench.start(bench.write("e", request_id="r"))
    assert await outcome(first) == "WriteTimeout"
    assert bench.now() == 10.0
    await bench.at(14.999)
    assert not second.done()
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    assert await second == "d"
    assert await bench.take(lease) == ["d"]


# Taking


@virtual_time
async def test_a_waiting_reader_gets_an_event_at_the_moment_it_is_written(bench: Bench) -> None:
    await bench.create()
    taking = await bench.start(bench.take(await bench.read()))
    await bench.at(7.0)
    await bench.write("a")
    assert await taking == ["a"]
    assert bench.now() == 7.0


@virtual_time
async def test_a_waiting_reader_gets_an_event_at_the_moment_its_window_opens(
    bench: Bench,
) -> None:
    await bench.fill("ab")
    lease = await bench.read(ReadOptions(acknowledge=True, in_flight=1))
    assert await bench.take(lease) == ["a"]
    taking = await bench.start(bench.take(lease))
    await bench.at(7.0)
    assert not taking.done()
    assert await bench.acknowledge("a") == 1
    assert await taking == ["b"]
    assert bench.now() == 7.0


@virtual_time
async def test_take_returns_none_at_its_end(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    await bench.at(3.0)
    assert await bench.take(lease, until=20.0) == []
    assert bench.now() == 20.0


@pytest.mark.parametrize("until", [5.0, 4.0])
@virtual_time
async def test_take_does_not_wait_once_its_end_has_passed(bench: Bench, until: float) -> None:
    await bench.fill("abc")
    lease = await bench.read()
    await bench.at(5.0)
    assert await bench.take(lease, until=until) == ["a", "b", "c"]
    assert await bench.take(lease, until=until) == []
    assert bench.now() == 5.0


@virtual_time
async def test_each_take_has_an_end_of_its_own(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    for written, until in enumerate([20.0, 10.0, 30.0, 30.0]):
        taking = await bench.start(bench.take(lease, until=until))
        await bench.write(f"e{written}")
        assert await taking == [f"e{written}"]
    ends = []
    for until in 2.0, 4.0, 30.0, 30.0:
        assert await bench.take(lease, until=until) == []
        ends.append(bench.now())
    assert ends == [2.0, 4.0, 30.0, 30.0]


@virtual_time
async def test_the_end_of_a_cancelled_take_is_not_that_of_the_next(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    for until in 5.0, 15.0:
        taking = await bench.start(bench.take(lease, until=until))
        taking.cancel()
        await asyncio.wait([taking])
    assert await bench.take(lease, until=10.0) == []
    assert bench.now() == 10.0


@virtual_time
async def test_interrupt_ends_the_take_that_waits(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    taking = await bench.start(bench.take(lease))
    await bench.at(5.0)
    lease.interrupt()
    assert await taking == []
    assert bench.now() == 5.0


@virtual_time
async def test_interrupt_ends_every_later_take_and_loses_nothing(bench: Bench) -> None:
    await bench.fill("abc")
    lease = await bench.read()
    assert await bench.take(lease, 1) == ["a"]
    lease.interrupt()
    assert [await bench.take(lease), await bench.take(lease)] == [[], []]
    assert bench.now() == 0.0
    release(lease, clean=True)
    assert await bench.read_once() == ["b", "c"]


@virtual_time
async def test_an_event_written_in_the_tick_of_an_interrupt_is_not_lost(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    taking = await bench.start(bench.take(lease))
    await bench.write("a")
    lease.interrupt()
    taken = await taking
    release(lease, clean=True)
    assert taken + await bench.read_once() == ["a"]


@virtual_time
async def test_a_cancelled_take_loses_nothing(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    taking = await bench.start(bench.take(lease))
    taking.cancel()
    await asyncio.wait([taking])
    await bench.write("a")
    assert await bench.take(lease) == ["a"]


@virtual_time
async def test_a_take_that_is_cancelled_as_its_event_comes_loses_nothing(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    taking = await bench.start(bench.take(lease))
    await bench.write("a")
    assert taking.cancel()
    await asyncio.wait([taking])
    assert taking.cancelled()
    assert await bench.take(lease) == ["a"]
    assert (bench.taken, bench.redelivered) == (1, 0)


@virtual_time
async def test_a_take_may_be_given_up_by_a_timeout_and_repeated(bench: Bench) -> None:
    await bench.create()
    lease = await bench.read()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await bench.take(lease)
    taking = await bench.start(bench.take(lease))
    await bench.write("a")
    assert await taking == ["a"]


@virtual_time
async def test_it_is_returned_what_was_read_before(bench: Bench) -> None:
    await bench.fill("abc")
    assert await bench.read_once(clean=False) == ["a", "b", "c"]
    assert (bench.taken, bench.redelivered) == (3, 0)
    await bench.write("d")
    assert await bench.read_once() == ["a", "b", "c", "d"]
    assert (bench.taken, bench.redelivered) == (7, 3)


@virtual_time
async def test_what_is_read_again_bit_by_bit_is_counted_once(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.read_once(clean=False)
    lease = await bench.read()
    assert [await bench.take(lease, 1) for _ in "123"] == [["a"], ["b"], ["c"]]
    assert (bench.taken, bench.redelivered) == (6, 3)


# One reader at a time


@virtual_time
async def test_releasing_twice_leaves_the_next_reader_alone(bench: Bench) -> None:
    await bench.create()
    old = await bench.read()
    release(old, clean=True)
    present = await bench.read()
    release(old, clean=False)
    with pytest.raises(ReaderBusy):
        await bench.read()
    await bench.write("a")
    assert await bench.take(present) == ["a"]


@virtual_time
async def test_a_reader_that_loses_its_place_is_told_at_once(bench: Bench) -> None:
    await bench.fill("ab")
    old = await bench.read()
    assert await bench.take(old) == ["a", "b"]
    taking = await bench.start(bench.take(old))
    await bench.at(5.0)
    new = await bench.read(ReadOptions(take_over=True))
    assert await taking == []
    assert bench.now() == 5.0
    assert (old.is_over, new.is_over) == (True, False)
    release(old, clean=True)
    assert await bench.take(new) == ["a", "b"]
    with pytest.raises(ReaderBusy):
        await bench.read()


@virtual_time
async def test_an_event_that_comes_as_the_reader_changes_is_not_lost(bench: Bench) -> None:
    await bench.create()
    old = await bench.read()
    taking = await bench.start(bench.take(old))
    await bench.write("a")
    new = await bench.read(ReadOptions(take_over=True))
    assert await bench.take(new) == ["a"]
    assert await taking == []


@virtual_time
async def test_a_lease_is_over_when_no_more_events_will_come(bench: Bench) -> None:
    await bench.create("gone")
    await bench.create("c")
    removed, interrupted = await bench.read(channel="gone"), await bench.read()
    assert await bench.take(removed, until=5.0) == []
    assert [removed.is_over, interrupted.is_over] == [False, False]
    await bench.remove("gone")
    interrupted.interrupt()
    assert [removed.is_over, interrupted.is_over] == [True, True]
    release(interrupted, clean=True)
    released = await bench.read()
    release(released, clean=True)
    assert released.is_over


@virtual_time
async def test_a_resuming_reader_learns_whether_its_event_was_known(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.read_once()
    answers = []
    for event_id in None, "b", "z":
        lease = await bench.read(ReadOptions(cursor=event_id))
        answers.append((lease.recovered, await bench.take(lease, until=bench.now() + 1)))
        release(lease, clean=True)
    assert answers == [(None, []), (True, ["c"]), (False, ["a", "b", "c"])]


# Finding channels


@pytest.mark.parametrize("address", ["agent.C.1", "agent.c.0", "Agent.c.1", "agent.c.1 ", ""])
@virtual_time
async def test_an_address_that_is_not_exactly_the_channel_s_finds_nothing(
    bench: Bench, address: str
) -> None:
    await bench.fill("abc")
    with pytest.raises(ChannelNotFound):
        await bench.store.open(b"c", address, PLAIN)
    await bench.read_once(ACKNOWLEDGING)
    with pytest.raises(ChannelNotFound):
        await bench.store.acknowledge(b"c", address, "c")
    assert await bench.read_once() == ["a", "b", "c"]


@virtual_time
async def test_a_channel_that_never_was_is_not_found(bench: Bench) -> None:
    assert not await bench.exists()
    calls: list[Callable[[], Coroutine[None, None, object]]] = [
        lambda: bench.write("a"),
        bench.read,
        lambda: bench.acknowledge("a"),
        bench.remove,
    ]
    for call in calls:
        with pytest.raises(ChannelNotFound):
            await call()


@virtual_time
async def test_addresses_are_listed_oldest_first_page_by_page(bench: Bench) -> None:
    for channel in "dacbe":
        await bench.create(channel)
    await bench.remove("c")
    assert list(await bench.store.list(None, 0, 100)) == [bench.address(c) for c in "dabe"]
    assert list(await bench.store.list(None, 1, 2)) == [bench.address(c) for c in "ab"]
    assert list(await bench.store.list(None, 4, 2)) == []
    assert list(await bench.store.list(None, 0, 0)) == []


@virtual_time
async def test_channels_are_counted_by_the_whole_name_of_their_agent(bench: Bench) -> None:
    for number, agent in enumerate(["a", "ab", "a", "b"]):
        await bench.store.create(bytes([number]), f"{agent}.secret{number}.1")
    counts = [await bench.store.count(agent) for agent in ("a", "ab", "b", "c", "")]
    assert counts == [2, 1, 1, 0, 0]
    await bench.store.remove(b"\0")
    assert await bench.store.count("a") == 1
    await bench.replication.release(b"\1")
    assert [await bench.store.count(agent) for agent in ("a", "ab", "b")] == [1, 0, 1]
    await bench.at(60.0)
    assert [await bench.store.count(agent) for agent in ("a", "ab", "b")] == [0, 0, 0]


@virtual_time
async def test_a_channel_that_expired_makes_room_for_another(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(max_channels=1)
    await bench.create("a")
    await bench.at(60.0)
    await bench.create("b")
    assert (await bench.exists("a"), await bench.exists("b")) == (False, True)


# Expiry


@virtual_time
async def test_a_channel_that_is_never_read_dies_60_seconds_after_creation(bench: Bench) -> None:
    await bench.at(1.0)
    await bench.create()
    await bench.at(60.999)
    assert await bench.exists()
    await bench.at(61.0)
    assert not await bench.exists()
    with pytest.raises(ChannelNotFound):
        await bench.write("a")
    with pytest.raises(ChannelNotFound):
        await bench.read()


@EVERY_KIND
@EITHER_WAY
@virtual_time
async def test_a_channel_dies_60_seconds_after_the_end_of_its_last_read(
    bench: Bench, options: ReadOptions, clean: bool
) -> None:
    await bench.create()
    for start, end in (10.0, 30.0), (40.0, 55.0):
        await bench.at(start)
        lease = await bench.read(options)
        await bench.at(end)
        release(lease, clean=clean)
    for later in 49.999, 59.999:
        await bench.at(55.0 + later)
        assert await bench.exists()
    await bench.at(115.0)
    assert not await bench.exists()
    assert [removed.at for removed in bench.removed] == [115.0]


@EVERY_KIND
@virtual_time
async def test_a_channel_does_not_die_while_it_is_read(bench: Bench, options: ReadOptions) -> None:
    await bench.create()
    lease = await bench.read(options)
    assert await bench.take(lease, until=1_000.0) == []
    assert bench.now() == 1_000.0
    assert await bench.write("a") == "a"
    assert await bench.take(lease) == ["a"]
    release(lease, clean=True)
    await bench.at(1_059.999)
    assert await bench.exists()
    await bench.at(1_060.0)
    assert not await bench.exists()
    assert [removed.at for removed in bench.removed] == [1_060.0]


@virtual_time
async def test_writing_does_not_keep_a_channel_alive(bench: Bench) -> None:
    await bench.create()
    await bench.at(59.0)
    await bench.write("a")
    await bench.at(60.0)
    assert not await bench.exists()


@virtual_time
async def test_channels_die_each_at_its_own_time(bench: Bench) -> None:
    for time, channel in enumerate("abcd"):
        await bench.at(float(time))
        await bench.create(channel)
    await bench.at(30.0)
    release(await bench.read(channel="b"), clean=True)
    await bench.at(200.0)
    assert [(removed.address, removed.at) for removed in bench.removed] == [
        (bench.address("a"), 60.0),
        (bench.address("c"), 62.0),
        (bench.address("d"), 63.0),
        (bench.address("b"), 90.0),
    ]


@virtual_time
async def test_a_channel_made_after_all_others_are_gone_dies_in_time_too(bench: Bench) -> None:
    await bench.create("a")
    await bench.at(100.0)
    await bench.create("b")
    await bench.remove("b")
    await bench.at(300.0)
    await bench.create("c")
    await bench.at(1_000.0)
    assert [removed.at for removed in bench.removed] == [60.0, 100.0, 360.0]


@virtual_time
async def test_it_is_told_once_what_was_lost(bench: Bench) -> None:
    await bench.at(2.0)
    await bench.fill("abc")
    lease = await bench.read()
    await bench.take(lease, 1)
    await bench.at(5.0)
    release(lease, clean=True)
    await bench.at(500.0)
    (removed,) = bench.removed
    assert (removed.address, removed.age_s, removed.lost) == (bench.address("c"), 63.0, 2)
    assert removed.at == 65.0


@virtual_time
async def test_a_writer_that_waits_is_told_when_the_channel_expires(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.at(55.0)
    writing = await bench.start(bench.write("d"))
    assert await outcome(writing) == "ChannelNotFound"
    assert bench.now() == 60.0
    assert [removed.lost for removed in bench.removed] == [3]


# Removal


@virtual_time
async def test_a_removed_channel_is_gone_at_once(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.at(5.0)
    await bench.remove()
    assert not await bench.exists()
    with pytest.raises(ChannelNotFound):
        await bench.remove()
    await bench.at(500.0)
    (removed,) = bench.removed
    assert (removed.age_s, removed.lost, removed.at) == (5.0, 3, 5.0)


@virtual_time
async def test_writers_that_wait_are_told_when_the_channel_is_removed(bench: Bench) -> None:
    await bench.fill("abc")
    writers = [await bench.start(bench.write(name, request_id=name)) for name in "dde"]
    await bench.at(5.0)
    await bench.remove()
    assert [await outcome(writing) for writing in writers] == ["ChannelNotFound"] * 3
    assert bench.now() == 5.0
    assert bench.written == 3


@EVERY_KIND
@virtual_time
async def test_the_reader_is_told_when_the_channel_is_removed(
    bench: Bench, options: ReadOptions
) -> None:
    await bench.create()
    lease = await bench.read(options)
    taking = await bench.start(bench.take(lease))
    await bench.at(5.0)
    await bench.remove()
    assert await taking == []
    assert bench.now() == 5.0
    assert await bench.take(lease) == []
    release(lease, clean=True)
    assert len(bench.removed) == 1


@EITHER_WAY
@virtual_time
async def test_a_reader_of_a_removed_channel_leaves_its_successor_alone(
    bench: Bench, clean: bool
) -> None:
    await bench.create()
    old = await bench.read()
    await bench.remove()
    await bench.at(5.0)
    await bench.fill("a")
    present = await bench.read()
    release(old, clean=clean)
    assert await bench.take(old) == []
    assert await bench.take(present) == ["a"]
    await bench.at(500.0)
    assert await bench.exists()


@virtual_time
async def test_a_channel_that_lives_shorter_than_older_ones_is_removed_at_its_own_deadline(
    bench: Bench,
) -> None:
    await bench.create("old")
    await bench.at(1.0)
    await bench.store.create(b"short", bench.address("short"), ChannelOptions(ttl_s=2.0))
    await bench.at(61.0)
    assert [(removed.address, removed.at) for removed in bench.removed] == [
        (bench.address("short"), 3.0),
        (bench.address("old"), 60.0),
    ]


@virtual_time
async def test_the_deadline_of_a_removed_channel_does_not_hit_its_successor(bench: Bench) -> None:
    await bench.create()
    await bench.remove()
    await bench.at(30.0)
    await bench.create()
    await bench.at(89.999)
    assert await bench.exists()
    await bench.at(90.0)
    assert not await bench.exists()


# Shutting down


@virtual_time
async def test_writers_that_wait_are_refused_at_once_when_the_node_stops(bench: Bench) -> None:
    await bench.fill("abc")
    writers = [await bench.start(bench.write(name, request_id=name)) for name in "dde"]
    await bench.at(5.0)
    await bench.store.quiesce()
    assert [await outcome(writing) for writing in writers] == ["ShuttingDown"] * 3
    assert bench.now() == 5.0
    assert await bench.read_once() == ["a", "b", "c"]
    assert bench.written == 3


@virtual_time
async def test_writers_that_would_wait_are_refused_then_and_others_are_not(bench: Bench) -> None:
    await bench.fill("ab")
    await bench.store.quiesce()
    assert await bench.write("c") == "c"
    with pytest.raises(ShuttingDown):
        await bench.write("d")
    assert bench.now() == 0.0
    assert await bench.read_once() == ["a", "b", "c"]


@virtual_time
async def test_a_writer_that_got_in_as_the_node_stops_is_told_truly(bench: Bench) -> None:
    await bench.fill("abc")
    writing = await bench.start(bench.write("d"))
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    await bench.store.quiesce()
    assert await writing == "d"
    assert await bench.take(lease) == ["d"]


@EVERY_KIND
@virtual_time
async def test_closing_the_store_ends_what_waits_and_counts_what_is_lost(
    bench: Bench, options: ReadOptions
) -> None:
    await bench.create("idle")
    await bench.fill("abc")
    writing = await bench.start(bench.write("d"))
    taking = await bench.start(bench.take(await bench.read(options, "idle")))
    await bench.at(5.0)
    await bench.close()
    assert await taking == []
    assert await outcome(writing) in {"ChannelNotFound", "ShuttingDown"}
    await bench.at(500.0)
    told = {(removed.address, removed.lost, removed.at) for removed in bench.removed}
    assert told == {(bench.address("idle"), 0, 5.0), (bench.address("c"), 3, 5.0)}
    assert len(bench.removed) == 2


# Many channels, of which some go meanwhile


async def expire_many(bench: Bench) -> list[str]:
    """Let more channels expire than end in one turn. Returns: those that are yet to end."""
    channels = [f"c{number}" for number in range(4 * ENDED_AT_ONCE)]
    for channel in channels:
        await bench.create(channel)
        await bench.write("a", channel=channel)
    await bench.at(60.0)
    ended = {removed.address for removed in bench.removed}
    left = [channel for channel in channels if bench.address(channel) not in ended]
    assert 0 < len(left) < len(channels)
    return left


@virtual_time
async def test_a_channel_that_is_yet_to_end_is_dead_nevertheless(bench: Bench) -> None:
    channel = (await expire_many(bench))[-1]
    assert not await bench.exists(channel)
    assert await bench.append_all("b", channel=channel) == ["ChannelNotFound"]
    for call in (bench.read(channel=channel), bench.remove(channel)):
        with pytest.raises(ChannelNotFound):
            await call
    assert bench.address(channel) not in {removed.address for removed in bench.removed}


@virtual_time
async def test_a_channel_takes_the_place_of_a_dead_one_and_lives_its_whole_time(
    bench: Bench,
) -> None:
    channel = (await expire_many(bench))[-1]
    await bench.create(channel)
    removed = [one for one in bench.removed if one.address == bench.address(channel)]
    assert [(one.at, one.lost) for one in removed] == [(60.0, 1)]
    await bench.write("new", channel=channel)
    await bench.at(119.9)
    assert await bench.exists(channel)
    await bench.at(120.1)
    assert bench.removed[-1] == Removed(bench.address(channel), 60.0, 1, 120.0)
    assert len(bench.removed) == 4 * ENDED_AT_ONCE + 1


@virtual_time
async def test_channels_are_listed_in_slices_and_those_that_go_meanwhile_are_left_out(
    bench: Bench,
) -> None:
    channels = [f"c{number}" for number in range(LISTED_AT_ONCE + 3)]
    for channel in channels:
        await bench.create(channel)
    listing = await bench.start(bench.store.list(None, LISTED_AT_ONCE - 2, 100))
    assert not listing.done()
    await bench.remove(channels[-4])
    await bench.remove(channels[-3])
    assert await listing == [bench.address(channels[index]) for index in (-5, -4, -2, -1)]


@virtual_time
async def test_channels_that_are_removed_while_the_store_closes_end_once(bench: Bench) -> None:
    channels = [f"c{number}" for number in range(2 * ENDED_AT_ONCE)]
    for channel in channels:
        await bench.create(channel)
    closing = await bench.start(bench.close())
    assert not closing.done()
    [first] = bench.removed
    others = [channel for channel in channels if bench.address(channel) != first.address]
    for channel in others[:3]:
        await bench.remove(channel)
    await closing
    assert sorted(one.address for one in bench.removed) == sorted(map(bench.address, channels))


# What is left over


def what_waits() -> int:
    """How many futures, tasks and timers there are that can still come to something.

    Those of another loop do not count: earlier tests may have left some, which go meanwhile.
    """
    gc.collect()
    loop = asyncio.get_running_loop()
    waiting = 0
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, asyncio.Future):
            waiting += thing.get_loop() is loop
        elif issubclass(kind, asyncio.TimerHandle):
            waiting += thing._loop is loop and not thing.cancelled()
    return waiting


@virtual_time
async def test_waiting_leaves_nothing_behind(bench: Bench) -> None:
    await bench.fill("abc")
    before = what_waits()
    for number in range(10):
        lease = await bench.read(ACKNOWLEDGING)
        gets_in = await bench.start(bench.write(f"e{number}"))
        leaves = await bench.start(bench.write("never"))
        leaves.cancel()
        await bench.acknowledge((await bench.take(lease, 1))[0])
        assert [await outcome(gets_in), await outcome(leaves)] == [f"e{number}", "cancelled"]
        await bench.take(lease)
        taking = await bench.start(bench.take(lease))
        lease.interrupt()
        assert await taking == []
        release(lease, clean=True)
    del gets_in, leaves, taking, lease
    await asyncio.sleep(0)  # the loop itself keeps its last callback until the next
    assert what_waits() == before


@virtual_time
async def test_a_closed_store_leaves_nothing_behind(bench: Bench) -> None:
    before = what_waits()
    await bench.fill("abc")
    await bench.close()
    assert what_waits() == before


@virtual_time
async def test_more_lifetimes_than_the_store_remembers_are_all_kept(bench: Bench) -> None:
    ages = range(1, SHARED_LIMITS + 3)
    for age_s in ages:
        name = f"c{age_s}"
        await bench.store.create(name.encode(), bench.address(name), ChannelOptions(ttl_s=age_s))
    await bench.at(bench.now() + ages[-1] + 1)
    assert [round(one.age_s) for one in bench.removed] == list(ages)


# Many at once, in real time


async def test_many_channels_at_once_lose_and_disorder_nothing(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(capacity=10)
    channels = [f"c{n}" for n in range(1_000 if IS_LONG else 200)]
    received: dict[str, list[str]] = {channel: [] for channel in channels}
    until = bench.now() + 60.0

    async def write(channel: str, writer: str) -> None:
        for number in range(50):
            await bench.write(f"{writer}{number:02}", channel=channel)

    async def read(channel: str, options: ReadOptions) -> None:
        lease = await bench.read(options, channel)
        while len(received[channel]) < 100:
            event_ids = await bench.take(lease, 7, until)
            assert event_ids
            received[channel] += event_ids
            if options.acknowledge:
                assert await bench.acknowledge(event_ids[-1], channel) == len(event_ids)
        release(lease, clean=True)

    for channel in channels:
        await bench.create(channel)
    async with asyncio.TaskGroup() as tasks:
        for number, channel in enumerate(channels):
            tasks.create_task(read(channel, (PLAIN, ACKNOWLEDGING)[number % 2]))
            for writer in "xy":
                tasks.create_task(write(channel, writer))

    for event_ids in received.values():
        for writer in "xy":
            own = [event_id for event_id in event_ids if event_id.startswith(writer)]
            assert own == [f"{writer}{number:02}" for number in range(50)]
    assert (bench.written, bench.taken) == (100 * len(channels), 100 * len(channels))
    assert bench.redelivered == 0
