"""A connection has limits of memory and time until its request is complete."""

import asyncio
import json
from contextlib import suppress

import pytest

from megaphone.app import App
from megaphone.rest.connection import protocol
from megaphone.rest.connection.guest import MAX_HEAD_BYTES, MAX_TARGET_BYTES
from tests.support.connections import answer_of, connected, metric
from tests.support.raw_http import JSON, Broken, Connection, request_of
from tests.support.scenes import eventually

SHORT_S = 0.2
IDLE_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"

pytestmark = pytest.mark.timeout(20)


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


async def test_requests_before_such_headers_are_answered_first(app: App) -> None:
    async with connected(app) as [connection]:
        await connection.send(request_of("GET", "/livez"))
        # Bytes that come together with the end of a request are not counted, so more are sent.
        with suppress(Broken):
            await send_in_pieces(connection, [IDLE_HEAD, *headers(3 * MAX_HEAD_BYTES)])
        assert [(await answer_of(connection))[0].status for _ in range(2)] == [200, 400]


@pytest.mark.parametrize("piece", [100_000, 1_000])
@pytest.mark.parametrize(
    ("target", "header", "status"),
    [
        (MAX_TARGET_BYTES, 0, 404),
        (MAX_TARGET_BYTES + 1, 0, 414),
        (3 * MAX_TARGET_BYTES, 0, 414),
        (MAX_TARGET_BYTES, MAX_TARGET_BYTES + 1, 400),
        (10, MAX_TARGET_BYTES + 1, 400),
    ],
)
async def test_a_path_that_is_too_long_has_a_status_of_its_own(
    app: App, piece: int, target: int, header: int, status: int
) -> None:
    path = b"/" + b"a" * (target - 1)
    request = b"OPTIONS %b HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (path, b"/" * header)
    async with connected(app) as [connection]:
        with suppress(Broken):
            await send_in_pieces(
                connection, [request[at : at + piece] for at in range(0, len(request), piece)]
            )
        head, body = await answer_of(connection)
        assert head.status == status
        assert (b"the path is too long: at most 8190 bytes" in body) == (status == 414)


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


# -- Headers that do not arrive


@pytest.mark.parametrize("begun", [b"", b"POST /cre", b"POST /create HTTP/1.1\r\nHost: x\r\nA"])
async def test_headers_that_do_not_arrive_end_the_connection(
    app: App, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", SHORT_S)
    async with connected(app) as [connection], asyncio.timeout(5):
        await connection.send(begun)
        with pytest.raises(Broken):
            await connection.receive()
