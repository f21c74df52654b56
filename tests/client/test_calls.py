"""The calls of the client that are neither reads nor batches of a publisher."""

import asyncio

import aiohttp
import pytest

from megaphone.app import App
from megaphone.wire.errors import INTERNAL_CODE, TABLE
from megaphone_client import (
    BadRequest,
    Channel,
    ChannelNotFound,
    ConnectionFailed,
    Failure,
    Megaphone,
    MegaphoneError,
    OutcomeUnknown,
    PermissionDenied,
    WriteTimeout,
)
from megaphone_client.errors import CLASSES
from tests.client.conftest import faulty_broker, url_of
from tests.support.proxy import proxy_to

GONE = "node." + "x" * 50 + ".1"


async def bodies(megaphone: Megaphone, channel: Channel, count: int) -> list[object]:
    async with megaphone.read(channel.consumer, limit=count) as reader:
        return [event.body async for event in reader]


async def test_an_event_arrives_as_it_was_written(megaphone: Megaphone, channel: Channel) -> None:
    written = await megaphone.write(channel.producer, "weather", {"sky": "grey", "wind": [1, 2.5]})
    async with megaphone.read(channel.consumer) as reader:
        event = await anext(reader)
    assert (event.id, event.stream) == (written, "weather")
    assert event.body == {"sky": "grey", "wind": [1, 2.5]}
    assert event.consumer == channel.consumer
    assert event.time.tzinfo is not None


async def test_bytes_are_json_already(megaphone: Megaphone, channel: Channel) -> None:
    await megaphone.write(channel.producer, "s", b'{"a" : 1.50}')
    async with megaphone.read(channel.consumer) as reader:
        assert (await anext(reader)).raw == b'{"a" : 1.50}'


async def test_a_channel_is_made_for_the_wanted_protocol(megaphone: Megaphone) -> None:
    channel = await megaphone.create(["GRPC_STREAM_V1", "HTTP_STREAM_NDJSON_V1"])
    assert channel.protocols == ("GRPC_STREAM_V1", "HTTP_STREAM_NDJSON_V1")
    with pytest.raises(BadRequest):
        await megaphone.create(["CARRIER_PIGEON_V1"])


@pytest.mark.settings(write_timeout_millis=50)
async def test_a_channel_gets_what_its_creator_asks_for(megaphone: Megaphone) -> None:
    channel = await megaphone.create(ttl_s=30, capacity=2, label="orders")
    for number in range(2):
        await megaphone.write(channel.producer, "s", number)
    with pytest.raises(WriteTimeout):
        await megaphone.write(channel.producer, "s", 2, timeout_s=0.2)
    for asked in ({"ttl_s": 1e9}, {"capacity": 10**9}, {"label": "\n"}):
        with pytest.raises(BadRequest):
            await megaphone.create(**asked)


async def test_which_channels_exist(megaphone: Megaphone, channel: Channel) -> None:
    assert await megaphone.exists([channel.producer, channel.consumer, GONE]) == {
        channel.producer: True,
        channel.consumer: True,
        GONE: False,
    }


async def test_a_batch_is_written_to_every_channel(megaphone: Megaphone, channel: Channel) -> None:
    other = await megaphone.create()
    messages = [("a", 1), ("b", {"two": 2})]
    assert await megaphone.write_batch([channel.producer, other.producer], messages) == []
    assert await bodies(megaphone, channel, 2) == [1, {"two": 2}]
    assert await bodies(megaphone, other, 2) == [1, {"two": 2}]


async def test_a_batch_that_ends_without_some_channels_names_only_these() -> None:
    answer = b'{"failures":[{"channel":"node.a","index":0,"reason":"STORE_UNAVAILABLE"}]}'
    async with faulty_broker(b"200 OK", answer) as (url, _), Megaphone.from_url(url) as megaphone:
        failures = await megaphone.write_batch(["node.a", "node.b"], [("s", 1)], timeout_s=0.3)
    assert failures == [Failure("node.a", 0, "STORE_UNAVAILABLE")]


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=50)
async def test_a_batch_names_what_was_not_taken(megaphone: Megaphone, channel: Channel) -> None:
    failures = await megaphone.write_batch([channel.producer], [("s", 1), ("s", 2), ("s", 3)])
    assert failures == [
        Failure(channel.producer, 1, "TIMEOUT"),
        Failure(channel.producer, 2, "SKIPPED"),
    ]


async def test_a_key_that_is_repeated_names_one_event(
    megaphone: Megaphone, channel: Channel
) -> None:
    first = await megaphone.write(channel.producer, "s", 1, key="order-7")
    assert await megaphone.write(channel.producer, "s", 1, key="order-7") == first


async def test_acknowledging_counts_what_was_not_acknowledged(
    megaphone: Megaphone, channel: Channel
) -> None:
    for number in range(3):
        await megaphone.write(channel.producer, "s", number)
    async with megaphone.read(channel.consumer, ack="manual") as reader:
        events = await reader.batch()
        while len(events) < 3:
            events += await reader.batch()
        assert await megaphone.ack(channel.consumer, events[1].id) == 2
        assert await megaphone.ack(channel.consumer, events[2].id) == 1
        assert await megaphone.ack(channel.consumer, events[2].id) == 0


async def test_errors_have_the_class_of_their_code(megaphone: Megaphone, channel: Channel) -> None:
    with pytest.raises(ChannelNotFound) as gone:
        await megaphone.ack(GONE, "x" * 23)
    assert gone.value.code == "NOT_FOUND"
    assert GONE not in str(gone.value)
    with pytest.raises(PermissionDenied):
        await megaphone.write(channel.consumer, "s", 1)
    with pytest.raises(BadRequest):
        await megaphone.write(channel.producer, "s\n", 1)


