"""What holds for any store: the contract of `core.ports.Store` and `core.ports.Lease`.

Channels and events are called by letters. Nothing here looks inside a store, or expects that a call
has taken effect elsewhere before it has returned.
"""

import asyncio

import pytest

from megaphone.core.ports import Append, Stored, WouldBlock
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.errors import ChannelNotFound, LimitExceeded, MegaphoneError, ReaderBusy, TakenOver
from megaphone.model import START, ChannelOptions, Event, ReadOptions
from tests.contract.conftest import (
    CAPACITY,
    LONG_S,
    MAX_CHANNELS,
    TTL_S,
    WRITE_TIMEOUT_S,
    Client,
    append,
    eventually,
    ids,
    named,
    now,
)
from tests.support.leases import release, taken

# -- Writing


async def test_events_are_read_in_the_order_in_which_they_were_written(client: Client) -> None:
    await client.create("c")
    assert await client.append("ab") == ["a", "b"]
    assert await client.append("c") == ["c"]
    assert await client.take(await client.open(), 3) == "abc"


async def test_one_call_writes_to_many_channels(client: Client) -> None:
    await client.create("c", "d")
    writes = [append(channel, event) for channel, event in ("ca", "db", "cc", "dd")]
    results = await client.store.append(writes, wait=False)
    assert results == [Stored(event, is_new=True) for event in "abcd"]
    assert await client.take(await client.open("c"), 2) == "ac"
    assert await client.take(await client.open("d"), 2) == "bd"


async def test_the_same_events_go_to_many_channels(client: Client) -> None:
    await client.create("c", "d", "e")
    await client.append("xy", channel="d")
    reading = await client.open("e")
    events = [append("", event).event for event in "ab"]
    results = await client.store.append_to_all([b"c", b"u", b"d", b"e"], events)
    assert list(map(counted, results)) == [2, "ChannelNotFound", 1, 2]
    assert await client.store.append_to_all([b"d"], events) == [0]
    assert await client.store.append_to_all([], events) == []
    assert await client.take(reading, 2) == "ab"
    assert await client.take(await client.open("c"), 2) == "ab"
    assert await client.take(await client.open("d"), 3) == "xya"


async def test_a_write_that_begins_has_its_result_in_a_later_turn(client: Client) -> None:
    await client.create("c")
    reading = await client.open()
    results: list[str] = []
    for event, key in [("a", "key"), ("b", "key"), ("c", None)]:
        client.store.begin_append(
            append("c", event, key), lambda result: results.append(named(result))
        )
    assert results == []
    await eventually(lambda: has(results, 3))
    assert results == ["a", "a", "c"]
    client.store.begin_append(append("u", "d"), lambda result: results.append(named(result)))
    await eventually(lambda: has(results, 4))
    assert results[3] == "ChannelNotFound"
    assert await client.take(reading, 2) == "ac"


async def test_a_write_that_begins_does_not_wait_for_a_place(client: Client) -> None:
    await client.create("c")
    results: list[str] = []
    for event in "abcd":
        client.store.begin_append(append("c", event), lambda result: results.append(named(result)))
    await eventually(lambda: has(results, 4))
    assert results == ["a", "b", "c", "WouldBlock"]
    assert await client.take(await client.open(), 3) == "abc"


async def has(results: list[str], count: int) -> bool:
    return len(results) == count


async def test_an_error_of_one_channel_leaves_the_others_alone(client: Client) -> None:
    await client.create("c")
    writes = [append("x", "a"), append("c", "b"), append("x", "c")]
    results = [named(one) for one in await client.store.append(writes, wait=True)]
    assert results == ["ChannelNotFound", "b", "ChannelNotFound"]
    assert await client.store.append([], wait=True) == []


async def test_a_full_channel_would_block_and_keeps_its_order(client: Client) -> None:
    await client.create("c", "d")
    writes = [append("c", one) for one in "abcde"] + [append("d", "f")]
    results = [named(one) for one in await client.store.append(writes, wait=False)]
    assert results == ["a", "b", "c", "WouldBlock", "WouldBlock", "f"]
    lease = await client.open()
    assert await client.take(lease, 3) == "abc"
    assert await client.nothing_comes(lease)


