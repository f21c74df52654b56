"""The number of messages that gRPC receives at once is limited, and slow clients give way."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from megaphone.app import App
from megaphone.model import ReadOptions
from megaphone.rpc import requests
from tests.support.faces import GrpcFace, read_all
from tests.support.raw_grpc import unfinished_call
from tests.support.raw_http import Node

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
