"""The streams of one channel, each with a reader of its own."""

import asyncio
import gc
import logging
from dataclasses import dataclass

import pytest

from megaphone.app import App
from megaphone_client import Channel, ChannelNotFound, EventsLost, Megaphone


async def write(megaphone: Megaphone, channel: Channel, stream: str, *bodies: object) -> None:
    assert not await megaphone.write_batch([channel.producer], [(stream, body) for body in bodies])


@dataclass
class Answer:
    text: str


async def test_each_stream_has_its_events(megaphone: Megaphone, channel: Channel) -> None:
    async with (
        megaphone.subscribe(channel.consumer) as streams,
        streams.stream("a") as a,
        streams.stream("b", type=Answer) as b,
    ):
        for number in range(3):
            await write(megaphone, channel, "a", number)
            await write(megaphone, channel, "b", {"text": str(number)})
        assert [(await anext(b)).body for _ in range(3)] == [Answer(str(n)) for n in range(3)]
        assert [(await anext(a)).body for _ in range(3)] == [0, 1, 2]


async def test_an_answer_that_came_before_it_was_asked_for_is_kept(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        await write(megaphone, channel, "answer-1", {"text": "early"})
        await write(megaphone, channel, "mark", 1)
        assert await streams.first("mark") == 1
        assert await streams.first("answer-1", type=Answer) == Answer("early")


async def test_the_first_event_of_a_stream_leaves_the_next_for_others(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        await write(megaphone, channel, "s", 1, 2, 3)
        assert [await streams.first("s") for _ in range(2)] == [1, 2]
        async with streams.stream("s") as reader:
            assert (await anext(reader)).body == 3


async def test_only_the_last_hundred_are_kept(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.subscribe(channel.consumer) as streams, streams.stream("mark") as marks:
        async with megaphone.publisher() as publisher:
            for number in range(250):
                await publisher.send(channel.producer, "s", number)
            await publisher.send(channel.producer, "mark", 1)
        assert (await anext(marks)).body == 1
        assert await streams.first("s") == 150


async def test_time_is_up(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        with pytest.raises(TimeoutError):
            await streams.first("s", timeout_s=0.05)
        await write(megaphone, channel, "s", 1)
        assert await streams.first("s") == 1


async def test_a_stream_has_one_reader(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        async with streams.stream("s"):
            with pytest.raises(ValueError, match="a reader already"):
                streams.stream("s")
        async with streams.stream("s"):
            pass


async def test_acknowledged_is_what_all_streams_have_dealt_with(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "a", 1)
    await write(megaphone, channel, "b", 2)
    await write(megaphone, channel, "a", 3)
    async with (
        megaphone.subscribe(channel.consumer) as streams,
        streams.stream("b") as b,
        streams.stream("a") as a,
    ):
        assert (await anext(b)).body == 2
        waiting = asyncio.create_task(anext(b))  # deals with 2
        await asyncio.sleep(0)
        assert (await anext(a)).body == 1
        assert streams.cursor == "-"
        assert (await anext(a)).body == 3  # deals with 1
        cursor = streams.cursor
        waiting.cancel()
        await asyncio.wait([waiting])
    async with megaphone.read(channel.consumer, after=cursor) as reader:
        assert (await anext(reader)).body == 3


async def test_by_hand(megaphone: Megaphone, channel: Channel) -> None:
    await write(megaphone, channel, "a", 1)
    await write(megaphone, channel, "b", 2)
    await write(megaphone, channel, "a", 3)
    async with (
        megaphone.subscribe(channel.consumer, ack="manual") as streams,
        streams.stream("b") as b,
        streams.stream("a") as a,
    ):
        await (await anext(b)).ack()
        _, third = [await anext(a) for _ in range(2)]
        await third.ack()
    await write(megaphone, channel, "a", 4)
    async with megaphone.read(channel.consumer) as reader:
        assert (await anext(reader)).body == 4


async def test_what_a_reader_has_not_dealt_with_is_kept_for_the_next(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        await write(megaphone, channel, "s", 1, 2)

        async def fail() -> None:
            async with streams.stream("s") as reader:
                await anext(reader)
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert [await streams.first("s") for _ in range(2)] == [1, 2]


async def test_a_gap_reaches_each_reader(megaphone: Megaphone, channel: Channel) -> None:
    await write(megaphone, channel, "a", 1)
    async with (
        megaphone.subscribe(channel.consumer, after="x" * 23) as streams,
        streams.stream("a") as a,
        streams.stream("b") as b,
    ):
        for reader in (a, b):
            with pytest.raises(EventsLost):
                await anext(reader)
        assert (await anext(a)).body == 1


async def test_the_end_of_the_channel_reaches_each_reader(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        async with streams.stream("a") as a:
            waiting = asyncio.create_task(streams.first("b"))
            await write(megaphone, channel, "a", 1)
            assert (await anext(a)).body == 1
            await app.admin.dispose(channel.consumer)
            with pytest.raises(ChannelNotFound):
                await anext(a)
            with pytest.raises(ChannelNotFound):
                await waiting
        with pytest.raises(ChannelNotFound):
            await streams.first("later")


async def test_a_subscription_outlives_its_channel(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    second = await megaphone.create()
    asked = []

    async def renew(consumer: str) -> str:
        asked.append(consumer)
        return second.consumer

    async with (
        megaphone.subscribe(channel.consumer, renew=renew) as streams,
        streams.stream("s") as reader,
    ):
        await write(megaphone, channel, "s", 1)
        assert (await anext(reader)).body == 1
        await app.admin.dispose(channel.consumer)
        await write(megaphone, second, "s", 2)
        assert (await anext(reader)).body == 2
    assert asked == [channel.consumer]


async def test_an_error_of_the_app_that_renews_reaches_each_reader(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    async def renew(consumer: str) -> str:
        raise LookupError("no more channels")

    async with megaphone.subscribe(channel.consumer, renew=renew) as streams:
        await app.admin.dispose(channel.consumer)
        with pytest.raises(LookupError, match="no more channels"):
            await streams.first("s")


@pytest.mark.settings(buffer_capacity=1_000)
async def test_a_slow_stream_holds_the_others_back_and_loses_nothing(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with (
        megaphone.subscribe(channel.consumer, ack="none") as streams,
        streams.stream("slow", buffer=2) as slow,
        streams.stream("s") as quick,
    ):
        for number in range(300):
            await write(megaphone, channel, "slow", number)
        await write(megaphone, channel, "s", "after")
        assert [(await anext(slow)).body for _ in range(300)] == list(range(300))
        assert (await anext(quick)).body == "after"


async def test_a_warning_names_a_slow_stream(
    megaphone: Megaphone,
    channel: Channel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("megaphone_client.subscriptions.FULL_WARNING_S", 0.0)
    warned = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert channel.consumer not in record.getMessage()
            warned.set()

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("megaphone_client")
    logger.addHandler(listener)
    try:
        async with (
            megaphone.subscribe(channel.consumer) as streams,
            streams.stream("slow", buffer=1),
        ):
            await write(megaphone, channel, "slow", 1, 2, 3)
            await warned.wait()
    finally:
        logger.removeHandler(listener)
    assert "'slow'" in caplog.text


async def test_closing_ends_whoever_waits(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        reader = streams.stream("s")
        waiting = asyncio.create_task(anext(reader))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting


# -- What a reader leaves


async def read_again(megaphone: Megaphone, channel: Channel, last: str) -> list[object]:
    """Return the bodies that the broker still has, up to one."""
    bodies: list[object] = []
    async with megaphone.read(channel.consumer) as reader:
        async for event in reader:
            bodies.append(event.body)
            if event.body == last:
                break
    return bodies


async def test_closing_acknowledges_nothing_that_the_app_never_got(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "done", "d1")
    await write(megaphone, channel, "other", "o1")
    await write(megaphone, channel, "done", "d2")
    await write(megaphone, channel, "mark", "m1")
    async with (
        megaphone.subscribe(channel.consumer) as streams,
        streams.stream("mark") as mark,
        streams.stream("done") as done,
    ):
        assert (await anext(done)).body == "d1"
        assert (await anext(mark)).body == "m1"
    assert await read_again(megaphone, channel, "m1") == ["d2", "m1"]


async def test_an_app_that_fails_has_dealt_with_nothing(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "done", *range(60))
    await write(megaphone, channel, "other", "o1")
    await write(megaphone, channel, "done", *range(61, 80), "last")

    async def fail() -> None:
        async with (
            megaphone.subscribe(channel.consumer) as streams,
            streams.stream("mark") as mark,
            streams.stream("done") as done,
        ):
            assert (await anext(done)).body == 0
            await write(megaphone, channel, "mark", "m1")
            assert (await anext(mark)).body == "m1"
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await read_again(megaphone, channel, "last") == [
        *range(60),
        "o1",
        *range(61, 80),
        "last",
    ]


async def test_what_an_open_reader_has_not_dealt_with_is_not_acknowledged(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "s", 1, 2, "last")
    async with megaphone.subscribe(channel.consumer) as streams:
        reader = streams.stream("s")
        assert [(await anext(reader)).body for _ in range(2)] == [1, 2]
    assert await read_again(megaphone, channel, "last") == [2, "last"]


async def test_what_a_reader_leaves_does_not_hold_back_the_channel(
    megaphone: Megaphone, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megaphone_client.subscriptions.LEFT_S", 0.0)
    async with megaphone.subscribe(channel.consumer) as streams:
        await write(megaphone, channel, "s", *range(30))
        assert await streams.first("s") == 0
        async with streams.stream("mark") as mark, megaphone.publisher() as publisher:
            for number in range(300):
                await publisher.send(channel.producer, "other", number)
            await publisher.send(channel.producer, "mark", 1)
            assert (await anext(mark)).body == 1


async def test_a_reader_that_is_forgotten_leaves_what_it_has_not_dealt_with(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer) as streams:
        await write(megaphone, channel, "s", 1, 2)
        async for event in streams.stream("s"):
            assert event.body == 1
            break
        del event
        gc.collect()
        await asyncio.sleep(0)
        assert [await streams.first("s") for _ in range(2)] == [1, 2]


async def test_the_next_reader_decodes_in_its_own_way(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "s", {"text": "tea"})
    async with megaphone.subscribe(channel.consumer) as streams:
        reader = streams.stream("s")
        assert (await anext(reader)).body == {"text": "tea"}
        await reader.aclose()
        assert await streams.first("s", type=Answer) == Answer("tea")


# -- Gaps that nobody hears of at once


async def test_a_gap_that_no_reader_could_hear_of_reaches_the_next(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "a", 1)
    async with megaphone.subscribe(channel.consumer, after="x" * 23) as streams:
        while not streams.has_begun:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.001)
        with pytest.raises(EventsLost):
            await streams.first("a")
        assert await streams.first("a") == 1


async def test_a_reader_leaves_a_gap_and_what_is_behind_it(
    megaphone: Megaphone, channel: Channel
) -> None:
    await write(megaphone, channel, "a", 1, 2)
    await write(megaphone, channel, "mark", 1)
    async with (
        megaphone.subscribe(channel.consumer, after="x" * 23) as streams,
        streams.stream("mark") as mark,
    ):
        async with streams.stream("a"):
            with pytest.raises(EventsLost):
                await anext(mark)
            assert (await anext(mark)).body == 1
        with pytest.raises(EventsLost):
            await streams.first("a")
        assert [await streams.first("a") for _ in range(2)] == [1, 2]


async def test_a_gap_is_kept_longer_than_the_events_behind_it(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.subscribe(channel.consumer, after="x" * 23) as streams:
        async with megaphone.publisher() as publisher:
            for number in range(250):
                await publisher.send(channel.producer, "s", number)
        with pytest.raises(EventsLost):
            await streams.first("s")
        # The broker takes event 249 when the client has acknowledged 149: 50 were forgotten then.
        assert await streams.first("s") >= 50
