"""What a connection of the lane does about time, memory, and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest

from megaphone.core.access import ANYONE
from megaphone.model import NewEvent
from megaphone.rest import server as http_server
from megaphone.rest.connection.protocol import BODY_WAIT_S, HEADER_TIMEOUT_S
from megaphone.rest.connection.protocol import Connection as ServerConnection
from megaphone.rest.requests import BODY_TIMEOUT_S
from tests.rest.lane.exchange import PROBE
from tests.rest.lane.sides import Clock, Side, WatchedLane, own_clock, side
from tests.support.connections import answer_of, connected_to
from tests.support.raw_http import END_OF_HEAD, JSON, Broken, Connection, head_of, request_of
from tests.support.scenes import eventually, writers_wait

CREATE = request_of("POST", "/create")
LIVE = PROBE


def failing_batch(addresses: int) -> bytes:
    """Return a batch whose answer has 55 bytes or more for each address."""
    named = b",".join(b'"x%d"' % number for number in range(addresses))
    return b'{"channels":[%b],"messages":[{"streamId":"s","body":1}]}' % named


LONG_ANSWER = request_of("POST", "/write-batch", failing_batch(1_500), JSON)
"""The answer has more than 64 KiB."""
MOST_UNREAD_BYTES = 20_000_000
"""More than the kernel holds for a client that does not read."""

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def lane_side(**changes: Any) -> AsyncIterator[tuple[Side, WatchedLane, Clock]]:
    with own_clock() as clock:
        async with side(clock, with_lane=True, **changes) as one:
            assert one.lane is not None
            yield one, one.lane, clock


def connected(
    one: Side, count: int = 1, *, receive_buffer: int | None = None
) -> AbstractAsyncContextManager[list[Connection]]:
    return connected_to(one.port, count, receive_buffer=receive_buffer)


async def status_of(connection: Connection, request: bytes = b"") -> int:
    head, _ = await answer_of(connection, request)
    return head.status


async def assert_ends(connection: Connection) -> None:
    with pytest.raises(Broken):
        await connection.receive()


async def answer_others(one: Side, times: int = 5) -> None:
    """Let the server answer requests on another connection. So it has had turns for the rest."""
    async with connected(one) as [other]:
        for _ in range(times):
            assert await status_of(other, LIVE) == 200


# -- Idle connections


@pytest.mark.parametrize("before", [b"", LIVE, CREATE], ids=["new", "aiohttp", "lane"])
async def test_a_connection_that_only_the_lane_uses_is_not_idle(before: bytes) -> None:
    async with lane_side() as (one, lane, clock), connected(one) as [connection]:
        if before:
            await status_of(connection, before)
        answered = len(lane.answered)
        for _ in range(4):
            clock.advance(0.6 * HEADER_TIMEOUT_S)
            await answer_others(one)
            assert await status_of(connection, CREATE) == 200
        assert len(lane.answered) == answered + 4
        clock.advance(1.1 * HEADER_TIMEOUT_S)
        await assert_ends(connection)


# -- Clients that do not read


@pytest.mark.parametrize("request_", [CREATE, LONG_ANSWER], ids=["short", "long"])
async def test_a_client_that_reads_no_answers_is_not_read(request_: bytes) -> None:
    async with lane_side() as (one, lane, _), connected(one, receive_buffer=4_096) as [client]:
        most = MOST_UNREAD_BYTES // len(await whole_answer(one, request_))
        sent = len(lane.answered)
        while len(lane.answered) == sent:
            assert sent < most
            await client.send(request_)
            sent += 1
            await turns_until_answered(one, lane, sent)
        for _ in range(3):
            await client.send(request_)
            await answer_others(one)
        assert len(lane.answered) < sent
        for _ in range(sent + 2):
            await receive_whole_answer(client)


async def test_a_client_that_reads_no_answer_to_a_batch_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = noted_pauses(monkeypatch)
    batch = request_of("POST", "/write-batch", failing_batch(1_000), JSON)
    async with lane_side() as (one, lane, _), connected(one, receive_buffer=4_096) as [client]:
        most = MOST_UNREAD_BYTES // len(await whole_answer(one, batch))
        while not pauses:
            assert len(lane.answered) < most
            await client.send(batch)
            await answer_others(one)
        answered = len(lane.answered)
        for _ in range(3):
            await client.send(CREATE)
            await answer_others(one)
        assert len(lane.answered) == answered
        for _ in range(answered - 1 + 3):
            await receive_whole_answer(client)


def noted_pauses(monkeypatch: pytest.MonkeyPatch) -> list[ServerConnection]:
    """Return a list of the connections whose clients leave many bytes unread, from now on."""
    pauses: list[ServerConnection] = []
    pause_writing = ServerConnection.pause_writing

    def noting(connection: ServerConnection) -> None:
        pauses.append(connection)
        pause_writing(connection)

    monkeypatch.setattr(ServerConnection, "pause_writing", noting)
    return pauses


async def whole_answer(one: Side, request: bytes) -> bytes:
    """Return the answer to a request on a connection of its own."""
    async with connected(one) as [connection]:
        await connection.send(request)
        return await receive_whole_answer(connection)


async def receive_whole_answer(connection: Connection) -> bytes:
    head = await connection.receive_until(END_OF_HEAD)
    answer = head_of(head)
    assert answer.status in {200, 201}
    if "content-length" in answer.headers:
        return head + await connection.receive_exactly(int(answer.headers["content-length"]))
    return head + await connection.receive_until(b"0" + END_OF_HEAD)


async def turns_until_answered(one: Side, lane: WatchedLane, count: int) -> None:
    """Give the server turns until the lane has answered so often, or until it had enough turns."""
    for _ in range(30):
        if len(lane.answered) == count:
            return
        await asyncio.sleep(0)
    await answer_others(one)


async def test_what_comes_behind_a_waiting_batch_is_not_read_yet() -> None:
    full = {"buffer_capacity": 1, "write_timeout_millis": 30_000}
    async with lane_side(**full) as (one, lane, clock), connected(one) as [client]:
        channel = await one.app.broker.create(ANYONE)
        one.app.broker.write_nowait(ANYONE, channel.producer_address, NewEvent("s", b"1"))
        await client.send(
            request_of("POST", "/write-batch", batch_for(channel.producer_address), JSON)
        )
        await eventually(writers_wait(one.app, 1))
        much = request_of("POST", "/create", b" " * MOST_UNREAD_BYTES, JSON)
        sending = asyncio.create_task(client.send(much))
        await answer_others(one, MOST_UNREAD_BYTES // 100_000)
        assert not sending.done()
        clock.advance(31)
        head, body = await answer_of(client)
        assert (head.status, b'"TIMEOUT"' in body) == (201, True)
        assert await status_of(client) == 413
        assert len(lane.answered) == 1
        with suppress(Broken):
            await sending


def batch_for(address: str) -> bytes:
    return b'{"channels":["%b"],"messages":[{"streamId":"s","body":2}]}' % address.encode()


# -- Requests in many pieces


async def test_a_body_in_many_pieces_is_not_read_from_its_start_each_time() -> None:
    body = b'"' + b"x" * 100_000 + b'"'
    request = request_of(
        "POST", "/create", b'{"protocols":["HTTP_STREAM_NDJSON_V1",%b]}' % body, JSON
    )
    async with lane_side(max_body_bytes=200_000) as (one, lane, _), connected(one) as [client]:
        for start in range(0, len(request), 500):
            await client.send(request[start : start + 500])
            await asyncio.sleep(0)
        assert await status_of(client) == 200
        assert len(lane.answered) == 1
        assert lane.offered == 2


async def test_the_lane_leaves_a_very_large_body_to_aiohttp() -> None:
    request = request_of(
        "POST",
        "/create",
        b'{"protocols":["HTTP_STREAM_NDJSON_V1","%b"]}' % (b"x" * 1_100_000),
        JSON,
    )
    async with lane_side(max_body_bytes=2_000_000) as (one, lane, _), connected(one) as [client]:
        assert await status_of(client, request) == 200
        assert lane.answered == []


# -- Requests that are begun and not ended

BODY = b'{"protocols": []}'
BEGUN = request_of("POST", "/create", BODY, JSON)[: -len(BODY)]


async def test_aiohttp_gets_a_body_that_is_late() -> None:
    async with lane_side() as (one, lane, clock), connected(one) as [client]:
        await client.send(BEGUN + BODY[:4])
        await answer_others(one)
        clock.advance(1.1 * BODY_WAIT_S)
        await answer_others(one)
        assert await status_of(client, BODY[4:]) == 200
        assert lane.answered == []
        # From now on aiohttp has the connection, and still ends it when it is idle.
        assert await status_of(client, CREATE) == 200
        assert lane.answered == []
        clock.advance(1.1 * HEADER_TIMEOUT_S)
        await assert_ends(client)


async def test_a_body_that_does_not_come_is_refused() -> None:
    async with lane_side() as (one, _, clock), connected(one) as [client]:
        await client.send(BEGUN + BODY[:4])
        await answer_others(one)
        clock.advance(1.1 * BODY_WAIT_S)
        await answer_others(one)
        clock.advance(1.1 * BODY_TIMEOUT_S)
        head, body = await answer_of(client)
        assert (head.status, head.headers["connection"]) == (408, "close")
        assert b'"TOO_SLOW"' in body


async def test_the_memory_of_a_begun_request_is_counted_until_it_ends() -> None:
    large = request_of(
        "POST", "/create", b'{"protocols":["HTTP_STREAM_NDJSON_V1","%b"]}' % (b"x" * 10_000), JSON
    )
    async with lane_side() as (one, _, clock), connected(one, 3) as [ends, late, breaks]:
        for client in (ends, late, breaks):
            await client.send(large[:9_000])
        await answer_others(one)
        held = one.budget.used
        assert held > 0
        assert await status_of(ends, large[9_000:]) == 200
        assert one.budget.used < held
        clock.advance(1.1 * BODY_WAIT_S)
        assert await status_of(late, large[9_000:]) == 200
        breaks.reset()
        await eventually(none_is_counted(one))


def none_is_counted(one: Side) -> Callable[[], Awaitable[bool]]:
    async def is_none() -> bool:
        return one.budget.used == 0

    return is_none


# -- Half-closed connections


@pytest.mark.parametrize("request_", [CREATE, LONG_ANSWER], ids=["create", "batch"])
async def test_a_client_that_has_closed_its_side_gets_its_answer(request_: bytes) -> None:
    async with lane_side() as (one, lane, _), connected(one) as [client]:
        await client.send(request_)
        client.half_close()
        await receive_whole_answer(client)
        await assert_ends(client)
        assert len(lane.answered) == 1


async def test_a_half_closed_connection_whose_request_is_incomplete_ends() -> None:
    async with lane_side() as (one, lane, _), connected(one) as [client]:
        await client.send(BEGUN + BODY[:4])
        client.half_close()
        await assert_ends(client)
        assert lane.answered == []
        await answer_others(one)


# -- The end of the server


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let a server wait long for its connections, so that no test passes because it gives up."""
    monkeypatch.setattr(http_server, "STOP_TIMEOUT_S", 1_000.0)
    return 1_000.0


