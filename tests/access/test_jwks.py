"""Issuers that are silent, slow or lying cost one request, and their keys are not taken."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from megaphone.access.jwks import MAX_BYTES, FetchFailed, fetch_keys
from megaphone.settings import Issuer
from tests.support.issuer import AUDIENCE, ec, public

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
DISCOVERY = "/realm/.well-known/openid-configuration"
KEYS = {"keys": [public(ec(), kid="k1")]}
SHORT_S = 0.3


class Server:
    """An HTTP server that answers as it is told to, on any path."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        return await self.answers[request.path](request)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


def document(content: Any, status: int = 200, **headers: str) -> Answer:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=text, status=status, headers=headers)

    return answer


def at(url: str) -> Issuer:
    return Issuer(issuer="https://id.example.com", audience=AUDIENCE, jwks_url=url)


def discovered(server: Server) -> Issuer:
    return Issuer(issuer=f"{server.url}/realm", audience=AUDIENCE)


async def failure(settings: Issuer) -> str:
    with pytest.raises(FetchFailed) as caught:
        await fetch_keys(settings, SHORT_S)
    assert "127.0.0.1" not in str(caught.value)
    return str(caught.value)


async def test_keys_are_at_the_url_of_the_settings(server: Server) -> None:
    server.answers["/keys"] = document(KEYS)
    keys = await fetch_keys(at(f"{server.url}/keys?v=a%2Fb"))
    assert keys.find("ES256", "k1")
    assert server.asked == ["/keys?v=a%2Fb"]


async def test_keys_are_where_the_issuer_says(server: Server) -> None:
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
    server: Server, changes: dict[str, Any], reason: str
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
async def test_a_lying_answer_is_not_taken(server: Server, answer: Answer, reason: str) -> None:
    server.answers["/keys"] = answer
    server.answers["/other"] = document(KEYS)
    assert reason in await failure(at(f"{server.url}/keys"))
    assert server.asked == ["/keys"]


async def test_an_answer_that_would_grow_is_not_taken(server: Server) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        response = web.Response(body=b" " * 10_000_000 + json.dumps(KEYS).encode())
        response.enable_compression(web.ContentCoding.gzip)
        return response

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
async def test_a_silent_or_slow_issuer_has_little_time(server: Server, answer: Answer) -> None:
    server.answers["/keys"] = answer
    begin = time.monotonic()
    assert "no whole answer within 0.3 s" in await failure(at(f"{server.url}/keys"))
    assert time.monotonic() - begin < 10


async def test_the_time_is_for_discovery_and_keys_together(server: Server) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(SHORT_S * 0.7)
        return await document(
            {"issuer": f"{server.url}/realm", "jwks_uri": f"{server.url}/certs"} | KEYS
        )(request)

    server.answers[DISCOVERY] = server.answers["/certs"] = half
    assert "no whole answer" in await failure(discovered(server))


async def test_an_endless_answer_is_not_kept(server: Server) -> None:
    server.answers["/keys"] = endless
    with pytest.raises(FetchFailed, match="longer"):
        await fetch_keys(at(f"{server.url}/keys"))


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
