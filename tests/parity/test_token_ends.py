"""What happens to open calls when their token ends: it expires, or a reload takes it away."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.errors import MegaphoneError
from megaphone.model import Action, ReadOptions
from megaphone.settings import Auth, ClientCertificates, Issuer, TenantLimits, Token
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.faces import Face, GrpcFace, HttpFace, read_all, telling_errors, write_request
from tests.support.issuer import AUDIENCE, SECRET, claims, secret, token
from tests.support.scenes import eventually, write_numbers

STATIC = "mgp_" + "s" * 43
AUTH = Auth(
    require=(Action.READ, Action.WRITE),
    tokens={"shop": Token(sha256=digest_of(STATIC), actions=(Action.READ, Action.WRITE))},
    issuers={"main": Issuer(issuer="main", audience=AUDIENCE, secret=SECRET, leeway_secs=0)},
)
LONG = ReadOptions(wait_s=20)
LASTS_S = 1.5

pytestmark = [pytest.mark.settings(auth=AUTH), pytest.mark.timeout(60)]


def short() -> str:
    """Return the proof of a token that expires soon."""
    scope = "megaphone:read megaphone:write"
    made = claims(iss="main", scope=scope, exp=time.time() + LASTS_S)
    return f"Bearer {token(made, secret(), 'HS256')}"


async def test_a_long_read_ends_cleanly_when_its_token_expires(face: Face) -> None:
    channel = await face.create()
    reader = face.authorized(short())
    async with asyncio.timeout(10):
        async with reader.read(channel.consumer, LONG) as reading:
            await write_numbers(face.authorized(f"Bearer {STATIC}"), channel, [1])
            assert (await anext(reading)).body == b"1"
            if face.name == "grpc":
                with pytest.raises(MegaphoneError) as raised:
                    await anext(reading)
                assert raised.value.code == "TOKEN_EXPIRED"
            else:  # clients split what they receive into lines, each of which is an event
                with pytest.raises(StopAsyncIteration):
                    await anext(reading)
        await asyncio.sleep(LASTS_S)
        with pytest.raises(MegaphoneError) as raised:
            await read_all(reader, channel.consumer, LONG)
        assert raised.value.code == "TOKEN_EXPIRED"
        # The end was a clean one, so the next reader does not get the event again.
        other = face.authorized(f"Bearer {STATIC}")
        assert await read_all(other, channel.consumer, ReadOptions(wait_s=0)) == []


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_server_sent_events_say_why_they_end(app: App, http: HttpFace, version: str) -> None:
    channel = await http.create()
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    writer.write(
        f"GET /read/{channel.consumer}?wait_ms=20000 HTTP/{version}\r\nHost: x\r\n"
        f"Accept: text/event-stream\r\nAuthorization: {short()}\r\n\r\n".encode()
    )
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert b'event: end\ndata: {"code":"TOKEN_EXPIRED"}\n\n' in answer
    if version == "1.1":
        assert answer.endswith(b"\n\n\r\n0\r\n\r\n")


async def test_a_long_read_of_many_channels_names_the_reason(face: Face) -> None:
    channel = await face.create()
    async with asyncio.timeout(10):
        async with face.authorized(short()).read_many([channel.consumer], LONG) as reading:
            parts = [part async for part in reading]
    assert getattr(parts[-1], "code", None) == "TOKEN_EXPIRED"


async def test_a_stream_of_writes_ends_before_the_batch_that_is_too_late(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    writer = grpc.authorized(short())

    async def batches() -> AsyncIterator[pb.PublishRequest]:
        yield pb.PublishRequest(events=[write_request(channel.producer, "s", b"1")])
        await asyncio.sleep(LASTS_S + 0.1)
        yield pb.PublishRequest(events=[write_request(channel.producer, "s", b"2")])

    call = writer.stub.Publish(batches(), metadata=writer.metadata())
    assert isinstance(response := await call.read(), pb.PublishResponse)
    assert [bool(result.event_id) for result in response.results] == [True]
    with pytest.raises(MegaphoneError) as raised, telling_errors():
        await call.read()
    assert raised.value.code == "TOKEN_EXPIRED"
    reader = grpc.authorized(f"Bearer {STATIC}")
    events = await read_all(reader, channel.consumer, ReadOptions(wait_s=0))
    assert [event.body for event in events] == [b"1"]


async def test_reads_with_a_token_that_a_reload_takes_away_end(app: App, face: Face) -> None:
    channel = await face.create()
    shop = face.authorized(f"Bearer {STATIC}")
    reading = asyncio.create_task(read_all(shop, channel.consumer, LONG))

    async def is_open() -> bool:
        return bool(app.metrics.reads_open)

    await eventually(is_open)
    other = Token(sha256=digest_of("mgp_other"), actions=(Action.READ,))
    kept = replace(AUTH, tokens={**AUTH.tokens, "other": other})
    assert await app.reloader.reload(lambda present: replace(present, auth=kept))
    await asyncio.sleep(0.2)
    assert not reading.done()  # its own token has not changed
    without = replace(AUTH, tokens={"other": other})
    assert await app.reloader.reload(lambda present: replace(present, auth=without))
    async with asyncio.timeout(5):
        if face.name == "grpc":
            with pytest.raises(MegaphoneError) as raised:
                await reading
            assert raised.value.code == "UNAUTHENTICATED"
        else:
            assert await reading == []
    with pytest.raises(MegaphoneError) as raised:
        await read_all(shop, channel.consumer, LONG)
    assert raised.value.code == "UNAUTHENTICATED"


@pytest.mark.settings(auth=Auth())
async def test_open_calls_obey_a_requirement_that_a_reload_adds(app: App, face: Face) -> None:
    channel = await face.create()
    reading = asyncio.create_task(read_all(face, channel.consumer, LONG))

    async def is_open() -> bool:
        return bool(app.metrics.reads_open)

    await eventually(is_open)
    assert await app.reloader.reload(lambda present: replace(present, auth=AUTH))
    async with asyncio.timeout(5):
        if face.name == "grpc":
            with pytest.raises(MegaphoneError) as raised:
                await reading
            assert raised.value.code == "UNAUTHENTICATED"
        else:
            assert await reading == []


OF_DEFAULT = "mgp_" + "d" * 43
OF_TWO_TENANTS = Auth(
    tokens={
        "default": Token(sha256=digest_of(OF_DEFAULT), actions=tuple(Action)),
        "other": Token(sha256=digest_of(STATIC), actions=tuple(Action), tenant="other"),
    }
)


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.settings(auth=OF_TWO_TENANTS, tenants={"other": TenantLimits()})
async def test_an_open_read_of_another_tenants_channel_obeys_it_too(
    app: App, face: Face, is_own: bool
) -> None:
    """Nobody has compared the tenants when it began, because reading needed no token."""
    other = face.authorized(f"Bearer {STATIC}")
    maker = other if is_own else face.authorized(f"Bearer {OF_DEFAULT}")
    channel = await maker.create()
    reading = asyncio.create_task(read_all(other, channel.consumer, LONG))

    async def is_open() -> bool:
        return bool(app.metrics.reads_open)

    await eventually(is_open)
    required = replace(OF_TWO_TENANTS, require=tuple(Action))
    assert await app.reloader.reload(lambda present: replace(present, auth=required))
    async with asyncio.timeout(5):
        assert await reading == []
        if is_own:
            await write_numbers(other, channel, [1])
            assert len(await read_all(other, channel.consumer, ReadOptions(limit=1))) == 1
        else:
            with pytest.raises(MegaphoneError) as raised:
                await read_all(other, channel.consumer, LONG)
            assert raised.value.code == "NOT_FOUND"


@pytest.mark.parametrize("expects", [True, False])
@pytest.mark.settings(auth=Auth())
async def test_a_request_obeys_it_whose_body_comes_later(
    app: App, http: HttpFace, expects: bool
) -> None:
    """One that says `Expect: 100-continue` is known to have begun. The lane waits for others."""
    channel = await http.create()
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    expect = "Expect: 100-continue\r\n" if expects else ""
    writer.write(
        f"POST /write/{channel.producer}/s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{expect}"
        "Content-Type: application/json\r\n\r\n".encode()
    )
    async with asyncio.timeout(10):
        if expects:
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        assert await app.reloader.reload(lambda present: replace(present, auth=AUTH))
        writer.write(b"11")
        assert b" 401 " in await reader.readline()
    writer.close()


CERTIFICATES = {"ops": ClientCertificates(names=("ops",), actions=(Action.WRITE,))}


@pytest.mark.settings(auth=Auth())
@pytest.mark.parametrize("certificates", [{}, CERTIFICATES], ids=["tokens", "certificates"])
@pytest.mark.parametrize("has_token", [False, True])
async def test_a_stream_of_writes_obeys_it_too(
    app: App, grpc: GrpcFace, certificates: dict[str, ClientCertificates], has_token: bool
) -> None:
    channel = await grpc.create()
    writer = grpc.authorized(f"Bearer {STATIC}") if has_token else grpc

    async def batches() -> AsyncIterator[pb.PublishRequest]:
        yield pb.PublishRequest(events=[write_request(channel.producer, "s", b"1")])
        await begun.wait()
        for body in (b"2", b"3") if has_token else (b"2",):
            yield pb.PublishRequest(events=[write_request(channel.producer, "s", body)])

    begun = asyncio.Event()
    call = writer.stub.Publish(batches(), metadata=writer.metadata())
    assert isinstance(response := await call.read(), pb.PublishResponse)
    assert response.results[0].event_id
    auth = replace(AUTH, certificates=certificates)
    assert await app.reloader.reload(lambda present: replace(present, auth=auth))
    begun.set()
    if has_token:
        for _ in range(2):
            assert isinstance(response := await call.read(), pb.PublishResponse)
            assert response.results[0].event_id
        return
    with pytest.raises(MegaphoneError) as raised, telling_errors():
        await call.read()
    assert raised.value.code == "UNAUTHENTICATED"
