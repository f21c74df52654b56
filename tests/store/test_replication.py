"""Following the channels of an agent, and feeding a store with what was told.

A channel holds three events here, called by letters. What is told is written as words: `+c` and
`-c` for a channel that is added and ended, `c:a1` for event a with number 1 (`c:a1=k` with key k),
`c!a=k` for the key of an event that is gone, `c>a1` for events forgotten up to a, and `c@a~b` for a
position after a when b was sent, with `?` if there is a gap.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from megaphone.core.ports import Append
from megaphone.core.tenants import Tenant
from megaphone.errors import ChannelNotFound, ReaderBusy, WriteTimeout
from megaphone.model import (
    START,
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    ChannelOptions,
    Event,
    EventAdded,
    EventsForgotten,
    KeyAdded,
    Progress,
    ProgressMade,
    ReadOptions,
)
from megaphone.store.memory.changes import LOOKED_AT_ONCE
from tests.support.leases import release
from tests.support.settings import IS_LONG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from megaphone.cluster.ports import Changes
    from megaphone.core.ports import Lease
    from tests.store.conftest import Bench

ACKNOWLEDGING = ReadOptions(acknowledge=True)
SEEDS = range(60 if IS_LONG else 30)
EITHER_WAY = pytest.mark.parametrize("with_read", [True, False], ids=["all", "unread"])

virtual_time = pytest.mark.looptime


def name_of(address: str) -> str:
    return address.split(".")[1]


def word(change: ChannelChange) -> str:
    name = name_of(change.address)
    match change:
        case ChannelAdded():
            return f"+{name}"
        case ChannelEnded():
            return f"-{name}"
        case EventAdded(event=event, offset=number, key=key):
            return f"{name}:{event.id}{number}" + ("" if key is None else f"={key.request_id}")
        case KeyAdded(event_id=event_id, key=key):
            return f"{name}!{event_id}={key.request_id}"
        case EventsForgotten(event_id=event_id, offset=number):
            return f"{name}>{event_id}{number}"
        case ProgressMade(progress=progress):
            also_sent = "" if progress.sent == progress.cursor else f"~{progress.sent}"
            return f"{name}@{progress.cursor}{also_sent}{'?' * progress.has_gap}"


def words(changes: Iterable[ChannelChange]) -> str:
    return " ".join(map(word, changes))


async def told(changes: Changes, limit: int = 100) -> str:
    """What is told at once."""
    return words(await told_at_once(changes, limit))


async def told_at_once(changes: Changes, limit: int = 100) -> list[ChannelChange]:
    taken: list[ChannelChange] = []
    while more := await asyncio.wait_for(changes.take(limit, wait=False), 0.001):
        taken += more
    return taken


def follow(bench: Bench, *, with_read: bool = False) -> Changes:
    changes = bench.replication.follow("agent")
    changes.restart(with_read=with_read)
    return changes


async def read_some(bench: Bench, limit: int, channel: str = "c", *, clean: bool = True) -> None:
    lease = await bench.read(channel=channel)
    await bench.take(lease, limit)
    release(lease, clean=clean)


def event(name: str) -> Event:
    return Event(name, "s", 0, b"{}")


def added(name: str, number: int = 0) -> EventAdded:
    return EventAdded("", event(name), number)


async def is_read(bench: Bench) -> bool:
    state = await bench.replication.state(b"c")
    assert state is not None
    return state.is_read


async def cursor_here(bench: Bench) -> str | None:
    state = await bench.replication.state(b"c")
    assert state is not None
    return state.cursor


# What was there before


@virtual_time
async def test_nothing_is_pending_without_channels(bench: Bench) -> None:
    changes = bench.replication.follow("agent")
    assert await told(changes) == ""
    taking = await bench.start(changes.take(10))
    assert not taking.done()
    taking.cancel()


@EITHER_WAY
@virtual_time
async def test_channels_are_told_with_what_they_hold(bench: Bench, with_read: bool) -> None:
    await bench.fill("ab")
    await bench.create("d")
    assert await told(follow(bench, with_read=with_read)) == "+c c:a1 c:b2 +d"


@virtual_time
async def test_what_was_read_is_told_only_if_asked_for(bench: Bench) -> None:
    await bench.fill("abc")
    await read_some(bench, 2)
    assert await told(follow(bench)) == "+c c:c3"
    assert await told(follow(bench, with_read=True)) == "+c c:a1 c:b2 c:c3 c@b"


@virtual_time
async def test_what_is_not_acknowledged_is_yet_to_be_read(bench: Bench) -> None:
    await bench.fill("abc")
    lease = await bench.read(ACKNOWLEDGING)
    await bench.take(lease)
    await bench.acknowledge("a")
    assert await told(follow(bench)) == "+c c:b2 c:c3"
    assert await told(follow(bench, with_read=True)) == "+c c:a1 c:b2 c:c3 c@a~c"


@virtual_time
async def test_what_is_kept_no_more_is_told_to_be_forgotten(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.read_once()
    await bench.write("d")
    await bench.read_once()
    assert await told(follow(bench, with_read=True)) == "+c c>a1 c:b2 c:c3 c:d4 c@d"
    assert await told(follow(bench)) == "+c"


@virtual_time
async def test_other_agents_are_not_told_of(bench: Bench) -> None:
    for name in ("other", "agent2", "agen"):
        await bench.store.create(name.encode(), f"{name}.c.1")
    changes = bench.replication.follow("agent")
    await bench.store.create(b"later", "agent2.later.1")
    await bench.store.append([Append(b"other", event("a"))], wait=False)
    await bench.store.remove(b"other")
    assert await told(changes) == ""


# What happens meanwhile


@virtual_time
async def test_what_happens_is_told_as_it_happens(bench: Bench) -> None:
    changes = follow(bench, with_read=True)
    for happens, expected in [
        (bench.create(), "+c"),
        (bench.write("a"), "c:a1"),
        (bench.write("b"), "c:b2"),
        (read_some(bench, 1), "c@a"),
        (read_some(bench, 1), "c@b"),
        (bench.remove(), "-c"),
    ]:
        taking = await bench.start(changes.take(10))
        assert not taking.done()
        await happens
        assert words(await taking) == expected
    assert await told(changes) == ""


@virtual_time
async def test_acknowledgements_move_the_position(bench: Bench) -> None:
    await bench.fill("abc")
    changes = follow(bench, with_read=True)
    lease = await bench.read(ACKNOWLEDGING)
    await bench.take(lease)
    assert await told(changes) == "+c c:a1 c:b2 c:c3 c@-~c"
    await bench.acknowledge("b")
    assert await told(changes) == "c@b~c"


@virtual_time
async def test_a_position_that_goes_back_is_told(bench: Bench) -> None:
    await bench.fill("abc")
    changes = follow(bench, with_read=True)
    await bench.read_once()
    assert await told(changes) == "+c c:a1 c:b2 c:c3 c@c"
    await bench.read(ReadOptions(cursor="a"))
    assert await told(changes) == "c@a~c"
    await bench.read(ReadOptions(cursor=START, take_over=True))
    assert await told(changes) == "c@-~c"


@virtual_time
async def test_an_event_that_is_read_before_it_was_told_is_told(bench: Bench) -> None:
    await bench.fill("a")
    changes = follow(bench)
    assert await told(changes) == "+c c:a1"
    await bench.write("b")
    await bench.read_once()
    assert await told(changes) == "c:b2"


@virtual_time
async def test_the_event_of_a_writer_that_waited_is_told(bench: Bench) -> None:
    await bench.fill("abc")
    changes = follow(bench)
    await told(changes)
    lease = await bench.read()
    writing = await bench.start(bench.write("d"))
    assert await told(changes) == ""
    await bench.take(lease, 1)
    await writing
    assert await told(changes) == "c:d4"


@EITHER_WAY
@virtual_time
async def test_a_take_that_does_not_wait_returns_what_there_is(
    bench: Bench, with_read: bool
) -> None:
    await bench.fill("ab")
    changes = follow(bench, with_read=with_read)
    assert words(await changes.take(3, wait=False)) == "+c c:a1 c:b2"
    lease = await bench.read()
    await bench.take(lease, 1)
    assert words(await changes.take(3, wait=False)) == ("c@a" if with_read else "")
    await bench.remove()
    assert words(await changes.take(3, wait=False)) == "-c"
    release(lease, clean=True)
    assert await changes.take(3, wait=False) == ()


@virtual_time
async def test_nothing_is_pending_after_as_many_events_as_the_limit(bench: Bench) -> None:
    await bench.fill("ab")
    changes = follow(bench)
    assert words(await changes.take(2)) == "+c c:a1 c:b2"
    assert await told(changes) == ""


@virtual_time
async def test_expiry_is_told(bench: Bench) -> None:
    await bench.create()
    changes = follow(bench)
    await told(changes)
    assert words(await changes.take(10)) == "-c"
    assert bench.now() == 60.0


@virtual_time
async def test_a_channel_that_ended_before_it_was_told_is_not_told_of(bench: Bench) -> None:
    changes = follow(bench)
    await bench.fill("ab")
    await bench.remove()
    await bench.create("d")
    assert await told(changes) == "+d"


@virtual_time
async def test_what_was_told_in_part_is_told_to_have_ended(bench: Bench) -> None:
    await bench.fill("abc")
    changes = follow(bench)
    assert words(await changes.take(1)) == "+c c:a1"
    await bench.remove()
    assert await told(changes) == "-c"


@virtual_time
async def test_a_limit_smaller_than_a_channel_gives_each_its_turn(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.create("d")
    await bench.write("x", channel="d")
    changes = follow(bench, with_read=True)
    batches = []
    while batch := words(await changes.take(1, wait=False)):
        batches.append(batch)
    assert max(batch.count(":") for batch in batches) == 1
    assert batches[:2] == ["+c c:a1", "+d d:x1"]
    joined = " ".join(batches).split()
    assert [w for w in joined if "c" in w] == ["+c", "c:a1", "c:b2", "c:c3"]


@virtual_time
async def test_what_was_forgotten_before_it_was_told_leaves_a_gap_in_the_numbers(
    bench: Bench,
) -> None:
    await bench.fill("a")
    changes = follow(bench)
    assert await told(changes) == "+c c:a1"
    for event_id in "bcdef":
        await bench.write(event_id)
        await bench.read_once()
    assert await told(changes) == "c:d4 c:e5 c:f6"


@virtual_time
async def test_a_cancelled_take_takes_nothing(bench: Bench) -> None:
    changes = follow(bench)
    taking = await bench.start(changes.take(10))
    await bench.fill("a")
    taking.cancel()
    await asyncio.wait([taking])
    assert await told(changes) == "+c c:a1"
    taking = await bench.start(changes.take(10))
    taking.cancel()
    await asyncio.wait([taking])
    await bench.write("b")
    assert await told(changes) == "c:b2"


@virtual_time
async def test_restart_tells_all_again_and_as_it_is_asked_to(bench: Bench) -> None:
    await bench.fill("ab")
    await bench.create("gone")
    changes = follow(bench, with_read=True)
    await told(changes)
    await read_some(bench, 1)
    await bench.remove("gone")
    changes.restart(with_read=True)
    assert await told(changes) == "+c c:a1 c:b2 c@a"
    changes.restart(with_read=False)
    assert await told(changes) == "+c c:b2"
    await read_some(bench, 1)
    assert await told(changes) == ""
    changes.restart(with_read=True)
    assert await told(changes) == "+c c:a1 c:b2 c@b"


@virtual_time
async def test_restart_wakes_a_take_that_waits(bench: Bench) -> None:
    await bench.fill("a")
    changes = follow(bench)
    await told(changes)
    taking = await bench.start(changes.take(10))
    changes.restart(with_read=False)
    assert words(await taking) == "+c c:a1"


@virtual_time
async def test_followers_do_not_disturb_each_other(bench: Bench) -> None:
    await bench.fill("a")
    first, second = follow(bench), follow(bench, with_read=True)
    assert await told(first) == "+c c:a1"
    await bench.write("b")
    assert await told(second) == "+c c:a1 c:b2"
    first.close()
    await bench.write("c")
    assert await told(second) == "c:c3"


@virtual_time
async def test_after_close_nothing_is_told_any_more(bench: Bench) -> None:
    await bench.fill("a")
    changes = follow(bench)
    await told(changes)
    changes.close()
    await bench.write("b")
    await bench.create("d")
    await bench.remove()
    assert await told(changes) == ""


@virtual_time
async def test_what_was_forgotten_before_it_was_told_is_told_to_be_forgotten(bench: Bench) -> None:
    await bench.fill("a")
    changes = follow(bench, with_read=True)
    await told(changes)
    for event_id in "bcdef":
        await bench.write(event_id)
        await bench.read_once()
    assert await told(changes) == "c>c3 c:d4 c:e5 c:f6 c@f"


@virtual_time
async def test_a_position_is_told_also_while_there_is_more(bench: Bench) -> None:
    await bench.fill("abc")
    await read_some(bench, 2)
    changes = follow(bench, with_read=True)
    assert words(await changes.take(1)) == "+c c:a1 c@a"
    assert words(await changes.take(1)) == "c:b2 c@b"
    assert words(await changes.take(1)) == "c:c3"


# Keys


@virtual_time
async def test_a_key_is_told_with_its_event(bench: Bench) -> None:
    await bench.create()
    await bench.write("a", request_id="k")
    await bench.write("b")
    changes = follow(bench, with_read=True)
    assert await told(changes) == "+c c:a1=k c:b2"
    await bench.write("c", request_id="l")
    assert await told(changes) == "c:c3=l"


@virtual_time
async def test_the_key_of_a_forgotten_event_is_told_by_itself(bench: Bench) -> None:
    await bench.create()
    await bench.write("a", request_id="k")
    changes = follow(bench, with_read=True)
    await told(changes)
    for event_id in "bcdef":
        await bench.write(event_id, request_id=f"key-{event_id}")
        await bench.read_once()
    assert await told(changes) == ("c>c3 c!b=key-b c!c=key-c c:d4=key-d c:e5=key-e c:f6=key-f c@f")
    changes.restart(with_read=True)
    assert (await told(changes)).startswith("+c c>c3 c!a=k c!b=key-b c!c=key-c c:d4=key-d")


@virtual_time
async def test_the_key_of_a_writer_that_waits_is_not_told_until_its_event_is_taken(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    changes = follow(bench, with_read=True)
    await told(changes)
    writing = await bench.start(bench.write("d", request_id="k"))
    assert await told(changes) == ""
    await bench.at(5.0)
    await read_some(bench, 1)
    await writing
    await bench.at(7.0)
    [added, *_] = await told_at_once(changes)
    assert isinstance(added, EventAdded)
    assert added.key is not None
    assert (added.key.request_id, added.key.age_s) == ("k", 2.0)


@virtual_time
async def test_keys_are_not_told_to_who_asks_for_unread_events_only(bench: Bench) -> None:
    await bench.create()
    await bench.write("a", request_id="k")
    assert await told(follow(bench)) == "+c c:a1"


@virtual_time
async def test_keys_work_in_a_copy_for_as_long_as_in_the_original(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    await bench.create()
    for event_id in "abcdefg":
        await bench.write(event_id, request_id=f"key-{event_id}")
        await bench.read_once()
    await bench.at(30.0)
    copy = await copy_of(bench, make_bench)
    for event_id in "abcdefg":
        assert await copy.write("new", request_id=f"key-{event_id}") == event_id
    lease = await copy.read()
    await bench.at(59.0)
    assert await copy.write("new", request_id="key-a") == "a"
    await bench.at(61.0)
    assert await copy.write("new", request_id="key-a") == "new"
    release(lease, clean=True)


# Room for writers


async def fill_and_leave(bench: Bench) -> None:
    await bench.fill("abc")
    await bench.at(6.0)


@virtual_time
async def test_a_writer_waits_if_nobody_follows(bench: Bench) -> None:
    await fill_and_leave(bench)
    with pytest.raises(WriteTimeout):
        await bench.write("d")


@virtual_time
async def test_a_writer_does_not_wait_for_room_once_the_oldest_was_told(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    assert words(await changes.take(1)) == "+c c:a1"
    await bench.write("d")
    assert bench.now() == 6.0
    assert await bench.read_once(ReadOptions(cursor=START)) == ["a", "b", "c", "d"]


@virtual_time
async def test_the_next_read_starts_after_what_made_room(bench: Bench) -> None:
    await fill_and_leave(bench)
    await told(follow(bench))
    await bench.write("d")
    await bench.write("e")
    assert await bench.read_once() == ["c", "d", "e"]


@virtual_time
async def test_a_writer_waits_until_the_oldest_was_told(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    writing = await bench.start(bench.write("d"))
    await asyncio.sleep(1.0)
    assert not writing.done()
    await changes.take(1)
    assert await writing == "d"
    assert bench.now() == 7.0
    assert await told(changes) == "c:b2 c:c3 c:d4"


@virtual_time
async def test_all_writers_that_wait_get_in_while_they_are_told(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    writing = [await bench.start(bench.write(event_id)) for event_id in "defgh"]
    assert (await told(changes)).count(":") == 8
    assert await asyncio.gather(*writing) == list("defgh")
    assert bench.now() == 6.0


@virtual_time
async def test_a_writer_waits_until_all_followers_were_told(bench: Bench) -> None:
    await fill_and_leave(bench)
    first, second = follow(bench), follow(bench)
    await told(first)
    writing = await bench.start(bench.write("d"))
    assert not writing.done()
    await told(second)
    assert await writing == "d"


@virtual_time
async def test_a_writer_waits_again_once_all_is_to_be_told_again(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    await told(changes)
    changes.restart(with_read=False)
    writing = await bench.start(bench.write("d"))
    await asyncio.sleep(1.0)
    assert not writing.done()
    await told(changes)
    assert await writing == "d"


@virtual_time
async def test_a_writer_waits_while_the_channel_is_read(bench: Bench) -> None:
    await fill_and_leave(bench)
    await told(follow(bench))
    await bench.read(ACKNOWLEDGING)
    with pytest.raises(WriteTimeout):
        await bench.write("d")


@virtual_time
async def test_a_writer_waits_if_the_channel_was_read_lately(bench: Bench) -> None:
    await fill_and_leave(bench)
    await told(follow(bench))
    release(await bench.read(ACKNOWLEDGING), clean=True)
    writing = await bench.start(bench.write("d"))
    await asyncio.sleep(1.0)
    assert not writing.done()
    assert await bench.read_once() == ["a", "b", "c", "d"]


@virtual_time
async def test_a_writer_waits_no_longer_than_until_the_read_is_some_seconds_ago(
    bench: Bench,
) -> None:
    await fill_and_leave(bench)
    await told(follow(bench))
    release(await bench.read(ACKNOWLEDGING), clean=True)
    assert await bench.write("d") == "d"
    assert bench.now() == 11.0


@virtual_time
async def test_a_writer_waits_again_after_close(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    await told(changes)
    changes.close()
    with pytest.raises(WriteTimeout):
        await bench.write("d")


@virtual_time
async def test_nothing_is_evicted_if_it_can_be_learned_how_far_it_is_read_elsewhere(
    bench: Bench,
) -> None:
    await fill_and_leave(bench)
    await told(follow(bench, with_read=True))
    await told(follow(bench))
    with pytest.raises(WriteTimeout):
        await bench.write("d")
    assert await bench.read_once() == ["a", "b", "c"]


@virtual_time
async def test_what_was_read_elsewhere_makes_room(bench: Bench) -> None:
    await fill_and_leave(bench)
    await told(follow(bench, with_read=True))
    writing = await bench.start(bench.write("d"))
    assert await bench.replication.blocked("agent") == [bench.address("c")]
    await bench.replication.advance(b"c", "b")
    assert await writing == "d"
    assert await bench.replication.blocked("agent") == []
    assert await bench.read_once() == ["c", "d"]
    assert bench.evicted == 0


@virtual_time
async def test_how_far_it_was_read_here_is_known_once_it_was(bench: Bench) -> None:
    assert await bench.replication.state(b"c") is None
    await bench.fill("abc")
    await bench.replication.apply(b"c", ProgressMade("", Progress("a", "b")))
    assert await cursor_here(bench) is None
    await read_some(bench, 1)
    assert await cursor_here(bench) == "b"


@virtual_time
async def test_what_is_evicted_is_counted_and_told_to_the_next_reader(bench: Bench) -> None:
    await fill_and_leave(bench)
    changes = follow(bench)
    await told(changes)
    await bench.write("d")
    assert bench.evicted == 1
    lease = await bench.read()
    assert (lease.recovered, await bench.take(lease)) == (False, ["b", "c", "d"])
    release(lease, clean=True)
    assert (await bench.read()).recovered is None
    await bench.remove()
    assert bench.removed[0].lost == 0


# Keeping alive


@virtual_time
async def test_a_channel_that_is_kept_alive_lives_past_its_deadline(bench: Bench) -> None:
    await bench.create()
    with bench.replication.keep_alive("agent"):
        await bench.at(1000.0)
        assert await bench.exists()
        await bench.write("a")
        assert await bench.read_once() == ["a"]
        assert bench.removed == []


@virtual_time
async def test_a_channel_that_was_kept_alive_has_its_whole_life_before_it(bench: Bench) -> None:
    await bench.create()
    with bench.replication.keep_alive("agent"):
        await bench.at(100.0)
    await bench.at(159.9)
    assert await bench.exists()
    await bench.at(160.5)
    assert not await bench.exists()
    assert [(r.at, r.address) for r in bench.removed] == [(160.0, bench.address("c"))]


@virtual_time
async def test_a_channel_is_kept_alive_until_nobody_does_so(bench: Bench) -> None:
    await bench.create()
    with bench.replication.keep_alive("agent"):
        with bench.replication.keep_alive("agent"):
            await bench.at(100.0)
        await bench.at(300.0)
        assert await bench.exists()
    await bench.at(359.9)
    assert await bench.exists()
    await bench.at(361.0)
    assert [r.at for r in bench.removed] == [360.0]


@virtual_time
async def test_a_channel_that_is_read_lives_on_when_it_is_kept_alive_no_more(bench: Bench) -> None:
    await bench.create()
    with bench.replication.keep_alive("agent"):
        lease = await bench.read()
    await bench.at(200.0)
    assert await bench.exists()
    release(lease, clean=True)
    await bench.at(261.0)
    assert [r.at for r in bench.removed] == [260.0]


@virtual_time
async def test_one_agent_is_kept_alive(bench: Bench) -> None:
    await bench.create()
    with bench.replication.keep_alive("agen"), bench.replication.keep_alive("agent2"):
        await bench.at(60.5)
    assert [r.at for r in bench.removed] == [60.0]


@virtual_time
async def test_a_channel_made_while_its_agent_is_kept_alive_expires_after_that(
    bench: Bench,
) -> None:
    with bench.replication.keep_alive("agent"):
        await bench.create()
        await bench.at(30.0)
    await bench.at(91.0)
    assert [r.at for r in bench.removed] == [90.0]


# Being fed


@virtual_time
async def test_a_push_wakes_the_reader_and_does_not_wait(bench: Bench) -> None:
    await bench.create()
    taking = await bench.start(bench.take(await bench.read(ACKNOWLEDGING)))
    for event_id in "aabc":
        await bench.replication.apply(b"c", added(event_id))
    assert await taking == ["a", "b", "c"]
    assert bench.now() == 0.0
    assert bench.written == 0


@virtual_time
async def test_a_copy_holds_what_its_source_holds(bench: Bench) -> None:
    await bench.create()
    for event_id in "abcdefgh":
        assert await bench.replication.apply(b"c", added(event_id, 1)) == 0
    writing = await bench.start(bench.write("x"))
    assert await bench.read_once() == list("abcdefghx")
    await writing


@virtual_time
async def test_a_channel_keeps_its_capacity(bench: Bench, make_bench: Callable[..., Bench]) -> None:
    await bench.fill("abc")
    copy = make_bench(capacity=7)
    changes = follow(bench, with_read=True)
    await Copy(copy).apply(await told_at_once(changes))
    writing = await bench.start(copy.write("d"))
    assert not writing.done()
    assert await copy.read_once() == list("abcd")
    await writing


@virtual_time
async def test_a_channel_keeps_its_ttl_its_label_and_its_tenant(
    bench: Bench, make_bench: Callable[..., Bench]
) -> None:
    options = ChannelOptions(ttl_s=7.5, label="orders")
    await bench.store.create(b"c", bench.address("c"), options, Tenant("shop"))
    changes = follow(bench, with_read=True)
    told = await told_at_once(changes)
    assert told[0] == ChannelAdded(bench.address("c"), 3, 7.5, "orders", "shop")
    copy = make_bench(ttl_s=1.0)
    await Copy(copy).apply(told)
    await asyncio.sleep(7.4)
    assert await copy.store.exists([b"c"])
    await asyncio.sleep(0.2)
    assert not await copy.store.exists([b"c"])


@virtual_time
async def test_a_channel_that_was_kept_alive_lives_for_its_own_ttl(bench: Bench) -> None:
    for name, ttl_s in (("c", 0.5), ("d", 200.0)):
        await bench.store.create(name.encode(), bench.address(name), ChannelOptions(ttl_s=ttl_s))
    with bench.replication.keep_alive("agent"):
        await asyncio.sleep(300)
    await asyncio.sleep(0.4)
    assert len(await bench.store.exists([b"c", b"d"])) == 2
    await asyncio.sleep(0.2)
    assert (await bench.store.exists([b"c", b"d"])).keys() == {b"d"}
    await asyncio.sleep(199)
    assert await bench.store.exists([b"d"])
    await asyncio.sleep(1)
    assert not await bench.store.exists([b"d"])


@virtual_time
async def test_it_is_returned_how_many_events_were_lost(bench: Bench) -> None:
    await bench.create()
    lost = [await bench.replication.apply(b"c", added(event_id)) for event_id in "abcde"]
    assert lost == [0, 0, 0, 1, 1]


@virtual_time
async def test_what_is_pushed_is_told_to_followers(bench: Bench) -> None:
    await bench.create()
    changes = follow(bench, with_read=True)
    await bench.replication.apply(b"c", added("a"))
    await bench.replication.apply(b"c", ProgressMade("", Progress("a")))
    assert await told(changes) == "+c c:a1 c@a"


@virtual_time
async def test_is_read(bench: Bench) -> None:
    assert await bench.replication.state(b"c") is None
    await bench.create()
    lease = await bench.read()
    assert await is_read(bench)
    release(lease, clean=True)
    assert not await is_read(bench)


@virtual_time
async def test_without_the_channel_there_is_nothing_to_feed(bench: Bench) -> None:
    for call in (
        bench.replication.apply(b"c", added("a")),
        bench.replication.apply(b"c", ProgressMade("", Progress("a"))),
        bench.replication.release(b"c"),
    ):
        with pytest.raises(ChannelNotFound):
            await call


@virtual_time
async def test_a_channel_that_is_released_does_not_count_as_removed(bench: Bench) -> None:
    await bench.fill("abc")
    lease = await bench.read(ACKNOWLEDGING)
    writing = await bench.start(bench.write("d"))
    await bench.replication.release(b"c")
    with pytest.raises(ChannelNotFound):
        await writing
    assert lease.is_over
    release(lease, clean=False)
    assert not await bench.exists()
    await bench.at(200.0)
    assert bench.removed == []


# Channels that are added and removed while a follower takes changes


@virtual_time
async def test_a_channel_that_is_released_is_told_of_no_more(bench: Bench) -> None:
    await bench.create("a")
    await bench.create("b")
    changes = follow(bench)
    assert await told(changes) == "+a +b"
    await bench.write("x", channel="a")
    await bench.write("x", channel="b")
    await bench.replication.release(b"a")
    assert await told(changes) == "b:x1"


@virtual_time
async def test_channels_that_end_where_the_walk_stands_are_passed_over(bench: Bench) -> None:
    for channel in "abcd":
        await bench.create(channel)
    changes = follow(bench)
    assert words(await changes.take(1)) == "+a"
    for channel in "abc":
        await bench.remove(channel)
    assert await told(changes) == "-a +d"


@virtual_time
async def test_news_behind_very_many_channels_without_news_is_told_after_some_turns(
    bench: Bench,
) -> None:
    count = 3 * LOOKED_AT_ONCE
    for number in range(count):
        await bench.create(f"c{number}")
        await bench.write("a", channel=f"c{number}")
    changes = follow(bench)
    await told_at_once(changes, 1_000)
    for number in range(count):
        await read_some(bench, 1, f"c{number}")
    await bench.create("last")
    taking = await bench.start(changes.take(10))
    assert not taking.done()
    assert words(await taking) == "+last"
    assert changes.backlog == 0


@virtual_time
async def test_the_key_of_an_event_that_is_yet_to_be_told_comes_with_it(bench: Bench) -> None:
    await bench.create()
    for event_id in "abc":
        await bench.write(event_id, request_id=f"k{event_id}")
    changes = follow(bench, with_read=True)
    assert words(await changes.take(1)) == "+c c:a1=ka"
    assert await told(changes) == "c:b2=kb c:c3=kc"


@virtual_time
async def test_an_event_that_a_reader_was_sent_is_evicted_and_does_not_count_as_lost(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    lease = await bench.read(ACKNOWLEDGING)
    await bench.take(lease, 1)
    release(lease, clean=False)
    await bench.at(6.0)
    await told(follow(bench))
    assert await bench.write("d") == "d"
    assert bench.evicted == 0
    await bench.write("e")
    assert bench.evicted == 1


# A copy


class Copy:
    """A store that has what was told."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    async def apply(self, changes: Iterable[ChannelChange]) -> None:
        store, replication = self.bench.store, self.bench.replication
        for change in changes:
            channel_id = name_of(change.address).encode()
            match change:
                case ChannelAdded():
                    if not await store.exists([channel_id]):
                        options = ChannelOptions(change.capacity, change.ttl_s, change.label)
                        await store.create(channel_id, change.address, options)
                case ChannelEnded():
                    await replication.release(channel_id)
                case _:
                    await replication.apply(channel_id, change)


