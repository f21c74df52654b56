"""The limits of tenants are the same through both faces, and what is refused changes nothing.

Most rates here are so low that a test never sees a bucket fill again: one thing passes, and the
next one is refused for minutes. The arithmetic of rates is tested in virtual time.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc.aio import AioRpcError

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.core.access import Action
from megaphone.errors import (
    BadRequest,
    ChannelNotFound,
    LimitExceeded,
    RateLimited,
    WriteTimeout,
)
from megaphone.model import ChannelOptions, NewEvent, ReadOptions
from megaphone.settings import Auth, TenantLimits, Token
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.faces import Done, Face, GrpcFace, HttpFace, read_all, write_request
from tests.support.scenes import UNKNOWN_ADDRESS, eventually, gone

pytestmark = pytest.mark.timeout(60)

SELDOM = 0.01
READY = ReadOptions(wait_s=0)
EVENT = NewEvent("s", b"1")
BEARER = f"Bearer mgp_{'s' * 43}"
OWNER = Token(sha256=digest_of(BEARER.partition(" ")[2]), actions=tuple(Action), tenant="shop")


def shop(limits: TenantLimits, **more: object) -> pytest.MarkDecorator:
    """Return the settings for a test in which the tenant of a token has these limits."""
    return pytest.mark.settings(auth=Auth(tokens={"shop": OWNER}), tenants={"shop": limits}, **more)


def limited(app: App) -> dict[tuple[str, str], int]:
    """Return how often each tenant was refused something, by its name and the limit."""
    found = re.findall(
        r'^megaphone_limited_total\{tenant="(\w+)",limit="(\w+)"\} (\d+)$',
        app.metrics.render().decode(),
        re.MULTILINE,
    )
    return {(tenant, limit): int(count) for tenant, limit, count in found}


# -- Creating


@shop(TenantLimits(creates_per_s=SELDOM))
async def test_a_tenant_creates_as_often_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    await owner.create()
    with pytest.raises(RateLimited, match=r"tenant shop may create 0.01 channels a second"):
        await owner.create()
    await face.create()  # by another tenant
    assert app.metrics.channels_created == 2
    assert limited(app) == {("shop", "creates_per_s"): 1}


@shop(TenantLimits(channels=2), channel_ttl_secs=0.5)
async def test_a_tenant_has_as_many_channels_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    first, second = await owner.create(), await owner.create()
    async with face.read(second.consumer):
        with pytest.raises(LimitExceeded, match=r"as many channels as it may: 2 \(channels\)"):
            await owner.create()
        await face.create()
        await app.admin.dispose(first.consumer)
        third = await owner.create()
        with pytest.raises(LimitExceeded):
            await owner.create()
        await eventually(gone(face, third))

        async def has_room() -> bool:
            try:
                await owner.create()
            except LimitExceeded:
                return False
            return True

        await eventually(has_room)


@shop(TenantLimits(creates_per_s=SELDOM, max_buffer_capacity=5))
async def test_a_refused_creation_is_not_counted(face: Face) -> None:
    owner = face.authorized(BEARER)
    with pytest.raises(BadRequest, match="1 to 5 events"):
        await owner.create((), ChannelOptions(capacity=6))
    with pytest.raises(BadRequest):
        await owner.create(["CARRIER_PIGEON"])
    await owner.create((), ChannelOptions(capacity=5))


@shop(TenantLimits(buffer_capacity=2), write_timeout_millis=1)
async def test_the_channels_of_a_tenant_have_its_defaults(face: Face) -> None:
    owner = face.authorized(BEARER)
    channel, other = await owner.create(), await face.create()
    for _ in range(2):
        await face.write(channel.producer, "s", b"1")
        await face.write(other.producer, "s", b"1")
    with pytest.raises(WriteTimeout):
        await face.write(channel.producer, "s", b"1")
    await face.write(other.producer, "s", b"1")


# -- Writing


@shop(TenantLimits(writes_per_s=SELDOM))
async def test_a_tenant_writes_as_often_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    channel = await owner.create()
    with pytest.raises(ChannelNotFound):  # which is not counted
        await owner.write(UNKNOWN_ADDRESS, "s", b"1")
    await owner.write(channel.producer, "s", b"1")
    with pytest.raises(RateLimited, match=r"0.01 events a second \(writes_per_s\)"):
        await owner.write(channel.producer, "s", b"2")
    with pytest.raises(RateLimited):
        await owner.write(channel.producer, "s", b'"%b"' % (b"x" * 200_000))
    with pytest.raises(RateLimited):
        await owner.write_batch([channel.producer], [EVENT])
    with pytest.raises(RateLimited):
        await owner.write_batch([channel.producer], [EVENT], "key")
    await face.write(channel.producer, "s", b"3")  # by another tenant
    events = await read_all(face, channel.consumer, READY)
    assert [event.body for event in events] == [b"1", b"3"]
    assert limited(app) == {("shop", "writes_per_s"): 4}


@shop(TenantLimits(writes_per_s=SELDOM))
async def test_a_batch_counts_its_channels_times_its_messages(face: Face) -> None:
    owner = face.authorized(BEARER)
    channels = [(await face.create()).producer for _ in range(3)]
    assert await owner.write_batch(channels, [EVENT] * 5) == []  # more than a second has
    with pytest.raises(RateLimited) as refused:
        await owner.write(channels[0], "s", b"1")
    assert "call again in 1.5e+03 s" in str(refused.value)


@shop(TenantLimits(bytes_per_s=100.0))
async def test_a_tenant_writes_as_many_bytes_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    channels = [await owner.create() for _ in range(2)]
    producers = [channel.producer for channel in channels]
    await owner.write_batch(producers, [NewEvent("s", b'"%b"' % (b"x" * 5_000))])
    for call in (
        owner.write(producers[0], "s", b"1"),
        owner.write_batch(producers, [EVENT]),
    ):
        with pytest.raises(RateLimited, match=r"100 bytes a second \(bytes_per_s\)"):
            await call
    assert limited(app) == {("shop", "bytes_per_s"): 2}


@shop(TenantLimits(writes_per_s=SELDOM))
async def test_a_message_of_publish_is_written_or_refused_as_a_whole(
    app: App, grpc: GrpcFace
) -> None:
    owner = grpc.authorized(BEARER)
    channel = await owner.create()
    batch = [write_request(channel.producer, "s", b"1")] * 3
    answers = await owner.publish(batch, batch)
    reasons = [[result.reason for result in answer.results] for answer in answers]
    assert reasons == [[""] * 3, ["RATE_LIMITED"] * 3]
    assert len(await read_all(grpc, channel.consumer, READY)) == 3
    assert limited(app) == {("shop", "writes_per_s"): 1}


# -- Memory


@shop(TenantLimits(buffered_bytes=50_000))
async def test_a_tenant_uses_as_much_memory_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    channel, second, other = await owner.create(), await owner.create(), await face.create()
    body = b'"%b"' % (b"x" * 10_000)
    for _ in range(4):
        await owner.write(channel.producer, "s", body)
    for caller in (owner, face):  # the channels of the tenant use its memory, whoever writes
        with pytest.raises(LimitExceeded, match=r"50000 bytes \(buffered_bytes\)"):
            await caller.write(channel.producer, "s", body)
    messages = [NewEvent("s", body)]
    [failure] = await owner.write_batch([second.producer], messages)
    assert failure.reason == "LIMIT_EXCEEDED"
    assert await owner.write_batch([other.producer], messages) == []
    assert limited(app) == {("shop", "buffered_bytes"): 3}
    assert len(await read_all(owner, channel.consumer, READY)) == 4
    for _ in range(4):
        await owner.write(channel.producer, "s", body)


# -- Reading


@shop(TenantLimits(reads=2))
async def test_a_tenant_reads_as_many_channels_as_it_may(app: App, face: Face) -> None:
    owner = face.authorized(BEARER)
    channels = [await owner.create() for _ in range(3)]
    consumers = [channel.consumer for channel in channels]
    async with owner.read(consumers[0]), owner.read(consumers[1]) as second:
        with pytest.raises(LimitExceeded, match=r"as many channels as it may: 2 \(reads\)"):
            await read_all(owner, consumers[2], READY)
        await read_all(face, consumers[2], READY)  # by another tenant
        await app.admin.dispose(consumers[1])
        assert [event async for event in second] == []
        await eventually(readable(owner, consumers[2]))
    await eventually(readable(owner, consumers[0]))
    assert ("shop", "reads") in limited(app)


def readable(face: Face, consumer: str) -> Callable[[], Awaitable[bool]]:
    async def is_readable() -> bool:
        try:
            await read_all(face, consumer, READY)
        except LimitExceeded:
            return False
        return True

    return is_readable


@shop(TenantLimits(reads=2))
async def test_a_read_of_many_channels_counts_each_of_them(face: Face) -> None:
    owner = face.authorized(BEARER)
    consumers = [(await owner.create()).consumer for _ in range(3)]
    async with owner.read_many(consumers, READY) as reading:
        parts = [part async for part in reading]
    codes = sorted(part.code for part in parts if isinstance(part, Done))
    assert codes == ["", "", "LIMIT_EXCEEDED"]
    await read_all(owner, consumers[0], READY)


# -- Callers without a token, and reloads


@pytest.mark.settings(tenants={"default": TenantLimits(creates_per_s=SELDOM, writes_per_s=SELDOM)})
async def test_callers_without_a_token_share_the_limits_of_the_default(
    app: App, face: Face
) -> None:
    channel = await face.create()
    with pytest.raises(RateLimited, match="tenant default"):
        await face.create()
    await face.write(channel.producer, "s", b"1")
    with pytest.raises(RateLimited, match="tenant default"):
        await face.write(channel.producer, "s", b"1")
    assert limited(app) == {("default", "creates_per_s"): 1, ("default", "writes_per_s"): 1}


async def test_a_reload_limits_the_memory_of_channels_that_exist(app: App, face: Face) -> None:
    channel = await face.create()
    body = b'"%b"' % (b"x" * 10_000)
    await face.write(channel.producer, "s", body)
    limits = {"default": TenantLimits(buffered_bytes=15_000)}
    assert await app.reloader.reload(lambda present: replace(present, tenants=limits))
    with pytest.raises(LimitExceeded, match=r"15000 bytes \(buffered_bytes\)"):
        await face.write(channel.producer, "s", body)
    assert len(await read_all(face, channel.consumer, READY)) == 1
    await face.write(channel.producer, "s", body)


async def test_a_reload_changes_the_limits_of_callers_who_call_already(
    app: App, face: Face
) -> None:
    await face.create()

    async def reload(limits: dict[str, TenantLimits]) -> None:
        assert await app.reloader.reload(lambda present: replace(present, tenants=limits))

    await reload({"default": TenantLimits(creates_per_s=SELDOM, channels=2)})
    await face.create()
    with pytest.raises(LimitExceeded):  # the first channel counts too
        await face.create()
    await reload({"default": TenantLimits(creates_per_s=SELDOM)})
    with pytest.raises(RateLimited):
        await face.create()
    await reload({})
    await face.create()


# -- What the client gets


@pytest.mark.settings(
    tenants={"default": TenantLimits(creates_per_s=0.4, channels=1)}, http_lane=True
)
async def test_a_refusal_over_http_has_the_headers_of_the_limit(app: App) -> None:
    url = f"http://127.0.0.1:{app.http_port}/create"
    async with aiohttp.ClientSession() as session:
        async with session.post(url) as created:
            assert created.status == 200
            assert "RateLimit" not in created.headers
            channel = (await created.json())["consumerAddress"]
        async with session.post(url) as full:
            assert full.status == 429
            assert full.headers["RateLimit"] == '"channels";r=0;t=10'
            assert full.headers["RateLimit-Policy"] == '"channels";q=1'
            assert full.headers["Retry-After"] == "10"
        await app.admin.dispose(channel)
        async with session.post(url) as refused:
            assert refused.status == 429
            assert (await refused.json())["code"] == "RATE_LIMITED"
            wait_s = int(refused.headers["Retry-After"])
            assert 1 <= wait_s <= 3
            assert refused.headers["RateLimit"] == f'"creates_per_s";r=0;t={wait_s}'
            assert refused.headers["RateLimit-Policy"] == '"creates_per_s";q=1;w=3'


@pytest.mark.settings(tenants={"default": TenantLimits(creates_per_s=0.4)})
async def test_a_refusal_over_grpc_names_the_limit_and_the_exact_time(grpc: GrpcFace) -> None:
    await grpc.create()
    with pytest.raises(AioRpcError) as refused:
        await grpc.stub.CreateChannel(pb.CreateChannelRequest())
    details = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
    status, info, retry = Status.FromString(details), ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert dict(info.metadata) == {"limit": "creates_per_s"}
    assert 0 < retry.retry_delay.ToNanoseconds() < 2.5e9


@shop(TenantLimits(writes_per_s=20.0))
async def test_who_waits_as_long_as_it_is_told_gets_through(http: HttpFace) -> None:
    owner = http.authorized(BEARER)
    channel = await owner.create()
    await owner.write_batch([channel.producer], [EVENT] * 25)  # 5 more than a second has
    with pytest.raises(RateLimited) as refused:
        await owner.write(channel.producer, "s", b"1")
    found = re.search(r"call again in ([0-9.]+) s", str(refused.value))
    assert found is not None
    await asyncio.sleep(float(found[1]) + 0.01)
    await owner.write(channel.producer, "s", b"1")
