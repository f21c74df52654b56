"""The number of messages that gRPC receives at once is limited, and slow clients give way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, insecure_channel

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.core.access import Caller, Peer
from megaphone.errors import MegaphoneError
from megaphone.model import Action, ReadOptions
from megaphone.rpc import requests
from megaphone.settings import Auth, Issuer, Token
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.faces import GrpcFace, read_all, telling_errors
from tests.support.issuer import AUDIENCE, claims, token
from tests.support.raw_grpc import unfinished_call
from tests.support.raw_http import Node
from tests.support.scenes import eventually

WRITE = "/megaphone.v1.ChannelService/Write"
SIZE = 500_000
FEWEST = requests.FEWEST_AT_ONCE
pytestmark = pytest.mark.settings(max_buffered_bytes=4_000_000, buffer_capacity=200)
"""So little memory that only the smallest number of messages is received at once."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PATIENCE_S", 0.3)
    monkeypatch.setattr(requests, "PATIENCE_CHECK_S", 0.05)


@pytest.fixture
def node(app: App) -> Node:
    return Node(app.http_port, app.grpc_port)


async def test_more_calls_than_are_received_at_once_have_their_turn(grpc: GrpcFace) -> None:
    channel = await grpc.create()
    body = b'"' + b"x" * 10_000 + b'"'
    await asyncio.gather(*(grpc.write(channel.producer, "s", body) for _ in range(20 * FEWEST)))
    events = await read_all(grpc, channel.consumer, ReadOptions(wait_s=0))
    assert len(events) == 20 * FEWEST


async def test_clients_that_stop_sending_do_not_keep_others_out(grpc: GrpcFace, node: Node) -> None:
    channel = await grpc.create()
    async with AsyncExitStack() as calls:
        for _ in range(3 * FEWEST):
            await calls.enter_async_context(unfinished_call(node, WRITE, SIZE, sent=10_000))
        async with asyncio.timeout(10):
            for _ in range(3):
                await grpc.write(channel.producer, "s", b"1")


async def test_a_client_that_stops_sending_is_waited_for_while_no_other_needs_its_place(
    grpc: GrpcFace, node: Node
) -> None:
    channel = await grpc.create()
    async with unfinished_call(node, WRITE, SIZE, sent=10_000):
        for _ in range(3 * FEWEST):
            await grpc.write(channel.producer, "s", b"1")


async def test_calls_that_are_cancelled_give_up_their_places(
    app: App, grpc: GrpcFace, node: Node
) -> None:
    channel = await grpc.create()
    for _ in range(3 * FEWEST):
        async with unfinished_call(node, WRITE, SIZE, sent=10_000):
            pass
    await grpc.write(channel.producer, "s", b"1")


# -- Calls whose caller is not known yet

TOKEN = "mgp_" + "t" * 43
TOKENS = {"shop": Token(sha256=digest_of(TOKEN), actions=tuple(Action))}


async def code_of_create(face: GrpcFace) -> str:
    try:
        await face.create()
    except MegaphoneError as error:
        return error.code
    return "OK"


async def test_calls_that_wait_to_be_admitted_take_no_place(
    app: App, grpc: GrpcFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, asked = app.doorkeeper.admit, 0

    async def counted(proof: str | None, peer: Peer) -> Caller:
        nonlocal asked
        asked += 1
        return await admit(proof, peer)

    monkeypatch.setattr(app.doorkeeper, "admit", counted)
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/keys"
    issuers = {"away": Issuer(issuer="away", audience=AUDIENCE, jwks_url=url)}
    auth = Auth(require=tuple(Action), tokens=TOKENS, issuers=issuers)
    assert await app.reloader.reload(lambda present: replace(present, auth=auth))
    known, forged = (grpc.authorized(f"Bearer {one}") for one in (TOKEN, token(claims(iss="away"))))
    assert await code_of_create(known) == "OK"
    waiting = [asyncio.create_task(code_of_create(forged)) for _ in range(3 * FEWEST)]

    async def all_wait() -> bool:
        return asked == 1 + len(waiting)

    await eventually(all_wait)
    async with asyncio.timeout(3):
        assert await code_of_create(known) == "OK"
    assert not any(task.done() for task in waiting)
    silent.close()
    for writer in writers:
        writer.close()
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(*waiting)) == {"KEYS_UNAVAILABLE"}


async def test_an_admitted_client_that_does_not_send_hears_why_its_call_ends(
    app: App, grpc: GrpcFace
) -> None:
    auth = Auth(require=tuple(Action), tokens=TOKENS)
    assert await app.reloader.reload(lambda present: replace(present, auth=auth))
    known = grpc.authorized(f"Bearer {TOKEN}")
    assert await code_of_create(known) == "OK"

    async def never() -> AsyncIterator[pb.WriteRequest]:
        await asyncio.Event().wait()
        yield pb.WriteRequest()

    write = grpc.channel.stream_unary(
        WRITE,
        request_serializer=pb.WriteRequest.SerializeToString,
        response_deserializer=pb.WriteResponse.FromString,
    )
    # The node remembers the token with another spelling, so it admits these calls one by one.
    calls = [
        write(never(), metadata=(("authorization", f"bearer {TOKEN}"),)) for _ in range(FEWEST)
    ]
    for call in calls:
        await call.wait_for_connection()
    async with asyncio.timeout(10):
        while not all(call.done() for call in calls):
            assert await code_of_create(known) == "OK"
    for call in calls:
        with pytest.raises(MegaphoneError) as raised, telling_errors():
            await call
        assert raised.value.code == "TOO_SLOW"


async def silent() -> AsyncIterator[bytes]:
    """Send no message."""
    await asyncio.Event().wait()
    yield b""


@pytest.mark.parametrize("method", ["Write", "Read"])
@pytest.mark.parametrize(
    "metadata", [(), (("authorization", f"Bearer {TOKEN}"),)], ids=["nobody", "token"]
)
@pytest.mark.settings(auth=Auth(tokens=TOKENS))
async def test_a_call_without_a_message_is_refused_in_the_end(
    app: App,
    grpc: GrpcFace,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    metadata: tuple[tuple[str, str], ...],
) -> None:
    monkeypatch.setattr(requests, "MESSAGE_TIMEOUT_S", 0.3)
    async with insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
        for _ in range(2):  # the second one with a token that is known
            call: Any = connection.stream_unary(f"/megaphone.v1.ChannelService/{method}")
            async with asyncio.timeout(10):
                with pytest.raises(AioRpcError) as refused:
                    await call(silent(), metadata=metadata)
            assert refused.value.code() is StatusCode.ABORTED
            assert refused.value.details() == "the message did not arrive within 0.3 s"
    counted = app.metrics.grpc.by_method[method.lower()]
    assert (counted.ok, {code: n for code, n in counted.failed.items() if n}) == (
        0,
        {"TOO_SLOW": 2},
    )
    channel = await grpc.create()
    await grpc.write(channel.producer, "s", b"1")


async def test_a_stream_may_be_silent(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MESSAGE_TIMEOUT_S", 0.1)
    async with insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
        publish: Any = connection.stream_stream("/megaphone.v1.ChannelService/Publish")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await publish(silent()).read()