async def copy_of(bench: Bench, make_bench: Callable[..., Bench], limit: int = 100) -> Bench:
    copy = make_bench()
    changes = follow(bench, with_read=True)
    await Copy(copy).apply(await told_at_once(changes, limit))
    changes.close()
    return copy


async def remaining(bench: Bench, channel: str, after: str | None = None) -> tuple[object, ...]:
    """What the next read gets, which is undone."""
    lease = await bench.read(ReadOptions(after, acknowledge=True), channel)
    taken = await bench.take(lease, until=bench.now())
    result = (lease.recovered, lease.cursor, taken)
    release(lease, clean=True)
    return result


@pytest.mark.parametrize("limit", [1, 2, 100])
@virtual_time
async def test_a_copy_has_what_is_read_again_besides_a_full_buffer(
    bench: Bench, make_bench: Callable[..., Bench], limit: int
) -> None:
    await bench.fill("abc")
    await read_some(bench, 3, clean=False)
    for event_id in "def":
        await bench.write(event_id)
    copy = await copy_of(bench, make_bench, limit)
    assert await remaining(copy, "c") == (None, START, list("abcdef"))


def kept_alive(bench: Bench) -> None:
    """Keep the channels of a store alive until its end."""
    bench.keeping_alive.enter_context(bench.replication.keep_alive("agent"))


