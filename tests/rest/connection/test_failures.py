"""A fault of the broker within the lane, clients that send much or read late, and connections that
are busy when the node stops."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress

import pytest
from aiohttp import web

from megaphone.app import App
from megaphone.core.access import ANYONE, Names
from megaphone.core.budget import Budget
from megaphone.core.writing import Write
from megaphone.listen.sockets import listen_tcp
from megaphone.model import Endpoint, Event, NewEvent, ReadOptions
from megaphone.observe.calls import FaceCalls
from megaphone.rest import server as http_server
from megaphone.rest.connection.answer_bytes import CREATED_LINE, with_json
from megaphone.rest.connection.protocol import (
    Answering,
    Begun,
    Failed,
    Later,
    Outcome,
    Unanswered,
)
from megaphone.rest.connection.stream import Framing
from megaphone.rest.reads import stream_events
from megaphone.rest.server import HttpServer
from tests.support.connections import answer_of
from tests.support.raw_http import Broken, Connection, Node, request_of

pytestmark = pytest.mark.timeout(20)

LARGE_BYTES = 16 * 1024 * 1024
"""More than the sockets of both ends hold."""


class NeverWrites:
    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        pass


class FailsAtOnce(NeverWrites):
    def answer(self, data: bytes, names: Names) -> Outcome:
        raise RuntimeError("at once")


class FailsInTheWrite:
    def answer(self, data: bytes, names: Names) -> Outcome:
        return Write(ANYONE, "address", NewEvent("s", b"1"))

    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        raise RuntimeError("in the write")


class FailsLater(NeverWrites):
    def answer(self, data: bytes, names: Names) -> Outcome:
        return Later(self._fail())

    async def _fail(self) -> Iterator[bytes]:
        await asyncio.sleep(0)
        raise RuntimeError("later")


class AnswersWhenTold(NeverWrites):
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.told = asyncio.Event()

    def answer(self, data: bytes, names: Names) -> Outcome:
        return Later(self._wait())

    async def _wait(self) -> Iterator[bytes]:
        self.begun.set()
        await self.told.wait()
        return iter([with_json(CREATED_LINE, b"{}")])


class Begins:
    """Begins a write for each request, and ends it when the test says so."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[Begun] = asyncio.Queue()

    def answer(self, data: bytes, names: Names) -> Outcome:
        return Write(ANYONE, "address", NewEvent("s", b"1"))

    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        for number in range(len(outcomes)):
            outcomes[number] = begun = Begun()
            self.begun.put_nowait(begun)

    async def end(self, outcome: Outcome) -> None:
        (await self.begun.get()).conclude(outcome)


@pytest.fixture
async def lane(request: pytest.FixtureRequest) -> Answering:
    kind: type[Answering] = request.param
    return kind()


@pytest.fixture
def calls() -> FaceCalls:
    return FaceCalls()


@pytest.fixture
async def server(lane: Answering, calls: FaceCalls) -> HttpServer:
    return HttpServer([], budget=Budget(), max_body_bytes=1_000, lane=lane, calls=calls)


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


@pytest.mark.parametrize(
    ("lane", "method"), [(FailsAtOnce, "other"), (FailsInTheWrite, "write")], indirect=["lane"]
)
async def test_a_fault_is_counted(node: Node, calls: FaceCalls, method: str) -> None:
    connection = await Connection.open(node)
    await answer_of(connection, request_of("POST", "/create"))
    connection.close()
    assert failed(calls) == {(method, "INTERNAL_SERVER_ERROR"): 1}


async def test_a_fault_behind_the_lane_is_counted() -> None:
    async def fails(request: web.Request) -> web.StreamResponse:
        raise RuntimeError("behind the lane")

    calls = FaceCalls()
    routes = [web.post("/create", fails)]
    server = HttpServer(routes, budget=Budget(), max_body_bytes=1_000, calls=calls)
    connection = await Connection.open(
        Node(await server.start(listen_tcp(Endpoint("127.0.0.1", 0))), 0)
    )
    head, _ = await answer_of(connection, request_of("POST", "/create"))
    assert head.status == 500
    connection.close()
    await server.stop()
    assert failed(calls) == {("create", "INTERNAL_SERVER_ERROR"): 1}


def failed(calls: FaceCalls) -> dict[tuple[str, str], int]:
    """Return how many calls have failed, by method and code."""
    return {
        (one.method, code): count
        for one in calls.by_method.values()
        for code, count in one.failed.items()
        if count
    }


async def until_broken(connection: Connection) -> None:
    with suppress(Broken):
        while True:
            await connection.receive()


@pytest.mark.timeout(40)
async def test_a_fault_in_an_open_read_breaks_and_counts_it(app: App) -> None:
    def fails(events: Sequence[Event]) -> list[bytes]:
        raise RuntimeError("in an open read")

    channel = await app.broker.create(ANYONE)

    async def read(request: web.Request) -> web.StreamResponse:
        options = ReadOptions()
        reader = await app.broker.open_read(ANYONE, channel.consumer_address, options)
        framing = Framing("text/plain", heartbeat=b"", events=fails)
        stream_events(request, reader, framing, {}, options)

    server = HttpServer([web.get("/read", read)], budget=Budget(), max_body_bytes=1_000)
    connection = await Connection.open(
        Node(await server.start(listen_tcp(Endpoint("127.0.0.1", 0))), 0)
    )
    await connection.send(request_of("GET", "/read"))
    await connection.receive()
    await app.broker.write(ANYONE, channel.producer_address, NewEvent("s", b"1"))
    await until_broken(connection)
    connection.close()
    await server.stop()
    assert {end: count for end, count in app.metrics.reads_ended.items() if count} == {"failed": 1}


