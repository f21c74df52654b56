"""A client of the broker, over each protocol in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from megaphone.app import App
from megaphone_client import Channel, Megaphone

PROTOCOLS = ("http", "grpc")


def url_of(app: App, protocol: str) -> str:
    port = {"http": app.http_port, "grpc": app.grpc_port}[protocol]
    return f"{protocol}://127.0.0.1:{port}"


@asynccontextmanager
async def faulty_broker(status: bytes, body: bytes) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Gives every HTTP request the same answer. Yields its URL, and an event that is set when a
    client has an answer."""
    answered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        await reader.read()  # until the client closes the connection
        answered.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", answered


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def megaphone(app: App, protocol: str) -> AsyncIterator[Megaphone]:
    async with Megaphone.from_url(url_of(app, protocol)) as client:
        yield client


@pytest.fixture
async def channel(megaphone: Megaphone) -> Channel:
    return await megaphone.create()
