"""A node whose memory for clients is used up: what its clients see of that, over both faces."""

import asyncio

import pytest

from megaphone.app import App
from megaphone.errors import LimitExceeded
from megaphone.model import START, NewEvent, ReadOptions
from tests.support.faces import Created, Face, HttpFace, read_all, take
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.raw_http import Node
from tests.support.scenes import eventually, read_once_free, resuming_after, writers_wait

BODY = b'"' + b"x" * 100_000 + b'"'
ROOM = 39
"""As many such events as there is room for."""
pytestmark = pytest.mark.settings(max_buffered_bytes=4_000_000)


async def fill(face: Face, channel: Created) -> list[str]:
    """Write until there is no room. Over gRPC that is a little earlier, because it holds copies.

    Returns: the ids of the events.
    """
    written: list[str] = []
    while len(written) <= ROOM:
        try:
            written.append(await face.write(channel.producer, "s", BODY))
        except LimitExceeded:
            break
    assert ROOM - 3 <= len(written) <= ROOM
    return written


async def test_writes_beyond_the_budget_are_refused_until_readers_have_read(face: Face) -> None:
    channel = await face.create()
    await fill(face, channel)
    with pytest.raises(LimitExceeded):
        await face.write((await face.create()).producer, "s", BODY)
    await face.write(channel.producer, "s", b"1")
    await read_all(face, channel.consumer, ReadOptions(wait_s=0))
    await fill(face, channel)


async def test_one_event_for_many_channels_takes_the_room_of_one(face: Face) -> None:
    channels = [await face.create() for _ in range(50)]
    producers = [channel.producer for channel in channels]
    assert await face.write_batch(producers, [NewEvent("s", BODY)]) == []
    for channel in channels:
        [event] = await read_all(face, channel.consumer, ReadOptions(wait_s=0))
        assert event.body == BODY


async def test_a_reader_is_told_that_replay_made_room(face: Face) -> None:
    old, new = await face.create(), await face.create()
    read_already = await fill(face, old)
    await read_all(face, old.consumer, ReadOptions(wait_s=0))
    await fill(face, new)
    for cursor, recovered in ((START, False), (read_already[-1], True)):
        read = resuming_after(cursor)
        async with face.read(old.consumer, ReadOptions(read.cursor, wait_s=0)) as resumed:
            await resumed.begun()
            assert resumed.recovered is recovered


async def test_a_read_goes_on_while_there_is_no_room(face: Face) -> None:
    channel = await face.create()
    written = await fill(face, channel)
    async with face.read(channel.consumer, ReadOptions(acknowledge=True)) as read:
        events = await take(read, len(written))
        with pytest.raises(LimitExceeded):
            await face.write(channel.producer, "s", BODY)
        await face.acknowledge(channel.consumer, events[-1].event_id)
        await face.write(channel.producer, "s", BODY)
        assert len(await take(read, 1)) == 1


@pytest.mark.settings(buffer_capacity=1)
async def test_writers_that_wait_count(app: App, face: Face) -> None:
    channel = await face.create()
    await face.write(channel.producer, "s", BODY)
    writes = [asyncio.create_task(face.write(channel.producer, "s", BODY)) for _ in range(60)]

    async def all_wait_or_are_refused() -> bool:
        return app.metrics.writers_waiting + sum(write.done() for write in writes) == len(writes)

    await eventually(all_wait_or_are_refused)
    refused = [write for write in writes if write.done()]
    assert len(refused) > 10
    for write in refused:
        assert isinstance(write.exception(), LimitExceeded)
    accepted = 1 + len(writes) - len(refused)
    assert len(await read_once_free(face, channel, accepted)) == accepted
    await asyncio.wait(writes)


@pytest.mark.settings(buffer_capacity=1, max_waiting_writers=2)
async def test_no_more_writers_wait_for_one_channel_than_may(app: App, face: Face) -> None:
    channel = await face.create()
    await face.write(channel.producer, "s", b"0")
    waiting = [asyncio.create_task(face.write(channel.producer, "s", b"1")) for _ in range(2)]
    await eventually(writers_wait(app, 2))
    with pytest.raises(LimitExceeded, match="max_waiting_writers"):
        await face.write(channel.producer, "s", b"2")
    assert len(await read_all(face, channel.consumer, ReadOptions(wait_s=0.1))) == 3
    await asyncio.wait(waiting)


async def test_metrics_say_how_much_is_used(app: App, face: Face) -> None:
    channel = await face.create()
    await face.write(channel.producer, "s", BODY)
    assert "megaphone_buffered_bytes_limit 4000000" in app.metrics.render().decode().splitlines()
    assert 100_000 < used(app) < 110_000


@pytest.mark.settings(max_body_bytes=2_000_000, max_buffered_bytes=100_000_000)
@pytest.mark.parametrize("transport", ["ndjson", "sse", "grpc"])
async def test_what_is_under_way_to_a_reader_counts_also_when_its_channel_is_gone(
    app: App, http: HttpFace, transport: str
) -> None:
    channel = await http.create()
    for _ in range(8):
        await http.write(channel.producer, "s", b'"' + b"x" * 1_000_000 + b'"')
    node = Node(app.http_port, app.grpc_port)
    async with grpc_connection(node) as connection:
        read: OpenRead
        if transport == "grpc":
            read = GrpcRead(connection, channel.consumer, ReadOptions())
        else:
            read = await HttpRead.ask(node, channel.consumer, ReadOptions(), sse=transport == "sse")
        try:
            await read.begin()

            async def is_under_way() -> bool:
                return used(app) > 8_000_000 + 900_000

            await eventually(is_under_way)
            await app.admin.dispose(channel.consumer)
            assert 900_000 < used(app) < 5_000_000
        finally:
            read.close()

        async def nothing_is_held() -> bool:
            return used(app) == 0

        await eventually(nothing_is_held, within_s=10)


def used(app: App) -> int:
    lines = app.metrics.render().decode().splitlines()
    [line] = [line for line in lines if line.startswith("megaphone_buffered_bytes ")]
    return int(line.split()[1])