@pytest.mark.parametrize("lane", [AnswersWhenTold], indirect=True)
async def test_a_stop_waits_for_a_request_and_no_longer(
    node: Node, server: HttpServer, lane: AnswersWhenTold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "STOP_TIMEOUT_S", 20.0)
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
    async with asyncio.timeout(10):  # the connections that are still busy would have longer
        await stopping


@pytest.mark.parametrize("lane", [Begins], indirect=True)
async def test_requests_behind_one_that_was_begun_wait_for_their_turn(
    node: Node, lane: Begins
) -> None:
    connection = await Connection.open(node)
    request = request_of("POST", "/create")
    await connection.send(request)
    first = await lane.begun.get()
    await connection.send(request)
    await turns(node, lane)
    first.conclude(with_json(CREATED_LINE, b"1"))
    assert (await answer_of(connection))[1] == b"1"
    await lane.end(with_json(CREATED_LINE, b"2"))
    assert (await answer_of(connection))[1] == b"2"
    connection.close()


@pytest.mark.parametrize("lane", [Begins], indirect=True)
async def test_a_client_that_sends_much_behind_a_request_is_read_again_later(
    node: Node, lane: Begins
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/create"))
    first = await lane.begun.get()
    # Without bodies: an answer before the end of a body would be the last on its connection.
    many = request_of("GET", "/nowhere", headers={"X-Long": "x" * 900}) * 500
    sending = asyncio.create_task(connection.send(many))
    await turns(node, lane)
    first.conclude(with_json(CREATED_LINE, b"1"))
    assert (await answer_of(connection))[1] == b"1"
    await lane.end(Unanswered(is_whole=False))
    for _ in range(500):
        assert (await answer_of(connection))[0].status == 404
    await sending
    connection.close()


@pytest.mark.parametrize("lane", [Begins], indirect=True)
async def test_a_client_that_reads_a_large_answer_late_is_read_again(
    node: Node, lane: Begins
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/create"))
    first = await lane.begun.get()
    await connection.send(request_of("GET", "/nowhere"))
    await turns(node, lane)
    large = b"1" * LARGE_BYTES
    first.conclude(with_json(CREATED_LINE, large))
    await lane.end(Unanswered(is_whole=False))
    await turns(node, lane)
    assert (await answer_of(connection))[1] == large
    assert (await answer_of(connection))[0].status == 404
    await connection.send(request_of("GET", "/nowhere"))
    assert (await answer_of(connection))[0].status == 404
    connection.close()


@pytest.mark.parametrize("lane", [Begins], indirect=True)
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (with_json(CREATED_LINE, b"1"), 201),
        (Unanswered(is_whole=True), 404),
        (Failed(RuntimeError("later")), 500),
    ],
    ids=["answered", "lent", "failed"],
)
@pytest.mark.parametrize("is_half_closed", [False, True], ids=["open", "half-closed"])
async def test_a_request_that_was_begun_ends_in_any_way(
    node: Node, lane: Begins, outcome: Outcome, status: int, is_half_closed: bool
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/nowhere"))
    begun = await lane.begun.get()
    if is_half_closed:
        connection.half_close()
        await turns(node, lane)
    begun.conclude(outcome)
    assert (await answer_of(connection))[0].status == status
    if is_half_closed and not isinstance(outcome, Unanswered):  # aiohttp closes when it is idle
        with pytest.raises(Broken):
            await connection.receive()
    connection.close()


@pytest.mark.parametrize("lane", [Begins], indirect=True)
@pytest.mark.parametrize(
    "outcome",
    [with_json(CREATED_LINE, b"1"), Unanswered(is_whole=True), Failed(RuntimeError("later"))],
    ids=["answered", "lent", "failed"],
)
async def test_a_client_that_leaves_gets_no_answer_to_what_was_begun(
    node: Node, server: HttpServer, lane: Begins, outcome: Outcome
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/create"))
    begun = await lane.begun.get()
    connection.reset()
    await turns(node, lane)
    begun.conclude(outcome)
    await turns(node, lane)


@pytest.mark.parametrize("lane", [Begins], indirect=True)
async def test_a_stop_waits_for_what_was_begun(
    node: Node, server: HttpServer, lane: Begins
) -> None:
    connection = await Connection.open(node)
    await connection.send(request_of("POST", "/create"))
    begun = await lane.begun.get()
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    begun.conclude(with_json(CREATED_LINE, b"1"))
    assert (await answer_of(connection))[0].status == 201
    with pytest.raises(Broken):
        await connection.receive()
    connection.close()
    await stopping


async def turns(node: Node, lane: Begins) -> None:
    """Let the server answer a request on another connection, so that it has had turns for all."""
    other = await Connection.open(node)
    await other.send(request_of("POST", "/create"))
    await lane.end(with_json(CREATED_LINE, b"0"))
    assert (await answer_of(other))[1] == b"0"
    other.close()