async def test_idle_connections_are_closed_at_once(long_grace: float) -> None:
    async with lane_side() as (one, _, _), connected(one, 4) as clients:
        await status_of(clients[1], CREATE)
        await status_of(clients[2], LIVE)
        await status_of(clients[3], LIVE)
        await status_of(clients[3], CREATE)
        await answer_others(one)
        await one.server.stop()
        for client in clients:
            await assert_ends(client)


async def test_a_request_that_is_arriving_is_still_answered(long_grace: float) -> None:
    async with lane_side() as (one, _, clock), connected(one, 2) as [client, idle]:
        await client.send(BEGUN + BODY[:4])
        await answer_others(one)
        stopping = asyncio.create_task(one.server.stop())
        await assert_ends(idle)
        assert not stopping.done()
        assert await status_of(client, BODY[4:]) == 200
        clock.advance(1.1 * long_grace)
        await stopping
        await assert_ends(client)


async def test_a_request_behind_the_last_answer_has_no_effect(long_grace: float) -> None:
    async with lane_side() as (one, _, _), connected(one, 2) as [client, idle]:
        await client.send(BEGUN + BODY[:4])
        await answer_others(one)
        stopping = asyncio.create_task(one.server.stop())
        await assert_ends(idle)
        before = one.app.metrics.channels_created
        await client.send(BODY[4:] + CREATE)
        assert await status_of(client) == 200
        await assert_ends(client)
        assert one.app.metrics.channels_created == before + 1
        await stopping


async def test_reads_are_ended_by_the_broker(long_grace: float) -> None:
    async with (
        lane_side(poll_duration_millis=600_000) as (one, lane, _),
        connected(one) as [client],
    ):
        channel = await one.app.broker.create(ANYONE)
        await client.send(request_of("GET", f"/read/{channel.consumer_address}"))
        await client.receive_until(b"\r\n\r\n")
        assert len(lane.answered) == 1
        stopping = asyncio.create_task(one.server.stop())
        await one.app.broker.begin_shutdown()
        assert await client.receive_until(b"0\r\n\r\n") == b"0\r\n\r\n"
        await assert_ends(client)
        await stopping
