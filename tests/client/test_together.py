"""Many channels over one connection, and with brokers that cannot do that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from megaphone.app import App
from megaphone_client import Channel, ChannelNotFound, Megaphone, ReaderBusy, state
from tests.client.conftest import url_of
from tests.client.test_reading import through_proxy, write
from tests.support.proxy import CHUNK_BYTES


async def channels_of(megaphone: Megaphone, count: int) -> list[Channel]:
    return [await megaphone.create() for _ in range(count)]


async def test_they_share_a_connection(app: App, protocol: str) -> None:
    async with (
        through_proxy(app, protocol) as (proxy, megaphone),
        Megaphone.from_url(url_of(app, protocol)) as direct,
    ):
        channels = await channels_of(direct, 5)
        consumers = [channel.consumer for channel in channels]
        async with megaphone.read_many(consumers, ack="none") as reader:
            for channel in channels:
                await write(direct, channel, 1)
            assert {(await anext(reader)).consumer for _ in channels} == set(consumers)
            assert len(proxy._clients) == 1


async def test_there_may_be_more_than_one_request_takes(app: App, protocol: str) -> None:
    async with Megaphone.from_url(url_of(app, protocol)) as megaphone:
        channels = await channels_of(megaphone, 130)
        consumers = {channel.consumer for channel in channels}
        async with megaphone.read_many(consumers, streams=["s"]) as reader:
            await megaphone.write_batch(
                [channel.producer for channel in channels], [("other", 0), ("s", 1)]
            )
            events = [await anext(reader) for _ in channels]
        assert {event.consumer for event in events} == consumers
        assert {event.body for event in events} == {1}


@pytest.mark.settings(poll_duration_millis=50)
async def test_they_go_on_when_the_broker_ends_the_read(megaphone: Megaphone) -> None:
    channels = await channels_of(megaphone, 3)
    async with megaphone.read_many([channel.consumer for channel in channels]) as reader:
        for number in range(6):
            for channel in channels:
                await write(megaphone, channel, number)
            got = {
                (event.consumer, event.body) for event in [await anext(reader) for _ in channels]
            }
            assert got == {(channel.consumer, number) for channel in channels}
            await asyncio.sleep(0.03)


async def test_cut_connections_lose_nothing_and_repeat_nothing(app: App, protocol: str) -> None:
    count = 300
    async with (
        through_proxy(app, protocol) as (proxy, megaphone),
        Megaphone.from_url(url_of(app, protocol)) as direct,
    ):
        channels = await channels_of(direct, 3)
        got: dict[str, list[object]] = {channel.consumer: [] for channel in channels}

        async def write_all() -> None:
            async with direct.publisher(max_batch=20) as publisher:
                for number in range(count):
                    for channel in channels:
                        await publisher.send(channel.producer, "s", number)

        writing = asyncio.create_task(write_all())
        async with megaphone.read_many(got) as reader:
            for number in range(count * len(channels)):
                event = await anext(reader)
                got[event.consumer].append(event.body)
                if number % 150 == 149:
                    proxy.cut()
        await writing
    assert list(got.values()) == [list(range(count))] * len(channels)


async def test_it_has_begun_although_one_has_gone(megaphone: Megaphone) -> None:
    here, gone = await channels_of(megaphone, 2)
    await megaphone.dispose(gone.producer)
    await write(megaphone, here, 1)
    async with megaphone.read_many([here.consumer, gone.consumer]) as reader:
        for _ in range(2):
            with suppress(ChannelNotFound):
                assert (await anext(reader)).consumer == here.consumer
        assert reader.has_begun


async def test_one_that_is_busy_does_not_disturb_the_others(
    megaphone: Megaphone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await channels_of(megaphone, 2)
    async with megaphone.read(first.consumer) as other:
        await write(megaphone, first, 1)
        await anext(other)
        async with megaphone.read_many([first.consumer, second.consumer]) as reader:
            await write(megaphone, second, 2)
            assert (await anext(reader)).body == 2
            monkeypatch.setattr(state, "BUSY_WAIT_S", 0.0)
            with pytest.raises(ReaderBusy):
                await anext(reader)
            await write(megaphone, second, 3)
            assert (await anext(reader)).body == 3


async def test_a_busy_channel_is_read_when_it_is_free(megaphone: Megaphone) -> None:
    first, second = await channels_of(megaphone, 2)
    other = megaphone.read(first.consumer)
    await write(megaphone, first, 1)
    await anext(other)
    async with megaphone.read_many([first.consumer, second.consumer]) as reader:
        await write(megaphone, second, 2)
        assert (await anext(reader)).body == 2
        await other.aclose()
        assert (await anext(reader)).body == 1


async def test_an_error_of_the_app_ends_the_read(app: App, protocol: str) -> None:
    async def headers() -> dict[str, str]:
        raise LookupError("no token")

    async with (
        Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone,
        megaphone.read_many(["node.a.1", "node.b.1"]) as reader,
    ):
        with pytest.raises(LookupError, match="no token"):
            await anext(reader)


@asynccontextmanager
async def older_broker(port: int) -> AsyncIterator[int]:
    """A way to a broker on which it seems not to know the route of such reads."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, broker = await asyncio.open_connection("127.0.0.1", port)

        async def pass_answers_on() -> None:
            with suppress(ConnectionError):
                while data := await answers.read(CHUNK_BYTES):
                    writer.write(data)
            writer.close()

        tasks.add(asyncio.create_task(pass_answers_on()))
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                if data.startswith(b"POST /read "):
                    told = b'{"code":"NOT_FOUND","message":"no such route"}'
                    head = (
                        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                    )
                    writer.write(head % len(told) + told)
                    break
                broker.write(data)
        broker.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        await asyncio.gather(*tasks)


async def test_an_older_broker_reads_each_channel_apart(app: App) -> None:
    async with (
        older_broker(app.http_port) as port,
        Megaphone.from_url(f"http://127.0.0.1:{port}") as megaphone,
    ):
        channels = await channels_of(megaphone, 3)
        consumers = [channel.consumer for channel in channels]
        async with megaphone.read_many(consumers) as reader:
            for channel in channels:
                await write(megaphone, channel, 1)
            assert {(await anext(reader)).consumer for _ in channels} == set(consumers)
            await app.admin.dispose(consumers[0])
            with pytest.raises(ChannelNotFound):
                await anext(reader)
            await write(megaphone, channels[1], 2)
            assert (await anext(reader)).body == 2
