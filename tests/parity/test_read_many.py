"""Reads of many channels over one connection, through both faces."""

import asyncio
import json
from collections.abc import Iterable

import pytest

from megaphone.app import App
from megaphone.errors import BadRequest, MegaphoneError, PayloadTooLarge, ReaderBusy
from megaphone.model import START, ReadOptions
from tests.support.faces import (
    JSON,
    Begun,
    Created,
    Done,
    Face,
    HttpFace,
    ManyPart,
    OpenMany,
    many_body,
    read_all,
    read_some,
    take,
)
from tests.support.scenes import (
    UNKNOWN_EVENT,
    eventually,
    numbers,
    reading_once_free,
    write_numbers,
    writers_wait,
)

pytestmark = pytest.mark.timeout(60)

UNKNOWN_CONSUMER = f"nobody.{'a' * 50}.1"
NOW = ReadOptions(wait_s=0)
ACKNOWLEDGING = ReadOptions(acknowledge=True)


async def create(face: Face, count: int) -> list[Created]:
    return [await face.create() for _ in range(count)]


def consumers(channels: Iterable[Created]) -> list[str]:
    return [channel.consumer for channel in channels]


async def parts(read: OpenMany, count: int) -> list[ManyPart]:
    async with asyncio.timeout(30):
        return [await anext(read) for _ in range(count)]


def events_of(parts: Iterable[ManyPart], channel: int) -> list[int]:
    """Return the numbers that were read from a channel."""
    return numbers([one[1] for one in parts if isinstance(one, tuple) and one[0] == channel])


async def test_each_channel_is_read_in_order_and_named_by_its_index(
    writer: Face, reader: Face
) -> None:
    channels = await create(writer, 3)
    await write_numbers(writer, channels[0], range(3))
    await write_numbers(writer, channels[2], [9])
    async with reader.read_many(consumers(channels)) as read:
        begun = await parts(read, 3)
        assert begun == [Begun(index, START, None) for index in range(3)]
        first = await parts(read, 4)
        await write_numbers(writer, channels[1], range(150))
        first += await parts(read, 150)
        await write_numbers(writer, channels[0], [3])
        first += await parts(read, 1)
    assert events_of(first, 0) == [0, 1, 2, 3]
    assert events_of(first, 1) == list(range(150))
    assert events_of(first, 2) == [9]


async def test_what_was_ready_is_read_to_the_end(writer: Face, reader: Face) -> None:
    channels = await create(writer, 20)
    for channel in channels:
        await write_numbers(writer, channel, range(30))
    async with reader.read_many(consumers(channels), NOW) as read:
        got = [part async for part in read]
    for index in range(20):
        assert events_of(got, index) == list(range(30))
        mine = [one for one in got if one in (Begun(index, START, None), Done(index))]
        assert mine == [Begun(index, START, None), Done(index)]
    for channel in channels:
        assert await read_all(writer, channel.consumer, NOW) == []


async def test_a_channel_that_is_refused_does_not_disturb_the_others(
    app: App, writer: Face, reader: Face
) -> None:
    free, busy, gone = await create(writer, 3)
    await app.admin.dispose(gone.consumer)
    async with writer.read(busy.consumer):
        addresses = [busy.consumer, free.consumer, gone.consumer, UNKNOWN_CONSUMER, "no address"]
        async with reader.read_many(addresses) as read:
            got = await parts(read, 5)
            assert set(got) == {
                Done(0, "BUSY"),
                Begun(1, START, None),
                Done(2, "NOT_FOUND"),
                Done(3, "NOT_FOUND"),
                Done(4, "BAD_REQUEST"),
            }
            await write_numbers(writer, free, [1])
            assert events_of(await parts(read, 1), 1) == [1]


async def test_a_channel_that_ends_is_reported_and_the_others_go_on(
    app: App, writer: Face, reader: Face
) -> None:
    ending, other, taken = await create(writer, 3)
    async with reader.read_many(consumers([ending, other, taken])) as read:
        await parts(read, 3)
        await app.admin.dispose(ending.consumer)
        assert await parts(read, 1) == [Done(0)]
        async with writer.read(taken.consumer, ReadOptions(take_over=True)):
            assert await parts(read, 1) == [Done(2)]
        await write_numbers(writer, other, [1])
        assert events_of(await parts(read, 1), 1) == [1]
        with pytest.raises(ReaderBusy):
            await read_some(writer, other.consumer, 1)
    async with reading_once_free(writer, other) as again:
        assert numbers(await take(again, 1)) == [1]


async def test_all_channels_are_refused_and_the_read_ends(reader: Face) -> None:
    async with reader.read_many([UNKNOWN_CONSUMER]) as read:
        assert [part async for part in read] == [Done(0, "NOT_FOUND")]


async def test_each_channel_resumes_after_its_own_cursor(writer: Face, reader: Face) -> None:
    one, other = await create(writer, 2)
    ids = await write_numbers(writer, one, range(3))
    await write_numbers(writer, other, range(3))
    after = {one.consumer: ids[1], other.consumer: UNKNOWN_EVENT}
    async with reader.read_many(consumers([one, other]), NOW, after=after) as read:
        got = [part async for part in read]
    assert {Begun(0, ids[1], True), Begun(1, START, False)} <= set(got)
    assert (events_of(got, 0), events_of(got, 1)) == ([2], [0, 1, 2])


