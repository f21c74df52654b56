"""Each metric moves when what it counts happens, over both faces."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp
import grpc as grpcio
import pytest

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    MegaphoneError,
    PermissionDenied,
    ReaderBusy,
    Unauthenticated,
    WriteTimeout,
)
from megaphone.model import Action, NewEvent, ReadOptions
from megaphone.settings import Auth, Issuer, Token
from tests.support.faces import Face, GrpcFace, HttpFace, read_all, take, write_request
from tests.support.issuer import AUDIENCE, SECRET, claims, secret, token
from tests.support.metered import Metered, numbers
from tests.support.scenes import UNKNOWN_ADDRESS, eventually, write_numbers, writers_wait

pytestmark = pytest.mark.timeout(60)

READY = ReadOptions(wait_s=0)
LONG = ReadOptions(wait_s=20)
WAIT_S = 1.0
OWNER = "mgp_" + "o" * 43
AUTH = Auth(
    require=(Action.READ, Action.WRITE),
    tokens={"owner": Token(sha256=digest_of(OWNER), actions=(Action.READ, Action.WRITE))},
    issuers={"main": Issuer(issuer="main", audience=AUDIENCE, secret=SECRET, leeway_secs=0)},
)


def ends(**counts: int) -> dict[str, float]:
    """Return how often reads have ended, by the reason."""
    return {f'{{reason="{reason}"}}': count for reason, count in counts.items()}


async def reads_are_open(app: Any, count: int) -> None:
    async def are() -> bool:
        return bool(app.metrics.reads_open == count)

    await eventually(are, within_s=20)


# -- Calls


async def each_call(face: Face) -> list[str]:
    """Make each call once. Returns: what metrics call those of this face."""
    channel, other = await face.create(), await face.create()
    await face.write(channel.producer, "s", b"1")
    await face.write_batch([channel.producer, other.producer], [NewEvent("s", b"2")])
    [event, _] = await read_all(face, channel.consumer, READY)
    async with face.read_many([other.consumer], READY) as reading:
        assert [part async for part in reading]
    await face.acknowledge(channel.consumer, event.event_id)
    await face.exists([channel.consumer])
    await face.dispose(other.producer)
    methods = ["create", "create", "write", "write_batch", "read", "read_many", "ack", "exists"]
    if isinstance(face, GrpcFace):
        batch = [write_request(channel.producer, "s", b"3")]
        assert len(await face.publish(batch, batch)) == 2
        methods += ["publish", "publish"]
    return [*methods, "dispose"]


async def each_call_counts(app: Any, face: Face) -> None:
    metered = Metered(app)
    methods = await each_call(face)
    expected = {(face.name, one, "OK"): methods.count(one) for one in set(methods)}

    async def are_counted() -> bool:
        return metered.calls() == expected

    await eventually(are_counted, within_s=20)
    assert metered.moved("request_seconds_count") == {
        f'{{method="{one}"}}': methods.count(one) for one in set(methods)
    }
    took = metered.moved("request_seconds_sum")
    assert all(0 < took[f'{{method="{one}"}}'] < 20 for one in set(methods))


async def test_each_call_counts_once(app: App, face: Face) -> None:
    await each_call_counts(app, face)


@pytest.mark.settings(http_lane=False)
async def test_each_call_counts_once_without_the_lane(app: App, http: HttpFace) -> None:
    await each_call_counts(app, http)


async def test_each_refused_call_counts_by_its_code(app: App, face: Face) -> None:
    channel = await face.create()
    async with face.read(channel.consumer, LONG) as reading:
        await write_numbers(face, channel, [1])
        await take(reading, 1)
        metered = Metered(app)
        with pytest.raises(ReaderBusy):
            await read_all(face, channel.consumer)
        with pytest.raises(ChannelNotFound):
            await face.write(UNKNOWN_ADDRESS, "s", b"1")
        with pytest.raises(BadRequest):
            await face.write(channel.producer, "s", b"no JSON")
        with pytest.raises(PermissionDenied):
            await face.write(channel.consumer, "s", b"1")
        assert metered.calls() == {
            (face.name, "read", "BUSY"): 1,
            (face.name, "write", "NOT_FOUND"): 1,
            (face.name, "write", "BAD_REQUEST"): 1,
            (face.name, "write", "PERMISSION_DENIED"): 1,
        }
    assert metered.moved("request_seconds_count") == {
        '{method="read"}': 1,
        '{method="write"}': 3,
    }


async def test_a_call_that_nobody_knows_counts_too(
    app: App, http: HttpFace, grpc: GrpcFace
) -> None:
    metered = Metered(app)
    async with http.session.get(http.url("/nowhere")) as answer:
        assert answer.status == 404
    async with http.session.put(http.url("/create")) as answer:
        assert answer.status == 405
    async with http.session.get(http.url("/livez")) as answer:
        assert answer.status == 200
    call: Any = grpc.channel.unary_unary("/megaphone.v1.ChannelService/Nothing")
    with pytest.raises(grpcio.aio.AioRpcError):
        await call(b"")
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    writer.write(b"no HTTP at all\r\n\r\n")
    assert b"BAD_REQUEST" in await reader.read()
    writer.close()
    assert metered.calls() == {
        ("http", "other", "NOT_FOUND"): 1,
        ("http", "other", "BAD_REQUEST"): 2,
        ("http", "other", "OK"): 1,
        ("grpc", "other", "UNIMPLEMENTED"): 1,
    }
    assert metered.moved("request_seconds_count") == {}


async def test_a_client_that_goes_before_its_answer_counts(app: App, face: Face) -> None:
    channel = await face.create()
    await face.write_batch([channel.producer], [NewEvent("s", b"1")] * 100)
    metered = Metered(app)
    writing = asyncio.create_task(face.write(channel.producer, "s", b"2"))
    await eventually(writers_wait(app, 1), within_s=20)
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing

    async def is_counted() -> bool:
        return metered.calls() == {(face.name, "write", "CANCELLED"): 1}

    await eventually(is_counted, within_s=20)
    await eventually(writers_wait(app, 0), within_s=20)


# -- Writers that wait


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=WAIT_S * 1000)
async def test_waits_for_places_count_apart_from_the_calls(app: App, face: Face) -> None:
    channel, other = await face.create(), await face.create()
    for one in (channel, other):
        await face.write(one.producer, "s", b"1")
    metered = Metered(app)
    writes = [
        asyncio.create_task(face.write(channel.producer, "s", b"2")),
        asyncio.create_task(face.write(channel.producer, "s", b"3")),
        asyncio.create_task(face.write(other.producer, "s", b"4")),
    ]
    await eventually(writers_wait(app, 3), within_s=20)
    now = numbers(app)
    assert (now["channels_blocked"], now["writers_waiting"]) == (2, 3)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(one) for one in results] == [WriteTimeout] * 3
    assert metered.calls() == {(face.name, "write", "TIMEOUT"): 3}
    assert metered.moved_by("writes_timed_out") == 3
    assert metered.moved_by("write_wait_seconds_count") == 3
    waited_s = metered.moved_by("write_wait_seconds_sum")
    assert waited_s >= 3 * WAIT_S * 0.99
    assert metered.moved_by('request_seconds_sum{method="write"}') < waited_s / 2
    assert numbers(app)["channels_blocked"] == 0


@pytest.mark.settings(buffer_capacity=1, write_timeout_millis=WAIT_S * 1000)
async def test_the_waits_of_a_batch_do_not_count_for_its_call(app: App, face: Face) -> None:
    channels = [await face.create() for _ in range(3)]
    events = [NewEvent("s", b"1"), NewEvent("s", b"2")]
    metered = Metered(app)
    failures = await face.write_batch([one.producer for one in channels], events)
    assert [one.reason for one in failures] == ["TIMEOUT"] * 3
    assert metered.calls() == {(face.name, "write_batch", "OK"): 1}
    assert metered.moved_by("write_wait_seconds_count") == 3
    assert metered.moved_by('request_seconds_sum{method="write_batch"}') < WAIT_S


# -- Reads


async def test_reads_count_by_what_their_readers_do(app: App, face: Face) -> None:
    channel = await face.create()
    [first, _] = await write_numbers(face, channel, [1, 2])
    metered = Metered(app)
    await read_all(face, channel.consumer, READY)
    await read_all(face, channel.consumer, replace(READY, cursor=first))
    await read_all(face, channel.consumer, replace(READY, cursor="x" * 23))
    await read_all(face, channel.consumer, replace(READY, acknowledge=True))
    await metered.becomes(
        "reads_opened_total",
        {'{kind="plain"}': 1, '{kind="resuming"}': 2, '{kind="acknowledging"}': 1},
    )
    await metered.becomes("recoveries_total", {'{recovered="true"}': 1, '{recovered="false"}': 1})
    await metered.becomes("reads_ended_total", ends(window=4))


async def test_reads_of_many_channels_count_each(app: App, face: Face) -> None:
    channels = [await face.create() for _ in range(3)]
    await write_numbers(face, channels[0], [1])
    metered = Metered(app)
    addresses = [one.consumer for one in channels]
    async with face.read_many(addresses, replace(LONG, limit=1)) as reading:
        assert [part async for part in reading]
    await metered.becomes("reads_opened_total", {'{kind="plain"}': 3})
    await metered.becomes("reads_ended_total", ends(limit=3))


async def test_a_read_that_has_its_events_has_reached_its_limit(app: App, face: Face) -> None:
    channel = await face.create()
    await write_numbers(face, channel, [1, 2])
    metered = Metered(app)
    await read_all(face, channel.consumer, replace(LONG, limit=2))
    await metered.becomes("reads_ended_total", ends(limit=1))


async def test_a_client_that_leaves_its_read_has_gone(app: App, face: Face) -> None:
    channel, many = await face.create(), [await face.create() for _ in range(2)]
    metered = Metered(app)
    async with face.read(channel.consumer, LONG) as reading:
        await write_numbers(face, channel, [1])
        await take(reading, 1)
    await metered.becomes("reads_ended_total", ends(client_gone=1))
    async with face.read_many([one.consumer for one in many], LONG) as parts:
        await anext(parts)
        await reads_are_open(app, 2)
    await metered.becomes("reads_ended_total", ends(client_gone=3))


async def test_another_reader_takes_over(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    reading = asyncio.create_task(read_all(face, channel.consumer, LONG))
    await reads_are_open(app, 1)
    await read_all(face, channel.consumer, replace(READY, take_over=True))
    with suppress(MegaphoneError, aiohttp.ClientError):
        await reading
    await metered.becomes("reads_ended_total", ends(window=1, taken_over=1))


async def test_the_channel_of_a_read_is_removed(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    reading = asyncio.create_task(read_all(face, channel.consumer, LONG))
    await reads_are_open(app, 1)
    await face.dispose(channel.producer)
    await reading
    await metered.becomes("reads_ended_total", ends(channel_gone=1))


async def test_the_node_of_a_read_stops(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    reading = asyncio.create_task(read_all(face, channel.consumer, LONG))
    await reads_are_open(app, 1)
    for one in getattr(app, "apps", [app]):
        await one.broker.begin_shutdown()
    await reading
    await metered.becomes("reads_ended_total", ends(shutdown=1))


@pytest.mark.settings(auth=AUTH)
async def test_the_token_of_a_reader_expires(app: App, face: Face) -> None:
    channel = await face.create()
    made = claims(iss="main", scope="megaphone:read", exp=time.time() + 1.0)
    reader = face.authorized(f"Bearer {token(made, secret(), 'HS256')}")
    metered = Metered(app)
    with suppress(MegaphoneError):  # which gRPC has
        await read_all(reader, channel.consumer, LONG)
    await metered.becomes("reads_ended_total", ends(token_expired=1))


@pytest.mark.settings(auth=AUTH)
async def test_the_token_of_a_reader_is_revoked(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    reading = asyncio.create_task(
        read_all(face.authorized(f"Bearer {OWNER}"), channel.consumer, LONG)
    )
    await reads_are_open(app, 1)
    other = replace(AUTH, tokens={})
    for one in getattr(app, "apps", [app]):
        assert await one.reloader.reload(lambda present: replace(present, auth=other))
    with suppress(MegaphoneError):  # which gRPC has
        await reading
    await metered.becomes("reads_ended_total", ends(revoked=1))
    assert metered.moved_by('reloads_total{outcome="success"}') >= 1


# -- Events


async def test_the_time_to_the_first_delivery_counts(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    await write_numbers(face, channel, [1, 2, 3])
    await asyncio.sleep(0.3)
    again = ReadOptions(cursor="-", wait_s=0)
    assert len(await read_all(face, channel.consumer, again)) == 3
    assert metered.moved_by("delivery_seconds_count") == 1  # for the oldest event of the batch
    took_s = metered.moved_by("delivery_seconds_sum")
    assert 0.3 <= took_s < 20
    assert len(await read_all(face, channel.consumer, again)) == 3
    assert metered.moved_by("delivery_seconds_count") == 1  # because they were delivered before
    assert metered.moved_by("messages_redelivered") == 3


# -- Who calls


@pytest.mark.settings(auth=AUTH)
async def test_proofs_that_are_refused_count_by_their_reason(app: App, face: Face) -> None:
    channel = await face.create()
    metered = Metered(app)
    with pytest.raises(Unauthenticated):
        await face.write(channel.producer, "s", b"1")  # without any
    for proof in ("Bearer mgp_wrong", "Bearer a.b.c"):
        with pytest.raises(Unauthenticated):
            await face.authorized(proof).write(channel.producer, "s", b"1")
    assert metered.moved("auth_failures_total") == {'{reason="UNAUTHENTICATED"}': 2}
    assert metered.calls() == {(face.name, "write", "UNAUTHENTICATED"): 3}


# -- The node


@pytest.mark.settings(max_channels=7)
async def test_a_node_says_what_it_is_and_what_it_may_have(app: App) -> None:
    now = numbers(app)
    assert now["channels_limit"] == 7
    assert now["buffered_bytes_limit"] > 0
    [build] = [name for name in now if name.startswith("build_info{")]
    assert 'version="' in build
    assert now[build] == 1
