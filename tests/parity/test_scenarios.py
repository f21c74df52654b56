"""Proves that a channel behaves the same through HTTP and gRPC, and between the two.

A test with `face` runs through each face; one with `writer` and `reader` runs through all four
pairs of faces, so that neither can have rules of its own.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from megaphone.app import App, running
from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    LimitExceeded,
    MegaphoneError,
    NoAgentAvailable,
    PayloadTooLarge,
    PermissionDenied,
    ReaderBusy,
    ShuttingDown,
    TakenOver,
    WriteTimeout,
)
from megaphone.model import START, AgentMode, BatchFailure, NewEvent, ReadOptions
from megaphone.settings import Settings
from tests.support.faces import FACES, PLAIN, Created, Face, read_all, read_some, take
from tests.support.scenes import (
    UNKNOWN_ADDRESS,
    UNKNOWN_EVENT,
    altered,
    busy_loop,
    eventually,
    gone,
    now,
    numbers,
    read_once_free,
    reading_once_free,
    resuming_after,
    still_waits,
    traffic,
    write_numbers,
    writers_wait,
)

pytestmark = pytest.mark.timeout(30)

LATE_S = 8
"""A busy machine may be late, but not so late that a read or a writer comes to its usual end."""
ACKNOWLEDGING = ReadOptions(acknowledge=True)
READS = [
    pytest.param(PLAIN, id="plain"),
    pytest.param(ACKNOWLEDGING, id="acknowledging"),
    pytest.param(ReadOptions(cursor=UNKNOWN_EVENT), id="resuming"),
]


# -- Writing and reading


async def test_reader_gets_what_was_written(writer: Face, reader: Face) -> None:
    before = datetime.now(UTC)
    channel = await writer.create()
    event_id = await writer.write(channel.producer, "news", b'{"n":1}')
    (event,) = await read_some(reader, channel.consumer, 1)
    assert (event.event_id, event.stream_id, event.body) == (event_id, "news", b'{"n":1}')
    assert before - timedelta(milliseconds=1) <= event.timestamp <= datetime.now(UTC)


async def test_waiting_reader_gets_an_event_as_it_comes(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with reader.read(channel.consumer) as read, asyncio.timeout(5):
        for number in range(3):
            await write_numbers(writer, channel, [number])
            assert numbers(await take(read, 1)) == [number]


async def test_300_events_arrive_in_order(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with asyncio.TaskGroup() as group:
        read = group.create_task(read_some(reader, channel.consumer, 300))
        group.create_task(write_numbers(writer, channel, range(300)))
    assert numbers(read.result()) == list(range(300))


async def test_streams_of_a_channel_share_one_order(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    streams = ["a", "b", "a", "\N{SNOWMAN}/c d", "b"]
    for stream in streams:
        await writer.write(channel.producer, stream, b"0")
    events = await read_some(reader, channel.consumer, len(streams))
    assert [event.stream_id for event in events] == streams


async def test_channels_are_apart(face: Face) -> None:
    one, other = await face.create(), await face.create()
    await write_numbers(face, one, [1])
    await write_numbers(face, other, [2])
    assert numbers(await read_some(face, one.consumer, 1)) == [1]
    assert numbers(await read_some(face, other.consumer, 1)) == [2]


# -- A full channel


@pytest.mark.settings(buffer_capacity=3)
async def test_writer_waits_until_a_reader_makes_room(app: App, writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    fourth = asyncio.create_task(write_numbers(writer, channel, [3]))
    await eventually(writers_wait(app, 1))
    events = await read_some(reader, channel.consumer, 4)
    assert numbers(events) == [0, 1, 2, 3]
    assert await fourth == [events[3].event_id]


@pytest.mark.settings(buffer_capacity=1)
async def test_writers_that_wait_are_served_in_their_order(
    app: App, writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    waiting = []
    for number, face in enumerate([writer, reader, writer, reader], start=1):
        waiting.append(asyncio.create_task(write_numbers(face, channel, [number])))
        await eventually(writers_wait(app, number))
    assert numbers(await read_some(reader, channel.consumer, 5)) == [0, 1, 2, 3, 4]
    await asyncio.gather(*waiting)


@pytest.mark.settings(buffer_capacity=1)
async def test_writer_that_gave_up_leaves_nothing_behind(
    app: App, writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    given_up = asyncio.create_task(write_numbers(writer, channel, [1]))
    await eventually(writers_wait(app, 1))
    given_up.cancel()
    await eventually(writers_wait(app, 0))
    async with reader.read(channel.consumer) as read:
        assert numbers(await take(read, 1)) == [0]
        await write_numbers(writer, channel, [2])
        assert numbers(await take(read, 1)) == [2]


@pytest.mark.settings(buffer_capacity=3, write_timeout_millis=100, poll_duration_millis=150)
async def test_write_to_a_channel_that_stays_full_times_out(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    with pytest.raises(WriteTimeout):
        await write_numbers(writer, channel, [3])
    assert numbers(await read_all(reader, channel.consumer)) == [0, 1, 2]


@pytest.mark.settings(buffer_capacity=3, write_timeout_millis=100)
async def test_channel_takes_writes_again_after_a_timeout(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, range(3))
    with pytest.raises(WriteTimeout):
        await write_numbers(face, channel, [3])
    async with face.read(channel.consumer) as read:
        await take(read, 3)
        await write_numbers(face, channel, [4])
        assert numbers(await take(read, 1)) == [4]


@pytest.mark.settings(buffer_capacity=3)
async def test_unacknowledged_events_hold_the_writer_back(
    app: App, writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    async with reader.read(channel.consumer, ACKNOWLEDGING) as read:
        first, *_ = await take(read, 3)
        fourth = asyncio.create_task(write_numbers(writer, channel, [3]))
        await eventually(writers_wait(app, 1))
        assert await writer.acknowledge(channel.consumer, first.event_id) == 1
        await fourth
        assert numbers(await take(read, 1)) == [3]


# -- One reader at a time


@pytest.mark.parametrize("options", READS)
async def test_second_reader_is_refused(writer: Face, reader: Face, options: ReadOptions) -> None:
    channel = await writer.create()
    async with writer.read(channel.consumer, options) as read:
        with pytest.raises(ReaderBusy):
            await read_some(reader, channel.consumer, 1)
        await write_numbers(writer, channel, [1])
        assert numbers(await take(read, 1)) == [1]


async def test_channel_is_free_at_once_when_a_read_ends_cleanly(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    for _ in range(5):
        assert await read_all(writer, channel.consumer, ReadOptions(wait_s=0.01)) == []
        assert await read_all(reader, channel.consumer, ReadOptions(wait_s=0.01)) == []


@pytest.mark.parametrize("options", READS)
async def test_channel_is_free_soon_after_a_disconnect(
    writer: Face, reader: Face, options: ReadOptions
) -> None:
    channel = await writer.create()
    async with writer.read(channel.consumer, options):
        pass
    await write_numbers(writer, channel, [1])
    assert numbers(await read_once_free(reader, channel, 1)) == [1]


async def test_reader_that_takes_over_ends_the_other_and_misses_nothing(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    async with writer.read(channel.consumer) as other:
        assert numbers(await take(other, 3)) == [0, 1, 2]
        async with reader.read(channel.consumer, ReadOptions(take_over=True)) as read:
            assert numbers(await take(read, 3)) == [0, 1, 2]
            assert [event async for event in other] == []
            await write_numbers(writer, channel, [3])
            assert numbers(await take(read, 1)) == [3]


FIRST, BACK = ReadOptions(reader="first"), ReadOptions(reader="first", returning=True)


async def test_a_reader_that_returns_takes_over_from_itself(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    async with writer.read(channel.consumer, FIRST) as former:
        assert numbers(await take(former, 3)) == [0, 1, 2]
        async with reader.read(channel.consumer, BACK) as read:
            assert numbers(await take(read, 3)) == [0, 1, 2]
            assert [event async for event in former] == []


@pytest.mark.parametrize("other", [ReadOptions(), ReadOptions(reader="other")])
async def test_a_reader_that_returns_learns_that_another_one_has_its_place(
    writer: Face, reader: Face, other: ReadOptions
) -> None:
    channel = await writer.create()
    async with (
        writer.read(channel.consumer, FIRST) as former,
        reader.read(channel.consumer, replace(other, take_over=True)) as read,
    ):
        assert [event async for event in former] == []
        for back in (BACK, replace(BACK, take_over=True)):
            with pytest.raises(TakenOver):
                await read_some(writer, channel.consumer, 1, back)
        await write_numbers(writer, channel, [1])
        assert numbers(await take(read, 1)) == [1]


async def test_a_reader_that_returns_to_a_free_channel_reads_it(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, [1])
    assert numbers(await read_some(face, channel.consumer, 1, BACK)) == [1]


async def test_reader_may_take_over_a_channel_that_is_free(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, [1])
    events = await read_some(face, channel.consumer, 1, ReadOptions(take_over=True))
    assert numbers(events) == [1]


# -- The end of a read


@pytest.mark.settings(poll_duration_millis=400)
async def test_read_ends_cleanly_after_the_poll_duration(face: Face) -> None:
    channel = await face.create()
    began = now()
    async with face.read(channel.consumer) as read:
        assert [event async for event in read] == []
    assert 0.35 <= now() - began < LATE_S
    assert read.heartbeats == 0, "heartbeats must be asked for"


@pytest.mark.settings(poll_duration_millis=200)
async def test_read_ends_cleanly_in_the_middle_of_traffic(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with traffic(writer, channel):
        began = now()
        events = await read_all(reader, channel.consumer)
        assert 0.15 <= now() - began < LATE_S
        events += await read_all(reader, channel.consumer)
    assert len(events) > 10
    assert numbers(events) == list(range(len(events)))


@pytest.mark.settings(poll_duration_millis=150)
async def test_events_of_a_read_that_ended_cleanly_do_not_come_again(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, range(3))
    assert numbers(await read_all(face, channel.consumer)) == [0, 1, 2]
    assert await read_all(face, channel.consumer) == []


async def test_read_ends_cleanly_at_its_limit(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(5))
    for expected in ([0, 1], [2, 3]):
        events = await read_all(reader, channel.consumer, ReadOptions(limit=2))
        assert numbers(events) == expected


async def test_read_with_a_limit_waits_for_its_events(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    async with reader.read(channel.consumer, ReadOptions(limit=2)) as read:
        assert numbers(await take(read, 1)) == [0]
        await write_numbers(writer, channel, [1])
        assert numbers([event async for event in read]) == [1]


async def test_read_ends_cleanly_after_its_own_wait(face: Face) -> None:
    channel = await face.create()
    began = now()
    assert await read_all(face, channel.consumer, ReadOptions(wait_s=0.2)) == []
    assert 0.15 <= now() - began < LATE_S


async def test_read_without_a_wait_takes_what_is_ready(face: Face) -> None:
    channel = await face.create()
    with busy_loop():  # a node under load is late by more than a moment
        for number in range(10):
            await write_numbers(face, channel, [number])
            events = await read_all(face, channel.consumer, ReadOptions(wait_s=0))
            assert numbers(events) == [number]


async def test_read_without_a_wait_ends_at_once_when_nothing_is_ready(face: Face) -> None:
    channel = await face.create()
    began = now()
    assert await read_all(face, channel.consumer, ReadOptions(wait_s=0)) == []
    assert now() - began < LATE_S


async def test_read_shows_signs_of_life_when_asked(face: Face) -> None:
    channel = await face.create()
    options = ReadOptions(heartbeat_s=0.1, wait_s=0.35)
    async with face.read(channel.consumer, options) as read:
        await write_numbers(face, channel, [1])
        assert numbers([event async for event in read]) == [1]
    assert 1 <= read.heartbeats <= 3


# -- The life of a channel


@pytest.mark.settings(channel_ttl_secs=0.3)
async def test_channel_that_nobody_reads_expires(face: Face) -> None:
    channel = await face.create()
    event_id = await face.write(channel.producer, "s", b"1")
    await eventually(gone(face, channel))
    for use in (
        face.write(channel.producer, "s", b"1"),
        read_some(face, channel.consumer, 1),
        face.acknowledge(channel.consumer, event_id),
    ):
        with pytest.raises(ChannelNotFound):
            await use


@pytest.mark.settings(channel_ttl_secs=0.3)
async def test_channel_lives_as_long_as_it_is_read(face: Face) -> None:
    channel = await face.create()
    async with face.read(channel.consumer) as read:
        await eventually(gone(face, await face.create()))
        await write_numbers(face, channel, [1])
        assert numbers(await take(read, 1)) == [1]


@pytest.mark.settings(channel_ttl_secs=0.3)
@pytest.mark.parametrize("end", ["clean", "cut"])
async def test_channel_expires_after_its_last_read(face: Face, end: str) -> None:
    channel = await face.create()
    await write_numbers(face, channel, [1])
    if end == "clean":
        await read_all(face, channel.consumer, ReadOptions(limit=1))
    else:
        await read_some(face, channel.consumer, 1)
    await eventually(gone(face, channel))


@pytest.mark.settings(max_channels=2, channel_ttl_secs=0.3)
async def test_node_takes_no_more_channels_than_it_may(face: Face) -> None:
    first, second = await face.create(), await face.create()
    async with face.read(first.consumer), face.read(second.consumer):
        with pytest.raises(LimitExceeded):
            await face.create()
    await eventually(gone(face, first))
    await face.create()


# -- Batches


async def test_batch_writes_every_message_to_every_channel(writer: Face, reader: Face) -> None:
    channels = [await writer.create() for _ in range(3)]
    messages = [NewEvent("a", b"1"), NewEvent("b", b"[2]"), NewEvent("a", b"3")]
    answer = await writer.batch([one.producer for one in channels], messages)
    assert answer.failures == []
    got = [await read_some(reader, one.consumer, 3) for one in channels]
    assert [NewEvent(event.stream_id, event.body) for event in got[0]] == messages
    assert got[0] == got[1] == got[2], "an event is the same one in every channel, id and time"
    assert [event.event_id for event in got[0]] == answer.event_ids
    assert len(set(answer.event_ids)) == 3


async def test_batch_names_what_was_not_taken(writer: Face, reader: Face) -> None:
    good = await writer.create()
    reasons = {
        UNKNOWN_ADDRESS: "NOT_FOUND",
        "no address": "BAD_REQUEST",
        "": "BAD_REQUEST",
        altered(good.producer): "BAD_REQUEST",
        good.consumer: "PERMISSION_DENIED",
    }
    channels = [*reasons, good.producer]
    failures = await writer.write_batch(channels, [NewEvent("s", b"0"), NewEvent("s", b"1")])
    assert failures == [
        BatchFailure(channel, index, reason)
        for channel, reason in reasons.items()
        for index in (0, 1)
    ]
    assert numbers(await read_some(reader, good.consumer, 2)) == [0, 1]


async def test_batch_to_a_channel_that_went_is_not_found(app: App, face: Face) -> None:
    channel = await face.create()
    await app.admin.dispose(channel.consumer)
    failures = await face.write_batch([channel.producer], [NewEvent("s", b"0")])
    assert failures == [BatchFailure(channel.producer, 0, "NOT_FOUND")]


@pytest.mark.settings(buffer_capacity=4, write_timeout_millis=100)
async def test_batch_skips_the_rest_of_a_channel_after_a_timeout(
    writer: Face, reader: Face
) -> None:
    full, roomy = await writer.create(), await writer.create()
    await write_numbers(writer, full, [10, 11, 12])
    messages = [NewEvent("s", b"%d" % number) for number in range(4)]
    answer = await writer.batch([full.producer, roomy.producer], messages)
    assert answer.failures == [
        BatchFailure(full.producer, 1, "TIMEOUT"),
        BatchFailure(full.producer, 2, "SKIPPED"),
        BatchFailure(full.producer, 3, "SKIPPED"),
    ]
    assert numbers(await read_some(reader, full.consumer, 4)) == [10, 11, 12, 0]
    got = await read_some(reader, roomy.consumer, 4)
    assert numbers(got) == [0, 1, 2, 3]
    assert [event.event_id for event in got] == answer.event_ids


@pytest.mark.settings(buffer_capacity=2, write_timeout_millis=100)
async def test_batch_has_an_id_for_each_event_that_a_channel_took(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    messages = [NewEvent("s", b"%d" % number) for number in range(4)]
    first = await writer.batch([channel.producer], messages, "batch")
    assert first.event_ids[2:] == [None, None]
    got = await read_some(reader, channel.consumer, 2)
    assert [event.event_id for event in got] == first.event_ids[:2]
    again = await reader.batch([channel.producer, UNKNOWN_ADDRESS], messages, "batch")
    assert again.event_ids[:2] == first.event_ids[:2]
    assert None not in again.event_ids
    assert (await writer.batch([channel.producer], messages, "batch")).event_ids == again.event_ids
    assert (await writer.batch([UNKNOWN_ADDRESS], messages)).event_ids == [None] * 4
    assert (await writer.batch([], messages)).event_ids == [None] * 4


@pytest.mark.settings(buffer_capacity=2)
async def test_full_channel_does_not_hold_up_the_others_of_a_batch(
    app: App, writer: Face, reader: Face
) -> None:
    full, roomy = await writer.create(), await writer.create()
    await write_numbers(writer, full, [10, 11])
    batch = asyncio.create_task(
        writer.write_batch([full.producer, roomy.producer], [NewEvent("s", b"1")])
    )
    assert numbers(await read_some(reader, roomy.consumer, 1)) == [1]
    await eventually(writers_wait(app, 1))
    assert numbers(await read_some(reader, full.consumer, 3)) == [10, 11, 1]
    assert await batch == []


@pytest.mark.settings(poll_duration_millis=150)
async def test_channel_that_a_batch_names_twice_is_written_once(face: Face) -> None:
    channel = await face.create()
    assert await face.write_batch([channel.producer] * 2, [NewEvent("s", b"1")]) == []
    assert numbers(await read_all(face, channel.consumer)) == [1]


@pytest.mark.settings(poll_duration_millis=150)
async def test_batch_with_one_bad_message_is_refused_as_a_whole(face: Face) -> None:
    channel = await face.create()
    with pytest.raises(BadRequest, match="message 1: "):
        await face.write_batch([channel.producer], [NewEvent("s", b"0"), NewEvent("", b"1")])
    assert await read_all(face, channel.consumer) == []


# -- Which channels there are


async def test_exists_answers_for_each_address(app: App, writer: Face, reader: Face) -> None:
    dead, living = await writer.create(), await writer.create()
    await app.admin.dispose(dead.consumer)
    expected = {
        living.producer: True,
        living.consumer: True,
        dead.producer: False,
        dead.consumer: False,
        UNKNOWN_ADDRESS: False,
        altered(living.producer): False,
        "no address": False,
        "": False,
    }
    assert await reader.exists(list(expected)) == expected
    assert await reader.exists([]) == {}


@pytest.mark.settings(agent={"one": AgentMode.MASTER, "two": AgentMode.MASTER})
async def test_an_address_that_nobody_was_given_does_not_exist(face: Face) -> None:
    channel = await face.create()
    agent, secret, features = channel.consumer.split(".")
    other_agent = {"one": "two", "two": "one"}[agent]
    expected = {
        f"{agent}.{secret}.2": False,
        f"{other_agent}.{secret}.{features}": False,
        channel.consumer: True,
        channel.producer: True,
    }
    assert await face.exists(list(expected)) == expected


# -- Request ids


@pytest.mark.settings(poll_duration_millis=150)
async def test_repeated_write_is_answered_as_the_first_and_stored_once(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    first = await writer.write(channel.producer, "s", b"1", "request-1")
    assert await reader.write(channel.producer, "s", b"1", "request-1") == first
    other = await reader.write(channel.producer, "s", b"2", "request-2")
    events = await read_all(reader, channel.consumer, ReadOptions(limit=2))
    assert [event.event_id for event in events] == [first, other]
    assert await writer.write(channel.producer, "s", b"1", "request-1") == first
    assert await read_all(reader, channel.consumer) == []


async def test_request_id_counts_per_channel(face: Face) -> None:
    one, other = await face.create(), await face.create()
    assert await face.write(one.producer, "s", b"1", "id") != (
        await face.write(other.producer, "s", b"1", "id")
    )
    assert numbers(await read_some(face, other.consumer, 1)) == [1]


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=100)
async def test_write_that_timed_out_may_be_repeated(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    with pytest.raises(WriteTimeout):
        await writer.write(channel.producer, "s", b"1", "id")
    async with reader.read(channel.consumer) as read:
        await take(read, 1)
        event_id = await writer.write(channel.producer, "s", b"1", "id")
        assert [event.event_id for event in await take(read, 1)] == [event_id]


@pytest.mark.settings(buffer_capacity=1, poll_duration_millis=150)
async def test_repeat_of_a_waiting_write_waits_with_it(
    app: App, writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, [0])
    repeats = [
        asyncio.create_task(face.write(channel.producer, "s", b"1", "id"))
        for face in (writer, reader)
    ]
    await eventually(writers_wait(app, 2))
    events = await read_all(reader, channel.consumer)
    assert numbers(events) == [0, 1]
    assert await asyncio.gather(*repeats) == [events[1].event_id] * 2


@pytest.mark.settings(poll_duration_millis=150)
async def test_repeated_batch_is_stored_once(writer: Face, reader: Face) -> None:
    channels = [await writer.create() for _ in range(2)]
    producers = [channel.producer for channel in channels]
    messages = [NewEvent("s", b"0"), NewEvent("s", b"1")]
    assert await writer.write_batch(producers, messages, "batch") == []
    assert await reader.write_batch(producers, messages, "batch") == []
    reads = await asyncio.gather(*(read_all(reader, channel.consumer) for channel in channels))
    assert [numbers(events) for events in reads] == [[0, 1], [0, 1]]


@pytest.mark.settings(buffer_capacity=2, write_timeout_millis=100)
async def test_repeated_batch_writes_only_what_was_not_taken(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    messages = [NewEvent("s", b"%d" % number) for number in range(4)]
    failures = await writer.write_batch([channel.producer], messages, "batch")
    assert [(one.index, one.reason) for one in failures] == [(2, "TIMEOUT"), (3, "SKIPPED")]
    async with reader.read(channel.consumer) as read:
        assert numbers(await take(read, 2)) == [0, 1]
        assert await writer.write_batch([channel.producer], messages, "batch") == []
        assert numbers(await take(read, 2)) == [2, 3]


# -- Acknowledging reads


async def test_acknowledging_reader_has_its_window_in_flight(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(6))
    async with reader.read(channel.consumer, ReadOptions(acknowledge=True, in_flight=2)) as read:
        first, second = await take(read, 2)
        third = asyncio.create_task(take(read, 1))
        assert await still_waits(third)
        assert await writer.acknowledge(channel.consumer, first.event_id) == 1
        assert numbers(await third) == [2]
        assert await writer.acknowledge(channel.consumer, second.event_id) == 1
        assert numbers(await take(read, 1)) == [3]


async def test_acknowledging_counts_all_before_and_each_once(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, range(5))
    async with face.read(channel.consumer, ReadOptions(acknowledge=True, in_flight=4)) as read:
        events = await take(read, 4)
        acknowledged = [
            await face.acknowledge(channel.consumer, event_id)
            for event_id in (
                events[2].event_id,
                events[2].event_id,
                events[0].event_id,
                UNKNOWN_EVENT,
                events[3].event_id,
            )
        ]
    assert acknowledged == [3, 0, 0, 0, 1]


@pytest.mark.parametrize("end", ["clean", "cut"])
async def test_unacknowledged_events_come_again_in_order(
    writer: Face, reader: Face, end: str
) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(5))
    options = ReadOptions(acknowledge=True, limit=5 if end == "clean" else None)
    async with writer.read(channel.consumer, options) as read:
        events = await take(read, 5)
        await writer.acknowledge(channel.consumer, events[1].event_id)
        if end == "clean":
            assert [event async for event in read] == []
    await write_numbers(writer, channel, [5])
    again = await read_once_free(reader, channel, 4)
    assert numbers(again) == [2, 3, 4, 5]
    assert again[:3] == events[2:]


async def test_event_may_be_acknowledged_after_the_read(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(4))
    events = await read_some(writer, channel.consumer, 4, ACKNOWLEDGING)
    assert await reader.acknowledge(channel.consumer, events[1].event_id) == 2
    assert numbers(await read_once_free(reader, channel, 2, ACKNOWLEDGING)) == [2, 3]


async def test_event_that_was_never_sent_cannot_be_acknowledged(face: Face) -> None:
    channel = await face.create()
    (event_id,) = await write_numbers(face, channel, [1])
    assert await face.acknowledge(channel.consumer, event_id) == 0
    assert numbers(await read_some(face, channel.consumer, 1)) == [1]


# -- Resuming reads


async def test_read_that_resumes_starts_after_the_event(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    event_ids = await write_numbers(writer, channel, range(4))
    await read_some(writer, channel.consumer, 3)
    async with reading_once_free(reader, channel, resuming_after(event_ids[1])) as read:
        assert read.recovered is True
        assert numbers(await take(read, 2)) == [2, 3]


@pytest.mark.settings(poll_duration_millis=150)
async def test_read_resumes_also_after_a_clean_end(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    event_ids = await write_numbers(writer, channel, range(3))
    assert len(await read_all(writer, channel.consumer, ReadOptions(limit=3))) == 3
    options = ReadOptions(cursor=event_ids[0], limit=2)
    async with reader.read(channel.consumer, options) as read:
        assert read.recovered is True
        assert numbers([event async for event in read]) == [1, 2]
    async with reader.read(channel.consumer, resuming_after(event_ids[2])) as read:
        assert read.recovered is True
        assert [event async for event in read] == []


@pytest.mark.settings(buffer_capacity=3, poll_duration_millis=150)
async def test_read_after_an_event_that_is_forgotten_says_so(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    forgotten, *_ = await write_numbers(writer, channel, range(3))
    assert len(await read_all(reader, channel.consumer, ReadOptions(limit=3))) == 3
    await write_numbers(writer, channel, [3, 4])
    assert len(await read_all(reader, channel.consumer, ReadOptions(limit=2))) == 2
    async with reader.read(channel.consumer, resuming_after(forgotten)) as read:
        assert read.recovered is False
        assert numbers([event async for event in read]) == [2, 3, 4]


async def test_read_after_an_unknown_event_starts_at_the_oldest(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(3))
    async with reader.read(channel.consumer, resuming_after(UNKNOWN_EVENT)) as read:
        assert read.recovered is False
        assert numbers(await take(read, 3)) == [0, 1, 2]


@pytest.mark.parametrize("options", [PLAIN, ACKNOWLEDGING], ids=["plain", "acknowledging"])
async def test_read_without_a_cursor_says_nothing_of_recovery(
    face: Face, options: ReadOptions
) -> None:
    channel = await face.create()
    async with face.read(channel.consumer, options) as read:
        assert read.recovered is None


async def test_cursor_acknowledges_all_up_to_it(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    events = await write_numbers(writer, channel, range(4))
    await read_some(writer, channel.consumer, 4, ACKNOWLEDGING)
    options = ReadOptions(cursor=events[1], acknowledge=True)
    async with reading_once_free(reader, channel, options) as read:
        assert read.recovered is True
        assert numbers(await take(read, 2)) == [2, 3]
        assert await reader.acknowledge(channel.consumer, events[1]) == 0
        assert await reader.acknowledge(channel.consumer, events[3]) == 2


@pytest.mark.settings(poll_duration_millis=150)
async def test_read_says_after_which_event_it_starts(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with reader.read(channel.consumer) as read:
        assert read.position == START
    first, second, third = await write_numbers(writer, channel, range(3))
    async with reading_once_free(reader, channel, ReadOptions(limit=2)) as read:
        assert read.position == START
        assert len([event async for event in read]) == 2
    async with reader.read(channel.consumer, ACKNOWLEDGING) as read:
        assert read.position == second
    async with reading_once_free(reader, channel, resuming_after(first)) as read:
        assert read.position == first
        assert numbers(await take(read, 2)) == [1, 2]
    async with reading_once_free(reader, channel, resuming_after(third)) as read:
        assert read.position == third


async def test_reader_that_got_no_event_resumes_at_its_position(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    async with reader.read(channel.consumer) as read:
        position = read.position
    await write_numbers(writer, channel, range(2))
    await read_some(reader, channel.consumer, 2, ReadOptions(take_over=True))
    async with reading_once_free(reader, channel, resuming_after(position)) as read:
        assert read.recovered is True
        assert numbers(await take(read, 2)) == [0, 1]


# -- Reads of some streams


async def write_to(face: Face, channel: Created, *streams: str) -> list[str]:
    """Write an event to each of some streams. Its body is its number."""
    return [
        await face.write(channel.producer, stream, b"%d" % number)
        for number, stream in enumerate(streams)
    ]


@pytest.mark.parametrize("kind", [PLAIN, ACKNOWLEDGING], ids=["plain", "acknowledging"])
async def test_reader_gets_only_the_streams_that_it_asks_for(
    writer: Face, reader: Face, kind: ReadOptions
) -> None:
    channel = await writer.create()
    options = replace(kind, streams=frozenset(("a", "\N{SNOWMAN}/c&d")))
    await write_to(writer, channel, "a", "b", "\N{SNOWMAN}/c&d", "b", "a", "aa")
    async with reader.read(channel.consumer, options) as read:
        events = await take(read, 3)
        assert numbers(events) == [0, 2, 4]
        assert [event.stream_id for event in events] == ["a", "\N{SNOWMAN}/c&d", "a"]
        await write_to(writer, channel, "b", "a")
        assert numbers(await take(read, 1)) == [1]


@pytest.mark.settings(buffer_capacity=3, poll_duration_millis=150)
async def test_events_that_a_plain_reader_does_not_want_count_as_read(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    only_a = ReadOptions(streams=frozenset("a"))
    async with reader.read(channel.consumer, replace(only_a, limit=1, wait_s=5)) as read:
        await write_to(writer, channel, *"bbbbbbbba")
        assert numbers([event async for event in read]) == [8]
    await write_to(writer, channel, *"bb")
    assert await read_all(reader, channel.consumer, only_a) == []
    assert await read_all(reader, channel.consumer) == []


@pytest.mark.settings(buffer_capacity=3)
async def test_events_that_nobody_wants_do_not_fill_the_window_of_an_acknowledging_reader(
    app: App, writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    options = replace(ACKNOWLEDGING, streams=frozenset("a"), in_flight=2)
    async with reader.read(channel.consumer, options) as read:
        async with asyncio.timeout(5):
            (*_, first) = await write_to(writer, channel, *"bbbbbbbbba")
        assert [event.event_id for event in await take(read, 1)] == [first]
        # An event that is not acknowledged keeps its place, and so do the events behind it.
        behind = asyncio.create_task(write_to(writer, channel, *"bbbbba"))
        await eventually(writers_wait(app, 1))
        # With a shared store, those that the reader has passed over may count too.
        assert await writer.acknowledge(channel.consumer, first) >= 1
        assert numbers(await take(read, 1)) == [5]
        await behind
    async with reading_once_free(reader, channel, ACKNOWLEDGING) as read:
        # If the reader took both at once, the first counts as acknowledged with the wanted one.
        assert numbers(await take(read, 1)) in ([4], [5])


async def test_events_of_other_streams_are_acknowledged_with_the_next_one(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    options = replace(ACKNOWLEDGING, streams=frozenset("a"))
    ids = await write_to(writer, channel, *"abbab")
    async with reader.read(channel.consumer, options) as read:
        assert numbers(await take(read, 2)) == [0, 3]
        assert await reader.acknowledge(channel.consumer, ids[3]) == 4
    async with reading_once_free(reader, channel, ACKNOWLEDGING) as read:
        assert read.position == ids[3]
        assert numbers(await take(read, 1)) == [4]


@pytest.mark.settings(poll_duration_millis=600)
async def test_reader_whose_streams_are_quiet_gets_heartbeats(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    options = ReadOptions(streams=frozenset("a"), heartbeat_s=0.1)
    async with reader.read(channel.consumer, options) as read, traffic(writer, channel):
        assert [event async for event in read] == []
        assert read.heartbeats


@pytest.mark.parametrize(
    ("streams", "error"),
    [
        (("a", ""), BadRequest),
        (("a\n",), BadRequest),
        (tuple(str(number) for number in range(101)), PayloadTooLarge),
    ],
)
async def test_streams_that_cannot_be_are_refused(
    face: Face, streams: tuple[str, ...], error: type[MegaphoneError]
) -> None:
    channel = await face.create()
    with pytest.raises(error):
        await read_all(face, channel.consumer, ReadOptions(streams=frozenset(streams)))


# -- Broken reads


async def test_events_of_a_broken_plain_read_come_again_first(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await write_numbers(writer, channel, range(5))
    first = await read_some(reader, channel.consumer, 2)
    await write_numbers(writer, channel, [5])
    again = await read_once_free(writer, channel, 6)
    assert numbers(again) == [0, 1, 2, 3, 4, 5]
    assert again[:2] == first, "an event that comes again is the same one"


@pytest.mark.settings(redelivery_window_secs=0)
async def test_events_of_a_broken_plain_read_can_be_kept_from_coming_again(face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, range(3))
    await read_some(face, channel.consumer, 3)
    await write_numbers(face, channel, [3])
    assert numbers(await read_once_free(face, channel, 1)) == [3]


@pytest.mark.parametrize("mode", ["plain", "acknowledging", "resuming"])
async def test_nothing_is_lost_when_reads_break_again_and_again(
    writer: Face, reader: Face, mode: str
) -> None:
    channel = await writer.create()
    writes = asyncio.create_task(write_numbers(writer, channel, range(90)))
    seen: dict[str, int] = {}
    while len(seen) < 90:
        options = {
            "plain": PLAIN,
            "acknowledging": ACKNOWLEDGING,
            "resuming": resuming_after(next(reversed(seen), UNKNOWN_EVENT)),
        }[mode]
        async with reading_once_free(reader, channel, options) as read:
            async for event in read:
                if event.event_id not in seen:
                    seen[event.event_id] = int(event.body)
                    if len(seen) % 10 == 0:
                        break
        if mode == "acknowledging":
            await reader.acknowledge(channel.consumer, next(reversed(seen)))
    assert list(seen) == await writes
    assert list(seen.values()) == list(range(90))


# -- What a node offers


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ([], ["HTTP_STREAM_NDJSON_V1"]),
        (["HTTP_STREAM_NDJSON_V1"], ["HTTP_STREAM_NDJSON_V1"]),
        (["GRPC_STREAM_V1"], ["GRPC_STREAM_V1"]),
        (["GRPC_STREAM_V1", "HTTP_STREAM_NDJSON_V1"], ["GRPC_STREAM_V1", "HTTP_STREAM_NDJSON_V1"]),
        (["SMOKE_V9", "HTTP_STREAM_NDJSON_V1"], ["HTTP_STREAM_NDJSON_V1"]),
    ],
)
async def test_protocols_are_negotiated(face: Face, asked: list[str], answered: list[str]) -> None:
    assert (await face.create(asked)).protocols == answered


@pytest.mark.parametrize("asked", [["SMOKE_V9"], [""], ["http_stream_ndjson_v1", "é\n"]])
async def test_unsupported_protocols_are_refused(face: Face, asked: list[str]) -> None:
    with pytest.raises(BadRequest):
        await face.create(asked)


async def test_consumer_address_cannot_write(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    with pytest.raises(PermissionDenied):
        await reader.write(channel.consumer, "s", b"1")


@pytest.mark.settings(legacy_channel_id_writes=True)
async def test_consumer_address_can_write_where_it_always_could(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    await writer.write(channel.consumer, "s", b"1")
    assert await writer.write_batch([channel.consumer], [NewEvent("s", b"2")]) == []
    await writer.write(channel.producer, "s", b"3")
    assert numbers(await read_some(reader, channel.consumer, 3)) == [1, 2, 3]


@pytest.mark.settings(agent_warmup_secs=0.5)
async def test_node_takes_channels_once_it_is_warm(face: Face) -> None:
    with pytest.raises(NoAgentAvailable):
        await face.create()

    async def takes_channels() -> bool:
        with suppress(NoAgentAvailable):
            await face.create()
            return True
        return False

    await eventually(takes_channels)


@pytest.mark.settings(agent={"node": AgentMode.REPLICA})
async def test_replica_takes_no_channels(face: Face) -> None:
    with pytest.raises(NoAgentAvailable):
        await face.create()


@pytest.mark.settings(agent={"one": AgentMode.MASTER, "other": AgentMode.REPLICA})
async def test_channels_belong_to_a_master(face: Face) -> None:
    for _ in range(10):
        channel = await face.create()
        assert channel.producer.startswith("one.")
        assert channel.consumer.startswith("one.")


@pytest.mark.settings(buffer_capacity=1)
@pytest.mark.parametrize("name", FACES)
async def test_shutdown_ends_reads_cleanly_and_refuses_waiting_writers(
    settings: Settings, name: str
) -> None:
    async with AsyncExitStack() as clients:
        async with running(settings) as app:
            face = await clients.enter_async_context(FACES[name](app))
            read_channel, full_channel = await face.create(), await face.create()
            read = await clients.enter_async_context(face.read(read_channel.consumer))
            await write_numbers(face, read_channel, [1])
            assert numbers(await take(read, 1)) == [1]
            await write_numbers(face, full_channel, [0])
            waiting = asyncio.create_task(write_numbers(face, full_channel, [1]))
            await eventually(writers_wait(app, 1))
            began = now()
        assert now() - began < LATE_S
        assert [event async for event in read] == []
        with pytest.raises(ShuttingDown):
            await waiting
