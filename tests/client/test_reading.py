"""What an app sees of a read, over both protocols and real connections."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from megaphone.app import App
from megaphone_client import (
    Channel,
    ChannelNotFound,
    EventsLost,
    Megaphone,
    Reader,
    TakenOver,
)
from tests.client.conftest import url_of
from tests.support.proxy import Proxy, proxy_to

UNKNOWN = "x" * 23


async def write(megaphone: Megaphone, channel: Channel, *bodies: object, stream: str = "s") -> None:
    assert not await megaphone.write_batch([channel.producer], [(stream, body) for body in bodies])


async def take(reader: Reader[Any], count: int) -> list[Any]:
    return [(await anext(reader)).body for _ in range(count)]


@asynccontextmanager
async def through_proxy(app: App, protocol: str) -> AsyncIterator[tuple[Proxy, Megaphone]]:
    to = app.http_port if protocol == "http" else app.grpc_port
    async with (
        proxy_to(to) as proxy,
        Megaphone.from_url(f"{protocol}://127.0.0.1:{proxy.port}") as megaphone,
    ):
        yield proxy, megaphone


# -- A read that goes on


@pytest.mark.settings(poll_duration_millis=50)
async def test_a_read_goes_on_when_the_broker_ends_it(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer) as reader:
        for number in range(5):
            await write(megaphone, channel, number)
            assert await take(reader, 1) == [number]
            await asyncio.sleep(0.06)  # longer than a read takes


@pytest.mark.parametrize("ack", ["auto", "none"])
async def test_cut_connections_lose_nothing_and_repeat_nothing(
    app: App, protocol: str, ack: Any
) -> None:
    count = 2_000
    got = []
    async with through_proxy(app, protocol) as (proxy, megaphone):
        channel = await megaphone.create()

        async def write_all() -> None:
            async with megaphone.publisher(max_batch=20) as publisher:
                for number in range(count):
                    await publisher.send(channel.producer, "s", number)

        writing = asyncio.create_task(write_all())
        async with megaphone.read(channel.consumer, ack=ack) as reader:
            async for event in reader:
                got.append(event.body)
                if len(got) == count:
                    break
                if len(got) % 150 == 0:
                    proxy.cut()
        await writing
    assert got == list(range(count))


async def test_silence_is_noticed() -> None:
    connections, third = 0, asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 3:
            third.set()
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        Megaphone.from_url(f"http://127.0.0.1:{port}") as megaphone,
        megaphone.read("node.x.1", heartbeat_s=0.02),
    ):
        await third.wait()


async def test_a_broker_that_ends_each_read_at_once_is_not_asked_all_the_time() -> None:
    asked_at: list[float] = []
    fourth = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked_at.append(asyncio.get_running_loop().time())
                if len(asked_at) == 4:
                    fourth.set()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        Megaphone.from_url(f"http://127.0.0.1:{port}") as megaphone,
        megaphone.read("node.x.1"),
    ):
        await fourth.wait()
    assert all(later - earlier > 0.05 for earlier, later in pairwise(asked_at))


@pytest.mark.settings(poll_duration_millis=150)
async def test_a_read_that_ends_with_a_limit_is_not_repeated_all_the_time(
    app: App, protocol: str
) -> None:
    asked_at: list[float] = []
    fourth = asyncio.Event()

    async def headers() -> dict[str, str]:
        asked_at.append(asyncio.get_running_loop().time())
        if len(asked_at) == 4:
            fourth.set()
        return {}

    async with (
        Megaphone.from_url(url_of(app, protocol)) as other,
        Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone,
    ):
        channel = await other.create()
        await write(other, channel, *range(6))
        async with megaphone.read(channel.consumer, limit=10) as reader:
            await fourth.wait()
            await write(other, channel, *range(6, 12))
            assert await take(reader, 10) == list(range(10))
    reads_at = asked_at[:4]  # the app asked for no event, so that nothing was acknowledged
    assert all(later - earlier > 0.1 for earlier, later in pairwise(reads_at))


async def test_a_channel_that_ends_ends_the_read(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer) as reader:
        await write(megaphone, channel, 1)
        assert await take(reader, 1) == [1]
        waiting = asyncio.create_task(anext(reader))
        await app.admin.dispose(channel.consumer)
        with pytest.raises(ChannelNotFound) as gone:
            await waiting
        assert channel.consumer not in str(gone.value)
        with pytest.raises(ChannelNotFound):
            await anext(reader)


# -- What counts as dealt with


async def test_an_event_is_dealt_with_when_the_next_one_is_asked_for(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2, 3)

    async def fail_at_the_second() -> None:
        async with megaphone.read(channel.consumer) as reader:
            async for event in reader:
                if event.body == 2:
                    raise LookupError

    with pytest.raises(LookupError):
        await fail_at_the_second()
    async with megaphone.read(channel.consumer) as reader:
        assert await take(reader, 2) == [2, 3]
    await write(megaphone, channel, 4)
    async with megaphone.read(channel.consumer) as reader:
        assert await take(reader, 1) == [4]


async def test_a_batch_is_dealt_with_when_the_next_one_is_asked_for(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2, 3, 4)
    async with megaphone.read(channel.consumer) as reader:
        first = await reader.batch(2)
        assert [event.body for event in first] == [1, 2]
        assert reader.cursor != first[-1].id
        assert [event.body for event in await reader.batch(2)] == [3, 4]
        assert reader.cursor == first[-1].id
        assert await reader.batch(wait_s=0.01) == []


async def test_by_hand_only_what_was_acknowledged_is_dealt_with(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2, 3)
    async with megaphone.read(channel.consumer, ack="manual") as reader:
        _, second, _ = [await anext(reader) for _ in range(3)]
        await second.ack()
        assert reader.cursor == second.id
    async with megaphone.read(channel.consumer, ack="manual") as reader:
        assert await take(reader, 1) == [3]


async def test_an_acknowledgement_of_a_channel_that_has_gone_fails(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1)
    async with megaphone.read(channel.consumer, ack="manual") as reader:
        event = await anext(reader)
        await app.admin.dispose(channel.consumer)
        with pytest.raises(ChannelNotFound):
            await event.ack()


async def test_an_acknowledgement_after_the_end_fails_at_once(
    app: App, protocol: str, megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2)
    async with Megaphone.from_url(url_of(app, protocol)) as client:
        async with client.read(channel.consumer, ack="manual") as reader:
            first, second = [await anext(reader) for _ in range(2)]
            await first.ack()
        with pytest.raises(RuntimeError, match="the reader is closed"):
            await second.ack()
        await first.ack()  # which the broker knows
    with pytest.raises(RuntimeError, match="the reader is closed"):
        await second.ack()


async def test_an_error_of_the_app_ends_an_acknowledgement_and_is_not_repeated(
    app: App, protocol: str, megaphone: Megaphone, channel: Channel
) -> None:
    calls, fails = 0, False

    async def headers() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if fails:
            raise LookupError("no password")
        return {}

    await write(megaphone, channel, 1)
    async with (
        Megaphone.from_url(url_of(app, protocol), headers=headers) as client,
        client.read(channel.consumer, ack="manual") as reader,
    ):
        event = await anext(reader)
        before, fails = calls, True
        with pytest.raises(LookupError, match="no password"):
            await event.ack()
        assert calls == before + 1
        fails = False
        await event.ack()


async def test_an_error_of_the_app_does_not_hinder_the_end(
    app: App, protocol: str, megaphone: Megaphone, channel: Channel
) -> None:
    fails = False

    async def headers() -> dict[str, str]:
        if fails:
            raise LookupError("no password")
        return {}

    await write(megaphone, channel, 1)
    async with (
        Megaphone.from_url(url_of(app, protocol), headers=headers) as client,
        client.read(channel.consumer) as reader,
    ):
        assert await take(reader, 1) == [1]
        fails = True
    async with megaphone.read(channel.consumer) as reader:
        assert await take(reader, 1) == [1]


async def test_a_display_acknowledges_nothing_and_can_go_on_later(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2, 3)
    async with megaphone.read(channel.consumer, ack="none") as reader:
        assert await take(reader, 2) == [1, 2]
        cursor = reader.cursor
    async with megaphone.read(channel.consumer, ack="none", after=cursor) as reader:
        assert await take(reader, 2) == [2, 3]


async def test_a_slow_app_holds_the_writers_back(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.read(channel.consumer) as reader, megaphone.publisher() as publisher:
        for number in range(250):
            await publisher.send(channel.producer, "s", number)
        got: list[object] = []
        while len(got) < 250:
            batch = await reader.batch(7)
            got += [event.body for event in batch]
    assert got == list(range(250))


@pytest.mark.settings(buffer_capacity=5_000)
async def test_a_display_that_is_slow_is_not_read_without_end(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer, ack="none") as reader:
        for at in range(0, 4_000, 500):
            await write(megaphone, channel, *range(at, at + 500))
        got = await take(reader, 1)
        while len(got) < 4_000:
            got += [event.body for event in await reader.batch()]
    assert got == list(range(4_000))


# -- The end that was asked for


async def test_the_limit_leaves_the_rest_in_the_channel(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2, 3)
    for ack, expected in (("auto", [1]), ("none", [2]), ("manual", [3])):
        async with megaphone.read(channel.consumer, limit=1, ack=ack) as reader:  # type: ignore[call-overload]
            assert [event.body async for event in reader] == expected
            assert await reader.batch() == []


async def test_only_the_wanted_streams(megaphone: Megaphone, channel: Channel) -> None:
    for number in range(150):
        await write(megaphone, channel, number, stream="ab"[number % 2])
        if number == 3:
            break
    async with megaphone.read(channel.consumer, streams=["b"]) as reader:
        assert await take(reader, 2) == [1, 3]


async def test_unwanted_streams_do_not_block_the_channel(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer, streams=["b"]) as reader:
        async with megaphone.publisher() as publisher:
            for number in range(300):
                await publisher.send(channel.producer, "a", number)
            await publisher.send(channel.producer, "b", "at last")
        assert await take(reader, 1) == ["at last"]


@pytest.mark.settings(poll_duration_millis=50)
async def test_a_quiet_stream_is_not_taken_for_a_gap(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer, streams=["b"]) as reader:
        for at in range(3):
            await write(megaphone, channel, at, stream="b")
            assert await take(reader, 1) == [at]
            waiting = asyncio.create_task(anext(reader))  # so that all is dealt with
            async with megaphone.publisher() as publisher:
                for number in range(300):
                    await publisher.send(channel.producer, "a", number)
            await asyncio.sleep(0.06)  # longer than a read takes
            waiting.cancel()
            await asyncio.wait([waiting])


# -- Gaps


async def test_a_gap_is_never_silent(megaphone: Megaphone, channel: Channel) -> None:
    await write(megaphone, channel, 1, 2)
    async with megaphone.read(channel.consumer, after=UNKNOWN) as reader:
        with pytest.raises(EventsLost):
            await anext(reader)
        assert await take(reader, 2) == [1, 2]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_app_can_hear_of_a_gap_before_the_next_event(
    megaphone: Megaphone, channel: Channel, is_async: bool
) -> None:
    seen: list[object] = []

    def on_gap() -> None:
        seen.append("gap")

    async def on_gap_later() -> None:
        seen.append("gap")

    await write(megaphone, channel, 1)
    handler = on_gap_later if is_async else on_gap
    async with megaphone.read(channel.consumer, after=UNKNOWN, on_gap=handler) as reader:
        seen += await take(reader, 1)
    assert seen == ["gap", 1]


async def test_a_cancelled_call_does_not_swallow_a_gap(
    megaphone: Megaphone, channel: Channel
) -> None:
    heard, began, may_end = 0, asyncio.Event(), asyncio.Event()

    async def on_gap() -> None:
        nonlocal heard
        began.set()
        await may_end.wait()
        heard += 1

    await write(megaphone, channel, 1)
    async with megaphone.read(channel.consumer, after=UNKNOWN, on_gap=on_gap) as reader:
        cancelled = asyncio.create_task(reader.batch())
        await began.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        may_end.set()
        assert await take(reader, 1) == [1]
    assert heard == 1


# -- Types


@dataclass
class Order:
    number: int
    item: str


async def test_bodies_of_a_type(megaphone: Megaphone, channel: Channel) -> None:
    await write(megaphone, channel, {"number": 1, "item": "tea"}, {"number": "one"})
    async with megaphone.read(channel.consumer, type=Order) as reader:
        good = await anext(reader)
        assert good.body == Order(1, "tea")
        assert good.body is good.body
        bad = await anext(reader)
        with pytest.raises(msgspec.ValidationError):
            _ = bad.body
        assert bad.raw == b'{"number":"one"}'


async def test_bodies_by_a_function(megaphone: Megaphone, channel: Channel) -> None:
    await write(megaphone, channel, 1.5)
    async with megaphone.read(channel.consumer, decode=lambda raw: raw.decode() + "!") as reader:
        assert await take(reader, 1) == ["1.5!"]


# -- Cancelling and closing


async def test_a_cancelled_call_loses_nothing(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.read(channel.consumer) as reader:
        got = []
        for number in range(20):
            waiting = asyncio.create_task(anext(reader))
            await asyncio.sleep(0)
            waiting.cancel()
            await write(megaphone, channel, number)
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                got.append(waiting.result().body)
        got += await take(reader, 20 - len(got))
    assert got == list(range(20))


async def test_two_tasks_cannot_share_a_reader(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.read(channel.consumer) as reader:
        first = asyncio.create_task(anext(reader))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(reader)
        first.cancel()
        await asyncio.wait([first])


async def test_closing_ends_whoever_waits(megaphone: Megaphone, channel: Channel) -> None:
    reader = megaphone.read(channel.consumer)
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    await reader.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_a_reader_that_is_forgotten_frees_its_channel(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, 1, 2)
    async for event in megaphone.read(channel.consumer):
        assert event.body == 1
        break
    del event
    gc.collect()
    async with megaphone.read(channel.consumer) as reader:
        assert await take(reader, 2) == [1, 2]


async def test_closing_the_client_ends_its_reads(app: App, protocol: str) -> None:
    async with Megaphone.from_url(url_of(app, protocol)) as megaphone:
        channel = await megaphone.create()
        reader = megaphone.read(channel.consumer)
        waiting = asyncio.create_task(anext(reader))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting


@pytest.mark.parametrize(
    "options", [{"ack": "sometimes"}, {"limit": 0}, {"heartbeat_s": 0}], ids=str
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`"):
        Megaphone.from_url().read("node.x.1", **options)


# -- Many channels


async def test_many_channels_in_one_loop(megaphone: Megaphone) -> None:
    channels = [await megaphone.create() for _ in range(3)]
    consumers = [channel.consumer for channel in channels]
    async with megaphone.read_many(consumers) as reader:
        for number in range(4):
            for channel in channels:
                await write(megaphone, channel, number)
        got: dict[str, list[object]] = {consumer: [] for consumer in consumers}
        for _ in range(12):
            event = await anext(reader)
            got[event.consumer].append(event.body)
        assert reader.cursor is None
    assert list(got.values()) == [[0, 1, 2, 3]] * 3
    async with megaphone.read_many(consumers) as reader:
        assert await reader.batch(wait_s=0.1) == []


async def test_the_end_of_one_channel_is_not_that_of_the_others(
    app: App, megaphone: Megaphone
) -> None:
    first, second = [await megaphone.create() for _ in range(2)]
    async with megaphone.read_many([first.consumer, second.consumer]) as reader:
        await write(megaphone, second, 1)
        assert await take(reader, 1) == [1]
        await app.admin.dispose(first.consumer)
        with pytest.raises(ChannelNotFound):
            await anext(reader)
        await write(megaphone, second, 2)
        assert await take(reader, 1) == [2]
        await app.admin.dispose(second.consumer)
        for _ in range(2):
            with pytest.raises(ChannelNotFound):
                await anext(reader)


def test_no_channel_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no channel"):
        Megaphone.from_url().read_many([])


# -- Two readers of one channel


async def test_of_two_readers_that_take_over_the_newer_one_stays(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.read(channel.consumer, take_over=True) as older:
        await write(megaphone, channel, 1)
        assert await take(older, 1) == [1]
        async with megaphone.read(channel.consumer, take_over=True) as newer:
            assert await take(newer, 1) == [1]
            with pytest.raises(TakenOver, match="another reader"):
                await anext(older)
            await write(megaphone, channel, 2)
            assert await take(newer, 1) == [2]
