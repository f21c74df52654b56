"""Writing many events in batches, over both protocols."""

import asyncio

import pytest

from megaphone.app import App
from megaphone_client import (
    BadRequest,
    Channel,
    ChannelNotFound,
    ConnectionFailed,
    Megaphone,
    MegaphoneError,
    OutcomeUnknown,
    ProtocolError,
    WriteTimeout,
    publishing,
)
from tests.client.conftest import faulty_broker, url_of
from tests.support.proxy import proxy_to


async def bodies(megaphone: Megaphone, channel: Channel, count: int) -> list[object]:
    async with megaphone.read(channel.consumer, limit=count) as reader:
        return [event.body async for event in reader]


async def test_events_keep_their_order_in_each_channel(megaphone: Megaphone) -> None:
    channels = [await megaphone.create() for _ in range(3)]
    async with megaphone.publisher(max_batch=7) as publisher:
        for number in range(90):
            await publisher.send(channels[number % 3].producer, "s", number)
    for at, channel in enumerate(channels):
        assert await bodies(megaphone, channel, 30) == list(range(at, 90, 3))


async def test_each_event_has_its_id(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.publisher() as publisher:
        results = [await publisher.send(channel.producer, "s", number) for number in range(5)]
        ids = [await result for result in results]
    async with megaphone.read(channel.consumer, limit=5) as reader:
        assert [event.id async for event in reader] == ids


async def test_flushing_waits_for_all_answers(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.publisher(linger_s=60.0) as publisher:
        await publisher.send(channel.producer, "s", 1)
        await publisher.flush()
        assert await bodies(megaphone, channel, 1) == [1]


async def test_large_events_go_alone(megaphone: Megaphone, channel: Channel) -> None:
    large = "x" * 400_000
    async with megaphone.publisher() as publisher:
        for body in ("a", large, "b", large):
            await publisher.send(channel.producer, "s", body)
    assert await bodies(megaphone, channel, 4) == ["a", large, "b", large]


async def test_one_bad_event_does_not_spoil_the_others(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.publisher(linger_s=0.05) as publisher:
        before = await publisher.send(channel.producer, "s", 1)
        bad = await publisher.send(channel.producer, "s\n", 2)
        after = await publisher.send(channel.producer, "s", 3)
        await before
        with pytest.raises(BadRequest):
            await bad
        await after
    assert await bodies(megaphone, channel, 2) == [1, 3]


async def test_an_error_that_nobody_saw_is_raised_by_flush(
    app: App, megaphone: Megaphone, channel: Channel
) -> None:
    gone = await megaphone.create()
    await app.admin.dispose(gone.consumer)
    async with megaphone.publisher() as publisher:
        await publisher.send(gone.producer, "s", 1)
        await publisher.send(channel.producer, "s", 2)
        with pytest.raises(ChannelNotFound):
            await publisher.flush()
        await publisher.flush()
        seen = await publisher.send(gone.producer, "s", 1)
        with pytest.raises(ChannelNotFound):
            await seen
    assert await bodies(megaphone, channel, 1) == [2]


async def test_or_by_leaving_the_block(app: App, megaphone: Megaphone, channel: Channel) -> None:
    await app.admin.dispose(channel.consumer)
    publisher = megaphone.publisher()
    opened = await publisher.__aenter__()
    await opened.send(channel.producer, "s", 1)
    with pytest.raises(ChannelNotFound):
        await publisher.__aexit__(None, None, None)


@pytest.mark.settings(buffer_capacity=60, write_timeout_millis=20)
async def test_a_full_channel_is_tried_again_in_order(
    megaphone: Megaphone, channel: Channel
) -> None:
    async def write() -> None:
        async with megaphone.publisher() as publisher:
            for number in range(400):
                await publisher.send(channel.producer, "s", number)

    writing = asyncio.create_task(write())
    async with megaphone.read(channel.consumer, limit=400) as reader:
        got: list[object] = []
        async for event in reader:
            got.append(event.body)
            if len(got) == 2:
                await asyncio.sleep(0.1)  # in which the channel stays full
    await writing
    assert got == list(range(400))


@pytest.mark.settings(buffer_capacity=10, write_timeout_millis=500)
async def test_a_full_channel_does_not_hold_the_others_back(megaphone: Megaphone) -> None:
    full, other = await megaphone.create(), await megaphone.create()
    async with megaphone.publisher() as publisher:
        held = [await publisher.send(full.producer, "s", number) for number in range(15)]
        await held[9]
        # The broker waits for the full channel once, together with what goes with it.
        await (await publisher.send(other.producer, "s", 0))
        held += [await publisher.send(full.producer, "s", number) for number in range(15, 20)]
        async with asyncio.timeout(3):
            for number in range(1, 10):
                await (await publisher.send(other.producer, "s", number))
        assert await bodies(megaphone, other, 10) == list(range(10))
        assert await bodies(megaphone, full, 20) == list(range(20))
    assert len({await one for one in held}) == 20


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=20)
async def test_at_the_end_of_its_time_an_event_was_not_taken(app: App, protocol: str) -> None:
    async with Megaphone.from_url(url_of(app, protocol), timeout_s=0.4) as megaphone:
        channel = await megaphone.create()
        async with megaphone.publisher() as publisher:
            first = await publisher.send(channel.producer, "s", 1)
            second = await publisher.send(channel.producer, "s", 2)
            await first
            with pytest.raises(WriteTimeout):
                await second


async def test_without_a_broker_nothing_is_pending_for_ever(protocol: str) -> None:
    async with (
        Megaphone.from_url(f"{protocol}://127.0.0.1:1", timeout_s=0.3) as megaphone,
        megaphone.publisher(max_pending=2) as publisher,
    ):
        results = [await publisher.send("node.x", "s", number) for number in range(4)]
        for result in results:
            with pytest.raises(ConnectionFailed):
                await result


async def test_cut_connections_store_each_event_once(app: App, protocol: str) -> None:
    to = app.http_port if protocol == "http" else app.grpc_port
    async with (
        proxy_to(to) as proxy,
        Megaphone.from_url(f"{protocol}://127.0.0.1:{proxy.port}") as megaphone,
        Megaphone.from_url(url_of(app, protocol)) as direct,
    ):
        channel = await megaphone.create()

        async def write() -> None:
            async with megaphone.publisher(max_batch=10) as publisher:
                for number in range(1_000):
                    await publisher.send(channel.producer, "s", number)
                    if number % 130 == 0:
                        proxy.cut()

        writing = asyncio.create_task(write())
        assert await bodies(direct, channel, 1_000) == list(range(1_000))
        await writing


async def test_what_was_sent_is_limited(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.publisher(linger_s=60.0, max_pending=2, max_batch=100) as publisher:
        for number in range(2):
            await publisher.send(channel.producer, "s", number)
        third = asyncio.create_task(publisher.send(channel.producer, "s", 2))
        await asyncio.sleep(0)
        assert not third.done()
        await publisher.flush()
        await third
    assert await bodies(megaphone, channel, 3) == [0, 1, 2]


async def test_after_its_block_it_takes_nothing(megaphone: Megaphone, channel: Channel) -> None:
    async with megaphone.publisher() as publisher:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await publisher.send(channel.producer, "s", 1)


async def test_a_cancelled_block_leaves_no_task(megaphone: Megaphone, channel: Channel) -> None:
    sent = asyncio.Event()
    results = []

    async def write() -> None:
        async with megaphone.publisher(linger_s=60.0) as publisher:
            results.append(await publisher.send(channel.producer, "s", 1))
            sent.set()
            await asyncio.get_running_loop().create_future()

    writing = asyncio.create_task(write())
    await sent.wait()
    writing.cancel()
    await asyncio.wait([writing])
    with pytest.raises(MegaphoneError, match="closed"):
        await results[0]


async def test_nor_an_event_that_was_never_tried(megaphone: Megaphone, channel: Channel) -> None:
    publisher = megaphone.publisher()
    opened = await publisher.__aenter__()
    result = await opened.send(channel.producer, "s", 1)
    await publisher.__aexit__(asyncio.CancelledError, None, None)
    with pytest.raises(MegaphoneError, match="closed"):
        await result


async def test_nor_one_that_would_be_tried_again() -> None:
    async with (
        faulty_broker(b"503 Later\r\nRetry-After: 9", b"") as (url, answered),
        Megaphone.from_url(url) as megaphone,
    ):
        publisher = megaphone.publisher(max_pending=1)
        opened = await publisher.__aenter__()
        result = await opened.send("node.x", "s", 1)
        elsewhere = asyncio.create_task(opened.send("node.x", "s", 2))
        await answered.wait()
        await publisher.__aexit__(asyncio.CancelledError, None, None)
        with pytest.raises(MegaphoneError, match="closed"):
            await result
        with pytest.raises(RuntimeError, match="closed"):
            await elsewhere


async def test_an_event_whose_time_is_up_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "LANES_AT_ONCE", 1)
    tries = {b"first": 0, b"other": 0}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        name = b"first" if b"Megaphone-Agent: first" in head else b"other"
        tries[name] += 1
        if name == b"first":
            writer.write(b"HTTP/1.1 503 Later\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await reader.read()  # until the client has no time left
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with (
        server,
        Megaphone.from_url(url, timeout_s=0.5) as megaphone,
        megaphone.publisher() as publisher,
    ):
        results = [await publisher.send(f"{agent}.x", "s", 1) for agent in ("first", "other")]
        for result in results:
            with pytest.raises(OutcomeUnknown):
                await result
    assert tries == {b"first": 1, b"other": 1}


async def test_a_send_that_is_cancelled_leaves_its_place_to_another(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.publisher(max_pending=1) as publisher:
        first = await publisher.send(channel.producer, "s", 0)
        leaves, stays = (
            asyncio.create_task(publisher.send(channel.producer, "s", number)) for number in (1, 2)
        )
        await first  # the same turn of the event loop wakes who waits for a place
        leaves.cancel()
        await stays


@pytest.mark.settings(buffer_capacity=2, write_timeout_millis=20)
async def test_events_beside_a_bad_one_keep_their_order(
    megaphone: Megaphone, channel: Channel
) -> None:
    async with megaphone.publisher() as publisher:
        bad = await publisher.send(channel.producer, "s\n", -1)
        for number in range(8):
            await publisher.send(channel.producer, "s", number)
        with pytest.raises(BadRequest):
            await bad
        assert await bodies(megaphone, channel, 8) == list(range(8))


async def test_an_answer_that_fits_no_request_fails_each_event() -> None:
    answer = b'{"failures":[{"channel":"node.x","index":7,"reason":"TIMEOUT"}]}'
    async with (
        faulty_broker(b"200 OK", answer) as (url, _),
        Megaphone.from_url(url) as megaphone,
        megaphone.publisher() as publisher,
    ):
        for result in [await publisher.send("node.x", "s", number) for number in range(2)]:
            with pytest.raises(ProtocolError):
                await result


async def test_a_function_for_headers_that_fails_fails_each_event(app: App, protocol: str) -> None:
    async def headers() -> dict[str, str]:
        raise LookupError("no token")

    async with (
        Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone,
        megaphone.publisher() as publisher,
    ):
        for result in [await publisher.send("node.AAAA", "s", number) for number in range(3)]:
            with pytest.raises(LookupError):
                await result