async def test_an_empty_stream_id_or_address_is_a_bad_request(
    megaphone: Megaphone, channel: Channel
) -> None:
    with pytest.raises(BadRequest, match="the stream id is empty"):
        await megaphone.write(channel.producer, "", 1)
    for call in (megaphone.write("", "s", 1), megaphone.ack("", "x" * 23), megaphone.dispose("")):
        with pytest.raises(BadRequest, match="not an address"):
            await call


async def test_a_path_without_a_broker_says_nothing_of_a_channel(app: App) -> None:
    async with Megaphone.from_url(f"{url_of(app, 'http')}/wrong") as megaphone:
        for call in (megaphone.create(), megaphone.dispose(GONE), megaphone.ack(GONE, "x" * 23)):
            with pytest.raises(MegaphoneError) as refused:
                await call
            assert not isinstance(refused.value, ChannelNotFound)
            assert refused.value.code == "NO_ROUTE"


def test_every_code_of_the_broker_has_a_class() -> None:
    codes = {row.error.code for row in TABLE} | {INTERNAL_CODE, "SKIPPED"}
    assert codes == CLASSES.keys()


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=50)
async def test_a_full_channel_is_tried_until_the_time_is_over(
    megaphone: Megaphone, channel: Channel
) -> None:
    await megaphone.write(channel.producer, "s", 1)
    with pytest.raises(WriteTimeout):
        await megaphone.write(channel.producer, "s", 2, timeout_s=0.5)


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=5_000)
async def test_a_write_without_an_answer_may_have_been_taken(
    megaphone: Megaphone, channel: Channel
) -> None:
    await megaphone.write(channel.producer, "s", 1)
    with pytest.raises(OutcomeUnknown):
        await megaphone.write(channel.producer, "s", 2, timeout_s=0.2)


async def test_where_no_broker_is(protocol: str) -> None:
    async with Megaphone.from_url(f"{protocol}://127.0.0.1:1", timeout_s=0.3) as megaphone:
        with pytest.raises(ConnectionFailed):
            await megaphone.create()
        with pytest.raises(ConnectionFailed):
            await megaphone.write("node.x", "s", 1)


async def test_a_write_whose_answer_is_lost_is_stored_once(app: App) -> None:
    async with (
        proxy_to(app.http_port, cuts=[b'"status":"OK"']) as proxy,
        Megaphone.from_url(f"http://127.0.0.1:{proxy.port}") as megaphone,
    ):
        channel = await megaphone.create()
        written = await megaphone.write(channel.producer, "s", 1)
        await megaphone.write(channel.producer, "s", 2)
        async with megaphone.read(channel.consumer, limit=2) as reader:
            events = [event async for event in reader]
    assert [event.body for event in events] == [1, 2]
    assert events[0].id == written


async def test_without_keys_it_is_not_tried_again(app: App) -> None:
    async with proxy_to(app.http_port, cuts=[b'"status":"OK"']) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        async with Megaphone.from_url(url, idempotent=False) as megaphone:
            channel = await megaphone.create()
            with pytest.raises(OutcomeUnknown):
                await megaphone.write(channel.producer, "s", 1)


@pytest.mark.parametrize("failure", [ConnectionRefusedError, TimeoutError])
async def test_a_function_for_headers_without_a_connection_is_asked_again(
    app: App, protocol: str, failure: type[Exception]
) -> None:
    failures = [failure(), failure()]

    async def headers() -> dict[str, str]:
        if failures:
            raise failures.pop()
        return {}

    async with Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone:
        channel = await megaphone.create()
        failures += [failure(), failure()]
        await megaphone.write(channel.producer, "s", 1)
        failures += [failure(), failure()]
        assert await bodies(megaphone, channel, 1) == [1]
        failures += [failure()] * 100
        with pytest.raises(ConnectionFailed, match="headers"):
            await megaphone.write(channel.producer, "s", 1, timeout_s=0.2)


async def test_any_other_error_of_it_is_raised(app: App, protocol: str) -> None:
    failures: list[Exception] = []

    async def headers() -> dict[str, str]:
        if failures:
            raise failures.pop()
        return {}

    async with Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone:
        channel = await megaphone.create()
        failures.append(aiohttp.ClientPayloadError())
        with pytest.raises(aiohttp.ClientPayloadError):
            await megaphone.write(channel.producer, "s", 1)
        failures.append(aiohttp.ClientPayloadError())
        with pytest.raises(aiohttp.ClientPayloadError):
            await bodies(megaphone, channel, 1)


async def test_headers_that_never_come_are_not_awaited_for_ever(app: App, protocol: str) -> None:
    async def headers() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async with Megaphone.from_url(
        url_of(app, protocol), headers=headers, timeout_s=0.1
    ) as megaphone:
        with pytest.raises(ConnectionFailed, match="headers"):
            await megaphone.create()


async def test_headers_are_asked_for_before_each_call(app: App, protocol: str) -> None:
    asked = 0

    async def headers() -> dict[str, str]:
        nonlocal asked
        asked += 1
        return {"X-Token": str(asked)}

    async with Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone:
        channel = await megaphone.create()
        await megaphone.write(channel.producer, "s", 1)
        await bodies(megaphone, channel, 1)
    assert asked >= 3


async def test_a_closed_client_says_so(app: App, protocol: str) -> None:
    megaphone = Megaphone.from_url(url_of(app, protocol))
    await megaphone.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await megaphone.create()