@pytest.mark.settings(buffer_capacity=3)
async def test_each_channel_has_its_own_window_and_acknowledgements(
    app: App, writer: Face, reader: Face
) -> None:
    full, other = await create(writer, 2)
    ids = await write_numbers(writer, full, range(3))
    async with reader.read_many(consumers([full, other]), ACKNOWLEDGING) as read:
        await parts(read, 5)
        waiting = asyncio.create_task(write_numbers(writer, full, [3]))
        await eventually(writers_wait(app, 1))
        await write_numbers(writer, other, [7])
        assert events_of(await parts(read, 1), 1) == [7]
        assert await reader.acknowledge(full.consumer, ids[1]) == 2
        assert events_of(await parts(read, 1), 0) == [3]
        await waiting
    async with reading_once_free(reader, full, ACKNOWLEDGING) as again:
        assert numbers(await take(again, 2)) == [2, 3]


async def test_the_limit_counts_the_events_of_all_channels(writer: Face, reader: Face) -> None:
    channels = await create(writer, 3)
    for channel in channels:
        await write_numbers(writer, channel, range(2))
    async with reader.read_many(consumers(channels), ReadOptions(limit=3)) as read:
        got = [part async for part in read]
    assert sum(isinstance(part, tuple) for part in got) == 3
    left = [len(await read_all(writer, channel.consumer, NOW)) for channel in channels]
    assert sum(left) == 3


async def test_only_the_streams_that_are_asked_for_are_sent(writer: Face, reader: Face) -> None:
    channels = await create(writer, 2)
    for channel in channels:
        for number, stream in enumerate("abab"):
            await writer.write(channel.producer, stream, b"%d" % number)
    options = ReadOptions(streams=frozenset("b"), wait_s=0)
    async with reader.read_many(consumers(channels), options) as read:
        got = [part async for part in read]
    assert (events_of(got, 0), events_of(got, 1)) == ([1, 3], [1, 3])


@pytest.mark.settings(poll_duration_millis=500)
async def test_heartbeats_come_when_all_channels_are_quiet(face: Face) -> None:
    channels = await create(face, 2)
    async with face.read_many(consumers(channels), ReadOptions(heartbeat_s=0.1)) as read:
        got = [part async for part in read]
    assert read.heartbeats
    assert got[2:] == [Done(0), Done(1)]


async def test_a_large_event_is_sent_whole(writer: Face, reader: Face) -> None:
    channels = await create(writer, 2)
    body = b'"%b"' % (b"x" * 700_000)
    for channel in channels:
        await writer.write(channel.producer, "s", body)
    async with reader.read_many(consumers(channels), NOW) as read:
        got = [part async for part in read]
    assert [one[1].body for one in got if isinstance(one, tuple)] == [body, body]


@pytest.mark.parametrize(
    ("addresses", "options", "error"),
    [
        ([], NOW, BadRequest),
        (["a.b.1", "c.d.1", "a.b.1"], NOW, BadRequest),
        ([f"a.{number}.1" for number in range(101)], NOW, PayloadTooLarge),
        (["a.b.1"], ReadOptions(heartbeat_s=0.01), BadRequest),
        (["a.b.1"], ReadOptions(in_flight=1_000_000), BadRequest),
    ],
)
async def test_reads_that_cannot_be_are_refused_as_a_whole(
    face: Face, addresses: list[str], options: ReadOptions, error: type[MegaphoneError]
) -> None:
    with pytest.raises(error):
        async with face.read_many(addresses, options) as read:
            await parts(read, 1)


async def test_a_hundred_channels_are_read_over_one_connection(writer: Face, reader: Face) -> None:
    channels = await create(writer, 100)
    async with reader.read_many(consumers(channels)) as read:
        await parts(read, 100)
        for number, channel in enumerate(channels):
            await write_numbers(writer, channel, [number])
        got = await parts(read, 100)
    assert [events_of(got, index) for index in range(100)] == [[index] for index in range(100)]


async def test_server_sent_events_name_their_channels_too(http: HttpFace) -> None:
    channels = await create(http, 1)
    (event_id,) = await write_numbers(http, channels[0], [5])
    body = many_body([*consumers(channels), UNKNOWN_CONSUMER], NOW, {})
    headers = {**JSON, "Accept": "text/event-stream"}
    async with http.session.post(http.url("/read"), json=body, headers=headers) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        blocks = (await response.read()).decode().split("\n\n")
    said = [block.split("\n") for block in blocks if block]
    begun, refused, event, done = (lines for lines in said)
    assert begun[0] == refused[0] == done[0] == "event: channel"
    assert json.loads(begun[1].removeprefix("data: ")) == {
        "channel": 0,
        "begun": True,
        "position": "-",
    }
    assert json.loads(refused[1].removeprefix("data: "))["code"] == "NOT_FOUND"
    assert json.loads(event[0].removeprefix("data: "))["eid"] == event_id


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"channels":[{"address":"a","afer":"-"}]}', "afer"),
        (b'{"channels":[{"address":"a"}],"wait":1}', "wait"),
        (b'{"channels":[{"address":"a"}],"wait_ms":-1}', "wait_ms"),
        (b'{"channels":["a"]}', "channels"),
        (b"[]", "object"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(http: HttpFace, body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        await http.post("/read", body, status=200)
