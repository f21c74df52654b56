"""The access log: a line for each call, over both faces, whoever answers it."""

import asyncio
import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from megaphone.app import App, running
from megaphone.core.addresses import ConsumerAddress
from megaphone.model import Action, ReadOptions, short_id
from megaphone.observe.access_log import FLUSH_BYTES, AccessLog
from megaphone.observe.logs import LineWriter
from megaphone.settings import Auth, Token
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.documented import ROOT
from tests.support.faces import FACES, Created, Face
from tests.support.settings import fast_settings

TOKEN = "mgp_" + "a" * 43
RESET = struct.pack("ii", 1, 0)
"""Lets a socket reset its connection when it is closed."""


class Log:
    """What a node has written into its log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.writer = LineWriter(self.file.fileno(), report=lambda count: b"")

    def text(self) -> str:
        """Return the whole text. The node must have stopped."""
        self.writer.close()
        self.file.close()
        return self.path.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines, without what differs each time."""
        lines = [json.loads(line) for line in self.text().splitlines()]
        for line in lines:
            assert line.pop("ms") >= 0
            assert line.pop("ts")
            assert (line.pop("level"), line.pop("logger")) == ("info", "megaphone.access")
            assert line.pop("message") == "call"
        return lines


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@asynccontextmanager
async def node(log: Log, face: str, **changes: Any) -> AsyncIterator[tuple[App, Face]]:
    async with running(fast_settings(**changes), log.writer) as app, FACES[face](app) as client:
        yield app, client


def id_of(channel: Created) -> str:
    return short_id(ConsumerAddress.parse(channel.consumer).channel_id)


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("face", FACES)
async def test_each_call_has_a_line_with_what_it_was_about(log: Log, face: str, lane: bool) -> None:
    async with node(log, face, access_log="all", http_lane=lane) as (_, client):
        channel = await client.create()
        event_id = await client.write(channel.producer, "s", b"1")
        async with client.read(channel.consumer, ReadOptions(limit=1, wait_s=5.0)) as reading:
            assert [event.event_id async for event in reading] == [event_id]
        await client.acknowledge(channel.consumer, event_id)
        await client.exists([channel.producer])
        await client.dispose(channel.producer)
    text = log.path.read_text()
    lines = [line for line in log.lines() if line["method"] != "other"]
    assert [line["method"] for line in lines] == [
        "create",
        "write",
        "read",
        "ack",
        "exists",
        "dispose",
    ]
    for line in lines:
        assert (line["face"], line["code"], line["peer"]) == (face, "OK", "127.0.0.1")
        assert (line["caller"], line["tenant"]) == ("anyone", "default")
        if line["method"] != "exists":
            assert (line["agent"], line["channel"]) == ("node", id_of(channel))
    for address in (channel.producer, channel.consumer):
        assert address not in text
        assert address.split(".")[1] not in text


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("face", FACES)
async def test_only_errors_have_lines_if_that_is_wanted(log: Log, face: str, lane: bool) -> None:
    async with node(log, face, access_log="errors", http_lane=lane) as (app, client):
        channel = await client.create()
        await client.write(channel.producer, "s", b"1")
        await app.admin.dispose(channel.consumer)
        for _ in range(2):
            with pytest.raises(Exception, match="no such channel"):
                await client.write(channel.producer, "s", b"1")
    assert log.lines() == 2 * [
        {
            "face": face,
            "method": "write",
            "code": "NOT_FOUND",
            "caller": "anyone",
            "tenant": "default",
            "agent": "node",
            "channel": id_of(channel),
            "peer": "127.0.0.1",
        }
    ]


