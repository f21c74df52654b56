"""Who may do what is the same through both faces: each refused call gets the same code, and changes
nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc.aio
import pytest
from multidict import CIMultiDict

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.core.access import Action
from megaphone.errors import MegaphoneError
from megaphone.model import NewEvent, ReadOptions
from megaphone.settings import Auth, Issuer, Token
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.faces import (
    WRITE_FAILED,
    Created,
    Done,
    Face,
    GrpcFace,
    HttpFace,
    http_error,
    read_all,
    telling_errors,
    write_request,
)
from tests.support.issuer import AUDIENCE, SECRET, claims, secret, token

pytestmark = pytest.mark.timeout(60)

ALL = tuple(Action)
READY = ReadOptions(wait_s=0)
ROOT = "mgp_" + "r" * 43


def without(action: Action) -> str:
    """Return the token that allows everything but one action."""
    return f"mgp_{action.value:_<43}"


TOKENS = {
    "root": Token(sha256=digest_of(ROOT), actions=ALL),
    **{
        f"without_{action.value}": Token(
            sha256=digest_of(without(action)),
            actions=tuple(one for one in ALL if one is not action),
        )
        for action in ALL
    },
}
ISSUER = Issuer(issuer="main", audience=AUDIENCE, secret=SECRET, leeway_secs=0)
AUTH = Auth(require=ALL, tokens=TOKENS, issuers={"main": ISSUER})
WITH_AUTH = pytest.mark.settings(auth=AUTH)


def jwt(**changes: Any) -> str:
    """Return a token of the issuer that allows everything."""
    scope = " ".join(f"megaphone:{action}" for action in Action)
    return token(claims(iss="main", scope=scope, **changes), secret(), "HS256")


Call = Callable[[Any, Created], Awaitable[object]]


async def publish(face: GrpcFace, channel: Created) -> None:
    """Write by a stream. A client of grpc.aio that still writes when it is refused may lose the
    answer, and then says that itself is at fault: then there is nothing to do but to try again."""
    while True:
        try:
            await face.publish([write_request(channel.producer, "s", b"1")])
        except grpc.aio.AioRpcError as error:
            if WRITE_FAILED not in (error.debug_error_string() or ""):
                raise
        else:
            return


async def read(face: Face, channel: Created) -> None:
    await read_all(face, channel.consumer, READY)


async def read_many(face: Face, channel: Created) -> None:
    async with face.read_many([channel.consumer], READY) as reading:
        async for _ in reading:
            pass


async def probe(face: HttpFace, path: str) -> None:
    async with face.session.get(face.url(path), headers=face.more) as response:
        if response.status != 200:
            raise await http_error(response)


CALLS: Mapping[str, tuple[Action, Call]] = {
    "create": (Action.CREATE, lambda face, channel: face.create()),
    "write": (Action.WRITE, lambda face, channel: face.write(channel.producer, "s", b"1")),
    "write_large": (
        Action.WRITE,
        lambda face, channel: face.write(channel.producer, "s", b'"%b"' % (b"x" * 200_000)),
    ),
    "batch": (
        Action.WRITE,
        lambda face, channel: face.write_batch([channel.producer], [NewEvent("s", b"1")]),
    ),
    "publish": (Action.WRITE, publish),
    "read": (Action.READ, read),
    "read_many": (Action.READ, read_many),
    "ack": (Action.ACK, lambda face, channel: face.acknowledge(channel.consumer, "x" * 23)),
    "exists": (Action.EXISTS, lambda face, channel: face.exists([channel.consumer])),
    "metrics": (Action.METRICS, lambda face, channel: probe(face, "/metrics")),
    "agents": (Action.METRICS, lambda face, channel: probe(face, "/agents")),
    "dispose": (Action.DISPOSE, lambda face, channel: face.dispose(channel.producer)),
}
ONLY: Mapping[str, str] = {"publish": "grpc", "metrics": "http", "agents": "http"}
"""The calls that only one face has."""


def calls_of(face: Face) -> Mapping[str, tuple[Action, Call]]:
    return {name: call for name, call in CALLS.items() if ONLY.get(name, face.name) == face.name}


async def code_of(call: Awaitable[object]) -> str:
    try:
        await call
    except MegaphoneError as error:
        return error.code
    return "OK"


@WITH_AUTH
async def test_every_call_needs_its_action(app: App, face: Face) -> None:
    root = face.authorized(f"Bearer {ROOT}")
    channel = await root.create()
    for name, (action, call) in calls_of(face).items():
        proofs = {
            None: "UNAUTHENTICATED",
            "Basic c2hvcDpzaG9w": "UNAUTHENTICATED",
            f"Bearer mgp_{'u' * 43}": "UNAUTHENTICATED",
            "Bearer ": "UNAUTHENTICATED",
            f"Bearer {without(action)}": "PERMISSION_DENIED",
            f"Bearer {jwt(exp=time.time() - 60)}": "TOKEN_EXPIRED",
            f"Bearer {jwt(aud='https://another.example')}": "UNAUTHENTICATED",
        }
        for proof, code in proofs.items():
            for _ in range(2):  # the second time the caller may be known
                got = await code_of(call(face.authorized(proof), channel))
                assert got == code, (name, proof)
    assert len(await app.admin.list_channels(0, 10)) == 1
    assert await read_all(root, channel.consumer, READY) == []


@WITH_AUTH
async def test_the_right_token_is_admitted_and_then_known(face: Face) -> None:
    channel = await face.authorized(f"Bearer {ROOT}").create()
    for name, (action, call) in calls_of(face).items():
        spelled = f"bearer  {ROOT}" if action is Action.ACK else f"Bearer {ROOT}"
        for proof in (spelled, spelled, spelled, f"Bearer {jwt()}"):
            used = (
                channel if name != "dispose" else await face.authorized(f"Bearer {ROOT}").create()
            )
            assert await code_of(call(face.authorized(proof), used)) == "OK", name


@pytest.mark.settings(auth=Auth(require=(Action.CREATE,), tokens={"root": TOKENS["root"]}))
async def test_what_is_not_required_is_open_to_all(face: Face) -> None:
    assert await code_of(face.create()) == "UNAUTHENTICATED"
    channel = await face.authorized(f"Bearer {ROOT}").create()
    for name, (action, call) in calls_of(face).items():
        if action is not Action.CREATE:
            assert await code_of(call(face, channel)) == "OK", name
            # Somebody who presents a token wants to know that it is wrong.
            wrong = face.authorized(f"Bearer mgp_{'u' * 43}")
            assert await code_of(call(wrong, channel)) == "UNAUTHENTICATED", name


async def test_without_configuration_tokens_are_ignored(face: Face) -> None:
    channel = await face.create()
    for name, (_, call) in calls_of(face).items():
        wrong = face.authorized(f"Bearer mgp_{'u' * 43}")
        assert await code_of(call(wrong, channel)) == "OK", name


@pytest.mark.settings(
    auth=Auth(
        require=(Action.WRITE, Action.READ),
        tokens={
            "shop": Token(
                sha256=digest_of(ROOT),
                actions=(Action.WRITE, Action.READ),
                streams=("news", "orders.*"),
            )
        },
    )
)
async def test_streams(face: Face) -> None:
    channel = await face.create()
    shop = face.authorized(f"Bearer {ROOT}")
    await shop.write(channel.producer, "news", b"1")
    await shop.write(channel.producer, "orders.eu", b"2")
    news, other = NewEvent("news", b"3"), NewEvent("other", b"4")
    refused = [
        shop.write(channel.producer, "other", b"4"),
        shop.write_batch([channel.producer], [news, other]),
        read_all(shop, channel.consumer, READY),
        read_all(shop, channel.consumer, ReadOptions(wait_s=0, streams=frozenset({"other"}))),
    ]
    for call in refused:
        assert await code_of(call) == "PERMISSION_DENIED"
    if isinstance(shop, GrpcFace):
        [answer] = await shop.publish(
            [write_request(channel.producer, stream, b"5") for stream in ("news", "other")]
        )
        assert [one.reason for one in answer.results] == ["", "PERMISSION_DENIED"]
    wanted = ReadOptions(wait_s=0, streams=frozenset({"news", "orders.eu"}))
    events = await read_all(shop, channel.consumer, wanted)
    assert [event.body for event in events] == [b"1", b"2", b"5"][: 3 if face.name == "grpc" else 2]


SHOP, OTHER = "mgp_" + "s" * 43, "mgp_" + "o" * 43
TENANTS = {
    "shop": Token(sha256=digest_of(SHOP), actions=ALL, tenant="shop"),
    "other": Token(sha256=digest_of(OTHER), actions=ALL, tenant="other"),
}
WITH_TENANTS = pytest.mark.settings(auth=Auth(require=ALL, tokens=TENANTS))


@WITH_TENANTS
async def test_the_channels_of_other_tenants_do_not_exist(app: App, face: Face) -> None:
    """The same error as for a channel that has expired, so that nobody learns that it is there."""
    shop, other = (face.authorized(f"Bearer {token}") for token in (SHOP, OTHER))
    channel = await shop.create()
    before = await shop.write(channel.producer, "s", b"0")
    missing = await shop.create()
    await app.admin.dispose(missing.consumer)
    for name, (_, call) in calls_of(face).items():
        if name in ("write", "write_large", "read", "ack", "dispose"):
            assert await code_of(call(other, channel)) == "NOT_FOUND", name
    for caller, one in ((other, channel), (shop, missing)):
        failures = await caller.write_batch([one.producer], [NewEvent("s", b"1")])
        assert [failure.reason for failure in failures] == ["NOT_FOUND"]
        assert await caller.exists([one.consumer, one.producer]) == {
            one.consumer: False,
            one.producer: False,
        }
        async with caller.read_many([one.consumer], READY) as reading:
            assert [part async for part in reading] == [Done(0, "NOT_FOUND")]
        if isinstance(caller, GrpcFace):
            [answer] = await caller.publish([write_request(one.producer, "s", b"1")])
            assert [result.reason for result in answer.results] == ["NOT_FOUND"]
    assert await shop.exists([channel.consumer]) == {channel.consumer: True}
    assert [one.event_id for one in await read_all(shop, channel.consumer, READY)] == [before]


@pytest.mark.settings(auth=Auth(require=(Action.CREATE,), tokens=TENANTS))
async def test_where_an_action_needs_no_token_it_finds_every_channel(face: Face) -> None:
    channel = await face.authorized(f"Bearer {SHOP}").create()
    for caller in (face, face.authorized(f"Bearer {OTHER}")):
        for name, (action, call) in calls_of(face).items():
            if action not in (Action.CREATE, Action.DISPOSE):
                assert await code_of(call(caller, channel)) == "OK", name
        assert await caller.exists([channel.consumer]) == {channel.consumer: True}


@pytest.mark.settings(
    auth=Auth(require=ALL, tokens=TENANTS), buffer_capacity=1, write_timeout_millis=100
)
async def test_a_full_channel_of_another_tenant_does_not_exist_either(face: Face) -> None:
    shop, other = (face.authorized(f"Bearer {token}") for token in (SHOP, OTHER))
    channel = await shop.create()
    await shop.write(channel.producer, "s", b"0")
    assert await code_of(shop.write(channel.producer, "s", b"1")) == "TIMEOUT"
    assert await code_of(other.write(channel.producer, "s", b"1")) == "NOT_FOUND"
    failures = await other.write_batch([channel.producer], [NewEvent("s", b"1")], "key")
    assert [failure.reason for failure in failures] == ["NOT_FOUND"]


@WITH_AUTH
async def test_two_proofs_are_none_that_is_valid(app: App, http: HttpFace, grpc: GrpcFace) -> None:
    for code in await both_with_two(app, http, grpc):
        assert code == "UNAUTHENTICATED"


async def both_with_two(app: App, http: HttpFace, grpc: GrpcFace) -> list[str]:
    right, wrong = f"Bearer {ROOT}", f"Bearer mgp_{'u' * 43}"
    codes = []
    for pair in ((right, wrong), (wrong, right), (right, right)):
        doubled = GrpcFace(grpc.channel, tuple(("authorization", proof) for proof in pair))
        codes.append(await code_of(doubled.create()))
        headers = CIMultiDict([("Authorization", proof) for proof in pair])
        async with http.session.post(http.url("/create"), headers=headers) as response:
            codes.append((await response.json())["code"])
    return codes


@WITH_AUTH
async def test_a_body_that_nobody_may_send_is_not_awaited(http: HttpFace, app: App) -> None:
    """The client announces a body and sends none of it, and gets its answer all the same."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    writer.write(
        b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n"
    )
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Bearer realm="megaphone"\r\n' in head


@WITH_AUTH
async def test_a_message_that_nobody_may_send_is_not_awaited(grpc: GrpcFace) -> None:
    async def never() -> Any:
        await asyncio.Event().wait()
        yield pb.WriteRequest()

    for metadata in ((), (("authorization", "Bearer x"),)):
        face = GrpcFace(grpc.channel, metadata)
        call = face.channel.stream_unary(
            "/megaphone.v1.ChannelService/Write",
            request_serializer=pb.WriteRequest.SerializeToString,
            response_deserializer=pb.WriteResponse.FromString,
        )(never(), metadata=metadata, timeout=5)
        with pytest.raises(MegaphoneError) as raised, telling_errors():
            await call
        assert raised.value.code == "UNAUTHENTICATED"
