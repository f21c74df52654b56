"""A fault of the broker within the lane, and connections that are busy when the node stops."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from megaphone.core.budget import Budget
from megaphone.listen.sockets import listen_tcp
from megaphone.model import Endpoint, NewEvent
from megaphone.rest.connection.answer_bytes import CREATED_LINE, with_json
from megaphone.rest.connection.protocol import Answering, Later, Outcome, Write
from megaphone.rest.server import HttpServer
from tests.support.connections import answer_of
from tests.support.raw_http import Broken, Connection, Node, request_of

pytestmark = pytest.mark.timeout(20)


class NeverWrites:
    def complete(self, outcomes: list[Outcome]) -> None:
        pass


class FailsAtOnce(NeverWrites):
    def answer(self, data: bytes) -> Outcome:
        raise RuntimeError("at once")


class FailsInTheWrite:
    def answer(self, data: bytes) -> Outcome:
        return Write("address", NewEvent("s", b"1"))

    def complete(self, outcomes: list[Outcome]) -> None:
        raise RuntimeError("in the write")


class FailsLater(NeverWrites):
    def answer(self, data: bytes) -> Outcome:
        return Later(self._fail())

    async def _fail(self) -> Iterator[bytes]:
        await asyncio.sleep(0)
        raise RuntimeError("later")


class AnswersWhenTold(NeverWrites):
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.told = asyncio.Event()

    def answer(self, data: bytes) -> Outcome:
        return Later(self._wait())

    async def _wait(self) -> Iterator[bytes]:
        self.begun.set()
        await self.told.wait()
        return iter([with_json(CREATED_LINE, b"{}")])


@pytest.fixture
async def lane(request: pytest.FixtureRequest) -> Answering:
    kind: type[Answering] = request.param
    return kind()


@pytest.fixture
async def server(lane: Answering) -> HttpServer:
    return HttpServer([], budget=Budget(), max_body_bytes=1_000, lane=lane)


@pytest.fixture
async def node(server: HttpServer) -> AsyncIterator[Node]:
    port = await server.start(listen_tcp(Endpoint("127.0.0.1", 0)))
    yield Node(port, 0)
    await server.stop()


@pytest.mark.parametrize("lane", [FailsAtOnce, FailsInTheWrite, FailsLater], indirect=True)
async def test_a_fault_is_answered_and_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    connection = await Connection.open(node)
    with caplog.at_level(logging.ERROR):
        head, body = await answer_of(connection, request_of("POST", "/create"))
    assert (head.status, json.loads(body)["code"]) == (500, "INTERNAL_SERVER_ERROR")
    assert head.headers["connection"] == "close"
    with pytest.raises(Broken):
        await connection.receive()
    connection.close()
    [record] = caplog.records
    assert record.exc_info is not None


@pytest.mark.parametrize("lane", [AnswersWhenTold], indirect=True)
async def test_a_stop_waits_for_a_request_and_no_longer(
    node: Node, server: HttpServer, lane: AnswersWhenTold
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/create"))
    await lane.begun.wait()
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    lane.told.set()
    head, _ = await answer_of(connection)
    assert head.status == 201
    with pytest.raises(Broken):
        await connection.receive()
    connection.close()
    async with asyncio.timeout(0.5):  # the connections that are still busy would have a second
        await stopping
