"""Requests that take too long to arrive are ended, and say why where that can still be said."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from megaphone.app import App
from megaphone.rest import requests
from megaphone.rest.connection import protocol
from tests.support.raw_http import Broken, Connection, Node, receive_head, request_of

SHORT_S = 0.2


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[Connection]:
    connection = await Connection.open(Node(app.http_port, app.grpc_port))
    try:
        yield connection
    finally:
        connection.close()


async def test_a_body_that_does_not_arrive_is_answered(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", SHORT_S)
    promised = {"Content-Type": "application/json", "Content-Length": "9"}
    async with connected(app) as connection, asyncio.timeout(5):
        await connection.send(request_of("POST", "/channelsExists", headers=promised) + b"{")
        answer = await receive_head(connection)
        body = await connection.receive_exactly(int(answer.headers["content-length"]))
    assert answer.status == 408
    assert json.loads(body)["code"] == "TOO_SLOW"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("begun", [b"", b"POST /cre", b"POST /create HTTP/1.1\r\nHost: x\r\nA"])
async def test_headers_that_do_not_arrive_end_the_connection(
    app: App, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", SHORT_S)
    async with connected(app) as connection, asyncio.timeout(5):
        await connection.send(begun)
        with pytest.raises(Broken):
            await connection.receive()
