"""Events that the broker has sent and a stalled reader has not taken.

Only for a stalled reader, more events can be on the way than the log keeps. A reader that resumes
then learns of the gap.
"""

from collections.abc import Awaitable, Callable

import pytest

from megaphone.app import App
from megaphone.model import START, NewEvent, ReadOptions
from tests.support.faces import Created, Face, HttpFace, read_all, take
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.raw_http import Node
from tests.support.scenes import eventually, numbers, reading_once_free, resuming_after

CAPACITY = 100
TRANSPORTS = ("ndjson", "sse", "grpc")


async def write(face: Face, channel: Created, values: range) -> None:
    batch = [NewEvent("s", b"%d" % value) for value in values]
    assert await face.write_batch([channel.producer], batch) == []


def are_sent(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    """Return the condition that the broker has sent the given number of events."""

    async def have_been_sent() -> bool:
        return app.metrics.messages_read == count

    return have_been_sent


@pytest.mark.parametrize("ahead", [CAPACITY - 1, CAPACITY])
async def test_a_reader_that_resumes_with_no_more_on_the_way_than_is_kept_misses_nothing(
    app: App, face: Face, ahead: int
) -> None:
    channel = await face.create()
    await write(face, channel, range(1))
    async with face.read(channel.consumer) as stalled:
        [first] = await take(stalled, 1)
        await write(face, channel, range(1, 1 + ahead))
        await eventually(are_sent(app, 1 + ahead))
    async with reading_once_free(face, channel, resuming_after(first.event_id)) as resumed:
        assert resumed.recovered is True
        assert numbers(await take(resumed, ahead)) == list(range(1, 1 + ahead))


@pytest.mark.parametrize("ahead", [CAPACITY + 1, 3 * CAPACITY])
async def test_a_reader_that_resumes_with_more_on_the_way_than_is_kept_is_told(
    app: App, face: Face, ahead: int
) -> None:
    channel = await face.create()
    await write(face, channel, range(1))
    async with face.read(channel.consumer) as stalled:
        [first] = await take(stalled, 1)
        for begin in range(1, 1 + ahead, CAPACITY):
            await write(face, channel, range(begin, min(begin + CAPACITY, 1 + ahead)))
        await eventually(are_sent(app, 1 + ahead))
    async with reading_once_free(face, channel, resuming_after(first.event_id)) as resumed:
        assert resumed.recovered is False
        kept = list(range(1 + ahead - CAPACITY, 1 + ahead))
        assert numbers(await take(resumed, CAPACITY)) == kept


async def test_an_acknowledging_reader_that_stalls_is_sent_no_more_than_is_kept(
    app: App, face: Face
) -> None:
    channel = await face.create()
    async with face.read(channel.consumer, ReadOptions(acknowledge=True)):
        await write(face, channel, range(CAPACITY))
        await eventually(are_sent(app, CAPACITY))
    again = ReadOptions(acknowledge=True, wait_s=0)
    async with reading_once_free(face, channel, again) as read:
        assert numbers([event async for event in read]) == list(range(CAPACITY))


def no_read_is_open(app: App) -> Callable[[], Awaitable[bool]]:
    async def has_ended() -> bool:
        return app.metrics.reads_open == 0

    return has_ended


async def stall(app: App, transport: str, consumer: str) -> None:
    """Open a read, take nothing until the broker has ended it, and then break the connection."""
    node = Node(app.http_port, app.grpc_port)
    read: OpenRead
    async with grpc_connection(node) as connection:
        if transport == "grpc":
            read = GrpcRead(connection, consumer, ReadOptions())
        else:
            read = await HttpRead.ask(node, consumer, ReadOptions(), sse=transport == "sse")
        try:
            await read.begin()
            await eventually(are_sent(app, 3))
            await eventually(no_read_is_open(app))
        finally:
            read.close()


@pytest.mark.settings(poll_duration_millis=300)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_a_plain_reader_had_not_taken_at_the_clean_end_of_its_read_is_lost_to_it(
    app: App, http: HttpFace, transport: str
) -> None:
    channel = await http.create()
    await write(http, channel, range(3))
    await stall(app, transport, channel.consumer)
    # This is documented: the node cannot know. A client that must not lose events resumes or
    # acknowledges.
    assert await read_all(http, channel.consumer, ReadOptions(wait_s=0.1)) == []
    from_the_start = ReadOptions(cursor=START, wait_s=0.1)
    assert numbers(await read_all(http, channel.consumer, from_the_start)) == [0, 1, 2]