@pytest.mark.parametrize("face", FACES)
async def test_a_line_says_how_long_its_writer_waited(log: Log, face: str) -> None:
    full = {"buffer_capacity": 1, "write_timeout_millis": 50}
    async with node(log, face, access_log="errors", **full) as (_, client):
        channel = await client.create()
        await client.write(channel.producer, "s", b"1")
        with pytest.raises(Exception, match="stayed full"):
            await client.write(channel.producer, "s", b"2")
    [line] = log.lines()
    assert (line["code"], line["channel"]) == ("TIMEOUT", id_of(channel))
    assert line["waited_ms"] >= 49


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def status_of(app: App, request: bytes) -> int:
    """Send a request that no client library would send. Returns: the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        writer.close()


def request_of(path: str, *headers: bytes) -> bytes:
    usual = (b"Host: node", b"Content-Type: application/json", b"Content-Length: 2")
    return b"\r\n".join([f"POST {path} HTTP/1.1".encode(), *usual, *headers, b"", b"{}"])


@pytest.mark.parametrize("lane", [True, False])
async def test_a_line_has_the_client_behind_a_proxy(log: Log, lane: bool) -> None:
    changes: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "http_lane": lane}
    async with node(log, "http", access_log="all", **changes) as (app, _):
        request = request_of("/create", b"X-Forwarded-For: 198.51.100.1, 203.0.113.7")
        assert await status_of(app, request) == 200
    assert [line["peer"] for line in log.lines()] == ["203.0.113.7"]


@pytest.mark.parametrize("lane", [True, False])
async def test_a_header_that_is_no_trace_is_not_logged_and_changes_no_answer(
    log: Log, lane: bool
) -> None:
    async with node(log, "http", access_log="all", http_lane=lane) as (app, client):
        channel = await client.create()
        for nonsense in (b"00-\xff\xfe", b"00-" + b"secret--" * 4 + b"-b7ad6b7169203331-01"):
            request = request_of(f"/write/{channel.producer}/s", b"traceparent: " + nonsense)
            assert await status_of(app, request) == 201
    _, *lines = log.lines()
    assert [(line["method"], line["code"], line.get("trace_id")) for line in lines] == 2 * [
        ("write", "OK", None)
    ]


async def test_a_call_that_is_refused_before_its_route_is_known_has_a_line(log: Log) -> None:
    async with node(log, "http", access_log="errors") as (app, _):
        assert await status_of(app, request_of("/create", b"Expect: \xff")) == 417
    assert [(line["method"], line["code"]) for line in log.lines()] == [("other", "BAD_REQUEST")]


@pytest.mark.parametrize("lane", [True, False])
async def test_a_call_whose_client_goes_has_a_line(log: Log, lane: bool) -> None:
    full = {"buffer_capacity": 1, "write_timeout_millis": 60_000, "http_lane": lane}
    async with node(log, "http", access_log="errors", **full) as (app, client):
        channel = await client.create()
        await client.write(channel.producer, "s", b"1")
        body = {"channels": [channel.producer], "messages": [{"streamId": "s", "body": 2}]}
        sent = json.dumps(body).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
        head = b"POST /write-batch HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
        await until(lambda: app.metrics.writers_waiting == 1)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()
        await until(lambda: app.metrics.writers_waiting == 0)
        assert app.metrics.http.write_batch.failed["CANCELLED"] == 1
    [line] = log.lines()
    assert (line["method"], line["code"], line["peer"]) == ("write_batch", "CANCELLED", "127.0.0.1")


async def test_nothing_is_logged_unless_that_is_wanted(log: Log) -> None:
    async with node(log, "http") as (_, client):
        await client.create()
        with pytest.raises(Exception, match="not an address"):
            await client.write("nonsense", "s", b"1")
    assert log.lines() == []


async def test_a_line_has_the_trace_of_its_call(log: Log) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with running(fast_settings(access_log="all"), log.writer) as app:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{app.http_port}/create"
            for headers in ({}, {"Cookie": "a=b"}):
                sent = {"traceparent": traceparent, **headers}
                async with session.post(url, json={}, headers=sent) as answer:
                    assert answer.status == 200
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
            stub = ChannelServiceStub(connection)
            metadata = (("traceparent", traceparent),)
            await stub.CreateChannel(pb.CreateChannelRequest(), metadata=metadata)
    assert [line["trace_id"] for line in log.lines()] == 3 * ["0af7651916cd43dd8448eb211c80319c"]


async def test_a_line_names_the_caller_and_never_the_token(log: Log) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    auth = Auth(
        require=(Action.CREATE,), tokens={"shop": Token(sha256=digest, actions=tuple(Action))}
    )
    async with (
        running(fast_settings(access_log="all", auth=auth), log.writer) as app,
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{app.http_port}/create"
        for token in (TOKEN, TOKEN, "wrong"):
            headers = {"Authorization": f"Bearer {token}"}
            async with session.post(url, json={}, headers=headers):
                pass
    text = log.path.read_text()
    lines = log.lines()
    assert [(line["code"], line.get("caller")) for line in lines] == [
        ("OK", "token shop"),
        ("OK", "token shop"),
        ("UNAUTHENTICATED", None),
    ]
    assert TOKEN not in text
    assert "wrong" not in text


@pytest.mark.parametrize("face", FACES)
async def test_the_first_call_of_a_caller_has_a_line_with_its_channel(log: Log, face: str) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens = {"shop": Token(sha256=digest, actions=tuple(Action))}
    auth = Auth(require=(Action.WRITE,), tokens=tokens)
    async with node(log, face, access_log="all", auth=auth) as (app, client):
        channel = await client.create()
        if face == "http":
            request = request_of(
                f"/write/{channel.producer}/s", b"Authorization: Bearer " + TOKEN.encode()
            )
            assert await status_of(app, request) == 201
        else:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as connection:
                await ChannelServiceStub(connection).Write(
                    pb.WriteRequest(producer_address=channel.producer, stream_id="s", body=b"{}"),
                    metadata=(("authorization", f"Bearer {TOKEN}"),),
                )
    [line] = [line for line in log.lines() if line["method"] == "write"]
    assert (line["caller"], line["channel"]) == ("token shop", id_of(channel))


async def test_a_line_is_as_the_page_has_it(log: Log) -> None:
    async with node(log, "http", access_log="all") as (_, client):
        await client.write((await client.create()).producer, "s", b"1")
    page = (ROOT / "docs" / "operating.md").read_text()
    [documented] = re.findall(r"```json\n(.*)\n```", page)
    written = [json.loads(line) for line in log.text().splitlines()]
    [line] = [one for one in written if one["method"] == "write"]
    differs = ("ts", "ms", "channel")
    expected = {
        name: line[name] if name in differs else value
        for name, value in json.loads(documented).items()
    }
    assert list(line.items()) == list(expected.items())


async def test_lines_of_people_are_text(log: Log) -> None:
    async with node(log, "http", access_log="all", log_format="text") as (_, client):
        channel = await client.create()
    [line] = [line for line in log.text().splitlines() if "method=create" in line]
    assert line.split("INFO")[1].split()[:4] == ["call", "face=http", "method=create", "code=OK"]
    assert f"channel={id_of(channel)}" in line


# -- Who writes them


class Kept:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.parts: list[tuple[bytes, int]] = []

    def write(self, line: bytes, count: int = 1) -> None:
        self.parts.append((line, count))


def access_log(writer: Any) -> AccessLog:
    return AccessLog(writer, lambda address: None, only_errors=False, as_text=False)


@pytest.mark.looptime
async def test_lines_are_written_once_a_second_and_at_the_end() -> None:
    kept = Kept()
    lines = access_log(kept)
    flushing = asyncio.create_task(lines.run())
    await asyncio.sleep(0.1)
    for _ in range(3):
        lines.add("http", "write", "OK", 0.001)
    assert kept.parts == []
    await asyncio.sleep(1)
    [(part, count)] = kept.parts
    assert (part.count(b"\n"), count) == (3, 3)
    lines.add("http", "write", "OK", 0.001)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    assert [count for _, count in kept.parts] == [3, 1]


def test_many_lines_are_written_at_once() -> None:
    kept = Kept()
    lines = access_log(kept)
    for _ in range(2_000):
        lines.add("http", "write", "OK", 0.001)
    assert len(kept.parts) > 1
    assert all(len(part) < FLUSH_BYTES + 1_000 for part, _ in kept.parts)


def test_lines_that_nobody_reads_are_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, report=lambda count: b"", max_waiting_bytes=2 * FLUSH_BYTES)
    lines = access_log(writer)
    for _ in range(5_000):
        lines.add("http", "write", "OK", 0.001)
    lines.flush()
    assert writer.dropped > 1_000
    os.close(reading)
    writer.close(0.1)
    os.close(writing)
