"""Issuers that are silent, slow or lying cost one request, and their keys are not taken."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from megaphone.access.jwks import MAX_BYTES, FetchFailed, fetch_keys
from megaphone.settings import Issuer
from tests.support.issuer import AUDIENCE, ec, public
from tests.support.publisher import Answer, Publisher, document, publishing

DISCOVERY = "/realm/.well-known/openid-configuration"
KEYS = {"keys": [public(ec(), kid="k1")]}
SHORT_S = 0.3


@pytest.fixture
async def server() -> AsyncIterator[Publisher]:
    async with publishing() as publisher:
        yield publisher


def at(url: str) -> Issuer:
    return Issuer(issuer="https://id.example.com", audience=AUDIENCE, jwks_url=url)


def discovered(server: Publisher) -> Issuer:
    return Issuer(issuer=f"{server.url}/realm", audience=AUDIENCE)


async def failure(settings: Issuer, within_s: float = 60.0) -> str:
    with pytest.raises(FetchFailed) as caught:
        await fetch_keys(settings, within_s)
    assert "127.0.0.1" not in str(caught.value)
    return str(caught.value)


async def test_keys_are_at_the_url_of_the_settings(server: Publisher) -> None:
    server.answers["/keys"] = document(KEYS)
    keys = await fetch_keys(at(f"{server.url}/keys?v=a%2Fb"))
    assert keys.find("ES256", "k1")
    assert server.asked == ["/keys?v=a%2Fb"]


async def test_keys_are_where_the_issuer_says(server: Publisher) -> None:
    server.answers[DISCOVERY] = document(
        {"issuer": f"{server.url}/realm", "jwks_uri": f"{server.url}/certs"}
    )
    server.answers["/certs"] = document(KEYS)
    keys = await fetch_keys(discovered(server))
    assert keys.find("ES256", "k1")
    assert server.asked == [DISCOVERY, "/certs"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"issuer": "http://127.0.0.1"}, "another issuer", id="another issuer"),
        pytest.param({"issuer": None}, "another issuer", id="no issuer"),
        pytest.param({"jwks_uri": None}, "https", id="no URL"),
        pytest.param({"jwks_uri": ["https://x.example"]}, "https", id="a list of URLs"),
        pytest.param({"jwks_uri": "http://x.example/keys"}, "https", id="http elsewhere"),
        pytest.param({"jwks_uri": "file:///etc/passwd"}, "https", id="a file"),
        pytest.param({"jwks_uri": "http://127.0.0.1.x.example/"}, "https", id="no loopback"),
        pytest.param({"jwks_uri": "http://169.254.169.254/"}, "https", id="the cloud's secrets"),
    ],
)
async def test_a_lying_discovery_is_not_followed(
    server: Publisher, changes: dict[str, Any], reason: str
) -> None:
    told = {"issuer": f"{server.url}/realm", "jwks_uri": f"{server.url}/certs"} | changes
    server.answers[DISCOVERY] = document(told)
    assert reason in await failure(discovered(server))
    assert server.asked == [DISCOVERY]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(document(KEYS, 404), "404", id="not found"),
        pytest.param(document(KEYS, 500), "500", id="an error"),
        pytest.param(document(KEYS, 302, Location="/other"), "302", id="a redirect"),
        pytest.param(document(KEYS, 206), "206", id="a part"),
        pytest.param(document(b""), "JSON", id="nothing"),
        pytest.param(document(b"<html>"), "JSON", id="a page"),
        pytest.param(document(b"\xff"), "JSON", id="no text"),
        pytest.param(document([]), "JSON", id="a list"),
        pytest.param(document(b"[" * 100_000), "JSON", id="a deep list"),
        pytest.param(document(b'{"a":' * 100_000), "JSON", id="a deep object"),
        pytest.param(document({}), "no list of keys", id="no keys"),
        pytest.param(document({"keys": [{"kty": "oct", "k": "eA"}]}), "none of its", id="a secret"),
        pytest.param(document(b" " * (MAX_BYTES + 1)), "longer", id="too long"),
    ],
)
async def test_a_lying_answer_is_not_taken(server: Publisher, answer: Answer, reason: str) -> None:
    server.answers["/keys"] = answer
    server.answers["/other"] = document(KEYS)
    assert reason in await failure(at(f"{server.url}/keys"))
    assert server.asked == ["/keys"]


async def test_an_answer_that_would_grow_is_not_taken(server: Publisher) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(b" " * (2 * MAX_BYTES) + json.dumps(KEYS).encode())
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    server.answers["/keys"] = answer
    assert "JSON" in await failure(at(f"{server.url}/keys"))


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("answer", [silent, slow])
async def test_a_silent_or_slow_issuer_has_little_time(server: Publisher, answer: Answer) -> None:
    server.answers["/keys"] = answer
    begin = time.monotonic()
    assert "no whole answer within 0.3 s" in await failure(at(f"{server.url}/keys"), SHORT_S)
    assert time.monotonic() - begin < 10


async def test_the_time_is_for_discovery_and_keys_together(server: Publisher) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(SHORT_S * 0.7)
        return await document(
            {"issuer": f"{server.url}/realm", "jwks_uri": f"{server.url}/certs"} | KEYS
        )(request)

    server.answers[DISCOVERY] = server.answers["/certs"] = half
    assert "no whole answer" in await failure(discovered(server), SHORT_S)


async def test_an_endless_answer_is_not_kept(server: Publisher) -> None:
    server.answers["/keys"] = endless
    with pytest.raises(FetchFailed, match="longer"):
        await fetch_keys(at(f"{server.url}/keys"), 60.0)


async def test_nobody_who_listens_is_a_failure() -> None:
    async with listening(b"") as url:
        pass
    assert "the request failed" in await failure(at(url))


@pytest.mark.parametrize(
    "answer", [b"", b"not HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9"]
)
async def test_an_answer_that_is_no_http_is_a_failure(answer: bytes) -> None:
    async with listening(answer) as url:
        assert "the request failed" in await failure(at(url))


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[str]:
    """Answer every connection with some bytes and close it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


@pytest.mark.parametrize("url", ["http://[::1]:1/keys"])
async def test_other_loopback_addresses_are_allowed(url: str) -> None:
    assert "the request failed" in await failure(at(url))
