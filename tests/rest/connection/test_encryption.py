"""HTTP over TLS, on both event loops: the same calls, the same promises."""

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from megaphone.app import App, running
from megaphone.model import NewEvent, ReadOptions
from megaphone.rest.connection import encryption
from tests.support.certificates import Authority
from tests.support.faces import HttpFace, http_face, take
from tests.support.raw_http import request_of
from tests.support.scenes import eventually, numbers
from tests.support.settings import certificates, fast_settings

EVENTS = 1_000
BODIES = [b"1", b'"' + b"x" * 500_000 + b'"', b"2", b'"' + b"y" * 40_000 + b'"', b"3"]
LARGE = b'"' + b"z" * 100_000 + b'"'
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
Scenario = Callable[[App, HttpFace], Awaitable[None]]

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def encrypted(**settings: Any) -> AsyncIterator[tuple[App, HttpFace]]:
    chosen = fast_settings(**{"tls": certificates().tls, "buffer_capacity": 2_000} | settings)
    async with running(chosen) as app, http_face(app) as face:
        yield app, face


async def trusting_client(
    app: App, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = context or ssl.create_default_context(cafile=certificates().authority)
    return await asyncio.open_connection("127.0.0.1", app.http_port, ssl=context)


# -- Promises of a read, on both loops


async def a_read_gets_each_event_when_it_is_written(app: App, http: HttpFace) -> None:
    channel = await http.create()
    async with http.read(channel.consumer) as read:
        for number in range(EVENTS):
            await http.write(channel.producer, "s", b"%d" % number)
            assert numbers(await take(read, 1)) == [number]


async def a_read_gets_many_events_at_once(app: App, http: HttpFace) -> None:
    channel = await http.create()
    batch = [NewEvent("s", b"%d" % number) for number in range(EVENTS)]
    async with http.read(channel.consumer) as read:
        await http.write_batch([channel.producer], batch)
        assert numbers(await take(read, EVENTS)) == list(range(EVENTS))


async def a_read_goes_on_after_each_event_however_large(app: App, http: HttpFace) -> None:
    channel = await http.create()
    async with http.read(channel.consumer) as read:
        for body in BODIES:
            await http.write(channel.producer, "s", body)
            assert [event.body for event in await take(read, 1)] == [body]


async def a_read_ends_cleanly(app: App, http: HttpFace) -> None:
    channel = await http.create()
    await http.write(channel.producer, "s", b"1")
    async with http.read(channel.consumer, ReadOptions(wait_s=0.05)) as read:
        assert numbers([event async for event in read]) == [1]


async def a_large_body_is_received_in_many_records(app: App, http: HttpFace) -> None:
    channel = await http.create()
    body = b'"' + b"b" * 1_000_000 + b'"'
    await http.write(channel.producer, "s", body)
    async with http.read(channel.consumer) as read:
        assert [event.body for event in await take(read, 1)] == [body]


async def a_stalled_reader_is_noticed_and_counts_no_event_that_the_kernel_does_not_have(
    app: App, http: HttpFace
) -> None:
    channel = await http.create()
    stalled = await asyncio.to_thread(stalled_reader, app.http_port, channel.consumer)
    for _ in range(100):
        await http.write(channel.producer, "s", LARGE)
    read = app.metrics.messages_read
    # The kernel has 32 KB that are unsent, and what fits into the buffer of the client.
    assert read < 5, read

    async def is_noticed() -> bool:
        return app.metrics.reads_open == 0

    await eventually(is_noticed, within_s=12)
    stalled.close()
    again = await asyncio.to_thread(lines_of_read, app.http_port, channel.consumer)
    assert len(again) == 100


def lines_of_read(port: int, address: str) -> list[bytes]:
    """Return all lines of a read that waits for none. A client on uvloop may not have the last
    ones: it drops what it has not decrypted yet when the server closes, if its reader was slow
    (uvloop pull request 661)."""
    context = ssl.create_default_context(cafile=certificates().authority)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    with closing(connection):
        connection.request("GET", f"/read/{address}?wait_ms=0")
        return connection.getresponse().read().splitlines()


def stalled_reader(port: int, address: str) -> ssl.SSLSocket:
    """Return the connection of a client that takes the head of its answer, and nothing more."""
    context = ssl.create_default_context(cafile=certificates().authority)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.connect(("127.0.0.1", port))
    encrypted = context.wrap_socket(connection, server_hostname="127.0.0.1")
    encrypted.sendall(request_of("GET", f"/read/{address}"))
    assert encrypted.recv(4_096).startswith(b"HTTP/1.1 200")
    return encrypted


SCENARIOS: list[Scenario] = [
    a_read_gets_each_event_when_it_is_written,
    a_read_gets_many_events_at_once,
    a_read_goes_on_after_each_event_however_large,
    a_read_ends_cleanly,
    a_large_body_is_received_in_many_records,
]


@pytest.mark.parametrize("has_lane", [True, False], ids=["lane", "aiohttp"])
@pytest.mark.parametrize("loop", LOOPS)
def test_everything_is_as_without_tls(loop: str, has_lane: bool) -> None:
    async def run() -> None:
        async with encrypted(http_lane=has_lane) as (app, http):
            for scenario in SCENARIOS:
                await scenario(app, http)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stalled_reader_is_noticed(loop: str) -> None:
    async def run() -> None:
        async with encrypted() as (app, http):
            await a_stalled_reader_is_noticed_and_counts_no_event_that_the_kernel_does_not_have(
                app, http
            )

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


async def ended(reader: asyncio.StreamReader) -> None:
    """Wait until the broker has closed a connection."""
    async with asyncio.timeout(5):
        with suppress(ConnectionResetError):
            await reader.read()


# -- The beginning and the end of a connection


async def test_a_client_that_has_said_the_end_gets_its_answer() -> None:
    async with encrypted() as (app, _):
        reader, writer = await trusting_client(app)
        writer.write(request_of("GET", "/livez", headers={"Connection": "close"}))
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert reader.at_eof()
        writer.close()


async def test_a_handshake_that_does_not_come_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "HANDSHAKE_S", 0.05)
    async with encrypted() as (app, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
        await ended(reader)
        writer.close()


async def test_a_handshake_counts_as_a_connection() -> None:
    async with encrypted(max_connections=1) as (app, _):
        connections = [await asyncio.open_connection("127.0.0.1", app.http_port) for _ in range(10)]
        reader, _ = connections[-1]
        await ended(reader)
        for _, writer in connections:
            writer.close()


async def test_plain_text_is_told_to_use_tls() -> None:
    async with encrypted() as (app, _), aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{app.http_port}/livez") as answer:
            assert answer.status == 400
            told = await answer.json()
        assert (told["code"], told["message"]) == (
            "BAD_REQUEST",
            "this port takes only TLS: call https://",
        )


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x00\x05hello", b"\x00" * 100, b"\xff" * 20_000])
async def test_garbage_closes_the_connection(sent: bytes) -> None:
    async with encrypted() as (app, http):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.http_port)
        writer.write(sent)
        await ended(reader)
        writer.close()
        await http.create()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_versions_of_tls_are_refused() -> None:
    context = ssl.create_default_context(cafile=certificates().authority)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with encrypted() as (app, _):
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await trusting_client(app, context)


