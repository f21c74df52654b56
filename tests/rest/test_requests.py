"""Bodies that are being received: how much memory and time they may take."""

import asyncio
import gzip
import json
import random
from contextlib import ExitStack

import pytest

from megaphone.app import App
from megaphone.model import ReadOptions
from megaphone.rest import requests
from megaphone.rest.connection import guest
from tests.support.connections import connected, metric
from tests.support.faces import Created, HttpFace, read_all
from tests.support.raw_http import (
    JSON,
    Broken,
    Connection,
    Node,
    receive_answer,
    receive_head,
    request_of,
)
from tests.support.scenes import eventually

BUDGET = 5_000_000
SHORT_S = 0.2
SIZE = 500_000
REQUESTS_OF_THEM = BUDGET // 5 // SIZE
"""How many incomplete bodies of this size may take memory at once."""
pytestmark = pytest.mark.settings(max_buffered_bytes=BUDGET)


@pytest.fixture
def node(app: App) -> Node:
    return Node(app.http_port, app.grpc_port)


def write_of(channel: Created) -> bytes:
    body = b'"' + b"x" * (SIZE - 2) + b'"'
    return request_of("POST", f"/write/{channel.producer}/s", body, JSON)


async def begin(node: Node, request: bytes, sent: int) -> Connection:
    """Send the first part of a request."""
    connection = await Connection.open(node)
    await connection.send(request[:sent])
    return connection


async def used(app: App) -> int:
    return await metric(app, "megaphone_buffered_bytes")


async def test_unfinished_bodies_take_no_more_than_their_part(
    app: App, http: HttpFace, node: Node
) -> None:
    channel = await http.create()
    before = await used(app)
    request = write_of(channel)
    with ExitStack() as connections:
        for number in range(1, 1 + REQUESTS_OF_THEM):
            connection = await begin(node, request, len(request) - 1)
            connections.callback(connection.close)

            async def is_counted(number: int = number) -> bool:
                return await used(app) > before + number * (SIZE - 10_000)

            await eventually(is_counted)
        refused = await begin(node, request, len(request) - 1)
        connections.callback(refused.close)
        head = await receive_head(refused)
        assert (head.status, head.headers["retry-after"]) == (429, "1")
        # Small bodies, and bodies that come with their headers, are still accepted.
        await http.write(channel.producer, "s", b"1")
        small = request_of("POST", f"/write/{channel.producer}/s", b"2", JSON)
        in_two = await begin(node, small, len(small) - 1)
        connections.callback(in_two.close)
        await in_two.send(small[-1:])
        assert (await receive_answer(in_two))["status"] == "OK"

    async def is_given_back() -> bool:
        return await used(app) < before + 10_000

    await eventually(is_given_back)
    events = await read_all(http, channel.consumer, ReadOptions(wait_s=0))
    assert [event.body for event in events] == [b"1", b"2"]


async def test_a_body_that_comes_to_its_end_is_taken(app: App, http: HttpFace, node: Node) -> None:
    channel = await http.create()
    request = write_of(channel)
    connection = await begin(node, request, len(request) // 2)
    await connection.send(request[len(request) // 2 :])
    assert (await receive_answer(connection))["status"] == "OK"
    connection.close()
    # It counts as an event now, and not as a body any more.
    assert SIZE < await used(app) < SIZE + 10_000


async def test_the_inflated_part_of_an_incomplete_body_counts(
    app: App, http: HttpFace, node: Node
) -> None:
    channel = await http.create()
    before = await used(app)
    zipped = gzip.compress(b'"' + random.Random(1).randbytes(SIZE // 2).hex().encode() + b'"')
    headers = JSON | {"Content-Encoding": "gzip"}
    request = request_of("POST", f"/write/{channel.producer}/s", zipped, headers)
    connection = await begin(node, request, len(request) - 10)

    async def all_but_the_end_counts() -> bool:
        return await used(app) > before + SIZE - 10_000

    await eventually(all_but_the_end_counts)
    connection.close()

    async def is_given_back() -> bool:
        return await used(app) == before

    await eventually(is_given_back)


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "LINGERING_S", 1.0)


@pytest.mark.settings(max_body_bytes=1_000_000)
async def test_a_refused_client_that_goes_on_sending_sees_the_answer_and_then_the_end(
    lingering: None, http: HttpFace, node: Node
) -> None:
    channel = await http.create()
    size = 20_000_000
    head = request_of(
        "POST", f"/write/{channel.producer}/s", b"", JSON | {"Content-Length": str(size)}
    )
    connection = await begin(node, head, len(head))
    await connection.send(b"1" * size)  # more than the buffers of both kernels hold
    answer = await receive_head(connection)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    await connection.receive_exactly(int(answer.headers["content-length"]))
    async with asyncio.timeout(5):
        with pytest.raises(Broken):
            await connection.receive()
    connection.close()


async def test_a_body_that_does_not_arrive_is_answered(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", SHORT_S)
    promised = {"Content-Type": "application/json", "Content-Length": "9"}
    async with connected(app) as [connection], asyncio.timeout(5):
        await connection.send(request_of("POST", "/channelsExists", headers=promised) + b"{")
        answer = await receive_head(connection)
        body = await connection.receive_exactly(int(answer.headers["content-length"]))
    assert answer.status == 408
    assert json.loads(body)["code"] == "TOO_SLOW"
    assert answer.headers["connection"] == "close"