async def test_a_write_that_finds_no_room_in_time_is_not_taken(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    started = now()
    assert await client.append("d", wait=True) == ["WriteTimeout"]
    assert now() - started >= WRITE_TIMEOUT_S - 0.01
    lease = await client.open()
    assert await client.take(lease, 3) == "abc"
    assert await client.nothing_comes(lease)


async def test_a_write_that_waits_is_taken_once_there_is_room(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    await asyncio.sleep(0.1)
    lease = await client.open()
    assert await client.take(lease, 4, limit=1) == "abcd"
    assert await writing == ["d"]


async def test_writers_get_in_first_come_first_served(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writers = []
    for event in "def":
        writers.append(asyncio.create_task(client.append(event, wait=True)))
        await asyncio.sleep(0.05)
    assert await client.append("x") == ["WouldBlock"]
    assert await client.take(await client.open(), 6, limit=1) == "abcdef"
    assert await asyncio.gather(*writers) == [["d"], ["e"], ["f"]]


async def test_a_writer_that_is_cancelled_leaves_nothing_behind(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    await asyncio.sleep(0.1)
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    lease = await client.open()
    assert await client.take(lease, 3) == "abc"
    assert await client.nothing_comes(lease)


async def test_a_writer_that_is_cancelled_as_it_gets_in_says_so_truly(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    await asyncio.sleep(0.1)
    lease = await client.open()
    assert await client.take(lease, 1, limit=1) == "a"
    writing.cancel()
    await asyncio.wait([writing])
    assert await client.take(lease, 2, limit=2) == "bc"
    if writing.cancelled():
        assert await client.nothing_comes(lease)
    else:
        assert await client.take(lease, 1) == "d"


async def test_a_write_that_does_not_wait_is_stored_or_raises(client: Client) -> None:
    """A remote store may always say that the call would block."""
    await client.create("c")
    stored = ""
    for event in "abcdef":
        try:
            assert client.store.append_nowait(append("c", event)) == Stored(event, is_new=True)
            stored += event
        except WouldBlock:
            pass
    assert len(stored) <= 3
    with pytest.raises((WouldBlock, ChannelNotFound)):
        client.store.append_nowait(append("x", "a"))
    lease = await client.open()
    assert await client.take(lease, len(stored)) == stored
    assert await client.nothing_comes(lease)


# -- Request ids


async def test_a_repeated_request_id_stores_once_and_answers_alike(client: Client) -> None:
    await client.create("c", "d")
    first, again = await client.store.append(
        [append("c", "a", "key"), append("c", "b", "key")], wait=False
    )
    assert (first, again) == (Stored("a", is_new=True), Stored("a", is_new=False))
    assert await client.append("c", key="key", wait=True) == ["a"]
    assert await client.append("d", key="key", channel="d") == ["d"]
    lease = await client.open()
    assert await client.take(lease, 1) == "a"
    assert await client.nothing_comes(lease)


async def test_a_repeated_request_id_needs_no_room(client: Client) -> None:
    await client.create("c")
    await client.append("a", key="key")
    await client.append("bc")
    assert await client.append("d", key="key", wait=True) == ["a"]


async def test_writers_that_wait_with_one_request_id_store_once(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writers = [
        asyncio.create_task(client.store.append([append("c", event, "key")], wait=True))
        for event in "de"
    ]
    await asyncio.sleep(0.1)
    lease = await client.open()
    taken = await client.take(lease, 4)
    results = [result for writer in writers for result in await writer]
    assert {named(result) for result in results} == {taken[3]}
    assert sorted(isinstance(one, Stored) and one.is_new for one in results) == [False, True]
    assert await client.nothing_comes(lease)


async def test_a_writer_who_is_left_alone_counts_the_event(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    first, second = [
        asyncio.create_task(client.store.append([append("c", event, "key")], wait=True))
        for event in "de"
    ]
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    lease = await client.open()
    assert await client.take(lease, 4) == "abcd"
    assert await second == [Stored("d", is_new=True)]


# -- Taking


async def test_a_take_that_waits_gets_the_next_event(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    taking = asyncio.create_task(client.take(lease, 1))
    await asyncio.sleep(0.1)
    await client.append("a")
    assert await taking == "a"


async def test_a_take_ends_at_its_time(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    started = now()
    assert (await taken(lease, 100, 1_000, now() + 0.2)) is None
    assert now() - started >= 0.19
    assert not lease.is_over


async def test_a_take_is_bounded_by_number_and_by_bytes(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open()
    assert 1 <= len(ids(await taken(lease, 2, 1_000_000, now() + LONG_S))) <= 2
    assert len(ids(await taken(lease, 100, 1, now() + LONG_S))) == 1


async def test_a_take_that_is_cancelled_loses_nothing(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    for event in "abc":
        taking = asyncio.create_task(taken(lease, 100, 1_000_000, now() + LONG_S))
        await asyncio.sleep(0)
        await client.append(event)
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled():
            assert ids(taking.result()) == event
        else:
            assert await client.take(lease, 1) == event


async def test_what_is_ready_can_be_taken_without_waiting(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    called = asyncio.Event()
    lease.on_ready = called.set
    assert lease.take(100, 1_000_000, now()) is None
    await client.append("a")
    async with asyncio.timeout(LONG_S):
        await called.wait()
    assert ids(await taken(lease, 100, 1_000_000, now() + LONG_S)) == "a"
    lease.on_ready = called.set
    called.clear()
    lease.interrupt()
    assert called.is_set()
    assert (lease.take(100, 1_000_000, now()), lease.is_over) == (None, True)


async def test_an_interrupt_ends_every_take_and_loses_nothing(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    taking = asyncio.create_task(taken(lease, 100, 1_000_000, now() + LONG_S))
    await asyncio.sleep(0.1)
    lease.interrupt()
    assert (await taking) is None
    assert lease.is_over
    await client.append("a")
    assert (await taken(lease, 100, 1_000_000, now() + LONG_S)) is None
    release(lease, clean=True)
    await eventually(lambda: is_free(client))
    assert await client.take(await client.open(), 1) == "a"


async def is_free(client: Client) -> bool:
    try:
        release(await client.open(), clean=True)
    except ReaderBusy:
        return False
    return True


# -- Leases


async def test_a_channel_has_one_reader(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    with pytest.raises(ReaderBusy):
        await client.open()
    release(lease, clean=True)
    release(lease, clean=True)
    await eventually(lambda: is_free(client))


async def test_a_reader_may_take_over(client: Client) -> None:
    await client.create("c")
    await client.append("ab")
    old = await client.open()
    assert await client.take(old, 2) == "ab"
    new = await client.open(take_over=True)
    assert await client.take(new, 2) == "ab"
    assert (await taken(old, 100, 1_000_000, now() + LONG_S)) is None
    assert old.is_over
    release(old, clean=True)
    await client.append("c")
    assert await client.take(new, 1) == "c"


async def test_a_reader_that_returns_takes_over_only_from_itself(client: Client) -> None:
    await client.create("c")
    await client.append("ab")
    old = await client.open(reader="one")
    assert await client.take(old, 2) == "ab"
    with pytest.raises(ReaderBusy):
        await client.open(reader="one")
    new = await client.open(reader="one", returning=True)
    assert await client.take(new, 2) == "ab"
    assert (await taken(old, 100, 1_000_000, now() + LONG_S)) is None
    other = await client.open(reader="two", take_over=True)
    for take_over in (False, True):
        with pytest.raises(TakenOver):
            await client.open(reader="one", returning=True, take_over=take_over)
    assert await client.take(other, 2) == "ab"
    unnamed = await client.open(take_over=True)
    with pytest.raises(TakenOver):
        await client.open(reader="two", returning=True)
    assert await client.take(unnamed, 2) == "ab"


async def test_a_broken_read_is_sent_again_and_a_clean_one_is_not(client: Client) -> None:
    await client.create("c")
    await client.append("ab")
    lease = await client.open()
    first = await taken(lease, 100, 1_000_000, now() + LONG_S)
    assert first is not None
    assert first.redelivered == 0
    release(lease, clean=False)
    lease = await client.open(take_over=True)
    again = await taken(lease, 100, 1_000_000, now() + LONG_S)
    assert again is not None
    assert (ids(again), again.redelivered) == ("ab", 2)
    release(lease, clean=True)
    await client.append("c")
    await eventually(lambda: is_free(client))
    assert await client.take(await client.open(), 1) == "c"


@pytest.mark.parametrize("acknowledge", [False, True])
@pytest.mark.parametrize("clean", [False, True])
async def test_only_what_a_reader_was_given_is_sent_again(
    client: Client, clean: bool, acknowledge: bool
) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open(acknowledge=acknowledge)
    assert await client.take(lease, 1, limit=1) == "a"
    release(lease, clean=clean)
    await eventually(lambda: is_free(client))
    lease = await client.open(acknowledge=acknowledge)
    again = await taken(lease, 100, 1_000_000, now() + LONG_S)
    assert again is not None
    expected = ("bc", 0) if clean and not acknowledge else ("abc", 1)
    assert (ids(again), again.redelivered) == expected


@pytest.mark.parametrize(
    ("cursor", "is_known", "events"), [("a", True, "bc"), (START, True, "abc"), ("x", False, "abc")]
)
async def test_a_reader_resumes_after_an_event(
    client: Client, cursor: str, is_known: bool, events: str
) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open(cursor=cursor)
    assert lease.recovered is is_known
    assert lease.cursor == (cursor if is_known else START)
    assert await client.take(lease, len(events)) == events


async def test_what_is_not_acknowledged_keeps_its_place(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open(acknowledge=True, in_flight=2)
    assert await client.take(lease, 2) == "ab"
    assert await client.nothing_comes(lease)
    assert await client.append("d") == ["WouldBlock"]
    acknowledge = client.store.acknowledge
    assert await acknowledge(b"c", client.address("c"), "b") == 2
    assert await acknowledge(b"c", client.address("c"), "b") == 0
    assert await acknowledge(b"c", client.address("c"), "unknown") == 0
    assert await client.append("d", wait=True) == ["d"]
    assert await client.take(lease, 2) == "cd"


async def test_events_that_are_passed_over_keep_no_places(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open(acknowledge=True, in_flight=2)
    assert await client.take(lease, 2) == "ab"
    lease.pass_over(1, 2, now())  # in vain, because the event before is not acknowledged
    assert await client.append("d") == ["WouldBlock"]
    assert await client.store.acknowledge(b"c", client.address("c"), "a") == 1
    lease.pass_over(1, 2, now())
    assert await client.append("de", wait=True) == ["d", "e"]
    assert await client.take(lease, 2) == "cd"


async def test_what_a_read_passes_over_as_it_ends_keeps_no_places(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    lease = await client.open(acknowledge=True)
    assert await client.take(lease, 3) == "abc"
    lease.pass_over(0, 2, now())
    release(lease, clean=True)
    assert await client.append("de", wait=True) == ["d", "e"]
    assert await client.take(await client.open(acknowledge=True), 3) == "cde"


@pytest.mark.parametrize("address", ["agent.C.1", "agent.c.0", "Agent.c.1", ""])
async def test_only_the_exact_address_of_a_channel_reads(client: Client, address: str) -> None:
    await client.create("c")
    with pytest.raises(ChannelNotFound):
        await client.store.open(b"c", address, ReadOptions())
    with pytest.raises(ChannelNotFound):
        await client.store.acknowledge(b"c", address, "a")


# -- Channels


async def test_those_of_many_channels_that_live_are_found(client: Client) -> None:
    await client.create("c", "d")
    assert await client.store.exists([b"c", b"x", b"d", b"c"]) == {
        b"c": client.address("c"),
        b"d": client.address("d"),
    }
    assert await client.store.exists([]) == {}


async def test_channels_are_listed_oldest_first_and_counted_by_agent(client: Client) -> None:
    for name in ("dx", "ax", "cy", "bx"):
        await client.store.create(name.encode(), client.address(name, agent=name[1]))
        await asyncio.sleep(0.02)
    store = client.store
    everything = [client.address(name, agent=name[1]) for name in ("dx", "ax", "cy", "bx")]
    assert list(await store.list(None, 0, 100)) == everything
    assert list(await store.list(None, 1, 2)) == everything[1:3]
    assert list(await store.list("x", 0, 100)) == [everything[0], everything[1], everything[3]]
    assert list(await store.list("x", 2, 5)) == [everything[3]]
    assert list(await store.list("x", 0, 0)) == list(await store.list("z", 0, 9)) == []
    assert [await store.count(agent) for agent in ("x", "y", "z", "")] == [3, 1, 0, 0]
    await store.remove(b"ax")
    assert await store.count("x") == 2


async def test_there_are_no_more_channels_than_there_may_be(client: Client) -> None:
    await client.create(*"abcdef"[:MAX_CHANNELS])
    with pytest.raises(LimitExceeded):
        await client.store.check_room()
    with pytest.raises(LimitExceeded):
        await client.create("x")
    await client.store.remove(b"a")
    await client.create("x")
    assert await client.exists("x")


async def test_a_channel_that_nobody_reads_expires_and_the_listener_is_told(
    client: Client,
) -> None:
    started = now()
    await client.create("c")
    await client.append("ab")
    await client.gone()
    assert now() - started >= TTL_S - 0.01
    await eventually(lambda: was_told(client))
    ((address, age_s, lost),) = client.removed
    assert (address, lost) == (client.address("c"), 2)
    assert age_s >= TTL_S - 0.01
    assert await client.append("c", wait=True) == ["ChannelNotFound"]
    with pytest.raises(ChannelNotFound):
        await client.open()


async def was_told(client: Client) -> bool:
    return bool(client.removed)


async def test_a_channel_that_is_read_lives_on(client: Client) -> None:
    await client.create("c")
    lease = await client.open()
    assert (await taken(lease, 100, 1_000, now() + 2 * TTL_S)) is None
    assert await client.exists()
    release(lease, clean=True)
    await client.gone()


async def test_a_channel_that_is_removed_is_gone_for_all(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    await client.create("d")
    lease = await client.open("d")
    taking = asyncio.create_task(taken(lease, 100, 1_000, now() + LONG_S))
    await asyncio.sleep(0.1)
    for channel in (b"c", b"d"):
        await client.store.remove(channel)
    assert await writing == ["ChannelNotFound"]
    assert (await taking) is None
    assert lease.is_over
    assert await client.store.exists([b"c", b"d"]) == {}
    with pytest.raises(ChannelNotFound):
        await client.store.remove(b"c")
    release(lease, clean=True)


# -- The end


async def test_a_quiet_store_makes_nobody_wait(client: Client) -> None:
    await client.create("c")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    await asyncio.sleep(0.1)
    await client.store.quiesce()
    assert await writing == ["ShuttingDown"]
    assert await client.append("e", wait=True) == ["ShuttingDown"]
    assert await client.take(await client.open(), 3) == "abc"
    assert await client.append("f", wait=True) == ["f"]


async def test_the_end_of_a_store_ends_what_waits(client: Client) -> None:
    await client.create("c", "d")
    await client.append("abc")
    writing = asyncio.create_task(client.append("d", wait=True))
    lease = await client.open("d")
    taking = asyncio.create_task(taken(lease, 100, 1_000, now() + LONG_S))
    await asyncio.sleep(0.1)
    await client.close()
    assert (await taking) is None
    [result] = await writing
    assert result in ("ChannelNotFound", "ShuttingDown")


async def test_a_run_is_appended_as_far_as_there_are_places(client: Client) -> None:
    await client.create("c")
    events = [append("c", event_id).event for event_id in "abcde"]
    accepted = await run(client, events)
    assert accepted == CAPACITY
    assert await run(client, events[accepted:]) == 0
    assert await client.take(await client.open(), CAPACITY) == "abc"


async def test_a_run_needs_a_channel(client: Client) -> None:
    with pytest.raises(ChannelNotFound):
        await run(client, [append("x", "a").event])


def counted(result: int | MegaphoneError) -> int | str:
    """Return how many events a channel has taken, or the name of the error for which it has not."""
    return result if isinstance(result, int) else type(result).__name__


async def run(client: Client, events: list[Event]) -> int:
    """Append events by the call for runs; one by one, if the store would have to wait."""
    try:
        return client.store.append_run_nowait(b"c", events)
    except WouldBlock:
        [result] = await client.store.append_to_all([b"c"], events)
        if isinstance(result, MegaphoneError):
            raise result from None
        return result


async def test_a_channel_has_the_options_that_it_is_created_with(client: Client) -> None:
    options = ChannelOptions(capacity=5, ttl_s=0.3, label="orders")
    await client.store.create(b"c", client.address("c"), options)
    await client.create("d")
    assert await client.append("abcdef") == ["a", "b", "c", "d", "e", "WouldBlock"]
    assert await client.append("abcd", channel="d") == ["a", "b", "c", "WouldBlock"]
    started = now()
    await client.gone("c")
    assert now() - started < TTL_S
    await client.gone("d")


# -- Tenants


async def test_a_channel_does_not_exist_for_other_tenants(client: Client) -> None:
    store, shop, bank = client.store, Tenant("shop"), Tenant("bank")
    await store.create(b"c", client.address("c"), tenant=shop)
    await client.create("d")  # of the tenant `default`
    event = append("c", "a").event
    for other in (bank, DEFAULT):
        assert not await store.exists([b"c"], other)
        for wait in (False, True):
            writes = [Append(b"c", event, key, other) for key in (None, "k")]
            results = await store.append(writes, wait=wait)
            assert [named(one) for one in results] == ["ChannelNotFound"] * 2
        with pytest.raises(ChannelNotFound):
            await store.open(b"c", client.address("c"), ReadOptions(), other)
        with pytest.raises(ChannelNotFound):
            await store.acknowledge(b"c", client.address("c"), "a", other)
        with pytest.raises(ChannelNotFound):
            await store.remove(b"c", other)
    assert (await store.exists([b"c", b"d"], shop)).keys() == {b"c"}
    assert (await store.exists([b"c", b"d"], Tenant("default"))).keys() == {b"d"}
    assert (await store.exists([b"c", b"d"])).keys() == {b"c", b"d"}


async def test_who_may_not_read_a_channel_ends_no_read(client: Client) -> None:
    store, shop = client.store, Tenant("shop")
    await store.create(b"c", client.address("c"), tenant=shop)
    lease = await store.open(b"c", client.address("c"), ReadOptions(reader="one"))
    for options in (ReadOptions(take_over=True), ReadOptions(reader="one", returning=True)):
        for address, tenant in ((client.address("c"), DEFAULT), (client.address("d"), shop)):
            with pytest.raises(ChannelNotFound):
                await store.open(b"c", address, options, tenant)
    await client.append("a")
    assert await client.take(lease, 1) == "a"


async def test_a_tenant_uses_its_own_channels(client: Client) -> None:
    store, shop = client.store, Tenant("shop")
    await store.create(b"c", client.address("c"), tenant=shop)
    writes = [Append(b"c", append("c", one).event, None, shop) for one in "abcd"]
    writing = asyncio.create_task(store.append(writes, wait=True))
    lease = await store.open(b"c", client.address("c"), ReadOptions(), shop)
    assert await client.take(lease, 4) == "abcd"
    assert [named(one) for one in await writing] == ["a", "b", "c", "d"]
    assert await store.acknowledge(b"c", client.address("c"), "d", shop) > 0
    await store.remove(b"c", shop)
    assert not await client.exists()


async def test_a_batch_for_many_channels_finds_those_of_its_tenant(client: Client) -> None:
    store, shop = client.store, Tenant("shop")
    await store.create(b"c", client.address("c"), tenant=shop)
    await client.create("d")
    event = append("c", "a").event
    for tenant, expected in ((shop, [1, "ChannelNotFound"]), (None, [1, 1])):
        results = await store.append_to_all([b"c", b"d"], [event], tenant)
        assert list(map(counted, results)) == expected
