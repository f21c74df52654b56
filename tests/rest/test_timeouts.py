"""Requests that take too long to arrive are ended, and say why where that can still be said."""

import asyncio
import json

import pytest

from megaphone.app import App
from megaphone.rest import requests, server
from tests.support.raw_http import Broken, Connection, Node, receive_head, request_of

SHORT_S = 0.2


async def connect(app: App) -> Connection:
    return await Connection.open(Node(app.http_port, app.grpc_port))


async def test_a_body_that_does_not_arrive_is_answered(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", SHORT_S)
    connection = await connect(app)
    promised = {"Host": "x", "Content-Type": "application/json", "Content-Length": "9"}
    await connection.send(request_of("POST", "/channelsExists", headers=promised) + b"{")
    async with asyncio.timeout(5):
        answer = await receive_head(connection)
        assert answer.status == 408
        body = await connection.receive_exactly(int(answer.headers["content-length"]))
    assert json.loads(body)["code"] == "TOO_SLOW"
    assert answer.headers["connection"] == "close"
    connection.close()


@pytest.mark.parametrize("begun", [b"", b"POST /cre", b"POST /create HTTP/1.1\r\nHost: x\r\nA"])
async def test_headers_that_do_not_arrive_end_the_connection(
    app: App, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", SHORT_S)
    connection = await connect(app)
    await connection.send(begun)
    async with asyncio.timeout(5):
        with pytest.raises(Broken):
            await connection.receive()
    connection.close()
