"""The spans of a node, through both faces, as a collector receives them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from megaphone.core.addresses import ConsumerAddress
from megaphone.errors import ChannelNotFound
from megaphone.model import NewEvent, ReadOptions, short_id
from tests.support.faces import Created, Face, read_all, take
from tests.support.otlp import Collector, Received, collector

pytestmark = pytest.mark.timeout(60)

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
TRACED = ReadOptions(wait_s=0, trace=True)
WHAT_ALL_HAVE = {
    "messaging.system": "megaphone",
    "messaging.destination.template": "{channel}",
}


@pytest.fixture
async def spans(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Receive the spans of each node that is started after this."""
    async with collector() as receiver:
        for name, value in receiver.variables.items():
            monkeypatch.setenv(name, value)
        yield receiver


@pytest.fixture(autouse=True)
def first(spans: Collector) -> Collector:
    """Start the collector before the nodes, which begin with `app`."""
    return spans


def short_id_of(channel: Created) -> str:
    return short_id(ConsumerAddress.parse(channel.consumer).channel_id)


def assert_no_address(spans: Collector, *channels: Created) -> None:
    for body in spans.bodies:
        for channel in channels:
            assert channel.producer.encode() not in body
            assert channel.consumer.encode() not in body


async def send_and_receive(spans: Collector) -> tuple[Received, Received]:
    """Wait for one span of each kind. Fails if there are more."""
    await spans.has(sends=1, receives=1)
    [send], [receive] = spans.named("send"), spans.named("receive")
    return send, receive


async def test_a_write_and_its_read_are_two_linked_spans_of_one_trace(
    writer: Face, reader: Face, spans: Collector
) -> None:
    channel = await writer.create()
    event_id = await writer.traced(CONTEXT).write(channel.producer, "s", b"1")
    [event] = await read_all(reader, channel.consumer, TRACED)
    send, receive = await send_and_receive(spans)
    assert (send.name, receive.name) == ("send {channel}", "receive {channel}")
    assert (send.kind, receive.kind) == ("producer", "consumer")
    assert send.trace_id == receive.trace_id == TRACE_ID
    assert send.parent_id == SPAN_ID
    assert receive.parent_id == send.span_id
    assert receive.links == [(TRACE_ID, send.span_id)]
    assert receive.linked_messages == [event_id]
    assert event.traceparent == send.context
    assert send.attributes == WHAT_ALL_HAVE | {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": event_id,
        "megaphone.channel": short_id_of(channel),
        "megaphone.face": writer.name,
    }
    assert receive.attributes == WHAT_ALL_HAVE | {
        "messaging.operation.name": "receive",
        "messaging.operation.type": "receive",
        "messaging.message.id": event_id,
        "megaphone.channel": short_id_of(channel),
    }
    assert (send.error, receive.error) == ("", "")
    assert send.resource["service.name"] == "megaphone"
    assert_no_address(spans, channel)


@pytest.mark.parametrize("given", [UNSAMPLED, "nonsense", CONTEXT.upper()])
async def test_what_is_not_sampled_or_not_valid_has_no_span(
    face: Face, spans: Collector, given: str
) -> None:
    channel = await face.create()
    await face.traced(given).write(channel.producer, "s", b"1")
    await face.write(channel.producer, "s", b"2")
    untraced = await read_all(face, channel.consumer, TRACED)
    assert [event.traceparent for event in untraced] == [None, None]
    await face.traced(CONTEXT).write(channel.producer, "s", b"3")
    [traced] = await read_all(face, channel.consumer, TRACED)
    send, receive = await send_and_receive(spans)
    assert send.attributes["messaging.message.id"] == traced.event_id
    assert receive.linked_messages == [traced.event_id]


async def test_a_batch_has_one_send_span_and_each_read_one_receive_span(
    writer: Face, reader: Face, spans: Collector
) -> None:
    one, other = await writer.create(), await writer.create()
    messages = [NewEvent("s", b"%d" % number) for number in range(3)]
    await writer.traced(CONTEXT).write_batch([one.producer, other.producer], messages)
    for channel in (one, other):
        events = await read_all(reader, channel.consumer, TRACED)
        assert len({event.traceparent for event in events}) == 1
    await spans.has(sends=1, receives=2)
    [send] = spans.named("send")
    assert send.attributes["messaging.batch.message_count"] == 3
    for receive in spans.named("receive"):
        assert receive.links == [(TRACE_ID, send.span_id)]
        assert receive.attributes["messaging.batch.message_count"] == 3
    assert_no_address(spans, one, other)


async def test_a_batch_is_linked_to_at_most_32_writes(face: Face, spans: Collector) -> None:
    channel = await face.create()
    for number in range(40):
        context = f"00-{number + 1:032x}-{SPAN_ID}-01"
        await face.traced(context).write(channel.producer, "s", b"1")
    assert len(await read_all(face, channel.consumer, TRACED)) == 40
    await spans.has(sends=40, receives=1)
    received = spans.named("receive")
    assert len(received[0].links) == 32
    assert received[0].trace_id == f"{1:032x}"
    assert received[0].links[31][0] == f"{32:032x}"


async def test_a_write_that_is_refused_has_a_span_that_says_why(
    face: Face, spans: Collector
) -> None:
    channel = await face.create()
    await face.dispose(channel.producer)
    with pytest.raises(ChannelNotFound):
        await face.traced(CONTEXT).write(channel.producer, "s", b"1")
    await spans.has(sends=1)
    [send] = spans.named("send")
    assert send.error == send.attributes["error.type"] == "NOT_FOUND"
    assert_no_address(spans, channel)


async def test_a_write_that_waits_for_a_place_has_one_span(face: Face, spans: Collector) -> None:
    channel = await face.create()
    for number in range(100):
        await face.write(channel.producer, "s", b"%d" % number)
    waiting = asyncio.create_task(face.traced(CONTEXT).write(channel.producer, "s", b"100"))
    async with face.read(channel.consumer, ReadOptions(trace=True)) as read:
        events = await take(read, 101)
    assert await waiting == events[-1].event_id
    send, _ = await send_and_receive(spans)
    assert events[-1].traceparent == send.context


async def test_channels_that_are_read_together_have_spans_of_their_own(
    face: Face, spans: Collector
) -> None:
    channels = [await face.create() for _ in range(2)]
    for channel in channels:
        await face.traced(CONTEXT).write(channel.producer, "s", b"1")
    async with face.read_many([channel.consumer for channel in channels], TRACED) as read:
        parts = [part async for part in read]
    contexts = [part[1].traceparent for part in parts if isinstance(part, tuple)]
    await spans.has(sends=2, receives=2)
    sends = {send.span_id for send in spans.named("send")}
    assert {span_id for one in spans.named("receive") for _, span_id in one.links} == sends
    assert {send.context for send in spans.named("send")} == set(contexts)


async def test_a_reader_that_does_not_ask_has_a_span_all_the_same(
    face: Face, spans: Collector
) -> None:
    channel = await face.create()
    await face.traced(CONTEXT).write(channel.producer, "s", b"1")
    [event] = await read_all(face, channel.consumer, ReadOptions(wait_s=0))
    assert event.traceparent is None
    send, receive = await send_and_receive(spans)
    assert receive.links == [(TRACE_ID, send.span_id)]
