"""What a move asks of the store in memory: the writers that wait, and how large the channels are.

A channel holds three events here, called by letters.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from megaphone.errors import AgentMoved, WriteTimeout
from megaphone.model import ChannelOptions
from megaphone.store.memory.waiting import WOKEN_AT_ONCE

if TYPE_CHECKING:
    from tests.store.conftest import Bench

virtual_time = pytest.mark.looptime


# Writers, as their agent leaves


@virtual_time
async def test_writers_that_wait_learn_that_their_agent_moves_and_others_wait_on(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    await bench.store.create(b"other", "agent2.other.1")
    await bench.append_all("abc", channel="other")
    leaving = [await bench.start(bench.write(event_id)) for event_id in "de"]
    staying = await bench.start(bench.write("d", channel="other"))
    await bench.at(1.0)
    await bench.replication.refuse_writers("agent")
    for writing in leaving:
        with pytest.raises(AgentMoved, match="agent agent moves"):
            await writing
    assert bench.now() == 1.0
    assert await bench.read_once() == ["a", "b", "c"]
    with pytest.raises(WriteTimeout):
        await staying


@virtual_time
async def test_a_writer_that_comes_after_others_were_refused_waits_its_time(
    bench: Bench,
) -> None:
    await bench.fill("abc")
    await bench.replication.refuse_writers("nobody")
    await bench.replication.refuse_writers("agent")
    with pytest.raises(WriteTimeout):
        await bench.write("d")
    assert bench.now() == 10.0


@virtual_time
async def test_a_writer_that_got_in_as_it_is_refused_is_told_truly(bench: Bench) -> None:
    await bench.fill("abc")
    writing = await bench.start(bench.write("d"))
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    await bench.replication.refuse_writers("agent")
    assert await writing == "d"
    assert await bench.take(lease) == ["d"]


@virtual_time
async def test_many_writers_are_refused_in_slices_also_while_they_leave(bench: Bench) -> None:
    await bench.fill("abc")
    writers = [await bench.start(bench.write(f"e{number}")) for number in range(2 * WOKEN_AT_ONCE)]
    refusing = asyncio.create_task(bench.replication.refuse_writers("agent"))
    for writing in writers[WOKEN_AT_ONCE:]:
        writing.cancel()
    await asyncio.sleep(0)
    assert not refusing.done()
    await refusing
    answers = await asyncio.gather(*writers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [
        *[AgentMoved] * WOKEN_AT_ONCE,
        *[asyncio.CancelledError] * WOKEN_AT_ONCE,
    ]


@virtual_time
async def test_channels_without_writers_that_wait_are_not_blocked(bench: Bench) -> None:
    assert await bench.replication.blocked("agent") == []
    await bench.fill("abc")
    assert await bench.replication.blocked("agent") == []
    writing = await bench.start(bench.write("d"))
    assert await bench.replication.blocked("agent") == [bench.address("c")]
    assert await bench.replication.blocked("agent2") == []
    lease = await bench.read()
    assert await bench.take(lease) == ["a", "b", "c"]
    assert not writing.done()  # its event is in, but it has not had its turn
    assert await bench.replication.blocked("agent") == []
    await writing


async def many_blocked(bench: Bench, count: int) -> list[asyncio.Task[str]]:
    writers = []
    for number in range(count):
        await bench.create(channel := f"c{number}")
        await bench.append_all("abc", channel=channel)
        writers.append(await bench.start(bench.write("d", channel=channel)))
    return writers


@virtual_time
async def test_many_blocked_channels_are_listed_each_once_in_slices(bench: Bench) -> None:
    writers = await many_blocked(bench, 250)
    listing = await bench.start(bench.replication.blocked("agent"))
    assert not listing.done()
    assert sorted(await listing) == sorted(bench.address(f"c{n}") for n in range(250))
    for writing in writers:
        writing.cancel()


@virtual_time
async def test_blocked_channels_are_listed_also_while_all_writers_leave(bench: Bench) -> None:
    writers = await many_blocked(bench, 250)
    listing = asyncio.create_task(bench.replication.blocked("agent"))
    for writing in writers:
        writing.cancel()
    assert len(await listing) == 100
    assert await bench.replication.blocked("agent") == []


@virtual_time
async def test_the_largest_capacity_is_that_of_the_channels_there_are(bench: Bench) -> None:
    assert await bench.replication.largest_capacity("agent") == 0
    for channel, capacity in (("a", 5), ("b", 9), ("c", 9), ("d", None)):
        await bench.store.create(channel.encode(), bench.address(channel), ChannelOptions(capacity))
    assert await bench.replication.largest_capacity("agent") == 9
    assert await bench.replication.largest_capacity("agent2") == 0
    await bench.remove("b")
    assert await bench.replication.largest_capacity("agent") == 9
    await bench.remove("c")
    assert await bench.replication.largest_capacity("agent") == 5
    await bench.replication.release(b"a")
    assert await bench.replication.largest_capacity("agent") == 3
    with bench.replication.keep_alive("agent"):
        await bench.remove("d")
        assert await bench.replication.largest_capacity("agent") == 0