async def test_the_client_hears_that_the_protocol_is_http_1_1() -> None:
    context = ssl.create_default_context(cafile=certificates().authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with encrypted() as (app, _):
        _, writer = await trusting_client(app, context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.close()


# -- Client certificates


async def test_a_client_needs_a_certificate_of_the_right_authority(tmp_path: Path) -> None:
    other = Authority(tmp_path, "other").issue("client")
    async with encrypted(tls=certificates().tls_for_known_clients) as (app, _):
        with pytest.raises((ssl.SSLError, ConnectionResetError, asyncio.IncompleteReadError)):
            await live(app, None)
        with pytest.raises((ssl.SSLError, ConnectionResetError, asyncio.IncompleteReadError)):
            await live(app, (other.certificate, other.key))
        counts = app.metrics.render().decode()
        assert "\nmegaphone_tls_handshakes_failed 2\n" in counts
        assert await live(app, (certificates().certificate, certificates().key)) == {"status": "OK"}


async def live(app: App, client: tuple[Path, Path] | None) -> Any:
    context = ssl.create_default_context(cafile=certificates().authority)
    if client is not None:
        context.load_cert_chain(*client)
    reader, writer = await trusting_client(app, context)
    try:
        writer.write(request_of("GET", "/livez"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        return json.loads(await reader.readexactly(len(b'{"status":"OK"}')))
    finally:
        writer.close()
