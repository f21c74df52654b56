"""Trace contexts through the client: of the span that the app is in, or as the app says."""

import asyncio
import subprocess
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from megaphone.app import App
from megaphone_client import Channel, Event, Megaphone, sync
from tests.client.conftest import url_of

CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("app")


def context_of(span: trace.Span) -> str:
    own = span.get_span_context()
    return f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


async def contexts(megaphone: Megaphone, channel: Channel, count: int) -> list[str | None]:
    async with megaphone.read(channel.consumer, limit=count, trace=True) as events:
        return [event.traceparent async for event in events]


async def test_a_write_has_the_context_of_the_present_span(
    megaphone: Megaphone, channel: Channel
) -> None:
    with TRACER.start_as_current_span("request") as span:
        await megaphone.write(channel.producer, "s", 1)
        await megaphone.write_batch([channel.producer], [("s", 2), ("s", 3)])
    await megaphone.write(channel.producer, "s", 4)
    own = context_of(span)
    assert await contexts(megaphone, channel, 4) == [own, own, own, None]


async def test_the_app_may_name_a_context(megaphone: Megaphone, channel: Channel) -> None:
    await megaphone.write(channel.producer, "s", 1, traceparent=CONTEXT)
    await megaphone.write_batch([channel.producer], [("s", 2)], traceparent=CONTEXT)
    assert await contexts(megaphone, channel, 2) == [CONTEXT, CONTEXT]


async def test_a_span_that_is_not_sampled_gives_no_context(
    megaphone: Megaphone, channel: Channel
) -> None:
    unsampled = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("app")
    with unsampled.start_as_current_span("request"):
        await megaphone.write(channel.producer, "s", 1)
    assert await contexts(megaphone, channel, 1) == [None]


async def test_each_event_of_a_publisher_has_the_context_in_which_it_was_handed_over(
    megaphone: Megaphone, channel: Channel
) -> None:
    wanted: list[str | None] = []
    async with megaphone.publisher(linger_s=0.05) as publisher:
        for number in range(12):
            if number % 4 == 0:
                await publisher.send(channel.producer, "s", number)
                wanted.append(None)
            else:
                with TRACER.start_as_current_span("request") as span:
                    await publisher.send(channel.producer, "s", number)
                    wanted.append(context_of(span))
    async with megaphone.read(channel.consumer, limit=12, trace=True) as reader:
        events = [event async for event in reader]
    assert [event.body for event in events] == list(range(12))
    assert [event.traceparent for event in events] == wanted


async def test_only_a_read_that_asks_gets_contexts(megaphone: Megaphone, channel: Channel) -> None:
    await megaphone.write(channel.producer, "s", 1, traceparent=CONTEXT)
    async with megaphone.read(channel.consumer) as events:
        event: Event[int] = await anext(events)
    assert event.traceparent is None


async def test_reads_of_many_channels_and_streams_get_contexts(
    megaphone: Megaphone, channel: Channel
) -> None:
    other = await megaphone.create()
    for one in (channel, other):
        await megaphone.write(one.producer, "s", 1, traceparent=CONTEXT)
    consumers = [channel.consumer, other.consumer]
    async with megaphone.read_many(consumers, trace=True) as events:
        assert [(await anext(events)).traceparent for _ in range(2)] == [CONTEXT, CONTEXT]
    await megaphone.write(channel.producer, "s", 2, traceparent=CONTEXT)
    async with (
        megaphone.subscribe(channel.consumer, trace=True) as streams,
        streams.stream("s") as stream,
    ):
        assert (await anext(stream)).traceparent == CONTEXT


async def test_the_client_without_asyncio_does_the_same(app: App, protocol: str) -> None:
    def call() -> list[str | None]:
        with sync.Megaphone.from_url(url_of(app, protocol)) as megaphone:
            channel = megaphone.create()
            with TRACER.start_as_current_span("request") as span:
                megaphone.write(channel.producer, "s", 1)
                with megaphone.publisher() as publisher:
                    publisher.send(channel.producer, "s", 2)
            megaphone.write(channel.producer, "s", 3, traceparent=CONTEXT)
            with megaphone.read(channel.consumer, limit=3, trace=True) as events:
                got = [event.traceparent for event in events]
            own = context_of(span)
            assert got == [own, own, CONTEXT]
            return got

    assert len(await asyncio.to_thread(call)) == 3


def test_an_app_without_opentelemetry_does_not_get_it() -> None:
    code = """
import asyncio, sys
from megaphone_client.tracing import current_traceparent
assert current_traceparent() is None
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
