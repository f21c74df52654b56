"""Trace contexts that writers send, and that readers get if they ask, through both faces."""

import asyncio

import pytest

from megaphone.model import NewEvent, ReadOptions
from tests.support.faces import Face, read_all, take

pytestmark = pytest.mark.timeout(60)

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW = ReadOptions(wait_s=0)
TRACED = ReadOptions(wait_s=0, trace=True)
LATER_VERSION = f"cc-{'a' * 32}-{'b' * 16}-03-more"

NO_CONTEXTS = {
    "not sampled": f"{CONTEXT[:-2]}00",
    "no flags": CONTEXT[:-3],
    "capital letters": CONTEXT.upper(),
    "version ff": f"ff{CONTEXT[2:]}",
    "a field too many": f"{CONTEXT}-x",
    "trace id 0": f"00-{'0' * 32}-{'b' * 16}-01",
    "span id 0": f"00-{'a' * 32}-{'0' * 16}-01",
    "text": "nonsense",
    "more behind it": f"{CONTEXT}01",
}


async def test_a_reader_that_asks_gets_the_context_of_the_writer(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await writer.traced(CONTEXT).write(channel.producer, "s", b'{"traceparent":"x"}')
    await writer.write(channel.producer, "s", b"2")
    events = await read_all(reader, channel.consumer, TRACED)
    assert [(event.body, event.traceparent) for event in events] == [
        (b'{"traceparent":"x"}', CONTEXT),
        (b"2", None),
    ]


async def test_a_reader_that_does_not_ask_gets_what_it_always_got(
    writer: Face, reader: Face
) -> None:
    channel = await writer.create()
    await writer.traced(CONTEXT).write(channel.producer, "s", b"1")
    [event] = await read_all(reader, channel.consumer, NOW)
    assert event.traceparent is None


async def test_readers_with_and_without_contexts_share_an_event(writer: Face, reader: Face) -> None:
    one, other, third = [await writer.create() for _ in range(3)]
    channels = [one.producer, other.producer, third.producer]
    await writer.traced(CONTEXT).write_batch(channels, [NewEvent("s", b"1"), NewEvent("s", b"2")])
    plain = await read_all(reader, one.consumer, NOW)
    traced = await read_all(reader, other.consumer, TRACED)
    again = await read_all(reader, third.consumer, NOW)
    assert [event.traceparent for event in traced] == [CONTEXT] * 2
    assert [event.traceparent for event in plain + again] == [None] * 4
    assert [event.body for event in plain] == [event.body for event in traced] == [b"1", b"2"]


@pytest.mark.parametrize("size", [100, 200_000])
async def test_an_event_of_any_size_has_its_context(writer: Face, reader: Face, size: int) -> None:
    body = b'"' + b"x" * size + b'"'
    channel = await writer.create()
    await writer.traced(CONTEXT).write(channel.producer, "s", body)
    [event] = await read_all(reader, channel.consumer, TRACED)
    assert (event.body, event.traceparent) == (body, CONTEXT)


@pytest.mark.parametrize("given", NO_CONTEXTS.values(), ids=NO_CONTEXTS)
async def test_what_is_no_sampled_context_is_dropped_and_fails_nothing(
    face: Face, given: str
) -> None:
    channel = await face.create()
    await face.traced(given).write(channel.producer, "s", b"1")
    await face.traced(given).write_batch([channel.producer], [NewEvent("s", b"2")])
    events = await read_all(face, channel.consumer, TRACED)
    assert [(event.body, event.traceparent) for event in events] == [(b"1", None), (b"2", None)]


async def test_a_context_of_a_later_version_counts_as_one_of_version_00(face: Face) -> None:
    channel = await face.create()
    await face.traced(LATER_VERSION).write(channel.producer, "s", b"1")
    [event] = await read_all(face, channel.consumer, TRACED)
    assert event.traceparent == f"00-{'a' * 32}-{'b' * 16}-01"


async def test_a_writer_that_waits_for_a_place_keeps_its_context(face: Face) -> None:
    channel = await face.create()
    for number in range(100):
        await face.write(channel.producer, "s", b"%d" % number)
    waiting = asyncio.create_task(face.traced(CONTEXT).write(channel.producer, "s", b"100"))
    async with face.read(channel.consumer, ReadOptions(trace=True)) as read:
        events = await take(read, 101)
    await waiting
    assert events[-1].traceparent == CONTEXT


async def test_many_channels_are_read_with_their_contexts(writer: Face, reader: Face) -> None:
    channels = [await writer.create() for _ in range(2)]
    for channel in channels:
        await writer.traced(CONTEXT).write(channel.producer, "s", b"1")
    consumers = [channel.consumer for channel in channels]
    async with reader.read_many(consumers, TRACED) as read:
        parts = [part async for part in read]
    assert [part[1].traceparent for part in parts if isinstance(part, tuple)] == [CONTEXT] * 2