class Scenario:
    """Random things happen to a store that is copied to others."""

    def __init__(self, seed: int, make_bench: Callable[..., Bench]) -> None:
        self.random = random.Random(seed)
        self.make_bench = make_bench
        self.source = make_bench()
        kept_alive(self.source)
        self.changes = follow(self.source, with_read=True)
        self.copy = self.new_copy()
        self.names: list[str] = []
        self.leases: list[tuple[str, Lease]] = []
        self.written: dict[str, list[str]] = {}
        self.count = 0

    def new_copy(self) -> Copy:
        bench = self.make_bench()
        kept_alive(bench)
        return Copy(bench)

    async def step(self) -> None:
        weights = {
            self.create: 1,
            self.remove: 0.3,
            self.write: 12,
            self.lease: 4,
            self.take: 8,
            self.acknowledge: 4,
            self.release: 4,
            self.follow: 4,
            self.restart: 0.5,
            self.wait: 1,
        }
        happens = self.random.choices(list(weights), list(weights.values()))[0]
        if self.names or happens == self.create:
            await happens()

    async def create(self) -> None:
        self.count += 1
        name = f"c{self.count}"
        await self.source.create(name)
        self.names.append(name)
        self.written[name] = []

    async def remove(self) -> None:
        name = self.random.choice(self.names)
        self.names.remove(name)
        await self.source.remove(name)

    async def write(self) -> None:
        name = self.random.choice(self.names)
        self.count += 1
        try:
            async with asyncio.timeout(0.001):
                await self.source.write(f"e{self.count}", channel=name)
        except TimeoutError:
            return
        self.written[name].append(f"e{self.count}")

    async def lease(self) -> None:
        name = self.random.choice(self.names)
        after = None
        if self.random.random() < 0.4:
            after = self.random.choice([START, "unknown", *self.written[name][-5:]])
        options = ReadOptions(
            after,
            acknowledge=self.random.random() < 0.5,
            in_flight=self.random.choice([1, 2, 100]),
            take_over=self.random.random() < 0.3,
        )
        with suppress(ReaderBusy):
            self.leases.append((name, await self.source.read(options, name)))

    async def take(self) -> None:
        if self.leases:
            _, lease = self.random.choice(self.leases)
            await self.source.take(lease, self.random.choice([1, 2, 5]), self.source.now())

    async def acknowledge(self) -> None:
        name = self.random.choice(self.names)
        if self.written[name]:
            await self.source.acknowledge(self.random.choice(self.written[name][-5:]), name)

    async def release(self) -> None:
        if self.leases:
            _, lease = self.leases.pop(self.random.randrange(len(self.leases)))
            release(lease, clean=self.random.random() < 0.5)

    async def follow(self) -> None:
        limit = self.random.choice([1, 2, 3, 100])
        await self.copy.apply(await self.changes.take(limit, wait=False))

    async def restart(self) -> None:
        self.changes.restart(with_read=True)
        self.copy = self.new_copy()

    async def wait(self) -> None:
        await asyncio.sleep(self.random.choice([0.5, 4.0, 6.0, 11.0]))

    async def check(self, *, gaps: bool) -> None:
        """Compare the copy with the source, and a new copy too."""
        while self.leases:
            await self.release()
        await self.copy.apply(await told_at_once(self.changes))
        self.changes.restart(with_read=True)
        new = self.new_copy()
        await new.apply(await told_at_once(self.changes))
        for copy in [new] if gaps else [new, self.copy]:
            addresses = await copy.bench.store.list(None, 0, 1000)
            assert sorted(map(name_of, addresses)) == sorted(self.names)
        for name in self.names:
            expected = await remaining(self.source, name)
            assert await remaining(new.bench, name) == expected
            if not gaps:
                assert await remaining(self.copy.bench, name) == expected
            for after in [START, *self.written[name]]:
                by_cursor = await remaining(self.source, name, after)
                if by_cursor[0]:  # the copy may know more
                    assert await remaining(new.bench, name, after) == by_cursor
                    if not gaps:
                        assert await remaining(self.copy.bench, name, after) == by_cursor


@pytest.mark.parametrize("seed", SEEDS)
@virtual_time
async def test_a_copy_reads_as_the_original_does(
    make_bench: Callable[..., Bench], seed: int
) -> None:
    """Nothing is forgotten here before it was told: the follower keeps up with the writers."""
    scenario = Scenario(seed, make_bench)
    for _ in range(150):
        await scenario.step()
        if scenario.random.random() < 0.3:
            await scenario.copy.apply(await told_at_once(scenario.changes, limit=2))
    await scenario.check(gaps=False)


@pytest.mark.parametrize("seed", SEEDS)
@virtual_time
async def test_a_new_copy_reads_as_the_original_does_however_slow_the_follower(
    make_bench: Callable[..., Bench], seed: int
) -> None:
    scenario = Scenario(seed, make_bench)
    for _ in range(150):
        await scenario.step()
    await scenario.check(gaps=True)
