"""How many connections there may be, and what one may hold before its request is complete."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from megaphone.app import App
from megaphone.rest.connection import protocol
from megaphone.rest.connection.protocol import MAX_HEAD_BYTES, SPARE
from tests.support.raw_http import JSON, Broken, Connection, Head, Node, receive_head, request_of
from tests.support.scenes import eventually

MOST = 4
IDLE_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
HEALTH = ("/livez", "/readyz", "/readyz/create", "/metrics")

pytestmark = pytest.mark.timeout(20)


@asynccontextmanager
async def connected(app: App, count: int = 1) -> AsyncIterator[list[Connection]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await Connection.open(Node(app.http_port, app.grpc_port)))
            stack.callback(made[-1].close)
        yield made


async def answer_of(connection: Connection, request: bytes = b"") -> tuple[Head, bytes]:
    if request:
        await connection.send(request)
    head = await receive_head(connection)
    return head, await connection.receive_exactly(int(head.headers["content-length"]))


async def metric(app: App, name: str) -> int:
    for line in app.metrics.render().decode().splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    raise AssertionError(f"no {name}")


def connections_are(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return await metric(app, "megaphone_connections") == count

    return are


# -- How many


@pytest.mark.settings(max_connections=MOST)
async def test_connections_beyond_the_limit_are_told_so_and_counted(app: App) -> None:
    async with connected(app, MOST) as served, connected(app, SPARE) as spare:
        await eventually(connections_are(app, MOST + SPARE))
        for connection in (*spare, *served):
            head, body = await answer_of(connection, request_of("POST", "/create"))
            if connection in served:
                assert (head.status, "producerAddress" in json.loads(body)) == (200, True)
            else:
                assert (head.status, json.loads(body)["code"]) == (429, "LIMIT_EXCEEDED")
                assert "max_connections" in json.loads(body)["message"]
                assert head.headers["retry-after"] == "1"
                with pytest.raises(Broken):
                    await connection.receive()
        assert await metric(app, "megaphone_connections_refused") == SPARE
    await eventually(connections_are(app, 0))
    async with connected(app) as [connection]:
        head, _ = await answer_of(connection, request_of("POST", "/create"))
        assert head.status == 200


@pytest.mark.settings(max_connections=MOST)
@pytest.mark.parametrize("path", HEALTH)
async def test_a_node_with_all_its_connections_answers_probes(app: App, path: str) -> None:
    async with connected(app, MOST), connected(app) as [probe]:
        head, _ = await answer_of(probe, request_of("GET", path))
        assert (head.status, head.headers["connection"]) == (200, "close")
        with pytest.raises(Broken):
            await probe.receive()


@pytest.mark.settings(max_connections=MOST)
async def test_beyond_those_for_probes_the_answer_does_not_wait_for_a_request(app: App) -> None:
    async with connected(app, MOST + SPARE):
        await eventually(connections_are(app, MOST + SPARE))
        async with connected(app) as [refused]:
            head, body = await answer_of(refused)
            assert (head.status, json.loads(body)["code"]) == (429, "LIMIT_EXCEEDED")
            assert head.headers["connection"] == "close"
            with pytest.raises(Broken):
                await refused.receive()
        assert await metric(app, "megaphone_connections") == MOST + SPARE


@pytest.mark.settings(max_connections=MOST)
async def test_nobody_keeps_the_place_of_a_probe(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPARE_TIMEOUT_S", 0.1)
    async with connected(app, MOST), connected(app, SPARE) as spare:
        await eventually(connections_are(app, MOST))
        for connection in spare:
            with pytest.raises(Broken):
                await connection.receive()


# -- Headers that do not end


def headers(total: int, size: int = 1_000) -> list[bytes]:
    lines = [b"X-%d: " % number for number in range(total // size)]
    return [line + b"a" * (size - len(line) - 2) + b"\r\n" for line in lines]


async def send_in_pieces(connection: Connection, lines: list[bytes]) -> None:
    for line in lines:
        await connection.send(line)
        await asyncio.sleep(0)


@pytest.mark.parametrize("in_one", [False, True], ids=["in-pieces", "in-one"])
async def test_headers_that_do_not_end_are_refused(app: App, in_one: bool) -> None:
    lines = headers(MAX_HEAD_BYTES + 1_000)
    async with connected(app) as [connection]:
        await connection.send(IDLE_HEAD)
        await send_in_pieces(connection, [b"".join(lines)] if in_one else lines)
        head, body = await answer_of(connection)
        assert head.status == 400
        message = json.loads(body)["message"]
        assert message == "the headers are too large: at most 32768 bytes are allowed"
        with pytest.raises(Broken):
            await connection.receive()


async def test_what_came_before_such_headers_is_answered_first(app: App) -> None:
    async with connected(app) as [connection]:
        await connection.send(request_of("GET", "/livez"))
        # What comes along with the end of a request is not counted, so there are more.
        with suppress(Broken):
            await send_in_pieces(connection, [IDLE_HEAD, *headers(3 * MAX_HEAD_BYTES)])
        assert [(await answer_of(connection))[0].status for _ in range(2)] == [200, 400]


async def test_large_headers_that_end_are_taken(app: App) -> None:
    async with connected(app) as [connection]:
        for _ in range(3):
            lines = [IDLE_HEAD, *headers(MAX_HEAD_BYTES - 2_000), b"\r\n"]
            await send_in_pieces(connection, lines)
            assert (await answer_of(connection))[0].status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_is_not_taken_for_headers(app: App, chunked: bool) -> None:
    body = b" " * 200_000 + b"{}"
    pieces = [body[start : start + 1_000] for start in range(0, len(body), 1_000)]
    framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    if chunked:
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    async with connected(app) as [connection]:
        for _ in range(2):
            await connection.send(request_of("POST", "/create", headers=JSON | framing))
            await send_in_pieces(connection, pieces)
            assert (await answer_of(connection))[0].status == 200


async def test_headers_that_have_not_ended_are_counted_as_memory(app: App) -> None:
    before = await metric(app, "megaphone_buffered_bytes")
    received = len(IDLE_HEAD) + 20_000

    async def are_counted() -> bool:
        return await metric(app, "megaphone_buffered_bytes") >= before + received

    async def are_not() -> bool:
        return await metric(app, "megaphone_buffered_bytes") == before

    async with connected(app, 2) as [ends, breaks]:
        for connection in (ends, breaks):
            await send_in_pieces(connection, [IDLE_HEAD, *headers(20_000)])
            await eventually(are_counted)
            if connection is ends:
                assert (await answer_of(ends, b"\r\n"))[0].status == 200
            else:
                breaks.reset()
            await eventually(are_not)
